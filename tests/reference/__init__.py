"""References for the tests, written without keras_freeze's own mechanisms."""
