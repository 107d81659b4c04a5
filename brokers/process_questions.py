"""Questions to the processes of this node: what runs there, and what waits for what.

What    ask() puts STATE_WANTED on lifelines, which a thread reads that never runs user code; the
        answers are gathered until all are there or their time is over.
Caller  brokers/task_rows.py, by brokers/state_questions.py; brokers/explaining.py.
Never   waits: the loop goes on, settle() looks again in each of its wakes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from zray.errors import RemoteProtocolError
from zray.protocol import messages
from zray.protocol.ids import OBJECT_ID_BYTES
from zray.protocol.limits import (
    LIFELINE_BACKLOG_BYTES_MAX,
    PROCESS_STATE_S,
    QUERIES_MAX,
)

from .gathering import Gathered, Gatherings
from .peers import Process

if TYPE_CHECKING:
    from .node import Node

Answers = Callable[[dict[bytes, Mapping[str, Any]], dict[bytes, str]], None]
"""Called once with what each process said, and why others said nothing."""


class ProcessQuestions:
    """The questions of one node to its own processes.

    Args:
        node: whose.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._gatherings = Gatherings(
            answer_s=PROCESS_STATE_S, timeout_s=PROCESS_STATE_S, open_max=4 * QUERIES_MAX
        )
        self._answers: dict[int, Answers] = {}

    def __bool__(self) -> bool:
        return bool(self._gatherings)

    def ask_all(self, answers: Answers) -> None:
        """Ask every driver and worker what runs and waits there.

        Raises ClusterError where too many questions are open.
        """
        processes = self._node.processes.by_id.values()
        self.ask([each.identity for each in processes if each.role != "observer"], None, answers)

    def ask(self, processes: Iterable[bytes], about: bytes | None, answers: Answers) -> None:
        """Ask some processes; ``about``: see zray/runtime_state.py.

        Raises ClusterError where too many questions are open.
        """
        node, wanted = self._node, list(processes)
        number = self._gatherings.begin(wanted, rows_max=len(wanted), now=node.now)
        self._answers[number] = answers
        for identity in wanted:
            process = node.processes.by_id.get(identity)
            if process is None or process.role == "observer":
                self._gatherings.failed(number, identity, "it is not there (any more)")
            elif process.lifeline.outbound_bytes > LIFELINE_BACKLOG_BYTES_MAX:
                self._gatherings.failed(number, identity, "it does not read what it is told")
            else:
                node.tell(identity, messages.STATE_WANTED, number, about)

    def answered(self, process: Process, number: int, state: dict[str, Any]) -> None:
        """STATE: a process's answer.

        Raises RemoteProtocolError where it is malformed.
        """
        error = state.get("error")
        if error is not None:
            self._gatherings.failed(number, process.identity, f"it could not tell: {error}")
            return
        check_state(state)
        now = self._node.now
        self._gatherings.took(number, process.identity, [state], more=False, now=now)

    def process_left(self, identity: bytes) -> None:
        """A process is gone."""
        self._gatherings.source_lost(identity, "it has died")

    def settle(self, now: float) -> None:
        """Give the answers that need wait no longer."""
        self._gatherings.tick(now)
        while self._gatherings.commands:
            commands, self._gatherings.commands = self._gatherings.commands, []
            for command in commands:
                if isinstance(command, Gathered):
                    said = {source: rows[0] for source, rows in command.rows.items()}
                    self._answers.pop(command.number)(said, command.missing)


def check_state(state: dict[str, Any]) -> None:
    """Raise RemoteProtocolError unless what a process says has the shape that rows are made of."""
    good = (
        _rows(state.get("running", []), direct=bool, name=str)
        and _rows(state.get("queued", []), name=str)
        and _rows(state.get("held", []), name=str)
        and _threads(state.get("threads", []))
        and _ids(state.get("awaited", []))
        and _about(state.get("about", {}))
        and type(state.get("queued_count", 0)) is int
    )
    if not good:
        raise RemoteProtocolError("STATE with malformed rows")


def _rows(rows: Any, **fields: type) -> bool:
    return isinstance(rows, list) and all(
        isinstance(row, dict)
        and _is_id(row.get("task"))
        and (row.get("actor") == b"" or _is_id(row.get("actor")))
        and all(type(row.get(name)) is kind for name, kind in fields.items())
        and _where(row)
        for row in rows
    )


def _threads(rows: Any) -> bool:
    return isinstance(rows, list) and all(
        isinstance(row, dict) and type(row.get("name")) is str and _where(row) for row in rows
    )


def _where(row: dict[str, Any]) -> bool:
    since = row.get("since_s")
    return (
        _ids(row.get("waits_for", []))
        and _texts(row.get("stack", []))
        and (since is None or isinstance(since, int | float))
    )


def _about(found: Any) -> bool:
    return (
        isinstance(found, dict)
        and _ids(found.get("waits_for", []))
        and all(type(found.get(name, "")) is str for name in ("state", "name", "how"))
        and all(type(found.get(name, b"")) is bytes for name in ("worker", "actor"))
        and all(type(found.get(name, 0)) is int for name in ("ahead", "first"))
    )


def _ids(values: Any) -> bool:
    return isinstance(values, list) and all(map(_is_id, values))


def _texts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is str for value in values)


def _is_id(value: Any) -> bool:
    return type(value) is bytes and len(value) == OBJECT_ID_BYTES
