"""Samples of records -> what to write under `fields:` so that they can be served: names, lengths and dtypes."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mixserve.sources.decoders import Decoder
from mixserve.sources.fields import FieldSpec, Stored, serve_fields
from mixserve_client.schema.text import shorten

_INT32 = np.iinfo(np.int32)
_LONGEST = 1 << 20
Spec = dict[str, tuple[str, tuple[int, ...]]]  # dtype and shape by name


@dataclass
class Seen:
    """What a sample of records has in one stored field."""

    stored: Stored | None = None
    reason: str = ""  # why it cannot be served
    is_text: bool = False
    lengths: set[int] = field(default_factory=set[int])
    shapes: set[tuple[int, ...]] = field(default_factory=set[tuple[int, ...]])
    low: int = 0
    high: int = 0
    has_nulls: bool = False
    has_lists_of_one: bool = False  # which are numbers unless the field has a length
    count: int = 0


@dataclass
class Proposed:
    """A field to serve, as it is written in YAML."""

    name: str
    text: str
    comment: str
    spec: Spec

    @property
    def is_served(self) -> bool:
        return bool(self.spec)


def see_records(decoder: Decoder, records: Sequence[Any]) -> dict[str, Seen]:
    """What the records have in their fields. Raises ValueError if one cannot be decoded."""
    seen: dict[str, Seen] = {}
    for record in records:
        for name, stored in decoder.stored([record], None).items():
            here = seen.setdefault(name, Seen())
            here.count += 1
            if isinstance(stored, str):
                here.reason = here.reason or stored
                continue
            here.is_text = here.is_text or stored.is_ragged
            if here.stored is None:
                here.stored = stored
            elif here.stored.dtype != stored.dtype:
                here.reason = f"it is {here.stored.dtype} in some records and {stored.dtype} in others"
            served = serve_fields(
                {name: stored}, [FieldSpec(name, name, length=_LONGEST if stored.is_ragged else None)]
            )
            (value,) = decoder.decode(record, served)
            here.shapes.add(value.shape)
            if value.shape == () and not here.has_lists_of_one:
                listed = decoder.stored([record], [FieldSpec(name, name, length=1)])[name]
                here.has_lists_of_one = isinstance(listed, Stored) and listed.is_ragged
            if value.dtype.kind in "iu" and value.size:
                here.low, here.high = min(here.low, int(value.min())), max(here.high, int(value.max()))
    return seen


def see_columns(
    stored: Mapping[str, Stored | str], measure: Callable[[str], tuple[Iterable[int], bool]]
) -> dict[str, Seen]:
    """What Arrow's columns have; `measure` gives lengths of rows, and whether there are nulls."""
    seen: dict[str, Seen] = {}
    for name, kind in stored.items():
        if isinstance(kind, str):
            seen[name] = Seen(reason=kind)
            continue
        lengths, has_nulls = measure(name)
        seen[name] = Seen(kind, is_text=kind.is_ragged and kind.dtype == np.uint8, has_nulls=has_nulls)
        seen[name].shapes = {(length, *kind.shape) for length in lengths} if kind.is_ragged else {kind.shape}
    return seen


def propose(seen: Mapping[str, Seen], *, records: int | None, length: int | None, any_dtype: bool) -> list[Proposed]:
    """The fields to serve, and as comments those that are better left out.

    `records` is the number in the sample, or None if no record lacks a field. `length` is that of ragged integers;
    by default one that all in the sample fit into. With `any_dtype`, integers may be served in a smaller dtype.
    """
    made = [_propose(name, one, records, length, any_dtype=any_dtype, names=seen) for name, one in seen.items()]
    has_other = any(found.is_served and not seen[name].is_text for name, found in zip(seen, made, strict=True))
    for number, (name, found) in enumerate(zip(seen, made, strict=True)):
        if has_other and seen[name].is_text:
            made[number] = Proposed(found.name, found.text, found.comment, {})
    return made


def _propose(
    name: str, seen: Seen, records: int | None, length: int | None, *, any_dtype: bool, names: Iterable[str]
) -> Proposed:
    served = re.sub(r"\W+", "_", name) or "data"
    if served != name and served in names:
        served = f"{served}_2"
    source, stored = json.dumps(name), seen.stored
    if stored is None or seen.reason:
        return Proposed(served, source, f"cannot be served: {shorten(seen.reason, 100)}", {})
    parts, dtype = [f"from: {source}"], stored.dtype
    if any_dtype and dtype == np.int64 and seen.low >= _INT32.min and seen.high <= _INT32.max:
        parts, dtype = [*parts, "as: int32"], np.dtype(np.int32)
    is_ragged = stored.is_ragged or len(seen.shapes) > 1
    shapes = {shape or (1,) for shape in seen.shapes} if is_ragged and seen.has_lists_of_one else seen.shapes
    tails = {shape[1:] for shape in shapes}
    spec: Spec = {}
    if is_ragged and (len(tails) > 1 or () in shapes):
        return Proposed(served, source, f"cannot be served: its shapes differ, such as {sorted(seen.shapes)[:2]}", {})
    if is_ragged:
        longest = max((shape[0] for shape in shapes), default=0)
        room = length if length is not None and dtype.kind in "iu" and not seen.is_text else _round_up(longest)
        parts += [f"length: {room}", f"lengths: {served}_length", "long: cut"]
        spec = {served: (dtype.name, (room, *tails.pop())), f"{served}_length": ("int32", ())}
        comment = f"{'bytes' if seen.is_text else f'ragged {dtype}'}; the longest of a sample has {longest:,}"
    else:
        shape = next(iter(seen.shapes), stored.shape)
        spec, comment = {served: (dtype.name, shape)}, f"{stored.dtype}{list(shape)}"
    if records is not None and seen.count < records:
        parts.append(f"default: {'[]' if is_ragged else '0'}")
    if seen.has_nulls:
        parts.append("null: 0")
    short = len(parts) == 1 and json.loads(source) == served
    return Proposed(served, source if short else f"{{{', '.join(parts)}}}", comment, spec)


def _round_up(length: int) -> int:
    return 1 << max(0, length - 1).bit_length()
