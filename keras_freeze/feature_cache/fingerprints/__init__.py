"""Fingerprints of what features depend on: layers, weights, code, versions."""
