"""The training loop's iterator: batch after batch, the next ones in flight, and a state of about 150 bytes
and its schedule."""

import threading
import weakref
from collections import deque
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from mixserve_client.assembly import joined, no_rows
from mixserve_client.errors import FingerprintMismatch, InvalidRequest
from mixserve_client.forks import leave_to_parent, renew_in_forks
from mixserve_client.one_thread import OneThreaded
from mixserve_client.reader_state import ReaderState
from mixserve_client.reading import Reading
from mixserve_client.retry import deadline_in, seconds
from mixserve_client.schedule import Pairs, Schedule, Weights, check_weights_ahead, copied_pairs
from mixserve_client.skips import Skips, part
from mixserve_client.spans import Scattered, Share, Span, batches_ahead, reply_batches, whole_replies
from mixserve_client.state_file import load_state, write_state
from mixserve_client.view import View
from mixserve_client.wire.description import MixtureDescription
from mixserve_client.wire.key import key_words
from mixserve_client.wire.request import POSITION_LIMIT, Content, check_integer, check_positions, check_truth
from mixserve_client.wire.shown import shown

if TYPE_CHECKING:
    from mixserve_client.client import MixClient

_FEW_PIECES = 4


@dataclass(slots=True)
class _InFlight:
    """Batches that were asked for at once: `left` of them have not been taken, the last of them ends at `end`.

    Several readings are the parts of one batch; without any, batches have no rows.
    """

    end: int
    left: int
    readings: tuple[Reading, ...]
    weight: int  # what one of them counts of what may be in flight: parts are asked for one by one
    cut: bool = False  # whether the positions end in its group
    short: bool = False  # and in its batch

    def cancel(self) -> None:
        for reading in self.readings:
            reading.cancel()


class Place(NamedTuple):
    """Where an iterator stands: where the next batch begins, or its group, and the group of the last batch, with where
    the positions ended if that one was short."""

    position: int
    group: int | None
    short: int | None


class BatchIterator(OneThreaded):
    """Yields dicts of arrays; made by `MixClient.batches`.

    For one thread at a time: a call while another thread is in one raises InvalidRequest. `close` alone may come from
    any thread: it ends a wait for a batch with Unavailable.

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
        worker: tuple[int, int],
        schedule: Pairs | None,
        provenance: bool,
        skip: Sequence[tuple[int, int]],
        drop_remainder: bool,
        strict: bool,
        prefetch: int,
        timeout_s: float | None,
    ):
        super().__init__()
        self._client = client
        self._position: int
        self._position, size = check_positions(start, batch_size, name="batch_size")
        self._share = Share(size, _checked_pair("shard", shard, size), _checked_pair("worker", worker))
        self._group: int | None = None  # the start of the group that the last batch is of
        self._short: int | None = None  # where the positions ended, if that batch was short
        self._stop: int = POSITION_LIMIT if stop is None else check_integer("stop", stop, 0, POSITION_LIMIT)
        self._words = key_words(key)
        self._mixture_name = mixture
        schedule, skip = copied_pairs(schedule), copied_pairs(skip)
        self._given_schedule: Pairs | None = schedule
        self._content = Content.RECORDS_AND_PROVENANCE if check_truth("provenance", provenance) else Content.RECORDS
        self._own_skips = self._skips = Skips.of(skip)
        self._view: View | None = None
        self._drop_remainder = check_truth("drop_remainder", drop_remainder)
        self._strict = check_truth("strict", strict)
        self._prefetch = check_integer("prefetch", prefetch, 0)
        self._timeout_s = None if timeout_s is None else seconds("timeout_s", timeout_s)
        self._in_flight: deque[_InFlight] = deque()
        self._ahead = 0  # batches in flight
        self._few = 0  # so many are few: there is room for more
        self._end: int | None = None
        self._asked: int = self._position
        self._beginning = self._position, self._words, schedule, self._own_skips
        renew_in_forks(self, BatchIterator._renew_after_fork)
        weakref.finalize(self, _cancel, self._in_flight).atexit = False

    def __iter__(self) -> Self:
        return self

    @OneThreaded._in_turn
    def __next__(self) -> Any:
        self._check_open()
        before = self._position
        try:
            deadline = deadline_in(self._timeout_s)
            if not self._in_flight:
                self._ask(deadline, at_least=1)
                if not self._in_flight:
                    raise StopIteration
            view, first = self._viewed(deadline), self._in_flight[0]
            group = self._skips.first_from(before)
            if len(first.readings) == 1:
                batch = first.readings[0].take(deadline)
            elif first.readings:
                batch = joined([reading.take(deadline) for reading in first.readings])
            else:
                batch = no_rows(view.fields)
            record = view.record(batch)
            short = first.end if first.short else None
            position = group + self._share.group if first.left > 1 else first.end
            first.left -= 1
            self._ahead -= first.weight
            if not first.left:
                self._in_flight.popleft()
            if self._ahead <= self._few:
                self._ask(deadline)
        except BaseException:
            self._forget()
            raise
        # At last, and at once: until then a signal handler finds the place before this batch, and an error leaves it.
        self._position, self._group, self._short = position, group, short
        return record

    @OneThreaded._in_turn
    def schedule_weights(self, weights: Weights, from_position: int | None = None) -> int:
        """Change the weights from `from_position` on, in place of what was scheduled from there: the next batch where
        it is None. Returns the position from which they hold: in epoch mode the next border of a block.

        `weights` is a number for each source, or a dict by their names. Batches that are in flight behind that position
        are asked for again; the schedule is part of the state. Raises InvalidRequest where `from_position` lies in what
        was yielded, for what are no weights of this mixture, and where the mixture ends before they would hold; for one
        of several workers also where it is None, since their next batches begin at different positions.
        """
        if from_position is None and self._share.worker[1] > 1:
            raise InvalidRequest("from_position is required for one of several workers: give all of them the same")
        deadline = deadline_in(self._timeout_s)
        view = self._viewed(deadline)
        schedule = view.schedule.with_weights(self._position if from_position is None else from_position, weights)
        start = schedule.entries[-1].start
        if from_position is not None:
            check_weights_ahead(from_position, self._position)
        end = self._client._end(schedule, deadline)  # pyright: ignore[reportPrivateUsage]
        self._ask_again(start, ends_anew=view.mixture.stop != "never")
        self._view, self._end = replace(view, schedule=schedule), end
        return start

    @OneThreaded._in_turn
    def skip(self, start: int, stop: int) -> None:
        """Leave out the positions [start, stop) as well. The skips are part of the state.

        Raises InvalidRequest where `start` lies in what was yielded.
        """
        added = Skips.of([(start, stop)])
        if start < self._position:
            raise InvalidRequest(f"start must be at least {self._position}, where the next batch begins, got {start}")
        self._ask_again(start)
        self._own_skips, self._skips = self._own_skips | added, self._skips | added

    @OneThreaded._in_turn
    def get_state(self) -> dict[str, Any]:
        """Where this iterator is, in plain JSON types: restoring it costs the same at every position.

        The lists of its schedule and its skips are shared with other states: copy them before you change them. Asks the
        server for the mixture's fingerprint if nothing has been asked yet.
        """
        return self._state_at(self._place)

    @OneThreaded._in_turn
    def set_state(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken, under its schedule; batch size and shard may be others than then. What is
        skipped are the state's ranges and those that this iterator was given itself.

        A worker takes its own states, of the same batch size, and those of an iterator that is the only worker.

        Raises InvalidRequest for what is no such state, and where workers would lose rows or read some twice;
        FingerprintMismatch where it was taken from another mixture and this iterator is `strict`. Then nothing has
        changed.
        """
        taken, deadline = ReaderState.of(state), deadline_in(self._timeout_s)
        mixture, skips = self._mixture(deadline), self._own_skips | taken.skips
        if self._strict:
            _check_mixture(taken, mixture)
        view = View(mixture, taken.words, Schedule.of(mixture, taken.schedule), self._content)
        end = self._end_of(view, deadline)
        self._check_worker(taken, skips, end)
        position, group, short = taken.position, None, None
        if taken.read:  # all workers cut the rest of the group in the same way
            group, short = position, taken.short
            _, position = skips.taken(position, self._share.group, POSITION_LIMIT)
        self._position, self._words, self._view, self._skips, self._end = position, taken.words, view, skips, end
        self._group, self._short = group, short
        self._forget()

    def state_dict(self) -> dict[str, Any]:
        """`get_state`, by the name that torchdata, Hugging Face and Lightning call it by."""
        return self.get_state()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """`set_state`, by the name that torchdata, Hugging Face and Lightning call it by."""
        self.set_state(state)

    async def save(self, directory: Any) -> Awaitable[None]:
        """What Orbax calls to save this iterator beside a model: the state is taken at once, and written when the
        folder is there. `directory` is Orbax's promise of a folder, or a path."""
        return write_state(directory, self.get_state())

    async def load(self, directory: Any) -> Awaitable[None]:
        """What Orbax calls to go on where `save` was called. Raises what `set_state` raises."""
        return load_state(directory, self.set_state)

    @OneThreaded._in_turn
    def reset(self) -> None:
        """Go back to where this iterator began, with the key, schedule and skips that it was given."""
        self._position, self._words, self._given_schedule, self._own_skips = self._beginning
        self._skips, self._view, self._end, self._group, self._short = self._own_skips, None, None, None, None
        self._forget()

    @OneThreaded._in_turn
    def start_prefetch(self) -> None:
        """Ask for the first batches now, before `next` does. Does nothing where there are none to ask for ahead."""
        self._check_open()
        self._ask(deadline_in(self._timeout_s))

    @OneThreaded._in_turn
    def element_spec(self) -> Any:
        """The structure of a batch, a Field with name, dtype and shape in the place of each array; the last batch may
        have fewer rows. Asks the server for the mixture if nothing has been asked yet."""
        view, rows = self._viewed(), self._share.rows
        fields = {field.name: replace(field, shape=(rows, *field.shape)) for field in view.fields}
        return view.record(fields)

    @OneThreaded._in_turn
    def __len__(self) -> int:
        """How many batches are left for this iterator. Asks the server for the mixture if nothing has been asked yet.

        Raises TypeError, as what has no length, where there is no end.
        """
        stop, share = self._last(deadline_in(self._timeout_s)), self._share
        if stop == POSITION_LIMIT:
            raise TypeError("these batches have no end, and so no length; give them a stop")
        left = sum(size for _, size in self._skips.taken(self._position, POSITION_LIMIT, stop)[0])
        groups, rest = divmod(left, share.group)
        return groups + share.has_batch(rest, whole=self._drop_remainder)

    def __bool__(self) -> bool:
        return True  # not whether batches are left, which may have no answer

    def close(self) -> None:
        """Drop what is in flight; the client stays open. Closing twice is closing once.

        While another thread is in a call, a wait for a batch ends with Unavailable, and that thread drops the rest.
        """
        self._closed = True
        _cancel(self._in_flight)
        self._settle()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        share = self._share
        worker = f", worker={share.worker}" if share.worker[1] > 1 else ""
        return (
            f"BatchIterator(mixture={self._mixture_name!r}, batch_size={share.batch_size}, "
            f"key={self._words.tolist()}, position={self._position}, shard={share.shard}{worker})"
        )

    def __reduce__(self) -> Any:
        """An iterator at the same place, over a client of the same servers."""
        options = {
            "batch_size": self._share.batch_size,
            "key": self._words,
            "mixture": self._mixture_name,
            "start": self._position,
            "stop": self._stop,
            "shard": self._share.shard,
            "worker": self._share.worker,
            "schedule": self._given_schedule if self._view is None else self._view.schedule.plain or None,
            "provenance": self._content == Content.RECORDS_AND_PROVENANCE,
            "skip": self._skips.plain,
            "drop_remainder": self._drop_remainder,
            "strict": self._strict,
            "prefetch": self._prefetch,
            "timeout_s": self._timeout_s,
        }
        arguments = (
            self._client,
            options,
            self._own_skips.plain,
            self._beginning,
            self._group,
            self._closed,
            self._short,
        )
        return _unpickled, arguments

    def _check_open(self) -> None:
        if self._closed:
            raise InvalidRequest("this iterator is closed; make another one with client.batches(...)")

    def _drop(self) -> None:
        self._forget()

    def _renew_after_fork(self) -> None:
        """What is in flight is the parent's, and what has not been yielded is asked for again."""
        leave_to_parent(tuple(self._in_flight))
        self._in_flight.clear()
        self._ahead, self._asked, self._turn = 0, self._position, threading.RLock()

    def _check_worker(self, state: ReaderState, skips: Skips, end: int | None) -> None:
        """Raises InvalidRequest where the worker cannot go on from `state` without loss."""
        if state.worker is None:
            return
        share = self._share
        if state.worker != share.worker:
            raise InvalidRequest(
                f"the state is that of worker {list(state.worker)}, and this is worker {list(share.worker)}: give "
                "every worker its own state, and keep their number"
            )
        wanted = ""
        if state.batch_size not in (None, share.batch_size):
            wanted = f"batch_size {state.batch_size}, got {share.batch_size}"
        elif state.read:
            what = state.position, (share.worker[0] + 1) * share.batch_size, state.short or POSITION_LIMIT
            if state.skips.taken(*what) != skips.taken(*what):
                wanted = "skips that leave out nothing of what the workers have read already"
            elif state.short is not None and skips.first_from(state.short) < self._stop_before(end):
                wanted = f"stop {state.short} at most, since the last batch was short"
        if wanted:
            raise InvalidRequest(
                f"the state of a worker needs {wanted}: else workers would lose rows, or read some twice. Make new "
                "iterators for all workers, with start= the first position that has not been read"
            )

    def _mixture(self, deadline: float | None = None) -> MixtureDescription:
        deadline = deadline or deadline_in(self._timeout_s)
        mixture = self._client._described(self._mixture_name, deadline)  # pyright: ignore[reportPrivateUsage]
        self._mixture_name = mixture.name
        return mixture

    def _viewed(self, deadline: float | None = None) -> View:
        """What is read; known once the server has been asked, which has until `deadline`, or the iterator's timeout."""
        if self._view is None:
            mixture = self._mixture(deadline)
            self._view = View(mixture, self._words, Schedule.of(mixture, self._given_schedule), self._content)
        return self._view

    def _last(self, deadline: float | None) -> int:
        """The position to stop before."""
        view = self._viewed(deadline)
        if self._end is None:
            self._end = self._end_of(view, deadline)
        return self._stop_before(self._end)

    def _end_of(self, view: View, deadline: float | None) -> int | None:
        """The mixture's end under the schedule of `view`."""
        if view.mixture.stop == "never":
            return None
        return self._client._end(view.schedule, deadline)  # pyright: ignore[reportPrivateUsage]

    def _stop_before(self, end: int | None) -> int:
        return self._stop if end is None else min(self._stop, end)

    def _ask(self, deadline: float | None, at_least: int = 0) -> None:
        """Ask for the batches that there is room for, half of them at a time: one stream is open while another ends."""
        view, stop, share = self._viewed(deadline), self._last(deadline), self._share
        size, (offset, rows) = share.group, share.of(share.group)
        batch_bytes = rows * view.row_bytes
        most = max(at_least, batches_ahead(batch_bytes, self._prefetch))
        half = max(1, most // 2)
        self._few = most - half
        while most - self._ahead >= half and (start := self._skips.first_from(self._asked)) < stop:
            whole, there = (min(stop, self._skips.border_after(start)) - start) // size, size
            if whole:
                # The first is asked for by itself: it is waited for, and a reply of many is planned whole.
                some = min(half, whole) if self._in_flight else 1
                count = whole_replies(start // size, some, reply_batches(batch_bytes))
                spans, end = [Span(start + offset, rows, size, count)] if rows else [], start + count * size
            else:
                ranges, end = self._skips.taken(start, size, stop)
                there = sum(taken for _, taken in ranges)
                if not share.has_batch(there, whole=self._drop_remainder):
                    return
                spans, count = _asked_for(part(ranges, *share.of(there))), 1
            readings, short = self._started(view, spans), not share.has_batch(there, whole=True)
            asked = _InFlight(end, count, readings, max(1, len(spans)), there < size, short)
            self._in_flight.append(asked)
            self._ahead += count * asked.weight
            self._asked = end

    def _started(self, view: View, spans: Sequence[Span | Scattered]) -> tuple[Reading, ...]:
        before = self._in_flight[-1].readings[-1:] if self._in_flight else ()
        readings = list(before)
        for span in spans:
            after = readings[-1] if readings else None
            readings.append(self._client._start(view, span, after))  # pyright: ignore[reportPrivateUsage]
        return tuple(readings[len(before) :])

    def _ask_again(self, start: int, *, ends_anew: bool = False) -> None:
        """Drop in-flight batches that end after `start`, and those that the old end cut short if it has changed."""
        while self._in_flight and (self._in_flight[-1].end > start or (ends_anew and self._in_flight[-1].cut)):
            dropped = self._in_flight.pop()
            dropped.cancel()
            self._ahead -= dropped.left * dropped.weight
        self._asked = self._in_flight[-1].end if self._in_flight else self._position

    @property
    def _place(self) -> Place:
        """Where this stands."""
        return Place(self._position, self._group, self._short)

    def _return_to(self, place: Place) -> None:
        """Go back to a `_place` of before, under the same schedule and skips."""
        self._position, self._group, self._short = place
        self._forget()

    def _state_at(self, place: Place) -> dict[str, Any]:
        """The state at a `_place` under the schedule and skips of now."""
        view, share = self._viewed(), self._share
        state = ReaderState(
            mixture=view.mixture.name,
            fingerprint=view.fingerprint,
            words=self._words,
            position=place.position,
            schedule=view.schedule.plain,
            skips=self._skips,
        )
        if share.worker[1] > 1:
            state = replace(
                state,
                position=place.position if place.group is None else place.group,
                worker=share.worker,
                read=place.group is not None,
                batch_size=share.batch_size,
                short=place.short,
            )
        return state.plain()

    def _forget(self) -> None:
        self._ask_again(-1)


def _cancel(in_flight: "deque[_InFlight]") -> None:
    for asked in in_flight.copy():
        asked.cancel()


def _unpickled(
    client: "MixClient",
    options: dict[str, Any],
    own_skips: Any,
    beginning: tuple[Any, ...],
    group: int | None,
    closed: bool,
    short: int | None = None,  # which pickles of older clients lack
) -> BatchIterator:
    iterator = BatchIterator(client, **options)
    iterator._own_skips = Skips.of(own_skips)  # pyright: ignore[reportPrivateUsage]
    iterator._beginning = beginning  # pyright: ignore[reportPrivateUsage]
    iterator._group = group  # pyright: ignore[reportPrivateUsage]
    iterator._closed = closed  # pyright: ignore[reportPrivateUsage]
    iterator._short = short  # pyright: ignore[reportPrivateUsage]
    return iterator


def _checked_pair(name: str, pair: Any, most: int | None = None) -> tuple[int, int]:
    try:
        index, count = (check_integer(name, number) for number in pair)
    except (TypeError, ValueError):
        index, count = -1, 0
    if not 0 <= index < count <= (count if most is None else most):
        limit, size = ("", "") if most is None else (" <= batch_size", f" for batch_size {most}")
        raise InvalidRequest(f"{name} must be (index, count) with 0 <= index < count{limit}, got {shown(pair)}{size}")
    return index, count


def _asked_for(pieces: list[tuple[int, int]]) -> Sequence[Span | Scattered]:
    """The (start, size) ranges that one batch consists of, as what streams ask for."""
    if len(pieces) <= _FEW_PIECES:
        return [Span(first, taken, taken, 1) for first, taken in pieces]
    return [Scattered(np.concatenate([np.arange(first, first + taken, dtype=np.int64) for first, taken in pieces]))]


def _check_mixture(state: ReaderState, mixture: MixtureDescription) -> None:
    """Raises FingerprintMismatch where `state` may be that of another mixture."""
    if state.fingerprint != mixture.fingerprint:
        raise FingerprintMismatch(
            f"the state was taken from the mixture {state.mixture!r:.200} with the fingerprint "
            f"{state.fingerprint:.100}, this is {mixture.name!r} with {mixture.fingerprint}: its batches are others; "
            "to go on at the same position of this one, make the iterator with strict=False"
        )
    if state.mixture != mixture.name and any(source.content_unknown for source in mixture.sources):
        raise FingerprintMismatch(
            f"the state was taken from the mixture {state.mixture!r:.200}, and this is {mixture.name!r}: they have one "
            "fingerprint, but it does not cover the content of all sources, so their batches may be others. Give the "
            "sources a content_id, or make the iterator with strict=False"
        )
