"""The demo: a language model learns from a mixture while server and trainer are killed, and no batch changes."""
