"""The command line: `mixserve serve|check|info|fetch|health|demo`."""
