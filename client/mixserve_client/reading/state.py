"""The state of an iterator <-> plain JSON types, also after a checkpointer has turned these into arrays or tuples."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, cast

from mixserve_client.errors import FingerprintMismatch, InvalidRequest
from mixserve_client.reading.ranges import Shard
from mixserve_client.reading.selection import Selection
from mixserve_client.reading.skips import Skips
from mixserve_client.reading.source_list import read_sources
from mixserve_client.schema.checks import check_integer
from mixserve_client.schema.keys import KeyWords, key_words
from mixserve_client.schema.mixture import MixtureDescription, source_differences
from mixserve_client.schema.positions import POSITION_LIMIT
from mixserve_client.schema.text import show


class StreamCheckpoint(NamedTuple):
    """The position of an iterator within its stream."""

    position: int  # start of the next batch, or of its group if there are several workers
    group: int | None = None  # start of the group of the last yielded batch; None before the first
    short: int | None = None  # where the positions ended, if the last yielded batch was short


_VERSION = 1
_KEYS = ("version", "mixture", "fingerprint", "key", "position")
_OPTIONAL_KEYS = ("sources", "schedule", "skip", "worker", "read", "batch_size", "short")


@dataclass(frozen=True)
class ReaderState:
    """A saved state: a `position` of a mixture, with key, schedule (entries in plain types) and skips.

    `sources` is what `describe_sources` made of the mixture's; empty in states of older clients.

    For one of m workers, `position` is the start of a group of m batches, and `read` says whether the worker has read
    its batch of that group. `short` is where the positions ended, if that batch was short. States of older clients lack
    `batch_size` and `short`.
    """

    mixture: str
    fingerprint: str
    words: KeyWords
    position: int
    sources: str = ""
    schedule: Any = None
    skips: Skips = field(default_factory=Skips)
    worker: tuple[int, int] | None = None
    read: bool = False
    batch_size: int | None = None
    short: int | None = None

    @classmethod
    def at(cls, checkpoint: StreamCheckpoint, selection: Selection, skips: Skips, shard: Shard) -> "ReaderState":
        """The state of an iterator at `checkpoint`."""
        state = cls(
            selection.mixture.name,
            selection.fingerprint,
            selection.words,
            checkpoint.position,
            selection.sources,
            selection.schedule.plain,
            skips,
        )
        if shard.worker[1] == 1:
            return state
        return replace(
            state,
            position=checkpoint.position if checkpoint.group is None else checkpoint.group,
            worker=shard.worker,
            read=checkpoint.group is not None,
            batch_size=shard.batch_size,
            short=checkpoint.short,
        )

    @classmethod
    def of(cls, given: Any) -> "ReaderState":
        """The state in `given`: the result of `plain`, or what a checkpointer made of it, with scalars and arrays of
        NumPy, JAX or PyTorch in place of integers and lists. Raises InvalidRequest."""
        if isinstance(given, str | bytes):
            raise InvalidRequest(f"a state must be a dict, got the text {given!r:.60}: read it with json.loads(text)")
        if not isinstance(given, Mapping) or set(given) - set(_OPTIONAL_KEYS) != set(_KEYS):  # pyright: ignore[reportUnknownArgumentType]
            raise InvalidRequest(
                f"a state must be a dict of exactly {', '.join(_KEYS)}, and optionally {', '.join(_OPTIONAL_KEYS)}; "
                f"got {_show(given)}"
            )
        state: dict[str, Any] = {name: _plain(value) for name, value in cast(Mapping[str, Any], given).items()}
        if check_integer("the state's version", state["version"]) != _VERSION:
            raise InvalidRequest(f"the state's version must be {_VERSION}, got {show(state['version'])}")
        worker = state.get("worker")
        if worker is not None and not (isinstance(worker, list) and len(cast(list[Any], worker)) == 2):
            raise InvalidRequest(f"the state's worker must be a pair of integers, got {worker!r:.100}")
        return cls(
            mixture=_text("mixture", state["mixture"]),
            fingerprint=_text("fingerprint", state["fingerprint"]),
            words=key_words(state["key"]),
            position=check_integer("position", state["position"], 0, POSITION_LIMIT),
            sources=_text("sources", state.get("sources", "")),
            schedule=state.get("schedule"),
            skips=Skips.of(state.get("skip", ())),
            worker=None if worker is None else (check_integer("worker", worker[0]), check_integer("worker", worker[1])),
            read=bool(state.get("read", False)),
            batch_size=_optional("batch_size", state.get("batch_size"), 1),
            short=_optional("short", state.get("short"), 0),
        )

    def checkpoint(self, skips: Skips, shard: Shard) -> StreamCheckpoint:
        """The checkpoint at which an iterator with `skips` and `shard` resumes."""
        if not self.read:
            return StreamCheckpoint(self.position)
        # From the group's start, not from this worker's batch: so all workers agree where the next group starts, even
        # if skips have changed since.
        _, end = skips.take(self.position, shard.group, POSITION_LIMIT)
        return StreamCheckpoint(end, self.position, self.short)

    def check_mixture(self, mixture: MixtureDescription) -> None:
        """Raises FingerprintMismatch if this may be the state of another mixture."""
        if self.fingerprint != mixture.fingerprint:
            then = read_sources(self.sources)
            changed = f" What has changed: {source_differences(then, mixture.sources)}." if then else ""
            raise FingerprintMismatch(
                f"the state was taken from the mixture {self.mixture!r:.200} with the fingerprint "
                f"{self.fingerprint:.100}, this is {mixture.name!r} with {mixture.fingerprint}: its batches are "
                f"different.{changed} To resume at the same position of this one, make the iterator with strict=False"
            )
        # A fingerprint does not cover unknown content, so two mixtures of different names may have the same one.
        if self.mixture != mixture.name and any(source.content_unknown for source in mixture.sources):
            raise FingerprintMismatch(
                f"the state was taken from the mixture {self.mixture!r:.200}, this is {mixture.name!r}: they have one "
                "fingerprint, but it does not cover the content of all sources, so their batches may differ; give the "
                "sources a content_id, or make the iterator with strict=False"
            )

    def check_worker(self, shard: Shard, skips: Skips, stop: int) -> None:
        """Raises InvalidRequest if a worker of `shard`, which leaves out `skips` and ends at `stop`, cannot resume from
        this state without losing rows or reading some twice."""
        if self.worker is None:
            return
        if self.worker != shard.worker:
            raise InvalidRequest(
                f"the state is that of worker {list(self.worker)}, and this is worker {list(shard.worker)}: give "
                "every worker its own state, and keep their number; or load no state, and begin at the position: "
                "start=step * batch_size, of client.batches(...) or RemoteIterableDataset(...)"
            )
        wanted = ""
        if self.batch_size not in (None, shard.batch_size):
            wanted = f"batch_size {self.batch_size}, got {shard.batch_size}"
        elif self.read:
            what = self.position, (shard.worker[0] + 1) * shard.batch_size, self.short or POSITION_LIMIT
            if self.skips.take(*what) != skips.take(*what):
                wanted = "skips that leave out nothing that the workers have already read"
            elif self.short is not None and skips.first_from(self.short) < stop:
                wanted = f"stop {self.short} at most, since the last batch was short"
        if wanted:
            raise InvalidRequest(
                f"the state of a worker needs {wanted}: otherwise workers would lose rows, or read some twice; make "
                "new iterators for all workers, with start= the first position that has not been read"
            )

    def plain(self) -> dict[str, Any]:
        """The state in plain JSON types. States of one reader share the lists of their schedule and skips."""
        state: dict[str, Any] = {
            "version": _VERSION,
            "mixture": self.mixture,
            "fingerprint": self.fingerprint,
            "key": self.words.tolist(),
            "position": self.position,
        }
        if self.sources:
            state["sources"] = self.sources
        if self.schedule:
            state["schedule"] = self.schedule
        if self.skips.ranges:
            state["skip"] = self.skips.plain
        if self.worker is not None:
            state |= {"worker": list(self.worker), "read": self.read, "batch_size": self.batch_size}
            if self.short is not None:
                state["short"] = self.short
        return state


def _plain(value: Any) -> Any:
    """`value` with lists in place of tuples and arrays, and Python's numbers and strings in place of scalars."""
    if isinstance(value, list | tuple):
        # Skips the call for plain items: schedules may have 100,000 entries, and most states are plain already.
        return [one if type(one) in (int, float, str) else _plain(one) for one in cast(list[Any], value)]
    if hasattr(value, "tolist"):  # NumPy's scalars and arrays, JAX's, PyTorch's
        return value.tolist()
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidRequest(f"the state's {name} must be a string, got {value!r:.100}")
    return value


def _optional(name: str, value: Any, least: int) -> int | None:
    return None if value is None else check_integer(f"the state's {name}", value, least, POSITION_LIMIT)


def _show(state: Any) -> str:
    """A wrong state as short text: for a dict only its keys, since it may be a whole checkpoint."""
    if not isinstance(state, Mapping):
        return f"{state!r:.100}"
    keys = ", ".join(map(str, cast(Mapping[Any, Any], state)))
    return f"{f'a dict of {keys:.200}' if keys else 'an empty dict'}: pass the part that get_state() returned"
