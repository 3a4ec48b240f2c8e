"""What a server counts and measures while it answers."""
