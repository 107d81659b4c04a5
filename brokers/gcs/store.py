"""The interface of the GCS: compare-and-transact, lease, watch from a revision.

What    Data classes and two protocols in etcd's shape, so that another engine (a replicated
        one, or etcd itself) can stand behind the same tables. The rules every engine keeps:
        a transaction happens whole or not at all; one that changes something takes the next
        global revision, and all its changes carry that revision; a key's revision is that of
        its last change, and 0 is the revision of a key that is missing.
Caller  engine.py implements it; tables.py and the node use it.
Never   opens a file, reads a clock (now is an argument, in seconds) or interprets a value.
Spec    docs/explanation/architecture.md, "The GCS and lineage".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Protocol, Self

from zray.errors import GcsError

Comparison = Literal["exists", "missing", "value", "revision"]

_OPERAND_TYPES: dict[str, type] = {
    "exists": type(None),
    "missing": type(None),
    "value": bytes,
    "revision": int,
}


@dataclass(frozen=True, slots=True)
class Entry:
    """What the store holds under one key."""

    # LMDB's own bound is 511 bytes; a round number below it also fits other engines.
    KEY_BYTES_MAX: ClassVar[int] = 500
    # The same bound limits what one slow reader can make a store hold in memory.
    VALUE_BYTES_MAX: ClassVar[int] = 64 << 20

    value: bytes
    create_revision: int
    modify_revision: int
    lease_id: int = 0


def _check_key(table: str, key: bytes) -> None:
    """Refuse a table or key that an engine could not store."""
    if not table or table.startswith("_") or len(table) > 64:
        raise GcsError(
            f"table name {table!r} is refused: give 1 to 64 characters, the first no underscore"
        )
    if not 0 < len(key) <= Entry.KEY_BYTES_MAX:
        raise GcsError(
            f"a key of {len(key)} bytes in table {table!r} is refused: keys have 1 to "
            f"{Entry.KEY_BYTES_MAX} bytes; store a hash of a longer name instead"
        )


@dataclass(frozen=True, slots=True)
class Compare:
    """One condition of a transaction.

    Args:
        table: name of the table.
        key: 1 to 500 bytes.
        op: "exists" and "missing" take no operand, "value" takes the bytes that the key must
            hold, "revision" the revision of its last change (0: the key is missing).
        operand: see `op`.

    Raises:
        GcsError: the key or the operand does not fit.
    """

    table: str
    key: bytes
    op: Comparison
    operand: bytes | int | None = None

    def __post_init__(self) -> None:
        _check_key(self.table, self.key)
        expected = _OPERAND_TYPES.get(self.op)
        if expected is None or not isinstance(self.operand, expected):
            raise GcsError(
                f"comparison {self.op!r} with {type(self.operand).__name__} is refused: say "
                "exists or missing without operand, value with bytes or revision with int"
            )


@dataclass(frozen=True, slots=True)
class Put:
    """Write `value` under a key, attached to a lease unless `lease_id` is 0.

    Raises:
        GcsError: the key has not 1 to 500 bytes, or the value more than 64 MiB.
    """

    table: str
    key: bytes
    value: bytes
    lease_id: int = 0

    def __post_init__(self) -> None:
        _check_key(self.table, self.key)
        if len(self.value) > Entry.VALUE_BYTES_MAX:
            raise GcsError(
                f"a value of {len(self.value)} bytes in table {self.table!r} is refused: the "
                f"bound is {Entry.VALUE_BYTES_MAX} bytes; put it into the object store instead"
            )


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove a key; removing a missing one changes nothing.

    Raises:
        GcsError: the key has not 1 to 500 bytes.
    """

    table: str
    key: bytes

    def __post_init__(self) -> None:
        _check_key(self.table, self.key)


@dataclass(frozen=True, slots=True)
class Get:
    """Read a key inside a transaction; the entry comes back in `TransactionResult.previous`.

    Raises:
        GcsError: the key has not 1 to 500 bytes.
    """

    table: str
    key: bytes

    def __post_init__(self) -> None:
        _check_key(self.table, self.key)


@dataclass(frozen=True, slots=True)
class Transaction:
    """If every comparison holds do `success`, else do `failure`, in one step.

    Raises:
        GcsError: a branch has more than 4096 operations or changes one key twice.
    """

    OPERATIONS_MAX: ClassVar[int] = 4096

    compare: tuple[Compare, ...] = ()
    success: tuple[Put | Delete | Get, ...] = ()
    failure: tuple[Put | Delete | Get, ...] = ()

    def __post_init__(self) -> None:
        for branch in (self.success, self.failure):
            if len(branch) < 2:
                continue
            if len(branch) > self.OPERATIONS_MAX:
                raise GcsError(
                    f"a transaction of {len(branch)} operations is refused: split it, the bound "
                    f"is {self.OPERATIONS_MAX}"
                )
            if len({(operation.table, operation.key) for operation in branch}) < len(branch):
                # Both changes would carry one revision, and a watcher could not order them.
                raise GcsError("a transaction that names one key twice is refused: merge the two")


@dataclass(frozen=True, slots=True)
class TransactionResult:
    """What a transaction did.

    `previous` has one item per operation of the branch that ran: the entry before it, or None.
    `revision` is the store's after the transaction.
    """

    succeeded: bool
    revision: int
    previous: tuple[Entry | None, ...] = ()


class Change(NamedTuple):
    """One change as a watcher sees it; `value` is None where the key was removed."""

    revision: int
    table: str
    key: bytes
    value: bytes | None
    create_revision: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Entries of a range in key order, all as of `revision`; `more` says the limit cut it."""

    revision: int
    entries: tuple[tuple[bytes, Entry], ...]
    more: bool = False


class Reader(Protocol):
    """The store as it is until its one writer commits again; a context manager."""

    def get(self, table: str, key: bytes) -> Entry | None:
        """Return the entry under `key`, or None."""
        ...

    def close(self) -> None:
        """Let go of the store: what is written over can be used again."""
        ...

    def __enter__(self) -> Self:
        """Return the reader itself."""
        ...

    def __exit__(self, *exception: object) -> None:
        """Close it."""
        ...


class Watch(Protocol):
    """Changes of one range, in order, each exactly once."""

    def events(self) -> list[Change]:
        """Return the changes since the last call; never waits, never splits a transaction.

        Raises:
            GcsCompactedError: the watcher was too slow and its changes are no longer kept;
                read a snapshot and watch again from the revision after it.
        """
        ...

    def close(self) -> None:
        """Give up the watch; events() is refused afterwards."""
        ...


class Store(Protocol):
    """The tables of the GCS as bytes. All methods may raise GcsUnavailableError."""

    @property
    def revision(self) -> int:
        """The revision of the last change; 0 for a store that never had one."""
        ...

    @property
    def compacted_revision(self) -> int:
        """Changes up to and including this revision can no longer be watched."""
        ...

    def transact(self, transaction: Transaction) -> TransactionResult:
        """Run one transaction.

        Raises:
            GcsError: it puts under a lease that does not exist.
        """
        ...

    def transact_many(self, transactions: Sequence[Transaction]) -> list[TransactionResult]:
        """Run transactions one after another, with the cost of one commit.

        Each sees what those before it did and has a revision of its own. They become durable
        together: after a failure either all or none have happened.

        Raises:
            GcsError: one puts under a lease that does not exist; none has happened.
        """
        ...

    def commit(self, changes: Sequence[Change]) -> None:
        """Make changes that were worked out already, all of them or none.

        For the one writer of a store, who has read what they depend on. Their revisions follow the
        store's one by one or in groups of one revision; none of their keys has a lease.

        Raises:
            InternalError: somebody else has written since.
        """
        ...

    def reader(self) -> Reader:
        """Return what reads many keys at the cost of one; for the one writer, between commits."""
        ...

    def get(self, table: str, key: bytes) -> Entry | None:
        """Return the entry under `key`, or None."""
        ...

    def scan(
        self, table: str, prefix: bytes = b"", limit: int | None = None, *, after: bytes = b""
    ) -> Snapshot:
        """Return the entries whose key begins with `prefix` and is greater than `after`.

        To watch what was scanned without a gap, watch from `revision + 1` of the result. A scan
        that was cut by its limit is continued with `after` the last key it returned.
        """
        ...

    def grant_lease(self, ttl_s: float, now: float) -> int:
        """Return the id of a new lease that lives `ttl_s` seconds unless it is kept alive."""
        ...

    def keep_alive(self, lease_id: int, now: float) -> float:
        """Give the lease its full time again and return when it will expire.

        Raises:
            GcsError: there is no such lease (any more).
        """
        ...

    def revoke_lease(self, lease_id: int) -> tuple[Change, ...]:
        """End a lease and remove its keys in one transaction.

        Raises:
            GcsError: there is no such lease (any more).
        """
        ...

    def expire_leases(self, now: float) -> tuple[Change, ...]:
        """End every lease whose time is up and remove its keys; return what was removed.

        Deadlines are not stored. After a store is opened each lease has its full time from the
        first call on, so a restart of the store never declares anybody dead.
        """
        ...

    def watch(self, table: str, prefix: bytes = b"", from_revision: int | None = None) -> Watch:
        """Watch a range from `from_revision` on (included), or from the next change on.

        Raises:
            GcsCompactedError: changes of that revision are no longer kept; read a snapshot first.
        """
        ...

    def compact(self, revision: int) -> None:
        """Forget the changes up to and including `revision`; entries stay."""
        ...
