"""What workers print, on its way to the drivers they work for.

What    Lines are gathered in a wake and sent at its end: to the log of a node that stays, to the
        drivers of their job here, or to the job's home. A driver that does not read loses lines,
        and is told how many.
Caller  brokers/node.py; link_rules.py for lines of other nodes.
Never   keeps lines for a driver beyond its bound.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zray.protocol import link_messages, messages
from zray.protocol.ids import node_of
from zray.protocol.limits import OUTPUT_BACKLOG_BYTES_MAX

from .peers import Process
from .scheduling import job_of
from .workers import WorkerProcess

if TYPE_CHECKING:
    from .node import Node

Line = tuple[str, bool, str]
"""Who has printed it, whether to stderr, and the text."""


class PrintedLines:
    """The lines of one node's workers.

    Args:
        node: whose workers and drivers they are.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self.gathered: dict[str, list[Line]] = {}
        """By job."""

    def add(self, worker: WorkerProcess, is_stderr: bool, lines: list[str]) -> None:
        """A worker has printed this."""
        label = f"{worker.label or 'worker'} {worker.pid}"
        state = self._node.scheduler.workers.get(worker.process)
        job = job_of(state.env) if state is not None else ""
        self.gathered.setdefault(job, []).extend((label, is_stderr, line) for line in lines)

    def send(self) -> None:
        """Send what was gathered to the drivers it is for."""
        node = self._node
        gathered, self.gathered = self.gathered, {}
        for job, lines in gathered.items():
            if node.output_log is not None:
                node.output_log.write(lines)
            if node.cluster is not None and job and node_of(bytes.fromhex(job)) != node.process:
                node.cluster.send(node_of(bytes.fromhex(job)), link_messages.OUTPUT, job, lines)
            else:
                self.show(job, lines)

    def show(self, job: str, lines: list[Line]) -> None:
        """Send lines to a job's driver, those of no job to all."""
        for driver in self._node.processes.drivers.values():
            # A worker that serves no job yet prints of zray's own trouble: all hear it.
            if driver.details.get("log", True) and job in ("", driver.identity.hex()):
                self._tell(driver, lines)

    def _tell(self, driver: Process, lines: list[Line]) -> None:
        if driver.lifeline.outbound_bytes > OUTPUT_BACKLOG_BYTES_MAX:
            driver.dropped_lines += len(lines)
            return
        if driver.dropped_lines:
            note = (
                f"{driver.dropped_lines} lines were dropped: the driver did not read them in time"
            )
            lines = [("node", True, note), *lines]
            driver.dropped_lines = 0
        self._node.tell(driver.identity, messages.LOG, lines)
