"""`mixserve top`: what servers do, live."""
