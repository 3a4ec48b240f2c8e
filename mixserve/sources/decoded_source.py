"""Stored records that must be decoded, and a decoder -> a source."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Protocol

import jax
import numpy as np

from mixserve.error_boundary import WrongRecord
from mixserve.sources.decoders import BytesDecoder, Decoder, JsonDecoder, NpyDecoder
from mixserve.sources.digest import digest_files
from mixserve.sources.fields import FieldSpec, Served, has_value, serve_fields
from mixserve.sources.open_file import OpenFile
from mixserve.sources.prepared import chosen_folder
from mixserve.sources.reopened import Arguments, reduce_to_paths
from mixserve.sources.source import ElementSpec, RecordIds, Records

RECORDS = ("example", "bytes", "npy", "json")
FIELD = "data"
_MOST_ERRORS = 64  # of records, while the fields are looked for


class RecordStore(Protocol):
    """Records in files, by number, as the decoder takes them. May be read by many threads at once."""

    def __len__(self) -> int: ...

    def read(self, record_ids: Sequence[int]) -> list[Any]:
        """The records of these ids, in this order. Raises OSError, SourceChanged, or WrongRecord with the place."""
        ...

    def locate(self, record_id: int) -> str: ...

    def files(self) -> Sequence[OpenFile]: ...

    def heads(self) -> Sequence[bytes]:
        """What the format says of its records in few bytes, for the digest."""
        ...

    def use(self, fields: Sequence[Served]) -> None:
        """Read only these fields from now on. Raises ValueError if records are known to lack one."""
        ...

    def announce(self, record_ids: Sequence[int]) -> None:
        """Ask the system to read the bytes of these records soon."""
        ...


class DecodedSource:
    """Record r is what `decoder` makes of the record r of `store`: the `fields` that are served."""

    def __init__(
        self,
        store: RecordStore,
        decoder: Decoder,
        fields: Sequence[FieldSpec] | None,
        *,
        name: str | None,
        options: Mapping[str, Any],
        arguments: Arguments,
    ):
        """`options` change the records, and enter the digest; `arguments` of the subclass open the same source again.

        Raises ValueError if there are no records, or if fields cannot be served as `fields` says.
        """
        if len(store) == 0:
            raise ValueError("the files have no records")
        self.name = name
        self._store, self._decoder, self._options = store, decoder, options
        self._arguments, self._prepared = arguments, chosen_folder()
        self._served = serve_fields(self._stored(fields), fields)
        for field in self._served:
            _check_default(field)
        store.use(self._served)

    def __len__(self) -> int:
        return len(self._store)

    def element_spec(self) -> ElementSpec:
        return {
            name: jax.ShapeDtypeStruct(shape, dtype)
            for field in self._served
            for name, (shape, dtype) in field.specs.items()
        }

    def take(self, record_ids: RecordIds) -> Records:
        ids: list[int] = record_ids.tolist()
        if ids and (min(ids) < 0 or max(ids) >= len(self)):
            raise IndexError(f"record ids must be in 0..{len(self) - 1}, got {min(ids)} to {max(ids)}")
        records = self._store.read(ids)
        rows = self._decode(records, ids)
        taken: dict[str, np.ndarray] = {}
        for number, field in enumerate(self._served):
            taken |= self._fit(field, [row[number] for row in rows], ids)
        return taken

    def prefetch(self, record_ids: RecordIds) -> None:
        """Ask the system to read the bytes of these records soon."""
        self._store.announce(record_ids.tolist())

    def files(self) -> Sequence[OpenFile]:
        """The open files of the records."""
        return self._store.files()

    def locate(self, record_id: int) -> str:
        """The file of the record, and where in it the record lies."""
        return self._store.locate(record_id)

    def content_digest(self) -> bytes:
        """The identity of the content in a mixture's fingerprint."""
        served = [field.description for field in self._served]
        options = {"records": len(self), "fields": served, **self._options}
        return digest_files(self._store.files(), options, self._store.heads())

    def __reduce__(self) -> Any:
        return reduce_to_paths(self, self._arguments, self._prepared)

    def __repr__(self) -> str:
        spec = self.element_spec()
        fields = ", ".join(f"{name}: {leaf.dtype.name}{list(leaf.shape)}" for name, leaf in spec.items())
        return f"{type(self).__name__}({{{fields}}}, length={len(self)})"

    def _stored(self, fields: Sequence[FieldSpec] | None) -> Any:
        """The stored fields, by the first records that can be decoded. Raises the error of the first record if none of
        the first few can be: then the data are something else."""
        errors: list[ValueError] = []
        records = self._decodable(fields, errors)
        try:
            first = next(records, None)
            if first is None:
                raise errors[0]
            return self._decoder.stored(chain([first], records), fields)
        finally:
            errors.clear()  # they lead to this frame

    def _decodable(self, fields: Sequence[FieldSpec] | None, errors: list[ValueError]) -> Iterator[Any]:
        """The records that can be decoded alone, until too many cannot be; their errors are appended to `errors`."""
        for record_id in range(len(self._store)):
            try:
                record = self._store.read([record_id])[0]
                self._decoder.stored([record], fields)
            except WrongRecord as error:
                errors.append(error)
            except ValueError as error:
                located = ValueError(f"{self._store.locate(record_id)}: {error}")
                located.__cause__ = error
                errors.append(located)
            else:
                yield record
            if len(errors) == _MOST_ERRORS:
                return

    def _decode(self, records: Sequence[Any], ids: Sequence[int]) -> list[list[np.ndarray]]:
        decode, served = self._decoder.decode, self._served
        rows: list[list[np.ndarray]] = []
        try:
            # One by one: after an error their number is the place of the record that has it.
            rows.extend(decode(record, served) for record in records)
        except ValueError as error:
            raise WrongRecord(f"{self._store.locate(ids[len(rows)])}: {error}") from error
        return rows

    def _fit(self, field: Served, rows: Sequence[np.ndarray], ids: Sequence[int]) -> dict[str, np.ndarray]:
        try:
            return field.fit(rows, ids)
        except WrongRecord:
            for row, record_id in zip(rows, ids, strict=True):
                try:
                    field.fit([row], [record_id])
                except WrongRecord as error:
                    said = f"{self._store.locate(record_id)}: {error}{_hint(field, row)}"
                    raise type(error)(said) from None
            raise


def decoder_of(record: str, field: str | None) -> Decoder:
    """The decoder that `record` names. Raises ValueError for other names, and for a `field` that it does not take."""
    if record not in RECORDS:
        raise ValueError(f"record: {record!r:.100} is not one of {', '.join(RECORDS)}")
    if record in ("bytes", "npy"):
        return (BytesDecoder if record == "bytes" else NpyDecoder)(FIELD if field is None else field)
    if field is not None:
        raise ValueError(f"field: the records have names for their fields if they are record: {record}; use fields:")
    if record == "json":
        return JsonDecoder()
    from mixserve.sources.examples import ExampleDecoder

    return ExampleDecoder()


def _check_default(field: Served) -> None:
    default, where = field.spec.default, f"fields.{field.spec.name}.default"
    if default is None:
        return
    if field.stored.is_ragged:
        if default != ():
            raise ValueError(f"{where}: must be [] for a field with a length (pad fills it), got {default}")
    elif isinstance(default, tuple):
        raise ValueError(f"{where}: [] is for fields with a length; this one needs a number")
    elif not has_value(field.stored.dtype, default):
        raise ValueError(f"{where}: {default} is not a value of {field.stored.dtype}")


def _hint(field: Served, row: np.ndarray) -> str:
    is_other_length = not field.stored.is_ragged and row.ndim > 0 and row.dtype == field.stored.dtype
    return "; if its length differs between records, give it a length" if is_other_length else ""
