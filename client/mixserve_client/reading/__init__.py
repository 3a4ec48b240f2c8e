"""How batches are read: what is selected, what is asked for next, and what becomes of the replies."""
