"""The training loop's iterator: batch after batch, the next ones in flight, and a state of about 150 bytes."""

import operator
from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from mixserve_client.assembly import no_rows
from mixserve_client.errors import FingerprintMismatch, InvalidRequest
from mixserve_client.reading import Reading
from mixserve_client.retry import deadline_in, seconds
from mixserve_client.spans import Span, batches_ahead, reply_batches, shard_rows, whole_replies
from mixserve_client.wire.description import MixtureDescription
from mixserve_client.wire.key import key_words
from mixserve_client.wire.request import POSITION_LIMIT, check_positions
from mixserve_client.wire.tree import unflatten

if TYPE_CHECKING:
    from mixserve_client.client import MixClient

_STATE_VERSION = 1
_STATE_KEYS = ("version", "mixture", "fingerprint", "key", "position")


class _InFlight(NamedTuple):
    """Batches that were asked for at once; the last of them ends at `end`. Without a reading they have no rows."""

    end: int
    reading: Reading | None


class BatchIterator:
    """Yields dicts of arrays; made by `MixClient.batches`. One thread at a time.

    The state is the position behind the last batch that was yielded, whatever has been prefetched. An error leaves it
    where it was: the next `next()` asks for the same batch again.
    """

    def __init__(
        self,
        client: "MixClient",
        *,
        batch_size: int,
        key: Any,
        mixture: str | None,
        start: int,
        stop: int | None,
        shard: tuple[int, int],
        prefetch: int,
        timeout_s: float | None,
    ):
        self._client = client
        self._position: int
        self._position, self._batch_size = check_positions(start, batch_size)
        self._stop: int = POSITION_LIMIT if stop is None else _checked_stop(stop)
        self._words = key_words(key)
        self._mixture_name = mixture
        self._shard = _checked_shard(shard, self._batch_size)
        self._prefetch = _at_least("prefetch", prefetch, 0)
        self._timeout_s = None if timeout_s is None else seconds("timeout_s", timeout_s)
        self._in_flight: deque[_InFlight] = deque()
        self._ask_from = 0  # the position at which there is room for more
        self._asked: int = self._position
        self._closed = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        if self._closed:
            raise InvalidRequest("this iterator is closed; make another one with client.batches(...)")
        before = self._position
        try:
            if not self._in_flight:
                self._ask(at_least=1)
                if not self._in_flight:
                    raise StopIteration
            end, reading = self._in_flight[0]
            if reading is None:
                batch = no_rows(self._mixture().fields)
            else:
                batch = reading.take(None if self._timeout_s is None else deadline_in(self._timeout_s))
            self._position = position = min(before + self._batch_size, self._stop)
            if position == end:
                self._in_flight.popleft()
            if position >= self._ask_from:
                self._ask()
        except BaseException:
            self._position = before
            self._forget()
            raise
        return unflatten(batch)

    def get_state(self) -> dict[str, Any]:
        """Where this iterator is, in plain JSON types: restoring it costs the same at every position.

        Asks the server for the mixture's fingerprint if nothing has been asked yet.
        """
        mixture = self._mixture()
        return {
            "version": _STATE_VERSION,
            "mixture": mixture.name,
            "fingerprint": mixture.fingerprint,
            "key": self._words.tolist(),
            "position": self._position,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken; batch size and shard may be others than then.

        Raises InvalidRequest for what is no such state, FingerprintMismatch where it was taken from another mixture;
        then nothing has changed.
        """
        position, words = _checked_state(state)
        mixture = self._mixture()
        if state["fingerprint"] != mixture.fingerprint:
            raise FingerprintMismatch(
                f"the state was taken from the mixture {state['mixture']!r} with the fingerprint "
                f"{state['fingerprint']}, this is {mixture.name!r} with {mixture.fingerprint}: its batches are others"
            )
        self._position, self._words = position, words
        self._forget()

    def close(self) -> None:
        """Drop what is in flight; the client stays open. Closing twice is closing once."""
        self._closed = True
        self._forget()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        index, count = self._shard
        return (
            f"BatchIterator(mixture={self._mixture_name!r}, batch_size={self._batch_size}, "
            f"key={self._words.tolist()}, position={self._position}, shard=({index}, {count}))"
        )

    def _mixture(self) -> MixtureDescription:
        mixture = self._client._described(self._mixture_name, self._timeout_s)  # pyright: ignore[reportPrivateUsage]
        self._mixture_name = mixture.name
        return mixture

    def _ask(self, at_least: int = 0) -> None:
        """Ask for the batches that there is room for, half of them at a time: one stream is open while another ends."""
        mixture, size = self._mixture(), self._batch_size
        offset, rows = shard_rows(size, self._shard)
        batch_bytes = rows * mixture.row_bytes
        most = max(at_least, batches_ahead(batch_bytes, self._prefetch))
        half = max(1, most // 2)
        while self._asked < self._stop and most - (self._asked - self._position) // size >= half:
            whole = (self._stop - self._asked) // size
            if whole:
                count = whole_replies(self._asked // size, min(half, whole), reply_batches(batch_bytes))
                span, end = Span(self._asked + offset, rows, size, count), self._asked + count * size
            else:
                offset, rows = shard_rows(self._stop - self._asked, self._shard)
                span, end = Span(self._asked + offset, rows, max(rows, 1), 1), self._stop
            reading = self._start(mixture, span) if rows else None
            self._in_flight.append(_InFlight(end, reading))
            self._asked = end
        self._ask_from = self._asked - (most - half) * size

    def _start(self, mixture: MixtureDescription, span: Span) -> Reading:
        before = self._in_flight[-1].reading if self._in_flight else None
        return self._client._start(mixture, self._words, span, before)  # pyright: ignore[reportPrivateUsage]

    def _forget(self) -> None:
        for in_flight in self._in_flight:
            if in_flight.reading is not None:
                in_flight.reading.cancel()
        self._in_flight.clear()
        self._asked = self._position


def _at_least(name: str, value: Any, least: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if number < least:
        raise InvalidRequest(f"{name} must be an integer of at least {least}, got {value!r}")
    return number


def _checked_stop(stop: Any) -> int:
    try:
        position = operator.index(stop)
    except TypeError:
        position = -1
    if not 0 <= position <= POSITION_LIMIT:
        raise InvalidRequest(f"stop must be an integer in 0..2^63 - 1, got {stop!r}")
    return position


def _checked_shard(shard: Any, batch_size: int) -> tuple[int, int]:
    try:
        index, count = map(operator.index, shard)
    except (TypeError, ValueError):
        index, count = -1, 0
    if not 0 <= index < count <= batch_size:
        raise InvalidRequest(
            f"shard must be (index, count) with 0 <= index < count <= batch_size, got {shard!r} "
            f"for batch_size {batch_size}"
        )
    return index, count


def _checked_state(state: Any) -> tuple[int, Any]:
    if not isinstance(state, dict) or set(state) != set(_STATE_KEYS):  # pyright: ignore[reportUnknownArgumentType]
        raise InvalidRequest(f"a state must be a dict of exactly {', '.join(_STATE_KEYS)}; got {state!r}")
    if state["version"] != _STATE_VERSION:
        raise InvalidRequest(f"the state's version must be {_STATE_VERSION}, got {state['version']!r}")
    position = _at_least("position", state["position"], 0)  # pyright: ignore[reportUnknownArgumentType]
    if position > POSITION_LIMIT:
        raise InvalidRequest(f"position must be at most 2^63 - 1, got {position}")
    return position, key_words(state["key"])
