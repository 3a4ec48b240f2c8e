"""`kind: zarr`: Zarr arrays and groups, of the versions 2 and 3."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from mixserve.sources.kinds.base import Name, Paths, SourceConfig
from mixserve.sources.kinds.fields import FixedFields, fixed_field_specs
from mixserve.sources.kinds.files import find_files


class ZarrConfig(SourceConfig):
    """Folders of groups, or the folders of arrays by the names of fields."""

    kind: Literal["zarr"]
    path: Paths | Annotated[dict[Name, str], Field(min_length=1)]
    fields: FixedFields | None = None
    missing: Literal["refuse", "fill"] = "refuse"

    def open(self, folder: Path) -> Any:
        from mixserve.sources.zarr_source import ZarrSource

        paths = (
            {name: _find_one(name, path, folder) for name, path in self.path.items()}
            if isinstance(self.path, dict)
            else find_files(self.path, folder, or_folders=True)
        )
        return ZarrSource(paths, fields=fixed_field_specs(self.fields), missing=self.missing)


def _find_one(name: str, path: str, folder: Path) -> Path:
    found = find_files(path, folder, or_folders=True)
    if len(found) > 1:
        raise ValueError(f"path.{name}: must be the folder of one array, and {len(found):,} folders match")
    return found[0]
