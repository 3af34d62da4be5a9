"""The tests: one process a backend, chosen by KERAS_BACKEND."""
