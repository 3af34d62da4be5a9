"""Shows what a schedule will do to a model, before any training."""
