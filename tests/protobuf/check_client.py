"""The client against the installed protobuf: both must read and write the same messages."""

import importlib.metadata
import importlib.util
import sys

import numpy as np

import mixserve_client
from mixserve_client.schema import sessions
from mixserve_client.schema.dtypes import DTYPES
from mixserve_client.schema.fields import Content, Field
from mixserve_client.schema.mixture import Limits, MixtureDescription, SourceDescription
from mixserve_client.schema.requests import BatchRequest
from mixserve_client.schema.schedule import DefinedSchedule, ScheduleEntry, ScheduleRequest
from mixserve_client.wire import batch, frame, mixture, request, schedule, session, value
from mixserve_client.wire._generated import mix_pb2

_HEAVY = ("jax", "flax", "grain", "torch", "mixserve")
_FINGERPRINT = "0123456789abcdef" * 4


def main(major: str) -> None:
    """Check everything. Raises AssertionError if something is wrong."""
    version = importlib.metadata.version("protobuf")
    assert version.split(".")[0] == major, f"protobuf must be of version {major}, got {version}"
    _check_lightness()
    _check_requests()
    _check_descriptions()
    _check_schedules()
    _check_batches()
    _check_sessions()
    print(f"protobuf {version}: ok")


def _check_sessions() -> None:
    tree = {"a": [1, (None, True)], 2: {"b": 1.5, "c": "text"}}
    assert value.decode_value(value.encode_value(tree)) == tree
    array = value.decode_value(value.encode_value(np.arange(6, dtype=np.uint16).reshape(2, 3)))
    assert array.dtype == np.uint16
    assert array.tolist() == [[0, 1, 2], [3, 4, 5]]
    wanted = sessions.OpenRequest("train", "run-17", "0" * 32, "holder", fresh=True, take_over=True, strict=False)
    assert session.decode_open_request(session.encode_open_request(wanted)) == wanted
    call = sessions.CallRequest("train", "run-17", "set_state", {"state": tree}, "0" * 32, 7)
    assert session.decode_call_request(session.encode_call_request(call)) == call
    reply = sessions.CallReply(tree, False, 2**53 + 1, 3)
    assert session.decode_call_reply(session.encode_call_reply(reply)) == reply
    for known in (b"\xff", b"\x0a\xff"):
        try:
            session.decode_call_request(known)
        except mixserve_client.InvalidRequest:
            continue
        raise AssertionError(f"{known!r} is no request")


def _check_lightness() -> None:
    for name in mixserve_client.__all__:
        getattr(mixserve_client, name)
    for name in _HEAVY:
        assert name not in sys.modules, f"importing mixserve_client loads {name}"
        assert importlib.util.find_spec(name) is None, f"{name} is installed beside the client"


def _check_requests() -> None:
    words = np.array([2**32 - 1, 7], np.uint32)
    wanted = BatchRequest("train", 2**53 + 1, 256, words, _FINGERPRINT)
    data = request.encode_batch_request(wanted)
    theirs = mix_pb2.GetBatchAtRequest(
        mixture="train",
        start=2**53 + 1,
        size=256,
        key=mix_pb2.Key(implementation="threefry2x32", words=[2**32 - 1, 7]),
        expected_fingerprint=_FINGERPRINT,
    )
    assert mix_pb2.GetBatchAtRequest.FromString(data) == theirs
    got = request.decode_batch_request(data)
    assert (got.mixture, got.start, got.size, got.key.tolist(), got.expected_fingerprint) == (
        *("train", 2**53 + 1, 256),
        *(words.tolist(), _FINGERPRINT),
    )
    for cut in (data[:-1], b"\xff"):
        try:
            request.decode_batch_request(cut)
        except mixserve_client.InvalidRequest:
            continue
        raise AssertionError(f"the broken request {cut!r} was accepted")
    assert request.decode_mixture_request(request.encode_mixture_request("train")) == "train"


def _check_descriptions() -> None:
    described = MixtureDescription(
        name="train",
        fingerprint=_FINGERPRINT,
        fields=_fields(),
        sources=(
            SourceDescription("web", 2**40, 0.7, 2**41),
            SourceDescription("code", 1, 0.3),
        ),
        limits=Limits(size=65536, reply_bytes=1 << 24),
        placement="host",
        sampling="epoch",
        block_size=2048,
        stop="all_exhausted",
        end=2**41,
        schedule=(ScheduleEntry(0, (0.7, 0.3)), ScheduleEntry(2**40, (0.1, 0.9))),
        leaves=("web", "code/a", "code/b"),
    )
    assert mixture.decode_mixture(mixture.encode_mixture(described)) == described
    assert mixture.decode_names(mixture.encode_names(("a", "b"))) == ("a", "b")


def _check_schedules() -> None:
    entries = (ScheduleEntry(2048, (0.1, 1e-300)), ScheduleEntry(2**62, (0.0, 1.0)))
    wanted = ScheduleRequest("train", _FINGERPRINT, "ab" * 32, entries)
    assert schedule.decode_schedule_request(schedule.encode_schedule_request(wanted)) == wanted
    for defined in (DefinedSchedule("cd" * 32, None), DefinedSchedule("cd" * 32, 2**62)):
        assert schedule.decode_schedule(schedule.encode_schedule(defined)) == defined
    request_with = BatchRequest(
        *("train", 0, 4, np.array([0, 1], np.uint32)), schedule="ab" * 32, content=Content.PROVENANCE
    )
    got = request.decode_batch_request(request.encode_batch_request(request_with))
    assert (got.schedule, got.content) == ("ab" * 32, Content.PROVENANCE)


def _check_batches() -> None:
    size = 3
    message, memory = frame.empty_bytes(batch.batch_bytes(_FINGERPRINT, _fields(), size))
    arrays = batch.frame_batch(memory, _FINGERPRINT, _fields(), size)
    random = np.random.default_rng(0)
    for array in arrays.values():
        array.reshape(-1).view(np.uint8)[:] = random.integers(0, 2, array.nbytes, np.uint8)
    theirs = mix_pb2.Batch.FromString(message)
    assert theirs.fingerprint == _FINGERPRINT
    assert len(theirs.arrays) == len(DTYPES)
    for field, array in zip(_fields(), theirs.arrays, strict=True):
        assert (array.name, array.dtype, tuple(array.shape)) == (field.name, field.name, (size, *field.shape))
        assert array.data == arrays[field.name].tobytes(), f"protobuf reads other bytes of the field {field.name!r}"
    for array in theirs.arrays:
        array.ClearField("padding")
    for data in (message, theirs.SerializeToString()):
        fingerprint, decoded = batch.decode_batch(data)
        assert fingerprint == _FINGERPRINT
        batch.check_batch(decoded, _fields(), size)
        for name, array in decoded.items():
            assert array.tobytes() == arrays[name].tobytes(), f"we read other bytes of the field {name!r}"


def _fields() -> tuple[Field, ...]:
    """One field per dtype, of zero to three dimensions."""
    return tuple(Field(name, dtype, (2, 3, 5)[: i % 4]) for i, (name, dtype) in enumerate(DTYPES.items()))


if __name__ == "__main__":
    main(sys.argv[1])
