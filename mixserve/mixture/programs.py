"""Names of programs -> the compiled programs: from memory, from the user's cache folder, or compiled side by side."""

# JAX's own signatures are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import os
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from mixserve.forked import check_jax
from mixserve.mixture import draw as arithmetic
from mixserve.mixture import threefry
from mixserve.mixture.compilation_cache import chosen_cache
from mixserve.mixture.draw import Parts, draw, on_cpu, padded, pinned_to_cpu, scores

PLAN_SIZES = (16, 64, 256, 1024, 4096)
PROBE_POSITIONS = 16
_THREAD = "mixserve-program-"
# What LLVM does besides takes a third of the time, and gives the same bits and the same speed here.
_OPTIONS: dict[str, str | bool] = {"xla_llvm_disable_expensive_passes": True}


class ProgramName(NamedTuple):
    """The draw of `size` positions from `sources` sources, which are padded; without parts their scores."""

    sources: int
    size: int
    parts: Parts | None

    def __str__(self) -> str:
        if self.parts is None:
            return f"scores-{self.sources}x{self.size}"
        words = [name for name, has in self.parts._asdict().items() if has]
        return "-".join([f"draw-{self.sources}x{self.size}", *words])


def draws(sources: int, parts: Parts, sizes: Sequence[int] = PLAN_SIZES) -> set[ProgramName]:
    """The programs that plans of so many sources, in buckets of `sizes`, need."""
    return {ProgramName(padded(sources), size, parts) for size in sizes}


def first_sizes(sizes: Sequence[int]) -> tuple[int, ...]:
    """Every second one of the ascending `sizes`, and the largest: those that a server waits for when it starts. While
    the program of one of the others is being made, the next larger one does its work."""
    return tuple(sizes[::-2])


def probe_scores(sources: int) -> ProgramName:
    """The program of the probe in a fingerprint."""
    return ProgramName(padded(sources), PROBE_POSITIONS, None)


def program(name: ProgramName) -> jax.stages.Compiled:
    """The compiled program, waited for; one serves all mixtures of as many (padded) sources."""
    return _begun(name).result()


def begin(names: Iterable[ProgramName]) -> None:
    """Load or compile them side by side, without waiting."""
    for name in names:
        _begun(name)


def load(names: Iterable[ProgramName]) -> None:
    """Load or compile them side by side, and wait until they are there."""
    for future in [_begun(name) for name in names]:
        future.result()


def is_there(name: ProgramName) -> bool:
    """Whether the program can be called at once."""
    future = _programs.get(name)
    return future is not None and future.done()


def is_being_made(name: ProgramName) -> bool:
    """Whether the program is being loaded or compiled."""
    future = _programs.get(name)
    return future is not None and not future.done()


def drop_unstarted() -> None:
    """Begin none of those that wait for their turn: this process is about to end, and would wait for them."""
    for name, future in list(_programs.items()):
        if not future.done() and future.cancel():
            _forget(name, future)


def finish(timeout_s: float) -> None:
    """Wait until those under way are made and kept, but for no longer than that."""
    until = time.monotonic() + timeout_s
    for thread in _making():
        thread.join(max(0.0, until - time.monotonic()))


def forget() -> None:
    """Forget all programs in memory, so that they are loaded or compiled again; waits for those that are being made."""
    for thread in _making():
        thread.join()
    with _lock:
        _programs.clear()


def _making() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(_THREAD)]


_programs: dict[ProgramName, Future[jax.stages.Compiled]] = {}
_lock = threading.Lock()
_turns = threading.Semaphore(max(2, os.cpu_count() or 1))


def _begun(name: ProgramName) -> Future[jax.stages.Compiled]:
    check_jax()
    future = _programs.get(name)
    if future is not None:
        return future
    with _lock:
        future = _programs.get(name)
        if future is None:
            future = Future[jax.stages.Compiled]()
            # Not a daemon: the interpreter must not go away under a compiler.
            threading.Thread(target=_make, args=(name, future), name=f"{_THREAD}{name}", daemon=False).start()
            _programs[name] = future
        return future


def _make(name: ProgramName, future: Future[jax.stages.Compiled]) -> None:
    try:
        with _turns, pinned_to_cpu():
            if future.set_running_or_notify_cancel():
                _load_or_compile(name, future)
    except BaseException as error:
        _forget(name, future)  # the next one who needs it tries again
        if not future.done():
            future.set_exception(error)


def _forget(name: ProgramName, future: Future[jax.stages.Compiled]) -> None:
    with _lock:
        if _programs.get(name) is future:
            del _programs[name]


def _load_or_compile(name: ProgramName, future: Future[jax.stages.Compiled]) -> None:
    cache = chosen_cache(arithmetic, threefry, sys.modules[__name__])
    probe = partial(_probed, name)
    program = None if cache is None else cache.load(str(name), probe)
    if program is not None:
        future.set_result(program)
        return
    program = _compiled(name)
    future.set_result(program)  # before it is kept: callers need not wait for the disk
    if cache is not None:
        cache.save(str(name), program, probe)


def _compiled(name: ProgramName) -> jax.stages.Compiled:
    places, weights, lengths = _arguments(name)
    if name.parts is None:
        lowered = jax.jit(scores).lower(places, weights)
    else:
        lowered = jax.jit(draw, static_argnames="parts").lower(places, weights, lengths, parts=name.parts)
    try:
        return lowered.compile(compiler_options=_OPTIONS)
    except jax.errors.JaxRuntimeError:  # an XLA that does not know them
        return lowered.compile()


def _probed(name: ProgramName, program: jax.stages.Compiled) -> np.ndarray:
    """What the program gives for arguments that are always the same."""
    places, weights, lengths = _arguments(name)
    return np.asarray(program(places, weights) if name.parts is None else program(places, weights, lengths))


def _arguments(name: ProgramName) -> tuple[Array, Array, Array]:
    places = np.arange(4 * name.size, dtype=np.uint32).reshape(name.size, 4)
    weights = -np.arange(name.sources, dtype=np.float32) / name.sources
    return on_cpu(places), on_cpu(weights), on_cpu(np.full(name.sources, 1 << 20, np.int32))
