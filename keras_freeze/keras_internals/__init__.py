"""Works with Keras' internals: trainable flags, optimizer state, step functions.

Each module lists the private names of Keras that it uses, with the versions they were tried on.
"""
