"""The tasks that one node knows of, as blocks of rows; and its events.

What    What waits in its queues and at workers, what its processes say of themselves (arguments
        that are not there, leased tasks, calls of actors), and what has ended, from its events.
Caller  brokers/state_rows.py.
Never   makes a row for each of many tasks that are alike: a block stands for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zray.protocol.ids import OBJECT_ID_BYTES, is_guest, node_of, number_of, owner_of
from zray.protocol.units import RESOURCE_UNITS

from .bundles import as_asked
from .row_filters import Wanted
from .scheduling import Range, job_of

if TYPE_CHECKING:
    from .node import Node

EVENTS_SCANNED_MAX = 20_000
"""Events that a question about tasks looks at: more would hold up the node."""

Said = Mapping[bytes, Mapping[str, Any]]
"""What processes say of themselves (zray/runtime_state.py), by process."""

_NO_NUMBERS: frozenset[int] = frozenset()


@dataclass(slots=True)
class Block:
    """A row, or one for each of the tasks ``number`` to ``number + count`` of ``client``.

    Args:
        row: its columns, without the id where it stands for many.
        client: whose tasks they are; b"" where the row is whole.
        number: of the first.
        count: how many, those of ``without`` counted.
        without: numbers that have a row of their own.
    """

    row: dict[str, Any]
    client: bytes = b""
    number: int = 0
    count: int = 1
    without: frozenset[int] = _NO_NUMBERS


def blocks(node: Node, wanted: Wanted, said: Said) -> Iterator[Block]:
    """Yield what waits and runs, then what has ended, the newest first."""
    yield from _scheduled(node)
    yield from _said(node, said)
    if wanted.asks_for("state", "FINISHED") or wanted.asks_for("state", "FAILED"):
        yield from _ended(node)


def _row(name: str, state: str, kind: str, client: bytes, **more: Any) -> dict[str, Any]:
    return {
        "task_id": "",
        "name": name,
        "func_or_class_name": name,
        "type": kind,
        "state": state,
        "job_id": "",
        "node_id": "",
        "worker_id": "",
        "worker_pid": 0,
        "actor_id": "",
        "count": 1,
        "owner_id": client.hex(),
        "required_resources": {},
        "start_time_ms": None,
        "end_time_ms": None,
        **more,
    }


# -- the scheduler's -------------------------------------------------------------------------------


def _scheduled(node: Node) -> Iterator[Block]:
    scheduler = node.scheduler
    for identity, worker in list(scheduler.workers.items()):
        process = node.process_of(identity)
        place = {
            "node_id": node_of(identity).hex(),
            "worker_id": identity.hex(),
            "worker_pid": 0 if process is None else process.pid,
        }
        for position, work in enumerate(list(worker.outstanding)):
            low = work.low
            if position == 0:
                yield _of_range(work, low, low + 1, "RUNNING", place)
                low += 1
            if low < work.high:
                yield _of_range(work, low, work.high, "SUBMITTED_TO_WORKER", place)
    here = {"node_id": node.process.hex()}
    for work in list(scheduler.queues.all_ranges()):
        yield _of_range(work, work.low, work.high, "PENDING_NODE_ASSIGNMENT", here)


def _of_range(work: Range, low: int, high: int, state: str, place: dict[str, Any]) -> Block:
    client = work.task_class.client
    needs = {name: units / RESOURCE_UNITS for name, units in as_asked(work.shape.amounts).items()}
    job = job_of(work.shape.env)
    row = _row(
        work.task_class.name,
        state,
        "NORMAL_TASK",
        client,
        job_id=job,
        required_resources=needs,
        **place,
    )
    return Block(row, client, work.first + low, high - low)


# -- what processes say ----------------------------------------------------------------------------


def _said(node: Node, said: Said) -> Iterator[Block]:
    for identity, state in said.items():
        process = node.processes.by_id.get(identity)
        if process is None:
            continue
        own = {"job_id": node.job_of(process), "node_id": node.process.hex()}
        at = {**own, "worker_id": identity.hex(), "worker_pid": process.pid}
        for run in state.get("running", ()):
            if run["direct"]:
                yield _of_run(run, "RUNNING", at)
        for run in state.get("queued", ()):
            yield _of_run(run, "SUBMITTED_TO_WORKER", at)
        for held in state.get("held", ()):
            kind = "ACTOR_TASK" if held["actor"] else "NORMAL_TASK"
            row = _row(held["name"], "PENDING_ARGS_AVAIL", kind, identity, **own)
            row["actor_id"] = held["actor"].hex()
            yield _whole(row, held["task"])


def _of_run(run: Mapping[str, Any], state: str, at: dict[str, Any]) -> Block:
    kind = "ACTOR_TASK" if run["actor"] else "NORMAL_TASK"
    row = _row(run["name"], state, kind, owner_of(run["task"]), **at)
    row["actor_id"] = run["actor"].hex()
    return _whole(row, run["task"])


def _whole(row: dict[str, Any], task: bytes) -> Block:
    row["task_id"] = task.hex()
    return Block(row)


# -- what has ended --------------------------------------------------------------------------------


def _ended(node: Node) -> Iterator[Block]:
    events = node.gcs.events.select(limit=EVENTS_SCANNED_MAX)
    failed: dict[bytes, set[int]] = {}
    for event in reversed(events):
        if event.kind == "task_failed" and _is_id(event.fields.get("task")):
            task = event.fields["task"]
            failed.setdefault(owner_of(task), set()).add(number_of(task))
            row = _row(
                event.fields["function"] or "",
                "FAILED",
                "NORMAL_TASK",
                owner_of(task),
                end_time_ms=int(event.at_s * 1000),
                node_id=node.process.hex(),
                job_id=_job_of(node, owner_of(task)),
            )
            yield _whole(row, task)
    for event in reversed(events):
        if event.kind in ("task_executed", "call_executed") and _is_span(event.fields):
            block = _executed(event.kind, event.fields, failed)
            block.row["job_id"] = _job_of(node, bytes.fromhex(block.row["owner_id"]))
            yield block


def _job_of(node: Node, client: bytes) -> str:
    """Return the job of who submitted a task, where that is a driver or is there still."""
    process = node.processes.by_id.get(client)
    if process is not None:
        return node.job_of(process)
    return client.hex() if is_guest(client) else ""


def _executed(kind: str, fields: dict[str, Any], failed: dict[bytes, set[int]]) -> Block:
    task, worker = fields["task"], str(fields["worker"])
    client, first, count = owner_of(task), number_of(task), fields["count"]
    is_call = kind == "call_executed"
    known = failed.get(client, _NO_NUMBERS)
    without = frozenset(number for number in known if first <= number < first + count)
    raised = bool(fields["failed"]) and not without
    row = _row(
        str(fields["function"]),
        "FAILED" if raised else "FINISHED",
        "ACTOR_TASK" if is_call else "NORMAL_TASK",
        client,
        node_id=worker[:8] + "00000000",
        worker_id=worker,
        worker_pid=fields["pid"],
        start_time_ms=int(fields["started_at"] * 1000),
        end_time_ms=int((fields["started_at"] + fields["duration_s"]) * 1000),
    )
    if is_call:
        row["count"] = count
        return _whole(row, task)
    return Block(row, client, first, count, without)


def _is_id(value: Any) -> bool:
    return type(value) is bytes and len(value) == OBJECT_ID_BYTES


def _is_span(fields: dict[str, Any]) -> bool:
    """A worker packs these itself: what is no event of a task costs its row, nothing else."""
    return (
        _is_id(fields.get("task"))
        and isinstance(fields.get("started_at"), int | float)
        and isinstance(fields.get("duration_s"), int | float)
        and type(fields.get("count")) is int
        and 0 < fields["count"] <= EVENTS_SCANNED_MAX
        and {"function", "worker", "pid", "failed"} <= fields.keys()
    )


def events(node: Node, wanted: Wanted, _said: Said) -> Iterator[Block]:
    """Yield the newest events, the newest first."""
    limit = EVENTS_SCANNED_MAX if wanted.filters else wanted.limit + 1
    for event in reversed(node.gcs.events.select(limit=limit)):
        fields = {
            name: value.hex() if isinstance(value, bytes) else value
            for name, value in event.fields.items()
        }
        yield Block(
            {
                "kind": event.kind,
                "time": event.at_s,
                "node_id": node.process.hex(),
                "fields": fields,
            }
        )
