"""What a source raised while its records were read -> words that name the source, the record and the position."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from functools import wraps
from typing import NamedTuple, ParamSpec, TypeVar

from mixserve_client.schema.positions import Range
from mixserve_client.schema.text import describe_error, shorten

P = ParamSpec("P")
T = TypeVar("T")
_NAME_CHARACTERS, _CAUSE_CHARACTERS = 100, 500


class Read(NamedTuple):
    """Where a single record is from: the name of its source, and its number there, if that is known."""

    source: str
    record: int | None


def at_index(index: int, read: Read | None) -> str:
    """The record at `index` of an epoch, read from `read`, in the words of errors."""
    if read is None:
        return f"the record at index {index} of the epoch"
    what = "a record" if read.record is None else f"the record {read.record}"
    return f"at index {index} of the epoch: {what} of the source {shorten(read.source, _NAME_CHARACTERS)!r}"


class FailedRead(Exception):
    """A source failed when its records were read; `__cause__` is what it raised.

    `slot` is the first row that needs what failed, counted from the first row of the read; `read` is what failed, and
    `position` where in the mixture, if that is known.
    """

    def __init__(self, words: str, slot: int, read: Read, position: int | None = None):
        super().__init__(words)
        self.slot, self.read, self.position = slot, read, position

    @classmethod
    def of(cls, source: str, record_ids: Sequence[int], slot: int, error: BaseException) -> "FailedRead":
        """For `error`, which the source called `source` raised when it was asked for these records; of none, if it is
        unknown for which.
        """
        count, name = len(record_ids), shorten(source, _NAME_CHARACTERS)
        what = "a record" if count == 0 else f"the record {record_ids[0]}" if count == 1 else f"{count} records"
        together = " together" if count > 1 else ""
        said = f"reading {what} of the source {name!r}{together} failed: {describe_cause(error)}"
        failed = cls(said, slot, Read(source, int(record_ids[0]) if count == 1 else None))
        failed.__cause__ = error
        return failed

    def at(self, position: int) -> "FailedRead":
        """The same with the position in front."""
        located = FailedRead(f"at position {position}: {self}", self.slot, self.read, position)
        located.__cause__ = self.__cause__
        return located


class naming_positions:  # noqa: N801  # it is used like a function
    """Around a read of the rows of these (start, size) ranges: a FailedRead of it names the position that failed."""

    __slots__ = ("_ranges",)  # not a generator, since there is one of these around every call

    def __init__(self, ranges: Sequence[Range]):
        self._ranges = ranges

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, FailedRead):
            raise error.at(position_at(self._ranges, error.slot)) from error.__cause__


@contextmanager
def naming_source(source: str, what: str) -> Generator[None]:
    """Around a call of a source's own code: an error gets a note that `what` of the source called `source` failed."""
    try:
        yield
    except Exception as error:
        if read_note(error) is None:
            name = shorten(source, _NAME_CHARACTERS)
            note_read(error, f"{what} of the source {name!r} failed: {describe_cause(error)}", Read(source, None))
        raise


class ReadNote(str):
    """What failed, as a note on the error that a source raised; `read` and `position` as in a FailedRead."""

    __slots__ = ("position", "read")

    read: Read
    position: int | None


def read_note(error: BaseException) -> ReadNote | None:
    """The note of `note_read` on `error`, if there is one."""
    return next((note for note in getattr(error, "__notes__", ()) if isinstance(note, ReadNote)), None)


def note_read(error: BaseException, words: str, read: Read, position: int | None = None) -> None:
    """Put `words` on `error` as its one note of a failed read, if it takes notes; tracebacks show it."""
    note = ReadNote(words)
    note.read, note.position = read, position
    # In place of an earlier one: a source may raise the same object again and again.
    others = [note for note in getattr(error, "__notes__", ()) if not isinstance(note, ReadNote)]
    with suppress(Exception):  # a frozen dataclass, say
        error.__notes__ = [*others, note]


def raising_own(read: Callable[P, T]) -> Callable[P, T]:
    """A decorator: in place of a FailedRead, `read` raises what the source raised, with the words as a note."""

    @wraps(read)
    def reads(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return read(*args, **kwargs)
        except FailedRead as failed:
            error = failed.__cause__
            assert error is not None
            note_read(error, str(failed), failed.read, failed.position)
        # Outside of the handler, or `error` would get the FailedRead as its context, which leads back to it.
        try:
            raise error
        finally:
            del error

    return reads


def position_at(ranges: Sequence[Range], slot: int) -> int:
    """The position of a row, counted through all (start, size) ranges."""
    for start, size in ranges:
        if slot < size:
            return start + slot
        slot -= size
    raise IndexError(f"the ranges have fewer rows than {slot}")


def describe_cause(error: BaseException) -> str:
    """Class and message of what a source raised: the end of the words of a FailedRead and of a note."""
    kind, said = type(error).__name__, describe_error(error, _CAUSE_CHARACTERS)
    return kind if said == kind else f"{kind}: {said}"
