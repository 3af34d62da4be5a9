"""The cache: where the frozen part ends, what it gives for each image, and how a step is served."""
