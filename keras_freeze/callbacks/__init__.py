"""The public callbacks, one in each file. `fit_engine` does their work."""
