"""Draws the order of the rows in each epoch."""
