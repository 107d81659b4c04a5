"""Links and the link inbox of a simulated node, with the promises of zray/net's.

What    SimLinks dials, keeps what waits for a stream that is to come, and tells what has become of
        it; SimLinkInbox gets what streams bring, and tells of each that has ended behind its last
        message, or when the same peer begins another one. SimDeliveries are the edges from a
        node to its processes.
Caller  brokers/cluster.py of a simulated node, in the place of the real ones.
Never   looks into a message.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tests.sim.network import Network, Way
from tests.sim.world import DELIVERIES
from zray.net.link_inbox import Sender
from zray.net.links import LinkEvent, LinkState
from zray.protocol.envelopes import Reassembly
from zray.protocol.roles import Role

if TYPE_CHECKING:
    from tests.sim.member import SimMember

_SHORT_LIFE_S = 1.0
_SHORT_LIVES_MAX = 3
_REDIAL_S = (0.1, 0.5)


class Link:
    """One peer of SimLinks, through any number of streams."""

    def __init__(self, links: SimLinks, peer: bytes, endpoint: str) -> None:
        self.links = links
        self.peer = peer
        self.endpoint = endpoint
        self.way: Way | None = None
        self.is_up = False
        """As its node has read: what it sends before is kept for the stream that is to come."""
        self.backlog: list[tuple[bytes, tuple[Any, ...]]] = []
        self.dropped = False
        self.up_since = 0.0
        self.short_lives = 0
        self.host = b""
        """Whom the stream goes to."""

    def dial(self) -> None:
        """Try to connect, in a moment and then again and again."""
        self.links.world.after(self.links.network.delay_s() * 3, "dial", self._connect)

    def _connect(self) -> None:
        links = self.links
        if self.dropped or links.node.dead:
            return
        inbox = links.world.inboxes.get(self.endpoint)
        if inbox is None or not links.network.can_connect(links.node.process, inbox.node.process):
            links.world.after(links.world.rng.uniform(*_REDIAL_S), "dial", self._connect)
            return
        self.host = inbox.node.process
        stream = inbox.connected(links.node.process)
        self.way = Way(
            links.network,
            links.node.process,
            self.host,
            lambda message: inbox.brought(stream, message),
            lambda: inbox.ended(stream),
        )
        links.tell(self, LinkState.CONNECTED)

    def broken(self) -> None:
        """The connection is gone: each side hears of it in its own time."""
        way = self.way
        if way is not None and way.is_open:
            way.end()
            links = self.links
            links.world.after(links.network.delay_s(), "link", lambda: self._tell_end(way))

    def _tell_end(self, way: Way) -> None:
        if self.way is way:
            self.links.tell(self, LinkState.DISCONNECTED)


class SimLinks:
    """Send-only ways to other nodes, by the peer's name. See zray/net/links.py."""

    def __init__(self, node: SimMember) -> None:
        self.node = node
        self.world = node.world
        self.network: Network = node.world.network
        self.by_peer: dict[bytes, Link] = {}
        self._events: deque[tuple[Link, LinkState]] = deque()
        self.descriptor = node.add_descriptor(self)

    @property
    def readable(self) -> bool:
        return bool(self._events)

    def connect(self, peer: bytes, endpoint: str, _server_keys: Sequence[bytes] = ()) -> None:
        link = self.by_peer.get(peer)
        if link is not None:
            if link.endpoint == endpoint:
                return
            self.drop(peer)
        link = self.by_peer[peer] = Link(self, peer, endpoint)
        link.dial()

    def knows(self, peer: bytes) -> bool:
        return peer in self.by_peer

    def is_connected(self, peer: bytes) -> bool:
        return peer in self.by_peer and self.by_peer[peer].is_up

    def queued(self, peer: bytes) -> tuple[int, int]:
        link = self.by_peer.get(peer)
        return (0, 0) if link is None else (len(link.backlog), 0)

    def send(self, peer: bytes, header: bytes, payloads: Sequence[Any] = ()) -> bool:
        link = self.by_peer.get(peer)
        if link is None:
            return False
        message = (header, tuple(payloads))
        self.world.tell_message(f"{self.node.name} >> {self._name(link)}", header)
        if link.is_up and link.way is not None:
            link.way.send(message)
        else:
            link.backlog.append(message)
        return True

    def _name(self, link: Link) -> str:
        return self.world.name(link.host) if link.host else link.endpoint

    def tell(self, link: Link, state: LinkState) -> None:
        """Something has become of a link."""
        self._events.append((link, state))
        self.node.wake_soon()

    def events(self) -> list[LinkEvent]:
        told: list[LinkEvent] = []
        while self._events:
            link, state = self._events.popleft()
            if self.by_peer.get(link.peer) is not link:
                continue  # A link that was dropped takes its further events with it.
            if state is LinkState.CONNECTED:
                self._connected(link)
                told.append(LinkEvent(link.peer, state))
            else:
                self.world.tell(f"{self.node.name} is told: link to {self._name(link)} is broken")
                told += self._disconnected(link)
        return told

    def _connected(self, link: Link) -> None:
        assert link.way is not None
        link.is_up, link.up_since = True, self.world.now
        for message in link.backlog:
            link.way.send(message)
        link.backlog.clear()

    def _disconnected(self, link: Link) -> list[LinkEvent]:
        told = [LinkEvent(link.peer, LinkState.DISCONNECTED)]
        link.backlog.clear()
        link.is_up, link.way = False, None
        is_short = self.world.now - link.up_since < _SHORT_LIFE_S
        link.short_lives = link.short_lives + 1 if is_short else 0
        if link.short_lives < _SHORT_LIVES_MAX:
            link.dial()
        else:
            del self.by_peer[link.peer]
            told.append(LinkEvent(link.peer, LinkState.REFUSED, "it ends every connection"))
        return told

    def drop(self, peer: bytes) -> None:
        link = self.by_peer.pop(peer, None)
        if link is not None:
            link.dropped = True
            if link.way is not None:
                link.way.end()

    def sweep(self) -> None:
        return

    def close(self, _linger_ms: int = 0) -> None:
        for peer in list(self.by_peer):
            self.drop(peer)


class _Inbound:
    """One stream as the inbox knows it; ``sender`` is None where its messages are dropped."""

    def __init__(self, sender: Sender) -> None:
        self.sender: Sender | None = sender


class SimLinkInbox:
    """What other nodes' links send to. See zray/net/link_inbox.py."""

    def __init__(self, node: SimMember, address: str) -> None:
        self.node = node
        self.world = node.world
        self.address = address
        self.departed: deque[Sender] = deque()
        self.descriptors = (node.add_descriptor(self), node.add_descriptor(_Quiet()))
        self.server_key = b""
        self.refused: dict[str, int] = {}
        self._queue: deque[tuple[_Inbound, Any]] = deque()
        self._ended: list[_Inbound] = []
        self._streams: dict[bytes, _Inbound] = {}
        self._count = 0
        node.world.inboxes[address] = self

    @property
    def readable(self) -> bool:
        return bool(self._queue)

    def connected(self, peer: bytes) -> _Inbound:
        """A peer has connected; the stream begins where its first message is read."""
        self._count += 1
        stream = self._count.to_bytes(5, "big")
        inbound = _Inbound(Sender(peer, Role.NODE, b"", "sim", stream))
        self._queue.append((inbound, _BEGIN))
        self.node.wake_soon()
        return inbound

    def brought(self, inbound: _Inbound, message: Any) -> None:
        """A stream has brought a message."""
        self._queue.append((inbound, message))
        self.node.wake_soon()

    def ended(self, inbound: _Inbound) -> None:
        """A stream is over; what it has brought is read before anybody hears of it."""
        self._queue.append((inbound, _END))
        self.node.wake_soon()

    def receive(self) -> tuple[Sender, bytes, list[Any]] | None:
        received = self.arrived()
        if received is None:
            for inbound in self._ended:
                if inbound.sender is not None:
                    self.departed.append(inbound.sender)
            self._ended.clear()
        return received

    @property
    def has_ended(self) -> bool:
        return bool(self._ended or self.departed)

    def arrived(self) -> tuple[Sender, bytes, list[Any]] | None:
        while self._queue:
            inbound, message = self._queue.popleft()
            if message is _END:
                self._ended.append(inbound)
            elif inbound.sender is None:
                continue
            elif message is _BEGIN:
                self._begin(inbound, inbound.sender)
            else:
                header, payloads = message
                who = f"{self.node.name} << {self.world.name(inbound.sender.peer)}"
                self.world.tell_message(who, header)
                return inbound.sender, header, list(payloads)
        return None

    def _begin(self, inbound: _Inbound, sender: Sender) -> None:
        former = self._streams.get(sender.peer)
        if former is not None and former.sender is not None:
            self.departed.append(former.sender)
            former.sender = None
        self._streams[sender.peer] = inbound

    def sweep(self) -> None:
        return

    def refuse(self, sender: Sender, reason: str) -> None:
        raise AssertionError(f"{self.node.name} cuts off {self.world.name(sender.peer)}: {reason}")

    def close(self) -> None:
        self.world.inboxes.pop(self.address, None)


_BEGIN, _END = object(), object()


class _Quiet:
    """Nobody shakes hands here."""

    readable = False


class SimDeliveries:
    """What a node brings to its processes from those of other nodes. See zray/net/deliveries.py."""

    readable = False

    def __init__(self, node: SimMember) -> None:
        self.world = node.world
        self.descriptor = node.add_descriptor(self)
        self._parts: dict[bytes, Reassembly] = {}

    def send(self, process: bytes, _endpoint: str, sealed: Sequence[Any]) -> bool:
        parts = self._parts.setdefault(process, Reassembly())
        for envelope in sealed:
            whole = parts.add(bytes(envelope))
            if whole is not None:
                source, header, payloads = whole
                who = f"{self.world.name(source)} .. {self.world.name(process)}"
                self.world.tell_message(who, header)
                self.world.post(source, process, header, tuple(payloads), DELIVERIES)
        return True

    def backlog_bytes(self, _process: bytes) -> int:
        return 0

    def retry(self) -> None:
        return

    def serve(self) -> None:
        return

    def drop(self, process: bytes) -> None:
        self._parts.pop(process, None)

    def close(self) -> None:
        return
