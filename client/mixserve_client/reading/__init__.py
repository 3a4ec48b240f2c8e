"""Reading batches: what to read, what to request next, and how replies become batches."""
