"""A trainer's process, run by `benchmarks.common.child`: a contestant's module, the step, and the requests to them."""

import importlib
import importlib.metadata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np

from benchmarks.common.work import load
from benchmarks.race.contestant import Contestant
from benchmarks.trainer.loop import run_round
from benchmarks.trainer.rate import megabytes_per_second
from benchmarks.trainer.step import Step


@contextmanager
def answering(module: str, *arguments: str) -> Iterator[Callable[..., dict[str, Any]]]:
    contestant: Contestant = importlib.import_module(module).contestant(*arguments)
    step = Step()
    packages = {name: importlib.metadata.version(name) for name in (*contestant.packages, "jax")}

    def calibrate(size: int, seconds: float) -> dict[str, Any]:
        batch = _batch(size)
        products = step.calibrated(batch, seconds)
        return {"products": products, **asdict(step.timed(batch, products))}

    def rate(size: int, **asked: Any) -> dict[str, Any]:
        return {"megabytes_s": megabytes_per_second(contestant, step, _batch(size), **asked)}

    questions: dict[str, Callable[..., dict[str, Any]]] = {
        "versions": lambda: packages,
        "calibrate": calibrate,
        "alone": lambda size, products: asdict(step.timed(_batch(size), products)),
        "rate": rate,
        "round": lambda **asked: asdict(run_round(contestant, step, **asked)),
    }
    yield lambda question, **asked: questions[question](**asked)


def _batch(size: int) -> np.ndarray:
    """A batch in memory."""
    return load()[0][:size].copy()
