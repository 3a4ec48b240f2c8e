"""Statistics that servers have sent: what grew between two of them, and sums over servers."""
