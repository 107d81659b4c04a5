"""The bulk thread: chunks between this node's segment and the bulk ports of other nodes.

What    Bulk is what the node's loop holds: wants and answers go in through a queue, events come
        out through another, and an eventfd tells either side to look. Behind it a thread with
        its own sockets runs the transfer machine, and does what it commands.
Caller  brokers/node.py.
Never   allocates or frees memory, or knows the directory: it asks the node. Never reads a byte of
        an object.

The node performs what events() returns:
    Allocate    answer allocated(...) or refused(...) with the number of the pull
    FreeExtent  the extent of an Allocate is free again
    Arrived     the extent holds the object now; if `pinned`, that is one pin of it
    Failed      the pull is over without the object
    Locate      answer located(...), which is one pin of it, or absent(...)
    Unpin       give one pin back
"""

from __future__ import annotations

import contextlib
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from zray.errors import InternalError, ObjectStoreFullError, RemoteProtocolError, SecurityError
from zray.net.bulk_link import BulkLink
from zray.net.curve import ClusterKeys, Role
from zray.net.poller import READABLE, new_poller
from zray.net.wake import Wake
from zray.protocol.chunks import Chunk, pack, unpack
from zray.protocol.ids import ObjectId
from zray.store.segment import Segment

from .transfer import TICK_S, Transfer
from .transferring import Arrived, Failed, NodeCommand, Peer, Priority, Send, SendChunk

_CLOSE_TIMEOUT_S = 5.0
_RELEASE_TIMEOUT_S = 1.0


@dataclass(slots=True)
class _Wanted:
    """A want whose end the node has not heard of."""

    cancelled: bool = False
    again: tuple[int, list[Peer], Priority] | None = None
    """It was wanted once more after the cancel."""


@dataclass(slots=True)
class _Queues:
    """What the two threads hand to each other. Appending to a deque is one step under the GIL."""

    orders: deque[Callable[[], object]] = field(default_factory=deque)
    events: deque[NodeCommand] = field(default_factory=deque)
    released: deque[int] = field(default_factory=deque)
    """Serials of chunks that ZeroMQ has let go of."""
    wake: Wake = field(default_factory=Wake)
    sleeping: bool = False
    closing: bool = False
    failure: BaseException | None = None

    def rouse(self) -> None:
        """End the bulk thread's sleep; free of cost while it is awake."""
        if self.sleeping:
            self.wake.set()


class Bulk:
    """What the node's loop holds of the bulk thread; one thread may call it.

    Args:
        segment: the node's memory, written to and read from by the bulk thread.
        own: this node's name among bulk peers, another one after each restart: 1 to 255 bytes.
        budget_bytes: sum of the lengths of objects that are pulled at a time.
        wake: called from the bulk thread when events() has something.
        keys: the members; None only on loopback.
        host: IP address to bind, or "localhost".
        port: 0: one that is free.
        role: whose key to show.

    Raises:
        OSError: the address cannot be bound.
        SecurityError: others than this machine could reach it without keys.
    """

    def __init__(
        self,
        segment: Segment,
        own: Peer,
        keys: ClusterKeys | None = None,
        *,
        budget_bytes: int,
        wake: Callable[[], object],
        host: str = "127.0.0.1",
        port: int = 0,
        role: Role = Role.NODE,
    ) -> None:
        link = BulkLink(own, keys, host=host, port=port, role=role)
        self.endpoint, self.port = link.endpoint, link.port
        """Where other nodes connect to, with the port that was chosen."""
        self._queues = _Queues()
        self._wanted: dict[ObjectId, _Wanted] = {}
        self._loop = _Loop(self._queues, link, Transfer(own, budget_bytes), segment, wake)
        self._thread = threading.Thread(target=self._loop.run, name="zray-bulk", daemon=True)
        self._thread.start()

    def _order(self, order: Callable[[], object]) -> None:
        self._queues.orders.append(order)
        self._queues.rouse()

    # -- nodes -----------------------------------------------------------------------------------

    def connect(
        self, peer: Peer, endpoint: str, server_key: bytes = b"", *, is_source: bool = True
    ) -> None:
        """A node has joined: what it asks for is answered, and it can be a source.

        Args:
            peer: its name among bulk peers.
            endpoint: of its bulk port.
            server_key: a public key (Z85) of it, where the cluster has keys.
            is_source: False: no chunk is taken from it, asked for or not.
        """
        self._order(lambda: self._loop.connect(peer, endpoint, server_key))
        if not is_source:
            self._order(lambda: self._loop.no_sources.add(peer))

    def sweep(self) -> None:
        """Cut who has no right to be connected, or sends without end. Some times a second."""
        if self._loop.link.has_connections:
            self._order(self._loop.sweep)

    def disconnect(self, peer: Peer) -> None:
        """A node is dead or has left: it is asked no more, what it says is not heard."""
        self._order(lambda: self._loop.disconnect(peer))

    # -- pulling ---------------------------------------------------------------------------------

    def want(
        self, identity: ObjectId, nbytes: int, sources: Iterable[Peer], priority: Priority
    ) -> None:
        """Pull an object; it ends in one Arrived or Failed, however often it is wanted till then.

        Args:
            identity: the object, 16 bytes.
            nbytes: its length, at least 1.
            sources: nodes that have it or are pulling it, connected before; a later call adds more.
            priority: why; a later call may raise it.
        """
        peers = list(sources)
        wanted = self._wanted.get(identity)
        if wanted is None:
            self._wanted[identity] = _Wanted()
            self._order(lambda: self._loop.want(identity, nbytes, peers, priority, first=True))
        elif not wanted.cancelled:
            self._order(lambda: self._loop.want(identity, nbytes, peers, priority, first=False))
        elif wanted.again is None:
            wanted.again = nbytes, peers, priority
        else:
            _, known, before = wanted.again
            wanted.again = nbytes, [*known, *peers], min(before, priority)

    def cancel(self, identity: ObjectId) -> None:
        """Nobody waits for it: it ends as Failed, or as Arrived where that was on its way."""
        wanted = self._wanted.get(identity)
        if wanted is None:
            return
        wanted.again = None
        if not wanted.cancelled:
            wanted.cancelled = True
            self._order(lambda: self._loop.transfer.cancel(identity))

    def allocated(self, pull: int, offset: int, *, fresh: bool) -> None:
        """Answer Allocate; `fresh` as the allocator said: then each chunk commits its pages."""
        self._order(lambda: self._loop.transfer.allocated(pull, offset, fresh, self._loop.now))

    def refused(self, pull: int, reason: str) -> None:
        """Answer Allocate: there is no room, for this reason."""
        self._order(lambda: self._loop.transfer.refused(pull, reason))

    # -- serving ---------------------------------------------------------------------------------

    def located(self, identity: ObjectId, offset: int, nbytes: int) -> None:
        """Answer Locate: the object is in this extent and stays there until Unpin."""
        self._order(lambda: self._loop.transfer.located(identity, offset, nbytes))

    def absent(self, identity: ObjectId, reason: str) -> None:
        """Answer Locate: this node can't serve it."""
        self._order(lambda: self._loop.transfer.absent(identity, reason))

    # -- what comes out --------------------------------------------------------------------------

    def events(self) -> list[NodeCommand]:
        """Return what has happened since the last call, in order.

        Raises:
            InternalError: the bulk thread has died of a bug; the node can't go on.
        """
        found: list[NodeCommand] = []
        events = self._queues.events
        while events:
            event = events.popleft()
            if isinstance(event, Arrived | Failed) and self._wanted_again(event):
                continue
            found.append(event)
        if self._queues.failure is not None:
            text = "".join(traceback.format_exception(self._queues.failure))
            raise InternalError(f"the bulk thread died:\n{text}")
        return found

    def _wanted_again(self, event: Arrived | Failed) -> bool:
        """A cancelled want has ended: begin the one that came after it, unless it is here now."""
        wanted = self._wanted.pop(event.object)
        if isinstance(event, Arrived) or wanted.again is None:
            return False
        nbytes, peers, priority = wanted.again
        self.want(event.object, nbytes, peers, priority)
        return True

    def statistics(self) -> dict[str, Any]:
        """Return counts for status and metrics."""
        return dict(self._loop.counts) | {"wanted": len(self._wanted)}

    @property
    def refused_connections(self) -> dict[str, int]:
        """Connections and handshakes refused so far, by reason."""
        return self._loop.link.refused

    def close(self) -> None:
        """Stop the thread; objects that were on their way do not arrive."""
        queues = self._queues
        queues.closing = True
        queues.wake.set()
        self._thread.join(_CLOSE_TIMEOUT_S)
        queues.wake.close()


class _Loop:
    """The bulk thread."""

    def __init__(
        self,
        queues: _Queues,
        link: BulkLink,
        transfer: Transfer,
        segment: Segment,
        wake_node: Callable[[], object],
    ) -> None:
        self.queues = queues
        self.link = link
        self.transfer = transfer
        self.segment = segment
        self.wake_node = wake_node
        self.now = time.monotonic()
        self.no_sources: set[Peer] = set()
        """Peers that no chunk is taken from."""
        self.counts = {"received_bytes": 0, "sent_bytes": 0, "refused_messages": 0}
        self._on_its_way = 0
        self._next_tick = 0.0

    def run(self) -> None:
        """Serve until closed."""
        try:
            self._serve()
        except BaseException as error:
            self.queues.failure = error
            self.wake_node()
        finally:
            self.link.close()
            self._await_releases()

    def _serve(self) -> None:
        queues = self.queues
        poller = new_poller()
        for descriptor in self.link.descriptors:
            poller.register(descriptor, READABLE)
        poller.register(queues.wake.fileno(), READABLE)
        try:
            more = False
            while not queues.closing:
                self.now = time.monotonic()
                # The link's descriptors are edge-triggered: they speak again only after the link
                # has been found empty.
                more = self._receive()
                self._settle()
                if more:
                    continue
                queues.sleeping = True
                if not queues.orders and not queues.released:
                    quiet = self.transfer.idle and not self._on_its_way
                    poller.poll(None if quiet else TICK_S)
                    queues.wake.clear()
                queues.sleeping = False
        finally:
            poller.close()

    def _settle(self) -> None:
        """Take what the other threads have handed over, then do what the machine commands."""
        queues = self.queues
        while queues.orders:
            queues.orders.popleft()()
        while queues.released:
            self._on_its_way -= 1
            self.transfer.sent(queues.released.popleft())
        if self.now >= self._next_tick:
            self._next_tick = self.now + TICK_S
            self.transfer.tick(self.now)
        told = False
        for command in self.transfer.take(self.now):
            if isinstance(command, Send):
                self.link.send(command.peer, pack(command.message))
            elif isinstance(command, SendChunk):
                self._send_chunk(command)
            else:
                queues.events.append(command)
                told = True
        if told:
            self.wake_node()

    # -- orders of the node ----------------------------------------------------------------------

    def connect(self, peer: Peer, endpoint: str, server_key: bytes) -> None:
        """Open the way to a node, unless its keys count no more: then it is about to be lost."""
        try:
            self.link.connect(peer, endpoint, server_key)
        except SecurityError as error:
            print(f"no bulk connection to {endpoint}: {error}", flush=True)

    def sweep(self) -> None:
        """Enforce the port's limits, and who may be connected."""
        # The node's own port reads the same folder, and says what is wrong with it.
        with contextlib.suppress(SecurityError):
            self.link.sweep()

    def want(
        self,
        identity: ObjectId,
        nbytes: int,
        peers: list[Peer],
        priority: Priority,
        *,
        first: bool,
    ) -> None:
        """Begin a pull, or add to one that has not ended meanwhile."""
        if first or self.transfer.is_wanted(identity):
            known = [peer for peer in peers if self.link.knows(peer)]
            self.transfer.want(identity, nbytes, known, priority, self.now)

    def disconnect(self, peer: Peer) -> None:
        """Forget a node."""
        self.transfer.node_died(peer)
        self.link.disconnect(peer)
        self.no_sources.discard(peer)

    # -- chunks ----------------------------------------------------------------------------------

    def _send_chunk(self, command: SendChunk) -> None:
        queues, serial = self.queues, command.serial

        def released() -> None:
            queues.released.append(serial)
            queues.rouse()

        # The writable mapping, because its page tables are warm from receiving; a view of it that
        # can't be written through. No other reference to the view is kept: its end is the signal.
        self._on_its_way += 1
        self.counts["sent_bytes"] += command.nbytes
        header = pack(Chunk(command.pull, command.chunk))
        view = self.segment.writable(command.offset, command.nbytes).toreadonly()
        self.link.send_chunk(command.peer, header, view, released)

    def _receive(self) -> bool:
        """Take one message; returns whether there may be more."""
        received = self.link.receive()
        if received is None:
            return False
        peer, header, has_payload = received
        try:
            message = unpack(header) if peer else None
        except RemoteProtocolError:
            message = None
        if isinstance(message, Chunk) and has_payload and peer not in self.no_sources:
            self._receive_chunk(peer, message)
            return True
        if has_payload:
            self.link.skip()
        if message is None or has_payload or isinstance(message, Chunk):
            # Of nobody we know, a node that was declared dead among them, or of no sense.
            self.counts["refused_messages"] += 1
            return True
        is_source = peer not in self.no_sources and self.link.knows(peer)
        self.transfer.received(peer, message, self.now, is_source=is_source)
        return True

    def _receive_chunk(self, peer: Peer, message: Chunk) -> None:
        place = self.transfer.destination(message.pull, message.chunk)
        if place is None:
            self.link.skip()
            self.transfer.chunk(peer, message.pull, message.chunk, self.now)
            return
        offset, nbytes, fresh = place
        if fresh:
            try:
                self.segment.commit(offset, nbytes)
            except ObjectStoreFullError as error:
                self.link.skip()
                self.transfer.unwritable(message.pull, str(error))
                return
        got = self.link.receive_into(self.segment.writable(offset, nbytes))
        if got != nbytes:
            self.counts["refused_messages"] += 1
            reason = f"it sent {got} bytes for a chunk of {nbytes}"
            self.transfer.broken(peer, message.pull, reason)
            return
        self.counts["received_bytes"] += nbytes
        self.transfer.chunk(peer, message.pull, message.chunk, self.now)

    def _await_releases(self) -> None:
        """Wait until nobody reads the segment: the node unmaps it next."""
        queues = self.queues
        deadline = time.monotonic() + _RELEASE_TIMEOUT_S
        queues.sleeping = True  # Each release ends the poll from here on.
        poller = new_poller()
        poller.register(queues.wake.fileno(), READABLE)
        try:
            while self._on_its_way > len(queues.released):
                left = deadline - time.monotonic()
                if left <= 0:
                    return
                poller.poll(left)
                queues.wake.clear()
        finally:
            poller.close()
