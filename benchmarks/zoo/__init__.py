"""Common models, small and with random weights, and what must hold for each."""
