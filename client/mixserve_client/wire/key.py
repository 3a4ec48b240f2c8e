"""Re-exports `mixserve_client.schema.keys` for code that imports keys from here."""

from mixserve_client.schema.keys import IMPLEMENTATION, KeyWords, check_wire_key, key_words

__all__ = ["IMPLEMENTATION", "KeyWords", "check_wire_key", "key_words"]
