"""The tests. Each process runs one backend, set by KERAS_BACKEND."""
