"""The rooms that touch Keras' internals: trainable state, optimizer state, step functions.

Every private name of Keras used here stands beside the versions it was tried on.
"""
