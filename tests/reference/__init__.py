"""What the engine is tested against, written without keras_freeze's own mechanisms."""
