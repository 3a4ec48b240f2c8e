"""One call to each of several replicas."""

import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from mixserve_client.errors import DeadlineExceeded, MixserveError, Unavailable
from mixserve_client.rpc.replica import Asked, Replica
from mixserve_client.rpc.replicas import Replicas

T = TypeVar("T")


def ask_each(replicas: Replicas, asked: Asked, decode: Callable[[bytes], T], deadline: float | None) -> dict[str, T]:
    """The decoded replies by address of the replica, of those that answer. Raises an error of theirs if none does."""
    timeout_s = replicas.attempt_s if deadline is None else min(replicas.attempt_s, deadline - time.monotonic())
    if timeout_s <= 0:
        raise DeadlineExceeded("timeout_s ran out before the request could be sent; allow more time")
    assert replicas.threads is not None  # there is more than one
    until = time.monotonic() + timeout_s

    def ask(replica: Replica) -> T:
        return decode(replicas.call(replica, asked, timeout_s))

    futures = [(replica, replicas.threads.submit(partial(ask, replica))) for replica in replicas.all]
    found, errors = dict[str, T](), list[MixserveError]()
    for replica, future in futures:
        try:
            found[replica.address] = future.result(max(0.0, until - time.monotonic()))
        except MixserveError as error:
            errors.append(error.with_traceback(None))
        except TimeoutError:  # its call ends about now, or waits for a thread
            errors.append(Unavailable(f"{replica.transport.name} has not answered for {timeout_s:.1f} s"))
    if not found:
        try:
            raise errors[0]
        finally:
            del errors, futures  # a cycle: its traceback leads to this frame
    return found
