"""How one call gets done: retried, in time, on the threads of a client, and across forks."""
