"""Documents in records: segment ids and positions, and whole documents that are packed into records."""

import pickle
import re
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixserve import TokenSource
from mixserve.sources import is_array_backed
from mixserve.sources.location import locate
from mixserve.sources.packing import pack_best_fit
from tests.forked import in_a_fork
from tests.profiles import examples
from tests.test_cli import run

EOD = 0


def tokens_of(lengths) -> np.ndarray:
    """Documents of these lengths, whose tokens are all different, except the last of each."""
    tokens = np.arange(1, sum(lengths) + 1, dtype=np.uint16)
    tokens[np.cumsum(lengths) - 1] = EOD
    return tokens


def all_of(source, field="tokens") -> np.ndarray:
    return source.take(np.arange(len(source)))[field]


def segments_by_token(row) -> tuple[list[int], list[int]]:
    """Segment ids and positions of a record without padding, token by token."""
    ids, positions = [1], [0]
    for token in row[:-1]:
        ids.append(ids[-1] + (token == EOD))
        positions.append(0 if token == EOD else positions[-1] + 1)
    return ids, positions


@given(st.lists(st.integers(0, 3), min_size=1, max_size=200), st.integers(1, 12), st.integers(0, 11))
@settings(max_examples=examples(100))
def test_segments_of_windows_end_at_the_token(ids, length, overlap):
    length = min(length, len(ids))
    source = TokenSource(ids, sequence_length=length, overlap=overlap % length, segments=True, eod=EOD, field="x")
    plain = TokenSource(ids, sequence_length=length, overlap=overlap % length, field="x")
    records = source.take(np.arange(len(source)))
    assert records["x"].tolist() == all_of(plain, "x").tolist()
    expected = [segments_by_token(row) for row in records["x"].tolist()]
    assert records["x_segment_ids"].tolist() == [row for row, _ in expected]
    assert records["x_positions"].tolist() == [row for _, row in expected]
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in source.element_spec().items()} == {
        name: (array.shape[1:], array.dtype) for name, array in records.items()
    }
    assert records["x_positions"].dtype == np.int32


def best_fit_one_by_one(lengths, room) -> list[list[int]]:
    """The textbook's best fit decreasing; of records that are equally full, the one that got so full first."""
    records, left, since = [], [], []
    for step, piece in enumerate(sorted(range(len(lengths)), key=lambda piece: -lengths[piece])):
        fitting = [record for record in range(len(records)) if left[record] >= lengths[piece]]
        if fitting:
            best = min(fitting, key=lambda record: (left[record], since[record]))
        else:
            best = len(records)
            records.append([])
            left.append(room)
            since.append(0)
        records[best].append(piece)
        left[best] -= lengths[piece]
        since[best] = step
    return [sorted(record) for record in records]


@given(st.integers(1, 30), st.integers(1, 150), st.integers(0, 2**32 - 1))
@settings(max_examples=examples(200))
def test_packing_is_best_fit_decreasing(room, pieces, seed):
    lengths = np.random.default_rng(seed).integers(1, room + 1, pieces)
    order, counts = pack_best_fit(lengths, room)
    packed = [record.tolist() for record in np.split(order, np.cumsum(counts)[:-1])]
    assert packed == best_fit_one_by_one(lengths.tolist(), room)


def test_packing_many_documents_is_fast_and_leaves_little():
    lengths = np.clip(np.random.default_rng(0).lognormal(5.7, 1, 200_000), 1, 2048).astype(np.int64)
    begin = time.process_time()
    order, counts = pack_best_fit(lengths, 2048)
    assert time.process_time() - begin < 2  # 0.05 s on a quiet machine
    filled = np.add.reduceat(lengths[order], np.cumsum(counts) - counts)
    assert (filled <= 2048).all()
    assert filled.mean() > 0.999 * 2048
    assert (np.bincount(order) == 1).all()
    again, _ = pack_best_fit(lengths.astype(np.uint16), 2048)
    assert (order == again).all()


@given(
    st.lists(st.lists(st.integers(1, 25), max_size=8), min_size=1, max_size=4),
    st.integers(1, 12),
    st.sampled_from(["split", "cut"]),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=examples(200))
def test_packed_records_hold_every_document_once(documents, length, long, per_file, is_open):
    tokens = (
        tokens_of([size for of_file in documents for size in of_file]) if any(documents) else np.empty(0, np.uint16)
    )
    if is_open and len(tokens):
        tokens[-1] = 60_000  # the last document has no end
    files = np.split(tokens, np.cumsum([sum(of_file) for of_file in documents])[:-1])
    options = {
        "sequence_length": length,
        "eod": EOD,
        "pack": "best_fit",
        "long": long,
        "pad": 65_535,
        "as_dtype": "int32",
    }
    options |= {"windows": "per_file" if per_file else "joined"}
    if not len(tokens):
        with pytest.raises(ValueError, match="the inputs hold 0 tokens"):
            TokenSource(files, **options)
        return
    source = TokenSource(files, **options)
    records = source.take(np.arange(len(source)))
    pieces, at = [], 0
    for size in (size for of_file in documents for size in of_file):
        steps = range(0, size, length) if long == "split" else (0,)
        pieces += [tokens[at + step : at + min(size, step + length)].tolist() for step in steps]
        at += size
    found = []
    for row, ids, positions in zip(
        *(records[name].tolist() for name in ("tokens", "tokens_segment_ids", "tokens_positions")), strict=True
    ):
        used = len([number for number in ids if number])
        assert ids == sorted(ids[:used]) + [0] * (length - used)
        assert row[used:] == [65_535] * (length - used)
        assert positions[used:] == [0] * (length - used)
        assert sorted({*ids[:used]}) == list(range(1, max(ids) + 1))
        here = [[row[i] for i in range(used) if ids[i] == number] for number in range(1, max(ids) + 1)]
        assert positions[:used] == [place for piece in here for place in range(len(piece))]
        found += here
    assert sorted(found) == sorted(pieces)
    if per_file:
        ones = [TokenSource(file, **options) for file in files if len(file)]
        assert records["tokens"].tolist() == np.concatenate([all_of(one) for one in ones]).tolist()
    for record in range(len(source)):
        number, token = map(int, re.fullmatch(r"input (\d+), token (\d+)", locate(source, record)).groups())
        assert files[number][token] == records["tokens"][record, 0]
    picked = np.array([len(source) - 1, 0, len(source) - 1])
    for name, array in source.take(picked).items():
        assert array.tolist() == records[name][picked].tolist()


def test_files_are_packed_for_themselves(tmp_path):
    for name, lengths in (("a", [4, 6]), ("b", [6, 4, 3])):
        tokens_of(lengths).tofile(tmp_path / name)
    options = {"sequence_length": 10, "dtype": "uint16", "eod": EOD, "pack": "best_fit"}
    together = TokenSource([tmp_path / "a", tmp_path / "b"], **options)
    apart = TokenSource([tmp_path / "a", tmp_path / "b"], windows="per_file", **options)
    ones = [TokenSource(tmp_path / name, **options) for name in "ab"]
    assert all_of(apart).tolist() == [*all_of(ones[0]).tolist(), *all_of(ones[1]).tolist()]
    assert [locate(apart, record) for record in (0, 1)] == [f"{tmp_path}/a, token 0", f"{tmp_path}/b, token 0"]
    assert all_of(together)[0].tolist() == [1, 2, 3, 0, 5, 6, 7, 8, 9, 0]
    assert [file.path.name for file in together.files()] == ["a", "b"]
    together.prefetch(np.arange(len(together)))
    assert not is_array_backed(together)


def test_segments_may_be_left_out_of_packed_records():
    source = TokenSource(tokens_of([3, 4]), sequence_length=8, eod=EOD, pack="best_fit", segments=False, pad=9)
    assert list(source.element_spec()) == list(source.take(np.array([0]))) == ["tokens"]
    assert all_of(source).tolist() == [[1, 2, 0, 4, 5, 6, 0, 9]]
    assert repr(source) == "TokenSource(tokens: uint16[8], length=1)"
    with_segments = TokenSource(tokens_of([3, 4]), sequence_length=8, eod=EOD, pack="best_fit")
    assert repr(with_segments) == "TokenSource(tokens: uint16[8], length=1, with segments)"


def test_the_digest_sees_every_option_that_changes_records():
    tokens = [tokens_of([3, 30, 4]), tokens_of([5, 1])]
    ways = [{}, {"segments": True}, {"segments": True, "eod": 1}, {"overlap": 1, "segments": True}]
    packed = {"pack": "best_fit"}
    ways += [packed, packed | {"pad": 1}, packed | {"long": "cut"}, packed | {"windows": "per_file"}]
    ways += [packed | {"segments": False}, packed | {"eod": 1}, packed | {"sequence_length": 9}]
    sources = [TokenSource(tokens, **{"sequence_length": 10, "eod": EOD} | way) for way in ways]
    assert len({source.content_digest() for source in sources}) == len(ways)
    # What is not used changes nothing.
    assert sources[0].content_digest() == TokenSource(tokens, sequence_length=10).content_digest()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning", "ignore:.*fork:RuntimeWarning")
@pytest.mark.parametrize("options", [{"segments": True}, {"pack": "best_fit"}])
def test_forks_and_pickles_give_the_same_records(tmp_path, options):
    tokens_of([7] * 500).tofile(tmp_path / "a")
    source = TokenSource(tmp_path / "a", sequence_length=20, dtype="uint16", eod=EOD, **options)
    expected = {name: array.tolist() for name, array in source.take(np.arange(len(source))).items()}

    def read(from_):
        return {name: array.tolist() for name, array in from_.take(np.arange(len(source))).items()}

    assert in_a_fork(lambda: read(source) == expected) == "True"
    copy = pickle.loads(pickle.dumps(source))
    assert read(copy) == expected
    assert copy.content_digest() == source.content_digest()
    assert not is_array_backed(copy)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"segments": True}, "segments and pack need eod, the id of the token at the end of documents"),
        ({"pack": "best_fit"}, "segments and pack need eod"),
        ({"pack": "first_fit", "eod": 0}, "pack must be one of 'best_fit', got 'first_fit'"),
        ({"pack": "best_fit", "eod": 0, "long": "drop"}, "long must be one of 'split', 'cut', 'refuse', got 'drop'"),
        ({"pack": "best_fit", "eod": 0, "overlap": 1}, "overlap must be 0 if documents are packed, got 1"),
        ({"pack": "best_fit", "eod": 0, "pad": 70_000}, "pad must be an id of uint16, got 70000"),
        ({"pack": "best_fit", "eod": -1}, "eod must be an id of uint16, got -1"),
        ({"pad": 1}, "long and pad are for packed documents; say pack='best_fit' too"),
        ({"long": "cut"}, "long and pad are for packed documents"),
        ({"eod": "x"}, "eod must be an integer, got 'x'"),
        ({"eod": 0, "segments": "yes"}, "segments must be True or False, got 'yes'"),
        (
            {"pack": "best_fit", "eod": 0, "long": "refuse"},
            "the document at input 1, token 3, has 11 tokens, more than sequence_length 10: say long: split or cut",
        ),
    ],
)
def test_options_are_checked(options, said):
    with pytest.raises(ValueError, match=said):
        TokenSource([tokens_of([10, 2]), tokens_of([3, 11, 20])], **{"sequence_length": 10} | options)


def test_the_largest_id_of_packed_documents_names_its_place():
    tokens = [tokens_of([5, 5]), tokens_of([12])]
    options = {"sequence_length": 10, "eod": EOD, "pack": "best_fit"}
    assert TokenSource(tokens, **options).largest_id() == 11
    with pytest.raises(ValueError, match=r"in \[0, 11\), got 11 \(input 1, token 10\)"):
        TokenSource(tokens, **options, vocab_size=11)


def test_check_shows_the_fields_of_packed_records(tmp_path):
    tokens_of([3, 30, 4]).tofile(tmp_path / "a.bin")
    source = "{kind: tokens, path: a.bin, dtype: uint16, sequence_length: 8, eod: 0, pack: best_fit, pad: 9, weight: 1}"
    (tmp_path / "mixture.yaml").write_text(f"mixtures: {{train: {{sources: {{one: {source}}}}}}}")
    code, shown = run("check", tmp_path / "mixture.yaml")
    assert code == 0
    for field in ("tokens: uint16[8]", "tokens_segment_ids: int32[8]", "tokens_positions: int32[8]"):
        assert field in shown
    (tmp_path / "mixture.yaml").write_text(
        f"mixtures: {{train: {{sources: {{one: {source}}}}}}}".replace("eod: 0, ", "")
    )
    code, shown = run("check", tmp_path / "mixture.yaml")
    assert code == 2
    assert "sources.one: segments and pack need eod" in shown
