"""The crowd: single calls, resuming, and many clients at once, on a mixserve server; run by `make bench`."""
