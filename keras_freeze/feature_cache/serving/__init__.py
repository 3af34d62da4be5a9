"""Runs training and validation steps on cached features."""
