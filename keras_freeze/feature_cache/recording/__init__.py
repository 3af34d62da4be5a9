"""Records whole epochs, with their random augmentation, and trains on the recordings."""
