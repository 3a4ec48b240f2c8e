"""`kind: tokens`: files of token ids, cut into windows or packed."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from mixserve.sources.kinds.base import Paths, SourceConfig
from mixserve.sources.kinds.files import find_files
from mixserve_client.schema.dtypes import dtype_named


class TokensConfig(SourceConfig):
    """Files of token ids, cut into windows of `sequence_length` tokens; the keys are arguments of `TokenSource`."""

    kind: Literal["tokens"]
    path: Paths
    dtype: str | None = None
    sequence_length: int = Field(ge=1)
    as_dtype: str | None = Field(default=None, alias="as")
    field: str = "tokens"
    header: Literal["auto", "none", "llm.c", "npy"] = "auto"
    overlap: int = Field(default=0, ge=0)
    windows: Literal["joined", "per_file"] = "joined"
    vocab_size: int | None = Field(default=None, ge=1)
    eod: int | None = None
    segments: bool | None = None
    pack: Literal["best_fit"] | None = None
    long: Literal["split", "cut", "refuse"] = "split"
    pad: int = 0

    def open(self, folder: Path) -> Any:
        from mixserve.sources.token_source import TokenSource

        return TokenSource(
            find_files(self.path, folder),
            sequence_length=self.sequence_length,
            dtype=None if self.dtype is None else dtype_named(self.dtype),
            as_dtype=None if self.as_dtype is None else dtype_named(self.as_dtype),
            field=self.field,
            header=self.header,
            overlap=self.overlap,
            windows=self.windows,
            vocab_size=self.vocab_size,
            eod=self.eod,
            segments=self.segments,
            pack=self.pack,
            long=self.long,
            pad=self.pad,
        )
