"""Runs many training or validation steps in one call: one module for each backend."""
