"""Objects between nodes: the machine that asks for chunks, and that sends them to who asks.

What    The two sides of one node, joined: transfer_pulls.py asks, transfer_serving.py answers. A
        node that pulls an object serves the chunks it has, so a broadcast is a pipeline: every
        node is a source for the others before it has the whole.
Caller  brokers/bulk.py, tests.
Never   touches memory, sockets or the clock.

Every want ends in exactly one Arrived or Failed. Every extent that was allocated for one is the
node's by Arrived, or comes back by FreeExtent when ZeroMQ has let go of it. What the node
answers to Locate is pinned until Unpin. The directory of the object's home gives the sources:
at least one complete holder, and beside it any that are on their way to be one.
"""

from __future__ import annotations

from collections.abc import Iterable

from zray.protocol.chunks import Ask, Chunk, Drop, Gone, Have, Message
from zray.protocol.ids import ObjectId

from .transfer_pulls import WINDOW_BYTES, Pulls
from .transfer_serving import Serving
from .transferring import Command, Peer, Priority

TICK_S = 0.5
"""tick() is due this often while anything is pulled or served."""


class Transfer:
    """All transfers of one node.

    Args:
        own: this node's name among its peers.
        budget_bytes: sum of the lengths of the objects that are pulled at a time; one that is
            larger is pulled alone.
        window_bytes: what may be asked of one source and not be here yet.
    """

    def __init__(self, own: Peer, budget_bytes: int, *, window_bytes: int = WINDOW_BYTES) -> None:
        self._commands: list[Command] = []
        emit = self._commands.append
        self.serving = Serving(emit, self.is_wanted)
        self.pulls = Pulls(own, budget_bytes, window_bytes, emit=emit, serving=self.serving)

    @property
    def idle(self) -> bool:
        """Whether nothing depends on the time: tick() may be left out."""
        return not self.pulls.by_number and not self.serving.readers

    def is_wanted(self, identity: ObjectId) -> bool:
        """Return whether this object is being pulled, or waits to be."""
        return identity in self.pulls.by_object

    def take(self, now: float) -> list[Command]:
        """Return what is to be done, in order; to be called after every batch of events.

        Args:
            now: seconds of a monotonic clock, as everywhere here.
        """
        self.pulls.admit(now)
        self.pulls.flush(now)
        self.serving.flush()
        commands = self._commands.copy()
        self._commands.clear()  # Cleared, not replaced: both sides hold its append.
        return commands

    # -- from the node ---------------------------------------------------------------------------

    def want(
        self,
        identity: ObjectId,
        nbytes: int,
        sources: Iterable[Peer],
        priority: Priority,
        now: float,
    ) -> None:
        """Pull an object; once more for the same one adds sources and raises its priority.

        Args:
            identity: the object, 16 bytes.
            nbytes: its length, at least 1.
            sources: nodes that have it, or are pulling it.
            priority: why; a get goes before an argument, an argument before a prefetch.
            now: the time.
        """
        if nbytes < 1:
            raise ValueError(f"an object of {nbytes} bytes is not pulled")
        self.pulls.want(identity, nbytes, sources, priority, now)

    def cancel(self, identity: ObjectId) -> None:
        """Nobody waits for it any more: it ends as Failed, unless it has arrived."""
        self.pulls.cancel(identity)

    def allocated(self, pull: int, offset: int, fresh: bool, now: float) -> None:
        """Answer Allocate with an extent; `fresh`: its pages must be committed before use."""
        self.pulls.allocated(pull, offset, fresh, now)

    def refused(self, pull: int, reason: str) -> None:
        """Answer Allocate: there is no memory."""
        self.pulls.refused(pull, reason)

    def located(self, identity: ObjectId, offset: int, nbytes: int) -> None:
        """Answer Locate: it is here, complete, and pinned until Unpin."""
        self.serving.located(identity, offset, nbytes)

    def absent(self, identity: ObjectId, reason: str) -> None:
        """Answer Locate: it is not here."""
        self.serving.absent(identity, reason)

    def node_died(self, peer: Peer) -> None:
        """Neither ask that node nor send to it any more."""
        self.pulls.node_died(peer)
        self.serving.node_died(peer)

    # -- from the bulk thread --------------------------------------------------------------------

    def received(self, peer: Peer, message: Message, now: float, *, is_source: bool = True) -> None:
        """Take a message other than CHUNK from a node; is_source: chunks may be taken from it."""
        match message:
            case Ask():
                if is_source:
                    self.pulls.met(peer, message.object, now)
                self.serving.ask(peer, message, now)
            case Have(pull, refused, gained):
                self.pulls.have(peer, pull, refused, gained, now)
            case Gone(pull, reason):
                self.pulls.gone(peer, pull, reason)
            case Drop(pull):
                self.serving.drop(peer, pull)
            case Chunk():
                raise TypeError("a chunk is destination(), then chunk() or broken()")

    def destination(self, pull: int, chunk: int) -> tuple[int, int, bool] | None:
        """Return (offset, bytes, fresh) where a chunk's bytes go; None: throw them away."""
        return self.pulls.destination(pull, chunk)

    def chunk(self, peer: Peer, pull: int, chunk: int, now: float) -> None:
        """A chunk has come, and is where destination() said, or was thrown away as it said."""
        self.pulls.chunk(peer, pull, chunk, now)

    def broken(self, peer: Peer, pull: int, reason: str) -> None:
        """What came from this source for this pull is not what was asked for."""
        self.pulls.gone(peer, pull, reason, tell=True)

    def unwritable(self, pull: int, reason: str) -> None:
        """There is no memory behind the extent of this pull."""
        self.pulls.unwritable(pull, reason)

    def sent(self, serial: int) -> None:
        """ZeroMQ has let go of the bytes of the SendChunk with this serial."""
        self.serving.sent(serial)

    def tick(self, now: float) -> None:
        """Look for what is late; every TICK_S while not idle."""
        self.pulls.tick(now)
        self.serving.tick(now)

    def check(self) -> None:
        """Assert every invariant of both sides."""
        self.pulls.check()
        self.serving.check()
        for pull in self.pulls.by_number.values():
            copy = self.serving.copies.get(pull.object)
            assert pull.copy is None or copy is not None, "chunks that nobody can read"
