"""Attacks on a server, and what an honest reader beside them notices: `python -m benchmarks.attacks [NAME …]`.

An attack is a module of this package with a function `attack(address)`, which goes on until its process is ended, and
a first line of its docstring that says what it does. To add one, write the module and put its name into `ATTACKS`.
"""

# In the order of the table.
ATTACKS = (
    "unread_calls",
    "unread_streams",
    "unread_bulk",
    "half_open",
    "half_open_health",
    "watches",
    "rapid_reset",
    "vanished",
    "burst",
    "hung_calls",
    "hung_streams",
    "slow_calls",
    "many_parts",
    "schedules",
    "renewals",
    "sessions",
)
