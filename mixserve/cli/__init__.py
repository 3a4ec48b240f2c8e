"""The command line: `mixserve serve|check|info|explain|fetch|bench|health|demo|state|ray`."""
