"""How one call gets done: retries, deadlines, a client's threads, and forks."""
