"""Schedules as YAML, JSON and TOML files."""
