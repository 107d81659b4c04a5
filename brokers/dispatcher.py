"""The actor dispatcher: where each actor lives, and what happens when its worker dies.

What    An actor is PENDING (waits for resources), STARTING or ALIVE (in a worker, with an
        incarnation number), RESTARTING, or DEAD. Callers go to the worker directly; the
        dispatcher tells those who have a handle where that is. Shared actors live many to a worker.
Caller  brokers/node.py, tests/sim.
Never   opens a socket or reads a clock; never sees a call.
Spec    docs/explanation/architecture.md, "Life of a call".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from zray.protocol.ids import ActorId, ProcessId

from .placement import read_where
from .resources import Grant, read_request
from .scheduling import Claim, Environment, job_of

PENDING, STARTING, ALIVE, RESTARTING, DEAD = "PENDING", "STARTING", "ALIVE", "RESTARTING", "DEAD"


@dataclass(slots=True)
class Tell:
    """Send ACTOR_STATE to a process."""

    process: ProcessId
    actor: ActorId


@dataclass(slots=True)
class Start:
    """Send START_ACTOR to the actor's worker."""

    actor: ActorId


@dataclass(slots=True)
class End:
    """Ask the worker to run what has arrived (killed: nothing more) and end the actor."""

    actor: ActorId
    worker: ProcessId
    incarnation: int
    killed: bool = False


@dataclass(slots=True)
class KillWorker:
    """End a worker that hosts nothing any more, or whose actor was killed."""

    worker: ProcessId
    reason: str


@dataclass(slots=True)
class ReleaseGrant:
    """Resources of a shared actor are free."""

    grant: Grant


@dataclass(slots=True)
class Withdraw:
    """The actor has ended before it had a worker: nobody waits for one any more."""

    actor: ActorId


@dataclass(slots=True)
class Record:
    """The actor's state has changed: write it to the GCS."""

    actor: ActorId


Command = Tell | Start | End | KillWorker | ReleaseGrant | Record | Claim | Withdraw


class Actor:
    """One actor of this node."""

    __slots__ = (
        "actor",
        "arguments",
        "cause",
        "class_id",
        "details",
        "grant",
        "incarnation",
        "owner",
        "restarts_left",
        "state",
        "unreferenced",
        "watchers",
        "worker",
    )

    def __init__(
        self,
        actor: ActorId,
        owner: ProcessId,
        class_id: bytes,
        details: dict[str, Any],
        arguments: bytes | None,
    ) -> None:
        self.actor = actor
        self.owner = owner
        self.class_id = class_id
        self.details = details
        self.arguments = arguments
        """For its constructor; None until its owner has sent them, empty when no start needs them
        any more."""
        self.state = PENDING
        self.worker: ProcessId | None = None
        self.incarnation = 0
        self.restarts_left: int = details["restarts"]
        self.cause = b""
        self.grant: Grant | None = None
        self.watchers: set[ProcessId] = {owner}
        self.unreferenced = False

    @property
    def env(self) -> Environment:
        """Its job and its variables, as workers are chosen by them."""
        return tuple(sorted(self.details["env"].items()))

    @property
    def group(self) -> bytes:
        """The placement group that it lives in, b"" for none."""
        where: list[Any] = self.details.get("where") or []
        found: bytes = where[4][0] if len(where) > 4 and where[4] else b""
        return found

    @property
    def shared(self) -> bool:
        """Whether it lives in a worker with others."""
        return bool(self.details["isolation"] == "shared")


class Dispatcher:
    """All actors of one node."""

    def __init__(self, *, shared_hosts: int) -> None:
        self.shared_hosts = max(1, shared_hosts)
        self.actors: dict[ActorId, Actor] = {}
        self.by_worker: dict[ProcessId, set[ActorId]] = {}
        self.hosts: dict[ProcessId, Environment] = {}
        """Workers of shared actors, with the job and variables that all actors there have."""
        self.hosts_claimed: dict[ActorId, Environment] = {}
        self.waiting_for_host: list[ActorId] = []
        self.commands: list[Command] = []
        self.next_host = 0
        self.dead: dict[ActorId, bytes] = {}
        """Causes of death of the most recent dead actors."""
        self.fenced: dict[ProcessId, list[ActorId]] = {}
        """By worker out of reach: what starts again when that has certainly stopped."""

    # -- birth -----------------------------------------------------------------------------------

    def create(
        self,
        owner: ProcessId,
        identity: ActorId,
        class_id: bytes,
        details: dict[str, Any],
        arguments: bytes | None,
    ) -> None:
        """CREATE_ACTOR: place it, or let it wait: for resources, or for its arguments (None)."""
        actor = Actor(identity, owner, class_id, details, arguments)
        self.actors[identity] = actor
        self.commands.append(Record(identity))
        if arguments is not None:
            self._seek_place(actor)

    def arguments_arrived(
        self, owner: ProcessId, identity: ActorId, arguments: bytes | None, error: bytes
    ) -> None:
        """ACTOR_ARGUMENTS: place it; where one of them has failed (None), that is its end."""
        actor = self.actors.get(identity)
        if actor is None or actor.owner != owner or actor.arguments is not None:
            return  # It was killed while it waited.
        if arguments is None:
            self._end(actor, error)
        else:
            actor.arguments = arguments
            self._seek_place(actor)

    def _seek_place(self, actor: Actor) -> None:
        if actor.shared:
            self._seek_shared(actor)
        else:
            self._claim(actor, None)

    def _claim(self, actor: Actor, host: ProcessId | None) -> None:
        details = actor.details
        where = read_where(details.get("where"))
        self.commands.append(
            Claim(
                actor.actor,
                where.amounts(read_request(details["placement"])),
                where.amounts(read_request(details["resources"])),
                actor.env,
                host,
                where,
            )
        )

    def _seek_shared(self, actor: Actor) -> None:
        """Shared actors take turns over a few hosts; one is claimed as an actor without needs."""
        env = actor.env
        hosts = [host for host, its in self.hosts.items() if its == env]
        claimed = sum(its == env for its in self.hosts_claimed.values())
        if (
            len(hosts) + claimed < self.shared_hosts and actor.actor not in self.hosts_claimed
        ):  # One claim an actor: it names it.
            self.hosts_claimed[actor.actor] = env
            self.commands.append(Claim(actor.actor, {}, {}, env, None))
            self.waiting_for_host.append(actor.actor)
        elif not hosts:
            self.waiting_for_host.append(actor.actor)
        else:
            self._enter_host(actor, hosts)

    def _enter_host(self, actor: Actor, hosts: list[ProcessId]) -> None:
        self.next_host += 1
        host = hosts[self.next_host % len(hosts)]
        resources = read_request(actor.details["resources"])
        if resources:
            self._claim(actor, host)
        else:
            self._place(actor, host, None)

    def claimed(
        self, identity: ActorId, worker: ProcessId, grant: Grant | None, *, in_host: bool
    ) -> None:
        """The scheduler has served a claim, of a worker or (in_host) of resources in one."""
        # An actor that claimed a host may have entered another one before its own was there.
        env = None if in_host else self.hosts_claimed.pop(identity, None)
        if env is not None:
            self.hosts[worker] = env
            self.by_worker.setdefault(worker, set())
            waiting, self.waiting_for_host = self.waiting_for_host, []
            for waiter in waiting:
                if waiter in self.actors and self.actors[waiter].env != env:
                    self.waiting_for_host.append(waiter)
                elif waiter in self.actors:
                    self._enter_host(self.actors[waiter], [worker])
            return
        actor = self.actors.get(identity)
        if actor is None:
            if not in_host:
                self.commands.append(KillWorker(worker, "its actor was ended before it started"))
            elif grant is not None:
                self.commands.append(ReleaseGrant(grant))
        elif actor.shared and in_host and worker not in self.hosts:
            if grant is not None:
                self.commands.append(ReleaseGrant(grant))  # The host died in the meantime.
            self._seek_place(actor)
        else:
            self._place(actor, worker, grant)

    def claim_lost(self, identity: ActorId) -> None:
        """The worker that was to serve a claim has died: claim again."""
        actor = self.actors.get(identity)
        if self.hosts_claimed.pop(identity, None) is not None:
            # A host would have served all who wait, even if who claimed it is gone.
            waiting = [each for each in self.waiting_for_host if each not in self.hosts_claimed]
            self.waiting_for_host = [
                each for each in self.waiting_for_host if each in self.hosts_claimed
            ]
            for each in waiting:
                self._seek_shared(self.actors[each])
        elif actor is not None and actor.worker is None:
            self._seek_place(actor)

    def _place(self, actor: Actor, worker: ProcessId, grant: Grant | None) -> None:
        actor.worker = worker
        actor.grant = grant if actor.shared else None
        actor.state = STARTING
        self.by_worker.setdefault(worker, set()).add(actor.actor)
        self.commands.append(Start(actor.actor))
        self._changed(actor)

    def started(
        self, worker: ProcessId, identity: ActorId, incarnation: int, error: bytes | None
    ) -> None:
        """ACTOR_STARTED: its __init__ has ended; with an error the actor is dead."""
        actor = self.actors.get(identity)
        if actor is None or actor.worker != worker or actor.incarnation != incarnation:
            return
        if error is not None:
            self._end(actor, error)
            return
        actor.state = ALIVE
        self.commands.append(Record(identity))
        if actor.restarts_left == 0:
            actor.arguments = b""
            if actor.details.get("keeps"):  # Its owner holds what they refer to until now.
                self.commands.append(Tell(actor.owner, identity))
        if actor.unreferenced:
            self.commands.append(End(identity, worker, incarnation))

    # -- watching --------------------------------------------------------------------------------

    def knows(self, identity: ActorId) -> bool:
        """Return whether this actor lives here, or died not long ago."""
        return identity in self.actors or identity in self.dead

    def watch(self, process: ProcessId, identity: ActorId) -> None:
        """WATCH_ACTOR: tell the process now and at every change."""
        actor = self.actors.get(identity)
        if actor is not None:
            actor.watchers.add(process)
        self.commands.append(Tell(process, identity))

    def _changed(self, actor: Actor) -> None:
        self.commands.append(Record(actor.actor))
        # Sorted, here as elsewhere: same events, same commands, in the same order.
        for process in sorted(actor.watchers):
            self.commands.append(Tell(process, actor.actor))

    # -- death -----------------------------------------------------------------------------------

    def unreferenced(self, identity: ActorId) -> None:
        """No handle is left: end it when what has been sent to it has run."""
        actor = self.actors.get(identity)
        if actor is None or actor.details["detached"] or actor.unreferenced:
            return
        actor.unreferenced = True
        actor.restarts_left = 0
        if actor.worker is None:
            self._end(actor, b"")
        elif actor.state == ALIVE:
            self.commands.append(End(identity, actor.worker, actor.incarnation))

    def referenced(self, identity: ActorId) -> None:
        """A handle was made again (by name) before the actor was ended."""
        actor = self.actors.get(identity)
        if actor is not None:
            actor.unreferenced = False

    def exited(self, worker: ProcessId, identity: ActorId, cause: bytes) -> None:
        """ACTOR_EXIT: the actor ended itself, or was drained."""
        actor = self.actors.get(identity)
        if actor is not None and actor.worker == worker:
            self._end(actor, cause)

    def kill(self, identity: ActorId, cause: bytes, *, no_restart: bool) -> None:
        """KILL_ACTOR: end it now; its worker dies unless others live there."""
        actor = self.actors.get(identity)
        if actor is None:
            return
        if no_restart or (actor.worker is None and actor.restarts_left == 0):
            actor.restarts_left = 0
            self._end(actor, cause, killed=True)
        elif actor.worker is not None:
            if actor.worker in self.hosts:
                worker = actor.worker
                self._leave(actor)
                self.commands.append(End(identity, worker, actor.incarnation, killed=True))
                if self._restart_or_end(actor, cause):
                    self._seek_place(actor)
            else:
                self.commands.append(KillWorker(actor.worker, "zray.kill(no_restart=False)"))

    def _leave(self, actor: Actor) -> None:
        if actor.worker is not None:
            self.by_worker.get(actor.worker, set()).discard(actor.actor)
            actor.worker = None
        if actor.grant is not None:
            self.commands.append(ReleaseGrant(actor.grant))
            actor.grant = None

    def _end(self, actor: Actor, cause: bytes, *, killed: bool = False) -> None:
        worker = actor.worker
        self._leave(actor)
        actor.state = DEAD
        actor.cause = cause
        self.waiting_for_host = [other for other in self.waiting_for_host if other != actor.actor]
        self._changed(actor)
        if worker is None:
            if actor.actor not in self.hosts_claimed:  # That claim serves the others as well.
                self.commands.append(Withdraw(actor.actor))
        else:
            if worker in self.hosts:
                if killed:
                    self.commands.append(End(actor.actor, worker, actor.incarnation, killed=True))
            else:
                self.commands.append(KillWorker(worker, "its actor has ended"))
        del self.actors[actor.actor]
        self._bury(actor.actor, cause)

    def _bury(self, identity: ActorId, cause: bytes) -> None:
        self.dead[identity] = cause
        if len(self.dead) > 10_000:
            del self.dead[next(iter(self.dead))]

    def worker_died(self, worker: ProcessId, cause: bytes, *, may_run: bool = False) -> None:
        """Its actors restart where they may; else they are dead.

        may_run: it is out of reach, and may run on for a while: they restart with stopped().
        """
        self.hosts.pop(worker, None)
        for identity in sorted(self.by_worker.pop(worker, ())):
            actor = self.actors[identity]
            self._leave(actor)
            restarts = self._restart_or_end(actor, cause)
            if restarts and may_run:
                self.fenced.setdefault(worker, []).append(identity)
            elif restarts:
                self._seek_place(actor)

    def stopped(self, worker: ProcessId) -> None:
        """A worker that was out of reach has certainly stopped: its actors restart."""
        for identity in self.fenced.pop(worker, ()):
            if identity in self.actors:
                self._seek_place(self.actors[identity])

    def _restart_or_end(self, actor: Actor, cause: bytes) -> bool:
        """Let it restart, where it may: returns whether it seeks a place now."""
        if actor.restarts_left == 0 or (actor.unreferenced and not actor.details["detached"]):
            self._end(actor, cause)
            return False
        if actor.restarts_left > 0:
            actor.restarts_left -= 1
        actor.incarnation += 1
        actor.state = RESTARTING
        actor.cause = cause
        self._changed(actor)
        return True

    def move(self, worker: ProcessId, cause: bytes) -> bool:
        """The worker's node is leaving: let its actors start again elsewhere, at no cost to them.

        False where one of them has no restarts: it stays, and the others with it.
        """
        actors = [self.actors[each] for each in sorted(self.by_worker.get(worker, ()))]
        if any(actor.restarts_left == 0 or actor.state != ALIVE for actor in actors):
            return False
        for actor in actors:
            if actor.restarts_left > 0:
                actor.restarts_left += 1
            actor.cause = cause
        if actors or worker in self.hosts:
            self.hosts.pop(worker, None)
            self.commands.append(KillWorker(worker, "its node is leaving"))
        return True

    def retire_hosts(self, jobs: set[str]) -> None:
        """End the hosts without actors whose job is none of these: nobody will use them again."""
        for worker, env in list(self.hosts.items()):
            if not self.by_worker.get(worker) and job_of(env) not in jobs:
                del self.hosts[worker]
                self.commands.append(KillWorker(worker, "its job has ended"))

    def process_died(self, process: ProcessId, cause: bytes) -> None:
        """A process with handles is gone (its holds are the directory's affair)."""
        for actor in list(self.actors.values()):
            actor.watchers.discard(process)
            if actor.arguments is None and actor.owner == process:
                self._end(actor, cause)

    # -- for people and tests --------------------------------------------------------------------

    def statistics(self) -> dict[str, int]:
        """Return counts by state."""
        counts: dict[str, int] = {}
        for actor in self.actors.values():
            counts[actor.state] = counts.get(actor.state, 0) + 1
        return counts

    def check(self) -> None:
        """Raise AssertionError where an invariant is broken."""
        for identity, actor in self.actors.items():
            assert actor.state != DEAD
            if actor.worker is not None:
                assert actor.arguments is not None, "started without arguments"
                assert identity in self.by_worker[actor.worker]
                assert actor.state in (STARTING, ALIVE)
            else:
                assert actor.state in (PENDING, RESTARTING)
        for worker in self.fenced:
            assert worker not in self.by_worker, "out of reach, and used"
        for hosted in self.by_worker.values():
            # A host that is told to leave is none any more, with its actors still in it.
            alone = not all(self.actors[each].shared for each in hosted)
            assert len(hosted) <= 1 or not alone, "a process actor shares its worker"
