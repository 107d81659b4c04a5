"""Edges: the direct ways between processes of one host, and a process's one place to receive.

What    Calls and results go over unix streams in ZeroMQ's own wire format (ZMTP 3.1, NULL), read
        and written by the thread that waits for them. A ZeroMQ socket would hand every message
        through an I/O thread on both sides: four more wake-ups a round trip, 90 us instead of
        15 (docs/explanation/architecture.md, D3). What the node sends comes through ZeroMQ
        as ever; both are in one poll set.
Caller  zray/client.py.
Never   blocks in send: what the kernel does not take is kept and leaves when it can. Believes
        nobody who has not shown the token of a process of its node (zray/net/tokens.py).
Spec    RFC 37/ZMTP: greeting, READY, message frames.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from zray.errors import RemoteProtocolError
from zray.protocol import frames, messages
from zray.protocol.envelopes import Reassembly
from zray.protocol.ids import NODE_PREFIX_BYTES
from zray.protocol.limits import (
    EDGE_MESSAGE_BYTES_MAX,
    HELLO_TIMEOUT_S,
    UNNAMED_CONNECTIONS_MAX,
)

from . import tokens
from .channel import Listener, same_user
from .mailbox import Inbox, Message, Peers
from .poller import READABLE, WRITABLE, new_poller

_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
MORE, _LONG, _COMMAND = 1, 2, 4
_LENGTH = struct.Struct(">Q")
_READ_BYTES = 256 * 1024
_READY_BYTES_MAX = 512
"""Longest frame of a peer that has not shown its token."""
_FRAMES_MAX = 1024
"""Frames of one message."""
_ACCEPTS_MAX = 64
_EDGE_ROUNDS = 4
_IN, _OUT = READABLE, WRITABLE
_FORWARDED = frames.pack(messages.FORWARDED, payloads=1)


def prefix(flags: int, length: int) -> bytes:
    """Return what stands before a frame of this length on the wire."""
    if length < 256:
        return bytes((flags, length))
    return bytes((flags | _LONG,)) + _LENGTH.pack(length)


def frame(flags: int, body: bytes) -> bytes:
    """Return one frame as it is on the wire."""
    return prefix(flags, len(body)) + body


def message_frames(header: bytes, payloads: Sequence[bytes]) -> bytes:
    """Return a message with payloads as it is on the wire."""
    parts = [frame(MORE, header)]
    for payload in payloads[:-1]:
        parts += (prefix(MORE, len(payload)), payload)
    parts += (prefix(0, len(payloads[-1])), payloads[-1])
    return b"".join(parts)


def ready(identity: bytes, token: bytes) -> bytes:
    """Return the greeting and the READY command of a DEALER with this identity."""

    def item(name: bytes, value: bytes) -> bytes:
        return bytes((len(name),)) + name + struct.pack(">I", len(value)) + value

    body = b"".join(
        (
            b"\x05READY",
            item(b"Socket-Type", b"DEALER"),
            item(b"Identity", identity),
            item(b"X-Token", token),
        )
    )
    return _GREETING + frame(_COMMAND, body)


def _properties_of(command: bytes) -> dict[bytes, bytes]:
    """Return the properties of a READY command, names in lower case.

    Raises RemoteProtocolError where it is anything else.
    """
    if command[:6] != b"\x05READY":
        raise RemoteProtocolError("an edge that does not begin with READY")
    properties: dict[bytes, bytes] = {}
    at = 6
    while at < len(command):
        name_end = at + 1 + command[at]
        (length,) = struct.unpack_from(">I", command, name_end)
        end = name_end + 4 + length
        properties[command[at + 1 : name_end].lower()] = command[name_end + 4 : end]
        at = end
    return properties


class Edge:
    """One stream to one peer."""

    __slots__ = (
        "flags",
        "frames",
        "greeted",
        "inbound",
        "large",
        "outbound",
        "peer",
        "rest",
        "socket",
        "trusted",
    )

    def __init__(self, sock: socket.socket, peer: bytes | None) -> None:
        self.socket = sock
        self.peer = peer
        self.greeted = False
        self.trusted = False
        """Its READY has shown that it is who it says, or whom we wanted."""
        self.inbound = b""
        self.outbound = bytearray()
        self.frames: list[bytes] = []
        self.large: bytearray | None = None
        """A long frame on its way: read into place, so that it is not copied with each piece."""
        self.rest = memoryview(b"")
        """The part of it that is not here yet."""
        self.flags = 0


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
        self.backlog_bytes = 0
        """Those bytes, of all edges."""
        self.malformed = 0
        self.forward: Callable[[bytes, list[bytes]], bool] = _no_way
        """Set by the client: hand a message for a process of another node to ours."""
        self._secret = b""
        self._node = b""
        self._node_routing_id = b""
        self._hello = b""
        self._unnamed: dict[int, float] = {}
        """Descriptors of edges that have not shown a token, oldest first: until when they may."""
        self._on_stuck = on_stuck
        self._lock = threading.Lock()
        self._by_peer: dict[bytes, Edge] = {}
        self._by_fd: dict[int, Edge] = {}
        self._ready: deque[Message] = deque()
        self._reassembly = Reassembly()
        self._epoll = new_poller()
        self._inbox_fd = inbox.descriptor
        self._epoll.register(self._inbox_fd, _IN)
        self._server = Listener(self._path(inbox.endpoint))
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

    def authorize(self, secret: bytes, node: bytes) -> None:
        """Say what the node has handed out with WELCOME: nothing is sent or believed before."""
        self._secret = secret
        self._node = node
        self._node_routing_id = tokens.routing_id(secret, node)
        self.peers.routing_id = tokens.routing_id(secret, self.own_id)
        self._hello = ready(self.own_id, tokens.token(secret, self.own_id))

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
        if self._unnamed:
            self._sweep()
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
        received: list[Message] = []
        while (message := self.inbox.receive()) is not None:
            sender, header, payloads = message
            if tokens.is_same(self._node_routing_id, sender):
                received.append((self._node, header, payloads))
            else:
                self.malformed += 1  # Nobody else writes here.
        for _ in range(_EDGE_ROUNDS if received else 0):
            # A fresh edge takes two rounds: one accepts it, the next reads it.
            events = [each for each in self._epoll.poll(0) if each[0] != self._inbox_fd]
            if not events:
                break
            self._serve(events)
        self._ready.extend(received)

    def _open(self, header: bytes, envelope: bytes) -> None:
        """What the node has brought from a process of another node is that process's message."""
        if header != _FORWARDED:
            self.malformed += 1  # It says everything else through the mailbox.
            return
        try:
            message = self._reassembly.add(envelope)
        except RemoteProtocolError:
            # Of one process: those of the others that the node brings here are whole.
            self.malformed += 1
            return
        if message is not None:
            self._ready.append(message)

    def has_message(self) -> bool:
        """Return whether receive() would return a message without looking at a socket."""
        return bool(self._ready)

    def _read(self, edge: Edge) -> None:
        data = b""
        try:
            if edge.large is not None:
                count = edge.socket.recv_into(edge.rest)
            else:
                data = edge.socket.recv(_READ_BYTES)
                count = len(data)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            count = 0
        if not count:
            self._lose(edge)
            return
        try:
            if edge.large is not None:
                self._fill(edge, count)
            else:
                edge.inbound = self._parse(edge, edge.inbound + data if edge.inbound else data)
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
        while end - at >= 2:
            flags = data[at]
            if flags & _LONG:
                if end - at < 9:
                    break
                (length,) = _LENGTH.unpack_from(data, at + 1)
                start = at + 9
                if length > (EDGE_MESSAGE_BYTES_MAX if edge.trusted else _READY_BYTES_MAX):
                    raise RemoteProtocolError(f"a frame of {length} bytes on an edge")
            else:
                length, start = data[at + 1], at + 2
            if end - start < length:
                if length > _READ_BYTES:
                    self._expect(edge, flags, length, data[start:])
                    return b""
                break
            at = start + length
            self._framed(edge, flags, data[start:at])
        return data[at:] if at < end else b""

    def _expect(self, edge: Edge, flags: int, length: int, begun: bytes) -> None:
        """A long frame has begun: make room for all of it."""
        edge.flags = flags
        edge.large = bytearray(length)
        edge.large[: len(begun)] = begun
        edge.rest = memoryview(edge.large)[len(begun) :]

    def _fill(self, edge: Edge, count: int) -> None:
        """So many bytes of the long frame have come."""
        edge.rest = edge.rest[count:]
        if not edge.rest:
            assert edge.large is not None
            body, edge.large = bytes(edge.large), None
            self._framed(edge, edge.flags, body)

    def _framed(self, edge: Edge, flags: int, body: bytes) -> None:
        """A frame is complete, and perhaps its message."""
        if not edge.trusted:
            self._greet(edge, flags, body)
        elif flags & _COMMAND:
            return
        elif flags & MORE:
            if len(edge.frames) >= _FRAMES_MAX:
                raise RemoteProtocolError(f"a message of more than {_FRAMES_MAX} frames")
            edge.frames.append(body)
        else:
            assert edge.peer is not None
            if edge.frames:
                header, *payloads = edge.frames
                payloads.append(body)
                edge.frames = []
                if edge.peer == self._node:
                    self._open(header, payloads[0])
                else:
                    self._ready.append((edge.peer, header, payloads))
            else:
                self._ready.append((edge.peer, body, []))

    def _greet(self, edge: Edge, flags: int, body: bytes) -> None:
        """The first frame of a peer: READY of a process of this node, or it is refused."""
        if not flags & _COMMAND:
            raise RemoteProtocolError("a message before READY")
        properties = _properties_of(body)
        identity = properties.get(b"identity", b"")
        if edge.peer not in (None, identity) or not tokens.is_token(
            self._secret, identity, properties.get(b"x-token", b"")
        ):
            raise RemoteProtocolError("an edge to somebody who is not of this node")
        edge.trusted = True
        if edge.peer is None:
            edge.peer = identity
            self._unnamed.pop(edge.socket.fileno(), None)
            if identity == self._node:
                return  # It brings what processes of other nodes say; it never reads here.
            with self._lock:
                # Whoever was first stays the way to this peer: one way keeps the order.
                self._by_peer.setdefault(identity, edge)

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_MAX):
            sock = self._server.accept_socket()
            if sock is None:
                return
            edge = Edge(sock, None)
            self._adopt(edge)
            self._unnamed[sock.fileno()] = time.monotonic() + HELLO_TIMEOUT_S
            if len(self._unnamed) > UNNAMED_CONNECTIONS_MAX:
                self._refuse(next(iter(self._unnamed)))
            with self._lock:
                self._write(edge, self._hello)

    def _sweep(self) -> None:
        """Refuse those that have shown no token in time."""
        now = time.monotonic()
        late = itertools.takewhile(lambda each: each[1] < now, list(self._unnamed.items()))
        for descriptor, _until in late:
            self._refuse(descriptor)

    def _refuse(self, descriptor: int) -> None:
        self.malformed += 1
        self._lose(self._by_fd[descriptor])

    def _adopt(self, edge: Edge) -> None:
        edge.socket.setblocking(False)
        descriptor = edge.socket.fileno()
        self._by_fd[descriptor] = edge
        self._epoll.register(descriptor, _IN)

    # -- sending ---------------------------------------------------------------------------------

    def _is_foreign(self, peer: bytes) -> bool:
        return peer[:NODE_PREFIX_BYTES] != self.own_id[:NODE_PREFIX_BYTES]

    def connect(self, peer: bytes, endpoint: str) -> None:
        """Open the way to a process of this node; a second call does nothing.

        To one of another node the way is through ours, and open.
        """
        if peer in self._by_peer or self._is_foreign(peer):
            return
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(self._path(endpoint))
        except OSError:
            sock.close()  # It has died; the node's word of it is on its way.
            return
        if not same_user(sock):
            sock.close()
            return
        with self._lock:
            if peer in self._by_peer:
                sock.close()
                return
            edge = Edge(sock, peer)
            self._adopt(edge)
            self._by_peer[peer] = edge
            self._write(edge, self._hello)

    def connect_node(self, node: bytes, endpoint: str) -> None:
        """Open the way to the node: ZeroMQ."""
        self.peers.connect(node, endpoint)

    def knows(self, peer: bytes) -> bool:
        """Return whether there is a way to this peer."""
        return peer in self._by_peer or self.peers.knows(peer) or self._is_foreign(peer)

    def send(self, peer: bytes, header: bytes, payloads: Sequence[bytes] = ()) -> bool:
        """Send one message; False where there is no way to the peer (it died, or never was)."""
        edge = self._by_peer.get(peer)
        if edge is None:
            if self._is_foreign(peer):
                return self.forward(peer, [header, *payloads])
            return self.peers.send(peer, header, payloads)
        data = message_frames(header, payloads) if payloads else frame(0, header)
        with self._lock:
            return self._write(edge, data)

    def _write(self, edge: Edge, data: bytes) -> bool:
        if edge.outbound:
            edge.outbound += data
            self.backlog_bytes += len(data)
            return True
        try:
            sent = edge.socket.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            return False  # Its EOF is read by whoever polls next.
        if sent < len(data):
            edge.outbound += memoryview(data)[sent:]
            self.backlog_bytes += len(data) - sent
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
            self.backlog_bytes -= sent
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
            self._unnamed.pop(descriptor, None)
            if edge.outbound:
                self.stuck -= 1
                self.backlog_bytes -= len(edge.outbound)
                edge.outbound = bytearray()
            edge.large = None
            self._epoll.unregister(descriptor)
            edge.socket.close()

    def drop(self, peer: bytes) -> None:
        """The node says that a peer has died: nothing is sent to it any more.

        Reading goes on to the stream's end: results it wrote before it died are valid.
        """
        with self._lock:
            self._by_peer.pop(peer, None)
        if self._is_foreign(peer):
            self._reassembly.forget(peer)

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


def _no_way(_peer: bytes, _frames: list[bytes]) -> bool:
    return False
