"""Data sets of Megatron-LM, as its preprocess_data.py writes them -> a source of windows of tokens."""

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, cast

import numpy as np

from mixserve.sources.megatron_files import MegatronFiles, open_megatron
from mixserve.sources.pieces import Pieces
from mixserve.sources.token_records import TokenRecords, check_token, checked_dtype, checked_stride, served_dtype
from mixserve.sources.token_windows import Part, Windows, refuse_too_few
from mixserve_client.schema.checks import check_integer, check_truth
from mixserve_client.schema.text import show

_LARGEST_SEED = 2**32 - 1  # of NumPy's RandomState


class MegatronSource(TokenRecords):
    """Record r of a data set is its tokens [r*S, r*S + L); L is `sequence_length`, and S is L, less `overlap`. Of
    several data sets, the records of one follow those of the other.

    Megatron's samples have `sequence_length + 1` tokens, of which the next sample has the last one too: pass its
    sequence length and 1 more, and `overlap=1`. Sequences are in the order in which they are stored, or with
    `order={"seed": N}` in that of Megatron's first epoch with this seed: the records are its samples then, of which
    Megatron shuffles the order too.

    With `segments`, records also have `{field}_segment_ids` (from 1) and `{field}_positions` (from 0 in each segment),
    int32. Segments are documents as the index has them, or sequences if these have another order; with `eod`, they end
    at each token `eod` instead, as they do in Megatron.
    """

    def __init__(
        self,
        prefixes: str | PathLike[str] | Iterable[str | PathLike[str]],
        *,
        sequence_length: int,
        overlap: int = 0,
        segments: bool = False,
        eod: int | None = None,
        order: Mapping[str, int] | None = None,
        as_dtype: Any = None,
        field: str = "tokens",
        name: str | None = None,
        vocab_size: int | None = None,
    ):
        """`prefixes` are paths without `.bin` and `.idx`. With `vocab_size`, a sample of the ids is checked to be below
        it (`largest_id(full=True)` checks all).

        Raises ValueError if an index is cut, garbled or of multimodal data, or does not belong to its `.bin` file, if
        data sets store different dtypes, if tokens do not fit into `as_dtype`, if ids are not below `vocab_size`, or if
        no data set holds a window; OSError if a file cannot be read.
        """
        length, stride = checked_stride(sequence_length, overlap)
        segments = check_truth("segments", segments)
        seed = _seed(order)
        given = _prefixes(prefixes)
        opened = [open_megatron(prefix) for prefix in given]
        parts = [Part(files.label, files.tokens) for files in opened]
        stored = [part.tokens for part in parts]
        served = served_dtype(stored, checked_dtype("as_dtype", as_dtype), "all data sets of a MegatronSource")
        if vocab_size is not None:
            vocab_size = check_integer("vocab_size", vocab_size, 1)
        if eod is not None:
            eod = check_token("eod", eod, stored[0].dtype, vocab_size)
        self._made_by = {
            "indices": [files.digest.hex() for files in opened],
            "windows": [length, stride],
            "segments": [segments, eod],
            "seed": seed,
        }
        in_order = seed is None and all(files.is_contiguous for files in opened)
        super().__init__(
            Windows(parts, field, length, stride, joined=False)
            if in_order and (not segments or eod is not None)
            else _pieces(opened, parts, length, stride, seed, with_documents=segments and eod is None),
            field=field,
            as_dtype=served,
            name=name,
            segments=segments,
            eod=eod,
            vocab_size=vocab_size,
        )
        self._arguments = (
            [[str(Path(prefix).absolute()) for prefix in given]],
            {
                "sequence_length": length,
                "overlap": length - stride,
                "segments": segments,
                "eod": eod,
                "order": order,
                "as_dtype": served,
                "field": field,
                "name": name,
                "vocab_size": vocab_size,
            },
        )

    def _digest_options(self) -> dict[str, Any]:
        return self._made_by


def _prefixes(prefixes: Any) -> list[str | PathLike[str]]:
    if isinstance(prefixes, str | PathLike):
        return [prefixes]
    found = list(cast(Iterable[Any], prefixes)) if isinstance(prefixes, Iterable) else []
    if not found or not all(isinstance(prefix, str | PathLike) for prefix in found):
        raise TypeError(f"a MegatronSource needs a path without .bin and .idx, or several, got {show(prefixes)}")
    return found


def _seed(order: Any) -> int | None:
    if order is None:
        return None
    if not isinstance(order, Mapping) or list(order) != ["seed"]:
        raise ValueError(f"order must be {{'seed': N}} or nothing, got {show(order)}")
    return check_integer("order.seed", order["seed"], 0, _LARGEST_SEED)


def _pieces(
    opened: Sequence[MegatronFiles],
    parts: Sequence[Part],
    length: int,
    stride: int,
    seed: int | None,
    *,
    with_documents: bool,
) -> Pieces:
    """Windows over the sequences, each data set for itself, in the order of `seed`."""
    firsts, sizes, documents = list[np.ndarray](), list[np.ndarray](), list[np.ndarray]()
    begin = 0
    for files in opened:
        of_document = files.document_of() if with_documents and seed is None else None
        order = _shuffled(len(files.lengths), seed)
        firsts.append(files.firsts[order] + begin)
        sizes.append(files.lengths[order])
        documents.append(np.arange(len(files.lengths)) if of_document is None else of_document)
        begin += len(files.tokens)
    pieces = Pieces(
        parts,
        np.concatenate(firsts),
        np.concatenate(sizes),
        length=length,
        stride=stride,
        groups=list(map(len, sizes)),
        documents=np.concatenate(documents) if with_documents and seed is None else None,
    )
    if not len(pieces):
        refuse_too_few(parts, length)
    return pieces


def _shuffled(sequences: int, seed: int | None) -> Any:
    """What picks the sequences in their order."""
    if seed is None:
        return slice(None)
    order = np.arange(sequences, dtype=np.int32)
    np.random.RandomState(seed).shuffle(order)  # as Megatron does
    return order
