"""What befalls the nodes of a run: each seed has its own mixture of faults, at its own times.

What    Faults draws a list of faults before the run and lets each happen. One that is left out
        (``without``) changes nothing else of the seed, so that the smallest set that fails can be
        searched for.
Caller  tests/sim/nodes_simulation.py.
Never   draws from the world's luck: the programs stay the same whatever happens to them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from tests.sim.worker import SimWorker

if TYPE_CHECKING:
    from tests.sim.member import SimMember
    from tests.sim.nodes_simulation import NodesSimulation

_SPANS_S = (0.1, 0.4, 1.5)
"""So long after the drivers' beginning faults begin: most programs are over in half a second."""

_HEARD_AGAIN_S = 0.5
"""In a shorter time between two cuts not every beat and its answer get through."""

PROFILES: tuple[tuple[str, ...], ...] = (
    (),
    ("worker",),
    ("link",),
    ("link", "link", "worker"),
    ("bulk", "slow"),
    ("gcs",),
    ("gcs", "full", "worker"),
    ("cut",),
    ("cut", "one-way", "link"),
    ("stop", "slow"),
    ("node",),
    ("node", "worker", "gcs"),
    ("driver", "worker"),
    ("drain",),
    ("drain", "worker", "slow"),
    ("head",),
    ("head", "worker", "node", "link"),
    ("worker", "link", "bulk", "gcs", "full", "cut", "one-way", "stop", "slow", "node", "driver"),
    ("drain", "link", "node", "gcs", "worker"),
)
"""Kinds of faults that come together."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One of them: what, when, and the luck it draws whom it hits from."""

    kind: str
    at_s: float
    luck: float


class Faults:
    """The faults of one run.

    Args:
        simulation: that they happen to.
        seed_luck: of this seed.
        without: numbers of faults that are left out.
    """

    def __init__(
        self, simulation: NodesSimulation, seed_luck: float, without: Collection[int]
    ) -> None:
        self.simulation = simulation
        self.world = simulation.world
        fate = random.Random(seed_luck)
        kinds = fate.choice(PROFILES)
        count = fate.choice((1, 2, 4, 8)) if kinds else 0
        span_s = fate.choice(_SPANS_S)
        self.planned = [
            Fault(fate.choice(kinds), fate.uniform(0.0, span_s), fate.random())
            for _ in range(count)
        ]
        self.crashes_scripts = "worker" in kinds and fate.random() < 0.5
        self.happening = 0
        """Faults that have begun and are not over."""
        self._without = without
        self._silences: dict[tuple[bytes, bytes], tuple[float, float]] = {}
        """Since when and until when nothing goes from one host to another."""
        self._do: dict[str, Callable[[random.Random], str]] = {
            "worker": self._worker,
            "driver": self._driver,
            "node": self._node,
            "link": self._link,
            "bulk": self._bulk,
            "cut": self._cut,
            "one-way": self._one_way,
            "gcs": self._gcs,
            "full": self._full,
            "stop": self._stop,
            "slow": self._slow,
            "drain": self._drain,
            "head": self._head,
        }

    def begin(self) -> None:
        """Let them happen, from now on."""
        for number, fault in enumerate(self.planned):
            if number not in self._without:
                self.happening += 1
                self.world.after(fault.at_s, "fault", partial(self._happen, fault))

    def _happen(self, fault: Fault) -> None:
        self.happening -= 1
        told = self._do[fault.kind](random.Random(fault.luck))
        self.world.tell(f"FAULT {fault.kind}: {told or 'nothing to hit'}")

    def _for(self, seconds: float, over: Callable[[], None]) -> None:
        self.happening += 1

        def end() -> None:
            self.happening -= 1
            over()

        self.world.after(seconds, "fault", end)

    # -- whom ------------------------------------------------------------------------------------

    def _members(self) -> list[SimMember]:
        return [each for each in self.world.members if not each.dead]

    def _others(self) -> list[SimMember]:
        """Return all but the head."""
        return [each for each in self._members() if each is not self.simulation.head]

    def _pair(self, luck: random.Random) -> tuple[SimMember, SimMember] | None:
        members = self._members()
        if len(members) < 2:
            return None
        one, other = luck.sample(members, 2)
        return one, other

    def _expose(self, *members: SimMember) -> None:
        """Others may lose these from now on, and so may lose each other."""
        self.world.losses.exposed.update(each.process for each in members)

    # -- processes and nodes ---------------------------------------------------------------------

    def _worker(self, luck: random.Random) -> str:
        workers = [
            each
            for each in self.world.processes.values()
            if isinstance(each, SimWorker) and not each.dead
        ]
        if not workers:
            return ""
        victim = luck.choice(workers)
        victim.crash("fate")
        return victim.name

    def _driver(self, luck: random.Random) -> str:
        drivers = [each for each in self.simulation.drivers if not (each.dead or each.done)]
        if len(drivers) < 2:
            return ""
        victim = luck.choice(drivers)
        victim.crash("fate")
        return victim.name

    def _node(self, luck: random.Random) -> str:
        members = self._others()
        if not members:
            return ""
        victim = luck.choice(members)
        victim.crash("fate")
        if luck.random() < 0.6:
            address = victim.cluster.inbox.address if luck.random() < 0.5 else None
            self._for(luck.uniform(0.05, 1.0), lambda: self._restart(address))
        return victim.name

    def _drain(self, luck: random.Random) -> str:
        """Somebody wants a node to leave; what cannot move elsewhere in time keeps it."""
        members = self._others()
        if not members:
            return ""
        victim = luck.choice(members)
        # Calls of an actor that moves fail; objects of others must not be lost with the node.
        self.world.chaos = True
        self._expose(victim)
        victim.cluster.draining.begin(luck.choice((0.3, 3.0, 10.0)), force=False)
        victim.wake_soon()
        return victim.name

    def _restart(self, address: str | None) -> None:
        self.simulation.add_member(address)

    def _head(self, luck: random.Random) -> str:
        """With the head the GCS dies, and is there again with the next one."""
        head = self.simulation.head
        if head.dead:
            return ""
        address = head.cluster.inbox.address
        head.crash("fate")
        self._for(luck.uniform(0.05, 2.0), lambda: self._new_head(address))
        return head.name

    def _new_head(self, address: str) -> None:
        self.simulation.add_head(address)
        self._expose(self.simulation.head)  # Others dial it anew until it has answered.

    def _stop(self, luck: random.Random) -> str:
        members = self._others()
        if not members:
            return ""
        victim = luck.choice(members)
        seconds = luck.choice((0.01, 0.2, 1.0, 3.0))
        if self._silence_s((victim.process, b"all"), seconds) > 1.0:
            self._expose(victim)
            self.world.chaos = True
        victim.stopped_until = max(victim.stopped_until, self.world.now + seconds)
        self._for(seconds, lambda: None)
        return f"{victim.name} for {seconds} s"

    def _slow(self, luck: random.Random) -> str:
        members = self._members()
        if not members:
            return ""
        victim = luck.choice(members)
        victim.slowness = luck.choice((10.0, 100.0))

        def over() -> None:
            victim.slowness = 1.0

        self._for(luck.uniform(0.1, 1.5), over)
        return victim.name

    # -- links -----------------------------------------------------------------------------------

    def _link(self, luck: random.Random) -> str:
        pair = self._pair(luck)
        if pair is None:
            return ""
        one, other = pair
        self.world.chaos = True
        self._expose(one, other)
        one.break_links(other.process)
        if luck.random() < 0.5:
            other.break_links(one.process)
        return f"{one.name} to {other.name}"

    def _bulk(self, luck: random.Random) -> str:
        pair = self._pair(luck)
        if pair is None:
            return ""
        one, other = pair
        one.break_bulk(other.process)
        return f"{one.name} to {other.name}"

    def _cut(self, luck: random.Random) -> str:
        pair = self._pair(luck)
        if pair is None:
            return ""
        one, other = pair
        self._hold_up(luck, [(one.process, other.process), (other.process, one.process)])
        return f"{one.name} and {other.name}"

    def _one_way(self, luck: random.Random) -> str:
        pair = self._pair(luck)
        if pair is None:
            return ""
        one, other = pair
        self._hold_up(luck, [(one.process, other.process)])
        return f"{one.name} to {other.name}"

    def _hold_up(self, luck: random.Random, ways: list[tuple[bytes, bytes]]) -> None:
        """Nothing goes these ways for a while; then it goes on, or the connections have broken."""
        world = self.world
        seconds = luck.choice((0.02, 0.3, 1.0, 3.0))
        breaks = luck.random() < 0.3
        uneven = not breaks and luck.random() < 0.3
        members = [world.nodes[host] for way in ways for host in way if host in world.nodes]
        longest_s = max(self._silence_s(way, seconds) for way in ways)
        if breaks or uneven or (longest_s > 1.0 and self.simulation.head in members):
            world.chaos = True
            self._expose(*members)  # type: ignore[arg-type]
        for way in ways:
            world.network.cut(*way)
        if uneven:  # One side's patience ends, and the other hears nothing of that.
            one, other = luck.sample(ways[0], 2)
            world.after(luck.uniform(0.0, seconds), "fault", lambda: self._break(one, other))

        def over() -> None:
            for way in ways:
                world.network.heal(*way)
            one, other = ways[0]
            if breaks:
                self._break(one, other)
                self._break(other, one)

        self._for(seconds, over)

    def _break(self, node: bytes, peer: bytes) -> None:
        """The connections of a node to another one end."""
        member = self.world.nodes.get(node)
        if member is not None:
            member.break_links(peer)  # type: ignore[attr-defined]

    def _silence_s(self, way: tuple[bytes, bytes], seconds: float) -> float:
        """Return for how long nothing was heard this way when a cut of so long is over."""
        now = self.world.now
        since, until = self._silences.get(way, (now, now))
        if now > until + _HEARD_AGAIN_S:
            since = now
        self._silences[way] = since, max(until, now + seconds)
        return self._silences[way][1] - since

    # -- the GCS ---------------------------------------------------------------------------------

    def _gcs(self, _luck: random.Random) -> str:
        self.world.gcs.crash()
        return "it is started again"

    def _full(self, luck: random.Random) -> str:
        store = self.world.gcs.store
        store.fails = True

        def over() -> None:
            store.fails = False

        self._for(luck.uniform(0.05, 1.5), over)
        return "its disk"
