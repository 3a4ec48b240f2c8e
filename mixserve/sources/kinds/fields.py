"""`fields:` of a source in a configuration file."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast, get_args, get_origin

from pydantic import BeforeValidator, Field

from mixserve.sources.fields import FieldSpec
from mixserve.sources.kinds.base import Name, Section, SourceConfig
from mixserve_client.schema.dtypes import dtype_named


class FixedFieldConfig(Section):
    """A field to serve of a source whose fields all have a fixed shape: `from` the stored field of this name, `as` this
    dtype."""

    source: Name = Field(alias="from")
    dtype: Name | None = Field(default=None, alias="as")


class FieldConfig(FixedFieldConfig):
    """A field to serve that may be ragged, or have nulls; see `FieldSpec`."""

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


FixedFields = Annotated[dict[Name, Annotated[FixedFieldConfig, BeforeValidator(as_section)]], Field(min_length=1)]
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


def fixed_field_specs(fields: Mapping[str, FixedFieldConfig] | None) -> list[FieldSpec] | None:
    """The fields to serve, None for all. Raises ValueError for unknown dtypes."""
    if fields is None:
        return None
    return [
        FieldSpec(name, field.source, None if field.dtype is None else _dtype(name, field.dtype))
        for name, field in fields.items()
    ]


def field_section(kind: type[SourceConfig]) -> type[Section]:
    """The section that a field of `fields:` of the kind is."""
    (annotation, *_) = get_args(kind.model_fields["fields"].annotation)  # of `Fields | None`
    while not (isinstance(annotation, type) and issubclass(annotation, Section)):
        # From Annotated[dict[Name, Annotated[Section, …]], …] to its dict, to the dict's values, to their class.
        annotation = get_args(annotation)[1 if get_origin(annotation) is dict else 0]
    return annotation


def _dtype(field: str, name: str) -> Any:
    try:
        return dtype_named(name)
    except KeyError:
        raise ValueError(f"fields.{field}.as: {name!r:.100} is not a dtype such as int32 or float32") from None
