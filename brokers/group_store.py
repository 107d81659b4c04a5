"""Where the table of placement groups is: in this node, or in the GCS of its cluster.

What    Two stores with one interface: transact() and get(), answered by callback, and every change
        told in order. OwnStore is a dict; GcsStore asks the session with the GCS, which repeats
        what was not answered, so that a transaction happens once.
Caller  brokers/placement_groups.py.
Never   decides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from zray.errors import ZrayError

from .gcs.client import ASK_TIMEOUT_S, GcsSession
from .gcs.client_ranges import RangeUpdate
from .gcs.commands import Command
from .group_transactions import TABLE, Transaction

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


class GcsStore:
    """Of a cluster.

    Args:
        session: with its GCS.
        on_change: told of the whole table whenever a session has read it, then of each change.
    """

    def __init__(self, session: GcsSession, on_change: OnChange) -> None:
        self._session = session
        self._on_change = on_change
        session.watch(TABLE, b"", self._changed)

    def _changed(self, update: RangeUpdate) -> None:
        self._on_change(update.reset, [(change.key, change.value) for change in update.changes])

    def transact(self, transaction: Transaction, done: Done, *, patient: bool = False) -> None:
        """Write if all comparisons hold; `done` gets whether they did.

        Args:
            transaction: comparisons and operations.
            done: gets an error where the GCS does not answer in time, unless `patient`.
            patient: it is repeated for as long as the session lasts.
        """

        def took(result: Any, error: Exception | None) -> None:
            done(None if error is not None else bool(result[0]), error)

        compare, operations = transaction
        self._ask(Command("TRANSACT", (compare, operations, [])), took, patient=patient)

    def get(self, key: bytes, done: Done) -> None:
        """`done` gets the value, or None."""

        def took(row: Any, error: Exception | None) -> None:
            done(None if error is not None or row is None else row[0], error)

        self._ask(Command("GET", (TABLE, key)), took, patient=False)

    def _ask(self, command: Command, done: Done, *, patient: bool) -> None:
        timeout_s = float("inf") if patient else ASK_TIMEOUT_S
        try:
            self._session.ask(command, done, timeout_s=timeout_s)
        except ZrayError as error:
            done(None, error)
        else:
            self._session.flush()
