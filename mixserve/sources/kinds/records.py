"""What kinds of sources share whose records are decoded: the keys `record`, `field` and `fields`."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from mixserve.sources.fields import FieldSpec
from mixserve.sources.kinds.base import Name, Paths, SourceConfig
from mixserve.sources.kinds.fields import FieldConfig, as_section, field_specs
from mixserve.sources.kinds.files import find_files

Record = Literal["example", "bytes", "npy", "json"]


class RecordFieldConfig(FieldConfig):
    """A field to serve of records that may lack it: they have the number `default` there; [] for ragged fields."""

    default: int | float | Annotated[list[int], Field(max_length=0)] | None = None


RecordFields = dict[Name, Annotated[RecordFieldConfig, BeforeValidator(as_section)]]


def record_field_specs(fields: RecordFields | None) -> list[FieldSpec] | None:
    """The fields to serve, None for all that have a fixed shape. Raises ValueError for unknown dtypes."""
    specs = field_specs(fields)
    if fields is None or specs is None:
        return None
    return [
        replace(spec, default=() if isinstance(field.default, list) else field.default)
        for spec, field in zip(specs, fields.values(), strict=True)
    ]


class RecordFilesConfig(SourceConfig):
    """Files of records. `record` says what a record is; `field` names the one field of `bytes` and `npy`."""

    path: Paths
    record: Record = "example"
    field: Name | None = None
    fields: RecordFields | None = None

    def open_with(self, source: Callable[..., Any], folder: Path) -> Any:
        """The source of the files, made by `source`. Raises what it raises."""
        return source(
            find_files(self.path, folder),
            record=self.record,
            field=self.field,
            fields=record_field_specs(self.fields),
        )
