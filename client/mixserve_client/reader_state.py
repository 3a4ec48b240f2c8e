"""The state of an iterator <-> plain JSON types, whatever a checkpointer made of these."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from mixserve_client.errors import InvalidRequest
from mixserve_client.skips import Skips
from mixserve_client.wire.key import KeyWords, key_words
from mixserve_client.wire.request import POSITION_LIMIT, check_integer
from mixserve_client.wire.shown import shown

_VERSION = 1
_KEYS = ("version", "mixture", "fingerprint", "key", "position")
_OPTIONAL_KEYS = ("schedule", "skip", "worker", "read", "batch_size", "short")


@dataclass(frozen=True)
class ReaderState:
    """Where an iterator is: at `position` of a mixture, under a key, a schedule (its entries in plain types) and skips.

    For one of several workers the position is that of its group of `batch_size` times as many rows as there are
    workers, of which it has `read` its batch, or not yet. `short` is where the positions ended if that batch was a
    short one. States of older clients lack these two.
    """

    mixture: str
    fingerprint: str
    words: KeyWords
    position: int
    schedule: Any = None
    skips: Skips = field(default_factory=Skips)
    worker: tuple[int, int] | None = None
    read: bool = False
    batch_size: int | None = None
    short: int | None = None

    @classmethod
    def of(cls, given: Any) -> "ReaderState":
        """The state in `given`: what `plain` gave, or what a checkpointer made of it, with scalars and arrays of NumPy,
        JAX or PyTorch for integers and lists. Raises InvalidRequest."""
        if not isinstance(given, Mapping) or set(given) - set(_OPTIONAL_KEYS) != set(_KEYS):  # pyright: ignore[reportUnknownArgumentType]
            raise InvalidRequest(
                f"a state must be a dict of exactly {', '.join(_KEYS)}, and of {', '.join(_OPTIONAL_KEYS)} where "
                f"there are any; got {_shown(given)}"
            )
        state: dict[str, Any] = {name: _plain(value) for name, value in cast(Mapping[str, Any], given).items()}
        if check_integer("the state's version", state["version"]) != _VERSION:
            raise InvalidRequest(f"the state's version must be {_VERSION}, got {shown(state['version'])}")
        worker = state.get("worker")
        if worker is not None and not (isinstance(worker, list) and len(cast(list[Any], worker)) == 2):
            raise InvalidRequest(f"the state's worker must be a pair of integers, got {worker!r:.100}")
        return cls(
            mixture=_text("mixture", state["mixture"]),
            fingerprint=_text("fingerprint", state["fingerprint"]),
            words=key_words(state["key"]),
            position=check_integer("position", state["position"], 0, POSITION_LIMIT),
            schedule=state.get("schedule"),
            skips=Skips.of(state.get("skip", ())),
            worker=None if worker is None else (check_integer("worker", worker[0]), check_integer("worker", worker[1])),
            read=bool(state.get("read", False)),
            batch_size=_optional("batch_size", state.get("batch_size"), 1),
            short=_optional("short", state.get("short"), 0),
        )

    def plain(self) -> dict[str, Any]:
        """In plain JSON types. Lists of schedules and skips are shared with other states of the same reader."""
        state: dict[str, Any] = {
            "version": _VERSION,
            "mixture": self.mixture,
            "fingerprint": self.fingerprint,
            "key": self.words.tolist(),
            "position": self.position,
        }
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
    """`value` with lists in the place of tuples and arrays, and Python's numbers and strings in that of scalars."""
    if isinstance(value, list | tuple):
        # Schedules may have 100,000 entries of plain numbers, and most states are plain already.
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


def _shown(state: Any) -> str:
    """A state that is none, as far as it can be shown: it may be a whole checkpoint."""
    if not isinstance(state, Mapping):
        return f"{state!r:.100}"
    keys = ", ".join(map(str, cast(Mapping[Any, Any], state)))
    return f"a dict of {keys:.200}: pass the part that get_state() gave"
