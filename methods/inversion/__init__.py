"""Model inversion: from teachers to pseudo-images."""
