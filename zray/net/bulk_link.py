"""The bulk port of a node: chunks of objects to and from other nodes.

What    A context of its own, so that chunks never stand before a control message; one bound ROUTER
        that only receives, one send-only DEALER for each other node. Bytes go out of shared memory
        and into it: what is sent is not copied in this process, what is received is copied once,
        out of ZeroMQ's buffer, without the GIL.
Caller  brokers/bulk.py.
Never   blocks in send, or decides what is sent: credits do.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import zmq
from zmq.backend import Socket as _Backend

from zray.protocol.chunks import CHUNK_BYTES

from .addresses import dials_ipv6
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

_HANDSHAKE_MS = 10_000
_RECONNECT_MS = 50
_RECONNECT_MS_MAX = 2_000

Socket = zmq.Socket[bytes]


class Guard(Protocol):
    """Who answers libzmq's questions about handshakes of one context, such as curve.ZapHandler."""

    descriptor: int

    def serve(self) -> object:
        """Answer all that has been asked."""
        ...

    def close(self) -> None:
        """Give the socket back."""
        ...


ConfigureServer = Callable[[Socket], Guard | None]
"""Given the ROUTER before it is bound: sets keys and returns the guard of socket.context, if any.
It runs in the thread that makes the link; the guard is served and closed by the link's own."""
ConfigureClient = Callable[[Socket, bytes], Any]
"""Given a DEALER before it connects, and the public key of the node it connects to."""


class BulkLink:
    """The sockets of one node's bulk port. Made in any thread, then used by one alone.

    Args:
        own: this node's routing id at its peers: 1 to 255 bytes, another one after each restart.
        endpoint: where to bind, such as ``tcp://127.0.0.1:*``; IPv6 in brackets.
        configure_server: makes the bound socket refuse strangers; None: everybody may connect.
        configure_client: gives a connecting socket its keys.

    Raises:
        OSError: the port is taken, or the address is not of this machine.
    """

    def __init__(
        self,
        own: bytes,
        endpoint: str,
        *,
        configure_server: ConfigureServer | None = None,
        configure_client: ConfigureClient | None = None,
    ) -> None:
        self._own = own
        self._configure_client = configure_client
        _keep_heap()
        self._context = new_context()
        self._dealers: dict[bytes, Socket] = {}
        self._keys: dict[bytes, frozenset[str]] = {}
        """The keys that a node may show; empty: any."""
        self._watches: dict[int, weakref.ref[memoryview]] = {}
        self._guard: Guard | None = None
        self._is_ipv6 = "[" in endpoint
        self._router = self._new_socket(zmq.ROUTER, ipv6=self._is_ipv6)
        self._router.setsockopt(zmq.RCVHWM, _QUEUED_MESSAGES_MAX)
        self._router.setsockopt(zmq.MAXMSGSIZE, _MESSAGE_BYTES_MAX)
        # A node that comes back over a new connection takes the place of its old one.
        self._router.setsockopt(zmq.ROUTER_HANDOVER, 1)
        self._router.setsockopt(zmq.BACKLOG, 1024)
        try:
            if configure_server is not None:
                self._guard = configure_server(self._router)
            self._router.bind(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise OSError(error.errno, f"cannot bind the bulk port {endpoint}: {error}") from error
        except BaseException:
            self.close()
            raise
        self.endpoint = str(self._router.get_string(zmq.LAST_ENDPOINT))
        self.descriptors = [int(self._router.get(zmq.FD))]
        """To be polled for reading, edge-triggered: serve(), and receive() until it is None."""
        if self._guard is not None:
            self.descriptors.append(self._guard.descriptor)

    def _new_socket(self, kind: int, *, ipv6: bool) -> Socket:
        socket = self._context.socket(kind)
        socket.set_hwm(0)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.IPV6, int(ipv6))
        socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
        socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 10)
        socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, 5)
        socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, 4)
        socket.setsockopt(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
        return socket

    # -- peers -----------------------------------------------------------------------------------

    def connect(
        self, peer: bytes, endpoint: str, server_key: bytes = b"", keys: Iterable[bytes] = ()
    ) -> None:
        """Open the way to a node; a second call for the same node does nothing.

        Args:
            peer: its routing id.
            endpoint: where it is bound.
            server_key: the public key (Z85) that it must prove to hold.
            keys: public keys (Z85) of which one must be shown by who says that it is this node:
                all members may connect, and a routing id is only what they say of themselves.
        """
        if peer in self._dealers:
            return
        self._keys[peer] = frozenset(key.decode() for key in keys)
        ipv6 = dials_ipv6(endpoint, by_name=self._is_ipv6)
        socket = self._new_socket(zmq.DEALER, ipv6=ipv6)
        socket.setsockopt(zmq.ROUTING_ID, self._own)
        socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, _RECONNECT_MS_MAX)
        if self._configure_client is not None:
            self._configure_client(socket, server_key)
        socket.connect(endpoint)
        self._dealers[peer] = socket

    def knows(self, peer: bytes) -> bool:
        """Return whether there is a way to this node."""
        return peer in self._dealers

    def disconnect(self, peer: bytes) -> None:
        """Close the way to a node: chunks that were queued for it are let go of."""
        self._keys.pop(peer, None)
        socket = self._dealers.pop(peer, None)
        if socket is not None:
            socket.close(0)

    # -- sending ---------------------------------------------------------------------------------

    def send(self, peer: bytes, header: bytes) -> None:
        """Send one frame; dropped where there is no way to the node."""
        socket = self._dealers.get(peer)
        if socket is not None:
            _send(socket, header, _DONTWAIT)

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
        socket = self._dealers.get(peer)
        if socket is not None:
            _send(socket, header, _SNDMORE | _DONTWAIT)
            _send(socket, view, _DONTWAIT, False)

    # -- receiving -------------------------------------------------------------------------------

    def serve(self) -> None:
        """Let the guard answer what was asked of it."""
        if self._guard is not None:
            self._guard.serve()

    def receive(self) -> tuple[bytes, bytes, bool] | None:
        """Return (node, first frame, whether a second follows), or None where there is nothing.

        The node is b"" where it is nobody that connect() has named, or shows another's name.
        A second frame has to be read by receive_into() or skip() before the next call.
        """
        try:
            peer = _recv(self._router, _DONTWAIT)
        except zmq.Again:
            return None
        frame = _recv(self._router, 0, False)
        keys = self._keys.get(peer)
        if keys is None or (keys and frame.get("User-Id") not in keys):
            peer = b""
        return peer, frame.bytes, bool(frame.more)

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

    # -- the end ---------------------------------------------------------------------------------

    def close(self) -> None:
        """Close everything, in the thread that used it; what is queued is let go of."""
        for peer in list(self._dealers):
            self.disconnect(peer)
        self._router.close(0)
        if self._guard is not None:
            self._guard.close()
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
