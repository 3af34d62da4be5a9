"""Schedules: which layers are unfrozen at which epoch. Holds no training code."""
