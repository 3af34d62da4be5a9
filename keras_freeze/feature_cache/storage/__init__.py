"""What the cache keeps: rows of features, by key."""
