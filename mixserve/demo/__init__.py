"""The demo: a language model trains on a mixture while server and trainer are killed, and no batch changes."""
