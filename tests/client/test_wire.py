"""The wire: hand-framed bytes equal protobuf's, golden bytes stay, hostile bytes are refused without other effects."""

from contextlib import suppress
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixserve_client import CorruptReply, Field, InvalidRequest, OutOfRange
from mixserve_client.schema.dtypes import DTYPES, dtype_name, dtype_named
from mixserve_client.schema.keys import key_words
from mixserve_client.wire import description, frame, health, methods, request
from mixserve_client.wire._generated import mix_pb2
from mixserve_client.wire.batch import batch_bytes, check_batch, decode_batch, frame_batch, view_batch
from tests.profiles import examples

FIELDS = (
    Field("tokens", np.dtype(np.uint16), (5,)),
    Field("half", np.dtype(ml_dtypes.bfloat16), (2, 3)),
    Field("id", np.dtype(np.int64), ()),
    Field("none", np.dtype(np.float32), (0, 4)),
)


def framed(fingerprint: str, fields: tuple[Field, ...], size: int) -> tuple[bytes, dict[str, np.ndarray]]:
    message, memory = frame.empty_bytes(batch_bytes(fingerprint, fields, size))
    return message, frame_batch(memory, fingerprint, fields, size)


def filled(fields: tuple[Field, ...], size: int, seed: int = 0) -> tuple[bytes, dict[str, np.ndarray]]:
    message, arrays = framed("ab" * 32, fields, size)
    rng = np.random.default_rng(seed)
    for array in arrays.values():
        array.reshape(-1).view(np.uint8)[...] = rng.integers(0, 256, array.nbytes)
    return message, arrays


fields = st.builds(
    Field,
    st.text(max_size=20),
    st.sampled_from(sorted(DTYPES.values(), key=str)),
    st.lists(st.integers(0, 9), max_size=3).map(tuple),
)


@given(st.lists(fields, min_size=1, max_size=5, unique_by=lambda field: field.name).map(tuple), st.integers(1, 300))
def test_a_framed_batch_is_the_protobuf_message(fields, size):
    message, arrays = filled(fields, size)
    parsed = mix_pb2.Batch.FromString(message)
    assert parsed.fingerprint == "ab" * 32
    assert [(a.name, a.dtype, tuple(a.shape), a.data) for a in parsed.arrays] == [
        (f.name, f.dtype.name, (size, *f.shape), arrays[f.name].tobytes()) for f in fields
    ]
    if all(field.name and array.size for field, array in zip(fields, arrays.values(), strict=True)):
        assert parsed.SerializeToString() == message  # protobuf omits empty fields
    fingerprint, decoded = decode_batch(message)
    assert fingerprint == parsed.fingerprint
    check_batch(decoded, fields, size)
    for name, array in decoded.items():
        assert array.tobytes() == arrays[name].tobytes()
        assert not array.flags.writeable


@given(
    st.lists(fields, min_size=1, max_size=4, unique_by=lambda field: field.name).map(tuple),
    st.integers(1, 50),
    st.data(),
)
def test_a_batch_is_viewed_exactly_where_its_heads_are_the_expected_ones(fields, size, data):
    message, _ = filled(fields, size)
    viewed, (_, decoded) = view_batch(message, "ab" * 32, fields, size), decode_batch(message)
    assert viewed is not None
    assert {n: (a.dtype, a.shape, a.tobytes()) for n, a in viewed.items()} == {
        n: (a.dtype, a.shape, a.tobytes()) for n, a in decoded.items()
    }
    assert not any(array.flags.writeable for array in viewed.values())
    assert view_batch(message, "cd" * 32, fields, size) is None
    assert view_batch(message, "ab" * 32, fields, size + 1) is None
    assert view_batch(message[:-1], "ab" * 32, fields, size) is None
    damaged = bytearray(message)
    damaged[data.draw(st.integers(0, len(message) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    still = view_batch(bytes(damaged), "ab" * 32, fields, size)
    if still is not None:  # in this case only data were damaged
        assert sum(still[n].tobytes() != decoded[n].tobytes() for n in decoded) == 1


def test_large_arrays_are_views_of_the_message_and_aligned():
    message, _ = filled((Field("x", np.dtype(np.float64), (2048,)), *FIELDS), 64)
    _, decoded = decode_batch(message)
    for array in decoded.values():
        assert array.flags.aligned
        if array.size:
            assert np.shares_memory(array, np.frombuffer(message, np.uint8))


def test_other_encoders_may_leave_out_padding_pack_nothing_and_add_fields():
    array = frame.delimited(1, b"x") + frame.delimited(2, b"int16") + bytes([3 << 3, 2, 3 << 3, 1])
    array += frame.delimited(15, b"\1\0\2\0") + frame.delimited(99, b"later") + bytes([12 << 3 | 5, 1, 2, 3, 4])
    message = bytes([9 << 3 | 1]) + bytes(8) + frame.delimited(2, array) + frame.delimited(1, b"f")
    fingerprint, decoded = decode_batch(message)
    assert fingerprint == "f"
    assert decoded["x"].tolist() == [[1], [2]]


def test_golden_bytes():
    message, arrays = framed("f0", (Field("x", np.dtype(np.int16), (2,)),), 2)
    arrays["x"][...] = [[1, 2], [3, -1]]
    assert message.hex() == ("0a02663012420a01781205696e7431361a020202" + "7228" + "00" * 40 + "7a08010002000300ffff")
    words = np.array([0, 7], np.uint32)
    assert request.encode_batch_request(request.BatchRequest("m", 300, 5, words, "f")).hex() == (
        "0a016d10ac02180522120a0c" + b"threefry2x32".hex() + "120200072a0166"
    )
    without_rows = request.encode_batch_request(request.BatchRequest("m", 0, 0, words, "f"))
    assert request.with_rows(without_rows, 300, 5).hex() == (
        "0a016d22120a0c" + b"threefry2x32".hex() + "120200072a0166" + "10ac021805"
    )


def whole_or_corrupt(message: bytes) -> Any:
    try:
        return decode_batch(message)
    except CorruptReply:
        return None


@given(st.binary(max_size=200))
def test_random_bytes_are_a_batch_or_corrupt(data):
    whole_or_corrupt(data)


@settings(max_examples=examples(200))
@given(st.data())
def test_damaged_batches_are_read_or_corrupt_and_cut_ones_never_complete(data):
    message, _ = filled(FIELDS, 3)
    cut = data.draw(st.integers(0, len(message) - 1))
    got = whole_or_corrupt(message[:cut])
    assert got is None or len(got[1]) < len(FIELDS)
    damaged = bytearray(message)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    whole_or_corrupt(bytes(damaged))


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (mix_pb2.Array(name="x", dtype="int128", shape=[1], data=bytes(16)), "dtype must be one of"),
        (mix_pb2.Array(name="x", dtype="object", shape=[1], data=bytes(8)), "dtype must be one of"),
        (mix_pb2.Array(name="x", dtype="int8", shape=[2**62, 4], data=b"1"), "cannot have 1 bytes"),
        (mix_pb2.Array(name="x", dtype="int8", shape=[-1], data=b"1"), "cannot have 1 bytes"),
        (mix_pb2.Array(name="x", dtype="int16", shape=[1], data=b"123"), "cannot have 3 bytes"),
    ],
)
def test_arrays_that_do_not_add_up_are_corrupt(array, said):
    with pytest.raises(CorruptReply, match=said):
        decode_batch(mix_pb2.Batch(arrays=[array]).SerializeToString())


def test_an_array_that_comes_twice_is_corrupt():
    array = mix_pb2.Array(name="x", dtype="int8", shape=[1], data=b"1")
    with pytest.raises(CorruptReply, match="twice"):
        decode_batch(mix_pb2.Batch(arrays=[array, array]).SerializeToString())


def test_a_batch_that_does_not_fit_its_description_is_corrupt():
    _, arrays = filled(FIELDS, 3)
    check_batch(arrays, FIELDS, 3)
    for fields, size in ((FIELDS, 4), (FIELDS[1:], 3), ((*FIELDS, Field("y", np.dtype(bool), ())), 3)):
        with pytest.raises(CorruptReply, match="description"):
            check_batch(arrays, fields, size)


@given(
    start=st.integers(0, 2**62), size=st.integers(1, 2**31), seed=st.integers(0, 2**32 - 1), name=st.text(max_size=9)
)
def test_batch_requests_come_back(start, size, seed, name):
    sent = request.BatchRequest(name, start, size, key_words(seed), "f")
    got = request.decode_batch_request(request.encode_batch_request(sent))
    assert got.key.tolist() == [0, seed]
    assert (got.mixture, got.start, got.size, got.expected_fingerprint) == (name, start, size, "f")


@given(st.binary(max_size=60))
def test_random_bytes_are_a_request_or_refused(data):
    for decode in (
        request.decode_batch_request,
        request.decode_stream_request,
        request.decode_mixture_request,
        partial(request.decode_empty_request, "ListMixturesRequest"),
    ):
        with suppress(InvalidRequest, OutOfRange):
            decode(data)


def test_descriptions_come_back():
    mixture = description.MixtureDescription(
        name="train",
        fingerprint="ab" * 32,
        fields=FIELDS,
        sources=(description.SourceDescription("a", 2**40, 0.25), description.SourceDescription("b", 0, 0.75)),
        limits=description.Limits(100, 1 << 20),
        placement="host",
        sampling="categorical",
    )
    assert description.decode_mixture(description.encode_mixture(mixture)) == mixture
    assert mixture.weights == (0.25, 0.75)
    assert mixture.row_bytes == 10 + 12 + 8
    assert mixture.element_spec["id"] is FIELDS[2]


@pytest.mark.parametrize(
    "message",
    [
        mix_pb2.Mixture(name="x"),
        mix_pb2.Mixture(limits=mix_pb2.Limits(size=1), fields=[mix_pb2.Field(dtype="object")]),
        mix_pb2.Mixture(limits=mix_pb2.Limits(size=1), fields=[mix_pb2.Field(dtype="int8", shape=[-1])]),
    ],
)
def test_impossible_descriptions_are_corrupt(message):
    with pytest.raises(CorruptReply):
        description.decode_mixture(message.SerializeToString())


@given(st.integers(0, 2**64 - 1))
def test_varints_come_back(value):
    data = frame.varint(value)
    assert frame.read_varint(memoryview(data + b"x"), 0) == (value, len(data))
    with pytest.raises(ValueError, match="varint"):
        frame.read_varint(memoryview(data[:-1]), 0)


def test_varints_of_more_than_64_bits_are_refused():
    for data in (b"\xff" * 9 + b"\x02", b"\x80" * 11):
        with pytest.raises(ValueError, match="varint"):
            frame.read_varint(memoryview(data), 0)


def test_dtype_table_is_closed_and_little_endian():
    assert all(dtype_name(dtype_named(name)) == name for name in DTYPES)
    for dtype in (np.dtype(">i4"), np.dtype(object), np.dtype("U3"), np.dtype("M8[s]"), np.dtype([("a", "i4")])):
        with pytest.raises(TypeError, match="dtype must be one of"):
            dtype_name(dtype)


def test_method_paths_are_those_of_the_proto():
    assert methods.GET_BATCH_AT == "/mixserve.v1.MixService/GetBatchAt"


def test_health_statuses():
    assert health.decode_status(b"") == "UNKNOWN"
    assert health.decode_status(b"\x08\x01") == "SERVING"
    assert health.decode_status(b"\x08\x01" * 200) == "SERVING"
    for reply in (b"\x08\x09", b"\x08", b"\xff", b"\x08\x01" * 1000):
        with pytest.raises(CorruptReply):
            health.decode_status(reply)


@pytest.mark.parametrize("key", [0, 5, 2**32 - 1, np.uint32(5), [0, 5], np.array([1, 2], np.uint32)], ids=str)
def test_keys_that_are_accepted(key):
    words = key_words(key)
    assert words.dtype == np.uint32
    assert words.tolist() == (list(key) if np.ndim(key) else [0, int(key)])


@pytest.mark.parametrize(
    "key", [None, True, -1, 2**32, 1.0, "a", [1], [1, 2**32], np.zeros(2), np.zeros((2, 2), np.uint32)], ids=str
)
def test_keys_that_are_not(key):
    with pytest.raises(InvalidRequest, match=r"key must be .*got"):
        key_words(key)
