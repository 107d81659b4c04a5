"""What the transfer machine commands, and the copy of an object that its two sides share.

What    The vocabulary of transfer.py. Some commands are for the node's loop (memory, the
        directory, those who wait), the others for the bulk thread (sockets).
Caller  brokers/transfer.py, transfer_pulls.py, transfer_serving.py, bulk.py; the node reads the
        commands that bulk.py hands on.
Never   has behaviour.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from zray.protocol.chunks import Message
from zray.protocol.ids import ObjectId

if TYPE_CHECKING:
    from .transfer_serving import Reader

Peer = bytes
"""A node's bulk socket: its routing id, another one after every restart of the node."""


class Priority(IntEnum):
    """Why an object is pulled; the lower goes first."""

    GET = 0
    ARGUMENT = 1
    PREFETCH = 2


# -- for the node --------------------------------------------------------------------------------


@dataclass(slots=True)
class Allocate:
    """A pull needs an extent: answer with allocated(pull, ...) or refused(pull, ...)."""

    pull: int
    object: ObjectId
    nbytes: int
    priority: Priority


@dataclass(slots=True)
class FreeExtent:
    """Nobody reads or writes this extent of a pull that came to nothing."""

    offset: int


@dataclass(slots=True)
class Arrived:
    """The object is complete in its extent, which is the node's from now on.

    Attributes:
        object: which.
        offset: where its extent begins, in bytes.
        nbytes: its length.
        pinned: chunks of it are being sent on; the extent must stay until Unpin names the object.
    """

    object: ObjectId
    offset: int
    nbytes: int
    pinned: bool


@dataclass(slots=True)
class Failed:
    """The pull is over without the object; `reason` is a sentence for people."""

    object: ObjectId
    reason: str


@dataclass(slots=True)
class Locate:
    """Another node asks for this object: pin it, answer located(...), or answer absent(...)."""

    object: ObjectId
    nbytes: int


@dataclass(slots=True)
class Unpin:
    """An object that was located, or arrived pinned, is no longer served."""

    object: ObjectId
    offset: int


# -- for the bulk thread -------------------------------------------------------------------------


@dataclass(slots=True)
class Send:
    """A message without bytes behind it."""

    peer: Peer
    message: Message


@dataclass(slots=True)
class SendChunk:
    """Bytes [offset, offset + nbytes) of the segment; sent(serial) when ZeroMQ has let them go."""

    peer: Peer
    pull: int
    chunk: int
    offset: int
    nbytes: int
    serial: int


NodeCommand = Allocate | FreeExtent | Arrived | Failed | Locate | Unpin
Command = NodeCommand | Send | SendChunk


class Copy:
    """An object in this node's segment, complete or on its way in."""

    __slots__ = ("closed", "count", "nbytes", "object", "offset", "present", "readers", "sending")

    def __init__(
        self, identity: ObjectId, offset: int, nbytes: int, count: int, *, complete: bool
    ) -> None:
        self.object = identity
        self.offset = offset
        self.nbytes = nbytes
        self.count = count
        self.present: set[int] | None = None if complete else set()
        """Chunks that are there; None: all of them."""
        self.readers: dict[tuple[Peer, int], Reader] = {}
        """Pulls of other nodes that read it."""
        self.sending = 0
        """Chunks of it that ZeroMQ still reads."""
        self.closed = False
        """Its pull came to nothing: the extent is free as soon as nothing is sent from it."""
