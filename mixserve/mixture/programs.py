"""Names of programs -> the compiled programs: from memory, from the user's cache folder, or compiled in parallel."""

# JAX's own signatures have types in part only.
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
from mixserve.mixture.draw import Parts, draw, on_cpu, padded_count, pinned_to_cpu, scores

PLAN_SIZES = (16, 64, 256, 1024, 4096)
PROBE_POSITIONS = 16
_THREAD = "mixserve-program-"
# LLVM's expensive passes take a third of the compilation, and change neither the bits nor the speed of these programs.
_OPTIONS: dict[str, str | bool] = {"xla_llvm_disable_expensive_passes": True}


class ProgramName(NamedTuple):
    """The draw of `size` positions from `sources` sources, after padding; with `parts` None, their scores."""

    sources: int
    size: int
    parts: Parts | None

    def __str__(self) -> str:
        if self.parts is None:
            return f"scores-{self.sources}x{self.size}"
        words = [name for name, has in self.parts._asdict().items() if has]
        return "-".join([f"draw-{self.sources}x{self.size}", *words])


def draws(sources: int, parts: Parts, sizes: Sequence[int] = PLAN_SIZES) -> set[ProgramName]:
    """The programs that plans of `sources` sources need, one per bucket size."""
    return {ProgramName(padded_count(sources), size, parts) for size in sizes}


def first_sizes(sizes: Sequence[int]) -> tuple[int, ...]:
    """The largest of the ascending `sizes` and every second one below: a server serves when their programs are ready.

    While the program of another size is being made, the next larger one does its work.
    """
    return tuple(sizes[::-2])


def probe_scores(sources: int) -> ProgramName:
    """The program of a fingerprint's probe."""
    return ProgramName(padded_count(sources), PROBE_POSITIONS, None)


def program(name: ProgramName) -> jax.stages.Compiled:
    """The compiled program; waits for it. Mixtures with the same number of sources after padding share it."""
    return _begin_one(name).result()


def begin(names: Iterable[ProgramName]) -> None:
    """Load or compile the programs in parallel, without waiting."""
    for name in names:
        _begin_one(name)


def load(names: Iterable[ProgramName]) -> None:
    """Load or compile the programs in parallel, and wait until all are ready."""
    for future in [_begin_one(name) for name in names]:
        future.result()


def ready_program(name: ProgramName) -> jax.stages.Compiled | None:
    """The compiled program if it can be called without waiting, None if not; begins nothing."""
    check_jax()
    future = _programs.get(name)
    return future.result() if future is not None and future.done() else None


def is_ready(name: ProgramName) -> bool:
    """Whether the program can be called without waiting."""
    future = _programs.get(name)
    return future is not None and future.done()


def is_being_made(name: ProgramName) -> bool:
    """Whether the program is being loaded or compiled."""
    future = _programs.get(name)
    return future is not None and not future.done()


def drop_unstarted() -> None:
    """Cancel the programs that have not begun to compile: the process is about to end, and would wait for them."""
    for name, future in list(_programs.items()):
        if not future.done() and future.cancel():
            _forget(name, future)


def finish(timeout_s: float) -> None:
    """Wait up to `timeout_s` seconds until all programs in the making are compiled and in the cache."""
    until = time.monotonic() + timeout_s
    for thread in _making_threads():
        thread.join(max(0.0, until - time.monotonic()))


def forget() -> None:
    """Drop all programs from memory, so that they are loaded or compiled again. Waits for those in the making."""
    for thread in _making_threads():
        thread.join()
    with _lock:
        _programs.clear()


def _making_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(_THREAD)]


_programs: dict[ProgramName, Future[jax.stages.Compiled]] = {}
_lock = threading.Lock()
# Compiling keeps a core busy.
_turns = threading.Semaphore(max(2, os.cpu_count() or 1))


def _begin_one(name: ProgramName) -> Future[jax.stages.Compiled]:
    check_jax()
    future = _programs.get(name)  # without the lock first: every plan comes here
    if future is not None:
        return future
    with _lock:
        future = _programs.get(name)
        if future is None:
            future = Future[jax.stages.Compiled]()
            # Not a daemon: the interpreter must not shut down while a compiler runs.
            threading.Thread(target=_make, args=(name, future), name=f"{_THREAD}{name}", daemon=False).start()
            _programs[name] = future
        return future


def _make(name: ProgramName, future: Future[jax.stages.Compiled]) -> None:
    try:
        with _turns, pinned_to_cpu():
            if future.set_running_or_notify_cancel():
                _load_or_compile(name, future)
    except BaseException as error:
        _forget(name, future)  # the next caller tries again
        if not future.done():
            future.set_exception(error)


def _forget(name: ProgramName, future: Future[jax.stages.Compiled]) -> None:
    with _lock:
        if _programs.get(name) is future:
            del _programs[name]


def _load_or_compile(name: ProgramName, future: Future[jax.stages.Compiled]) -> None:
    cache = chosen_cache(arithmetic, threefry, sys.modules[__name__])
    probe = partial(_run_probe, name)
    program = None if cache is None else cache.load(str(name), probe)
    if program is not None:
        future.set_result(program)
        return
    program = _compile(name)
    future.set_result(program)  # before it is saved, so that callers need not wait for the disk
    if cache is not None:
        cache.save(str(name), program, probe)


def _compile(name: ProgramName) -> jax.stages.Compiled:
    places, weights, lengths = _arguments(name)
    if name.parts is None:
        lowered = jax.jit(scores).lower(places, weights)
    else:
        lowered = jax.jit(draw, static_argnames="parts").lower(places, weights, lengths, parts=name.parts)
    try:
        return lowered.compile(compiler_options=_OPTIONS)
    except jax.errors.JaxRuntimeError:  # an XLA that does not know these options
        return lowered.compile()


def _run_probe(name: ProgramName, program: jax.stages.Compiled) -> np.ndarray:
    """The program's result for fixed arguments."""
    places, weights, lengths = _arguments(name)
    return np.asarray(program(places, weights) if name.parts is None else program(places, weights, lengths))


def _arguments(name: ProgramName) -> tuple[Array, Array, Array]:
    places = np.arange(4 * name.size, dtype=np.uint32).reshape(name.size, 4)
    weights = -np.arange(name.sources, dtype=np.float32) / name.sources
    return on_cpu(places), on_cpu(weights), on_cpu(np.full(name.sources, 1 << 20, np.int32))
