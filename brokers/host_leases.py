"""Leases of those who host actors: no copy of an actor begins while an older one may run.

What    What a node may do is lent to it for a while. The GCS lends a node its own life; the home
        of an actor, which alone may start it again elsewhere, lends the node that hosts it the
        right to run it, and never for longer than its own lease lasts. A host asks again four
        times a second, with the time at which it asks, and counts from there; the home waits as
        long from its answer before it starts a copy. So the host always stops first, whatever is
        lost or late, as long as the clocks of the two run at the same rate to within 1 %.
Caller  brokers/hosting.py, which has the clock and stops processes.
Never   opens a socket, reads a clock, stops or starts anything.
Spec    Gray and Cheriton, Leases (SOSP 1989); docs/explanation/cluster.md, "No two copies".
"""

from __future__ import annotations

from dataclasses import dataclass

from zray.errors import RemoteProtocolError
from zray.protocol.ids import NodeId, ProcessId

LEASE_S = 2.0
"""A home waits so long, from its last answer to a host, before it starts a copy."""

LEASE_MARGIN_S = 0.1
"""A lease ends so much earlier for who has it than for who gave it: the clocks of two machines
may differ by 1 % of it, and to stop a process takes a moment."""

ASK_S = 0.25
"""Between two requests of a host."""


@dataclass(frozen=True, slots=True)
class AskHome:
    """Send HOST_RENEW to a home."""

    home: NodeId
    stamp: float


@dataclass(frozen=True, slots=True)
class Grant:
    """Send HOST_RENEWED to a host."""

    host: NodeId
    stamp: float
    lease_s: float


Command = AskHome | Grant


class HostLeases:
    """What this node may run for whom, and what others may run for it.

    Args:
        own: this node's id.
    """

    def __init__(self, own: NodeId) -> None:
        self.own = own
        self.own_until = float("inf")
        """When this node's own life ends, if the GCS does not renew it."""
        self.hosted: dict[ProcessId, NodeId] = {}
        """Workers of this node that host actors, with the home of these."""
        self.granted_until: dict[NodeId, float] = {}
        """By home: until when we may run its actors. At first not at all."""
        self.promised_until: dict[NodeId, float] = {}
        """By host: until when it may run ours, as far as it knows."""
        self._ask_at: dict[NodeId, float] = {}
        self.commands: list[Command] = []

    # -- the host --------------------------------------------------------------------------------

    def hosts(self, worker: ProcessId, home: NodeId, now: float) -> None:
        """A worker of this node is to host actors of a home."""
        self.hosted[worker] = home
        if home != self.own and home not in self._ask_at:
            self._ask(home, now)

    def worker_gone(self, worker: ProcessId) -> None:
        """It hosts nothing any more."""
        home = self.hosted.pop(worker, None)
        if home is not None and home not in self.hosted.values():
            self._ask_at.pop(home, None)

    def until(self, home: NodeId) -> float:
        """Return when actors of a home must stand still here, unless their lease is renewed."""
        if home == self.own:
            return self.own_until
        return min(self.own_until, self.granted_until.get(home, float("-inf")))

    def granted(self, home: NodeId, stamp: float, lease_s: float, now: float) -> None:
        """HOST_RENEWED: from the time at which we asked, for so long.

        Raises RemoteProtocolError where it answers what was not asked, or promises too much.
        """
        if stamp > now or not 0 <= lease_s <= LEASE_S:
            raise RemoteProtocolError(f"HOST_RENEWED with a lease of {lease_s} s from {stamp}")
        before = self.granted_until.get(home, float("-inf"))
        self.granted_until[home] = max(before, stamp + lease_s)

    def tick(self, now: float) -> None:
        """Ask again where it is time; a few times a second."""
        for home, at in self._ask_at.items():
            if now >= at:
                self._ask(home, now)
        if len(self.granted_until) + len(self.promised_until) > len(self._ask_at):
            self._forget(now)

    def _ask(self, home: NodeId, now: float) -> None:
        self._ask_at[home] = now + ASK_S
        self.commands.append(AskHome(home, now))

    def _forget(self, now: float) -> None:
        """What has ended long ago says nothing any more."""
        for known in (self.granted_until, self.promised_until):
            for node in [each for each, until in known.items() if until < now - LEASE_S]:
                del known[node]

    # -- the home --------------------------------------------------------------------------------

    def renew(self, host: NodeId, stamp: float, now: float) -> None:
        """HOST_RENEW: a node that hosts our actors may go on, as long as we may ourselves."""
        lease_s = min(LEASE_S - LEASE_MARGIN_S, self.own_until - now)
        if lease_s <= 0:
            return  # Others may be putting successors into our place.
        self.promised_until[host] = max(now + LEASE_S, self.promised_until.get(host, 0.0))
        self.commands.append(Grant(host, stamp, lease_s))

    def stands_still_at(self, host: NodeId) -> float:
        """Return when all that a host, if we never hear of it again, runs for us has stopped."""
        return self.promised_until.get(host, float("-inf"))

    @property
    def has_promised(self) -> bool:
        """Whether others run actors of ours, or did a moment ago."""
        return bool(self.promised_until)

    def check(self) -> None:
        """Raise AssertionError where an invariant is broken."""
        foreign = {home for home in self.hosted.values() if home != self.own}
        assert self._ask_at.keys() == foreign, "a home that is not asked, or is for nothing"
        for home in (*self.granted_until, *self.promised_until):
            assert home != self.own
