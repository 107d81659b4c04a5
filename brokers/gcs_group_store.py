"""The table of placement groups in the GCS of a cluster.

What    The interface of group_store.py on the session with the GCS, which repeats what was not
        answered, so that a transaction happens once.
Caller  brokers/placement_groups.py.
Never   decides; is imported by a node that has no cluster.
"""

from __future__ import annotations

from typing import Any

from zray.errors import ZrayError

from .gcs.client import ASK_TIMEOUT_S, GcsSession
from .gcs.client_ranges import RangeUpdate
from .gcs.commands import Command
from .group_store import Done, OnChange
from .group_transactions import TABLE, Transaction


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
