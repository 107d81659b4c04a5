"""Who speaks to the GCS: by a connection of its own, or through the node beside it.

What    A message of one frame is its connection's own. The head's node brings the frames of all
        other nodes by its connection: [peer, role, frame] comes, [peer, frame] goes. What it says
        of their links is news: [b"", [kind, peer, frames, nbytes]]
            TAKEN       the peer's link has taken so much of what was sent to it
            UNLINKED    its link has ended; what was on its way by it is lost
            DEAD        nobody listens any more where it was reached
        A peer whose link takes nothing has a window: what is beyond it is refused, so that a
        watcher keeps its place in the history, and neither process a queue for it.
Caller  server.py; news() for brokers/gcs_relay.py.
Never   opens a frame that it carries; believes a peer's word for who it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from zray.errors import RemoteProtocolError
from zray.protocol.packing import packb
from zray.protocol.roles import Role

from .wire import is_renewal, unpack_plain

WINDOW_FRAMES = 256
WINDOW_BYTES = 8 << 20
"""So much may be on its way to one relayed peer; the frame that reaches it is the last one."""

RENEWALS_MAX = 64
"""So many answers to beats may be on their way besides."""

RELAY_BYTES_MAX = 64 << 20
"""So much may be on its way by one connection to all its relayed peers."""

PEERS_MAX = 16_384
"""Relayed peers that are remembered; one beyond them is not heard."""

TAKEN, UNLINKED, DEAD = 1, 2, 3
_ROLES = {role.value.encode(): role for role in Role}


class Link(Protocol):
    """What this module needs of a link; see zray/net/gcs_link.py."""

    def receive(self) -> tuple[bytes, list[bytes]] | None:
        """Return (connection, frames), or None."""
        ...

    def broken(self) -> list[bytes]:
        """Return connections that broke since the last call."""
        ...

    def send(self, peer: bytes, *frames: bytes) -> bool:
        """Send one message; False where it was not taken."""
        ...


@dataclass(frozen=True, slots=True)
class Said:
    """One frame of a peer.

    `node` is the id of the node that has sent it, b"" where nobody but itself says which it is.
    """

    peer: bytes
    role: Role
    node: bytes
    frame: bytes


@dataclass(frozen=True, slots=True)
class Ended:
    """The way to a peer has ended: for ever, where it `is_dead`."""

    peer: bytes
    is_dead: bool


@dataclass(slots=True)
class _Relayed:
    """A peer behind a connection, and what is on its way to it."""

    connection: bytes
    frames: int = 0
    nbytes: int = 0


def news(kind: int, peer: bytes, frames: int = 0, nbytes: int = 0) -> bytes:
    """Return the second frame of what the head's node says of a peer's link."""
    return packb((kind, peer, frames, nbytes))


class Peers:
    """All who speak to the GCS, over one link.

    Args:
        link: to them.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._relayed: dict[bytes, _Relayed] = {}
        self._on_the_way: dict[bytes, int] = {}
        """Bytes that are on their way by a connection that brings others."""
        self._has_heard_relay = False

    # -- hearing ---------------------------------------------------------------------------------

    def receive(self) -> Said | Ended | None:
        """Return what comes next of a peer, in order, or None where there is nothing for now.

        Raises:
            RemoteProtocolError: the next message is malformed, and is passed over.
        """
        while (received := self._link.receive()) is not None:
            connection, frames = received
            if connection in self._on_the_way:
                self._has_heard_relay = True
            if len(frames) == 1:
                return Said(connection, Role.NODE, b"", frames[0])
            if len(frames) == 3:
                return self._said(connection, *frames)
            if len(frames) != 2 or frames[0]:
                raise RemoteProtocolError(f"a message of {len(frames)} frames to the GCS")
            ended = self._take_news(connection, frames[1])
            if ended is not None:
                return ended
        return None

    def _said(self, connection: bytes, peer: bytes, role: bytes, frame: bytes) -> Said:
        known = self._relayed.get(peer)
        if known is None or known.connection != connection:
            if not peer or role not in _ROLES or len(self._relayed) >= PEERS_MAX:
                raise RemoteProtocolError(f"a frame of {peer.hex()!r} in the role {role!r}")
            self._relayed[peer] = _Relayed(connection)
            self._on_the_way.setdefault(connection, 0)
            self._has_heard_relay = True
        return Said(peer, _ROLES[role], peer, frame)

    def _take_news(self, connection: bytes, packed: bytes) -> Ended | None:
        kind, peer, frames, nbytes = _read_news(packed)
        known = self._relayed.get(peer)
        if known is not None and known.connection != connection:
            raise RemoteProtocolError(f"news of {peer.hex()}, whom another connection brings")
        if known is not None:
            if kind == TAKEN:
                # Where this process is younger than what was taken, it has sent less than that.
                nbytes = min(nbytes, known.nbytes)
                known.frames = max(0, known.frames - frames)
            else:
                nbytes = known.nbytes
                del self._relayed[peer]
            known.nbytes -= nbytes
            self._on_the_way[connection] -= nbytes
        return None if kind == TAKEN else Ended(peer, kind == DEAD)

    def broken(self) -> list[Ended]:
        """Return whose ways have broken since the last call; to be called before receive()."""
        ended: list[Ended] = []
        for connection in self._link.broken():
            ended.append(Ended(connection, is_dead=True))
            if self._on_the_way.pop(connection, None) is None:
                continue
            brought = [peer for peer, one in self._relayed.items() if one.connection == connection]
            for peer in brought:
                del self._relayed[peer]
                ended.append(Ended(peer, is_dead=False))
        return ended

    def take_relay_heard(self) -> bool:
        """Return whether who brings the others has been heard since the last call."""
        heard, self._has_heard_relay = self._has_heard_relay, False
        return heard

    # -- saying ----------------------------------------------------------------------------------

    def send(self, peer: bytes, frame: bytes) -> bool:
        """Send one frame; False where the peer is gone or takes no more for now."""
        known = self._relayed.get(peer)
        if known is None:
            return self._link.send(peer, frame)
        on_the_way = self._on_the_way[known.connection]
        is_full = known.frames >= WINDOW_FRAMES or known.nbytes >= WINDOW_BYTES
        # A lease must not end because a large answer is under way to who has it.
        goes_first = is_renewal(frame) and known.frames < WINDOW_FRAMES + RENEWALS_MAX
        if not goes_first and (is_full or on_the_way >= RELAY_BYTES_MAX):
            return False
        if not self._link.send(known.connection, peer, frame):
            return False
        known.frames += 1
        known.nbytes += len(frame)
        self._on_the_way[known.connection] = on_the_way + len(frame)
        return True

    def check(self) -> None:
        """Raise AssertionError where an invariant does not hold."""
        sums = dict.fromkeys(self._on_the_way, 0)
        for peer, known in self._relayed.items():
            assert 0 <= known.frames <= WINDOW_FRAMES + RENEWALS_MAX, peer.hex()
            assert known.nbytes >= 0, peer.hex()
            sums[known.connection] += known.nbytes
        assert sums == self._on_the_way


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


_NEWS: tuple[Callable[[Any], bool], ...] = (
    lambda kind: kind in (TAKEN, UNLINKED, DEAD),
    lambda peer: type(peer) is bytes,
    _count,
    _count,
)


def _read_news(packed: bytes) -> tuple[int, bytes, int, int]:
    fields = unpack_plain(packed)
    if type(fields) is not list or len(fields) != len(_NEWS):
        raise RemoteProtocolError("news of a link are four fields")
    if not all(check(field) for check, field in zip(_NEWS, fields, strict=True)):
        raise RemoteProtocolError("news of a link with a malformed field")
    kind, peer, frames, nbytes = fields
    return kind, peer, frames, nbytes
