"""How a request and its replies move: over gRPC, through shared memory, or within this process."""
