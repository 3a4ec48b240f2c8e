"""How requests and replies move: over gRPC, through shared memory, or within this process."""
