"""Texts that come with every Python -> token files, and the mixture.yaml that mixes them."""

import ast
import inspect
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

SEQUENCE_LENGTH = 129  # 128 bytes of input, and the byte after each as its target
SHARES = {"code": 0.6, "prose": 0.4}
_LIMIT_BYTES = 3_000_000
# Left out: installed packages, tests with deliberately broken syntax, tables, and the prose itself.
_NO_CODE = frozenset({"site-packages", "dist-packages", "test", "tests", "lib2to3", "encodings", "pydoc_data"})
_DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Corpus:
    """One text: its share of the mixture, its size, and the unigram entropy of its bytes."""

    name: str
    share: float
    size_bytes: int
    entropy_bits: float


def write_corpora(folder: Path, *, limit_bytes: int = _LIMIT_BYTES) -> tuple[Corpus, ...]:
    """Write code.bin, prose.bin and mixture.yaml to `folder`, from up to `limit_bytes` bytes of source code."""
    modules = list(_modules(limit_bytes))
    texts = {"code": b"".join(modules), "prose": "\n\n".join(_prose(modules)).encode(errors="replace")}
    for name, text in texts.items():
        (folder / f"{name}.bin").write_bytes(text)
    sources = {
        name: {
            "kind": "tokens",
            "path": f"{name}.bin",
            "dtype": "uint8",
            "sequence_length": SEQUENCE_LENGTH,
            "weight": share,
        }
        for name, share in SHARES.items()
    }
    document = {"mixtures": {"train": {"sources": sources}}}
    mixture_file(folder).write_text(yaml.safe_dump(document, sort_keys=False), "utf-8")
    return tuple(Corpus(name, share, len(texts[name]), entropy_bits(texts[name])) for name, share in SHARES.items())


def mixture_file(folder: Path) -> Path:
    """The path of the mixture's configuration."""
    return folder / "mixture.yaml"


def entropy_bits(text: bytes) -> float:
    """The unigram entropy of `text` in bits per byte: the loss of the best model without context."""
    counts = np.bincount(np.frombuffer(text, np.uint8))
    frequencies = counts[counts > 0] / len(text)
    return float(-(frequencies * np.log2(frequencies)).sum())


def _modules(limit_bytes: int) -> Iterator[bytes]:
    """The standard library's source files, sorted, up to `limit_bytes` bytes."""
    left = limit_bytes
    for path in _source_files(Path(sysconfig.get_path("stdlib"))):
        module = path.read_bytes()
        left -= len(module)
        if left < 0:
            return
        yield module


def _source_files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path.name not in _NO_CODE:
            yield from _source_files(path)
        elif path.suffix == ".py":
            yield path


def _prose(modules: Iterable[bytes]) -> Iterator[str]:
    """The language reference as pydoc shows it, then the docstrings of `modules`."""
    from pydoc_data.topics import topics

    yield from (topics[title] for title in sorted(topics))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's warnings about the standard library
        trees = [ast.parse(module) for module in modules]
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, _DOCUMENTED) and (text := ast.get_docstring(node, clean=False)):
                yield inspect.cleandoc(text)
