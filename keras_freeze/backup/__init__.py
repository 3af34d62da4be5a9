"""The files of a backup: which arrays are in which file, and what is written about them."""
