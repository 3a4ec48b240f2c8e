"""The records of one source, checked. If reading them fails, a search for the record that fails alone."""

import time
from collections.abc import Callable, Mapping
from typing import cast

import numpy as np
from jaxtyping import Int, Shaped

from mixserve.error_boundary import WrongRecord, is_callers_own, user_code
from mixserve.failed_read import FailedRead
from mixserve.mixture.leaves import Plan
from mixserve.sources import AnySource, KeyedSource, Records, Source, is_keyed
from mixserve_client.errors import DeadlineExceeded, Overloaded, SourceChanged, Unavailable
from mixserve_client.schema.tree import flatten

Buffers = Mapping[str, Shaped[np.ndarray, "size ..."]]
# Waits for records that a source was asked for, as its `begin_take` returns it.
Taking = Callable[[], Records]
# The slots of records among the rows of a batch, and the records by leaf.
Part = tuple[Int[np.ndarray, " size"], Mapping[str, np.ndarray]]

_SEARCH_S = 3.0


def read_records(
    name: str,
    source: AnySource,
    plan: Plan,
    slots: Int[np.ndarray, " size"],
    buffers: Buffers,
    taking: Taking | None = None,
) -> Mapping[str, np.ndarray]:
    """The records of `plan`, all of the source called `name`, by leaf, checked against the buffers; `taking` waits for
    them if the source was asked for them already.

    Raises FailedRead, which names the first record that fails alone, and its slot among `slots`, in ascending order.
    """
    try:
        return take_records(source, plan, buffers, taking)
    # Transient errors of a source that asks a server itself: clients retry, and a search would wait for each record.
    except (Unavailable, Overloaded, DeadlineExceeded):
        raise
    except BaseException as error:
        if is_callers_own(error):
            raise
        found = None
        if isinstance(error, SourceChanged):  # no record of it can be read, and the first is not to blame
            found = FailedRead.of(name, (), int(slots[0]), error)
        elif len(slots) > 1:
            found = _find_failing(name, source, plan, slots, buffers)
        failed = found or FailedRead.of(name, plan.record_ids.tolist(), int(slots[0]), error)
    try:
        raise failed
    finally:
        del found, failed  # its traceback leads to this frame, and the frame to the buffers


def take_records(
    source: AnySource, plan: Plan, buffers: Buffers, taking: Taking | None = None
) -> Mapping[str, np.ndarray]:
    """The records by leaf, checked against the buffers; `taking` is as in `read_records`. Raises WrongRecord, which
    names the source and the leaf."""
    with user_code("reading records of {!r:.200}", source):
        if taking is not None:
            taken = taking()
        elif is_keyed(source):
            assert plan.fetch_keys is not None
            taken = cast(KeyedSource, source).take_keyed(plan.record_ids, plan.fetch_keys)
        else:
            taken = cast(Source, source).take(plan.record_ids)
        records = {name: np.asarray(leaf) for name, leaf in flatten(taken).items()}
    for name, buffer in buffers.items():
        got = (records[name].shape, records[name].dtype) if name in records else None
        expected = ((len(plan.record_ids), *buffer.shape[1:]), buffer.dtype)
        if got != expected:
            raise WrongRecord(f"take of {source!r} must return the leaf {name!r} as {expected}, got {got}")
    return records


def _find_failing(
    name: str, source: AnySource, plan: Plan, slots: Int[np.ndarray, " size"], buffers: Buffers
) -> FailedRead | None:
    """The first record that fails alone; None if none does, or none was found in time."""
    until = time.monotonic() + _SEARCH_S
    for place, slot in enumerate(slots.tolist()):
        if time.monotonic() > until:
            break
        try:
            take_records(source, plan.part(place, place + 1), buffers)
        except BaseException as error:
            if is_callers_own(error):
                raise
            return FailedRead.of(name, [int(plan.record_ids[place])], slot, error)
    return None
