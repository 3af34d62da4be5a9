"""Checks that cached features are still correct, and that the cache is worth its memory."""
