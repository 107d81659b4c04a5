"""The processes connected to a node.

What    One record a process: its streams, its role, whom to tell of its death.
Caller  brokers/node.py.
Never   sends.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from zray.net.channel import Channel

_GONE_MAX = 1000


class Process:
    """A driver, a worker or an observer that said HELLO."""

    __slots__ = (
        "acquainted",
        "calls",
        "details",
        "dropped_lines",
        "identity",
        "knows_job",
        "lifeline",
        "pid",
        "role",
        "said_goodbye",
    )

    def __init__(
        self, identity: bytes, role: str, pid: int, lifeline: Channel, details: dict[str, Any]
    ) -> None:
        self.identity = identity
        self.role = role
        self.pid = pid
        self.lifeline = lifeline
        self.calls: Channel | None = None
        self.details = details
        self.acquainted: set[bytes] = set()
        """Processes that were told where this one is, or whose tasks it ran."""
        self.said_goodbye = False
        self.dropped_lines = 0
        self.knows_job = False
        """A worker that was told where its job imports from."""

    def __repr__(self) -> str:
        return f"{self.role} {self.identity.hex()} (pid {self.pid})"


class Processes:
    """All of them."""

    def __init__(self) -> None:
        self.by_id: dict[bytes, Process] = {}
        self.by_routing_id: dict[bytes, Process] = {}
        """Those that send to the inbox, by what their messages show."""
        self._gone: deque[bytes] = deque(maxlen=_GONE_MAX)
        self.drivers: dict[bytes, Process] = {}
        self.starting: dict[bytes, float] = {}
        self.waiting_for_function: dict[bytes, list[Process]] = {}
        self.jobs: dict[str, dict[str, Any]] = {}
        """Where a job's workers import from, by job in hex; kept while it has workers."""

    def forked(self, identity: bytes, now: float) -> None:
        """A worker is on its way."""
        self.starting[identity] = now

    def starting_before(self, then: float) -> list[bytes]:
        """Return workers forked before ``then`` that have not said HELLO."""
        return [identity for identity, since in self.starting.items() if since < then]

    def join(
        self, identity: bytes, role: str, pid: int, lifeline: Channel, details: dict[str, Any]
    ) -> Process:
        """HELLO: record a process."""
        process = Process(identity, role, pid, lifeline, details)
        self.by_id[identity] = process
        self.starting.pop(identity, None)
        return process

    def driver_joined(self, process: Process) -> None:
        """A driver is here: its job begins."""
        self.drivers[process.identity] = process
        job = process.identity.hex()
        self.jobs[job] = {
            "job": job,
            "path": process.details.get("path", []),
            "cwd": process.details.get("cwd"),
            "namespace": process.details.get("namespace") or "",
            "env_vars": process.details.get("env_vars", {}),
        }

    def forget_jobs(self, living: set[str]) -> None:
        """Keep the jobs of the drivers that are here and those named, which still have workers."""
        living = living | {identity.hex() for identity in self.drivers}
        self.jobs = {job: details for job, details in self.jobs.items() if job in living}

    def leave(self, identity: bytes) -> None:
        """Forget a dead process."""
        started = self.starting.pop(identity, None) is not None
        if self.by_id.pop(identity, None) is not None or started:
            self._gone.append(identity)
        self.drivers.pop(identity, None)

    def has_left(self, identity: bytes) -> bool:
        """Return whether this process has died lately: a last message of its may still come."""
        return identity in self._gone

    def drop_classes(self, identity: bytes) -> None:
        """Forget what a dead process waited for."""
        for waiters in self.waiting_for_function.values():
            waiters[:] = [process for process in waiters if process.identity != identity]
