"""Actors under leases: what this node hosts, what others host for it, and who is stopped when.

What    Brings together host_leases.py (until when), actor_fences.py (what must wait), the table of
        leases that the zygote enforces, and the messages between hosts and homes.
Caller  brokers/cluster.py: serve(); loans.py, deaths.py and node_commands.py tell of workers and
        starts. HOSTING_RULES has what other nodes say.
Never   decides: the machines do. Sends a signal: the zygote does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from zray.net.link_inbox import Payload
from zray.protocol import link_messages
from zray.protocol.ids import ActorId, NodeId, ProcessId, node_of
from zray.store.lease_table import SLOTS, LeaseTable

from . import dispatcher
from .actor_fences import ActorFences, FreeName
from .host_leases import AskHome, HostLeases

if TYPE_CHECKING:
    from .cluster import Cluster

_TICK_S = 0.1
_UNGUARDED = 0
"""The slot of workers that may run for ever."""
_HELD_MAIL_MAX = 64
"""Messages for a worker whose home has not answered yet; it is told little before it starts."""


class Hosting:
    """The leases of one node.

    Args:
        cluster: of this node.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._node = cluster.node
        self.leases = HostLeases(cluster.node.process)
        self.fences = ActorFences()
        self.table = LeaseTable.create()
        self.table.set_end(_UNGUARDED, float("inf"))
        self._slots: dict[NodeId, int] = {}
        self._tick_at = 0.0
        self._held_mail: dict[ProcessId, list[tuple[bytes, list[bytes]]]] = {}
        self._held_starts: dict[ActorId, dispatcher.Start] = {}
        self._suspended_since: float | None = None

    # -- as time goes ----------------------------------------------------------------------------

    @property
    def due_s(self) -> float:
        """In how many seconds serve() wants to be called."""
        now = self._node.now
        due = self.fences.next_due - now
        return max(0.0, min(due, self._tick_at - now)) if self._is_used else max(0.0, due)

    @property
    def _is_used(self) -> bool:
        return bool(self.leases.hosted or self._held_starts)

    def serve(self) -> None:
        """Renew what is due, and let go of what has waited long enough: before any message."""
        now = self._node.now
        self.leases.own_until = self._cluster.membership.lease_until
        self.fences.tick(now)
        if now >= self._tick_at and self._is_used:
            self._tick_at = now + _TICK_S
            self.leases.tick(now)
            self._write_ends()
            self._note_suspension(now)
        self._perform()
        if self._held_starts and self.may_run(self._node.process):
            starts, self._held_starts = self._held_starts, {}
            self._node.dispatcher.commands.extend(starts.values())

    def _perform(self) -> None:
        leases, fences, cluster = self.leases, self.fences, self._cluster
        asked, leases.commands = leases.commands, []
        for command in asked:
            if isinstance(command, AskHome):
                if command.home in cluster.members:
                    cluster.send(command.home, link_messages.HOST_RENEW, command.stamp)
            else:
                answer = (command.stamp, command.lease_s)
                cluster.send(command.host, link_messages.HOST_RENEWED, *answer)
        over, fences.commands = fences.commands, []
        for each in over:
            if isinstance(each, FreeName):
                self._node.shared_tables.free_name(each.actor)
            else:
                self._node.dispatcher.stopped(each.worker)

    def _write_ends(self) -> None:
        for home, slot in self._slots.items():
            self.table.set_end(slot, self.leases.until(home))

    def _note_suspension(self, now: float) -> None:
        if now >= self.leases.own_until:
            if self._suspended_since is None:
                self._suspended_since = now
                print("the lease of this node is over: its actors stand still", flush=True)
        elif self._suspended_since is not None:
            lasted_s = now - self._suspended_since
            self._suspended_since = None
            print(f"the lease stands again: actors go on after {lasted_s:.1f} s", flush=True)

    def may_run(self, home: NodeId) -> bool:
        """Return whether actors of a home may run here now."""
        return self._node.now < self.leases.until(home)

    # -- workers of this node --------------------------------------------------------------------

    def lent(self, worker: ProcessId, home: NodeId) -> None:
        """A worker of ours is to host an actor of another node's."""
        self._host(worker, home)
        self._perform()

    def _host(self, worker: ProcessId, home: NodeId) -> None:
        leases = self.leases
        if leases.hosted.get(worker) == home:
            return
        leases.hosts(worker, home, self._node.now)
        slot = self._slots.get(home)
        if slot is None:
            free = set(range(_UNGUARDED + 1, SLOTS)) - set(self._slots.values())
            if not free:
                print(f"worker {worker.hex()} ends: {SLOTS} homes have actors here", flush=True)
                self._node.kill_worker(worker)
                return
            slot = self._slots[home] = min(free)
        self.table.set_end(slot, leases.until(home))
        self._node.workers.guard(worker, slot, self.table)

    def worker_gone(self, worker: ProcessId) -> None:
        """A worker of ours is dead, or hosts nothing any more."""
        self._held_mail.pop(worker, None)
        home = self.leases.hosted.get(worker)
        self.leases.worker_gone(worker)
        if home is not None and home not in self.leases.hosted.values():
            self._slots.pop(home, None)

    def given_back(self, worker: ProcessId) -> None:
        """A worker that was lent for an actor is free again: it never had it."""
        if worker in self.leases.hosted:
            self.worker_gone(worker)
            self._node.workers.guard(worker, _UNGUARDED, self.table)

    def take_mail(self, worker: ProcessId, header: bytes, payloads: list[bytes]) -> bool:
        """Keep what a home tells a worker that may not run yet; False: let it have it."""
        home = self.leases.hosted.get(worker)
        if home is None or (worker not in self._held_mail and self.may_run(home)):
            return False
        held = self._held_mail.setdefault(worker, [])
        held.append((header, payloads))
        if len(held) > _HELD_MAIL_MAX:
            print(f"worker {worker.hex()} ends: its home does not renew its lease", flush=True)
            self._node.kill_worker(worker)
        return True

    def _pass_on_mail(self, home: NodeId) -> None:
        for worker in [each for each in self._held_mail if self.leases.hosted[each] == home]:
            for header, payloads in self._held_mail.pop(worker):
                self._node.peers.send(worker, header, payloads)

    # -- actors of this node ---------------------------------------------------------------------

    def starts(self, command: dispatcher.Start) -> bool:
        """An actor of ours is to start; False: not before our own lease stands again."""
        actor = self._node.dispatcher.actors[command.actor]
        worker = actor.worker
        assert worker is not None
        if not self.may_run(self._node.process):
            self._held_starts[command.actor] = command
            return False
        if node_of(worker) == self._node.process:
            self._host(worker, self._node.process)
        else:
            self.fences.started(command.actor, worker, is_shared=actor.shared)
        return True

    def borrowed_lost(self, worker: ProcessId) -> None:
        """The node of a borrowed worker is out of reach."""
        node = self._node
        self.fences.lost(worker, self.leases.stands_still_at(node_of(worker)), node.now)

    def borrowed_died(self, worker: ProcessId) -> None:
        """Its node says that a borrowed worker is dead."""
        self.fences.stopped(worker)

    def died(self, actor: ActorId) -> bool:
        """An actor of ours is dead; returns whether its name is free now."""
        self._held_starts.pop(actor, None)
        return self.fences.ended(actor)

    # -- what other nodes say --------------------------------------------------------------------

    def renew(self, host: NodeId, stamp: float) -> None:
        """HOST_RENEW."""
        self.leases.renew(host, stamp, self._node.now)
        self._perform()

    def renewed(self, home: NodeId, stamp: float, lease_s: float) -> None:
        """HOST_RENEWED."""
        self.leases.granted(home, stamp, lease_s, self._node.now)
        slot = self._slots.get(home)
        if slot is not None:
            self.table.set_end(slot, self.leases.until(home))
        if self._held_mail and self.may_run(home):
            self._pass_on_mail(home)

    def hosts_ended(self, host: NodeId) -> None:
        """HOSTS_ENDED: nothing runs there any more."""
        self.leases.promised_until.pop(host, None)

    def close(self, *, all_ended: bool) -> None:
        """The workers of this node are dead (all_ended), or told to die."""
        for member in self._cluster.members if all_ended else ():
            self._cluster.send(member, link_messages.HOSTS_ENDED)
        self.table.close()


# -- rules -----------------------------------------------------------------------------------------


def _renew(cluster: Cluster, peer: bytes, message: list[Any], _frames: list[Payload]) -> None:
    cluster.hosting.renew(peer, message[3])


def _renewed(cluster: Cluster, peer: bytes, message: list[Any], _frames: list[Payload]) -> None:
    cluster.hosting.renewed(peer, message[3], message[4])


def _ended(cluster: Cluster, peer: bytes, _message: list[Any], _frames: list[Payload]) -> None:
    cluster.hosting.hosts_ended(peer)


Rule = Callable[["Cluster", bytes, list[Any], list[Payload]], None]

HOSTING_RULES: dict[int, Rule] = {
    link_messages.HOST_RENEW: _renew,
    link_messages.HOST_RENEWED: _renewed,
    link_messages.HOSTS_ENDED: _ended,
}
