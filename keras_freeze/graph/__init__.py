"""Reads a Keras model as a tree of layers and a graph of blocks; changes nothing."""
