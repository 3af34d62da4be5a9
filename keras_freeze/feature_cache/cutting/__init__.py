"""Finds the cut of each stage: the tensors whose values are cached."""
