"""Other libraries' lists of data -> a configuration file: `mixserve init --from`."""
