"""Who may do what: roles, identities, token files, and records of what was done."""
