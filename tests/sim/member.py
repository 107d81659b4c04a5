"""A simulated node among others: the real Cluster and all its rules over simulated links.

What    SimMember is SimNode with a cluster, which can be killed, stopped and slowed down. What
        of a node among others does not run here, and has tests of its own: the lineage copies,
        sockets and keys, the GCS process as a child, people's questions.
Caller  tests/sim/nodes_simulation.py, tests/sim/faults.py.
Never   repeats a rule: what is patched is where bytes go, and where random ones come from.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest.mock import patch

from tests.sim.bulk import SimBulk
from tests.sim.gcs import SimGcs, SimGcsPeer, SimGcsProcess, SimProber
from tests.sim.links import SimDeliveries, SimLinkInbox, SimLinks
from tests.sim.losses import Losses
from tests.sim.network import Network
from tests.sim.node import SimNode
from tests.sim.world import World
from zray.brokers import cluster, gcs_relay, hosting, objects_elsewhere
from zray.brokers.cluster import Cluster
from zray.net import mailbox
from zray.protocol import frames, messages
from zray.protocol.ids import node_of


class NodesWorld(World):
    """A world of several nodes, their network and the GCS."""

    losses: Losses

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.losses = Losses()
        self.network = Network(self)
        self.inboxes: dict[str, SimLinkInbox] = {}
        self.bulks: dict[bytes, SimBulk] = {}
        self.gcs = SimGcs(self)
        self.begin_anew: Callable[[str], None]
        """Starts a node at the address of one that has ended."""
        self.in_groups = 0
        """Results that came of placement groups."""
        self.refusals: list[str] = []
        """What a node refused to hear of another one, and should not have to."""

    def check_names(self) -> None:
        """Assert that no name has two living actors, on nodes that the GCS counts as alive."""
        alive = self.gcs.replica.machine.alive
        holders: dict[tuple[str, str], bytes] = {}
        for member in self.members:
            if alive.get(member.process) != member.cluster.membership.incarnation:
                continue  # What others have been told is dead ends itself.
            for actor in member.dispatcher.actors.values():
                if actor.details["name"] is not None:
                    name = (actor.details["namespace"], actor.details["name"])
                    other = holders.setdefault(name, actor.actor)
                    assert other == actor.actor, f"{name} is that of two actors"

    @property
    def members(self) -> list[SimMember]:
        """Return the nodes that live."""
        return [each for each in self.nodes.values() if isinstance(each, SimMember)]


class _NoLineage:
    """In the place of LineageCopies: files."""

    def __getattr__(self, _name: str) -> Callable[..., None]:
        return lambda *_arguments, **_named: None


class _LeaseTable:
    """In the place of the memory that node and zygote share."""

    def __init__(self) -> None:
        self._ends: dict[int, float] = {}

    @classmethod
    def create(cls) -> _LeaseTable:
        return cls()

    def set_end(self, slot: int, end: float) -> None:
        self._ends[slot] = end

    def end(self, slot: int) -> float:
        return self._ends.get(slot, 0.0)

    def close(self) -> None:
        return


class SimCluster(Cluster):
    """The real one; it tells who has lost whom."""

    def lost(self, identity: bytes, reason: str) -> None:
        node: Any = self.node
        if identity in self.members:
            node.world.tell(f"{node.name} loses {node.world.name(identity)}: {reason}")
            node.world.losses.lost(node.process, identity)
        super().lost(identity, reason)


class SimMember(SimNode):
    """One node of several."""

    world: NodesWorld
    check_every = 4
    """Half of the time would go into it: what is broken is so four wakes later as well."""

    def __init__(
        self,
        world: NodesWorld,
        start_worker: Callable[[bytes], None],
        *,
        process: bytes,
        name: str,
        address: str,
        total: dict[str, int],
        capacity_bytes: int,
        labels: dict[str, str],
    ) -> None:
        super().__init__(
            world,
            start_worker,
            total=total,
            capacity_bytes=capacity_bytes,
            process=process,
            name=name,
            settings={"labels": labels, "cluster": {}},
        )
        self.cluster: SimCluster
        with _simulated(self, address):
            self.cluster = SimCluster(self, None)

    # -- what is kept in mind of objects ---------------------------------------------------------

    def handle_call(self, process: Any, packed: bytes) -> None:
        message = frames.unpack(packed)
        losses = self.world.losses
        if message[1] == messages.REGISTER:
            losses.made(self.process, message[3], message[6])
        elif message[1] == messages.HOLD_FOR:
            losses.made(self.process, message[3], message[4])
        elif message[1] == messages.SHARE:
            losses.made(self.process, message[3], message[5])
        super().handle_call(process, packed)

    # -- its end ---------------------------------------------------------------------------------

    def end(self) -> None:
        exposed = self.process in self.world.losses.exposed
        assert exposed, f"{self.name} ends, and nothing has happened to it: {self.stopping}"
        if self.stopping == "drained":
            self.world.losses.left.add(self.process)
            if self.cluster.gcs is not None:
                self.cluster.gcs.close()  # It says that it leaves.
        self.crash(f"it stops: {self.stopping}")
        if self.begins_anew:
            self.world.begin_anew(self.cluster.inbox.address)

    def crash(self, reason: str) -> None:
        """SIGKILL of the node and of all that runs on it."""
        if self.dead:
            return
        world = self.world
        world.tell(f"node {self.name} CRASHES: {reason}")
        world.chaos = True
        losses = world.losses
        losses.exposed.add(self.process)
        losses.dead.add(self.process)
        if self.process not in losses.left:
            losses.touched.add(self.process)
        self.dead = True
        if self.cluster.gcs_relay is not None:
            world.gcs.crash(again=False)
        for process in list(world.processes.values()):
            if node_of(process.identity) == self.process:
                process.crash("its node is dead")
        links: Any = self.cluster.links
        links.close()
        bulk: Any = self.cluster.objects.bulk
        bulk.close()
        self.cluster.inbox.close()
        for other in world.members:
            if not other.dead:
                other.break_links(self.process)
        del world.nodes[self.process]

    def break_links(self, other: bytes) -> None:
        """The connections to another node end."""
        links: Any = self.cluster.links
        for link in list(links.by_peer.values()):
            if link.host == other:
                link.broken()
        self.break_bulk(other)

    def break_bulk(self, other: bytes) -> None:
        """The connection for objects to another node ends, and nobody is told."""
        bulk: Any = self.cluster.objects.bulk
        bulk.link.broken(self.cluster.objects.peers.get(other, b""))

    # -- what is left ----------------------------------------------------------------------------

    def check(self) -> None:
        super().check()
        self.world.check_names()
        self.cluster.membership.check()
        self.cluster.objects.fence.check()
        self.cluster.hosting.leases.check()
        self.cluster.hosting.fences.check()
        self.placement_groups.reservations.check()
        self.resources.check()
        if self.placement_groups.coordination.machine is not None:
            self.placement_groups.coordination.machine.check()
        if self.cluster.gcs is not None:
            self.cluster.gcs.session.check()
        assert not self.world.refusals, self.world.refusals

    def leaks(self) -> list[str]:
        self.check()
        left = super().leaks()
        books, objects = self.cluster, self.cluster.objects
        scheduler = self.scheduler
        bulk: Any = objects.bulk
        tables = {
            "borrowed": self._without_hosts(scheduler.borrowing.borrowed),
            "requests": scheduler.borrowing.requests,
            "loans": self._without_hosts(scheduler.lending.loans),
            "asked": scheduler.lending.asked,
            "borrowed processes": self._without_hosts(books.borrowed),
            "watchers": books.watchers,
            # The host of a shared actor that has ended serves others of its job.
            "places": {
                worker: who
                for (_home, worker), who in books.places.items()
                if who and self.world.processes[worker].dead
            },
            "code_wanted": books.code._wanted,
            "code_asked": books.code._asked,
            "code_tries": books.code._tries,
            "waiting_for_function": {
                function: who
                for function, who in self.processes.waiting_for_function.items()
                if who
            },
            "early": objects._early,
            "dying": objects._dying,
            "uncounted": objects._uncounted,
            "expected": objects._expected,
            "no room": objects._no_room,
            "fence": {} if objects.fence.is_open else objects.fence.statistics(),
            "pulls": bulk._wanted,
            "bundles": self.placement_groups.reservations.bundles,
            "groups": self.placement_groups.table.specs,
            "unreached": objects._unreached._waiting,
            "pins": self.store.pins,
        }
        left += [f"{name}: {self._shown(table)}" for name, table in tables.items() if table]
        return [f"{self.name}: {each}" for each in left]

    def _without_hosts(self, workers: Mapping[bytes, Any]) -> dict[bytes, Any]:
        """Leave out the hosts of shared actors that wait for others of a job that goes on."""
        hosts = {host for member in self.world.members for host in member.dispatcher.hosts}
        return {worker: each for worker, each in workers.items() if worker not in hosts}

    def _shown(self, table: Any) -> str:
        keys = [
            self.world.name(key) if isinstance(key, bytes) and len(key) in (8, 16) else repr(key)
            for key in table
        ]
        return f"{keys} {table!r}"[:600]


@contextlib.contextmanager
def _simulated(node: SimMember, address: str) -> Iterator[None]:
    """Give a cluster that is made now the network of the world instead of sockets."""
    with (
        patch.object(mailbox, "new_context", lambda: None),
        patch.object(cluster, "LinkInbox", lambda *_a, **_n: SimLinkInbox(node, address)),
        patch.object(cluster, "Links", lambda *_a, **_n: SimLinks(node)),
        patch.object(cluster, "Deliveries", lambda *_a, **_n: SimDeliveries(node)),
        patch.object(cluster, "LineageCopies", lambda *_a, **_n: _NoLineage()),
        patch.object(hosting, "LeaseTable", _LeaseTable),
        patch.object(objects_elsewhere, "Bulk", lambda *a, **n: _bulk(node, *a, **n)),
    ):
        yield


def _bulk(
    node: SimMember,
    _segment: Any,
    own: bytes,
    *_given: Any,
    budget_bytes: int,
    wake: Callable[[], object],
    **_named: Any,
) -> SimBulk:
    return SimBulk(node, own, budget_bytes=budget_bytes, wake=wake)


@contextlib.contextmanager
def seeded(world: NodesWorld) -> Iterator[None]:
    """Let all random ids of this run come from its seed, and every GCS be the world's."""
    with (
        patch.object(gcs_relay, "GcsProcess", lambda *_a, **_n: SimGcsProcess(world.gcs)),
        patch.object(gcs_relay, "GcsPeer", lambda _e, own: SimGcsPeer(world.nodes[own], world.gcs)),
        patch.object(gcs_relay, "Prober", lambda wake: SimProber(world, wake)),
        patch("os.urandom", world.rng.randbytes),
    ):
        yield
