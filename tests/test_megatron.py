"""Data sets of Megatron-LM: read as their documented layout says, in both orders, and refused if damaged."""

import os
import pickle
import struct
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixserve import MegatronSource
from mixserve.sources import is_array_backed
from mixserve.sources.location import locate
from tests.forked import in_a_fork
from tests.profiles import examples
from tests.test_cli import run

CODES = {1: "u1", 2: "i1", 3: "i2", 4: "i4", 5: "i8", 6: "f8", 7: "f4", 8: "u2"}
EOD = 99
LENGTHS = (5, 1, 0, 17, 3, 30, 8)


def sequences_of(lengths=LENGTHS, dtype="u2", seed=0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    made = [rng.integers(0, 90, length).astype(dtype) for length in lengths]
    for sequence in made:
        sequence[-1:] = EOD
    return made


def write(prefix, sequences, *, documents=None, pointers=None, modes=b"", code=None, version=1, magic=b"MMIDIDX\0\0"):
    """A data set as `preprocess_data.py` writes it; `documents` are numbers of sequences, and lie one after another."""
    dtype = sequences[0].dtype
    Path(f"{prefix}.bin").write_bytes(b"".join(sequence.tobytes() for sequence in sequences))
    lengths = [len(sequence) for sequence in sequences]
    starts = np.cumsum([0, *lengths])[:-1] * dtype.itemsize if pointers is None else pointers
    ends = np.cumsum([0, *([1] * len(sequences) if documents is None else documents)])
    code = next(number for number, name in CODES.items() if np.dtype(name) == dtype) if code is None else code
    index = magic + struct.pack("<QBQQ", version, code, len(sequences), len(ends))
    index += np.array(lengths, "<i4").tobytes() + np.array(starts, "<i8").tobytes() + np.array(ends, "<i8").tobytes()
    Path(f"{prefix}.idx").write_bytes(index + modes)
    return prefix


def windows(sequences, length, stride) -> list[list]:
    flat = np.concatenate(sequences)
    return [flat[at : at + length].tolist() for at in range(0, len(flat) - length + 1, stride)]


def all_of(source, field="tokens") -> list:
    return source.take(np.arange(len(source)))[field].tolist()


@pytest.mark.parametrize("code", CODES)
def test_every_dtype_of_the_layout_is_read(tmp_path, code):
    sequences = sequences_of(dtype=CODES[code])
    write(tmp_path / "x_text_document", sequences)
    source = MegatronSource(tmp_path / "x_text_document", sequence_length=9, overlap=1)
    assert source.element_spec()["tokens"].dtype == np.dtype(CODES[code])
    assert all_of(source) == windows(sequences, 9, 8)
    assert is_array_backed(source)
    assert np.concatenate([block["tokens"] for block in source.blocks()]).tolist() == all_of(source)
    assert locate(source, 3) == f"{tmp_path}/x_text_document.bin, token 24"
    shuffled = MegatronSource(
        str(tmp_path / "x_text_document.idx"), sequence_length=9, order={"seed": 1}, segments=True
    )
    assert len(shuffled) == len(MegatronSource(tmp_path / "x_text_document", sequence_length=9))


def samples_of_megatron(sequences, length, seed) -> list[list[int]]:
    """The samples of `GPTDataset` for one epoch, before it shuffles them: `length` tokens and the next one."""
    order = np.arange(len(sequences), dtype=np.int32)
    np.random.RandomState(seed).shuffle(order)
    samples, document, offset = [], 0, 0
    for _ in range((sum(map(len, sequences)) - 1) // length):
        sample, rest = [], length + 1
        while True:
            here = sequences[order[document]][offset:][:rest].tolist()
            sample += here
            rest -= len(here)
            if rest == 0:
                offset += len(here) - 1  # the last token is the first of the next sample
                break
            document, offset = document + 1, 0
        samples.append(sample)
    return samples


@given(st.lists(st.integers(0, 30), min_size=1, max_size=12), st.integers(1, 9), st.integers(0, 2**32 - 1))
@settings(max_examples=examples(100))
def test_the_samples_of_an_epoch_are_megatrons(tmp_path_factory, lengths, length, seed):
    sequences = sequences_of(lengths)
    expected = samples_of_megatron(sequences, length, seed)
    prefix = write(tmp_path_factory.mktemp("x") / "x", sequences)
    options = {"sequence_length": length + 1, "overlap": 1, "order": {"seed": seed}}
    if not expected:
        with pytest.raises(ValueError, match="less than one window"):
            MegatronSource(prefix, **options)
        return
    source = MegatronSource(prefix, **options, as_dtype="int64")
    assert all_of(source) == expected
    picked = np.random.default_rng(seed).integers(0, len(source), 5)
    assert source.take(picked)["tokens"].tolist() == [expected[record] for record in picked]
    assert not is_array_backed(source)


def segments_of(lengths: list[int], length: int, stride: int) -> tuple[list, list]:
    """Segment ids and positions of windows over documents of these lengths, token by token."""
    document = [number for number, size in enumerate(lengths) for _ in range(size)]
    ids, positions = [], []
    for at in range(0, len(document) - length + 1, stride):
        ids.append([1])
        positions.append([0])
        for token in range(at + 1, at + length):
            is_new = document[token] != document[token - 1]
            ids[-1].append(ids[-1][-1] + is_new)
            positions[-1].append(0 if is_new else positions[-1][-1] + 1)
    return ids, positions


@pytest.mark.parametrize("overlap", [0, 1, 5])
@pytest.mark.parametrize("documents", [None, [2, 1, 0, 4]])
def test_segments_are_the_documents_of_the_index(tmp_path, overlap, documents):
    sequences = sequences_of()
    prefix = write(tmp_path / "x", sequences, documents=documents)
    source = MegatronSource(prefix, sequence_length=10, overlap=overlap, segments=True, field="ids")
    lengths = [5 + 1, 0, 0, 17 + 3 + 30 + 8] if documents else LENGTHS
    assert all_of(source, "ids") == windows(sequences, 10, 10 - overlap)
    expected = segments_of(lengths, 10, 10 - overlap)
    assert (all_of(source, "ids_segment_ids"), all_of(source, "ids_positions")) == expected
    spec = source.element_spec()
    assert list(spec) == ["ids", "ids_segment_ids", "ids_positions"]
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in spec.items()} == {
        name: (array.shape[1:], array.dtype) for name, array in source.take(np.array([0])).items()
    }


def test_segments_end_at_the_token_that_is_named_and_in_shuffled_order(tmp_path):
    sequences = sequences_of()
    sequences[3][4] = EOD
    sequences[4][-1] = 1
    prefix = write(tmp_path / "x", sequences)
    source = MegatronSource(prefix, sequence_length=10, segments=True, eod=EOD)
    by_eod = np.diff([0, *(np.flatnonzero(np.concatenate(sequences) == EOD) + 1)]).tolist()
    assert (all_of(source, "tokens_segment_ids"), all_of(source, "tokens_positions")) == segments_of(by_eod, 10, 10)
    order = np.random.RandomState(3).permutation(len(sequences))
    source = MegatronSource(prefix, sequence_length=10, segments=True, order={"seed": 3})
    shuffled = [LENGTHS[number] for number in order]
    assert (all_of(source, "tokens_segment_ids"), all_of(source, "tokens_positions")) == segments_of(shuffled, 10, 10)
    by_eod = MegatronSource(prefix, sequence_length=10, segments=True, order={"seed": 3}, eod=EOD)
    assert all_of(by_eod) == all_of(source)
    assert all_of(by_eod, "tokens_segment_ids") != all_of(source, "tokens_segment_ids")


def test_sequences_that_lie_anywhere_are_read_in_their_order(tmp_path):
    sequences = sequences_of()
    starts = np.cumsum([0, *LENGTHS])[:-1] * 2
    order = [3, 0, 6, 5, 1, 2, 4]
    write(tmp_path / "x", sequences)
    index = (tmp_path / "x.idx").read_bytes()
    write(tmp_path / "y", [sequences[number] for number in order], pointers=[starts[number] for number in order])
    (tmp_path / "y.bin").write_bytes((tmp_path / "x.bin").read_bytes())
    source = MegatronSource(tmp_path / "y", sequence_length=10, overlap=1)
    assert all_of(source) == windows([sequences[number] for number in order], 10, 9)
    assert not is_array_backed(source)
    assert locate(source, 0) == f"{tmp_path}/y.bin, token {sum(LENGTHS[:3])}"
    assert [file.path.name for file in source.files()] == ["y.bin"]
    source.prefetch(np.array([0, 1]))
    source = MegatronSource(tmp_path / "y", sequence_length=10, segments=True)
    assert all_of(source, "tokens_segment_ids") == segments_of([LENGTHS[number] for number in order], 10, 10)[0]
    assert index == (tmp_path / "x.idx").read_bytes()


@pytest.mark.parametrize("options", [{}, {"order": {"seed": 5}}, {"segments": True}])
def test_records_do_not_go_from_one_data_set_to_the_next(tmp_path, options):
    names = ["a", "b", "c"]
    for number, lengths in enumerate((LENGTHS, (3,), (11, 20))):
        write(tmp_path / names[number], sequences_of(lengths, seed=number))
    one = [MegatronSource(tmp_path / name, sequence_length=10, **options) for name in ("a", "c")]
    source = MegatronSource([tmp_path / name for name in names], sequence_length=10, **options)
    for field in source.element_spec():
        assert all_of(source, field) == [*all_of(one[0], field), *all_of(one[1], field)]
    assert locate(source, len(one[0])).startswith(f"{tmp_path}/c.bin, token ")
    assert source.largest_id(full=True) == EOD


def test_the_digest_sees_content_and_options_but_no_paths(tmp_path):
    sequences = sequences_of()
    prefix = write(tmp_path / "x", sequences)

    def digest(at=prefix, **options):
        return MegatronSource(at, **{"sequence_length": 10} | options).content_digest()

    moved = tmp_path / "moved"
    moved.mkdir()
    assert digest(write(moved / "y", sequences)) == digest()
    other = [*sequences[:-1], sequences[-1] - 1]
    digests = [
        *(digest(**options) for options in ({}, {"overlap": 1}, {"segments": True}, {"segments": True, "eod": EOD})),
        *(digest(order={"seed": seed}) for seed in (0, 1)),
        digest(write(tmp_path / "other", other)),
        digest(write(tmp_path / "documents", sequences, documents=[7]), segments=True),
        digest([prefix, prefix]),
    ]
    assert len(set(digests)) == 9


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning", "ignore:.*fork:RuntimeWarning")
@pytest.mark.parametrize("options", [{}, {"order": {"seed": 5}, "segments": True}])
def test_threads_and_forks_and_pickles_give_the_same_records(tmp_path, options):
    source = MegatronSource(write(tmp_path / "x", sequences_of((40,) * 200)), sequence_length=50, overlap=1, **options)
    expected, wrong = all_of(source), []

    def read(seed):
        rng = np.random.default_rng(seed)
        for _ in range(50):
            ids = rng.integers(0, len(source), 32)
            wrong.extend([] if source.take(ids)["tokens"].tolist() == [expected[r] for r in ids] else [seed])

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert in_a_fork(lambda: all_of(source) == expected) == "True"
    copy = pickle.loads(pickle.dumps(source))
    assert all_of(copy) == expected
    assert copy.content_digest() == source.content_digest()
    assert is_array_backed(copy) == is_array_backed(source) == (not options)


HEAD = 34
INDEX = HEAD + 12 * len(LENGTHS) + 8 * (len(LENGTHS) + 1)


def patch(name, at, new):
    def change(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:at] + new + content[at + len(new) :])

    return change


def cut(name, size):
    return lambda folder: os.truncate(folder / name, size)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut("x.idx", 0), r"x.idx is no index of Megatron: it begins with b''"),
        (cut("x.idx", 20), r"x.idx was cut: it has 20 bytes, and the head alone has 34"),
        (cut("x.idx", INDEX - 1), rf"x.idx was cut or is garbled: 7 sequences and 8 entries .* make {INDEX} bytes"),
        (cut("x.bin", 126), r"x.bin has 126 bytes, and .*x.idx describes 128: one of them was cut"),
        (cut("x.bin", 130), r"x.bin has 130 bytes, and .*x.idx describes 128"),
        (cut("x.bin", 0), r"x.bin has 0 bytes, and .*x.idx describes 128"),
        (patch("x.idx", 0, b"PK"), r"x.idx is no index of Megatron: it begins with b'PKIDIDX"),
        (patch("x.idx", 0, b"TNTIDX\0\0\0"), "x.idx is an index of Megatron's old format"),
        (patch("x.idx", 9, b"\2"), "x.idx must have the version 1 and a dtype in 1..8, got 2 and 8"),
        (patch("x.idx", 17, b"\x09"), "x.idx must have the version 1 and a dtype in 1..8, got 1 and 9"),
        (patch("x.idx", 17, b"\5"), "x.idx is garbled: its sequence 1 has 1 tokens of int64 from byte 10 on"),
        (patch("x.idx", 18, b"\xff" * 8), "x.idx was cut or is garbled: 18,446,744,073,709,551,615 sequences"),
        (patch("x.idx", HEAD, b"\xff" * 4), "x.idx is garbled: its sequence 0 has -1 tokens of uint16 from byte 0 on"),
        (patch("x.idx", HEAD, b"\xff\xff\xff\x7f"), "x.bin has 128 bytes, and .*x.idx describes 4,294,967,294"),
        (patch("x.idx", HEAD + 28, b"\xff" * 8), "its sequence 0 has 5 tokens of uint16 from byte -1 on"),
        (patch("x.idx", HEAD + 28, b"\xff" * 7 + b"\x7f"), "its sequence 0 has 5 tokens of uint16 from byte 9,223"),
        (patch("x.idx", HEAD + 84, b"\x09"), r"x.idx is garbled: its documents begin at \[9, 1, 2"),
        (patch("x.idx", INDEX - 8, b"\x08"), "x.idx is garbled: its documents begin at .* of 7 sequences"),
        (lambda folder: write(folder / "x", sequences_of(), modes=bytes(7)), "x.idx has modes of sequences"),
        (lambda folder: (folder / "x.idx").unlink(), "x.idx"),
        (lambda folder: (folder / "x.bin").unlink(), "x.bin"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("options", [{}, {"segments": True}])
def test_damaged_data_sets_are_refused(tmp_path, damage, said, options):
    write(tmp_path / "x", sequences_of())
    damage(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        MegatronSource(tmp_path / "x", sequence_length=10, **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"overlap": 10}, r"overlap must be an integer in 0\.\.9, got 10"),
        ({"order": {"seed": -1}}, r"order.seed must be an integer in 0\.\.4294967295, got -1"),
        ({"order": {"epochs": 2}}, r"order must be \{'seed': N\} or nothing, got \{'epochs': 2\}"),
        ({"order": 7}, "order must be .* got 7"),
        ({"segments": "no"}, "segments must be True or False, got 'no'"),
        ({"eod": 70_000}, "eod must be an id of uint16, got 70000"),
        ({"eod": 200, "vocab_size": 100}, r"eod must be an id below vocab_size \(100\), got 200"),
        ({"vocab_size": 99}, r"vocab_size: ids must be in \[0, 99\), got 99 \(.*x.bin, token 0 and 4 tokens on\)"),
        ({"vocab_size": 99, "order": {"seed": 1}}, r"got 99 \(.*x.bin, token 4\)"),
        ({"as_dtype": "uint8"}, "tokens of dtype uint16 do not all fit into uint8"),
        ({"sequence_length": 65}, "the inputs hold 64 tokens, less than one window of 65"),
        ({"sequence_length": 65, "segments": True}, "the inputs hold 64 tokens, less than one window of 65"),
    ],
)
def test_options_are_checked(tmp_path, options, said):
    write(tmp_path / "x", sequences_of())
    with pytest.raises(ValueError, match=said):
        MegatronSource(tmp_path / "x", **{"sequence_length": 10} | options)


def test_data_sets_of_other_dtypes_and_other_things_are_refused(tmp_path):
    write(tmp_path / "x", sequences_of())
    write(tmp_path / "y", sequences_of(dtype="i4"))
    with pytest.raises(
        ValueError, match=r"all data sets of a MegatronSource must store the same dtype, got .*'int32', 'u"
    ):
        MegatronSource([tmp_path / "x", tmp_path / "y"], sequence_length=10)
    for given_, said in (([], r"got \[\]"), (3, "got 3"), ([3], r"got \[3\]")):
        with pytest.raises(TypeError, match=f"needs a path without .bin and .idx, or several, {said}"):
            MegatronSource(given_, sequence_length=10)


def test_check_finds_the_data_sets_of_patterns(tmp_path):
    for name in ("a_text_document", "b_text_document"):
        write(tmp_path / name, sequences_of())
    text = "mixtures: {{train: {{sources: {{one: {{kind: megatron, path: {}, sequence_length: 9, weight: 1{}}}}}}}}}"
    file = tmp_path / "mixture.yaml"
    for path in ("'*_text_document'", "[a_text_document, b_text_document.bin]"):
        file.write_text(text.format(path, ", overlap: 1, segments: true, order: {seed: 3}, as: int32"))
        code, shown = run("check", file)
        assert code == 0
        assert "tokens_segment_ids: int32[9]" in shown
        assert "14 records" in shown or "14" in shown
    file.write_text(text.format("c_*", ""))
    assert "no file matches 'c_*.idx'" in run("check", file)[1]
    file.write_text(text.format("a_text_document", ", order: {seed: 5_000_000_000}"))
    assert "order.seed" in run("check", file)[1]
