"""What reads files: configurations, tokens, states of sessions, and the sources of every format."""

import atexit
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save_file

from mixserve.access.entries import BadTokens, TokenEntry, digest_of, new_token
from mixserve.access.tokens import read_tokens
from mixserve.config import ConfigError, load_config
from mixserve.sessions.journal import Journal
from mixserve.sessions.manifest import manifest_hash, read_manifest
from mixserve.sessions.record import FORMAT, parts_of, read_record
from mixserve.sessions.storage import StateFolder
from mixserve.sources.prepared import preparing_in
from mixserve.sources.registry import KINDS
from mixserve.sources.skipped import SkipLists
from mixserve_client.errors import CorruptCheckpoint, InvalidRequest, MixserveError
from mixserve_client.reading.state_file import read_state
from mixserve_client.wire.value import encode_value
from tests.arrow_files import save_to_disk
from tests.fuzz.folders import memory_folder
from tests.fuzz.target import Target
from tests.records import example, tfrecord, write_array_record
from tests.test_mds import write_mds
from tests.test_megatron import write as write_megatron
from tests.test_zarr import write as write_zarr

# Those whose message alone tells the user what is wrong, as `mixserve.located` has it, and what sources raise of ours.
PLAIN = (OSError, ValueError, TypeError, KeyError, EOFError, BadZipFile, MixserveError)
_ROWS = 12
_PREPARED_FILES = 200


_folder = cache(memory_folder)


def _at(name: str, data: bytes) -> Path:
    """A file of this content: a new one, since what has mapped the one before must not see it change."""
    path = _folder() / name
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    return path


# Configurations, tokens and states

_CONFIGS = (
    """
mixtures:
  train:
    sampling: epoch
    block_size: 64
    sources:
      web: {kind: tokens, path: "web/*.bin", dtype: uint16, sequence_length: 2048, weight: 0.7, as: int32}
      made: {kind: factory, function: "my_module:make", arguments: {rows: 7, &a data_path: [x, *a]}, weight: 3}
    schedule: [{from: 100, weights: {web: 0.1, made: 0.9}}]
    precomputed_stats: {mean: [1.0, 2.5], 3: x}
server: {host: 127.0.0.1, port: 0, limits: {reply_bytes: 1000}, tls: {certificate: a.pem, key: a.key}, processes: auto}
""",
    """
mixtures:
  a: {sources: {x: {kind: hf, path: [rows, more], fields: {tokens: {from: ids, length: 65, pad: 0}}, weight: 1}}}
  b: {sources: {y: {kind: zarr, path: z, fields: {t: a/b}, missing: fill, weight: 1e-3, on_error: skip}}}
""",
)


def _tokens() -> list[bytes]:
    entries = [
        TokenEntry(name="reader", role="reader", mixtures=["train"], sha256=digest_of(new_token()).hex()),
        TokenEntry(name="admin", role="admin", sha256=digest_of("x").hex()),
    ]
    return [json.dumps({"tokens": [entry.written() for entry in entries]}).encode(), b"tokens: []\n"]


@cache
def _state_folder() -> StateFolder:
    made = StateFolder(_folder() / "state")
    atexit.register(made.close)
    return made


def _read_journal(data: bytes) -> object:
    return read_record(Journal(_at("journal", data), _state_folder()))


def _read_entry(data: bytes) -> object:
    """A journal whose frames are right, of one damaged entry."""
    journal = Journal(_folder() / "state" / "sessions" / "entry", _state_folder())
    journal.begin(data)
    return read_record(journal)


def _entry() -> bytes:
    record = {
        "format": FORMAT,
        "session": "run-17",
        "fingerprint": "ab" * 32,
        "lease": "0f" * 16,
        "holder": "me",
        "resumed": False,
        "sequence": 3,
        "last": {"asked": "x", "place": {"index": 1}, "refusal": ["a", "b"]},
    }
    return encode_value(parts_of(record, {"index": 7, "epoch": 1, "statistics": {"mean": np.zeros(3)}}), more_levels=4)


def _journals() -> list[bytes]:
    journal = Journal(_folder() / "state" / "sessions" / "seed", _state_folder())
    journal.begin(_entry())
    journal.append(encode_value({"sequence": 4, "state/index": 8}))
    return [journal.path.read_bytes()]


def _manifest(**changes: Any) -> bytes:
    files = {"orbax/a": {"bytes": 5, "sha256": "ab" * 32}}
    said = {
        "format": 1, "name": "step-1", "saved_at": 1.5, "index": 7, "epoch": 1, "fingerprint": "ab" * 32, "bytes": 5,
        "version": "0.1", "files": files,
    } | changes  # fmt: skip
    return json.dumps(said | {"sha256": manifest_hash(said)}).encode()


def _read_manifest(data: bytes) -> object:
    return read_manifest(_at("manifest.json", data).parent)


def _read_signed_manifest(data: bytes) -> object:
    """A manifest whose hash is right, of damaged entries."""
    try:
        changes = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return _read_manifest(_manifest(**changes)) if isinstance(changes, dict) else None


def _read_skipped(data: bytes) -> object:
    return SkipLists.read(_at("fuzz.skipped.json", data).with_name("fuzz.yaml"))


_SKIPPED = json.dumps(
    {"version": 1, "mixtures": {"m": {"s": {"records": 9, "content": "ab" * 32, "skipped": [1, 2, 5]}}}}
).encode()
_STATE = json.dumps({"version": 1, "mixture": "m", "fingerprint": "ab", "key": [0, 1], "position": 5}).encode()

STATES = [
    Target(
        "configuration",
        lambda data: load_config(_at("fuzz.yaml", data)),
        (ConfigError,),
        lambda: [text.encode() for text in _CONFIGS],
        share=0.3,
        largest=4096,
    ),
    Target("token file", lambda data: read_tokens(_at("tokens.yaml", data)), (BadTokens,), _tokens, 0.3, 4096),
    Target("journal of a session", _read_journal, (CorruptCheckpoint,), _journals, share=0.3),
    Target("entry of a journal", _read_entry, (CorruptCheckpoint,), lambda: [_entry()], share=0.1),
    Target("manifest", _read_manifest, (CorruptCheckpoint,), lambda: [_manifest()], 0.3, 64 << 10),
    Target(
        "manifest of a right hash",
        _read_signed_manifest,
        (CorruptCheckpoint,),
        lambda: [b'{"index": 5, "files": {"orbax/b": {"bytes": 5, "sha256": "x"}}, "saved_at": 1e9}', _manifest()],
        0.3,
        64 << 10,
    ),
    Target("list of skipped records", _read_skipped, (ValueError,), lambda: [_SKIPPED], 0.3, 64 << 10),
    Target(
        "state in a checkpoint",
        lambda data: read_state(_at("mixserve_state.json", data).parent),
        (InvalidRequest,),
        lambda: [_STATE],
        0.3,
        64 << 10,
    ),
]

# Sources


class Data(NamedTuple):
    """A source of a kind, and the files that are damaged, one at a time."""

    keys: dict[str, Any]
    files: list[Path]


def _ids(dtype: str = "u2") -> np.ndarray:
    return np.arange(8 * _ROWS, dtype=dtype)


def _make_tokens(folder: Path, head: bytes = b"") -> Data:
    (folder / "a.bin").write_bytes(head + _ids().tobytes())
    header = {"header": "llm.c"} if head else {}
    return Data({"path": "a.bin", "dtype": "uint16", "sequence_length": 8, **header}, [folder / "a.bin"])


def _make_npy(folder: Path) -> Data:
    np.save(folder / "a.npy", _ids())
    return Data({"path": "a.npy", "dtype": "uint16", "sequence_length": 8, "header": "npy"}, [folder / "a.npy"])


def _make_npz(folder: Path) -> Data:
    np.savez(folder / "a.npz", x=_ids().reshape(_ROWS, 8), y=np.zeros(_ROWS))
    return Data({"path": "a.npz"}, [folder / "a.npz"])


def _make_safetensors(folder: Path) -> Data:
    save_file({"x": _ids().reshape(_ROWS, 8), "y": np.zeros(_ROWS)}, folder / "a.safetensors", {"made": "here"})
    return Data({"path": "a.safetensors"}, [folder / "a.safetensors"])


def _make_megatron(folder: Path) -> Data:
    write_megatron(folder / "a", [_ids()[:size] for size in (5, 9, 1, 30)])
    return Data({"path": "a", "sequence_length": 8}, [folder / "a.idx", folder / "a.bin"])


def _make_mds(folder: Path) -> Data:
    samples = [{"ids": np.arange(size, dtype=np.uint16), "n": size} for size in range(1, _ROWS)]
    write_mds(folder / "a", {"ids": "ndarray:uint16", "n": "int32"}, [samples[:5], samples[5:]])
    fields = {"ids": {"from": "ids", "length": _ROWS, "pad": 0}, "n": "n"}
    return Data({"path": "a", "fields": fields}, [folder / "a" / "index.json", folder / "a" / "shard.00000.mds"])


def _make_webdataset(folder: Path) -> Data:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for number in range(4):
            for name, data in ((f"{number:04}.cls", b"%d" % number), (f"{number:04}.npy", _npy())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    (folder / "a.tar").write_bytes(file.getvalue())
    return Data({"path": "a.tar", "fields": {"label": "cls", "x": "npy"}}, [folder / "a.tar"])


def _npy() -> bytes:
    file = io.BytesIO()
    np.save(file, np.arange(6, dtype=np.int16))
    return file.getvalue()


def _make_tfrecord(folder: Path) -> Data:
    (folder / "a").write_bytes(tfrecord(example({"ids": list(range(size)), "x": 0.5}) for size in range(1, 6)))
    fields = {"ids": {"from": "ids", "as": "int32", "length": 8, "pad": 0}, "x": "x"}
    return Data({"path": "a", "record": "example", "fields": fields}, [folder / "a"])


def _make_array_record(folder: Path) -> Data:
    write_array_record(folder / "a", [example({"ids": list(range(size))}) for size in range(1, 6)])
    fields = {"ids": {"from": "ids", "as": "int32", "length": 8, "pad": 0}}
    return Data({"path": "a", "record": "example", "fields": fields}, [folder / "a"])


def _table() -> pa.Table:
    ids = pa.array([list(range(size)) for size in range(_ROWS)], pa.list_(pa.int32()))
    return pa.table({"ids": ids, "n": pa.array(range(_ROWS), pa.int64())})


def _make_hf(folder: Path) -> Data:
    save_to_disk(folder / "a", [_table().to_batches(5)])
    fields = {"ids": {"from": "ids", "length": _ROWS, "pad": 0}, "n": "n"}
    return Data({"path": "a", "fields": fields}, [next((folder / "a").glob("*.arrow")), folder / "a" / "state.json"])


def _make_parquet(folder: Path) -> Data:
    pq.write_table(_table(), folder / "a.parquet", row_group_size=5)
    fields = {"ids": {"from": "ids", "length": _ROWS, "pad": 0}, "n": "n"}
    return Data({"path": "a.parquet", "fields": fields}, [folder / "a.parquet"])


def _make_hdf5(folder: Path) -> Data:
    with h5py.File(folder / "a.h5", "w") as file:
        file.create_dataset("x", data=_ids().reshape(_ROWS, 8), chunks=(5, 8), compression="gzip")
        file["y"] = np.arange(_ROWS)
    return Data({"path": "a.h5"}, [folder / "a.h5"])


def _make_zarr(folder: Path, version: int) -> Data:
    write_zarr(folder / "a", _ids().reshape(_ROWS, 8), version=version)
    files = sorted(path for path in (folder / "a").rglob("*") if path.is_file())
    return Data({"path": {"x": "a"}}, files[:3])


_LLM_C = np.array([20240520, 1, 8 * _ROWS] + [0] * 253, np.int32).tobytes()
MAKERS: dict[str, tuple[str, Callable[[Path], Data]]] = {
    "tokens": ("tokens", _make_tokens),
    "tokens of llm.c": ("tokens", partial(_make_tokens, head=_LLM_C)),
    "tokens in npy": ("tokens", _make_npy),
    "npz": ("arrays", _make_npz),
    "safetensors": ("arrays", _make_safetensors),
    "megatron": ("megatron", _make_megatron),
    "mds": ("mds", _make_mds),
    "webdataset": ("webdataset", _make_webdataset),
    "tfrecord": ("tfrecord", _make_tfrecord),
    "array_record": ("array_record", _make_array_record),
    "hf": ("hf", _make_hf),
    "parquet": ("parquet", _make_parquet),
    "hdf5": ("hdf5", _make_hdf5),
    "zarr 2": ("zarr", partial(_make_zarr, version=2)),
    "zarr 3": ("zarr", partial(_make_zarr, version=3)),
}


class SourceOf:
    """Opens the source of a kind with one of its files damaged, and reads some records. The first byte says which file,
    the others are its content."""

    def __init__(self, name: str):
        kind, make = MAKERS[name]
        self._folder = _folder() / name.replace(" ", "-")
        self._folder.mkdir()
        self._data = make(self._folder)
        self._config = KINDS[kind].model_validate({"kind": kind, "weight": 1, **self._data.keys})
        self._right = [path.read_bytes() for path in self._data.files]
        self._calls = 0

    def seeds(self) -> list[bytes]:
        return [bytes([number]) + data for number, data in enumerate(self._right)]

    def __call__(self, data: bytes) -> object:
        number, content = (data[0] % len(self._right), data[1:]) if data else (0, b"")
        path = self._data.files[number]
        prepared = _folder() / "prepared"
        self._calls += 1
        if self._calls % _PREPARED_FILES == 0:
            shutil.rmtree(prepared, ignore_errors=True)
        try:
            _replace(path, content)
            with preparing_in(prepared):
                source = self._config.open(self._folder)
                source.element_spec()
                _ = len(source), source.content_digest() if hasattr(source, "content_digest") else None
                if len(source):
                    source.take(np.array([0, len(source) // 2, len(source) - 1]))
        finally:
            _replace(path, self._right[number])


def _replace(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)


_of = cache(SourceOf)
SOURCES = [
    Target(
        f"source: {name}",
        partial(lambda name, data: _of(name)(data), name),
        PLAIN,
        partial(lambda name: _of(name).seeds(), name),
        share=0.15,
        largest=64 << 10,
    )
    for name in MAKERS
]

FILES = [*STATES, *SOURCES]
