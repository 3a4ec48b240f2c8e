"""Leaves' names rebuild the records that they came from."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixserve_client.schema.tree import flatten, unflatten

leaves = st.integers()
records = st.recursive(
    leaves,
    lambda children: st.one_of(
        st.dictionaries(st.text(min_size=1, max_size=5), children, min_size=1, max_size=4),
        st.lists(children, min_size=1, max_size=12),
        st.lists(children, min_size=1, max_size=4).map(tuple),
    ),
    max_leaves=30,
)


@given(records)
def test_records_come_back(record):
    flat = flatten(record)
    assert list(flat) == sorted(flat)
    assert unflatten(flat) == record


def test_names():
    record = {"image": {"pixels": 1, "a/b~c": 2}, "pair": (3, [4])}
    assert flatten(record) == {"image/a~1b~0c": 2, "image/pixels": 1, "pair/~t0": 3, "pair/~t1/~l0": 4}
    assert flatten({"x": 1}) == {"x": 1}


@pytest.mark.parametrize("record", [{}, (), {"x": {}}, {"x": [1, []]}])
def test_empty_containers_have_no_name(record):
    with pytest.raises(ValueError, match="empty containers"):
        flatten(record)


@pytest.mark.parametrize("record", [{1: 2}, {"": 1}, {("a",): 1}])
def test_other_keys_have_no_name(record):
    with pytest.raises(TypeError, match="non-empty strings"):
        flatten(record)


@pytest.mark.parametrize("names", [["a", "a/b"], ["a/b", "a"], ["~t0", "b"], ["~t1"], ["~t0", "~l1"], ["~t0", "~tx"]])
def test_names_of_no_record(names):
    with pytest.raises(ValueError, match=r"leaf|container"):
        unflatten(dict.fromkeys(names, 1))
