"""On PyTorch: records the operations of the frozen layers once, and replays them for batches."""
