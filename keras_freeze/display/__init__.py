"""Output for the user: the printed lines of a `fit`, and the plot of its History."""
