"""How a training step gets its features."""
