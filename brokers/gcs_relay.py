"""The head's part in the GCS: its process, and the sessions of other nodes carried to it.

What    GcsRelay brings what nodes say by their links (GCS_CALL) to the GCS process, with the name
        and role that the link has proven, and takes its words to them (GCS_ANSWER). It says when a
        link has taken them, so that the GCS never sends more than a window ahead; when a link has
        ended, which is no death; and when nobody listens any more where it led, which is one.
        Who is no member, since it was declared dead, is a visitor: it hears so from the GCS.
Caller  brokers/cluster.py; brokers/link_rules.py for what comes by links.
Never   opens a frame that it carries; keeps one for a GCS that is not there: sessions repeat.
"""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zray.errors import RemoteProtocolError
from zray.net.gcs_link import GcsPeer
from zray.net.link_inbox import Sender
from zray.net.probe import Prober
from zray.protocol import link_messages
from zray.protocol.ids import NodeId
from zray.protocol.roles import Role, may_claim

from .gcs.relayed import DEAD, TAKEN, UNLINKED, WINDOW_BYTES, WINDOW_FRAMES, news
from .gcs.wire import is_renewal
from .gcs_frames import Assembly, pieces
from .gcs_process import GcsProcess

if TYPE_CHECKING:
    from .cluster import Cluster

_BATCH_FRAMES = 1000
_UNHEARD_BYTES_MAX = 64 << 20
"""So much is sent to a GCS that says nothing; what comes then is dropped, and repeated later."""
_SLOW_S = 0.005
"""Between two looks at a link that had no room for more."""
_UNTOLD_MAX = 1000
_VISITORS_MAX = 256
_LINGER_MS = 200


@dataclass(frozen=True, slots=True)
class _Visitor:
    """A node that has greeted us and was not let in."""

    link: bytes
    address: str
    stream: bytes
    role: Role


class _Taken:
    """What a node's link was given and the GCS has not been told of."""

    __slots__ = ("frames", "nbytes")

    def __init__(self) -> None:
        self.frames = 0
        self.nbytes = 0

    @property
    def is_much(self) -> bool:
        return self.frames >= WINDOW_FRAMES // 4 or self.nbytes >= WINDOW_BYTES // 4


class GcsRelay:
    """The GCS process of a head node, and the way to it.

    Args:
        cluster: of this node.

    Raises:
        NodeStartError: the GCS did not start.
        OSError: the directory's path is too long for a socket.
    """

    def __init__(self, cluster: Cluster) -> None:
        node = cluster.node
        self._cluster = cluster
        self._node = node
        self.process = GcsProcess(
            os.path.join(node.directory, "cluster-gcs"), watch=node.watch, unwatch=node.unwatch
        )
        self._peer = GcsPeer(self.process.endpoint, node.process)
        self._prober = Prober(node.wake.set)
        self._visitors: dict[NodeId, _Visitor] = {}
        self._incoming: dict[NodeId, Assembly] = {}
        self._taken: dict[NodeId, _Taken] = {}
        self._waiting: dict[NodeId, deque[tuple[int, int, bytes]]] = {}
        """What the GCS has said to nodes whose links had no room: a window at the most."""
        self._untold: deque[tuple[bytes, bytes]] = deque(maxlen=_UNTOLD_MAX)
        """News that the GCS could not be given yet; a new GCS misses nothing by the oldest."""
        self._unheard_bytes = 0
        self._more = True
        node.watch(self._peer.descriptor, self._readable)

    def _readable(self) -> None:
        self._more = True

    # -- to the GCS ------------------------------------------------------------------------------

    def send(self, *frames: bytes) -> bool:
        """Send what this node's own session says, or [peer, role, frame]; False: not just now."""
        if self._unheard_bytes > _UNHEARD_BYTES_MAX or self._untold:
            return False
        if not self._peer.send(*frames):
            return False
        self._unheard_bytes += len(frames[-1])
        return True

    def call(self, sender: Sender, offset: int, nbytes: int, piece: bytes) -> None:
        """GCS_CALL: a piece of what another node says to the GCS.

        Args:
            sender: who has sent it, as its link has proven.
            offset: of the piece in its frame.
            nbytes: of the whole frame.
            piece: the bytes.

        Raises:
            RemoteProtocolError: it has not greeted us, or no frame may be as large.
        """
        peer = sender.peer
        greeted = self._cluster.members.get(peer) or self._visitors.get(peer)
        if greeted is None or not may_claim(sender.role, greeted.role):
            raise RemoteProtocolError("GCS_CALL before LINK_HELLO")
        frame = self._incoming.setdefault(peer, Assembly()).take(offset, nbytes, piece)
        if frame is not None:
            self.send(peer, greeted.role.value.encode(), frame)

    def _tell(self, kind: int, peer: NodeId, taken: _Taken | None = None) -> None:
        frames, nbytes = (0, 0) if taken is None else (taken.frames, taken.nbytes)
        self._untold.append((b"", news(kind, peer, frames, nbytes)))
        self._tell_untold()

    def _tell_untold(self) -> None:
        while self._untold and self._peer.send(*self._untold[0]):
            self._untold.popleft()

    # -- links -----------------------------------------------------------------------------------

    def _link_of(self, peer: NodeId) -> bytes | None:
        member = self._cluster.members.get(peer)
        if member is not None:
            return member.link
        visitor = self._visitors.get(peer)
        return None if visitor is None else visitor.link

    def visited(self, sender: Sender, address: str, role: Role) -> None:
        """A node has greeted us that is no member: the GCS may have something to tell it."""
        peer = sender.peer
        self._drop_visitor(peer)
        while len(self._visitors) >= _VISITORS_MAX:
            self._visit_ended(next(iter(self._visitors)))
        link = b"visitor " + peer
        self._visitors[peer] = _Visitor(link, address, sender.stream, role)
        # The keys of nodes are known; those of others are on the lists of few.
        shown = [sender.key] if sender.key and role is not Role.NODE else []
        self._cluster.links.connect(link, address, shown)

    def welcomed(self, peer: NodeId) -> None:
        """A node is a member now, with a link of its own."""
        self._drop_visitor(peer)

    def _drop_visitor(self, peer: NodeId) -> _Visitor | None:
        visitor = self._visitors.pop(peer, None)
        if visitor is not None:
            self._cluster.links.drop(visitor.link)
        return visitor

    def departed(self, sender: Sender) -> None:
        """A stream of somebody who is no member has ended."""
        visitor = self._visitors.get(sender.peer)
        if visitor is not None and visitor.stream == sender.stream:
            self._visit_ended(sender.peer)

    def _visit_ended(self, peer: NodeId) -> None:
        visitor = self._drop_visitor(peer)
        if visitor is not None:
            self.link_ended(peer, visitor.address)

    def link_ended(self, peer: NodeId, address: str) -> None:
        """The link to a node is gone, and what was on its way there; is the node, too?"""
        self._incoming.pop(peer, None)
        self._taken.pop(peer, None)
        self._waiting.pop(peer, None)
        self._tell(UNLINKED, peer)
        self._prober.ask(peer, address)

    # -- from the GCS ----------------------------------------------------------------------------

    @property
    def due_s(self) -> float:
        """In how many seconds serve() wants to be called, whatever is readable."""
        # Sending on the socket may have swallowed the edge of what has come.
        if self._more or self._peer.has_message():
            self._more = True
            return 0.0
        return min(self.process.due_s, _SLOW_S if self._waiting or self._untold else 60.0)

    def serve(self) -> None:
        """Hand on what the GCS has said, and tell it what has become of links."""
        self.process.tick(self._node.now)
        for peer in self._prober.take_gone():
            if self._link_of(peer) is None:  # Else it is there again.
                self._tell(DEAD, peer)
        self._tell_untold()
        if self._more:
            self._more = False
            for _ in range(_BATCH_FRAMES):
                frames = self._peer.receive()
                if frames is None:
                    break
                self._heard(frames)
            else:
                self._more = True
        for peer in list(self._waiting):
            self._send_waiting(peer)

    def _heard(self, frames: list[bytes]) -> None:
        self._unheard_bytes = 0
        gcs = self._cluster.gcs
        if len(frames) == 2:
            self._answer(*frames)
        elif gcs is not None:
            gcs.received(frames[0])

    def _answer(self, peer: NodeId, frame: bytes) -> None:
        if self._link_of(peer) is None:
            return  # The GCS has been told, or is about to be, that it has ended.
        waiting = self._waiting.setdefault(peer, deque())
        if is_renewal(frame):
            waiting.appendleft((0, len(frame), frame))
        else:
            waiting.extend((offset, len(frame), piece) for offset, piece in pieces(frame))
        self._send_waiting(peer)

    def _send_waiting(self, peer: NodeId) -> None:
        """Hand to a link what it has room for; what else it carries goes in between."""
        cluster, link = self._cluster, self._link_of(peer)
        waiting = self._waiting[peer]
        taken = self._taken.setdefault(peer, _Taken())
        while waiting and link is not None and not cluster.is_clogged(link):
            offset, nbytes, piece = waiting.popleft()
            message = (link_messages.GCS_ANSWER, offset, nbytes)
            if not cluster.send_by(link, *message, payloads=(piece,)):
                cluster.overflowed.add(peer)
            taken.nbytes += len(piece)
            taken.frames += offset + len(piece) == nbytes
        if not waiting:
            del self._waiting[peer]
        if taken.is_much:
            self._tell(TAKEN, peer, self._taken.pop(peer))

    def close(self) -> None:
        """Hang up and end the GCS process, in order."""
        self._node.unwatch(self._peer.descriptor)
        self._peer.close(_LINGER_MS)
        self.process.stop()
