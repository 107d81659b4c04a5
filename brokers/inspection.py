"""What a node tells people about itself.

What    Answers to INSPECT: status, nodes, resources, workers, actors, tasks, objects.
Caller  brokers/node_calls.py; zray/cli.py, zray.nodes() and the like ask.
Never   changes anything.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from zray.errors import RemoteProtocolError
from zray.protocol.ids import node_of
from zray.protocol.roles import Role
from zray.protocol.units import RESOURCE_UNITS

from .bundles import outside_groups
from .load import DEAD, NodeLoad
from .scheduling import job_of

if TYPE_CHECKING:
    from .cluster import Cluster
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
        "resources": {
            "total": _amounts(node.resources.total),
            "available": _amounts(node.resources.available),
        },
        "scheduler": node.scheduler.statistics(),
        "actor_counts": node.dispatcher.statistics(),
        "object_counts": node.objects.statistics(),
        "store": node.store.statistics(),
        "gcs": node.gcs.statistics(),
        "drivers": len(node.processes.drivers),
        "cluster": _cluster(node, {}),
        "malformed_messages": node.malformed,
        "problems": list(node.health.problems()),
        "losses": node.health.losses(),
    }


def _cluster(node: Node, _arguments: dict[str, Any]) -> dict[str, Any] | None:
    """Of a node among others: where it is reached, whom it knows and whom it tries to join."""
    cluster = node.cluster
    if cluster is None:
        return None
    return {
        "address": cluster.inbox.address,
        "bulk_address": cluster.objects.address,
        "keys": node.settings["cluster"].get("keys"),
        "role": cluster.role,
        # A node can go on among others without a GCS, and a driver's could not.
        "has_joined": bool(cluster.nodes) and (cluster.role is Role.NODE or cluster.is_settled),
        "gcs": None if cluster.gcs is None else cluster.gcs.address.removeprefix("tcp://"),
        "nodes": (cluster.role is Role.NODE) + len(_others(node)),
        "drivers_elsewhere": len(cluster.members) - len(cluster.nodes),
        "joining": sorted(cluster.joining.values()),
        "refused": dict(cluster.refusals.by_address),
        "silent": sorted(cluster.refusals.silent),
        "security": _security(cluster),
        "transfers": cluster.objects.statistics(),
        "lineage": cluster.lineage.statistics(),
        "resources": _resources(node, {}),
    }


def _security(cluster: Cluster) -> dict[str, Any]:
    """Who is not let in, and which list of keys says so."""
    keys = cluster.keys
    return {
        "roster_version": None if keys is None else keys.roster.version,
        "unreadable_keys": cluster.roster.trouble,
        "refused_connections": dict(cluster.inbox.refused),
        "refused_bulk_connections": cluster.objects.bulk.refused_connections,
        "refused_messages": cluster.refused,
        "shut_out": cluster.refusals.rows(),
    }


def _nodes(node: Node, _arguments: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row for this node, then one for each other one."""
    address = "tcp://127.0.0.1:0" if node.cluster is None else node.cluster.inbox.address
    table = node.scheduler.borrowing.table
    own = {
        "node": node.process,
        "address": address,
        "hostname": os.uname().nodename,
        "directory": node.directory,
        "leaving": None if node.cluster is None else node.cluster.draining.waits_for,
    }
    load = node.scheduler.borrowing.report(node.now)
    others = [] if node.cluster is None else sorted(node.cluster.rows(), key=itemgetter("node"))
    # A node that has not yet told what it has is not counted: no work can go there.
    known = [(row, table.rows[row["node"]]) for row in others if row["node"] in table.rows]
    if node.role is Role.NODE:
        known.insert(0, (own, load))
    return [_node_row(row, load) for row, load in known]


def _node_row(row: dict[str, Any], load: NodeLoad) -> dict[str, Any]:
    """Return a row as Ray names its columns, with what zray knows beside."""
    host, _colon, port = row["address"].removeprefix("tcp://").rpartition(":")
    return {
        "NodeID": row["node"].hex(),
        "Alive": load.state != DEAD,
        "NodeManagerAddress": host.strip("[]"),
        "NodeManagerPort": int(port),
        "NodeManagerHostname": row["hostname"],
        "Directory": row["directory"],
        "State": load.state,
        "Leaving": row["leaving"],
        "Resources": _amounts(load.total),
        "Available": _amounts(load.available),
        "QueuedTasks": load.queue_tasks,
        "WaitSeconds": load.wait_us / 1e6,
        "Labels": dict(load.labels),
    }


def silent_node_row(node: Node, silent: bytes, reason: str) -> dict[str, Any]:
    """Return the state API's row of a node that says nothing, from what is known here."""
    load = node.scheduler.borrowing.table.rows.get(silent)
    known = {} if node.cluster is None else {row["node"]: row for row in node.cluster.rows()}
    row = known.get(silent, {"address": "", "hostname": "", "directory": "", "leaving": None})
    return {
        "node_id": silent.hex(),
        "state": "SILENT",
        "state_message": reason,
        "node_ip": row["address"].removeprefix("tcp://").rpartition(":")[0].strip("[]"),
        "node_name": row["hostname"],
        "is_head_node": False,
        "resources_total": {} if load is None else _amounts(load.total),
        "resources_available": {} if load is None else _amounts(load.available),
        "labels": {} if load is None else dict(load.labels),
        "queued_tasks": 0 if load is None else load.queue_tasks,
        "wait_s": 0.0 if load is None else load.wait_us / 1e6,
        "address": row["address"],
        "directory": row["directory"],
        "pid": 0,
        "start_time_ms": 0,
        "clock_ahead_s": 0.0,
        "bulk_address": "",
        "versions": {},
    }


def _amounts(units: Mapping[str, int]) -> dict[str, float]:
    return {name: count / RESOURCE_UNITS for name, count in outside_groups(units).items()}


def _resources(node: Node, _arguments: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return what all nodes have and what of it is free."""
    total, available = Counter(node.resources.total), Counter(node.resources.available)
    for other in _others(node):
        total.update(other.total)
        available.update(other.available)
    return {"total": _amounts(total), "available": _amounts(available)}


def _others(node: Node) -> list[NodeLoad]:
    table = node.scheduler.borrowing.table
    return [row for identity, row in table.rows.items() if identity != table.own]


def _totals(node: Node, _arguments: dict[str, Any]) -> list[dict[str, int]]:
    """Return what each node has, in units, this one first."""
    return [dict(node.resources.total), *(outside_groups(other.total) for other in _others(node))]


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
    loans = node.scheduler.lending.loans
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
                "hosts_actor": not worker.pooled and identity not in loans,
                "job": job_of(worker.env),
                "node": node_of(identity).hex(),
                "lent_to": loans[identity].borrower.hex() if identity in loans else "",
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
            else "elsewhere"
            if entry.places
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
    "totals": _totals,
    "cluster": _cluster,
    "actors": _actors,
    "workers": _workers,
    "tasks": _tasks,
    "objects": _objects,
    "jobs": _jobs,
}
