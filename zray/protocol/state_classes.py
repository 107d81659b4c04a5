"""The classes of the state API and their columns: what can be listed, filtered and summed up.

What    CLASSES has each class with its key, its columns, those shown with detail=True only, what a
        summary counts by, and what it covers and what not.
Caller  brokers/state_rows.py makes the rows; zray/util/state.py names the classes to users;
        docs/reference/state.md is generated from it.
Never   has a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

OPERATORS = ("=", "!=")
"""Of filters, as in Ray."""


@dataclass(frozen=True, slots=True)
class StateClass:
    """One class.

    Args:
        name: its plural.
        key: the column that tells its rows apart.
        columns: name to meaning.
        detail: those that only detail=True shows.
        counted_by: the columns a summary counts by.
        covers: what is in it, and what is not.
    """

    name: str
    key: str
    columns: Mapping[str, str]
    detail: Mapping[str, str]
    counted_by: tuple[str, ...]
    covers: str

    @property
    def all_columns(self) -> dict[str, str]:
        """Every column, those of detail last."""
        return {**self.columns, **self.detail}


_NODE = "the node that it is on, in hex"

_TASKS = StateClass(
    "tasks",
    "task_id",
    {
        "task_id": "in hex; that of its first return's ref",
        "name": "of the function, or Class.method",
        "func_or_class_name": "the same",
        "type": "NORMAL_TASK or ACTOR_TASK",
        "state": (
            "PENDING_ARGS_AVAIL: waits for its arguments, in the process that submitted it."
            " PENDING_NODE_ASSIGNMENT: waits for a worker. SUBMITTED_TO_WORKER: waits at one."
            " RUNNING, FINISHED, FAILED"
        ),
        "job_id": "of the driver it works for, empty where that is not known any more",
        "node_id": "of its worker; of its queue while it has none",
        "worker_id": "in hex, empty while it has none",
        "worker_pid": "0 while it has none",
        "actor_id": "of an ACTOR_TASK",
        "count": "1; more where quick calls that ran one after the other are one row",
    },
    {
        "owner_id": "the process that submitted it",
        "required_resources": "amount by name, where its queue knows them",
        "start_time_ms": "since 1970, where it has begun and that is known",
        "end_time_ms": "the same of its end",
    },
    ("name", "type", "state"),
    "What waits and runs, without exception: queues of nodes, workers, and what processes keep"
    " until its arguments are there. What has ended only as far as the newest 20 000 events of"
    " each node go back. A task that its process is about to send (2 ms at most) is in no row.",
)

_ACTORS = StateClass(
    "actors",
    "actor_id",
    {
        "actor_id": "in hex",
        "class_name": "of its class",
        "state": "DEPENDENCIES_UNREADY, PENDING_CREATION, ALIVE, RESTARTING or DEAD",
        "name": "empty where it has none",
        "ray_namespace": "where its name is looked up",
        "job_id": "of the driver that made it",
        "node_id": "of its worker, empty while it has none",
        "pid": "of its worker, 0 where that is not known",
    },
    {
        "home_id": "the node that decides over its life",
        "worker_id": "in hex",
        "is_detached": "whether it outlives its driver",
        "num_restarts": "how often it was started again",
        "death_cause": "why it is dead, where that was recorded",
        "required_resources": "amount by name",
    },
    ("class_name", "state"),
    "Living actors of all nodes; dead ones as long as their home remembers them (10 000 a node),"
    " and of dead nodes those with names, from the GCS.",
)

_OBJECTS = StateClass(
    "objects",
    "object_id",
    {
        "object_id": "in hex",
        "size_bytes": "of its value; 0 where that is not known or rides in messages",
        "state": (
            "IN_MEMORY, ON_DISK, ELSEWHERE (another node has it), INLINE (in messages), or PENDING"
        ),
        "node_id": _NODE,
        "owner_id": "the process that made the ref",
    },
    {
        "holders": "processes, nodes and objects that refer to it, and how often",
        "pinned_by": "processes that may look at its memory",
        "places": "other nodes that have it or fetch it",
    },
    ("state",),
    "Objects that a node keeps: those whose ref was passed on, results in shared memory, copies."
    " One row for each node that keeps it. What a process has put or got and never passed on is"
    " known to that process alone.",
)

_NODES = StateClass(
    "nodes",
    "node_id",
    {
        "node_id": "in hex",
        "state": "ALIVE, DRAINING or DEAD; SILENT where it lives and does not answer",
        "state_message": "why it is not ALIVE",
        "node_ip": "where it is reached",
        "node_name": "its machine",
        "is_head_node": "whether it runs the GCS",
        "resources_total": "amount by name",
        "resources_available": "what of it is free",
        "labels": "value by name",
        "queued_tasks": "tasks that wait there",
        "wait_s": "estimated time until a task queued there begins",
    },
    {
        "address": "of its links",
        "directory": "on its machine",
        "pid": "of the node's process",
        "start_time_ms": "since 1970",
        "clock_ahead_s": "its clock less that of the node that was asked, where it was measured",
        "bulk_address": "where objects are sent to it",
        "versions": "of zray, Python and the packages that nodes must agree on, by name",
    },
    ("state",),
    "Living nodes, and the dead ones that the GCS remembers (1000).",
)

_JOBS = StateClass(
    "jobs",
    "job_id",
    {
        "job_id": "in hex: the id of its driver",
        "status": "RUNNING, SUCCEEDED, FAILED or STOPPED",
        "entrypoint": "the driver's command line",
        "start_time": "ms since 1970",
        "end_time": "the same; 0 while it runs",
        "node_id": "of its driver",
        "driver_pid": "of its driver's process",
    },
    {"namespace": "of its named actors", "message": "why it failed, where that is known"},
    ("status",),
    "Drivers of all nodes, and of dead nodes what the GCS knows of them.",
)

_WORKERS = StateClass(
    "workers",
    "worker_id",
    {
        "worker_id": "in hex",
        "pid": "0 until it has been forked",
        "state": "STARTING, IDLE, RUNNING, LEASED (a process sends it tasks itself), or BLOCKED",
        "runs": "the function or class it was given last",
        "node_id": _NODE,
        "job_id": "the job it serves, empty where it has served none",
        "outstanding_tasks": "tasks that it has and its node counts",
        "lent_to": "the node that it works for, empty where that is its own",
    },
    {},
    ("state",),
    "Worker processes of all nodes. A worker that is lent is in one row: its own node's.",
)

_GROUPS = StateClass(
    "placement_groups",
    "placement_group_id",
    {
        "placement_group_id": "in hex",
        "name": "empty where it has none",
        "state": "PENDING, CREATED, RESCHEDULING (a node of it was lost)",
        "strategy": "PACK, SPREAD, STRICT_PACK or STRICT_SPREAD",
        "creator_job_id": "of the driver it ends with, empty where it is detached",
        "problem": "why no nodes could hold it, empty where some could",
    },
    {
        "is_detached": "whether it outlives its driver",
        "bundles": "each with resources (amount by name), labels and node, empty while it has none",
    },
    ("state",),
    "Those that have not been removed.",
)

_EVENTS = StateClass(
    "events",
    "",
    {
        "kind": "task_executed, call_executed, worker_died, actor_state, …",
        "time": "seconds since 1970, of the clock of its node",
        "node_id": _NODE,
        "fields": "name to value, by kind",
    },
    {},
    ("kind",),
    "The newest events of each node's ring (1 000 000 a node), newest first; with filters, those"
    " among the newest 20 000 of each node.",
)

CLASSES: dict[str, StateClass] = {
    each.name: each
    for each in (_TASKS, _ACTORS, _OBJECTS, _NODES, _JOBS, _WORKERS, _GROUPS, _EVENTS)
}
