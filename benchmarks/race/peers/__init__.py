"""Those that race against mixserve, a file each; its docstring says what was done in the peer's favour.

Peers run in environments of their own (`*.txt` here), so their files import nothing but NumPy, the peer and the race.
"""
