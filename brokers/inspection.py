"""What a node tells people about itself.

What    Answers to INSPECT: status, nodes, resources, workers, actors, tasks, objects, events.
Caller  brokers/node_calls.py; zray/cli.py, zray.nodes() and the like ask.
Never   changes anything.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from zray.errors import RemoteProtocolError

if TYPE_CHECKING:
    from .node import Node


def inspect(node: Node, what: str, arguments: dict[str, Any]) -> Any:
    """Return the answer to one question, as plain msgpack types."""
    rule = _QUESTIONS.get(what)
    if rule is None:
        raise RemoteProtocolError(f"unknown question {what!r}")
    return rule(node, arguments)


def _status(node: Node, _arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        "node": node.process.hex(),
        "pid": os.getpid(),
        "directory": node.directory,
        "started_at": node.started_at,
        "uptime_s": time.time() - node.started_at,
        "embedded": node.embedded,
        "load_average": list(os.getloadavg()),
        "resources": _resources(node, {}),
        "scheduler": node.scheduler.statistics(),
        "actor_counts": node.dispatcher.statistics(),
        "object_counts": node.objects.statistics(),
        "store": node.store.statistics(),
        "gcs": node.gcs.statistics(),
        "drivers": len(node.processes.drivers),
        "malformed_messages": node.malformed,
        "problems": list(_problems(node)),
    }


def _problems(node: Node) -> Iterator[str]:
    """Yield a sentence for each thing that somebody should look at."""
    scheduler, store, gcs = (
        node.scheduler.statistics(),
        node.store.statistics(),
        node.gcs.statistics(),
    )
    if scheduler["queued_tasks"] and not scheduler["running_tasks"]:
        yield (
            f"{scheduler['queued_tasks']} tasks wait and none runs: actors or leases hold the"
            " resources they ask for"
        )
    if scheduler["pending_actors"]:
        yield f"{scheduler['pending_actors']} actors wait for resources"
    if store["waiting_allocations"]:
        yield (
            f"{store['waiting_allocations']} puts wait for room in the object store: drop refs,"
            " or start the node with a larger object_store_memory"
        )
    if store["spill_bytes"]:
        yield f"the object store is too small: {store['spill_bytes']} bytes are on disk"
    if gcs["ledger_dropped_records"]:
        yield f"{gcs['ledger_dropped_records']} records of lineage were dropped: the ledger is full"
    if gcs["events_dropped"]:
        yield f"{gcs['events_dropped']} events were dropped: the ring is full"
    if node.malformed:
        yield f"{node.malformed} malformed messages or connections were refused: see node.log"
    if node.workers.zygote_gone:
        yield "the process that forks workers has died: start the node again"


def _nodes(node: Node, _arguments: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "NodeID": node.process.hex(),
            "Alive": True,
            "NodeManagerAddress": "127.0.0.1",
            "NodeManagerHostname": os.uname().nodename,
            "Directory": node.directory,
            "Resources": _resources(node, {})["total"],
            "Labels": {},
        }
    ]


def _resources(node: Node, _arguments: dict[str, Any]) -> dict[str, dict[str, float]]:
    return {
        "total": {name: units / 10000 for name, units in node.resources.total.items()},
        "available": {name: units / 10000 for name, units in node.resources.available.items()},
    }


def _actors(node: Node, _arguments: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    node.gcs.write()
    for record in node.gcs.tables.actors.select():
        rows.append(
            {
                "actor_id": record.actor_id.hex(),
                "class_name": record.class_name,
                "state": record.state.upper(),
                "name": record.name,
                "namespace": record.namespace,
                "incarnation": record.incarnation,
                "worker": record.worker_id.hex(),
                "detached": record.detached,
                "job_id": record.job_id.hex(),
            }
        )
    return rows


def _workers(node: Node, _arguments: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for identity, worker in node.scheduler.workers.items():
        process = node.workers.by_process.get(identity)
        rows.append(
            {
                "worker": identity.hex(),
                "pid": process.pid if process else 0,
                "state": worker.state,
                "blocked": worker.blocked,
                "runs": process.label if process else "",
                "outstanding_tasks": sum(w.high - w.low for w in worker.outstanding),
                "hosts_actor": not worker.pooled,
            }
        )
    return rows


def _tasks(node: Node, _arguments: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for queue in node.scheduler.queues.by_shape.values():
        for work in queue:
            rows.append(
                {
                    "name": work.task_class.name,
                    "state": "QUEUED",
                    "count": work.high - work.low,
                    "client": work.task_class.client.hex(),
                }
            )
    for identity, worker in node.scheduler.workers.items():
        for work in worker.outstanding:
            rows.append(
                {
                    "name": work.task_class.name,
                    "state": "AT_WORKER",
                    "count": work.high - work.low,
                    "client": work.task_class.client.hex(),
                    "worker": identity.hex(),
                }
            )
    return rows


def _objects(node: Node, arguments: dict[str, Any]) -> list[dict[str, Any]]:
    limit = int(arguments.get("limit", 1000))
    rows = []
    for identity, entry in list(node.objects.entries.items())[:limit]:
        where = (
            "memory"
            if entry.offset >= 0
            else "disk"
            if entry.file is not None
            else "inline"
            if entry.outcome is not None
            else "pending"
        )
        rows.append(
            {
                "object_id": identity.hex(),
                "bytes": entry.nbytes,
                "where": where,
                "holders": {holder.hex(): units for holder, units in entry.holders.items()},
                "pinned_by": [process.hex() for process in entry.pinned],
            }
        )
    return rows


def _events(node: Node, arguments: dict[str, Any]) -> list[list[Any]]:
    """Asked by brokers/event_queries.py, when the workers have sent what they ran last."""
    return node.gcs.events_since(arguments.get("limit", 100_000), time.time())


def _jobs(node: Node, _arguments: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "job_id": job.job_id.hex(),
            "state": job.state,
            "pid": job.driver_pid,
            "entrypoint": job.entrypoint,
            "started_at": job.started_at,
            "ended_at": job.ended_at,
        }
        for job in node.gcs.tables.jobs.all()
    ]


_QUESTIONS: dict[str, Callable[[Any, dict[str, Any]], Any]] = {
    "status": _status,
    "nodes": _nodes,
    "resources": _resources,
    "actors": _actors,
    "workers": _workers,
    "tasks": _tasks,
    "objects": _objects,
    "events": _events,
    "jobs": _jobs,
}
