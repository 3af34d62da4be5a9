"""What would make cached features wrong, and what is said then."""
