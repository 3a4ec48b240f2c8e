"""Logs, faults, reloads, and the service manager."""
