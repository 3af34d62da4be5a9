"""Applies the stages of a schedule within one `fit`: what is trainable, rates, cache, output."""
