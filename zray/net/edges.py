"""Edges: the direct ways between processes of one host, and a process's one place to receive.

What    Calls and results go over unix streams in ZeroMQ's own wire format (ZMTP 3.1, NULL), read
        and written by the thread that waits for them. A ZeroMQ socket would hand every message
        through an I/O thread on both sides: four more wake-ups a round trip, 90 us instead of
        15 (docs/explanation/architecture.md, D3). What the node sends comes through ZeroMQ
        as ever; both are in one poll set.
Caller  zray/client.py.
Never   blocks in send: what the kernel does not take is kept and leaves when it can.
Spec    RFC 37/ZMTP: greeting, READY, message frames.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from zray.errors import RemoteProtocolError
from zray.protocol.limits import EDGE_MESSAGE_BYTES_MAX

from .channel import same_user
from .mailbox import Inbox, Message, Peers
from .poller import READABLE, WRITABLE, new_poller

_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
_MORE, _LONG, _COMMAND = 1, 2, 4
_LENGTH = struct.Struct(">Q")
_READ_BYTES = 256 * 1024
_EDGE_ROUNDS = 4
_IN, _OUT = READABLE, WRITABLE


def _frame(flags: int, body: bytes) -> bytes:
    if len(body) < 256:
        return bytes((flags, len(body))) + body
    return bytes((flags | _LONG,)) + _LENGTH.pack(len(body)) + body


def _ready(identity: bytes) -> bytes:
    """Return the greeting and the READY command of a DEALER with this identity."""

    def item(name: bytes, value: bytes) -> bytes:
        return bytes((len(name),)) + name + struct.pack(">I", len(value)) + value

    body = b"\x05READY" + item(b"Socket-Type", b"DEALER") + item(b"Identity", identity)
    return _GREETING + _frame(_COMMAND, body)


def _identity_of(command: bytes) -> bytes:
    """Return the Identity property of a READY command.

    Raises RemoteProtocolError where it is anything else.
    """
    if command[:6] != b"\x05READY":
        raise RemoteProtocolError("an edge that does not begin with READY")
    at = 6
    while at < len(command):
        name_end = at + 1 + command[at]
        name = command[at + 1 : name_end]
        (length,) = struct.unpack_from(">I", command, name_end)
        value = command[name_end + 4 : name_end + 4 + length]
        at = name_end + 4 + length
        if name.lower() == b"identity":
            return value
    raise RemoteProtocolError("an edge whose READY names no Identity")


class Edge:
    """One stream to one peer."""

    __slots__ = ("frames", "greeted", "inbound", "outbound", "peer", "socket")

    def __init__(self, sock: socket.socket, peer: bytes | None) -> None:
        self.socket = sock
        self.peer = peer
        self.greeted = False
        self.inbound = b""
        self.outbound = bytearray()
        self.frames: list[bytes] = []


class Edges:
    """All edges of a process, and its ZeroMQ inbox: receive from any, send to any.

    Args:
        inbox: the ROUTER that the node sends to.
        peers: the DEALERs; the node's is the only one.
        own_id: this process's id.
        on_stuck: called (any thread) when bytes had to be kept: somebody must poll soon.
    """

    def __init__(
        self, inbox: Inbox, peers: Peers, own_id: bytes, on_stuck: Callable[[], None]
    ) -> None:
        self.inbox = inbox
        self.peers = peers
        self.own_id = own_id
        self.endpoint = inbox.endpoint
        self.timeout_s: float = -1.0
        """How long receive(blocking=True) waits; -1: for ever."""
        self.stuck = 0
        """Edges with bytes that the kernel has not taken yet."""
        self.malformed = 0
        self._on_stuck = on_stuck
        self._lock = threading.Lock()
        self._by_peer: dict[bytes, Edge] = {}
        self._by_fd: dict[int, Edge] = {}
        self._ready: deque[Message] = deque()
        self._epoll = new_poller()
        self._inbox_fd = inbox.descriptor
        self._epoll.register(self._inbox_fd, _IN)
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._server.bind(self._path(inbox.endpoint))
        self._server.listen(1024)
        self._server.setblocking(False)
        self._server_fd = self._server.fileno()
        self._epoll.register(self._server_fd, _IN)
        self._closed = False

    @staticmethod
    def _path(endpoint: str) -> str:
        return endpoint.removeprefix("ipc://") + ".e"

    @property
    def descriptor(self) -> int:
        """Readable whenever receive() would return something."""
        return self._epoll.fileno()

    # -- receiving -------------------------------------------------------------------------------

    def receive(self, blocking: bool = False) -> Message | None:
        """Return (sender, header, payloads) of the next message, None where there is none (yet)."""
        ready = self._ready
        if ready:
            return ready.popleft()
        timeout = self.timeout_s if blocking else 0.0
        deadline = 0.0
        while True:
            events = self._epoll.poll(timeout)
            if self._serve(events):
                self._receive_from_node()
            if ready:
                return ready.popleft()
            if not events or not blocking:
                return None
            if timeout > 0:  # Something moved, but no message is complete: wait on.
                now = time.monotonic()
                deadline = deadline or now + timeout
                timeout = deadline - now
                if timeout <= 0:
                    return None

    def _serve(self, events: list[tuple[int, int]]) -> bool:
        """Read, write and accept as polled; returns whether the node has sent something."""
        from_node = False
        for descriptor, event in events:
            edge = self._by_fd.get(descriptor)
            if edge is not None:
                if event & _OUT:
                    self._flush(edge)
                if event & ~_OUT:
                    self._read(edge)
            elif descriptor == self._inbox_fd:
                from_node = True
            elif descriptor == self._server_fd:
                self._accept()
        return from_node

    def _receive_from_node(self) -> None:
        """Take what the node has sent, behind what peers had written before they told the node.

        A worker's last replies would else be overtaken by the news of its actor's end.
        """
        received = []
        while (message := self.inbox.receive()) is not None:
            received.append(message)
        for _ in range(_EDGE_ROUNDS if received else 0):
            # A fresh edge takes two rounds: one accepts it, the next reads it.
            events = [each for each in self._epoll.poll(0) if each[0] != self._inbox_fd]
            if not events:
                break
            self._serve(events)
        self._ready.extend(received)

    def has_message(self) -> bool:
        """Return whether receive() would return a message without looking at a socket."""
        return bool(self._ready)

    def _read(self, edge: Edge) -> None:
        try:
            data = edge.socket.recv(_READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._lose(edge)
            return
        if edge.inbound:
            data = edge.inbound + data
        try:
            edge.inbound = self._parse(edge, data)
        except (RemoteProtocolError, struct.error, IndexError):
            self.malformed += 1
            self._lose(edge)

    def _parse(self, edge: Edge, data: bytes) -> bytes:
        """Append complete messages; returns the bytes of an incomplete frame."""
        at, end = 0, len(data)
        if not edge.greeted:
            if end < 64:
                return data
            if data[0] != 0xFF or data[9] != 0x7F or data[12:16] != b"NULL":
                raise RemoteProtocolError("not a ZMTP 3 NULL greeting")
            edge.greeted = True
            at = 64
        frames = edge.frames
        while end - at >= 2:
            flags = data[at]
            if flags & _LONG:
                if end - at < 9:
                    break
                (length,) = _LENGTH.unpack_from(data, at + 1)
                start = at + 9
                if length > EDGE_MESSAGE_BYTES_MAX:
                    raise RemoteProtocolError(f"a frame of {length} bytes on an edge")
            else:
                length, start = data[at + 1], at + 2
            if end - start < length:
                break
            at = start + length
            body = data[start:at]
            if flags & _COMMAND:
                if edge.peer is None:
                    self._greet(edge, _identity_of(body))
                continue
            frames.append(body)
            if not flags & _MORE:
                if edge.peer is None:
                    raise RemoteProtocolError("a message before READY")
                self._ready.append((edge.peer, frames[0], frames[1:]))
                frames = edge.frames = []
        return data[at:] if at < end else b""

    def _greet(self, edge: Edge, identity: bytes) -> None:
        edge.peer = identity
        with self._lock:
            # Whoever was first stays the way to this peer: one way keeps the order.
            self._by_peer.setdefault(identity, edge)

    def _accept(self) -> None:
        while True:
            try:
                sock, _address = self._server.accept()
            except (BlockingIOError, InterruptedError):
                return
            if not same_user(sock):
                sock.close()
                continue
            edge = Edge(sock, None)
            self._adopt(edge)
            with self._lock:
                self._write(edge, _ready(self.own_id))

    def _adopt(self, edge: Edge) -> None:
        edge.socket.setblocking(False)
        descriptor = edge.socket.fileno()
        self._by_fd[descriptor] = edge
        self._epoll.register(descriptor, _IN)

    # -- sending ---------------------------------------------------------------------------------

    def connect(self, peer: bytes, endpoint: str) -> None:
        """Open the way to a process of this host; a second call does nothing."""
        if peer in self._by_peer:
            return
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(self._path(endpoint))
        except OSError:
            sock.close()  # It has died; the node's word of it is on its way.
            return
        with self._lock:
            if peer in self._by_peer:
                sock.close()
                return
            edge = Edge(sock, peer)
            self._adopt(edge)
            self._by_peer[peer] = edge
            self._write(edge, _ready(self.own_id))

    def connect_node(self, node: bytes, endpoint: str) -> None:
        """Open the way to the node: ZeroMQ."""
        self.peers.connect(node, endpoint)

    def knows(self, peer: bytes) -> bool:
        """Return whether there is a way to this peer."""
        return peer in self._by_peer or self.peers.knows(peer)

    def send(self, peer: bytes, header: bytes, payloads: Sequence[bytes] = ()) -> bool:
        """Send one message; False where there is no way to the peer (it died, or never was)."""
        edge = self._by_peer.get(peer)
        if edge is None:
            return self.peers.send(peer, header, payloads)
        if payloads:
            last = len(payloads) - 1
            data = b"".join(
                (
                    _frame(_MORE, header),
                    *(
                        _frame(_MORE if position < last else 0, payload)
                        for position, payload in enumerate(payloads)
                    ),
                )
            )
        else:
            data = _frame(0, header)
        with self._lock:
            return self._write(edge, data)

    def _write(self, edge: Edge, data: bytes) -> bool:
        if edge.outbound:
            edge.outbound += data
            return True
        try:
            sent = edge.socket.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            return False  # Its EOF is read by whoever polls next.
        if sent < len(data):
            edge.outbound += memoryview(data)[sent:]
            self.stuck += 1
            self._epoll.modify(edge.socket.fileno(), _IN | _OUT)
            self._on_stuck()
        return True

    def _flush(self, edge: Edge) -> None:
        with self._lock:
            if not edge.outbound:
                return
            try:
                sent = edge.socket.send(edge.outbound)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                sent = len(edge.outbound)
            del edge.outbound[:sent]
            if not edge.outbound:
                self.stuck -= 1
                self._epoll.modify(edge.socket.fileno(), _IN)

    # -- ends ------------------------------------------------------------------------------------

    def _lose(self, edge: Edge) -> None:
        """The peer has closed: what it sent before has been read."""
        with self._lock:
            descriptor = edge.socket.fileno()
            if self._by_fd.pop(descriptor, None) is None:
                return
            if edge.peer is not None and self._by_peer.get(edge.peer) is edge:
                del self._by_peer[edge.peer]
            if edge.outbound:
                self.stuck -= 1
                edge.outbound = bytearray()
            self._epoll.unregister(descriptor)
            edge.socket.close()

    def drop(self, peer: bytes) -> None:
        """The node says that a peer has died: nothing is sent to it any more.

        Reading goes on to the stream's end: results it wrote before it died are valid.
        """
        with self._lock:
            self._by_peer.pop(peer, None)

    def close(self) -> None:
        """Close every edge and the inbox."""
        if self._closed:
            return
        self._closed = True
        for edge in list(self._by_fd.values()):
            edge.socket.close()
        self._by_fd.clear()
        self._by_peer.clear()
        self._server.close()
        self._epoll.close()
        with contextlib.suppress(FileNotFoundError):  # The node removes what the dead have left.
            os.unlink(self._path(self.endpoint))
        self.inbox.close()
        self.peers.close()
