"""A training step of a known length on one core: the batch is read once, and matrices are multiplied in JAX.

The number of products is calibrated with a batch in memory. NumPy reads the batch, not JAX, which copies an array or
borrows it depending on the alignment of its memory, so that steps would differ.
"""

import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

_SIDE = 128  # the matrices stay in the core's cache, and one product takes a small part of a millisecond
_FIRST_GUESS = 200
_GUESSES = 4
_REPEATS = 5


@dataclass(frozen=True)
class Timing:
    """How long a step takes, and the CPU time of the process: medians of a few steps."""

    seconds: float
    cpu_s: float


class Step:
    """Compiled once, for any number of products. JAX runs on the CPU only, for every contestant."""

    def __init__(self) -> None:
        jax.config.update("jax_platforms", "cpu")
        self._matrix = jnp.full((_SIDE, _SIDE), 1 / _SIDE)
        # One thread: the other cores are for the data.
        self._products = jax.jit(_products, compiler_options={"xla_cpu_multi_thread_eigen": False})
        # Compiles here, so that no round contains the compilation.
        self._products(self._matrix, 1).block_until_ready()

    def __call__(self, batch: np.ndarray, products: int) -> None:
        """Read the batch, then compute."""
        batch.max()
        self._products(self._matrix, products).block_until_ready()

    def timed(self, batch: np.ndarray, products: int) -> Timing:
        seconds, cpu = [], []
        for _ in range(_REPEATS):
            began, used = time.perf_counter(), time.process_time()
            self(batch, products)
            seconds.append(time.perf_counter() - began)
            cpu.append(time.process_time() - used)
        return Timing(float(np.median(seconds)), float(np.median(cpu)))

    def calibrated(self, batch: np.ndarray, seconds: float) -> int:
        """How many products make a step of `seconds` with the batch in memory. Raises ValueError if none do.

        Measures CPU time, which other processes on the machine do not lengthen.
        """
        reading, products = self.timed(batch, 0).cpu_s, _FIRST_GUESS
        for _ in range(_GUESSES):
            computing = self.timed(batch, products).cpu_s - reading
            products = round(products * (seconds - reading) / computing)
            if products < 1:
                raise ValueError(f"reading the batch alone takes {reading:.3f} s, of a step of {seconds} s")
        return products


def _products(matrix: jax.Array, products: int) -> jax.Array:
    return jax.lax.fori_loop(0, products, lambda _, one: jnp.tanh(one @ matrix), matrix)
