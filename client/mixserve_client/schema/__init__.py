"""The vocabulary that client and server share: it knows no bytes."""
