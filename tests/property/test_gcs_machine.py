"""The store of the GCS against a model of a few dictionaries: the same answers, whatever is asked.

Transactions, batches, leases, watches, compaction and restarts in any order; the model is what
the docstrings of zray.brokers.gcs.store promise, written as plainly as can be.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
)

from zray.brokers.gcs.engine import LmdbStore
from zray.brokers.gcs.store import Change, Compare, Delete, Entry, Get, Put, Transaction
from zray.errors import GcsCompactedError, GcsError

TABLES = ("kv", "names")
KEYS = (b"a", b"a\0", b"ab", b"b", b"\xff")
PLACES = st.tuples(st.sampled_from(TABLES), st.sampled_from(KEYS))
VALUES = st.sampled_from((b"", b"1", b"2"))
PREFIXES = st.sampled_from((b"", b"a", b"ab", b"\xff", b"c"))


@dataclass
class Lease:
    """A lease; without a deadline until the time is known."""

    ttl_s: float
    deadline: float | None


@dataclass
class Model:
    """What the store should hold; `changes` are those that can still be watched."""

    entries: dict[tuple[str, bytes], Entry] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)
    revision: int = 0
    compacted: int = 0
    leases: dict[int, Lease] = field(default_factory=dict)

    def holds(self, compare: Compare) -> bool:
        entry = self.entries.get((compare.table, compare.key))
        return {
            "exists": entry is not None,
            "missing": entry is None,
            "value": entry is not None and entry.value == compare.operand,
            "revision": (entry.modify_revision if entry else 0) == compare.operand,
        }[compare.op]

    def transact(self, transaction: Transaction) -> tuple[bool, int, tuple[Entry | None, ...]]:
        succeeded = all([self.holds(compare) for compare in transaction.compare])
        operations = transaction.success if succeeded else transaction.failure
        previous = tuple(self.entries.get((one.table, one.key)) for one in operations)
        revision = self.revision + 1
        for operation, before in zip(operations, previous, strict=True):
            place = (operation.table, operation.key)
            if isinstance(operation, Put):
                created = before.create_revision if before else revision
                entry = Entry(operation.value, created, revision, operation.lease_id)
                self.entries[place] = entry
                self.changes.append(Change(revision, *place, operation.value, created))
            elif isinstance(operation, Delete) and before:
                self.remove(place, revision)
        self.revision = max([self.revision, *(change.revision for change in self.changes)])
        return succeeded, self.revision, previous

    def remove(self, place: tuple[str, bytes], revision: int) -> Change:
        created = self.entries.pop(place).create_revision
        self.changes.append(Change(revision, *place, None, created))
        return self.changes[-1]

    def end(self, lease_ids: list[int]) -> set[Change]:
        revision = self.revision + 1
        bound = [place for place, entry in self.entries.items() if entry.lease_id in lease_ids]
        removed = {self.remove(place, revision) for place in bound}
        self.revision += bool(removed)
        for lease_id in lease_ids:
            del self.leases[lease_id]
        return removed

    def seen(self, table: str, prefix: bytes, since: int) -> list[Change]:
        return [
            change
            for change in self.changes
            if change.table == table and change.key.startswith(prefix) and change.revision >= since
        ]


@st.composite
def transactions(draw):
    comparison = st.one_of(
        st.sampled_from([("exists", None), ("missing", None)]),
        st.tuples(st.just("value"), VALUES),
        st.tuples(st.just("revision"), st.integers(0, 6)),
    )
    compare = [
        Compare(*place, *condition)
        for place, condition in draw(st.lists(st.tuples(PLACES, comparison), max_size=2))
    ]
    kinds = st.sampled_from(("put", "put", "bound put", "delete", "get"))
    branches = [
        draw(st.lists(st.tuples(PLACES, kinds, VALUES), max_size=3, unique_by=lambda one: one[0]))
        for _ in range(2)
    ]
    return compare, branches


class StoreMachine(RuleBasedStateMachine):
    leases = Bundle("leases")
    watches = Bundle("watches")

    @initialize()
    def open(self):
        self.folder = tempfile.mkdtemp(prefix="gcs")
        self.store = LmdbStore(self.folder)
        self.model = Model()
        self.now = 0.0
        self.life = 0

    def teardown(self):
        if hasattr(self, "store"):
            self.store.close(sync=False)
            shutil.rmtree(self.folder)

    def build(self, drawn, lease_id):
        """Make a transaction of what was drawn; a put is bound to the lease only if it lives."""
        compare, branches = drawn
        made = [tuple(self.operation(one, lease_id) for one in branch) for branch in branches]
        return Transaction(tuple(compare), *made)

    def operation(self, drawn, lease_id):
        (table, key), kind, value = drawn
        if kind == "delete":
            return Delete(table, key)
        if kind == "get":
            return Get(table, key)
        return Put(table, key, value, lease_id if kind == "bound put" else 0)

    def some_lease(self):
        return max(self.model.leases, default=0)

    @rule(drawn=transactions())
    def transact(self, drawn):
        transaction = self.build(drawn, self.some_lease())
        result = self.store.transact(transaction)
        assert (result.succeeded, result.revision, result.previous) == self.model.transact(
            transaction
        )

    @rule(drawn=st.lists(transactions(), max_size=4))
    def transact_many(self, drawn):
        batch = [self.build(one, self.some_lease()) for one in drawn]
        results = self.store.transact_many(batch)
        expected = [self.model.transact(transaction) for transaction in batch]
        assert [(one.succeeded, one.revision, one.previous) for one in results] == expected

    @rule(target=leases, ttl_s=st.sampled_from((1.0, 2.0, 5.0)))
    def grant(self, ttl_s):
        lease_id = self.store.grant_lease(ttl_s, self.now)
        assert lease_id not in self.model.leases
        self.model.leases[lease_id] = Lease(ttl_s, self.now + ttl_s)
        return lease_id

    @rule(lease_id=leases)
    def keep_alive(self, lease_id):
        lease = self.model.leases.get(lease_id)
        if lease is None:
            with pytest.raises(GcsError):
                self.store.keep_alive(lease_id, self.now)
        else:
            lease.deadline = self.now + lease.ttl_s
            assert self.store.keep_alive(lease_id, self.now) == lease.deadline

    @rule(lease_id=consumes(leases))
    def revoke(self, lease_id):
        if lease_id in self.model.leases:
            assert set(self.store.revoke_lease(lease_id)) == self.model.end([lease_id])
        with pytest.raises(GcsError):
            self.store.transact(Transaction((), (Put("kv", b"a", b"", lease_id),)))

    @rule(seconds=st.sampled_from((0.5, 1.0, 3.0)))
    def time_passes(self, seconds):
        self.now += seconds
        expired = []
        for lease_id, lease in self.model.leases.items():
            if lease.deadline is None:
                lease.deadline = self.now + lease.ttl_s
            elif lease.deadline <= self.now:
                expired.append(lease_id)
        assert set(self.store.expire_leases(self.now)) == self.model.end(expired)

    @rule(target=watches, table=st.sampled_from(TABLES), prefix=PREFIXES)
    def watch_from_now(self, table, prefix):
        watch = self.store.watch(table, prefix)
        return [watch, table, prefix, self.model.revision + 1, self.life]

    @rule(
        target=watches,
        table=st.sampled_from(TABLES),
        prefix=PREFIXES,
        behind=st.integers(0, 8),
    )
    def watch_from_a_revision(self, table, prefix, behind):
        since = self.model.revision + 1 - behind
        if since <= self.model.compacted:
            with pytest.raises(GcsCompactedError):
                self.store.watch(table, prefix, since)
            return [
                self.store.watch(table, prefix),
                table,
                prefix,
                self.model.revision + 1,
                self.life,
            ]
        return [self.store.watch(table, prefix, since), table, prefix, since, self.life]

    @rule(watched=watches)
    def events(self, watched):
        watch, table, prefix, since, life = watched
        if life != self.life:
            return
        if since <= self.model.compacted:
            with pytest.raises(GcsCompactedError):
                watch.events()
            return
        assert watch.events() == self.model.seen(table, prefix, since)
        watched[3] = self.model.revision + 1

    @precondition(lambda self: self.model.changes)
    @rule(data=st.data())
    def compact(self, data):
        revision = data.draw(st.integers(self.model.compacted, self.model.revision))
        self.store.compact(revision)
        self.forget(revision)

    def forget(self, revision):
        self.model.compacted = max(self.model.compacted, revision)
        self.model.changes = [change for change in self.model.changes if change.revision > revision]

    @rule()
    def restart(self):
        self.store.close(sync=False)
        self.store = LmdbStore(self.folder)
        self.life += 1
        self.forget(self.model.revision)
        for lease in self.model.leases.values():
            lease.deadline = None

    @rule(table=st.sampled_from(TABLES), prefix=PREFIXES, limit=st.sampled_from((None, 1, 2)))
    def scan(self, table, prefix, limit):
        wanted = sorted(
            (key, entry)
            for (name, key), entry in self.model.entries.items()
            if name == table and key.startswith(prefix)
        )
        seen: list[tuple[bytes, Entry]] = []
        after = b""
        while True:
            snapshot = self.store.scan(table, prefix, limit, after=after)
            assert snapshot.revision == self.model.revision
            seen += snapshot.entries
            if not snapshot.more:
                break
            after = seen[-1][0]
        assert seen == wanted

    @invariant()
    def same_entries_and_revisions(self):
        if not hasattr(self, "store"):
            return
        assert self.store.revision == self.model.revision
        assert self.store.compacted_revision == self.model.compacted
        for table in TABLES:
            for key in KEYS:
                assert self.store.get(table, key) == self.model.entries.get((table, key))


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
