"""Sessions: nodes with state on a server, and the leases with which a client holds them."""
