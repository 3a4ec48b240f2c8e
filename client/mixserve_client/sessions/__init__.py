"""Sessions: nodes on a server that keep a state, and the leases by which a client holds them."""
