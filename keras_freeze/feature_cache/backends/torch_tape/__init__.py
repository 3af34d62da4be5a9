"""On PyTorch: the operations that a prefix calls, recorded once and played for each batch."""
