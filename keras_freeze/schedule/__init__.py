"""What happens when, as data: no training code, no model is touched."""
