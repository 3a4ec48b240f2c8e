"""The version of both packages: the one place where it is written.

Both `pyproject.toml` read it without running it, and `mixserve.__version__` is this one. The server's requirement
`mixserve-client==…` repeats it; `tests/test_packages.py` fails if it differs.
"""

__version__ = "0.1.0"
