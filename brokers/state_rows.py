"""The rows of the state API that one node has: tasks, actors, objects, nodes, jobs, workers.

What    select() gives the rows that a question asks for, count() how many there are of each kind.
        A block is a row that stands for tasks with consecutive numbers: a million queued tasks
        are some thousand blocks, and only those asked for become rows.
Caller  brokers/state_questions.py, for this node's part of each answer.
Never   changes anything, or looks at more rows than the limit asks for and its filters need.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from zray.net.versions import installed
from zray.protocol.ids import OBJECT_ID_BYTES, node_of, number_of, object_id, owner_of
from zray.protocol.units import RESOURCE_UNITS

from . import task_rows
from .bundles import outside_groups
from .gcs.actor_table import ActorRecord
from .load import ALIVE
from .row_filters import Wanted
from .scheduling import JOB_VARIABLE, job_of
from .task_rows import Block, Said

if TYPE_CHECKING:
    from .dispatcher import Actor
    from .node import Node

_ACTOR_STATES = {
    "PENDING": "PENDING_CREATION",
    "STARTING": "PENDING_CREATION",
    "ALIVE": "ALIVE",
    "RESTARTING": "RESTARTING",
}
_RECORD_STATES = {
    "pending": "PENDING_CREATION",
    "alive": "ALIVE",
    "restarting": "RESTARTING",
    "dead": "DEAD",
}


def select(node: Node, wanted: Wanted, said: Said) -> list[dict[str, Any]]:
    """Return this node's rows of a class; one more than the limit where there are more.

    Args:
        node: whose.
        wanted: class, filters, limit and detail.
        said: what the node's processes say of themselves, by process.
    """
    key = wanted.of.key
    found: list[dict[str, Any]] = []
    seen: set[str] = set()
    for block in _BLOCKS[wanted.of.name](node, wanted, said):
        if not wanted.admits(block.row, without=key if block.client else ""):
            continue
        for row in _rows_of(block, wanted):
            identity = row[key] if key else ""
            if identity in seen:
                continue  # A retry, or what a worker and its node both tell of.
            if key:
                seen.add(identity)
            found.append(wanted.shown(row))
            if len(found) > wanted.limit:
                return found
    return found


def _rows_of(block: Block, wanted: Wanted) -> Iterator[dict[str, Any]]:
    if not block.client:
        yield block.row
        return
    key = wanted.of.key
    numbers: range | list[int] = range(block.number, block.number + block.count)
    one = wanted.value_of(key)
    if one is not None:
        numbers = [number for number in _number_in(one, block) if number in numbers]
    for number in numbers:
        if number in block.without:
            continue
        row = {**block.row, key: object_id(block.client, number).hex()}
        if not wanted.has_filter(key) or wanted.admits(row):
            yield row


def _number_in(text: Any, block: Block) -> list[int]:
    """Return the number that an id names, where it is of the block's owner."""
    try:
        identity = bytes.fromhex(str(text))
    except ValueError:
        return []
    if len(identity) != OBJECT_ID_BYTES or owner_of(identity) != block.client:
        return []
    return [number_of(identity)]


def count(node: Node, wanted: Wanted, said: Said) -> dict[tuple[str, ...], int]:
    """Return how many rows there are, by the columns that a summary of the class counts by."""
    counts: Counter[tuple[str, ...]] = Counter()
    columns = wanted.of.counted_by
    for block in _BLOCKS[wanted.of.name](node, wanted, said):
        if wanted.admits(block.row):
            many = block.count - len(block.without) if block.client else block.row.get("count", 1)
            if many:
                counts[tuple(str(block.row[column]) for column in columns)] += many
    return dict(counts)


# -- actors ----------------------------------------------------------------------------------------


def _actors(node: Node, wanted: Wanted, _said: Said) -> Iterator[Block]:
    for actor in list(node.dispatcher.actors.values()):
        yield Block(_actor_row(node, actor))
    if not wanted.asks_for("state", "DEAD"):
        return
    node.gcs.write()
    for record in node.gcs.tables.actors.select(state="dead"):
        yield Block(record_row(record))


def _actor_row(node: Node, actor: Actor) -> dict[str, Any]:
    worker = actor.worker
    process = None if worker is None else node.process_of(worker)
    details = actor.details
    waits = actor.arguments is None
    return {
        "actor_id": actor.actor.hex(),
        "class_name": details["class"],
        "state": "DEPENDENCIES_UNREADY" if waits else _ACTOR_STATES[actor.state],
        "name": details["name"] or "",
        "ray_namespace": details["namespace"] or "",
        "job_id": details["env"].get(JOB_VARIABLE, ""),
        "node_id": "" if worker is None else node_of(worker).hex(),
        "pid": 0 if process is None else process.pid,
        "home_id": node.process.hex(),
        "worker_id": "" if worker is None else worker.hex(),
        "is_detached": details["detached"],
        "num_restarts": actor.incarnation,
        "death_cause": "",
        "required_resources": amounts(details["placement"]),
    }


def record_row(record: ActorRecord) -> dict[str, Any]:
    """Return the row of an actor that only a record tells of."""
    return {
        "actor_id": record.actor_id.hex(),
        "class_name": record.class_name,
        "state": _RECORD_STATES[record.state],
        "name": record.name,
        "ray_namespace": record.namespace,
        "job_id": record.job_id.hex(),
        "node_id": node_of(record.worker_id).hex() if record.worker_id else "",
        "pid": record.worker_pid,
        "home_id": record.node_id.hex(),
        "worker_id": record.worker_id.hex(),
        "is_detached": record.detached,
        "num_restarts": record.incarnation,
        "death_cause": record.death_cause,
        "required_resources": {},
    }


# -- objects ---------------------------------------------------------------------------------------


def _objects(node: Node, _wanted: Wanted, _said: Said) -> Iterator[Block]:
    for identity, entry in list(node.objects.entries.items()):
        if entry.is_actor:
            continue
        state = (
            "IN_MEMORY"
            if entry.offset >= 0
            else "ON_DISK"
            if entry.file is not None
            else "ELSEWHERE"
            if entry.places
            else "INLINE"
            if entry.outcome is not None
            else "PENDING"
        )
        yield Block(
            {
                "object_id": identity.hex(),
                "size_bytes": entry.nbytes,
                "state": state,
                "node_id": node.process.hex(),
                "owner_id": owner_of(identity).hex(),
                "holders": {holder.hex(): units for holder, units in entry.holders.items()},
                "pinned_by": [process.hex() for process in entry.pinned],
                "places": [place.hex() for place in entry.places],
            }
        )


# -- nodes, jobs, workers --------------------------------------------------------------------------


def _nodes(node: Node, _wanted: Wanted, _said: Said) -> Iterator[Block]:
    yield Block(own_node_row(node))


def own_node_row(node: Node) -> dict[str, Any]:
    """Return this node's row."""
    load = node.scheduler.borrowing.report(node.now)
    cluster = node.cluster
    address = "" if cluster is None else cluster.inbox.address
    is_head = cluster is None or cluster.gcs_relay is not None
    return {
        "node_id": node.process.hex(),
        "state": load.state,
        "state_message": "" if load.state == ALIVE else "it takes no new work",
        "node_ip": host_of(address),
        "node_name": os.uname().nodename,
        "is_head_node": is_head,
        "resources_total": amounts(outside_groups(load.total)),
        "resources_available": amounts(outside_groups(load.available)),
        "labels": dict(load.labels),
        "queued_tasks": load.queue_tasks,
        "wait_s": load.wait_us / 1e6,
        "address": address,
        "directory": node.directory,
        "pid": os.getpid(),
        "start_time_ms": int(node.started_at * 1000),
        "clock_ahead_s": 0.0,
        "bulk_address": "" if cluster is None else cluster.objects.address,
        "versions": installed(),
    }


def host_of(address: str) -> str:
    """Return the host of "tcp://HOST:PORT"; this machine where there is no address."""
    return address.removeprefix("tcp://").rpartition(":")[0].strip("[]") or "127.0.0.1"


def amounts(units: Mapping[str, int]) -> dict[str, float]:
    """Return resources as people count them."""
    return {name: each / RESOURCE_UNITS for name, each in units.items()}


def _jobs(node: Node, _wanted: Wanted, _said: Said) -> Iterator[Block]:
    for job in node.gcs.tables.jobs.all():
        yield Block(job_row(job))


def job_row(job: Any) -> dict[str, Any]:
    """Return the row of a JobRecord."""
    return {
        "job_id": job.job_id.hex(),
        "status": job.state.upper(),
        "entrypoint": job.entrypoint,
        "start_time": int(job.started_at * 1000),
        "end_time": int(job.ended_at * 1000),
        "node_id": node_of(job.job_id).hex(),
        "driver_pid": job.driver_pid,
        "namespace": job.namespace,
        "message": job.message,
    }


def _workers(node: Node, _wanted: Wanted, _said: Said) -> Iterator[Block]:
    loans = node.scheduler.lending.loans
    for identity, worker in list(node.scheduler.workers.items()):
        if worker.lender is not None:
            continue
        process = node.workers.by_process.get(identity)
        yield Block(
            {
                "worker_id": identity.hex(),
                "pid": process.pid if process else 0,
                "state": "BLOCKED" if worker.blocked else worker.state,
                "runs": process.label if process else "",
                "node_id": node.process.hex(),
                "job_id": job_of(worker.env),
                "outstanding_tasks": sum(work.high - work.low for work in worker.outstanding),
                "lent_to": loans[identity].borrower.hex() if identity in loans else "",
            }
        )


def _groups(node: Node, _wanted: Wanted, _said: Said) -> Iterator[Block]:
    for group in node.placement_groups.rows():
        yield Block(
            {
                "placement_group_id": group["group"],
                "name": group["name"],
                "state": group["state"],
                "strategy": group["strategy"],
                "creator_job_id": group["job"],
                "is_detached": group["detached"],
                "problem": group["problem"],
                "bundles": [
                    {**each, "resources": amounts(each["resources"])} for each in group["bundles"]
                ],
            }
        )


_BLOCKS: dict[str, Callable[[Any, Wanted, Said], Iterator[Block]]] = {
    "tasks": task_rows.blocks,
    "actors": _actors,
    "objects": _objects,
    "nodes": _nodes,
    "jobs": _jobs,
    "workers": _workers,
    "placement_groups": _groups,
    "events": task_rows.events,
}
