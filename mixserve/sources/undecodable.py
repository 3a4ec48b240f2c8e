"""An error of a source -> whether it says that the bytes of a record are not a record."""

from mixserve.error_boundary import WrongRecord
from mixserve.sources.open_file import OpenFile
from mixserve_client.errors import MixserveError


class LongRecord(WrongRecord):
    """A whole record has more values than its field has room for, and must not be cut."""


class UnreadRecord(WrongRecord):
    """A format's library cannot read a record, and does not say whether the data or the disk is at fault.

    `file` is all that the library reads for it, or None if that is not known.
    """

    file: OpenFile | None = None


def is_undecodable(error: BaseException) -> bool:
    """Whether `error` says that the data of a record are wrong: a WrongRecord that nothing else has led to.

    It is not so if a record is only too long, if the library may have failed to read the data (`UnreadRecord` without a
    `file`), or if an OSError, a time-out, an error of another server or a lack of memory came first: such a record may
    be read next time.
    """
    if not isinstance(error, WrongRecord) or isinstance(error, LongRecord):
        return False
    if isinstance(error, UnreadRecord) and error.file is None:
        return False
    # The context too: `raise WrongRecord(…) from None` in the handler of an OSError.
    found: BaseException | None = error
    seen = set[int]()
    while found is not None and id(found) not in seen:
        if isinstance(found, OSError | MixserveError | MemoryError) or not isinstance(found, Exception):
            return False
        seen.add(id(found))
        found = found.__cause__ or found.__context__
    return True
