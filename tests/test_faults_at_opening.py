"""Errors while sources are opened name the source, the file and the field."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mixserve.build import open_nodes
from mixserve.config import ConfigError

FIELDS = {"x": np.zeros((4, 2), np.int32), "y": np.zeros(4)}


def refusal(folder: Path, source: str) -> str:
    file = folder / "mixture.yaml"
    file.write_text(f"mixtures: {{m: {{sources: {{web: {{{source}, weight: 1}}}}}}}}")
    with pytest.raises(ConfigError) as caught:
        open_nodes(file)
    return str(caught.value).replace(f"{folder}/", "")


WRONG = [
    ({"y": np.array(list("abcd"))}, "the field 'y' in {} must be an array of numbers, got <U1"),
    ({"y": np.zeros(5)}, "must have one leading length, got {{'x': 4, 'y': 5}} in {}"),
    ({"y": np.float64(3)}, "the field 'y' in {} needs a leading dimension of records"),
    ({"y": np.zeros(4, "M8[s]")}, "the field 'y' in {} cannot be served: dtype must be one of"),
    ({"x": np.zeros((4, 2), np.int64)}, "got {{x: int64[2], y: float64[]}} in {}"),
    (
        {"x": np.zeros((4, 3), np.int32)},
        "{{x: int32[2], y: float64[]}} in {before}, got {{x: int32[3], y: float64[]}} in {}",
    ),
    ({"z": np.zeros(4)}, "got {{x: int32[2], y: float64[], z: float64[]}} in {}"),
]


@pytest.mark.parametrize(("wrong", "said"), WRONG)
@pytest.mark.parametrize("as_folders", [False, True])
def test_of_many_files_the_wrong_one_is_named(tmp_path, wrong, said, as_folders):
    for number in range(3):
        fields = FIELDS | (wrong if number == 1 else {})
        if as_folders:
            (tmp_path / f"part{number}").mkdir()
            for name, array in fields.items():
                np.save(tmp_path / f"part{number}" / f"{name}.npy", array)
        else:
            np.savez(tmp_path / f"part{number}.npz", **fields)
    end = "" if as_folders else ".npz"
    found = refusal(tmp_path, "kind: arrays, path: 'part*'")
    assert found.startswith("mixture.yaml: mixtures.m.sources.web: ")
    assert said.format(f"part1{end}", before=f"part0{end}") in found


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def flip(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:100] + bytes(255 - byte for byte in data[100:120]) + data[120:])


def pickled(path: Path) -> None:
    np.savez(path, x=FIELDS["x"], y=np.array([{}, 1, 2, 3], object))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut, "path: part1.npz cannot be read as arrays, it may be cut short or damaged: File is not a zip file"),
        (flip, "path: the field 'x' of part1.npz cannot be read as arrays, it may be cut short or damaged: Bad CRC-32"),
        (pickled, "path: the field 'y' of part1.npz cannot be read as arrays, it may be cut short or damaged: Object"),
        (lambda path: path.write_bytes(b""), "part1.npz cannot be read as arrays: it is no .npz file, it is empty"),
        (
            lambda path: path.write_bytes(b"version https://git-lfs"),
            "part1.npz cannot be read as arrays: it is no .npz file, it begins with b'versio'",
        ),
    ],
)
def test_of_many_files_the_damaged_one_is_named(tmp_path, damage: Callable[[Path], None], said):
    for number in range(3):
        np.savez(tmp_path / f"part{number}.npz", **FIELDS)
    damage(tmp_path / "part1.npz")
    found = refusal(tmp_path, "kind: arrays, path: '*.npz'")
    assert found.startswith("mixture.yaml: mixtures.m.sources.web: ")
    assert said in found


SOURCE = """
import jax, numpy as np
class Source:
    def __len__(self): return 4
    def element_spec(self): return {"x": jax.ShapeDtypeStruct((1,), np.int32)}
    def take(self, record_ids): return {"x": np.zeros((len(record_ids), 1), np.int32)}
"""


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("__len__(self): raise RuntimeError('gone')", "the length of the source 'web' failed: RuntimeError: gone"),
        (
            "element_spec(self): raise OSError(5, 'io')",
            "the element_spec of the source 'web' failed: OSError: [Errno 5] io",
        ),
        ("element_spec(self): return {}['z']", "the element_spec of the source 'web' failed: KeyError: z"),
        (
            "content_digest(self): raise OSError(5, 'io')",
            "the content digest of the source 'web' failed: OSError: [Errno 5]",
        ),
        ("blocks(self): raise KeyError('z')", "the blocks() of the source 'web' failed: KeyError: z"),
        ("blocks(self): return [{'y': np.zeros((4, 1))}]", "the blocks of the source 'web' must have the leaf 'x'"),
        (
            "blocks(self): return [{'x': np.zeros((3, 1))}]",
            "the blocks of the source 'web' must hold len(source) = 4 rows",
        ),
    ],
)
def test_a_source_of_the_user_that_fails_is_named(tmp_path, method, said):
    module = f"fails_{hashlib.sha256(method.encode()).hexdigest()[:12]}"
    (tmp_path / f"{module}.py").write_text(f"{SOURCE}    def {method}\ndef make(): return Source()\n")
    found = refusal(tmp_path, f"kind: factory, function: '{module}:make'")
    assert found.startswith("mixture.yaml: mixtures.m: ")
    assert said in found
