"""The backend-specific code of the cache: one module each for TensorFlow, JAX and PyTorch."""
