"""Runs a `fit`: when its callbacks are called, which stage holds, and what a stage changes."""
