"""References the engine is tested against, written without Keras."""
