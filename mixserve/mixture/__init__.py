"""The arithmetic of mixing: which record fills which slot, and how the records get there."""

from mixserve.mixture.mixture import Mixture

__all__ = ["Mixture"]
