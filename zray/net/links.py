"""The ways to other nodes: one send-only DEALER a peer.

What    Links, which hold back what a peer is not ready for, within bounds, and tell at once when a
        peer's TCP connection ends. What was sent before such news may be lost, what is sent after
        it goes over a new stream: in order, without gaps, from its first message on.
Caller  brokers/node.py, brokers/gcs, zray/client.py. One thread.
Never   blocks in send; keeps more than its bounds for a peer that does not read; receives.
Spec    RFC 26 (CURVE), RFC 36 (ZRE).
"""

from __future__ import annotations

import contextlib
import enum
import os
import time
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import zmq
from zmq.backend import Socket as _Backend

from zray.errors import LocalProtocolError, SecurityError
from zray.net.addresses import dials_ipv6
from zray.net.connections import close_monitored, open_monitor, read_event
from zray.net.curve import ClusterKeys, Role, secure_client
from zray.net.guarded_port import announce, keep_alive
from zray.net.link_inbox import (
    LINK_FRAME_BYTES_MAX,
    LINK_QUEUE_MESSAGES_MAX,
    ZERO_COPY_BYTES_MIN,
    Payload,
)
from zray.net.poller import READABLE, new_poller
from zray.protocol.limits import HELLO_TIMEOUT_S

LINK_MESSAGE_BYTES_MAX = 64 * 1024 * 1024
"""Largest message on a link, all frames together."""

LINK_BACKLOG_BYTES_MAX = 128 * 1024 * 1024
"""Bytes kept for a peer that is not connected yet or does not read, large frames in libzmq too."""

LINK_BACKLOG_MESSAGES_MAX = 100_000
"""Messages kept for such a peer."""

_TOKEN_BYTES = 8
_RECONNECT_MS = 100
_RECONNECT_MS_MAX = 2000
_UNACKNOWLEDGED_MS = 15_000
"""TCP gives up on bytes that a peer has not acknowledged for this long."""
_SHORT_LIFE_S = 1.0
_SHORT_LIVES_MAX = 3
"""So many connections in a row that end at once, and nothing more is tried: to dial again at the
same rate would keep both sides busy with nothing else."""
_ANSWER_BYTES_MAX = 4096
"""A peer's inbox never sends; its part of the handshake is smaller than this."""

_FLUSH_EVERY = 64
"""Messages kept between two attempts to send them on."""

_SUCCEEDED = int(zmq.EVENT_HANDSHAKE_SUCCEEDED)
_DISCONNECTED = int(zmq.EVENT_DISCONNECTED)
_DENIED = {
    int(zmq.EVENT_HANDSHAKE_FAILED_AUTH): "it does not know our key",
    int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL): "it and we do not both use keys",
}

# The methods of pyzmq's C layer, see mailbox.py.
_send = _Backend.send
_DONTWAIT = 1
_MORE = 3
"""SNDMORE | DONTWAIT: without the latter, a link that breaks off in mid-message blocks for ever."""
_POLLOUT = 2


class LinkState(enum.Enum):
    """What an event tells of a link."""

    CONNECTED = "connected"
    """The peer has shown its key; a stream begins with the first message accepted since the last
    DISCONNECTED."""
    DISCONNECTED = "disconnected"
    """The stream has ended, and what it had not delivered is lost. A new one is being dialled."""
    REFUSED = "refused"
    """The handshake failed with every key given. See LinkEvent.reason."""


class LinkEvent(NamedTuple):
    """What has become of a link.

    Args:
        peer: as given to connect().
        state: see LinkState.
        reason: of a refusal. Where the peer has denied us nothing more is tried before another
            connect(), and Links.knows() is False; otherwise dialling goes on every two seconds.
    """

    peer: bytes
    state: LinkState
    reason: str = ""


class _Link:
    """One peer: its socket and what waits for it."""

    __slots__ = (
        *("backlog", "backlog_bytes", "denied", "endpoint", "is_up", "key_number", "keys_tried"),
        *("known_by", "large", "large_bytes", "monitor", "peer", "server_keys", "short_lives"),
        *("socket", "up_since"),
    )

    def __init__(self, peer: bytes, endpoint: str, known_by: tuple[bytes, ...]) -> None:
        self.peer = peer
        self.endpoint = endpoint
        self.known_by = known_by
        self.server_keys: tuple[bytes, ...] = ()
        self.key_number = 0
        self.keys_tried = 0
        self.denied = ""
        self.is_up = False
        self.up_since = 0.0
        self.short_lives = 0
        self.socket: zmq.Socket[bytes] | None = None
        self.monitor: zmq.Socket[bytes] | None = None
        self.forget_queued()

    def forget_queued(self) -> None:
        """Drop what waits: its stream has ended."""
        self.backlog: deque[tuple[bytes, tuple[Payload, ...], int]] = deque()
        self.backlog_bytes = 0
        self.large: deque[tuple[zmq.MessageTracker, int]] = deque()
        self.large_bytes = 0

    def queued_bytes(self) -> int:
        """Return the bytes that wait here, and those of large frames that libzmq still holds."""
        large = self.large
        while large and large[0][0].done:
            self.large_bytes -= large.popleft()[1]
        return self.backlog_bytes + self.large_bytes


class Links:
    """Send-only DEALERs by the peer's id.

    Poll ``descriptor`` for reading and call events() when it is.

    Args:
        context: any.
        own: what peers know us by, up to 64 bytes; their inbox shows it as Sender.peer.
        keys: of this cluster; None: plain TCP, which only an inbox on loopback accepts.
        role: whose key to show.
        backlog_bytes_max: bytes kept for one peer.
        ipv6_names: reach hosts that are given by name over IPv6; those in brackets always are.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        own: bytes,
        keys: ClusterKeys | None,
        role: Role = Role.NODE,
        *,
        backlog_bytes_max: int = LINK_BACKLOG_BYTES_MAX,
        ipv6_names: bool = False,
    ) -> None:
        self._ipv6_names = ipv6_names
        self._context = context
        self._own = own
        self._keys = keys
        self._role = role
        self._backlog_bytes_max = backlog_bytes_max
        self._links: dict[bytes, _Link] = {}
        self._by_descriptor: dict[int, _Link] = {}
        self._revision = 0 if keys is None else keys.revision
        self._told: list[LinkEvent] = []
        """What sweep() has found."""
        self._poller = new_poller()
        self.descriptor = self._poller.fileno()

    def connect(self, peer: bytes, endpoint: str, server_keys: Sequence[bytes] = ()) -> None:
        """Open the way to a peer; where it is open to the same endpoint already, do nothing.

        Args:
            peer: what the caller calls it.
            endpoint: "tcp://HOST:PORT", LinkInbox.address.
                server_keys: public keys (Z85) that it is known by: any key of the same members is
                taken, tried in turn; without any, those of all nodes.

        Raises SecurityError where there is no key to show, or none to expect.
        """
        given = tuple(server_keys)
        link = self._links.get(peer)
        if link is not None and link.socket is not None:
            if link.endpoint == endpoint and link.known_by == given:
                return
            self.drop(peer)
        link = _Link(peer, endpoint, given)
        self._look_up_keys(link)
        self._dial(link)
        self._links[peer] = link

    def _look_up_keys(self, link: _Link) -> None:
        """Expect the keys that the peer may show by now."""
        if self._keys is None:
            return
        self._keys.reload()
        found = tuple(self._keys.server_keys(link.known_by))
        if not found:
            whose = ", ".join(map(self._keys.member_of, link.known_by)) or "any node"
            raise SecurityError(
                f"no key of {whose} counts any more, as {self._keys.directory} has it"
            )
        link.server_keys = found
        link.key_number = 0

    def sweep(self) -> None:
        """Hang up on who showed a key that was revoked since. Some times a second."""
        keys = self._keys
        if keys is None or keys.revision == self._revision:
            return
        self._revision = keys.revision
        for link in self._links.values():
            if link.socket is not None and keys.is_revoked(link.server_keys[link.key_number]):
                if link.is_up:
                    self._told.append(LinkEvent(link.peer, LinkState.DISCONNECTED))
                self._hang_up(link)
                whose = keys.member_of(link.server_keys[link.key_number])
                reason = f"the key of {whose} was revoked"
                self._told.append(LinkEvent(link.peer, LinkState.REFUSED, reason))

    def knows(self, peer: bytes) -> bool:
        """Return whether there is a way to this peer, connected or not."""
        link = self._links.get(peer)
        return link is not None and link.socket is not None

    def is_connected(self, peer: bytes) -> bool:
        """Return whether the peer has shown its key and no end of the connection is known."""
        link = self._links.get(peer)
        return link is not None and link.is_up

    def queued(self, peer: bytes) -> tuple[int, int]:
        """Return (messages, bytes) that wait for a peer, beside libzmq's own small ones."""
        link = self._links.get(peer)
        return (0, 0) if link is None else (len(link.backlog), link.queued_bytes())

    # -- sending -----------------------------------------------------------------------------------

    def send(self, peer: bytes, header: bytes, payloads: Sequence[Payload] = ()) -> bool:
        """Send one message, or keep it until the peer is ready.

        Payloads of 64 KiB and more are not copied: they must not change any more.

        Returns False where it was not accepted: no such peer, it has refused us, or as much waits
        for it as may. An accepted message arrives, or DISCONNECTED is told.

        Raises LocalProtocolError where it is larger than a link carries.
        """
        link = self._links.get(peer)
        if link is None or link.socket is None:
            return False
        size = len(header)
        for payload in payloads:
            size += len(payload)
        if size >= ZERO_COPY_BYTES_MIN:
            check_size(header, payloads, size)
            if link.queued_bytes() + size > self._backlog_bytes_max:
                return False
        if link.is_up:
            # Whoever sends much without looking at events() keeps libzmq busy all the same.
            if len(link.backlog) % _FLUSH_EVERY == _FLUSH_EVERY - 1:
                self._flush(link)
            if not link.backlog and self._write(link, header, payloads):
                return True
        if (
            len(link.backlog) >= LINK_BACKLOG_MESSAGES_MAX
            or link.queued_bytes() + size > self._backlog_bytes_max
        ):
            return False
        link.backlog.append((header, tuple(payloads), size))
        link.backlog_bytes += size
        return True

    def _write(self, link: _Link, header: bytes, payloads: Sequence[Payload]) -> bool:
        """Hand a message to libzmq; False where its queue is full or there is no connection."""
        socket = link.socket
        assert socket is not None
        more = len(payloads)
        try:
            _send(socket, header, _MORE if more else _DONTWAIT)
        except zmq.Again:
            # libzmq looks for news of the reader once a millisecond, unless it is asked.
            if not int(socket.get(zmq.EVENTS)) & _POLLOUT:
                return False
            try:
                _send(socket, header, _MORE if more else _DONTWAIT)
            except zmq.Again:
                return False
        try:
            for payload in payloads:
                more -= 1
                flags = _MORE if more else _DONTWAIT
                size = len(payload)
                if size < ZERO_COPY_BYTES_MIN:
                    _send(socket, payload, flags)
                    continue
                tracker = _send(socket, payload, flags, False, True)
                assert tracker is not None
                link.large.append((tracker, size))
                link.large_bytes += size
        except zmq.Again:
            # Between two frames only the end of the connection says this; libzmq has taken the
            # first frames back, and DISCONNECTED is about to tell.
            return True
        return True

    def _flush(self, link: _Link) -> None:
        backlog = link.backlog
        while backlog:
            header, payloads, size = backlog[0]
            if not self._write(link, header, payloads):
                return
            backlog.popleft()
            link.backlog_bytes -= size

    # -- events ------------------------------------------------------------------------------------

    def events(self) -> list[LinkEvent]:
        """Return what has become of links since the last call, and send on what has waited."""
        told, self._told = self._told, []
        ready = {self._by_descriptor[descriptor] for descriptor, _ in self._poller.poll(0)}
        for link in ready:
            self._attend(link, told)
        return told

    def _attend(self, link: _Link, told: list[LinkEvent]) -> None:
        socket, monitor = link.socket, link.monitor
        # A socket that was replaced takes its further events with it.
        while link.socket is socket and monitor is not None:
            event = read_event(monitor)
            if event is None:
                break
            kind, _value = event
            if kind == _SUCCEEDED:
                link.is_up = True
                link.up_since = time.monotonic()
                link.keys_tried = 0
                told.append(LinkEvent(link.peer, LinkState.CONNECTED))
            elif kind == _DISCONNECTED and link.is_up:
                self._disconnected(link, told)
            elif kind == _DISCONNECTED:
                self._handshake_failed(link, told)
            else:
                link.denied = _DENIED[kind]
        if link.socket is socket and socket is not None:
            socket.get(zmq.EVENTS)  # Or the descriptor would go on calling.
            if link.is_up:
                self._flush(link)

    def _disconnected(self, link: _Link, told: list[LinkEvent]) -> None:
        told.append(LinkEvent(link.peer, LinkState.DISCONNECTED))
        self._hang_up(link)
        is_short = time.monotonic() - link.up_since < _SHORT_LIFE_S
        link.short_lives = link.short_lives + 1 if is_short else 0
        if link.short_lives < _SHORT_LIVES_MAX:
            self._dial_again(link, told, anew=True)
            return
        reason = "it ends every connection as soon as it is made: our name is another's there"
        told.append(LinkEvent(link.peer, LinkState.REFUSED, reason))

    def _handshake_failed(self, link: _Link, told: list[LinkEvent]) -> None:
        link.keys_tried += 1
        # Whoever denies us could read what we said: that was the right key of it.
        if not link.denied and link.keys_tried < len(link.server_keys):
            link.key_number = (link.key_number + 1) % len(link.server_keys)
            self._close_socket(link)
            self._dial_again(link, told)
            return
        link.keys_tried = 0
        if not link.denied and self._keys_changed(link):
            self._close_socket(link)
            self._dial_again(link, told)
            return
        reason = link.denied or "the handshake broke off: it has another key, or is no port of zray"
        told.append(LinkEvent(link.peer, LinkState.REFUSED, reason))
        if link.denied:
            self._hang_up(link)

    def _keys_changed(self, link: _Link) -> bool:
        """Look up what a peer that has none of the keys we know may show by now."""
        before, number = link.server_keys, link.key_number
        with contextlib.suppress(SecurityError):
            self._look_up_keys(link)
        if set(link.server_keys) != set(before):
            return True
        link.server_keys, link.key_number = before, number
        return False

    def _dial_again(self, link: _Link, told: list[LinkEvent], *, anew: bool = False) -> None:
        try:
            if anew:
                self._look_up_keys(link)  # It may have changed them since.
            self._dial(link)
        except SecurityError as error:  # Our own key was taken from us meanwhile, or the peer's.
            self._hang_up(link)
            told.append(LinkEvent(link.peer, LinkState.REFUSED, str(error)))

    def _dial(self, link: _Link) -> None:
        """Begin a stream: a fresh socket under a fresh token.

        libzmq dials again by itself until a handshake succeeds; what it might do after a connection
        has ended, the peer's inbox refuses by the token.
        """
        pair = None if self._keys is None else self._keys.pair(self._role)
        socket = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, LINK_QUEUE_MESSAGES_MAX)
        socket.setsockopt(zmq.RCVHWM, 1)
        socket.setsockopt(zmq.MAXMSGSIZE, _ANSWER_BYTES_MAX)
        # No queue without a connection: it would go to whoever answers there next.
        socket.setsockopt(zmq.IMMEDIATE, 1)
        socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, _RECONNECT_MS_MAX)
        socket.setsockopt(zmq.HANDSHAKE_IVL, int(HELLO_TIMEOUT_S * 1000))
        socket.setsockopt(zmq.TCP_MAXRT, _UNACKNOWLEDGED_MS)
        keep_alive(socket)
        announce(socket, self._own, os.urandom(_TOKEN_BYTES))
        if pair is not None:
            secure_client(socket, pair, link.server_keys[link.key_number])
        is_ipv6 = dials_ipv6(link.endpoint, by_name=self._ipv6_names)
        socket.setsockopt(zmq.IPV6, int(is_ipv6))
        events = _SUCCEEDED | _DISCONNECTED
        for event in _DENIED:
            events |= event
        link.socket = socket
        link.monitor = open_monitor(self._context, socket, events)
        link.denied = ""
        for each in (socket, link.monitor):
            descriptor = int(each.get(zmq.FD))
            self._by_descriptor[descriptor] = link
            self._poller.register(descriptor, READABLE)
        socket.connect(link.endpoint)

    def _hang_up(self, link: _Link) -> None:
        self._close_socket(link)
        link.is_up = False
        link.forget_queued()

    def _close_socket(self, link: _Link, linger_ms: int = 0) -> None:
        socket, monitor = link.socket, link.monitor
        link.socket = link.monitor = None
        if socket is None or monitor is None:
            return
        for each in (socket, monitor):
            descriptor = int(each.get(zmq.FD))
            self._poller.unregister(descriptor)
            del self._by_descriptor[descriptor]
        close_monitored(socket, monitor, linger_ms)

    def drop(self, peer: bytes) -> None:
        """Close the way to a peer and forget what waits for it."""
        link = self._links.pop(peer, None)
        if link is not None:
            self._close_socket(link)

    def close(self, linger_ms: int = 0) -> None:
        """Close all; what libzmq has taken gets ``linger_ms`` to leave."""
        for link in self._links.values():
            if link.is_up:
                self._flush(link)
            self._close_socket(link, linger_ms)
        self._links.clear()
        self._poller.close()


def check_size(header: bytes, payloads: Sequence[Payload], size: int) -> None:
    """Raise LocalProtocolError where a message is larger than a link carries."""
    largest = max(len(header), *map(len, payloads)) if payloads else len(header)
    if size > LINK_MESSAGE_BYTES_MAX or largest > LINK_FRAME_BYTES_MAX:
        raise LocalProtocolError(
            f"a message of {size} bytes with a frame of {largest}: a link carries"
            f" {LINK_MESSAGE_BYTES_MAX} and {LINK_FRAME_BYTES_MAX}; send objects by the bulk port"
        )
