"""What the user sees: plain text, no training code."""
