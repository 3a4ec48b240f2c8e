"""Where skips were before they moved to `mixserve_client.reading.skips`; pickles of older clients name this module."""

from mixserve_client.reading.skips import Skips

__all__ = ["Skips"]
