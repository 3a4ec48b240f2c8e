"""Every decoder takes its valid inputs, and damaged ones with an error of its own, little memory and little time.

`make fuzz` gives them millions of inputs, guided by coverage; these are the few that every run of the tests has.
"""

import importlib
import pkgutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixserve.sources.registry import KINDS
from mixserve_client import wire
from mixserve_client.errors import CorruptReply
from mixserve_client.wire.frame import delimited
from tests.fuzz import file_targets, target, wire_targets
from tests.fuzz.file_targets import FILES
from tests.fuzz.mutations import mutate
from tests.fuzz.target import MEMORY_BYTES, Checked, Fault, Target
from tests.fuzz.wire_targets import WIRE
from tests.profiles import examples

TARGETS = [*WIRE, *FILES]
FIELD = delimited(3, delimited(1, b"x") + delimited(2, b"int8"))  # of a Mixture


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_valid_inputs_are_taken(target):
    for seed in target.seeds():
        target.run(seed)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_damaged_inputs_are_refused_soon_and_in_words(target):
    checked, seeds = Checked(target), target.seeds()

    @settings(max_examples=examples(40), database=None)
    @given(st.randoms(use_true_random=False) | st.binary(max_size=200))
    def run(given):
        checked(given if isinstance(given, bytes) else mutate(given, seeds, min(target.largest, 64 << 10)))

    run()


def named(*parts: bytes) -> bytes:
    """A message with the name `x` and these parts."""
    return delimited(1, delimited(1, b"x") + b"".join(parts))


# Two bytes make a message, and to convert one takes a microsecond or more.
MANY = {
    "sessions": delimited(1, b"") * 400_000,
    "statistics": delimited(1, b"") * 400_000,
    "statistics with samples": named(delimited(3, b"gauge"), delimited(6, b"") * 400_000),
    "mixture": FIELD + delimited(4, b"") * 400_000,
    "mixture of fields": FIELD * 60_000,
}


@pytest.mark.parametrize(("name", "data"), MANY.items(), ids=MANY)
def test_many_small_messages_in_one_cost_little(name, data):
    target = next(one for one in WIRE if one.name == f"client: {name.partition(' ')[0]}")
    checked = Checked(target)
    checked(data)
    assert checked.refused


def test_every_decoder_and_every_kind_of_source_is_fuzzed():
    modules = [
        importlib.import_module(found.name) for found in pkgutil.iter_modules(wire.__path__, f"{wire.__name__}.")
    ]
    decoders = {name for module in modules for name in vars(module) if name.startswith("decode_")}
    fuzzed = Path(wire_targets.__file__).read_text()
    assert [name for name in decoders if f".{name}" not in fuzzed] == []
    assert {kind for kind, _ in file_targets.MAKERS.values()} == KINDS.keys() - {
        "factory",
        "remote",
    }  # which read no files


def raising(error: BaseException):
    def run(data: bytes) -> None:
        if data:
            raise error

    return run


def busy(data: bytes) -> None:
    if data:
        sum(range(20_000_000))


def large(data: bytes) -> None:
    if data:
        _ = bytearray(3 * MEMORY_BYTES)


WRONG = {
    "another error": raising(IndexError("no such place")),
    "a message without end": raising(CorruptReply("x" * 100_000)),
    "much time": busy,
}


@pytest.mark.parametrize("run", WRONG.values(), ids=WRONG)
def test_what_no_input_may_do_is_a_fault(run):
    checked = Checked(Target("wrong", run, (CorruptReply,), lambda: [b""]))
    with pytest.raises(Fault):
        checked(b"x")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux alone says how much memory was in use")
def test_memory_that_is_given_back_is_a_fault_too(monkeypatch):
    monkeypatch.setattr(target, "CPU_S", 10.0)  # a busy machine may take long to find so much memory
    del [bytearray(5 * MEMORY_BYTES)][:]  # as another test in this process may have done before
    checked = Checked(Target("wrong", large, (CorruptReply,), lambda: [b""]))
    with pytest.raises(Fault, match="MiB of memory"):
        checked(b"x")
