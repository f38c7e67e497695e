"""What `overlaynet verify` proves, a suite each: by sending, and by looking at what passes meanwhile."""
