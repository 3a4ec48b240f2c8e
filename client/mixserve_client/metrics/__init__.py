"""What a client counts and measures while it reads."""
