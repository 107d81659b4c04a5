"""The way between the GCS process and who uses it: a ROUTER and DEALERs.

What    GcsEndpoint, where the GCS receives and answers; GcsPeer, the other end. An endpoint knows
        when a peer's connection breaks, so that a killed node is known to be dead in milliseconds.
        Both have what a poll loop needs: a descriptor, receive() until None, has_message() before
        each wait, since a send on the same socket may swallow the descriptor's edge.
Caller  brokers/gcs/server.py; who drives a brokers/gcs/client.py session.
Never   binds what others than this machine can reach, unless they have to show a member's key.
Spec    RFC 26 (CURVE), RFC 27 (ZAP).
"""

from __future__ import annotations

import contextlib
import ipaddress
import os

import zmq
from zmq.backend import Socket as _Backend

from zray.errors import NodeStartError, SecurityError

from .curve import ClusterKeys, Role, ZapHandler, secure_client, secure_server
from .mailbox import new_context

_send = _Backend.send
_recv = _Backend.recv
_SNDMORE = 2
_DONTWAIT = 1
_SOURCE_FD = 2

FRAME_BYTES_MAX = 80 << 20
"""A value of 64 MiB and what is around it."""

_QUEUE_LEN_MAX = 256
"""Frames that wait for one slow peer of an endpoint; then send() says no."""

_CLIENT_QUEUE_LEN_MAX = 10_000
_RECONNECT_MS = 20
_RECONNECT_MS_MAX = 500


def check_local(endpoint: str) -> None:
    """Raise NodeStartError where an endpoint without keys could be reached from elsewhere."""
    scheme, _, place = endpoint.partition("://")
    if scheme == "ipc":
        return
    host = place.rpartition(":")[0].strip("[]")
    with contextlib.suppress(ValueError):
        if scheme == "tcp" and ipaddress.ip_address(host).is_loopback:
            return
    raise NodeStartError(
        f"{endpoint!r} is refused: without keys the GCS binds only ipc:// and loopback "
        "(tcp://127.0.0.1:PORT, tcp://[::1]:PORT), since it does what any peer asks"
    )


class GcsEndpoint:
    """Where the GCS is reached. One thread uses it.

    Args:
        endpoint: ipc://PATH, or tcp://HOST:PORT with port 0 for a free one.
        keys: the members of the cluster; None only where this machine alone reaches the endpoint.

    Raises:
        NodeStartError: it can't be bound, or could be reached from elsewhere without keys.
        SecurityError: there is no key to show.
    """

    def __init__(self, endpoint: str, keys: ClusterKeys | None = None) -> None:
        if keys is None:
            check_local(endpoint)
        self._keys = keys
        self._roles: dict[bytes, Role] = {}
        self._public: dict[bytes, bytes] = {}
        self._revision = 0 if keys is None else keys.revision
        self._context = new_context()
        # Before the bind: nobody may slip through in between.
        self._zap = None if keys is None else ZapHandler(self._context, keys)
        self._socket = self._context.socket(zmq.ROUTER)
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.SNDHWM, _QUEUE_LEN_MAX),
            (zmq.RCVHWM, 0),
            (zmq.MAXMSGSIZE, FRAME_BYTES_MAX),
            # With keys everybody is called what this socket calls it: a name of its own choice
            # could be another's, whose answers it would get, and whose death it could feign.
            (zmq.ROUTER_HANDOVER, int(keys is None)),
            # Else a message to a full queue is dropped without a word.
            (zmq.ROUTER_MANDATORY, 1),
            (zmq.IPV6, int("[" in endpoint)),
        ):
            self._socket.setsockopt(option, value)
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._peer_of_fd: dict[int, bytes] = {}
        self._fd_of_peer: dict[bytes, int] = {}
        try:
            if keys is not None:
                secure_server(self._socket, keys.pair(Role.NODE))
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise NodeStartError(
                f"the GCS can't bind {endpoint!r} ({error.strerror}); is another one running "
                "there? Stop it, or choose another address"
            ) from error
        except SecurityError:
            self.close()
            raise
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What to poll for reading; edges, so receive() and broken() are to be called till dry."""
        found = (int(self._socket.get(zmq.FD)), int(self._monitor.get(zmq.FD)))
        return found if self._zap is None else (*found, self._zap.descriptor)

    def has_message(self) -> bool:
        """Return whether receive() or broken() would return something now."""
        if self._zap is not None:
            self._zap.serve()  # Whoever shakes hands waits for it.
        ready = int(self._socket.get(zmq.EVENTS)) | int(self._monitor.get(zmq.EVENTS))
        return bool(ready & zmq.POLLIN)

    def role(self, peer: bytes) -> Role:
        """Return what a peer that has sent something may do: all, where there are no keys."""
        return Role.NODE if self._keys is None else self._roles[peer]

    def receive(self) -> tuple[bytes, bytes] | None:
        """Return (peer, frame) of the next message, or None. Longer messages are cut."""
        while True:
            try:
                peer = bytes(_recv(self._socket, _DONTWAIT))
            except zmq.Again:
                return None
            frame = _recv(self._socket, 0, False)
            is_member = self._seen(peer, frame)
            body = frame.bytes
            while frame.more:
                frame = _recv(self._socket, 0, False)
            if is_member:
                return peer, body

    def _seen(self, peer: bytes, frame: zmq.Frame) -> bool:
        """Learn whose connection a message came by; return whether that is a member's."""
        fd = int(frame.get(_SOURCE_FD))
        before = self._fd_of_peer.get(peer)
        if before != fd:
            if before is not None and self._peer_of_fd.get(before) == peer:
                del self._peer_of_fd[before]
            self._fd_of_peer[peer] = fd
            self._peer_of_fd[fd] = peer
            if self._keys is not None:
                self._public[peer] = str(frame.get("User-Id")).encode()
                self._look_up(peer, self._keys)
        return self._keys is None or peer in self._roles

    def _look_up(self, peer: bytes, keys: ClusterKeys) -> None:
        role = keys.role_of(self._public[peer], retired=True)
        if role is None:
            self._roles.pop(peer, None)
        else:
            self._roles[peer] = role

    def broken(self) -> list[bytes]:
        """Return peers whose connections broke since the last call.

        To be called before receive(): a new connection may have the descriptor of a broken one.
        """
        peers = self._shut_out()
        while int(self._monitor.get(zmq.EVENTS)) & zmq.POLLIN:
            event = self._monitor.recv(zmq.NOBLOCK)
            self._monitor.recv(zmq.NOBLOCK)
            peer = self._peer_of_fd.pop(int.from_bytes(event[2:6], "little", signed=True), None)
            if peer is not None:
                self._fd_of_peer.pop(peer, None)
                self._roles.pop(peer, None)
                self._public.pop(peer, None)
                peers.append(peer)
        return peers

    def _shut_out(self) -> list[bytes]:
        """Return peers whose keys were taken from them; their messages are dropped from now on.

        A table that can't be read changes nothing here, and lets nobody new in.
        """
        keys = self._keys
        if keys is None:
            return []
        with contextlib.suppress(SecurityError):
            keys.reload()
        if keys.revision == self._revision:
            return []
        self._revision = keys.revision
        members = list(self._roles)
        for peer in members:
            self._look_up(peer, keys)
        return [peer for peer in members if peer not in self._roles]

    def send(self, peer: bytes, frame: bytes) -> bool:
        """Send one frame; False where the peer is gone or takes no more for now."""
        try:
            _send(self._socket, peer, _SNDMORE | _DONTWAIT)
        except zmq.ZMQError as error:
            if error.errno in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                return False
            raise
        _send(self._socket, frame, _DONTWAIT)
        return True

    def close(self, linger_ms: int = 0) -> None:
        """Close; what is queued gets `linger_ms` to leave."""
        path = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(linger_ms)
        if self._zap is not None:
            self._zap.close()
        self._context.term()
        if path.startswith("ipc://"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path.removeprefix("ipc://"))


class GcsPeer:
    """One process's way to the GCS; connects by itself, again and again. One thread uses it.

    Args:
        endpoint: as the GCS reports it.
        identity: this process's id, 1 to 255 bytes, the first not zero; not sent where there are
            keys.
        keys: of the cluster; None: plain, which only an endpoint on this machine accepts.
        role: whose key to show.

    Raises:
        SecurityError: there is no key to show, or none to expect.
    """

    def __init__(
        self,
        endpoint: str,
        identity: bytes,
        keys: ClusterKeys | None = None,
        role: Role = Role.NODE,
    ) -> None:
        self._endpoint = endpoint
        self._identity = identity
        self._keys = keys
        self._role = role
        self._dials = 0
        self._context = new_context()
        try:
            self._socket = self._dial()
        except SecurityError:
            self._context.term()
            raise

    def _dial(self) -> zmq.Socket[bytes]:
        endpoint = self._endpoint
        socket = self._context.socket(zmq.DEALER)
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.SNDHWM, _CLIENT_QUEUE_LEN_MAX),
            (zmq.RCVHWM, 0),
            (zmq.MAXMSGSIZE, FRAME_BYTES_MAX),
            # Nothing waits for a GCS that is not there: the session repeats what it has to.
            (zmq.IMMEDIATE, 1),
            (zmq.RECONNECT_IVL, _RECONNECT_MS),
            (zmq.RECONNECT_IVL_MAX, _RECONNECT_MS_MAX),
            (zmq.IPV6, int("[" in endpoint)),
        ):
            socket.setsockopt(option, value)
        try:
            self._show_key(socket)
        except SecurityError:
            socket.close(0)
            raise
        socket.connect(endpoint)
        return socket

    def _show_key(self, socket: zmq.Socket[bytes]) -> None:
        keys = self._keys
        if keys is None:
            socket.setsockopt(zmq.ROUTING_ID, self._identity)
            return
        keys.reload()
        servers = keys.server_keys()
        if not servers:
            raise SecurityError(f"no node's key is in {keys.directory}: copy it anew")
        secure_client(socket, keys.pair(self._role), servers[self._dials % len(servers)])
        self._dials += 1

    def redial(self) -> None:
        """Dial anew, expecting the next of the nodes' keys; the descriptor is another one then.

        For who hears nothing: while keys are being rotated the GCS may still show an older one.

        Raises:
            SecurityError: there is no key to show any more.
        """
        fresh = self._dial()
        self._socket.close(0)
        self._socket = fresh

    @property
    def descriptor(self) -> int:
        """What to poll for reading; an edge, so receive() is to be called until None."""
        return int(self._socket.get(zmq.FD))

    def has_message(self) -> bool:
        """Return whether receive() would return something now."""
        return bool(int(self._socket.get(zmq.EVENTS)) & zmq.POLLIN)

    def send(self, frame: bytes) -> bool:
        """Send one frame; False where the GCS is not connected or takes no more for now."""
        try:
            _send(self._socket, frame, _DONTWAIT)
        except zmq.Again:
            return False
        return True

    def receive(self) -> bytes | None:
        """Return the next frame, or None."""
        try:
            return bytes(_recv(self._socket, _DONTWAIT))
        except zmq.Again:
            return None

    def close(self, linger_ms: int = 0) -> None:
        """Close; what is queued gets `linger_ms` to leave."""
        self._socket.close(linger_ms)
        self._context.term()
