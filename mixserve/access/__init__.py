"""Who may reach a server, and what they may do there; without gRPC."""
