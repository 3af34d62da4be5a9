"""Reads the structure of a Keras model: its layers, their graph and its blocks. Changes nothing."""
