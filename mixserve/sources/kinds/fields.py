"""`fields:` of a source in a configuration file."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast

from pydantic import BeforeValidator, Field

from mixserve.sources.fields import FieldSpec
from mixserve.sources.kinds.base import Name, Section
from mixserve_client.schema.dtypes import dtype_named


class FieldConfig(Section):
    """A field to serve: `from` the stored field of this name, `as` this dtype; see `FieldSpec`."""

    source: Name = Field(alias="from")
    dtype: Name | None = Field(default=None, alias="as")
    length: int | None = Field(default=None, ge=1, le=1 << 30)
    pad: int | float = 0
    lengths: Name | None = None
    long: Literal["refuse", "cut"] = "refuse"
    null: int | float | None = None


def as_section(value: Any) -> Any:
    """A field in YAML as a section: `tokens: input_ids` is short for `tokens: {from: input_ids}`."""
    if isinstance(value, dict):
        # YAML reads the key `null` as nothing.
        return {"null" if key is None else key: item for key, item in cast(dict[Any, Any], value).items()}
    return {"from": value} if isinstance(value, str) else value


Fields = dict[Name, Annotated[FieldConfig, BeforeValidator(as_section)]]


def field_specs(fields: Mapping[str, FieldConfig] | None) -> list[FieldSpec] | None:
    """The fields to serve, None for all that have a fixed shape. Raises ValueError for unknown dtypes."""
    if fields is None:
        return None
    return [
        FieldSpec(
            name,
            field.source,
            None if field.dtype is None else _dtype(name, field.dtype),
            field.length,
            field.pad,
            field.lengths,
            field.long,
            null=field.null,
        )
        for name, field in fields.items()
    ]


def _dtype(field: str, name: str) -> Any:
    try:
        return dtype_named(name)
    except KeyError:
        raise ValueError(f"fields.{field}.as: {name!r:.100} is not a dtype such as int32 or float32") from None
