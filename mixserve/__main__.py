"""`python -m mixserve` is the command `mixserve`."""

from mixserve.cli.start import main

main()
