"""Records: dataclasses that the GCS stores as msgpack arrays.

What    The stored form of a record, with its schema's number first, and the guarded updates
        that the tables of records share.
Caller  tables.py, actor_table.py.
Never   keeps a copy of what is in the store.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, ClassVar, Self, TypeVar, cast

import msgpack

from zray.errors import GcsError

from .store import Compare, Entry, Store

RecordT = TypeVar("RecordT", bound="Record")


class Record:
    """A dataclass that is stored as the msgpack array [SCHEMA, *fields in order]."""

    SCHEMA: ClassVar[int] = 1

    def pack(self) -> bytes:
        """Return the stored form."""
        values = [getattr(self, name) for name in _field_names(type(self))]
        return cast("bytes", msgpack.packb([self.SCHEMA, *values]))

    @classmethod
    def unpack(cls, packed: bytes) -> Self:
        """Return the record of a stored form.

        Raises:
            GcsError: it was written by a release with another schema.
        """
        schema, *values = msgpack.unpackb(packed, strict_map_key=False)
        if schema != cls.SCHEMA:
            raise GcsError(
                f"a {cls.__name__} of schema {schema} cannot be read by this release, which knows "
                f"{cls.SCHEMA}; start the release that wrote the store"
            )
        return cls(*values)


def _field_names(record_class: type[Any]) -> tuple[str, ...]:
    """Return the names of a record's fields, computed once a class: fields() costs 2 us."""
    names = _names_of.get(record_class)
    if names is None:
        names = _names_of[record_class] = tuple(field.name for field in fields(record_class))
    return names


_names_of: dict[type[Any], tuple[str, ...]] = {}


class RecordTable:
    """Reads and guarded updates that the tables of records share."""

    # Losing this many races in a row means a writer that never stops, and not bad luck.
    _ATTEMPTS_MAX: ClassVar[int] = 100

    def __init__(self, store: Store, table: str) -> None:
        self._store = store
        self._table = table

    def _read(self, key: bytes, record_class: type[RecordT]) -> tuple[RecordT, Entry] | None:
        entry = self._store.get(self._table, key)
        return None if entry is None else (record_class.unpack(entry.value), entry)

    def _records(self, record_class: type[RecordT]) -> list[RecordT]:
        snapshot = self._store.scan(self._table)
        return [record_class.unpack(entry.value) for _, entry in snapshot.entries]

    def _unchanged(self, key: bytes, entry: Entry | None) -> Compare:
        """Return the comparison that fails if `key` has changed since `entry` was read."""
        return Compare(self._table, key, "revision", entry.modify_revision if entry else 0)

    def _too_many_races(self, key: bytes) -> GcsError:
        return GcsError(
            f"key {key.hex()} of table {self._table!r} was changed by others "
            f"{self._ATTEMPTS_MAX} times in a row; let one process own its updates"
        )
