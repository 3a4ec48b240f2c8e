"""The sources of a mixture <-> one string in a saved state, so that a resumed run can be told what has changed.

A string, not a list: checkpointers of trees need the same tree when they restore, and mixtures gain and lose sources.
"""

import json
from collections.abc import Sequence
from typing import Any

from mixserve_client.schema.mixture import SourceDescription

# A state is saved with every checkpoint, and is often in the log of a run.
_MOST_CHARACTERS = 16 << 10


def describe_sources(sources: Sequence[SourceDescription]) -> str:
    """Names, lengths and weights as JSON; empty if that would be long."""
    if len(sources) > _MOST_CHARACTERS // 8:
        return ""
    text = json.dumps([[source.name, source.length, source.weight] for source in sources])
    return text if len(text) <= _MOST_CHARACTERS else ""


def read_sources(text: str) -> tuple[SourceDescription, ...]:
    """The sources that `describe_sources` was given; none if the text is not of its making.

    They only explain an error, which a damaged text must not hide.
    """
    try:
        rows: list[Any] = json.loads(text) if len(text) <= _MOST_CHARACTERS else []
        return tuple(SourceDescription(str(name), int(length), float(weight)) for name, length, weight in rows)
    except (ValueError, TypeError, RecursionError, OverflowError):
        return ()
