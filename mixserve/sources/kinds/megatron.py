"""`kind: megatron`: data sets of Megatron-LM, pairs of `.bin` and `.idx` files."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from mixserve.sources.kinds.base import Paths, Section, SourceConfig
from mixserve.sources.kinds.files import find_files
from mixserve_client.schema.dtypes import dtype_named


class OrderConfig(Section):
    """The order of Megatron's first epoch with this seed."""

    seed: int = Field(ge=0, lt=2**32)


class MegatronConfig(SourceConfig):
    """Data sets of Megatron-LM, by their paths without `.bin` and `.idx`; the keys are those of `MegatronSource`."""

    kind: Literal["megatron"]
    path: Paths
    sequence_length: int = Field(ge=1)
    overlap: int = Field(default=0, ge=0)
    segments: bool = False
    eod: int | None = None
    order: OrderConfig | None = None
    as_dtype: str | None = Field(default=None, alias="as")
    field: str = "tokens"
    vocab_size: int | None = Field(default=None, ge=1)

    def open(self, folder: Path) -> Any:
        from mixserve.sources.megatron_files import prefix_of
        from mixserve.sources.megatron_source import MegatronSource

        patterns = [self.path] if isinstance(self.path, str) else self.path
        return MegatronSource(
            find_files([f"{prefix_of(pattern)}.idx" for pattern in patterns], folder),
            sequence_length=self.sequence_length,
            overlap=self.overlap,
            segments=self.segments,
            eod=self.eod,
            order=None if self.order is None else {"seed": self.order.seed},
            as_dtype=None if self.as_dtype is None else dtype_named(self.as_dtype),
            field=self.field,
            vocab_size=self.vocab_size,
        )
