"""Replies of any number of rows become the right batches, and memory is reused only after its last reader."""

import gc
import mmap
import random
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixserve_client import Field
from mixserve_client.reading.assembly import batches_of, no_rows
from mixserve_client.transport.buffers import IdleMemory, Memory, MemoryPool
from tests.conftest import assert_batches_equal
from tests.profiles import examples

DEADLINE_S = 30
FIELDS = (
    Field("half", np.dtype(ml_dtypes.bfloat16), (2, 3)),
    Field("id", np.dtype(np.int64), ()),
    Field("flag", np.dtype(bool), (5,)),
)
Batch = dict[str, np.ndarray]


def some_rows(count: int, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    return {
        field.name: rng.integers(0, 2, (count, field.nbytes), np.uint8).view(field.dtype).reshape(count, *field.shape)
        for field in FIELDS
    }


def part(rows: Batch, first: int, stop: int) -> Batch:
    return {name: array[first:stop] for name, array in rows.items()}


@given(size=st.integers(1, 30), count=st.integers(1, 12), data=st.data())
def test_replies_of_any_number_of_rows_become_the_batches(size, count, data):
    rows, ends = some_rows(size * count), [0]
    while ends[-1] < size * count:
        ends.append(ends[-1] + data.draw(st.integers(1, min(3 * size, size * count - ends[-1]))))
    replies = [{n: a.copy() for n, a in part(rows, *cut).items()} for cut in pairwise(ends)]
    came = list(batches_of(iter(replies), size, FIELDS, MemoryPool()))
    whole_so_far = 0
    for end, batches in zip(ends[1:], came, strict=True):  # no batch waits for a reply that it does not need
        whole_so_far += len(batches)
        assert whole_so_far == end // size
    batches = [batch for some in came for batch in some]
    assert len(batches) == count
    for number, batch in enumerate(batches):
        first, stop = number * size, (number + 1) * size
        assert_batches_equal(batch, part(rows, first, stop))
        for (start, end), reply in zip(pairwise(ends), replies, strict=True):
            covered = start <= first and stop <= end
            assert all(np.shares_memory(batch[name], reply[name]) == covered for name in reply)


def test_landing_arrays_are_aligned_and_apart():
    (batches,) = [
        some
        for some in batches_of([part(some_rows(5), 0, 2), part(some_rows(5), 2, 5)], 5, FIELDS, MemoryPool())
        if some
    ]
    arrays = list(batches[0].values())
    assert all(array.ctypes.data % 64 == 0 and array.flags.c_contiguous for array in arrays)
    assert not any(np.shares_memory(a, b) for a in arrays for b in arrays if a is not b)


def test_a_batch_without_rows_has_all_fields():
    assert {name: (a.dtype, a.shape) for name, a in no_rows(FIELDS).items()} == {
        field.name: (field.dtype, (0, *field.shape)) for field in FIELDS
    }


HOLDERS: dict[str, Callable[[np.ndarray], Any]] = {
    "itself": lambda array: array,
    "slice": lambda array: array[100:200],
    "slice of a slice": lambda array: array[100:900][7:80],
    "strided": lambda array: array[::-3],
    "other dtype and shape": lambda array: array[:4096].view(np.int32).reshape(64, 16)[3:, 2],
    "transposed": lambda array: array[:4096].reshape(64, 64).T[5],
    "memoryview": memoryview,
    "slice of a memoryview": lambda array: memoryview(array)[5:99],
    "array over a memoryview": lambda array: np.frombuffer(memoryview(array)[64:], np.uint8)[9:],
    "on the device": jax.device_put,
    "slice on the device": lambda array: jax.device_put(array[64:4096]),
    "by dlpack": lambda array: np.from_dlpack(array[128:]),
    "flat iterator": lambda array: array[64:].flat,
    "tuple of views": lambda array: (array[1:2], array[3:9]),
}


def content(held: Any) -> bytes:
    if isinstance(held, tuple):
        return b"".join(map(content, held))
    return np.asarray(held[:] if isinstance(held, np.flatiter) else held).tobytes()


def address(array: np.ndarray) -> int:
    return array.ctypes.data


@pytest.mark.parametrize("hold", HOLDERS.values(), ids=HOLDERS)
def test_memory_is_not_used_again_while_anything_looks_at_it_and_is_afterwards(hold):
    pool, size = MemoryPool(), 200_000
    array = pool.borrow(size)
    where = address(array)
    array[...] = np.random.default_rng(0).integers(0, 256, len(array), np.uint8)
    held = hold(array)
    expected = content(held)
    del array
    gc.collect()
    for round_ in range(5):
        others = [pool.borrow(size) for _ in range(3)]
        for other in others:
            assert address(other) != where
            other[...] = round_
        del other, others
    assert content(held) == expected
    del held
    deadline = time.monotonic() + DEADLINE_S
    while address(pool.borrow(size)) != where:  # JAX releases borrowed memory a little later
        assert time.monotonic() < deadline
        gc.collect()
        jax.device_put(0)


def test_memory_is_given_by_size_and_page():
    pool = MemoryPool()
    for size in (1, 65536, 65537, 10**6):
        array = pool.borrow(size)
        assert len(array) >= size
        assert array.dtype == np.uint8
        assert address(array) % 4096 == 0
        assert array.flags.writeable


def test_threads_never_get_the_same_memory_at_once():
    pool, failed, together = MemoryPool(), list[str](), threading.Barrier(6)

    def work(number: int) -> None:
        rng = random.Random(number)
        mine: list[np.ndarray] = []
        together.wait(DEADLINE_S)
        for _ in range(300):
            mine.append(pool.borrow(rng.choice([1000, 70_000])))
            mine[-1][:64] = number
            if any((array[:64] != number).any() for array in mine):
                failed.append(f"thread {number} was overwritten")
            while len(mine) > rng.randrange(6):
                mine.pop(rng.randrange(len(mine)))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert failed == []


KEPT = [
    lambda batch: batch["half"],
    lambda batch: batch["half"][1:][1:],
    lambda batch: memoryview(batch["id"]),
    lambda batch: jax.device_put(batch["flag"]),
    lambda batch: jax.device_put(batch["half"][:3]),
    lambda batch: batch,
]


def values(held: Any) -> bytes:
    if isinstance(held, dict):
        return b"".join(map(values, held.values()))
    return np.asarray(held).tobytes()


@settings(max_examples=examples(10), deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_batches_that_are_held_stay_while_hundreds_land(seed):
    rng, size, count = random.Random(seed), 40, 300
    rows = some_rows(size * count, seed)
    pool, held, landed_at = MemoryPool(), list[tuple[int, int, Any]](), list[int]()

    def replies():
        at = 0
        while at < size * count:
            stop = min(at + rng.randint(1, size - 1), size * count)  # no reply covers a batch
            yield part(rows, at, stop)
            at = stop

    def check(number: int, how: int, kept: Any) -> None:
        assert values(kept) == values(KEPT[how](part(rows, number * size, (number + 1) * size)))

    number = 0
    for batches in batches_of(replies(), size, FIELDS, pool):
        for batch in batches:
            landed_at.append(address(batch["half"]))
            how = rng.randrange(len(KEPT))
            held.append((number, how, KEPT[how](batch)))
            number += 1
        while len(held) > rng.randrange(30):
            check(*held.pop(rng.randrange(len(held))))
    assert number == count
    for kept in held:
        check(*kept)
    assert len(set(landed_at)) < count / 2  # memory was reused


@given(st.lists(st.tuples(st.sampled_from(["put", "take", "oldest"]), st.integers(1, 3)), max_size=60))
def test_idle_memory_is_by_size_and_age(steps):
    idle, plain = IdleMemory[Memory](), list[Memory]()
    for step, size in steps:
        if step == "put":
            plain.append(Memory(mmap.mmap(-1, size * 4096)))
            idle.put(plain[-1])
        elif step == "take":
            expected = next((memory for memory in reversed(plain) if memory.size == size * 4096), None)
            assert idle.take(size * 4096) is expected
            plain = [memory for memory in plain if memory is not expected]
        else:
            assert idle.take_oldest() is (plain.pop(0) if plain else None)
        assert idle.bytes == sum(memory.size for memory in plain)
    idle.clear()
    assert (idle.bytes, idle.take_oldest()) == (0, None)


@pytest.mark.alone
def test_borrowing_costs_the_same_however_much_is_idle():
    def cost(count: int) -> float:
        pool, tries = MemoryPool(), list[float]()
        borrowed = [pool.borrow(4096) for _ in range(count)]
        del borrowed
        pool.borrow(4096)
        for _ in range(20):
            began = time.perf_counter()
            pool.borrow(4096)
            tries.append(time.perf_counter() - began)
        return min(tries)

    assert cost(2000) < 10 * cost(2) + 1e-4  # it once was 0.1 s with 2,000 blocks
