"""Where keys were before they moved to `mixserve_client.schema.keys`; kept for code that imports them from here."""

from mixserve_client.schema.keys import IMPLEMENTATION, KeyWords, check_wire_key, key_words

__all__ = ["IMPLEMENTATION", "KeyWords", "check_wire_key", "key_words"]
