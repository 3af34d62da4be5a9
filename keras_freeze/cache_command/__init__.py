"""The command `keras-freeze cache`: lists, checks and cleans up features in a directory."""
