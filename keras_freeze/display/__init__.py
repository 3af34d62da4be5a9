"""What the user sees: plain text and a plot, no training code."""
