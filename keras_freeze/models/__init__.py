"""Models that bring the callbacks along, for tools that call `fit` for you."""
