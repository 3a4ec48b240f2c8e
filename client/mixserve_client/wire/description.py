"""Re-exports descriptions from `mixserve_client.schema`: pickles of older clients name this module."""

from mixserve_client.schema.fields import Field
from mixserve_client.schema.mixture import Limits, MixtureDescription, SourceDescription
from mixserve_client.wire.mixture import decode_mixture, encode_mixture

__all__ = ["Field", "Limits", "MixtureDescription", "SourceDescription", "decode_mixture", "encode_mixture"]
