"""Trees on the wire: exact, typed, and hostile bytes are refused."""

import math
from contextlib import suppress

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixserve_client.schema.dtypes import DTYPES
from mixserve_client.wire._generated import state_pb2
from mixserve_client.wire.value import DEPTH_LIMIT, decode_value, encode_value

plain_scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.text(max_size=20)
)


def filled(dtype, shape):
    """Arrays whose values depend on their index, without NaN."""
    return np.arange(math.prod(shape)).reshape(shape).astype(DTYPES[dtype])


# Zero-dimensional arrays are the ones that any layer could mistake for numbers.
arrays = st.builds(filled, st.sampled_from(sorted(DTYPES)), st.sampled_from([(), (), (0,), (1,), (2, 3)]))
scalars = plain_scalars | arrays | arrays.map(lambda array: array[()])
keys = st.text(max_size=8) | st.integers(-(2**63), 2**63 - 1)
trees = st.recursive(
    scalars,
    lambda children: st.one_of(
        st.lists(children, max_size=4),
        st.lists(children, max_size=4).map(tuple),
        st.dictionaries(keys, children, max_size=4),
    ),
    max_leaves=12,
)


def kinds(tree):
    """What must come back: types; for arrays, and NumPy's scalars, which become arrays, dtype, shape and bytes."""
    if isinstance(tree, dict):
        return [(key, kinds(child)) for key, child in tree.items()]
    if isinstance(tree, np.ndarray | np.generic):
        return tree.dtype, tree.shape, tree.tobytes()
    return [type(tree), *map(kinds, tree)] if isinstance(tree, list | tuple) else (type(tree), tree)


@given(trees)
@settings(deadline=None)
def test_trees_come_back_with_their_kinds(tree):
    assert kinds(decode_value(encode_value(tree))) == kinds(tree)


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (2, 3)])
def test_arrays_come_back_bit_for_bit(dtype, shape):
    count = math.prod(shape) * DTYPES[dtype].itemsize
    raw = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 256, count).astype(np.uint8)
    array = raw.view(DTYPES[dtype]).reshape(shape)
    back = decode_value(encode_value({"array": array[..., ::-1] if shape else array}))["array"]
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert back.tobytes() == (array[..., ::-1] if shape else array).tobytes()
    assert not back.flags.writeable


def test_scalars_of_numpy_are_arrays_without_dimensions():
    for scalar in (np.float32(1.5), np.int64(-1), np.bool_(True), np.float64(0.1), ml_dtypes.bfloat16(2)):
        back = decode_value(encode_value(scalar))
        assert (back.shape, back.dtype, back.tobytes()) == ((), scalar.dtype, scalar.tobytes())


def test_floats_keep_their_bits():
    for number in (math.nan, math.inf, -0.0, 5e-324):
        assert np.float64(decode_value(encode_value(number))).tobytes() == np.float64(number).tobytes()


def test_golden_bytes():
    """Fixed bytes, which clients in other languages send and read."""
    golden = {
        "0801": None,
        "1001": True,
        "1805": -3,
        "21000000000000f83f": 1.5,
        "2a026162": "ab",
    }
    for text, value in golden.items():
        assert encode_value(value).hex() == text
        assert decode_value(bytes.fromhex(text)) == value
    array = np.array([[1, 256]], "<i2")
    assert encode_value(array).hex() == "32110a05696e743136120201021a0401000001"
    assert encode_value([None, (1,)]).hex() == "3a0c0a0208010a0642040a021802"
    assert encode_value({"a": 1, 2: []}).hex() == "4a110a070a01611a0218020a0610041a023a00"


@pytest.mark.parametrize(
    ("value", "error", "said"),
    [
        (object(), TypeError, "the value is object, which is not an array"),
        ({"a": [object()]}, TypeError, "/a/0 is object"),
        ({"a": b"bytes"}, TypeError, "/a is bytes"),
        ({1.5: 1}, TypeError, "keys must be strings or integers"),
        ({True: 1}, TypeError, "keys must be strings or integers"),
        ({"a": 1 << 63}, ValueError, "/a must be an integer of 64 bits"),
        (np.array(["x"]), TypeError, "dtype must be one of"),
        (np.arange(2, dtype=">i4"), TypeError, "dtype must be one of"),
        ({"a": "\ud800"}, ValueError, "/a must be text"),
    ],
)
def test_what_no_message_can_hold_is_refused_with_its_place(value, error, said):
    with pytest.raises(error, match=said):
        encode_value(value)


def test_depth_has_a_limit_that_the_decoder_reaches():
    def nested(levels):
        value = 1
        for _ in range(levels):
            value = {"a": value}
        return value

    assert decode_value(encode_value(nested(DEPTH_LIMIT))) == nested(DEPTH_LIMIT)
    with pytest.raises(ValueError, match="at most 24 levels"):
        encode_value(nested(DEPTH_LIMIT + 1))


def message(**fields):
    return state_pb2.Value(**fields).SerializeToString()


def array_of(dtype="int32", shape=(2,), data=bytes(8)):
    return message(array=state_pb2.ArrayValue(dtype=dtype, shape=shape, data=data))


def entry(**fields):
    return state_pb2.Entry(value=state_pb2.Value(integer=1), **fields)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "a kind that this version knows"),
        (b"\xff", "are not a mixserve.v1.Value"),
        (array_of(dtype="object"), "dtype must be one of"),
        (array_of(shape=(3,)), "cannot have 8 bytes"),
        (array_of(shape=(-1, -2)), "cannot have 8 bytes"),
        (array_of(shape=(1 << 62, 4), data=b""), "cannot have 0 bytes"),
        (message(dict=state_pb2.Entries(entries=[entry(name="a"), entry(name="a")])), "comes twice"),
        (message(dict=state_pb2.Entries(entries=[entry()])), "has no key"),
        (message(list=state_pb2.Values(values=[state_pb2.Value()])), "a kind that this version knows"),
    ],
)
def test_hostile_bytes_are_refused(data, said):
    with pytest.raises(ValueError, match=said):
        decode_value(data)


@given(st.binary(max_size=60))
@settings(deadline=None)
def test_any_bytes_are_a_tree_or_a_value_error(data):
    with suppress(ValueError):
        decode_value(data)
