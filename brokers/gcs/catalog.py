"""The GCS as its node uses it: typed tables, the lineage of its jobs, the event ring.

What    Gathers the writes of one wake into one commit, packs lineage and events in batches.
Caller  brokers/node.py and its rules.
Never   decides; never lets a task wait for the disk.
Spec    docs/explanation/architecture.md, "The GCS and lineage".
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import msgpack

from zray.errors import GcsError, RemoteProtocolError
from zray.protocol.ids import object_id
from zray.protocol.limits import EVENTS_BATCH_MAX, EVENTS_MAX, LINEAGE_BYTES_MAX

from .actor_table import ActorRecord
from .engine import LmdbStore
from .events import EventRing, packed_len
from .lineage import Lineage, Written
from .store import Put, Transaction
from .tables import JobRecord, NodeRecord, Tables

STATES = {
    "PENDING": "pending",
    "STARTING": "pending",
    "ALIVE": "alive",
    "RESTARTING": "restarting",
}
"""What a record calls the states of a dispatcher's living actors."""

_SYNC_S = 1.0
_PRUNE_S = 60.0
_FAILURES_SHOWN = 20
_DEAD_ACTORS_MAX = 10_000
_UNWRITTEN_MAX = 20_000
_COMMIT_OPERATIONS = 2_000


class Catalog:
    """Tables, lineage and events in one directory.

    Args:
        path: directory of the GCS.
        node: this node's id.
        durable: fsync every second (a node that outlives its drivers), or never.
        resources: what the node offers, for its record.
        lineage_bytes_max: of each job; 0: none is kept.
    """

    def __init__(
        self,
        path: str,
        *,
        node: bytes,
        durable: bool,
        resources: dict[str, int],
        lineage_bytes_max: int = LINEAGE_BYTES_MAX,
    ) -> None:
        self.node = node
        self.durable = durable
        self.store = LmdbStore(path)
        self.tables = Tables(self.store)
        self.lineage = Lineage(path + "/ledger", job_bytes_max=lineage_bytes_max)
        self.lineage_written: list[Written] = []
        """What of each job's lineage was on disk after the last flush()."""
        self.events = EventRing(path + "/events", len_max=EVENTS_MAX)
        self._actors: dict[bytes, ActorRecord] = {}
        """Records of living actors, as last written."""
        self._unwritten: dict[bytes, dict[str, Any]] = {}
        self._dead: dict[bytes, ActorRecord] = {}
        self._urgent = False
        self._pruned_at = 0.0
        self.write_failures = 0
        """How often lineage or events could not be written."""
        self.events_unsent = 0
        """Tasks and calls that workers have run and kept no event of."""
        self._synced_at = 0.0
        self._end_leftovers()
        self.tables.nodes.register(NodeRecord(node_id=node))
        self.events.record("node_started", time.time(), node.hex(), str(resources))

    def _end_leftovers(self) -> None:
        """Actors and jobs of an earlier life of this directory are not running any more."""
        for record in self.tables.actors.select():
            if record.state != "dead":
                self.tables.actors.update(
                    record.actor_id, state="dead", death_cause="its node was stopped"
                )
        for job in self.tables.jobs.all():
            if job.state == "running":
                self.tables.jobs.finish(job.job_id, "failed", time.time(), "its node was stopped")

    # -- jobs ------------------------------------------------------------------------------------

    def job_started(self, driver: bytes, pid: int, details: dict[str, Any], now: float) -> None:
        """A driver has connected."""
        entrypoint = str(details.get("entrypoint", ""))
        self.tables.jobs.add(
            JobRecord(
                job_id=driver,
                driver_id=driver,
                driver_pid=pid,
                entrypoint=entrypoint,
                namespace=details.get("namespace") or "",
                started_at=now,
            )
        )
        self.events.record("job_started", now, driver.hex(), pid, entrypoint)

    def job_ended(self, driver: bytes, state: str, now: float) -> None:
        """A driver has gone."""
        self.tables.jobs.finish(driver, state, now)
        self.events.record("job_finished", now, driver.hex(), state)

    # -- actors ----------------------------------------------------------------------------------

    def actor_created(
        self, actor: bytes, class_id: bytes, job: str, details: dict[str, Any]
    ) -> object | None:
        """Record an actor of a job (in hex); returns who has its name already, else None."""
        record = ActorRecord(
            actor_id=actor,
            class_id=class_id,
            job_id=bytes.fromhex(job),
            name=details["name"] or "",
            namespace=details["namespace"] or "",
            class_name=details["class"],
            node_id=self.node,
            restarts_left=details["restarts"],
            detached=details["detached"],
        )
        if details["name"] is not None:
            taken = self.tables.actors.register(record)
            if taken is not None:
                return taken
        self._actors[actor] = record
        self._unwritten[actor] = {}
        return None

    def actor_changed(
        self, actor: bytes, state: str, worker: bytes, incarnation: int, restarts_left: int
    ) -> None:
        """An actor's state is to be recorded, at once where others may look it up by name."""
        if actor not in self._actors:
            return
        self._unwritten.setdefault(actor, {}).update(
            state=STATES[state],
            worker_id=worker,
            incarnation=incarnation,
            restarts_left=restarts_left,
        )
        self._urgent = self._urgent or bool(self._actors[actor].name)

    def actor_died(self, actor: bytes) -> None:
        """An actor has ended: its name is free."""
        record = self._actors.pop(actor, None)
        if record is None:
            return
        self._unwritten.pop(actor, None)
        if record.name:
            self.tables.actors.update(actor, state="dead")
        else:
            self._dead[actor] = replace(record, state="dead")

    def commit(self) -> None:
        """At the end of a wake: write what others may look up by name.

        Nameless actors die with their driver, and nobody finds them through the tables: writing
        each of their states as it changes would be most of the cost of making one.
        """
        if self._urgent or len(self._unwritten) + len(self._dead) >= _UNWRITTEN_MAX:
            self.write()

    def write(self) -> None:
        """Write every actor whose record has changed, in as few commits as may be."""
        self._urgent = False
        records = [self._current(actor, change) for actor, change in self._unwritten.items()]
        records.extend(self._dead.values())
        self._unwritten.clear()
        self._dead.clear()
        now = time.time()
        for at in range(0, len(records), _COMMIT_OPERATIONS):
            part = records[at : at + _COMMIT_OPERATIONS]
            self.store.transact(
                Transaction(
                    (), tuple(Put("actors", record.actor_id, record.pack()) for record in part)
                )
            )
        for record in records:
            self.events.record(
                "actor_state",
                now,
                record.actor_id.hex(),
                record.state,
                record.worker_id.hex(),
                record.incarnation,
                record.death_cause,
            )

    def _current(self, actor: bytes, change: dict[str, Any]) -> ActorRecord:
        record = self._actors[actor]
        if change:
            record = self._actors[actor] = replace(record, **change)
        return record

    def actor_named(self, name: str, namespace: str) -> bytes | None:
        """Return the living actor of a name."""
        self.write()
        record = self.tables.actors.get_by_name(name, namespace)
        return None if record is None else record.actor_id

    def actor_names(self, namespace: str | None) -> list[list[str]]:
        """Return [namespace, name] of living named actors."""
        self.write()
        return [[space, name] for space, name, _actor in self.tables.actors.list_names(namespace)]

    # -- lineage and events ------------------------------------------------------------------------

    def class_declared(self, job: str, client: bytes, number: int, spec: list[Any]) -> None:
        """Append what a client calls by a number: its batches after it say no more than that."""
        self._remember(job, [msgpack.packb(("class", client, number, spec))])

    def tasks_submitted(
        self, job: str, client: bytes, rows: list[list[Any]], payloads: list[bytes]
    ) -> None:
        """Append batches to the ledger, as they came. A task runs also where none can be kept."""
        self._remember(
            job,
            [
                msgpack.packb(("tasks", client, row, payload))
                for row, payload in zip(rows, payloads, strict=True)
            ],
        )

    def forget_lineage(self, job: str) -> None:
        """Nobody will ask for what a job has made: its driver is gone."""
        self.lineage.drop(job)

    def _remember(self, job: str, records: list[bytes]) -> None:
        try:
            self.lineage.append(job, records)
        except GcsError as error:
            self._unwritable("lineage", error)

    def tasks_finished(
        self, worker: bytes, pid: int, reports: list[list[Any]], functions: list[str]
    ) -> None:
        """Record what a worker has executed: one event a report, and one for each that failed."""
        now = time.time()
        name = worker.hex()
        self.events.record_batch(
            msgpack.packb(
                [
                    (
                        "task_executed",
                        now,
                        object_id(client, first + low),
                        function,
                        name,
                        now - busy_us / 1e6,
                        busy_us / 1e6,
                        any(failed),
                        high - low,
                        pid,
                    )
                    for (client, first, low, high, busy_us, *failed), function in zip(
                        reports, functions, strict=True
                    )
                ]
            )
        )
        for (client, first, _low, _high, _busy_us, *failed), function in zip(
            reports, functions, strict=True
        ):
            for item in failed[0] if failed else ():
                self.task_failed(client, first + item, function, "it raised")

    def task_failed(self, client: bytes, number: int, function: str, reason: str) -> None:
        """Record that a task has ended with an error."""
        self.events.record("task_failed", time.time(), object_id(client, number), function, reason)

    def ran(self, worker: bytes, pid: int, packed: bytes, dropped: int) -> None:
        """Record what a worker says it ran: events as it packed them, and how many are in none.

        Raises:
            RemoteProtocolError: they are no events, or more than one message may have.
        """
        if packed:
            try:
                batch_len = packed_len(packed)
            except GcsError as error:
                raise RemoteProtocolError(f"EVENTS: {error}") from None
            if batch_len > EVENTS_BATCH_MAX:
                raise RemoteProtocolError(f"EVENTS with {batch_len} events")
            self.events.record_batch(packed)
        if dropped:
            self.events_unsent += dropped
            self.events.record("events_dropped", time.time(), worker.hex(), pid, dropped)

    # -- key-value ---------------------------------------------------------------------------------

    def kv(self, op: str, arguments: list[Any]) -> Any:
        """Serve one KV request: put, get, delete, exists, keys."""
        table = self.tables.kv
        namespace, key, *rest = arguments
        if op == "put":
            return table.put(key, rest[0], namespace=namespace, overwrite=rest[1])
        if op == "get":
            return table.get(key, namespace=namespace)
        if op == "delete":
            return table.delete(key, namespace=namespace)
        if op == "exists":
            return table.exists(key, namespace=namespace)
        if op == "keys":
            return table.keys(key, namespace=namespace)
        raise RemoteProtocolError(f"unknown KV operation {op!r}")

    # -- upkeep ------------------------------------------------------------------------------------

    def flush(self, now: float) -> None:
        """Write what has gathered; a few times a second."""
        self.write()
        if now - self._pruned_at >= _PRUNE_S:
            self._pruned_at = now
            self.tables.actors.prune(_DEAD_ACTORS_MAX)
        # A full disk, or no descriptor left: what is queued is kept for the next time, within its
        # bound. Lineage and events are no reason for a node to end.
        try:
            self.lineage_written = []
            self.lineage_written = self.lineage.flush()
            self.events.flush(now)
        except GcsError as error:
            self._unwritable("lineage and events", error)
        if self.durable and now - self._synced_at >= _SYNC_S:
            self._synced_at = now
            self.store.sync()

    def _unwritable(self, what: str, error: GcsError) -> None:
        self.write_failures += 1
        if self.write_failures <= _FAILURES_SHOWN:
            print(f"{what} can't be written: {error}", flush=True)

    def statistics(self) -> dict[str, Any]:
        """Return sizes for status and metrics."""
        events = self.events.statistics()
        return {
            "revision": self.store.revision,
            **self.lineage.statistics(),
            "events_recorded": events.recorded,
            "events_dropped": events.dropped,
            "events_unsent": self.events_unsent,
            "write_failures": self.write_failures,
        }

    def close(self, now: float) -> None:
        """Write everything and close; what nobody can open again is not worth writing."""
        if self.durable:
            self.write()
        self.lineage.close()
        self.events.close(now, sync=self.durable)
        if self.durable:
            self.store.sync()
        self.store.close()
