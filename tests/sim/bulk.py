"""The bulk port of a simulated node: the real transfer machine, its loop an event of the world.

What    SimBulk is the real Bulk without its thread; SimBulkLink carries messages and chunks. A
        connection that breaks loses what it carried without a word, as ZeroMQ does, and is made
        again; what is late the machine asks for again.
Caller  brokers/objects_elsewhere.py of a simulated node.
Never   copies a chunk before it arrives: the extent has to stay until then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tests.sim.memory import View
from tests.sim.network import Way
from zray.brokers.bulk import Bulk, _Loop, _Queues
from zray.brokers.transfer import TICK_S, Transfer
from zray.protocol.ids import node_of

if TYPE_CHECKING:
    from tests.sim.member import SimMember

_STEP_S = 0.0001


def _nothing() -> None:
    return


class _Wake:
    def __init__(self, rouse: Callable[[], None]) -> None:
        self.set = rouse

    def close(self) -> None:
        return


class SimBulkLink:
    """Messages between bulk ports. See zray/net/bulk_link.py."""

    def __init__(self, bulk: SimBulk, own: bytes) -> None:
        self.bulk = bulk
        self.node = bulk.node
        self.own = own
        self._inbound: deque[tuple[bytes, bytes, bytes | None]] = deque()
        self._ways: dict[bytes, Way] = {}
        self._payload: bytes | None = None
        self.descriptors: list[int] = []
        self.endpoint, self.port = "tcp://sim:2", 2
        self.has_connections = False
        """None that would have to be cut."""

    def connect(self, peer: bytes, _endpoint: str, _server_key: bytes = b"") -> None:
        if peer not in self._ways:
            self._ways[peer] = self._open(peer)

    def _open(self, peer: bytes) -> Way:
        world = self.node.world

        def arrived(message: _Sent) -> None:
            data = None
            if message.view is not None and not self.node.dead:
                where = message.view
                assert where.offset in where.memory, "a chunk of an extent that is free was sent"
                data = where.memory[where.offset]
            message.release()
            other = world.bulks.get(peer)
            if other is not None and not other.node.dead:
                other.link.take(self.own, message.header, data)

        return Way(
            world.network, self.node.process, node_of(peer), arrived, _nothing, _Sent.release
        )

    def take(self, peer: bytes, header: bytes, data: bytes | None) -> None:
        """A message has come."""
        self._inbound.append((peer, header, data))
        self.bulk.step_soon()

    def broken(self, peer: bytes) -> None:
        """The connection to a peer is lost and made again."""
        if peer in self._ways:
            self._ways[peer].end()
            self._ways[peer] = self._open(peer)

    def knows(self, peer: bytes) -> bool:
        return peer in self._ways

    def disconnect(self, peer: bytes) -> None:
        way = self._ways.pop(peer, None)
        if way is not None:
            way.end()

    def send(self, peer: bytes, header: bytes) -> None:
        if peer in self._ways:
            self._ways[peer].send(_Sent(header))

    def send_chunk(
        self, peer: bytes, header: bytes, view: View, on_released: Callable[[], Any]
    ) -> None:
        if peer in self._ways:
            self._ways[peer].send(_Sent(header, view, on_released))
        else:
            on_released()

    def receive(self) -> tuple[bytes, bytes, bool] | None:
        if not self._inbound:
            return None
        peer, header, self._payload = self._inbound.popleft()
        return peer if peer in self._ways else b"", header, self._payload is not None

    def receive_into(self, view: View) -> int:
        assert self._payload is not None
        view.memory[view.offset] = self._payload
        return view.nbytes

    def skip(self) -> None:
        self._payload = None

    def serve(self) -> None:
        return

    def close(self) -> None:
        for peer in list(self._ways):
            self.disconnect(peer)


class _Sent:
    """A message on its way, with the part of memory that its bytes are taken from."""

    __slots__ = ("_on_released", "header", "view")

    def __init__(
        self,
        header: bytes,
        view: View | None = None,
        on_released: Callable[[], Any] | None = None,
    ) -> None:
        self.header = header
        self.view = view
        self._on_released = on_released

    def release(self) -> None:
        """Its bytes are read no more."""
        if self._on_released is not None:
            self._on_released()


class SimBulk(Bulk):
    """The real Bulk; its loop runs when something has come, and while anything depends on time."""

    def __init__(
        self,
        node: SimMember,
        own: bytes,
        *,
        budget_bytes: int,
        wake: Callable[[], object],
    ) -> None:
        self.node = node
        self.own = own
        self._stepping = False
        self._ticking = False
        self._queues = _Queues(wake=_Wake(self.step_soon))  # type: ignore[arg-type]
        self._queues.sleeping = True
        self._wanted = {}
        self.link = SimBulkLink(self, own)
        self.endpoint, self.port = self.link.endpoint, self.link.port
        self.transfer = Transfer(own, budget_bytes)
        segment: Any = node.store.segment
        link: Any = self.link
        self._loop = _Loop(self._queues, link, self.transfer, segment, wake)
        self._loop.now = node.world.now
        node.world.bulks[own] = self

    def step_soon(self) -> None:
        """The thread has something to do."""
        if not self._stepping:
            self._stepping = True
            world = self.node.world
            world.after(world.rng.expovariate(1 / _STEP_S), "bulk", self._step)

    def _step(self) -> None:
        self._stepping = False
        node, loop = self.node, self._loop
        if node.dead or self._queues.closing:
            return
        loop.now = node.world.now
        while loop._receive():
            pass
        loop._settle()
        self.transfer.check()
        if not self.transfer.idle and not self._ticking:
            self._ticking = True
            node.world.after(TICK_S, "bulk", self._tick)

    def _tick(self) -> None:
        self._ticking = False
        self._step()

    def close(self) -> None:
        self._queues.closing = True
        self.link.close()
