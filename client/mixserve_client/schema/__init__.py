"""The vocabulary that client and server share; it does not know its encoding."""
