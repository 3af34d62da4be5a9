"""Stores features in memory, one row for each sample, under a hash of the sample."""
