"""Where the table of placement groups is: in this node, or in the GCS of its cluster.

What    Two stores with one interface: transact() and get(), answered by callback, and every change
        told in order. OwnStore is a dict; the other one is in gcs_group_store.py.
Caller  brokers/placement_groups.py.
Never   decides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from .group_transactions import Transaction

Done = Callable[[Any, Exception | None], None]
"""Called once with (result, None) or (None, error)."""

OnChange = Callable[[bool, list[tuple[bytes, bytes | None]]], None]
"""Called with whether this is the whole table, and pairs of key and value; None: it is gone."""


class GroupStore(Protocol):
    """The table, wherever it is."""

    def transact(self, transaction: Transaction, done: Done, *, patient: bool = False) -> None:
        """Write if all comparisons hold; `done` gets whether they did."""
        ...

    def get(self, key: bytes, done: Done) -> None:
        """`done` gets the value, or None."""
        ...


class OwnStore:
    """Of a node that shares it with nobody.

    Args:
        on_change: told of the empty table, and then of each change.
    """

    def __init__(self, on_change: OnChange) -> None:
        self._rows: dict[bytes, bytes] = {}
        self._on_change = on_change
        on_change(True, [])

    def transact(self, transaction: Transaction, done: Done, *, patient: bool = False) -> None:
        """Write if all comparisons hold; `done` gets whether they did."""
        compare, operations = transaction
        holds = all(self._holds(key, how, operand) for _table, key, how, operand in compare)
        changes: list[tuple[bytes, bytes | None]] = []
        for operation in operations if holds else ():
            kind, _table, key, *value = operation
            if kind == "put":
                self._rows[key] = value[0]
                changes.append((key, value[0]))
            elif self._rows.pop(key, None) is not None:
                changes.append((key, None))
        if changes:
            self._on_change(False, changes)
        done(holds, None)

    def _holds(self, key: bytes, how: str, operand: Any) -> bool:
        value = self._rows.get(key)
        if how == "value":
            return bool(value == operand)
        return (value is not None) == (how == "exists")

    def get(self, key: bytes, done: Done) -> None:
        """`done` gets the value, or None."""
        done(self._rows.get(key), None)
