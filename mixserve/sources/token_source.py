"""Flat sequences of token ids -> a source whose records are windows of one length, or packed documents."""

from collections.abc import Iterable, Sequence
from numbers import Integral
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from mixserve.sources.array_like import is_array
from mixserve.sources.packed_documents import Long, pack_documents
from mixserve.sources.token_files import Header, open_token_file
from mixserve.sources.token_records import (
    TokenRecords,
    check_token,
    checked_dtype,
    checked_stride,
    served_dtype,
)
from mixserve.sources.token_windows import Part, Windows
from mixserve_client.schema.checks import check_integer, check_truth
from mixserve_client.schema.text import show

Tokens = str | PathLike[str] | np.ndarray | Sequence[int]


class TokenSource(TokenRecords):
    """Record r is the tokens [r*S, r*S + L) of all inputs, one after another; L is `sequence_length`, and S is L, less
    `overlap`.

    Inputs are files of token ids, memory-mapped, or one-dimensional arrays or lists. A partial last window is dropped.
    Records have one field, `field`, of the dtype `as_dtype` (default: the stored one).

    `windows="per_file"` cuts each input for itself, and drops a partial last window of each.

    `segments` adds the fields `{field}_segment_ids` (from 1 in each record) and `{field}_positions` (from 0 in each
    segment), int32; the token `eod` is the last one of a segment.

    `pack="best_fit"` puts whole documents together in records, so that as little as possible is left over. It fills
    that with `pad`, which has the segment id 0. A document ends after a token `eod`, and at the end of an input. One of
    more than L tokens is split into several (`long="split"`), cut after L (`"cut"`), or refused (`"refuse"`). Packing
    reads all tokens once, when the source is opened; with `windows="per_file"`, each input is packed for itself.
    """

    def __init__(
        self,
        tokens: Tokens | Iterable[Tokens],
        *,
        sequence_length: int,
        dtype: Any = None,
        as_dtype: Any = None,
        field: str = "tokens",
        name: str | None = None,
        header: Header = "auto",
        overlap: int = 0,
        windows: Literal["joined", "per_file"] = "joined",
        vocab_size: int | None = None,
        eod: int | None = None,
        segments: bool | None = None,
        pack: Literal["best_fit"] | None = None,
        long: Long = "split",
        pad: int = 0,
    ):
        """`dtype` is the dtype of tokens in files, and required for files without a header.

        `header` says how files begin: "auto" reads the headers of llm.c and .npy files and refuses files that are known
        to be something else, "llm.c" and "npy" refuse files without that header, and "none" takes files as they are.
        With `vocab_size`, a sample of the ids is checked to be below it (`largest_id(full=True)` checks all).
        `segments` are on by default if documents are packed.

        Raises ValueError if a file, which the error names, is known to be something else than token ids or has another
        size than its header or its dtype asks for, if inputs store different dtypes, if tokens do not fit into
        `as_dtype`, if ids are not below `vocab_size`, or if all inputs hold less than one window; TypeError for inputs
        and dtypes of other kinds; OSError if a file cannot be read.
        """
        length, stride = checked_stride(sequence_length, overlap)
        check_choice("header", header, ("auto", "none", "llm.c", "npy"))
        check_choice("windows", windows, ("joined", "per_file"))
        segments = pack is not None if segments is None else check_truth("segments", segments)
        _check_packing(pack, long, pad, overlap, segments=segments, eod=eod)
        stored = checked_dtype("dtype", dtype)
        inputs = _inputs(tokens)
        arrays = [_open_tokens(part, stored, header) for part in inputs]
        served = served_dtype(arrays, checked_dtype("as_dtype", as_dtype), "all inputs of a TokenSource")
        if vocab_size is not None:
            vocab_size = check_integer("vocab_size", vocab_size, 1)
        if eod is not None:
            eod = check_token("eod", eod, arrays[0].dtype, vocab_size)
        pad = check_token("pad", pad, served)
        if all(isinstance(part, str | PathLike) for part in inputs):
            self._arguments = (
                [[str(Path(part).absolute()) for part in inputs]],
                {
                    "sequence_length": length,
                    "dtype": stored,
                    "as_dtype": served,
                    "field": field,
                    "name": name,
                    "header": header,
                    "overlap": overlap,
                    "windows": windows,
                    "vocab_size": vocab_size,
                    "eod": eod,
                    "segments": segments,
                    "pack": pack,
                    "long": long,
                    "pad": pad,
                },
            )
        parts = [Part(_label(number, array), array) for number, array in enumerate(arrays)]
        per_file = windows == "per_file"
        self._packing: dict[str, Any] = {}
        if pack is None:
            layout = Windows(parts, field, length, stride, joined=not per_file)
        else:
            assert eod is not None
            layout = pack_documents(parts, length, eod=eod, long=long, pad=pad, per_part=per_file)
            self._packing = {"pack": [pack, length, long, pad, per_file], "eod": eod}
            eod = None  # the segments of packed records are their documents
        super().__init__(
            layout, field=field, as_dtype=served, name=name, segments=segments, eod=eod, vocab_size=vocab_size
        )

    def _digest_options(self) -> dict[str, Any]:
        return super()._digest_options() | self._packing

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "_windows" in state:  # a pickle of version 0.1.0
            windows = Windows.of_rows(state["_rows"], state["_inputs"])
            state = {"name": state["name"], "_layout": windows, "_field": state["_field"]} | {
                "_as_dtype": state["_as_dtype"],
                "_segments": False,
                "_eod": None,
                "_vocab_size": None,
                "_packing": {},
            }
        self.__dict__.update(state)


def check_choice(name: str, value: Any, allowed: Sequence[str]) -> None:
    """Raises ValueError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {show(value)}")


def _check_packing(pack: Any, long: Any, pad: Any, overlap: int, *, segments: bool, eod: int | None) -> None:
    """Raises ValueError for options that do not go together."""
    if eod is None and (segments or pack is not None):
        raise ValueError("segments and pack need eod, the id of the token at the end of documents")
    if pack is None:
        if (long, pad) != ("split", 0):
            raise ValueError("long and pad are for packed documents; say pack='best_fit' too")
        return
    check_choice("pack", pack, ("best_fit",))
    check_choice("long", long, ("split", "cut", "refuse"))
    if overlap:
        raise ValueError(f"overlap must be 0 if documents are packed, got {overlap}")


def _inputs(tokens: Any) -> list[Any]:
    """The inputs, one or several. Raises TypeError, or ValueError if there are none."""
    if isinstance(tokens, str | PathLike) or is_array(tokens):
        return [tokens]
    if not isinstance(tokens, Iterable):
        raise TypeError(f"tokens must be files, or arrays or lists of token ids, got {show(tokens)}")
    inputs = list(cast(Iterable[Any], tokens))
    if not inputs:
        raise ValueError("a TokenSource needs at least one file, array or list of token ids, got none")
    # One list of numbers is one input; a list of lists is several.
    return [inputs] if isinstance(inputs[0], Integral) else inputs


def _label(number: int, part: np.ndarray) -> str:
    return str(part.filename) if isinstance(part, np.memmap) else f"input {number}"


def _open_tokens(tokens: Any, dtype: np.dtype | None, header: Header) -> np.ndarray:
    if isinstance(tokens, str | PathLike):
        return open_token_file(Path(fspath(cast("str | PathLike[str]", tokens))), dtype, header)
    array = np.asarray(tokens)
    if array.ndim != 1:
        raise ValueError(f"an array of tokens must have one dimension, got the shape {array.shape}")
    if array.dtype.kind not in "biufcV":
        raise TypeError(f"tokens must be files, or arrays or lists of token ids, got {show(tokens)}")
    return np.ascontiguousarray(array)
