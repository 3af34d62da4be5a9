"""Caches the outputs of frozen layers within one `fit`, and trains the other layers on them."""
