"""Descriptions of mixtures: fields, sources, fingerprint and limits."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

from mixserve_client.schema.fields import Field
from mixserve_client.schema.schedule import ScheduleEntry
from mixserve_client.schema.text import show_names


@dataclass(frozen=True, slots=True)
class SourceDescription:
    """A source: its name, its number of records, and its share of the mixture, in 0..1, from position 0 on.

    `pass_end`: in epoch mode, the number of positions that hold the first pass over the source, to within a block; None
    if the pass never ends. `content_unknown`: whether the records can change without changing the fingerprint.
    `content_sampled`: whether those can that are not in a sample of 66.
    """

    name: str
    length: int
    weight: float
    pass_end: int | None = None
    content_unknown: bool = False
    content_sampled: bool = False

    def __setstate__(self, state: list[Any]) -> None:
        # Pickles of earlier versions lack the fields that were added since, which have defaults.
        defaults = [field.default for field in fields(self)]
        for field, value in zip(fields(self), [*state, *defaults[len(state) :]], strict=True):
            object.__setattr__(self, field.name, value)


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on one request: rows, and bytes of array data in one reply."""

    size: int
    reply_bytes: int


@dataclass(frozen=True, slots=True, repr=False)
class MixtureDescription:
    """A mixture as its server describes it; equal fingerprints mean equal batches, unless a source has
    `content_unknown` or `content_sampled`.

    `end` is the first position after the end, None if the mixture is endless. `schedule` has weights, each with the
    position from which they apply. `leaves` are the names of the sources; `source_id` is an index into them.
    """

    name: str
    fingerprint: str
    fields: tuple[Field, ...]
    sources: tuple[SourceDescription, ...]
    limits: Limits
    placement: str
    sampling: str
    block_size: int = 0
    stop: str = "never"
    end: int | None = None
    schedule: tuple[ScheduleEntry, ...] = ()
    leaves: tuple[str, ...] = ()

    @property
    def element_spec(self) -> dict[str, Field]:
        """The fields of a record, by name."""
        return {field.name: field for field in self.fields}

    @property
    def weights(self) -> tuple[float, ...]:
        """The shares of the sources at position 0, in their order; they sum to 1."""
        return tuple(source.weight for source in self.sources)

    @property
    def row_bytes(self) -> int:
        """The bytes of one row, over all fields."""
        return sum(field.nbytes for field in self.fields)

    def __repr__(self) -> str:
        """What people look for, and not every attribute: a mixture may have thousands of sources."""
        sources = show_names(f"{source.name} {source.weight:.2%} of {source.length:,}" for source in self.sources)
        fields = show_names(f"{field.name}: {field.dtype.name}{list(field.shape)}" for field in self.fields)
        end = "" if self.end is None else f", end={self.end}"
        return (
            f"MixtureDescription({self.name!r}, sources=[{sources}], fields=[{fields}], sampling={self.sampling!r}{end}"
            f", fingerprint='{self.fingerprint[:12]}…')"
        )


def differences(known: MixtureDescription, now: MixtureDescription) -> str:
    """What differs in two descriptions, for an error message: up to five differences, the most telling ones first."""
    return _first_few(
        _differences(known, now),
        "nothing that a description shows, so it is the content of a source, the PRNG, or the version of mixserve or "
        "JAX",
    )


def source_differences(known: Sequence[SourceDescription], now: Sequence[SourceDescription]) -> str:
    """What differs in names, lengths, weights and order of sources, for an error message: up to five differences."""
    return _first_few(
        _source_differences(known, now),
        "not the names, lengths and weights of the sources, so it is their content, the fields, the sampling, the "
        "schedule, or the version of mixserve or JAX",
    )


_MOST_DIFFERENCES = 5


def _first_few(differences: Iterator[str], otherwise: str) -> str:
    found = list(differences) or [otherwise]
    more = f"; and {len(found) - _MOST_DIFFERENCES} more" if len(found) > _MOST_DIFFERENCES else ""
    return "; ".join(found[:_MOST_DIFFERENCES]) + more


def _source_differences(known: Sequence[SourceDescription], now: Sequence[SourceDescription]) -> Iterator[str]:
    before, after = ({source.name: source for source in sources} for sources in (known, now))
    yield from (f"the source {name!r:.60} is gone" for name in before if name not in after)
    yield from (f"the source {name!r:.60} is new" for name in after if name not in before)
    common = [name for name in before if name in after]
    for name in common:
        if before[name].length != after[name].length:
            yield f"the source {name!r:.60} has {after[name].length} records, not {before[name].length}"
    for name in common:
        if before[name].weight != after[name].weight:
            yield f"the source {name!r:.60} has {after[name].weight:.4%} of the weights, not {before[name].weight:.4%}"
    if before.keys() == after.keys() and list(before) != list(after):
        yield "the sources are in another order"


def _differences(known: MixtureDescription, now: MixtureDescription) -> Iterator[str]:
    yield from _source_differences(known.sources, now.sources)
    for name in ("sampling", "block_size", "stop"):
        if getattr(known, name) != getattr(now, name):
            yield f"{name} is {getattr(now, name)!r:.60}, not {getattr(known, name)!r:.60}"
    if known.schedule[1:] != now.schedule[1:]:  # the first entry has the weights of the sources
        yield "the weight schedule is another one"
    for name in known.element_spec | now.element_spec:
        if known.element_spec.get(name) != now.element_spec.get(name):
            yield f"the field {name!r:.60} is {_kind(now, name)}, not {_kind(known, name)}"


def _kind(mixture: MixtureDescription, name: str) -> str:
    field = mixture.element_spec.get(name)
    return "absent" if field is None else f"{field.dtype}{list(field.shape)}"
