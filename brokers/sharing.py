"""What the object directory commands, and what it keeps of one shared object.

What    The vocabulary of directory.py. Some commands are for this node's processes and memory,
        the others for other nodes and for the bulk thread.
Caller  brokers/directory.py; node_commands.py and objects_elsewhere.py perform the commands.
Never   has behaviour.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from zray.protocol import outcome
from zray.protocol.ids import NodeId, ObjectId, ProcessId

# -- on this node ----------------------------------------------------------------------------------


@dataclass(slots=True)
class Locate:
    """Tell a process the outcome of an object."""

    process: ProcessId
    object: ObjectId
    outcome: bytes


@dataclass(slots=True)
class FreeExtent:
    """Nobody can read this extent any more."""

    offset: int


@dataclass(slots=True)
class DeleteSpilled:
    """Nobody needs this spilled copy."""

    object: ObjectId
    file: Any


@dataclass(slots=True)
class Restore:
    """Somebody waits for a spilled object: bring it back into memory."""

    object: ObjectId


@dataclass(slots=True)
class Unreferenced:
    """No handle of this actor is left."""

    actor: ObjectId


# -- between nodes ---------------------------------------------------------------------------------


@dataclass(slots=True)
class HoldAt:
    """A foreign object is held here from now on: its home must know."""

    object: ObjectId


@dataclass(slots=True)
class ReleaseAt:
    """Give up this node's hold of an object at another node."""

    node: NodeId
    object: ObjectId


@dataclass(slots=True)
class LocateAt:
    """Somebody waits for a foreign object: ask its home."""

    object: ObjectId
    purpose: int


@dataclass(slots=True)
class StoredHere:
    """An object of another node's process lies here; nbytes -1: only what it contains does."""

    object: ObjectId
    nbytes: int
    holder: ProcessId


@dataclass(slots=True)
class CopyGone:
    """The copy of a foreign object that its home may believe to be here is not: tell it."""

    object: ObjectId


@dataclass(slots=True)
class Found:
    """Answer another node's LOCATE: an outcome, or where the value lies."""

    node: NodeId
    object: ObjectId
    outcome: bytes | None
    nbytes: int
    sources: tuple[NodeId, ...]


@dataclass(slots=True)
class Pull:
    """Bring an object here from nodes that have it, or are about to; again: it is urgent now."""

    object: ObjectId
    nbytes: int
    sources: tuple[NodeId, ...]
    purpose: int


@dataclass(slots=True)
class CancelPull:
    """Nobody waits for an object that is on its way here."""

    object: ObjectId


@dataclass(slots=True)
class Serve:
    """Answer the bulk thread: an object lies here, and may be sent to others."""

    object: ObjectId
    offset: int
    nbytes: int


@dataclass(slots=True)
class Absent:
    """Answer the bulk thread: an object cannot be sent from here."""

    object: ObjectId


Command = (
    Locate
    | FreeExtent
    | DeleteSpilled
    | Restore
    | Unreferenced
    | HoldAt
    | ReleaseAt
    | LocateAt
    | StoredHere
    | CopyGone
    | Found
    | Pull
    | CancelPull
    | Serve
    | Absent
)


class Entry:
    """One shared object."""

    __slots__ = (
        "asked",
        "contained",
        "copies",
        "failures",
        "file",
        "held_at_home",
        "holders",
        "is_actor",
        "kept_at",
        "known",
        "nbytes",
        "offset",
        "outcome",
        "pinned",
        "places",
        "pulling",
        "registered",
        "restoring",
        "waiters",
    )

    def __init__(self) -> None:
        self.outcome: bytes | None = None
        self.offset = -1
        self.nbytes = 0
        self.file: Any = None
        self.holders: dict[bytes, int] = {}
        """Units by process or node (8 bytes) or containing object (16 bytes); never zero."""
        self.contained: list[ObjectId] = []
        self.pinned: set[ProcessId] = set()
        self.waiters: dict[ProcessId, int] = {}
        """Processes, other nodes, and this node itself where its bulk thread waits; each with the
        most urgent purpose (zray/protocol/purposes.py) that it has asked for."""
        self.is_actor = False
        self.known = False
        """Whether its owner has told of it, or who made it: a hold alone brings nothing back."""
        self.restoring = False
        self.registered: ProcessId | None = None
        """The owner, while it has not given up what was made for it: one hold, however often a
        task was run to make it. A crash may lose word of one execution and not of another."""
        self.copies: list[int] = []
        """Extents that second executions wrote: somebody may have been told of one of them."""
        self.held_at_home = False
        """Of a foreign object: its home counts this node as a holder."""
        self.asked: int | None = None
        """Of a foreign object: for which purpose its home was asked and has not answered."""
        self.kept_at: dict[NodeId, bool] = {}
        """Nodes that keep it, or (False) only what it contains, until we give it up."""
        self.places: dict[NodeId, None] = {}
        """Other nodes that have its value or are about to, in the order in which we heard of it:
        all that its home knows of, or what the home has named to us."""
        self.pulling: int | None = None
        """For which purpose it is on its way here."""
        self.failures = 0
        """Pulls in a row that came to nothing."""

    @property
    def is_elsewhere(self) -> bool:
        """Whether it has a value that is not here, in memory or on disk."""
        is_here = self.offset >= 0 or self.file is not None
        return self.outcome == outcome.ELSEWHERE_OUTCOME and not is_here

    @property
    def is_lost(self) -> bool:
        """Whether nobody that we know of has its value any more, and it is not on its way here."""
        return self.is_elsewhere and not self.places and self.pulling is None
