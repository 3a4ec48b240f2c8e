"""How requests and replies move: over gRPC, over bulk channels, through shared memory, or within this process."""
