"""Actors whose hosts are out of reach: they may run on for a moment, and so nothing replaces them.

What    A home remembers which worker of another node hosts each of its actors. Callers are told of
        a lost host at once; but a successor, and whoever else wants the name, waits until the old
        one has certainly stopped: its node has said so, or the lease that it had of us is over.
Caller  brokers/hosting.py, brokers/node_commands.py.
Never   reads a clock; decides whether an actor starts again (brokers/dispatcher.py).
Spec    docs/explanation/cluster.md, "No two copies".
"""

from __future__ import annotations

from dataclasses import dataclass

from zray.protocol.ids import ActorId, ProcessId


@dataclass(frozen=True, slots=True)
class Stopped:
    """What this worker hosted may start elsewhere."""

    worker: ProcessId


@dataclass(frozen=True, slots=True)
class FreeName:
    """This dead actor's name is free."""

    actor: ActorId


Command = Stopped | FreeName


@dataclass(slots=True)
class _Host:
    """A worker of another node."""

    actors: set[ActorId]
    is_shared: bool
    until: float | None = None
    """Lost: it may run until then."""
    dead: list[ActorId] | None = None
    """Actors that were there and whose names wait for its end."""


class ActorFences:
    """The workers of other nodes that host actors of this one."""

    def __init__(self) -> None:
        self._hosts: dict[ProcessId, _Host] = {}
        self._places: dict[ActorId, ProcessId] = {}
        self.commands: list[Command] = []

    def started(self, actor: ActorId, worker: ProcessId, *, is_shared: bool) -> None:
        """An actor is being started in a worker of another node."""
        self._leave(actor)
        self._places[actor] = worker
        host = self._hosts.setdefault(worker, _Host(set(), is_shared))
        host.actors.add(actor)

    def ended(self, actor: ActorId) -> bool:
        """An actor is dead; returns whether its name is free now, else FreeName will tell."""
        worker = self._places.get(actor)
        host = None if worker is None else self._hosts[worker]
        self._leave(actor)
        # A worker that hosts others too goes on living, and has told us itself of this end.
        if host is None or (host.is_shared and host.until is None):
            return True
        host.dead = [*(host.dead or ()), actor]
        assert worker is not None
        self._hosts[worker] = host
        return False

    def _leave(self, actor: ActorId) -> None:
        worker = self._places.pop(actor, None)
        if worker is None:
            return
        host = self._hosts[worker]
        host.actors.discard(actor)
        if not host.actors and host.until is None and not host.dead:
            del self._hosts[worker]

    def lost(self, worker: ProcessId, until: float, now: float) -> None:
        """A worker can't be reached: it may run on until then."""
        host = self._hosts.get(worker)
        if host is None:
            self.commands.append(Stopped(worker))
        elif until <= now:
            self.stopped(worker)
        elif host.until is None:
            host.until = until

    def stopped(self, worker: ProcessId) -> None:
        """A worker has certainly stopped."""
        host = self._hosts.pop(worker, None)
        if host is not None:
            for actor in host.actors:
                del self._places[actor]
            self.commands.extend(FreeName(actor) for actor in host.dead or ())
        self.commands.append(Stopped(worker))

    def tick(self, now: float) -> None:
        """Let go of what has waited long enough."""
        due = [
            worker
            for worker, host in self._hosts.items()
            if host.until is not None and host.until <= now
        ]
        for worker in due:
            self.stopped(worker)

    @property
    def next_due(self) -> float:
        """When tick() has something to do."""
        ends = [host.until for host in self._hosts.values() if host.until is not None]
        return min(ends, default=float("inf"))

    def check(self) -> None:
        """Raise AssertionError where an invariant is broken."""
        for actor, worker in self._places.items():
            assert actor in self._hosts[worker].actors
        for worker, host in self._hosts.items():
            assert host.actors or host.dead or host.until is not None, "kept for nothing"
            assert all(self._places.get(actor) == worker for actor in host.actors)
