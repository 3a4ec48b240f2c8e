"""The former place of `Skips`; pickles of older clients name this module."""

from mixserve_client.reading.skips import Skips

__all__ = ["Skips"]
