"""`mixserve init`: what it recognises and writes, and that `mixserve check` takes it."""

import io
import re
import tarfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from mixserve.cli import proposed_sources
from mixserve.cli.main import app
from mixserve.config import load_config
from mixserve.sources.registry import KINDS
from tests import test_hdf5, test_mds, test_megatron, test_zarr
from tests.arrow_files import save_to_disk
from tests.records import example, tfrecord, write_array_record

RNG = np.random.default_rng(0)
IDS = [list(range(1, 4 + number % 5)) for number in range(20)]


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == code, result.output
    return result.output


def ids(count: int, dtype: str, vocabulary: int = 50_000) -> np.ndarray:
    return RNG.integers(0, vocabulary, count).astype(dtype)


def write_tokens(folder: Path) -> None:
    for number in range(3):
        ids(5000, "uint16").tofile(folder / f"part-{number}.bin")


def write_wide_tokens(folder: Path) -> None:
    ids(5000, "uint32").tofile(folder / "ids.bin")


def write_llm_c(folder: Path) -> None:
    head = np.zeros(256, np.int32)
    head[:3] = 20240520, 1, 4000
    (folder / "a.bin").write_bytes(head.tobytes() + ids(4000, "uint16").tobytes())


def write_npy_tokens(folder: Path) -> None:
    for number in range(2):
        np.save(folder / f"shard{number}.npy", ids(3000, "int32"))


def write_npy_fields(folder: Path) -> None:
    np.save(folder / "x.npy", np.zeros((7, 3), np.float32))
    np.save(folder / "y.npy", np.arange(7))


def write_npz(folder: Path) -> None:
    for name in ("one", "two"):
        np.savez(folder / f"{name}.npz", x=np.zeros((5, 2), np.int32), y=np.ones(5, ml_dtypes.bfloat16))


def write_megatron(folder: Path) -> None:
    for name in ("a_text_document", "b_text_document"):
        test_megatron.write(folder / name, [ids(700, "uint16"), ids(800, "uint16")])


def arrow_table() -> pa.Table:
    return pa.table(
        {
            "input_ids": pa.array(IDS, pa.list_(pa.int32())),
            "label": pa.array([None, *range(19)], pa.int64()),
            "text": ["some text"] * 20,
            "when": pa.array([0] * 20, pa.timestamp("s")),
        }
    )


def write_hf(folder: Path) -> None:
    for split in ("train", "test"):
        save_to_disk(folder / split, [arrow_table().to_batches()])
    (folder / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')


def write_parquet(folder: Path) -> None:
    for number in range(2):
        pq.write_table(arrow_table(), folder / f"train-{number:05}-of-00002.parquet")


def examples() -> list[bytes]:
    return [example({"targets": row, "one": 7, "text": b"abc"}) for row in IDS]


def write_array_records(folder: Path) -> None:
    write_array_record(folder / "a.array_record-00000-of-00002", examples())
    write_array_record(folder / "a.array_record-00001-of-00002", examples())


def write_json_records(folder: Path) -> None:
    write_array_record(folder / "a.array_record", [b'{"a": [1, 2], "b": 0.5}'] * 3)


def write_byte_records(folder: Path) -> None:
    write_array_record(folder / "a.array_record", [b"\xff\xff some bytes"] * 3)


def write_tfrecords(folder: Path) -> None:
    for number in range(2):
        (folder / f"train-{number:05}-of-00002").write_bytes(tfrecord(examples()))


def write_tar(folder: Path) -> None:
    with tarfile.open(folder / "a.tar", "w") as archive:
        for number, row in enumerate(IDS):
            data = io.BytesIO()
            np.save(data, np.array(row, np.uint16))
            for name, content in ((f"{number:03}.npy", data.getvalue()), (f"{number:03}.cls", b"5")):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


def write_mds(folder: Path) -> None:
    samples = [{"ids": np.array(row, np.uint16), "n": 5} for row in IDS]
    test_mds.write_mds(folder / "set", {"ids": "ndarray:uint16", "n": "int"}, [samples])


def write_safetensors(folder: Path) -> None:
    for name in ("a", "b"):
        save_file({"x": np.zeros((4, 3), np.float16), "y": np.zeros(4, np.int32)}, folder / f"{name}.safetensors")


def write_hdf5(folder: Path) -> None:
    for name in ("a", "b"):
        test_hdf5.write(folder / f"{name}.h5", {"x": np.ones((6, 2), np.float32)})


def write_zarr_array(folder: Path) -> None:
    test_zarr.write(folder / "v3.zarr", np.ones((9, 3), np.int16))
    test_zarr.write(folder / "v2.zarr", np.ones((9, 3), np.int16), version=2)


def write_zarr_group(folder: Path) -> None:
    test_zarr.group(folder / "g.zarr")
    test_zarr.write(folder / "g.zarr/x", np.ones((9, 3), np.int16))


# What each writes, the kind and some lines of the configuration, without their comments.
CASES = [
    (write_tokens, "tokens", ('path: "{}/*.bin"', "dtype: uint16", "sequence_length: 2048")),
    (write_wide_tokens, "tokens", ('path: "{}/ids.bin"', "dtype: uint32")),
    (write_llm_c, "tokens", ("sequence_length: 2048",)),
    (write_npy_tokens, "tokens", ('path: "{}/*.npy"',)),
    (write_npy_fields, "arrays", ('path: "{}"',)),
    (write_npz, "arrays", ('path: "{}/*.npz"', 'dtypes: {"y": bfloat16}')),
    (write_megatron, "megatron", ('path: "{}/*"', "sequence_length: 1500")),
    (
        write_hf,
        "hf",
        (
            'path: "{}/train"',
            'input_ids: {from: "input_ids", length: 8, lengths: input_ids_length, long: cut}',
            'label: {from: "label", null: 0}',
            '# text: {from: "text", length: 16, lengths: text_length, long: cut}',
            '# when: "when"',
        ),
    ),
    (write_parquet, "parquet", ('path: "{}/*.parquet"', 'label: {from: "label", null: 0}')),
    (
        write_array_records,
        "array_record",
        (
            'path: "{}/*.array_record*"',
            'targets: {from: "targets", as: int32, length: 8, lengths: targets_length, long: cut}',
            'one: {from: "one", as: int32}',
        ),
    ),
    (write_json_records, "array_record", ("record: json", 'a: {from: "a", as: int32}', 'b: "b"')),
    (
        write_byte_records,
        "array_record",
        ("record: bytes", 'data: {from: "data", length: 16, lengths: data_length, long: cut}'),
    ),
    (write_tfrecords, "tfrecord", ('path: "{}/train-*"',)),
    (
        write_tar,
        "webdataset",
        ('cls: {from: "cls", as: int32}', 'npy: {from: "npy", length: 8, lengths: npy_length, long: cut}'),
    ),
    (write_safetensors, "arrays", ('path: "{}/*.safetensors"',)),
    (write_hdf5, "hdf5", ('path: "{}/*.h5"',)),
    (write_zarr_array, "zarr", ('path: {"v2": "{}/v2.zarr"}', 'path: {"v3": "{}/v3.zarr"}')),
    (write_zarr_group, "zarr", ('path: "{}/g.zarr"',)),
    (write_mds, "mds", ('path: "{}/set"',)),
]


@pytest.mark.parametrize(("write", "kind", "lines"), CASES, ids=lambda value: getattr(value, "__name__", ""))
def test_each_kind_is_recognised_and_served(tmp_path, monkeypatch, write, kind, lines):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MIXSERVE_PREPARED", str(tmp_path / "prepared"))
    (tmp_path / "data").mkdir()
    write(tmp_path / "data")
    said = run("init", "data")
    assert "mixserve check mixture.yaml\n  mixserve serve mixture.yaml" in said
    assert f": {kind}, " in said
    text = Path("mixture.yaml").read_text()
    found = [re.sub(r"  # .*", "", line).strip() for line in text.splitlines()]
    assert f"kind: {kind}" in found, text
    for line in lines:
        wanted = line.replace("{}", "data", 1)
        assert wanted in found or (wanted.startswith("# ") and wanted in text), text
    run("check", "mixture.yaml")


def test_lists_of_one_number_and_longer_ones_are_one_field(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_array_record(tmp_path / "a.array_record", [example({"targets": [5] * (1 + i % 3)}) for i in range(6)])
    run("init", "a.array_record")
    assert 'targets: {from: "targets", as: int32, length: 4' in Path("mixture.yaml").read_text()
    run("check", "mixture.yaml")
    write_array_record(tmp_path / "b.array_record", [b'{"targets": 5}', b'{"targets": [5, 6]}'])
    assert "no field of its records can be served" in run("init", "b.array_record", "--out", "b.yaml", code=2)


def test_there_is_a_case_for_each_kind():
    assert {kind for _, kind, _ in CASES} == KINDS.keys() - {"factory", "remote"}  # these are no files


def test_a_whole_folder_of_everything(tmp_path, monkeypatch):
    monkeypatch.setenv("MIXSERVE_PREPARED", str(tmp_path / "prepared"))
    data = tmp_path / "a $b [c]"
    for write, _, _ in CASES:
        (data / write.__name__).mkdir(parents=True)
        write(data / write.__name__)
    (data / "notes.txt").write_text("words")
    (data / "empty.bin").touch()
    (data / "x.jsonl.gz").write_bytes(b"\x1f\x8b\x08 and so on")
    out = tmp_path / "elsewhere.yaml"
    said = run("init", data, "--out", out, "--sequence-length", 100)
    for part in ("notes.txt: no kind has files that begin like this", "empty.bin: it is empty", "compressed by gzip"):
        assert part in said
    mixtures = load_config(out).mixtures
    assert (
        len({name for mixture in mixtures.values() for name in mixture.sources}) == len(CASES) + 2
    )  # of two splits, and two arrays
    assert list(mixtures["test"].sources) == ["test"]
    assert "tokens: uint16[100]" in run("check", out)
    again = run("init", data, "--out", out, code=2)
    assert "exists: give another --out, or --force" in again
    assert "is written" in run("init", data, "--out", out, "--force")


def test_nothing_is_written_if_nothing_is_recognised(tmp_path):
    (tmp_path / "notes.txt").write_text("words")
    said = run("init", tmp_path, "--out", tmp_path / "m.yaml", code=2)
    assert "no data was recognised" in said
    assert "notes.txt" in said
    assert not (tmp_path / "m.yaml").exists()
    assert "No such file" in run("init", tmp_path / "none", code=2)


def test_what_cannot_be_served_is_said(tmp_path):
    (tmp_path / "odd.bin").write_bytes(b"abc" * 33)
    np.savez(tmp_path / "words.npz", x=np.array(["a", "b"]))
    np.savez(tmp_path / "good.npz", x=np.zeros((2, 3)))
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and nothing else")
    save_to_disk(tmp_path / "deep", [arrow_table().to_batches()])
    (tmp_path / "deep" / "state.json").write_text('{"_data_files":' * 10_000)
    said = run("init", tmp_path, "--out", tmp_path / "m.yaml")
    assert re.search(r"odd.bin \(tokens\): it has an odd number of bytes", said)
    assert re.search(r"words.npz.*arrays that are not of numbers", said)
    assert re.search(r"cut.parquet.*is not a Parquet file", said)
    assert re.search(r"deep \(hf\): .*recursion", said)
    run("check", tmp_path / "m.yaml")


def test_files_that_are_named_are_all_that_is_served(tmp_path):
    write_tokens(tmp_path)
    out = tmp_path / "m.yaml"
    run("init", tmp_path / "part-0.bin", tmp_path / "part-2.bin", "--out", out)
    (source,) = load_config(out).mixtures["train"].sources.values()
    assert source.model_dump()["path"] == ["part-0.bin", "part-2.bin"]
    run("check", out)


def test_a_bad_file_leaves_the_others_together(tmp_path):
    write_tokens(tmp_path)
    with (tmp_path / "part-1.bin").open("ab") as file:
        file.write(b"x")
    out = tmp_path / "m.yaml"
    assert "part-1.bin (tokens): it has an odd number of bytes" in run("init", tmp_path, "--out", out)
    (source,) = load_config(out).mixtures["train"].sources.values()
    assert source.model_dump()["path"] == ["part-0.bin", "part-2.bin"]


def test_few_entries_of_a_large_folder_are_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr("mixserve.cli.data_files.MOST_ENTRIES", 10)
    for number in range(5):
        (tmp_path / f"{number}").mkdir()
        write_tokens(tmp_path / f"{number}")
    said = run("init", tmp_path, "--out", tmp_path / "m.yaml")
    assert "there is more" in said
    run("check", tmp_path / "m.yaml")


def test_large_members_of_tars_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(proposed_sources, "_HEAD_BYTES", 1 << 10)
    path = tmp_path / "large.tar"
    with tarfile.open(path, "w") as archive:
        for name, size in (("a.bin", 8), ("b.bin", 1 << 20)):
            info = tarfile.TarInfo(name)
            info.size = size
            archive.addfile(info, io.BytesIO(bytes(size)))
    assert [sample["bin"] for sample in proposed_sources._tar_samples(path)] == [bytes(8)]
