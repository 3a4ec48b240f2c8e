"""The peers of the race, a file each; its docstring lists what was done in the peer's favour.

Peers run in their own environments (`*.txt` here), so their files import only NumPy, the peer and the race.
"""
