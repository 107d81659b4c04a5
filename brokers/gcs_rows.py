"""The rows of the state API that only the GCS has: dead nodes, and what it kept of them.

What    ask() reads a table of the GCS page by page and gives its records as rows.
Caller  brokers/state_questions.py.
Never   waits for the GCS beyond the time that any source has, or reads more than ROWS_MAX rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from zray import errors
from zray.protocol.limits import QUERY_ANSWER_S

from . import state_rows
from .gcs.actor_table import ActorRecord
from .gcs.commands import PAGE_LEN_MAX, Command
from .gcs.tables import JobRecord, NodeRecord

if TYPE_CHECKING:
    from .gcs_connection import GcsConnection

SOURCE = b"gcs"
"""What stands for it among the nodes that are asked."""
ROWS_MAX = 5000

Done = Callable[[list[Any], Exception | None], None]


def _node(packed: bytes) -> dict[str, Any]:
    record = NodeRecord.unpack(packed)
    address = record.addresses.get("links", "")
    is_dead = record.state == "dead"
    return {
        "node_id": record.node_id.hex(),
        "state": "DEAD" if is_dead else "SILENT",
        "state_message": (
            "it has left, or was declared dead" if is_dead else "for the GCS it is alive"
        ),
        "node_ip": state_rows.host_of(address),
        "node_name": record.host,
        "is_head_node": False,
        "resources_total": state_rows.amounts(
            {name: int(units) for name, units in record.resources.items()}
        ),
        "resources_available": {},
        "labels": dict(record.labels),
        "queued_tasks": 0,
        "wait_s": 0.0,
        "address": address,
        "directory": record.addresses.get("directory", ""),
        "pid": record.pid,
        "start_time_ms": int(record.started_at * 1000),
        "clock_ahead_s": 0.0,
        "bulk_address": "",
        "versions": {},
        "role": record.role,
    }


CLASSES: dict[str, tuple[str, Callable[[bytes], dict[str, Any]]]] = {
    "nodes": ("NODE_LIST", _node),
    "jobs": ("JOB_LIST", lambda packed: state_rows.job_row(JobRecord.unpack(packed))),
    "actors": ("ACTOR_LIST", lambda packed: state_rows.record_row(ActorRecord.unpack(packed))),
}
"""The classes it has rows of: the command that lists them, and a row of a record."""


def ask(gcs: GcsConnection, of: str, done: Done) -> None:
    """Read a class; `done` gets its rows, or why there are none."""
    name, row_of = CLASSES[of]
    rows: list[Any] = []

    def read(after: bytes) -> None:
        fields = (PAGE_LEN_MAX, after)
        command = Command(name, (None, None, *fields) if of == "actors" else fields)
        try:
            gcs.session.ask(command, took, timeout_s=QUERY_ANSWER_S)
        except errors.ZrayError as error:
            done([], error)

    def took(page: Any, error: Exception | None) -> None:
        if error is not None:
            done([], error)
            return
        rows.extend(map(row_of, page[0]))
        if page[1] is None or len(rows) >= ROWS_MAX:
            done(rows, None)
        else:
            read(page[1])

    read(b"")
