"""Data sets of save_to_disk: rows are those that pyarrow reads, and what is damaged or cannot be served is refused."""

import json
import pickle
import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from mixserve import FieldSpec, HfSource
from mixserve.cli.main import app
from mixserve.error_boundary import WrongRecord
from mixserve.sources.arrow import layout_of, piece_of
from mixserve.sources.column import Column, Rows
from mixserve.sources.fields import serve_fields
from mixserve.sources.memory import Memory
from mixserve.sources.open_file import file_of
from tests.arrow_files import RNG, batches_of, expected, ragged, same, save_to_disk, values
from tests.forked import in_a_fork

GOLDEN = Path(__file__).parent / "golden" / "hf"
NUMBERS = [pa.type_for_alias(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)]
FLOATS = [pa.float16(), pa.float32(), pa.float64()]
ROWS = 23


def test_it_reads_what_datasets_wrote():
    fields = [
        FieldSpec("tokens", "input_ids", length=3, pad=-1, lengths="n"),
        FieldSpec("text", "text", length=6),
        *(FieldSpec(name, name) for name in ("label", "pair", "flag")),
    ]
    source = HfSource(GOLDEN / "whole", fields)
    taken = source.take(np.array([3, 0, 2, 1]))
    assert taken["tokens"].tolist() == [[5, 6, -1], [1, 2, 3], [-1, -1, -1], [4, -1, -1]]
    assert taken["n"].tolist() == [2, 3, 0, 1]
    assert [row.tobytes().rstrip(b"\0").decode() for row in taken["text"]] == ["naïve", "a", "", "bb"]
    assert taken["pair"].tolist() == [[7, 8], [1, 2], [5, 6], [3, 4]]
    assert taken["flag"].tolist() == [True, True, True, False]
    assert taken["label"].tolist() == [1, 0, 0, 1]
    assert {name: (spec.shape, spec.dtype) for name, spec in source.element_spec().items()} == {
        name: (leaf.shape[1:], leaf.dtype) for name, leaf in taken.items()
    }
    assert source.locate(3) == f"{GOLDEN / 'whole/data-00001-of-00002.arrow'}, row 1"
    with pytest.raises(IndexError, match=r"0\.\.3, got -1"):
        source.take(np.array([-1]))


def test_a_data_set_that_was_filtered_has_fewer_rows_than_its_info_says():
    info = json.loads((GOLDEN / "filtered/dataset_info.json").read_text())
    assert info["splits"]["train"]["num_examples"] == 4
    assert len(HfSource(GOLDEN / "filtered")) == 2


def test_several_folders_follow_one_another():
    assert len(HfSource([GOLDEN / "whole", GOLDEN / "filtered"])) == 6
    assert HfSource([GOLDEN / "filtered", GOLDEN / "whole"]).take(np.arange(6))["label"].tolist() == [1, 1, 0, 1, 0, 1]


KINDS = [*NUMBERS, *FLOATS, pa.bool_(), pa.binary(5)]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_type_comes_out_as_it_is_stored(tmp_path, kind):
    table = pa.table(
        {
            "one": values(kind, ROWS),
            "pair": pa.FixedSizeListArray.from_arrays(values(kind, ROWS * 2), 2),
            "grid": pa.FixedSizeListArray.from_arrays(
                pa.FixedSizeListArray.from_arrays(values(kind, ROWS * 66), 33), 2
            ),
            "many": ragged(kind, ROWS),
            "large": ragged(kind, ROWS).cast(pa.large_list(kind)),
            "pairs": ragged(pa.list_(kind, 2), ROWS),
        }
    )
    whole = batches_of(table, 7)
    source = HfSource(
        save_to_disk(tmp_path / "a", [whole[:3], whole[3:]]),
        [FieldSpec(name, name) for name in ("one", "pair", "grid")]
        + [FieldSpec(name, name, length=5, lengths=f"{name}_n") for name in ("many", "large", "pairs")],
    )
    ids = RNG.permutation(ROWS)
    taken = source.take(ids)
    for name in table.column_names:
        rows = expected(table[name], taken[name].dtype)
        for place, record_id in enumerate(ids):
            row = rows[record_id]
            if f"{name}_n" in taken:
                count = taken[f"{name}_n"][place]
                assert count == len(row)
                assert not taken[name][place, count:].view(np.uint8).any()
                row = row.reshape(-1, *taken[name].shape[2:])
                assert same(taken[name][place, :count], row)
            else:
                assert same(taken[name][place], row)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.large_binary()], ids=str)
def test_texts_and_bytes_are_ragged_bytes(tmp_path, kind):
    rows = ["", "naïve", "b"] * 4 if "string" in str(kind) else [b"", b"\0\xff", b"b"] * 4
    table = pa.table({"x": pa.array(rows, kind)})
    source = HfSource(
        save_to_disk(tmp_path / "a", [batches_of(table, 5)]), [FieldSpec("x", "x", length=7, lengths="n")]
    )
    taken = source.take(np.arange(12))
    for row, wanted in enumerate(expected(table["x"], np.dtype(np.uint8))):
        assert taken["x"][row, : taken["n"][row]].tobytes() == wanted.tobytes()


def test_dictionaries_of_strings_are_served_as_codes(tmp_path):
    batches = [
        pa.record_batch({"x": pa.DictionaryArray.from_arrays(pa.array(codes, pa.int8()), ["a", "b"])})
        for codes in ([1, 0], [0, 1, 1])
    ]
    folder = save_to_disk(tmp_path / "a", [batches])
    source = HfSource(folder)
    assert source.take(np.arange(5))["x"].tolist() == [1, 0, 0, 1, 1]
    assert source.take(np.arange(5))["x"].dtype == source.element_spec()["x"].dtype == np.int32
    assert source.dictionaries == {"x": ["a", "b"]}
    other = pa.record_batch({"x": pa.DictionaryArray.from_arrays(pa.array([0], pa.int8()), ["b", "a"])})
    with pytest.raises(ValueError, match="'x' has codes of several dictionaries"):
        HfSource([folder, save_to_disk(tmp_path / "b", [[other]])])
    with pytest.raises(ValueError, match="'x' has codes of several dictionaries"):
        HfSource(save_to_disk(tmp_path / "c", [[*batches, other]]))
    same_codes = save_to_disk(tmp_path / "d", [[batches[0].set_column(0, "x", batches[0]["x"])]])
    swapped = pa.record_batch({"x": pa.DictionaryArray.from_arrays(pa.array([1, 0], pa.int8()), ["b", "a"])})
    assert HfSource(same_codes).content_digest() != HfSource(save_to_disk(tmp_path / "e", [[swapped]])).content_digest()


def column_of(array: pa.Array, *, nulls: bool = False) -> Column:
    """The column of an array in memory, which may be a slice."""
    stored = array.indices if pa.types.is_dictionary(array.type) else array
    buffers = [buffer for buffer in stored.buffers() if buffer is not None and buffer.size]
    memory = Memory([np.frombuffer(buffer, np.uint8) for buffer in buffers])
    return Column(layout_of(array.type), [piece_of(array, nulls=nulls)], memory)


def in_memory(array: pa.Array, spec: FieldSpec) -> dict[str, np.ndarray]:
    """The served field of all rows of an array in memory."""
    column = column_of(array, nulls=spec.null is not None)
    (served,) = serve_fields({"x": column.layout.stored}, [spec])
    ids = np.arange(len(array))
    return column.take(served, Rows(np.zeros_like(ids), ids, ids))


@given(st.data())
def test_any_slice_of_any_nesting_is_read_as_pyarrow_reads_it(data):
    kind = data.draw(st.sampled_from([pa.int16(), pa.bool_(), pa.float64(), pa.binary(3)]))
    inner = data.draw(st.sampled_from([(), (2,), (3, 2)]))
    is_ragged = data.draw(st.booleans())
    rows, cut = data.draw(st.integers(0, 12)), data.draw(st.integers(0, 3))
    items = (int(RNG.integers(0, 4, rows + cut).sum()) if is_ragged else rows + cut) + cut
    array = values(kind, items * int(np.prod(inner)) + cut)[cut:]
    for size in reversed(inner):
        array = pa.FixedSizeListArray.from_arrays(array, size)
    array = array[cut:]
    if is_ragged:
        ends = np.sort(RNG.integers(0, len(array) + 1, rows + cut + 1))
        array = pa.ListArray.from_arrays(pa.array(ends, pa.int32()), array)
    array = array[cut:]
    length = data.draw(st.integers(1, 5)) if is_ragged else None
    spec = FieldSpec("x", "x", length=length, long="cut", lengths="n" if is_ragged else None, pad=1)
    taken = in_memory(array, spec)
    if is_ragged:
        joined, counts = column_of(array).join(None)
        wanted = expected(array, taken["x"].dtype)
        assert counts.tolist() == [row.size for row in wanted]
        assert same(joined, np.concatenate([row.reshape(-1) for row in wanted] or [joined]))
    for got, count, wanted in zip(
        taken["x"], taken.get("n", range(len(array))), expected(array, taken["x"].dtype), strict=True
    ):
        if not is_ragged:
            assert same(got, wanted.reshape(got.shape))
            continue
        wanted = wanted.reshape(-1, *got.shape[1:])
        assert count == min(len(wanted), length)
        assert same(got[:count], wanted[:count])
        assert (got[count:] == 1).all()


@given(st.data())
def test_null_values_become_the_value_given_for_them(data):
    flat = st.lists(st.none() | st.integers(0, 9), max_size=20)
    kind = data.draw(st.sampled_from([pa.int8(), pa.list_(pa.int8(), 2), pa.list_(pa.int8()), pa.string()]))
    if kind == pa.int8():
        rows = data.draw(flat)
        wanted = [7 if row is None else row for row in rows]
    elif kind == pa.string():
        rows = data.draw(st.lists(st.none() | st.text("ab", max_size=2), max_size=20))
        wanted = [[*(row or "").encode(), 0, 0][:2] for row in rows]
    else:
        size = (2, 2) if kind == pa.list_(pa.int8(), 2) else (0, 2)
        items = st.lists(st.none() | st.integers(0, 9), min_size=size[0], max_size=size[1])
        rows = data.draw(st.lists(st.none() | items, max_size=20))
        empty = [7, 7] if size[0] else []
        wanted = [[*(7 if v is None else v for v in (empty if row is None else row)), 0, 0][:2] for row in rows]
    cut = data.draw(st.integers(0, 3))
    is_ragged = kind in (pa.list_(pa.int8()), pa.string())
    taken = in_memory(pa.array(rows, kind)[cut:], FieldSpec("x", "x", length=2 if is_ragged else None, null=7))
    assert taken["x"].tolist() == wanted[cut:]
    if is_ragged:
        joined, counts = column_of(pa.array(rows, kind)[cut:], nulls=True).join(7)
        parts = np.split(joined, np.cumsum(counts)[:-1]) if len(counts) else []
        assert [[*part.tolist(), 0, 0][:2] for part in parts] == wanted[cut:]


@pytest.mark.parametrize(
    ("kind", "rows", "row"),
    [
        (pa.int32(), [1, 2, 3, None], 3),
        (pa.bool_(), [True, None, True, True], 1),
        (pa.list_(pa.int32()), [[1], [2], None, []], 2),
        (pa.list_(pa.int32()), [[1], [2], [3], [4, None]], 3),
        (pa.list_(pa.float32(), 2), [[1, 2], [1, 2], [None, 1], [1, 2]], 2),
        (pa.list_(pa.list_(pa.int8(), 1), 1), [[[1]], [[1]], [[1]], [None]], 3),
        (pa.string(), ["a", "b", None, ""], 2),
    ],
    ids=str,
)
def test_nulls_are_refused_with_file_field_and_row(tmp_path, kind, rows, row):
    batches = batches_of(pa.table({"x": pa.array(rows, kind)}), 2)
    folder = save_to_disk(tmp_path / "a", [batches])
    length = None if pa.types.is_fixed_size_list(kind) or pa.types.is_primitive(kind) else 4
    with pytest.raises(ValueError, match=rf"{folder}/data-.*'x' has a.*null.*in row {row}\b"):
        HfSource(folder, [FieldSpec("x", "x", length=length)])
    if kind != pa.list_(pa.list_(pa.int8(), 1), 1):
        source = HfSource(folder, [FieldSpec("x", "x", length=length, null=1)])
        assert source.blocks is None
        assert source.take(np.arange(4))["x"].shape[0] == 4


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (pa.timestamp("us"), "no times: store them as int64"),
        (pa.date32(), "no times"),
        (pa.duration("s"), "no times"),
        (pa.decimal128(5, 2), "no decimals"),
        (pa.struct([("bytes", pa.binary())]), "a struct has members"),
        (pa.map_(pa.string(), pa.int8()), "no maps"),
        (pa.list_(pa.list_(pa.int8())), "only the first axis may be ragged"),
        (pa.list_(pa.list_(pa.int8()), 2), "only the first axis may be ragged"),
        (pa.list_(pa.string()), "only the first axis may be ragged"),
        (pa.list_(pa.timestamp("s")), "no times"),
        (pa.null(), "all its values are null"),
        (pa.list_(pa.int8(), 0), "has no values"),
        (pa.dictionary(pa.int8(), pa.int64()), "only dictionaries of strings"),
        (pa.string_view(), "no dtype of batches"),
    ],
    ids=str,
)
def test_types_that_cannot_be_served_are_refused_by_name(tmp_path, kind, said):
    batch = pa.record_batch({"x": pa.nulls(2, kind), "y": pa.array([1, 2])})
    folder = save_to_disk(tmp_path / "a", [[batch]])
    with pytest.raises(ValueError, match=rf"{folder}/data-.*fields\.z.*'x'.*{re.escape(str(kind))}.*{said}"):
        HfSource(folder, [FieldSpec("z", "x")])
    assert list(HfSource(folder).element_spec()) == ["y"]


def table(rows: int = 40) -> pa.Table:
    return pa.table({"tokens": ragged(pa.int32(), rows), "label": values(pa.int64(), rows)})


@pytest.fixture
def folder(tmp_path) -> Path:
    whole = batches_of(table(), 10)
    return save_to_disk(tmp_path / "set", [whole[:2], whole[2:]])


TOKENS = [FieldSpec("tokens", "tokens", length=5), FieldSpec("label", "label")]


def test_a_stream_that_is_cut_anywhere_is_refused(folder):
    path = folder / "data-00001-of-00002.arrow"
    whole = path.read_bytes()
    starts = [found.start() for found in re.finditer(rb"\xff\xff\xff\xff[^\0]", whole)]
    for size in {*range(0, len(whole), 97), *starts, len(whole) - 8, len(whole) - 1}:
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=str(path)):
            HfSource(folder, TOKENS)
    # Of one that is cut between two batches, pyarrow would read the first.
    path.write_bytes(whole[:-8])
    with pa.memory_map(str(path)) as cut:
        assert pa.ipc.open_stream(cut).read_all().num_rows == 20
    with pytest.raises(ValueError, match="it is cut after"):
        HfSource(folder, TOKENS)


def garbage(folder: Path) -> None:
    (folder / "data-00001-of-00002.arrow").write_bytes(RNG.bytes(5000))


def file_format(folder: Path) -> None:
    with pa.ipc.new_file(str(folder / "data-00001-of-00002.arrow"), table().schema) as writer:
        writer.write_table(table())


def compressed(folder: Path) -> None:
    shutil.rmtree(folder)
    save_to_disk(
        folder,
        [batches_of(pa.table({"tokens": ragged(pa.int32(), 9000), "label": [0] * 9000}), 9000)],
        compression="zstd",
    )


def other_type(folder: Path) -> None:
    batch = pa.record_batch({"tokens": ragged(pa.int64(), 3), "label": values(pa.int64(), 3)})
    save_to_disk(folder / "other", [[batch]])
    shutil.copy(folder / "other/data-00000-of-00001.arrow", folder / "data-00001-of-00002.arrow")


def lost_column(folder: Path) -> None:
    save_to_disk(folder / "other", [[pa.record_batch({"tokens": ragged(pa.int32(), 3)})]])
    shutil.copy(folder / "other/data-00000-of-00001.arrow", folder / "data-00001-of-00002.arrow")


def twice(folder: Path) -> None:
    batch = pa.RecordBatch.from_arrays([values(pa.int64(), 3)] * 2, ["label", "label"])
    save_to_disk(folder / "other", [[batch]])
    shutil.copy(folder / "other/data-00000-of-00001.arrow", folder / "data-00001-of-00002.arrow")


def no_state(folder: Path) -> None:
    (folder / "state.json").unlink()


def splits(folder: Path) -> None:
    no_state(folder)
    (folder / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')


def deep_splits(folder: Path) -> None:
    no_state(folder)
    (folder / "dataset_dict.json").write_text("[" * 100_000)


def state(text: str):
    return lambda folder: (folder / "state.json").write_text(text)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (garbage, r"00001-of-00002\.arrow cannot be read as an Arrow stream"),
        (file_format, r"00001-of-00002\.arrow: this is a file in Arrow's file format"),
        (compressed, r"00000-of-00001\.arrow: the field 'tokens' is compressed"),
        (other_type, r"00001-of-00002\.arrow: the field 'tokens' is list<.*int64>, and list<.*int32> in the files"),
        (lost_column, r"00001-of-00002\.arrow: the field 'label' is not there, and int64 in the files before"),
        (twice, r"00001-of-00002\.arrow: the columns label occur twice"),
        (no_state, "is not a folder that save_to_disk"),
        (splits, "holds several data sets, train, test; give the path of one, such as .*/train"),
        (state("{"), r"state\.json is not as save_to_disk writes it"),
        (state("[]"), r"state\.json is not as save_to_disk writes it"),
        (state('{"_data_files":' * 10_000), r"state\.json is not as save_to_disk writes it"),
        (deep_splits, "holds several data sets; give the path of one, such as .*/train"),
        (state('{"_data_files": []}'), "holds no records"),
        (state('{"_data_files": [{"filename": "../x.arrow"}]}'), "must list files beside it, got '../x.arrow'"),
        (state('{"_data_files": [], "_indices_data_files": [{"filename": "i"}]}'), "flatten_indices"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_is_damaged_is_refused(folder, damage, said):
    damage(folder)
    with pytest.raises(ValueError, match=f"{folder}.*{said}"):
        HfSource(folder, TOKENS)


def test_a_file_that_vanished_is_an_os_error(folder):
    path = folder / "data-00000-of-00002.arrow"
    path.unlink()
    with pytest.raises(FileNotFoundError, match=str(path)):
        HfSource(folder)


def test_offsets_of_a_damaged_file_lead_nowhere(folder):
    path = folder / "data-00001-of-00002.arrow"
    raw = bytearray(path.read_bytes())
    source = HfSource(folder, TOKENS)
    # The first batch of the file has 11 offsets; the one of row 3 becomes huge, and the next is below it.
    at = int(source._columns["tokens"]._offsets_at[2]) * 4 + source._memory.lowest
    at -= source._memory.owners[[str(o.filename) for o in source._memory.owners].index(str(path))].ctypes.data
    raw[at + 12 : at + 16] = (1 << 30).to_bytes(4, "little")
    path.write_bytes(raw)
    damaged = HfSource(folder, TOKENS)
    assert damaged.prefetch is not None
    damaged.prefetch(np.arange(40))
    for record_ids in ([23], [0, 1, 22, 5]):
        with pytest.raises(WrongRecord, match=rf"'tokens': record 2[23] lies from.*damaged; {path}, row [23]"):
            damaged.take(np.array(record_ids))
    assert same(damaged.take(np.arange(22))["tokens"], source.take(np.arange(22))["tokens"])


def test_records_that_are_too_long_are_refused_cut_and_counted(folder):
    source = HfSource(folder, [FieldSpec("t", "tokens", length=2, lengths="n", long="cut")])
    lengths = HfSource(folder, [FieldSpec("t", "tokens", length=5, lengths="n")]).take(np.arange(40))["n"]
    assert source.take(np.arange(40))["n"].tolist() == np.minimum(lengths, 2).tolist()
    over = lengths[lengths > 2] - 2
    assert source.too_long() == {"t": (len(over), over.sum(), lengths.sum(), True)}
    worst = int(np.argmax(lengths > 2))
    with pytest.raises(WrongRecord, match=rf"record {worst} has {lengths[worst]} values.*00000-of-.*, row {worst}"):
        HfSource(folder, [FieldSpec("t", "tokens", length=2)]).take(np.arange(40))


def test_fixed_columns_are_served_from_the_map(folder):
    source = HfSource(folder, [FieldSpec("x", "label")])
    assert source.blocks is not None
    assert source.prefetch is None  # its blocks are announced
    joined = np.concatenate([block["x"] for block in source.blocks()])
    assert joined.tolist() == source.take(np.arange(40))["x"].tolist()
    found = file_of(source.blocks()[3]["x"])
    assert found is not None
    assert found[0].path == folder / "data-00001-of-00002.arrow"
    assert found[0].read(found[1], 80) == source.blocks()[3]["x"].tobytes()
    assert [file.path.name for file in source.files()] == ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]


def test_what_is_announced_are_the_bytes_of_the_records(folder):
    source = HfSource(folder, TOKENS)
    ids = np.array([35, 2, 11])
    assert source.prefetch is not None
    source.prefetch(ids)
    taken = HfSource(folder, [FieldSpec("t", "tokens", length=5, lengths="n")]).take(ids)
    rows = [row[:count].tobytes() for row, count in zip(taken["t"], taken["n"], strict=True) if count]
    ranges = source._file_ranges(source._served[0], source._rows(ids))
    assert [file.read(offset, size) for file, offset, size in ranges] == rows


def test_the_digest_covers_content_and_options_but_no_paths(folder, tmp_path):
    known = HfSource(folder, TOKENS).content_digest()
    shutil.copytree(folder, tmp_path / "moved")
    assert HfSource(tmp_path / "moved", TOKENS).content_digest() == known
    for fields in (
        [FieldSpec("tokens", "tokens", length=6), FieldSpec("label", "label")],
        [FieldSpec("tokens", "tokens", length=5, pad=1), FieldSpec("label", "label")],
        [FieldSpec("tokens", "tokens", length=5), FieldSpec("other", "label")],
        [FieldSpec("tokens", "tokens", np.dtype(np.int64), length=5), FieldSpec("label", "label")],
    ):
        assert HfSource(folder, fields).content_digest() != known
    path = tmp_path / "moved/data-00000-of-00002.arrow"
    raw = path.read_bytes()
    path.write_bytes(raw[:-20] + bytes([raw[-20] ^ 1]) + raw[-19:])
    assert HfSource(tmp_path / "moved", TOKENS).content_digest() != known


def test_a_pickle_opens_the_files_again(folder):
    source = HfSource(folder, TOKENS, name="x")
    pickled = pickle.dumps(source)
    assert len(pickled) < 2000
    again = pickle.loads(pickled)
    assert again.name == "x"
    assert same(again.take(np.arange(40))["tokens"], source.take(np.arange(40))["tokens"])
    shutil.rmtree(folder)
    save_to_disk(folder, [batches_of(table(), 20)])
    with pytest.raises(ValueError, match="other records than when the source was pickled"):
        pickle.loads(pickled)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning", "ignore:.*fork:RuntimeWarning")
def test_threads_and_forked_processes_read_the_same(folder):
    source = HfSource(folder, TOKENS)
    wanted = source.take(np.arange(40))

    def read(seed: int) -> bool:
        ids = np.random.default_rng(seed).integers(0, 40, 64)
        return all(same(leaf, wanted[name][ids]) for name, leaf in source.take(ids).items())

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(read, range(200)))
    assert in_a_fork(lambda: read(1)) == "True"


def test_a_missing_pyarrow_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pip install 'mixserve\[arrow\]'"):
        HfSource(GOLDEN / "whole")


def test_check_opens_a_data_set(folder):
    file = folder.parent / "mixture.yaml"
    fields = "{tokens: {from: tokens, length: 5, lengths: n}, label: {from: label, null: 0}}"
    file.write_text(f"mixtures: {{train: {{sources: {{a: {{kind: hf, path: set, weight: 1, fields: {fields}}}}}}}}}")
    result = CliRunner().invoke(app, ["check", str(file)])
    assert result.exit_code == 0, result.output
    for part in ("field label: int64[]", "field n: int32[]", "field tokens: int32[5]"):
        assert part in result.output


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ("{t: {from: tokens}}", r"fields\.t: the field 'tokens' is ragged, and needs a length"),
        ("{t: {from: nope}}", r"fields\.t: no field 'nope' is stored; there are tokens, label"),
        ("{t: {from: label, as: int8}}", r"fields\.t: values of int64 do not all fit into as: int8"),
        ("{t: {from: label, null: 0.5}}", r"fields\.t: null: 0\.5 is not a value of int64"),
        ("{t: {from: tokens, length: 3, pad: 3000000000}}", r"fields\.t: pad: 3000000000 is not a value of int32"),
        ("{t: {from: tokens, long: 3, size: 2}}", r"fields\.t\.size: unknown key; allowed here are from, as, length"),
    ],
)
def test_wrong_fields_are_named(folder, fields, said):
    file = folder.parent / "mixture.yaml"
    file.write_text(f"mixtures: {{train: {{sources: {{a: {{kind: hf, path: set, weight: 1, fields: {fields}}}}}}}}}")
    result = CliRunner().invoke(app, ["check", str(file)], env={"COLUMNS": "400"})
    assert result.exit_code == 2
    assert re.search(rf"sources\.a.*{said}", result.output + result.stderr), result.output + result.stderr


def test_a_field_may_have_a_slash_in_its_name(tmp_path):
    save_to_disk(tmp_path / "a", [batches_of(pa.table({"a/b": pa.array([1, 2, 3])}), 3)])
    source = HfSource(tmp_path / "a")
    blocks = source.blocks() if source.blocks else []
    assert [list(block) for block in blocks] == [["a~1b"]]  # as leaves of records are called
    assert list(source.element_spec()) == ["a/b"]


def test_a_number_of_rows_of_more_bits_than_a_product_has_is_refused(tmp_path):
    rows = 1003  # no other number in the file
    pairs = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(4 * rows, dtype=np.int32)), 4)
    folder = save_to_disk(tmp_path / "in", [batches_of(pa.table({"x": pairs}), rows)])
    path = folder / "data-00000-of-00001.arrow"
    whole = path.read_bytes()
    assert len(HfSource(folder)) == rows
    for wrong in (1 << 62, (1 << 60) + 1, rows + 1):  # times 4, the first one is 0 in 64 bits
        path.write_bytes(whole.replace(rows.to_bytes(8, "little"), wrong.to_bytes(8, "little")))
        with pytest.raises(ValueError, match=rf"{path}: the field 'x': a block has {wrong:,} rows, and values for"):
            HfSource(folder)
