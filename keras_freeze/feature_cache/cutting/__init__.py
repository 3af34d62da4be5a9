"""Where the cached part of a model ends: the cut of each stage."""
