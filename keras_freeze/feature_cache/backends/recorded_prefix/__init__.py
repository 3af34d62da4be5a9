"""Runs the frozen part in epochs that are recorded, with the random layers in front of it."""
