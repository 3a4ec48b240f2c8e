"""`python -m mixserve` is the command `mixserve`."""

from mixserve.cli.main import app

app(prog_name="mixserve")
