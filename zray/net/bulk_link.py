"""The bulk port of a node: chunks of objects to and from other nodes.

What    A context of its own, so that chunks never stand before a control message; one guarded port
        that only receives, one send-only DEALER for each other node. Bytes go out of shared memory
        and into it: what is sent is not copied in this process, what is received is copied once,
        out of ZeroMQ's buffer, without the GIL.
Caller  brokers/bulk.py.
Never   blocks in send, or decides what is sent: credits do.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import zmq
from zmq.backend import Socket as _Backend

from zray.protocol.chunks import CHUNK_BYTES
from zray.protocol.limits import HELLO_TIMEOUT_S

from .addresses import dials_ipv6
from .connections import CONNECTIONS_MAX, Connection
from .curve import ClusterKeys, Role, secure_client
from .guarded_port import Caller, GuardedPort, announce, keep_alive
from .mailbox import new_context

_send = _Backend.send
_recv = _Backend.recv
_recv_into = _Backend.recv_into
_SNDMORE = 2
_DONTWAIT = 1

_MESSAGE_BYTES_MAX = 16 * CHUNK_BYTES
"""The longest frames are chunks, and what a partial holder of a terabyte has."""

_QUEUED_MESSAGES_MAX = 64
"""Messages of one node that wait here; beyond it TCP holds the node back."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_HEAP_KEPT_BYTES = 16 * CHUNK_BYTES
"""Two windows (WINDOW_BYTES of brokers/transfer_pulls.py): two sources at a time."""

_TOKEN_BYTES = 8
_RECONNECT_MS = 50
_RECONNECT_MS_MAX = 2_000
_HAND_OVER_MS = 2_000
"""What a socket has taken may take so long to leave, when another one takes its place."""

Socket = zmq.Socket[bytes]


@dataclass(slots=True)
class _Outbound:
    """The way to one node, and with which keys it was dialled."""

    socket: Socket
    endpoint: str
    known_by: bytes
    expects: bytes
    shows: bytes


@dataclass(slots=True)
class _Inbound:
    """One connection; ``caller`` is None where its messages are dropped."""

    connection: Connection
    caller: Caller | None


class BulkLink:
    """The sockets of one node's bulk port. Made in any thread, then used by one alone.

    Args:
        own: this node's name at its peers: 1 to 64 bytes, another one after each restart.
        keys: the members; None only on loopback.
        host: IP address to bind, or "localhost".
        port: 0: one that is free.
        connections_max: TCP connections open at a time.
        role: whose key to show.

    Raises:
        OSError: the port is taken, or the address is not of this machine.
        SecurityError: others than this machine could reach it without keys.
    """

    def __init__(
        self,
        own: bytes,
        keys: ClusterKeys | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        connections_max: int = CONNECTIONS_MAX,
        role: Role = Role.NODE,
    ) -> None:
        self._own = own
        self._keys = keys
        self._role = role
        _keep_heap()
        self._context = new_context()
        self._outbound: dict[bytes, _Outbound] = {}
        self._inbound: dict[bytes, _Inbound] = {}
        self._members: dict[bytes, str] = {}
        """Whose key has to be shown by who says that it is this node."""
        self._given_up: set[bytes] = set()
        """Nodes that did not let us in: libzmq dials no more, and takes nothing for them."""
        self._watches: dict[int, weakref.ref[memoryview]] = {}
        self._drained = True
        try:
            self._port = GuardedPort(
                self._context,
                keys,
                host=host,
                port=port,
                frame_bytes_max=_MESSAGE_BYTES_MAX,
                queue_messages_max=_QUEUED_MESSAGES_MAX,
                handshake_s=HELLO_TIMEOUT_S,
                connections_max=connections_max,
                role=role,
            )
        except BaseException:
            self._context.term()
            raise
        self._router = self._port.socket
        self._is_ipv6 = self._port.is_ipv6
        self.port = self._port.port
        self.endpoint = self._port.address(None)
        self.descriptors = self._port.descriptors
        """To be polled for reading, edge-triggered: receive() until it is None."""

    # -- peers -----------------------------------------------------------------------------------

    def connect(self, peer: bytes, endpoint: str, server_key: bytes = b"") -> None:
        """Open the way to a node; a second call for the same node does nothing.

        Args:
            peer: its name.
            endpoint: where it is bound.
            server_key: a public key (Z85) of it: it may show any of the same member, and nobody
                else is believed to be this node.

        Raises SecurityError where no key of that member counts any more.
        """
        if peer in self._outbound:
            return
        self._members[peer] = "" if self._keys is None else self._keys.member_of(server_key)
        self._port.expect(peer, server_key)
        self._outbound[peer] = self._dial(endpoint, server_key)

    def _dial(self, endpoint: str, known_by: bytes) -> _Outbound:
        socket = self._context.socket(zmq.DEALER)
        socket.set_hwm(0)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.IPV6, int(dials_ipv6(endpoint, by_name=self._is_ipv6)))
        socket.setsockopt(zmq.HANDSHAKE_IVL, int(HELLO_TIMEOUT_S * 1000))
        socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, _RECONNECT_MS_MAX)
        keep_alive(socket)
        announce(socket, self._own, os.urandom(_TOKEN_BYTES))
        made = _Outbound(socket, endpoint, known_by, b"", b"")
        if self._keys is not None:
            pair = self._keys.pair(self._role)
            # The member may have changed its key since, and shows one of those that count.
            made.expects = next(iter(self._keys.server_keys([known_by])), known_by)
            made.shows = pair.public
            secure_client(socket, pair, made.expects)
        socket.connect(endpoint)
        return made

    def knows(self, peer: bytes) -> bool:
        """Return whether there is a way to this node."""
        return peer in self._outbound

    def disconnect(self, peer: bytes) -> None:
        """Close the way to a node: chunks that were queued for it are let go of."""
        self._members.pop(peer, None)
        outbound = self._outbound.pop(peer, None)
        if outbound is not None:
            outbound.socket.close(0)

    # -- sending ---------------------------------------------------------------------------------

    def send(self, peer: bytes, header: bytes) -> None:
        """Send one frame; dropped where there is no way to the node, or it does not let us in."""
        outbound = self._outbound.get(peer)
        if outbound is not None:
            try:
                _send(outbound.socket, header, _DONTWAIT)
            except zmq.Again:
                self._given_up.add(peer)

    def send_chunk(
        self, peer: bytes, header: bytes, view: memoryview, on_released: Callable[[], Any]
    ) -> None:
        """Send two frames, the second straight out of ``view``.

        Args:
            peer: the node.
            header: the first frame.
            view: the bytes, of which the caller keeps no reference: they may change only after
                on_released.
            on_released: called once, when ZeroMQ does not read the bytes any more, because they
                were sent, or could not be. It runs in any thread and must not take a lock.
        """
        # The view itself tells: pyzmq keeps it until libzmq has called back, from a thread that
        # does this for all contexts; a MessageTracker would cost 9 us and has to be asked.
        key = id(view)
        watches = self._watches

        def released(_dead: object) -> None:
            watches.pop(key, None)
            on_released()

        watches[key] = weakref.ref(view, released)
        outbound = self._outbound.get(peer)
        if outbound is not None:
            try:
                _send(outbound.socket, header, _SNDMORE | _DONTWAIT)
                _send(outbound.socket, view, _DONTWAIT, False)
            except zmq.Again:
                self._given_up.add(peer)

    # -- receiving -------------------------------------------------------------------------------

    def receive(self) -> tuple[bytes, bytes, bool] | None:
        """Return (node, first frame, whether a second follows), or None where there is nothing.

        The node is b"" where it is nobody that connect() has named, or shows another's key.
        A second frame has to be read by receive_into() or skip() before the next call. Also
        answers handshakes.
        """
        router = self._router
        while True:
            try:
                routing_id = _recv(router, _DONTWAIT)
            except zmq.Again:
                if self._port.serve():
                    continue  # A connection that ended has put its last messages here before.
                self._drained = True
                while self._port.ended:
                    self._inbound.pop(self._port.ended.popleft(), None)
                return None
            self._drained = False
            frame = _recv(router, 0, False)
            inbound = self._inbound.get(routing_id)
            if inbound is None:
                inbound = _Inbound(*self._port.identify(routing_id, frame))
                self._inbound[routing_id] = inbound
            inbound.connection.messages += 1
            if not len(frame) and not frame.more:
                continue  # The empty one is how a connection begins.
            return self._node_behind(inbound.caller), frame.bytes, bool(frame.more)

    def _node_behind(self, caller: Caller | None) -> bytes:
        if caller is None or self._members.get(caller.peer) != caller.member:
            return b""
        return caller.peer

    def receive_into(self, view: memoryview) -> int:
        """Read the second frame into ``view``; returns its length, which may be another.

        A longer frame fills the view and the rest of it is thrown away.
        """
        nbytes = int(_recv_into(self._router, view))
        if self._router.getsockopt(zmq.RCVMORE):
            self.skip()
            return -1
        return nbytes

    def skip(self) -> None:
        """Throw away what is left of the message."""
        while _recv(self._router, 0, False).more:
            continue

    # -- some times a second ---------------------------------------------------------------------

    @property
    def has_connections(self) -> bool:
        """Whether sweep() has anything to look at; may be asked from any thread."""
        return bool(self._outbound) or len(self._port) > 0

    def sweep(self) -> None:
        """Cut who has no right or no end, and change to new keys; nothing under way is lost.

        Raises SecurityError where the folder of keys has become unusable: nobody new is let in.
        """
        for routing_id in self._port.sweep(drained=self._drained):
            inbound = self._inbound.get(routing_id)
            if inbound is not None:
                inbound.caller = None
        for peer, outbound in list(self._outbound.items()):
            if self._keys is not None and self._keys.is_revoked(outbound.expects):
                outbound.socket.close(0)
                del self._outbound[peer]
                if self._keys.server_keys([outbound.known_by]):
                    self._outbound[peer] = self._dial(outbound.endpoint, outbound.known_by)
            elif peer in self._given_up or self._has_other_keys(outbound):
                self._outbound[peer] = self._dial(outbound.endpoint, outbound.known_by)
                outbound.socket.close(_HAND_OVER_MS)
        self._given_up.clear()

    def _has_other_keys(self, outbound: _Outbound) -> bool:
        """Return whether a way was dialled with keys that are out of use by now."""
        keys = self._keys
        return keys is not None and (
            outbound.shows != keys.pair(self._role).public or keys.role_of(outbound.expects) is None
        )

    @property
    def refused(self) -> dict[str, int]:
        """Connections and handshakes refused so far, by reason; may be asked from any thread."""
        return dict(self._port.refused)

    # -- the end ---------------------------------------------------------------------------------

    def close(self) -> None:
        """Close everything, in the thread that used it; what is queued is let go of."""
        for peer in list(self._outbound):
            self.disconnect(peer)
        self._port.close()
        with contextlib.suppress(zmq.ZMQError):  # Interrupted: the sockets are closed anyway.
            self._context.term()


def _keep_heap() -> None:
    """Let malloc keep what a window of chunks takes, in this whole process.

    By itself glibc gives the memory of received frames back whenever a few are free and faults it
    in again for the next ones, which was measured to be half of the time of a transfer.
    """
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # Other C libraries keep it anyway, or can't be told.
        mallopt(_M_TRIM_THRESHOLD, _HEAP_KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, 2 * CHUNK_BYTES)
