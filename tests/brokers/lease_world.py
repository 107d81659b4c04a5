"""A GCS, a home and a host with clocks of their own, for tests of leases.

What    World runs the real machines of a home H and a host M of one actor against a GCS that
        declares dead who does not renew, with messages that are late, cut links, processes that
        stand still and a GCS that starts again. It fails as soon as an actor runs although its
        successor may have begun, or its name may be another's.
Caller  tests/brokers/test_host_leases.py.
Never   waits: time is a number, and each node sees it through a clock of another rate.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import count

from zray.brokers.actor_fences import ActorFences, FreeName, Stopped
from zray.brokers.gcs.wire import NODE_LEASE_S
from zray.brokers.host_leases import AskHome, Grant, HostLeases
from zray.brokers.membership import Membership

HOME, HOST = b"home" + bytes(4), b"host" + bytes(4)
WORKER, ACTOR = b"hostwork", b"homeactor0000000"
BEAT_S = 0.25
TICK_S = 0.1


@dataclass
class Clock:
    """What one machine takes for the time."""

    rate: float
    offset: float

    def at(self, real: float) -> float:
        return self.offset + self.rate * real


@dataclass
class Span:
    """From when to when something does not work: a link between two, or (one name) a process."""

    who: frozenset[str]
    begin: float
    end: float


class Node:
    """What a node has of leases."""

    def __init__(self, name: str, identity: bytes, clock: Clock) -> None:
        self.name, self.clock = name, clock
        self.membership = Membership(identity)
        self.membership.joined(1)
        self.leases = HostLeases(identity)
        self.fences = ActorFences()
        self.expires_at = float("-inf")
        self.beat_at = float("-inf")


@dataclass(order=True)
class _Event:
    at: float
    number: int
    do: Callable[[], None] = field(compare=False)


class World:
    """See the module's docstring.

    Args:
        rates: of the clocks of GCS, home and host.
        delay_s: returns how long the next message takes.
        spans: what does not work when.
    """

    def __init__(
        self, rates: tuple[float, float, float], delay_s: Callable[[], float], spans: list[Span]
    ) -> None:
        self.gcs_clock = Clock(rates[0], 1000.0)
        self.home = Node("home", HOME, Clock(rates[1], 5.0))
        self.host = Node("host", HOST, Clock(rates[2], 77777.0))
        self.nodes = (self.home, self.host)
        self.delay_s, self.spans = delay_s, spans
        self.now = 0.0
        self.events: list[_Event] = []
        self.numbers = count()
        self.boot = 0
        start = self.gcs_clock.at(0) + NODE_LEASE_S
        self.deadlines = {"home": start, "host": start}
        self.dead: set[str] = set()
        self.names_free_at: dict[str, float] = {}
        self.has_link = True
        self.is_replaced = self.is_name_free = False
        for node in self.nodes:
            node.expires_at = node.clock.at(0) + NODE_LEASE_S
            self.every(node.name, TICK_S, partial(self.tick, node))
        self.every("gcs", TICK_S / 3, self.gcs_tick)
        self.host.leases.hosts(WORKER, HOME, self.host.clock.at(0))
        self.home.fences.started(ACTOR, WORKER, is_shared=False)

    # -- time and messages -----------------------------------------------------------------------

    def later(self, at: float, do: Callable[[], None]) -> None:
        heapq.heappush(self.events, _Event(at, next(self.numbers), do))

    def every(self, name: str, step_s: float, do: Callable[[], None]) -> None:
        def again() -> None:
            do()
            self.later(self.works_at(self.now + step_s, name), again)

        self.later(0.0, again)

    def works_at(self, at: float, *who: str) -> float:
        """Return when all of these are there, from a time on."""
        moved = True
        while moved:
            moved = False
            for span in self.spans:
                concerned = span.who == frozenset(who) or (
                    len(span.who) == 1 and span.who <= frozenset(who)
                )
                if concerned and span.begin <= at < span.end:
                    at, moved = span.end, True
        return at

    def send(self, source: str, target: str, do: Callable[[], None]) -> None:
        """TCP: what is sent into a cut arrives after it."""
        at = self.works_at(self.now, source, target) + self.delay_s()
        self.later(self.works_at(at, target), do)

    def run(self, until: float) -> None:
        while self.events and self.events[0].at <= until:
            event = heapq.heappop(self.events)
            self.now = max(self.now, event.at)
            event.do()
            self.check()
        self.now = until

    # -- the GCS ---------------------------------------------------------------------------------

    def gcs_tick(self) -> None:
        now = self.gcs_clock.at(self.now)
        for name, deadline in list(self.deadlines.items()):
            if deadline <= now:
                self.declare_dead(name)
        for name, at in self.names_free_at.items():
            if name == "home" and at <= now:
                self.is_name_free = True

    def declare_dead(self, name: str) -> None:
        """Its lease is over, or its connection broke."""
        if name in self.dead:
            return
        self.dead.add(name)
        self.names_free_at[name] = self.deadlines.pop(name)
        if name == "host":
            self.send("gcs", "home", self.home_loses_host)

    def gcs_restarts(self) -> None:
        self.boot += 1
        now = self.gcs_clock.at(self.now)
        self.deadlines = dict.fromkeys(self.deadlines, now + NODE_LEASE_S)
        self.names_free_at = dict.fromkeys(self.names_free_at, now + NODE_LEASE_S)

    def beat(self, node: Node) -> None:
        stamp, boot = node.clock.at(self.now), self.boot

        def heard() -> None:
            if self.boot != boot or node.name in self.dead:
                return  # What was on its way to the former process is lost.
            self.deadlines[node.name] = self.gcs_clock.at(self.now) + NODE_LEASE_S
            self.send("gcs", node.name, acknowledged)

        def acknowledged() -> None:
            node.expires_at = max(node.expires_at, stamp + NODE_LEASE_S)

        self.send(node.name, "gcs", heard)

    # -- the nodes -------------------------------------------------------------------------------

    def tick(self, node: Node) -> None:
        now = node.clock.at(self.now)
        if now >= node.beat_at + BEAT_S:
            node.beat_at = now
            self.beat(node)
        node.membership.tick(now, node.expires_at)
        node.leases.own_until = node.membership.lease_until
        node.leases.tick(now)
        node.fences.tick(now)
        self.perform(node)

    def perform(self, node: Node) -> None:
        node.leases.check()
        node.fences.check()
        asked, node.leases.commands = node.leases.commands, []
        for command in asked:
            if isinstance(command, AskHome):
                self.send("host", "home", partial(self.renew, command))
            else:
                self.send("home", "host", partial(self.granted, command))
        over, node.fences.commands = node.fences.commands, []
        for each in over:
            # Nothing begins at a home whose own lease is over.
            if isinstance(each, Stopped) and node.clock.at(self.now) < node.leases.own_until:
                self.is_replaced = True
            if isinstance(each, FreeName):
                self.is_name_free = True

    def renew(self, command: AskHome) -> None:
        if self.has_link:
            self.home.leases.renew(HOST, command.stamp, self.home.clock.at(self.now))
            self.perform(self.home)

    def granted(self, command: Grant) -> None:
        now = self.host.clock.at(self.now)
        self.host.leases.granted(HOME, command.stamp, command.lease_s, now)

    def home_loses_host(self) -> None:
        """Its link ended, or the GCS has declared it dead."""
        if self.has_link:
            self.has_link = False
            until = self.home.leases.stands_still_at(HOST)
            self.home.fences.lost(WORKER, until, self.home.clock.at(self.now))
            self.perform(self.home)

    # -- what must hold --------------------------------------------------------------------------

    def runs(self) -> bool:
        """Whether the zygote lets the old copy run, were its node standing still or not."""
        return self.host.clock.at(self.now) < self.host.leases.until(HOME)

    def check(self) -> None:
        assert not (self.is_replaced and self.runs()), "two copies of an actor"
        assert not (self.is_name_free and self.runs()), "its name is another's, and it runs"
        if "home" in self.dead and self.is_name_free:
            own = self.home.clock.at(self.now) < self.home.leases.until(HOME)
            assert not own, "a home runs its own actors, and their names are free"
