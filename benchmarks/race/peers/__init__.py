"""The peers of the race, a file each; its docstring lists what was done in the peer's favour.

Peers run in their own environments (`*.txt` here), so their files import only NumPy, the peer and the race. The servers
of those that do the same work (`*_planned`) import mixserve too, whose parts plan and gather what they send.
"""
