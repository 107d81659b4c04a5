"""The simulated network between nodes: streams that keep their order, and end with what is lost.

What    Network knows which host hears which, and carries streams: FIFO while they last, delayed,
        held back by a partition, broken with any suffix of what was under way lost and both ends
        told. Nothing is duplicated within a stream, as TCP and ZMTP promise.
Caller  tests/sim/links.py, tests/sim/bulk.py, tests/sim/gcs.py; tests/sim/faults.py breaks it.
Never   tells one end what the other has not sent, but that the stream is over.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.sim.world import World


class Way:
    """One direction of one connection.

    Args:
        network: that carries it.
        source: host that sends, target: host that hears.
        arrived: called with each message, in order.
        ended: called once at the target, behind the last message, when the way is over.
        lost: called with each message that will not arrive.
    """

    def __init__(
        self,
        network: Network,
        source: bytes,
        target: bytes,
        arrived: Callable[[Any], None],
        ended: Callable[[], None],
        lost: Callable[[Any], None] | None = None,
    ) -> None:
        self.network = network
        self.source = source
        self.target = target
        self.is_open = True
        self._arrived = arrived
        self._ended = ended
        self._lost = lost
        self._queue: deque[Any] = deque()
        self._last = 0.0
        network.ways.append(self)

    def send(self, message: Any) -> None:
        """Put a message behind those under way; after the end nothing arrives."""
        if self.is_open:
            self._queue.append(message)
            self._expect()

    def _expect(self) -> None:
        world = self.network.world
        delay_s = self.network.delay_s((self.source, self.target))
        self._last = max(self._last, world.now + delay_s)
        world.at(self._last, "link", self._next)

    def _next(self) -> None:
        if self._queue and not self.network.is_cut(self.source, self.target):
            message = self._queue.popleft()
            if message is _END:
                self.network.ways.remove(self)
                self._ended()
            else:
                self._arrived(message)

    def healed(self) -> None:
        """The partition is over: what it held back goes on."""
        for _ in self._queue:
            self._expect()

    def end(self, *, lose: bool = True) -> None:
        """End it: a suffix of what is under way is lost, the rest and the end still arrive."""
        if not self.is_open:
            return
        self.is_open = False
        if lose and self._queue:
            kept = self.network.world.rng.randint(0, len(self._queue))
            while len(self._queue) > kept:
                message = self._queue.pop()
                if self._lost is not None:
                    self._lost(message)
        self._queue.append(_END)
        self._expect()


_END = object()


class Network:
    """Who hears whom, and all ways."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.ways: list[Way] = []
        self.breakable: list[Callable[[], tuple[bytes, bytes] | None]] = []
        self._cuts: dict[tuple[bytes, bytes], int] = {}
        self.slow = world.rng.choice((0.0, 0.0, 0.02, 0.15))
        self.lags: dict[tuple[bytes, bytes], float] = {}
        """Seconds that everything takes longer from one host to another."""

    def delay_s(self, way: tuple[bytes, bytes] = (b"", b"")) -> float:
        """Return how long the next message is under way."""
        rng = self.world.rng
        if way in self.lags:
            return rng.uniform(0.5, 1.5) * self.lags[way]
        if rng.random() < self.slow:
            return rng.uniform(0.001, 0.1)
        return rng.expovariate(1 / 0.0003)

    def is_cut(self, source: bytes, target: bytes) -> bool:
        """Return whether nothing gets from one host to another for now."""
        return bool(self._cuts) and (source, target) in self._cuts

    def can_connect(self, one: bytes, other: bytes) -> bool:
        """Return whether two hosts hear each other."""
        return not self.is_cut(one, other) and not self.is_cut(other, one)

    def cut(self, source: bytes, target: bytes) -> None:
        """Hold back what one host sends to another, until as many heal() calls."""
        self._cuts[source, target] = self._cuts.get((source, target), 0) + 1

    def heal(self, source: bytes, target: bytes) -> None:
        """Let what was held back go on."""
        left = self._cuts[source, target] - 1
        if left:
            self._cuts[source, target] = left
            return
        del self._cuts[source, target]
        for way in list(self.ways):
            if (way.source, way.target) == (source, target):
                way.healed()
