"""What a token looks like, so that one that was given by mistake, in place of a path for example, is never shown."""

import re

TOKEN_PREFIX = "mixserve_"  # so that programs that look for secrets in public places recognise a token
_HIDDEN = f"{TOKEN_PREFIX}…"
_TOKEN = re.compile(rf"{TOKEN_PREFIX}[A-Za-z0-9_-]{{43,}}")
# Messages cut what they show, so that half a token may be left. Less than this does not help to find the rest.
_PART = re.compile(rf"{TOKEN_PREFIX}[A-Za-z0-9_-]{{24,}}")


def has_token(text: str) -> bool:
    """Whether there is a token in `text`."""
    return TOKEN_PREFIX in text and any(_is_random(found[0]) for found in _TOKEN.finditer(text))


def hide_tokens(text: str) -> str:
    """`text` with `mixserve_…` in place of each token."""
    if TOKEN_PREFIX not in text:
        return text
    return _PART.sub(lambda found: _HIDDEN if _is_random(found[0]) else found[0], text)


def _is_random(found: str) -> bool:
    # Names of files and programs seldom have both; of 24 random characters, 1 in 200,000 lacks one.
    letters = found.removeprefix(TOKEN_PREFIX)
    return letters != letters.lower() and letters != letters.upper()
