"""The kinds of sources in a configuration file: one file per kind, and what they share. Does not load JAX."""
