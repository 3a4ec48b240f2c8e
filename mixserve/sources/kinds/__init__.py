"""What a source in a configuration file can be: one file per kind, and what these share. Loads no JAX."""
