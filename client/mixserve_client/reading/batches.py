"""The batches of one iterator: its position, its selection, and what it has in flight."""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

from mixserve_client.errors import FingerprintMismatch, InvalidRequest
from mixserve_client.metrics.reading import IteratorFigures
from mixserve_client.options import BatchOptions
from mixserve_client.reading.catalog import MixtureCatalog
from mixserve_client.reading.in_flight import InFlight
from mixserve_client.reading.ranges import Shard
from mixserve_client.reading.reader import AnyStream, Reader
from mixserve_client.reading.schedule import Schedule, check_weights_ahead
from mixserve_client.reading.skips import Skips
from mixserve_client.reading.state import ReaderState, StreamCheckpoint
from mixserve_client.reading.window import Window
from mixserve_client.rpc.deadlines import deadline_in
from mixserve_client.schema.fields import Batch, Content, Field
from mixserve_client.schema.keys import KeyWords
from mixserve_client.schema.positions import POSITION_LIMIT
from mixserve_client.schema.schedule import Weights
from mixserve_client.schema.text import show

_logger = logging.getLogger("mixserve_client")


class Batches:
    """A `BatchIterator` without its guard: for one thread at a time. `BatchIterator` documents the calls.

    A call that raises leaves `checkpoint` where it was, and may have dropped batches in flight; the next call requests
    them again.
    """

    def __init__(self, catalog: MixtureCatalog, options: BatchOptions):
        self.shard = Shard(options.batch_size, options.shard, options.worker)
        self.checkpoint = StreamCheckpoint(options.start)
        self._catalog = catalog
        self._options = self._beginning = options  # `reset` goes back to `_beginning`
        # `set_state` replaces the skips of an earlier state, and keeps our own.
        self._own_skips = self._skips = Skips.of(options.skip)
        self._reader: Reader | None = None  # until the first request
        self.figures = IteratorFigures()
        self.is_noting = True  # not if what holds this iterator notes when its own caller comes and goes
        self.rows = self._rows = self.shard.rows  # of the last batch, and of one that is not short
        self._in_flight = InFlight(options.start, options.timeout_s)
        # Any thread may call it. Not a method of this object: an iterator's finalizer holds it, and must not keep the
        # batches alive.
        self.cancel = self._in_flight.cancel

    @classmethod
    def at(
        cls,
        catalog: MixtureCatalog,
        options: BatchOptions,
        beginning: BatchOptions,
        own_skips: Any,
        checkpoint: StreamCheckpoint,
    ) -> Self:
        """Batches that resume at `checkpoint`; `reset` takes them back to `beginning`."""
        batches = cls(catalog, options)
        batches._beginning, batches._own_skips, batches.checkpoint = beginning, Skips.of(own_skips), checkpoint
        return batches

    def __reduce__(self) -> Any:
        """Batches at the same position, from the same servers."""
        options = replace(
            self._options,
            key=self.words,
            mixture=self.mixture_name,
            start=self.checkpoint.position,
            schedule=self._options.schedule if self._reader is None else self._reader.selection.schedule.plain or None,
            skip=self._skips.plain,
        )
        return type(self).at, (self._catalog, options, self._beginning, self._own_skips.plain, self.checkpoint)

    @property
    def mixture_name(self) -> str | None:
        """The mixture's name; None until a server has named its only mixture."""
        return self._options.mixture if self._reader is None else self._reader.selection.mixture.name

    @property
    def words(self) -> KeyWords:
        """The key's two words."""
        return self._options.key if self._reader is None else self._reader.selection.words

    def next(self) -> Batch:
        """The next batch. Raises StopIteration at the end."""
        in_flight, before, came = self._in_flight, self.checkpoint.position, time.monotonic()
        in_flight.come(came)
        figures = self.figures if self.is_noting else None
        if figures is not None:
            figures.waits.since = came
        try:
            deadline = deadline_in(self._options.timeout_s)
            if not in_flight.count:
                in_flight.finish(deadline)
                self.refill(deadline, at_least=1)
                if not in_flight.count:
                    raise StopIteration
            selection = (self._reader or self._read(deadline)).selection
            group = self._skips.first_from(before)
            batch, end, short = in_flight.take(selection.fields, deadline)
            # Only the last batch of a fetch may be short.
            self.rows = self._rows if end is None else len(next(iter(batch.values())))
            record = selection.record(batch)
            position = group + self.shard.group if end is None else end
            if in_flight.count <= in_flight.refill_at or came >= in_flight.refill_by:
                self.refill(deadline)
            left = time.monotonic()
            in_flight.leave(left)
        except FingerprintMismatch:
            self._give_up(figures, came)
            if self._reader is not None:
                self._reader.say_what_changed()
            raise
        except BaseException:
            self._give_up(figures, came)
            raise
        # Last, and in one assignment: until here a signal handler saves the position before this batch, and an error
        # leaves it there.
        self.checkpoint = StreamCheckpoint(position, group, end if short else None)
        if figures is not None:
            figures.note(came, left, self.rows)
        return record

    def first_in_flight(self) -> Sequence[AnyStream]:
        """The streams of the next batch, as far as it has been requested."""
        return self._in_flight.first()

    def refill(self, deadline: float | None = None, at_least: int = 0) -> None:
        """Request the batches that the window has room for, and at least `at_least` of them."""
        deadline = deadline or self._deadline()
        reader, options = self._read(deadline), self._options
        stop, row_bytes = self._stop_before(reader.end(deadline)), reader.selection.row_bytes
        window = Window(self.shard, self._skips, stop, options.drop_remainder, row_bytes, options.prefetch)
        self._in_flight.refill(reader, window, at_least)
        figures = self.figures
        figures.expect(self._rows, row_bytes)
        if not figures.is_listed:
            self._catalog.resources.here.reading.add(self, figures, reader.selection.mixture.name)

    def schedule_weights(self, weights: Weights, from_position: int | None) -> int:
        """Use `weights` from a position on, and return the position at which they take effect."""
        if from_position is None and self.shard.worker[1] > 1:
            raise InvalidRequest("from_position is required for one of several workers: give all workers the same one")
        deadline, position = self._deadline(), self.checkpoint.position
        reader = self._read(deadline)
        schedule = reader.selection.schedule.with_weights(position if from_position is None else from_position, weights)
        start = schedule.entries[-1].start
        if from_position is not None:
            check_weights_ahead(from_position, position)
        reader = reader.with_schedule(schedule)
        # Before anything changes here: the server refuses weights that take effect only after the mixture's end.
        reader.end(deadline)
        # New weights may move the end of a mixture, so a batch that the old end cut short may become whole.
        self._in_flight.drop_after(start, position, cut=reader.selection.mixture.stop != "never")
        self._reader = reader
        return start

    def skip(self, start: int, stop: int) -> None:
        """Leave out the positions [start, stop), in addition to earlier skips."""
        added, position = Skips.of([(start, stop)]), self.checkpoint.position
        if start < position:
            raise InvalidRequest(f"start must be at least {position}, the start of the next batch, got {start}")
        self._in_flight.drop_after(start, position)
        self._own_skips, self._skips = self._own_skips | added, self._skips | added

    def state_at(self, checkpoint: StreamCheckpoint) -> dict[str, Any]:
        """The state at an earlier `checkpoint`, with the current schedule and skips."""
        return ReaderState.at(checkpoint, self._read(self._deadline()).selection, self._skips, self.shard).plain()

    def set_state(self, state: dict[str, Any]) -> None:
        """Resume where `state` was taken."""
        saved, deadline = ReaderState.of(state), self._deadline()
        mixture, skips = self._catalog.get(self.mixture_name, deadline), self._own_skips | saved.skips
        if saved.fingerprint != mixture.fingerprint:  # another replica may have the state's mixture
            mixture = self._catalog.find(mixture, saved.fingerprint)
        if self._options.strict:
            saved.check_mixture(mixture)
        reader = self._catalog.reader(saved.words, mixture.name, saved.schedule, self._content, deadline, self.figures)
        saved.check_worker(self.shard, skips, self._stop_before(reader.end(deadline)))
        own = Schedule.of(mixture, self._options.schedule)
        # All checks come before this line: a state that is refused changes nothing.
        self._reader, self._skips, self.checkpoint = reader, skips, saved.checkpoint(skips, self.shard)
        self.forget()
        self.figures.waits.restart(time.monotonic())
        # A state that continues our own schedule comes from a live change of weights, and surprises no one.
        if own.entries and own.id not in reader.selection.schedule.ids:
            _logger.warning(
                "schedule= of this iterator is not used: a state brings its own schedule, here %s. For other weights "
                "from here on, load no state, and pass start=step * batch_size and schedule=[...]; or call "
                "schedule_weights(...) after loading",
                show(reader.selection.schedule.plain) if reader.selection.schedule.entries else "none",
            )

    def reset(self) -> None:
        """Go back to the beginning."""
        self._options, self._reader = self._beginning, None
        self._own_skips = self._skips = Skips.of(self._beginning.skip)
        self.return_to(StreamCheckpoint(self._beginning.start))
        self.figures.waits.restart(time.monotonic())

    def return_to(self, checkpoint: StreamCheckpoint) -> None:
        """Go back to an earlier `checkpoint`, with the current schedule and skips."""
        self.checkpoint = checkpoint
        self.forget()

    def spec(self) -> Any:
        """The structure of a batch, with a Field in place of each array."""
        selection = self._read(self._deadline()).selection
        fields: dict[str, Field] = {
            field.name: replace(field, shape=(self.shard.rows, *field.shape)) for field in selection.fields
        }
        return selection.record(fields)

    def left(self) -> int:
        """How many batches are left. Raises TypeError if there is no end."""
        deadline = self._deadline()
        stop = self._stop_before(self._read(deadline).end(deadline))
        if stop == POSITION_LIMIT:
            raise TypeError("these batches have no end, so they have no length; pass stop= to client.batches(...)")
        left = sum(size for _, size in self._skips.take(self.checkpoint.position, POSITION_LIMIT, stop)[0])
        groups, rest = divmod(left, self.shard.group)
        return groups + self.shard.has_batch(rest, whole=self._options.drop_remainder)

    def forget(self) -> None:
        """Drop all batches in flight; `next` requests them again."""
        self._in_flight.drop_after(-1, self.checkpoint.position)  # all of them end after -1

    def leave_to_parent(self) -> None:
        """In a forked process: start without batches in flight, since those are the parent's."""
        self._in_flight.leave_to_parent(self.checkpoint.position)
        self.figures.renew_after_fork()

    def _give_up(self, figures: IteratorFigures | None, came: float) -> None:
        self.forget()
        if figures is not None:
            figures.waits.give_up(came, time.monotonic())

    @property
    def _content(self) -> Content:
        return Content.RECORDS_AND_PROVENANCE if self._options.provenance else Content.RECORDS

    def _deadline(self) -> float | None:
        return deadline_in(self._options.timeout_s)

    def _read(self, deadline: float | None) -> Reader:
        """The reader, made at the first request, since it needs the server's description of the mixture."""
        if self._reader is None:
            options = self._options
            self._reader = self._catalog.reader(
                options.key, options.mixture, options.schedule, self._content, deadline, self.figures
            )
        return self._reader

    def _stop_before(self, end: int | None) -> int:
        stop = POSITION_LIMIT if self._options.stop is None else self._options.stop
        return stop if end is None else min(stop, end)
