"""Models that people fine-tune, small and with random weights, and what must hold for each."""
