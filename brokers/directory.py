"""The object directory: shared objects and actors' references, and who holds them.

What    An entry exists from the moment a reference escapes its process until nobody holds it:
        no process (signed units, because a transfer and a release may cross), no object that
        contains it. A process that was told where an object lies has it pinned there.
Caller  brokers/node.py, tests/sim.
Never   touches memory or files: it says which extent or file is free.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from zray.protocol import outcome
from zray.protocol.ids import NodeId, ObjectId, ProcessId, node_of, owner_of


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


@dataclass(slots=True)
class StoredHere:
    """An object of another node's process lies here; nbytes -1: only what it contains does."""

    object: ObjectId
    nbytes: int
    holder: ProcessId


@dataclass(slots=True)
class Pull:
    """Bring an object here from a node that has it."""

    object: ObjectId
    nbytes: int
    source: NodeId


@dataclass(slots=True)
class Found:
    """Answer another node's LOCATE: an outcome, or where the value lies."""

    node: NodeId
    object: ObjectId
    outcome: bytes | None
    nbytes: int
    source: NodeId | None


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
    | Pull
    | Found
)


class Entry:
    """One shared object."""

    __slots__ = (
        "contained",
        "asked",
        "copies",
        "file",
        "held_at_home",
        "kept_at",
        "pulling",
        "source",
        "holders",
        "is_actor",
        "known",
        "nbytes",
        "offset",
        "outcome",
        "pinned",
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
        """Units by process (8 bytes) or containing object (16 bytes); never zero."""
        self.contained: list[ObjectId] = []
        self.pinned: set[ProcessId] = set()
        self.waiters: set[ProcessId] = set()
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
        self.asked = False
        """Of a foreign object: its home was asked for its value."""
        self.kept_at: set[NodeId] = set()
        """Nodes that keep it, or what it contains, until we give it up."""
        self.source: NodeId | None = None
        """A node that has its value in memory, where it is not here."""
        self.pulling = False


class Directory:
    """All shared objects of one node."""

    def __init__(self, home: NodeId = b"") -> None:
        self.home = home
        """This node; b"" where there are no others."""
        self.entries: dict[ObjectId, Entry] = {}
        self.alive: set[ProcessId] = set()
        self._nodes: set[NodeId] = set()
        self.held_by: dict[ProcessId, set[ObjectId]] = {}
        self.commands: list[Command] = []
        self.owner_died_outcome = b""
        """Set by the node: the outcome of what a dead process never published."""
        self.lost_outcome = b""

    def process_joined(self, process: ProcessId) -> None:
        """Count a process's references from here on."""
        self.alive.add(process)

    def is_foreign(self, identity: ObjectId) -> bool:
        """Return whether another node is this object's home."""
        return bool(self.home) and node_of(identity) != self.home

    def _entry(self, identity: ObjectId) -> Entry:
        entry = self.entries.get(identity)
        if entry is None:
            entry = self.entries[identity] = Entry()
            entry.known = self.is_foreign(identity)  # Its home says whether there is such a one.
        return entry

    def _add(self, identity: ObjectId, entry: Entry, holder: bytes, units: int) -> None:
        if len(holder) == 8 and holder not in self.alive:
            return
        if units > 0 and not entry.held_at_home and self.is_foreign(identity):
            if holder != node_of(identity):  # Its home is told what we keep for it by itself.
                entry.held_at_home = True
                self.commands.append(HoldAt(identity))
        left = entry.holders.get(holder, 0) + units
        if left:
            entry.holders[holder] = left
            if len(holder) == 8:
                self.held_by.setdefault(holder, set()).add(identity)
            return
        entry.holders.pop(holder, None)
        if len(holder) == 8:
            self.held_by.get(holder, set()).discard(identity)
            if entry.registered != holder:
                entry.pinned.discard(holder)

    def _settle(self, identity: ObjectId, entry: Entry) -> None:
        """Drop an entry that nobody holds."""
        if entry.holders or entry.waiters or entry.registered is not None:
            return
        if self.entries.pop(identity, None) is None:
            return
        if entry.is_actor:
            self.commands.append(Unreferenced(identity))
        if entry.held_at_home:
            self.commands.append(ReleaseAt(node_of(identity), identity))
        for node in sorted(entry.kept_at):
            self.commands.append(ReleaseAt(node, identity))
        self._drop_value(identity, entry)

    def _drop_value(self, identity: ObjectId, entry: Entry) -> None:
        if entry.offset >= 0:
            self.commands.append(FreeExtent(entry.offset))
            entry.offset = -1
        copies, entry.copies = entry.copies, []
        self.commands.extend(map(FreeExtent, copies))
        if entry.file is not None:
            self.commands.append(DeleteSpilled(identity, entry.file))
            entry.file = None
        contained, entry.contained = entry.contained, []
        for inner in contained:
            found = self.entries.get(inner)
            if found is not None:
                self._add(inner, found, identity, -1)
                self._settle(inner, found)

    # -- what processes say ----------------------------------------------------------------------

    def share(
        self,
        process: ProcessId,
        identity: ObjectId,
        found: bytes | None,
        contained: list[ObjectId],
        *,
        first: bool,
    ) -> None:
        """SHARE: the owner's reference escapes, or (not ``first``) its outcome has arrived."""
        if first:
            entry = self._entry(identity)
            entry.known = True
            self._add(identity, entry, process, 1)
        else:
            known = self.entries.get(identity)
            if known is None:
                return  # Everybody has let go of it before it had a value.
            entry = known
        if found is not None and entry.outcome is None:
            self._contain(identity, entry, contained)
            self._resolve(identity, entry, found)
        self._settle(identity, entry)

    def _contain(self, identity: ObjectId, entry: Entry, contained: list[ObjectId]) -> None:
        entry.contained.extend(contained)
        for inner in contained:
            self._add(inner, self._entry(inner), identity, 1)

    def register(
        self,
        process: ProcessId,
        identity: ObjectId,
        offset: int,
        nbytes: int,
        contained: list[ObjectId],
        holder: ProcessId,
    ) -> None:
        """REGISTER: an extent holds this sealed object, for ``holder``."""
        entry = self._entry(identity)
        self._hold_result(identity, entry, contained, holder)
        if entry.outcome is not None:
            # A crashed worker had made it before, and may or may not have told its caller: all
            # copies stay until the object goes.
            entry.copies.append(offset)
        else:
            entry.offset, entry.nbytes = offset, nbytes
            self._resolve(identity, entry, outcome.stored(offset, nbytes))
        if node_of(holder) in entry.holders:
            self.commands.append(StoredHere(identity, nbytes, holder))
        self._settle(identity, entry)

    def hold_for(self, identity: ObjectId, contained: list[ObjectId]) -> None:
        """HOLD_FOR: a result that is on its way to its owner by itself holds these."""
        entry = self._entry(identity)
        self._hold_result(identity, entry, contained, owner_of(identity))
        if node_of(identity) in entry.holders:
            self.commands.append(StoredHere(identity, -1, owner_of(identity)))
        self._settle(identity, entry)

    def _hold_result(
        self, identity: ObjectId, entry: Entry, contained: list[ObjectId], owner: ProcessId
    ) -> None:
        entry.known = True
        self._contain(identity, entry, contained)
        if self.is_foreign(identity) and len(owner) == 8 and node_of(owner) != self.home:
            if node_of(identity) not in entry.holders:
                self._add(identity, entry, node_of(identity), 1)
        elif owner in self.alive:
            entry.registered = owner
            entry.pinned.add(owner)

    def _resolve(self, identity: ObjectId, entry: Entry, found: bytes) -> None:
        entry.outcome = found
        waiters, entry.waiters = entry.waiters, set()
        for process in sorted(waiters):
            self._tell(process, identity, entry)

    def _tell(self, process: ProcessId, identity: ObjectId, entry: Entry) -> None:
        assert entry.outcome is not None
        if process in self.nodes:
            nbytes = entry.nbytes if entry.offset >= 0 or entry.source is not None else -1
            source = self.home if entry.offset >= 0 else entry.source
            if entry.offset >= 0 or entry.source is not None:
                self.commands.append(Found(process, identity, None, nbytes, source))
                return
            if entry.file is None:
                self.commands.append(Found(process, identity, entry.outcome, -1, None))
                return
        if entry.offset < 0 and entry.source is not None:
            entry.waiters.add(process)
            if not entry.pulling:
                entry.pulling = True
                self.commands.append(Pull(identity, entry.nbytes, entry.source))
            return
        if entry.file is not None and entry.offset < 0:
            entry.waiters.add(process)
            if not entry.restoring:
                entry.restoring = True
                self.commands.append(Restore(identity))
            return
        if entry.offset >= 0 and (process in entry.holders or process == entry.registered):
            entry.pinned.add(process)
        self.commands.append(Locate(process, identity, entry.outcome))

    # -- other nodes -----------------------------------------------------------------------------

    @property
    def nodes(self) -> set[NodeId]:
        """Other nodes that are there."""
        return self._nodes

    def node_joined(self, node: NodeId) -> None:
        """Count what another node holds, and what it keeps for this one."""
        self._nodes.add(node)
        self.alive.add(node)

    def _ask_home(self, identity: ObjectId, entry: Entry, process: ProcessId) -> None:
        if node_of(identity) not in self._nodes:
            self.commands.append(Locate(process, identity, self.owner_died_outcome))
            return
        entry.waiters.add(process)
        if not entry.asked:
            entry.asked = True
            self.commands.append(LocateAt(identity))

    def found(
        self, identity: ObjectId, found: bytes | None, nbytes: int, source: NodeId | None
    ) -> None:
        """FOUND: the home's answer to LocateAt."""
        entry = self.entries.get(identity)
        if entry is None or entry.outcome is not None:
            return
        entry.asked = False
        if found is None and source is not None:
            entry.nbytes, entry.source = nbytes, source
            found = outcome.ELSEWHERE_OUTCOME
        self._resolve(identity, entry, found if found is not None else self.lost_outcome)

    def stored_at(self, node: NodeId, identity: ObjectId, nbytes: int, holder: ProcessId) -> None:
        """STORED_AT: another node keeps an object of a process of ours, or what it contains."""
        entry = self._entry(identity)
        entry.known = True
        entry.kept_at.add(node)
        if holder in self.alive:
            entry.registered = holder
        if nbytes >= 0 and entry.outcome is None:
            entry.nbytes, entry.source = nbytes, node
            self._resolve(identity, entry, outcome.ELSEWHERE_OUTCOME)
        self._settle(identity, entry)

    def pulled(self, identity: ObjectId, offset: int, nbytes: int) -> None:
        """A copy is here."""
        entry = self.entries.get(identity)
        if entry is None or not entry.pulling:
            self.commands.append(FreeExtent(offset))
            return
        entry.pulling = False
        entry.offset, entry.nbytes, entry.source = offset, nbytes, None
        self._resolve(identity, entry, outcome.stored(offset, nbytes))
        self._settle(identity, entry)

    def pull_failed(self, identity: ObjectId) -> None:
        """The node that had it has it no more, or is gone."""
        entry = self.entries.get(identity)
        if entry is None or not entry.pulling:
            return
        entry.pulling = False
        entry.source = None
        self._resolve(identity, entry, self.lost_outcome)
        self._settle(identity, entry)

    def node_lost(self, node: NodeId) -> None:
        """A node is gone: what it held is free, what only it had is lost."""
        self._nodes.discard(node)
        for entry in self.entries.values():
            entry.kept_at.discard(node)
            if entry.source == node and not entry.pulling:
                entry.source = None
                entry.outcome = self.lost_outcome
        for identity, entry in list(self.entries.items()):
            if node_of(identity) == node and self.is_foreign(identity):
                entry.held_at_home = False
                if entry.outcome is None:
                    self._resolve(identity, entry, self.owner_died_outcome)
        self.process_died(node)

    def knows(self, identities: list[ObjectId]) -> bool:
        """Return whether somebody has told of every one of these."""
        return all(
            self.is_foreign(identity)
            or ((entry := self.entries.get(identity)) is not None and entry.known)
            for identity in identities
        )

    def hold(self, process: ProcessId, identities: list[ObjectId]) -> None:
        """HOLD: the process has a reference to each of these."""
        for identity in identities:
            self._add(identity, self._entry(identity), process, 1)

    def transfer(self, giver: ProcessId, receiver: ProcessId, identities: list[ObjectId]) -> None:
        """TRANSFER: the giver, a holder of each of these, takes a hold for the receiver."""
        for identity in identities:
            entry = self.entries.get(identity)
            if entry is None or not (giver in entry.holders or giver == entry.registered):
                continue  # It claims what it does not have.
            self._add(identity, entry, receiver, 1)
            if entry.offset >= 0 and receiver in entry.holders:
                entry.pinned.add(receiver)
            self._settle(identity, entry)

    def hold_certain(
        self, process: ProcessId, identities: list[ObjectId]
    ) -> list[tuple[ObjectId, bytes | None]]:
        """HOLD as a request: where each lies now, pinned; None: it is gone or not in memory."""
        answers: list[tuple[ObjectId, bytes | None]] = []
        for identity in identities:
            entry = self.entries.get(identity)
            if entry is None and self.is_foreign(identity):
                entry = self._entry(identity)
            if entry is None or not entry.known:
                answers.append((identity, None))
                continue
            self._add(identity, entry, process, 1)
            if entry.outcome is None or (
                entry.offset < 0 and (entry.file is not None or entry.source is not None)
            ):
                answers.append((identity, outcome.ELSEWHERE_OUTCOME))
                continue
            if entry.offset >= 0:
                entry.pinned.add(process)
            answers.append((identity, entry.outcome))
        return answers

    def release(
        self, process: ProcessId, deltas: list[tuple[ObjectId, int]], results: list[ObjectId]
    ) -> None:
        """RELEASE: the process gives up units of each, and what was made for it."""
        for identity, units in deltas:
            entry = self.entries.get(identity)
            if entry is None:
                continue
            self._add(identity, entry, process, -units)
            self._settle(identity, entry)
        for identity in results:
            entry = self.entries.get(identity)
            if entry is not None and entry.registered == process:
                entry.registered = None
                if process not in entry.holders:
                    entry.pinned.discard(process)
                self._settle(identity, entry)

    def locate(self, process: ProcessId, identities: list[ObjectId]) -> None:
        """LOCATE: tell the process each outcome, when it is there."""
        for identity in identities:
            entry = self.entries.get(identity)
            if entry is None or not entry.known:
                if process in self.nodes:
                    self.commands.append(Found(process, identity, self.lost_outcome, -1, None))
                    continue
                alive = owner_of(identity) in self.alive
                self.commands.append(
                    Locate(
                        process, identity, self.lost_outcome if alive else self.owner_died_outcome
                    )
                )
            elif entry.outcome is None:
                if self.is_foreign(identity):
                    self._ask_home(identity, entry, process)
                elif owner_of(identity) in self.alive:
                    entry.waiters.add(process)
                elif process in self.nodes:
                    found = self.owner_died_outcome
                    self.commands.append(Found(process, identity, found, -1, None))
                else:
                    self.commands.append(Locate(process, identity, self.owner_died_outcome))
            else:
                self._tell(process, identity, entry)

    def process_died(self, process: ProcessId) -> None:
        """Drop all that a dead process held; what it never published is lost."""
        self.alive.discard(process)
        for identity in sorted(self.held_by.pop(process, ())):
            entry = self.entries.get(identity)
            if entry is not None:
                entry.holders.pop(process, None)
                entry.pinned.discard(process)
                entry.waiters.discard(process)
                self._settle(identity, entry)
        for identity, entry in list(self.entries.items()):
            entry.pinned.discard(process)
            entry.waiters.discard(process)
            if entry.registered == process:
                entry.registered = None
            if entry.outcome is None and not entry.is_actor and owner_of(identity) == process:
                self._resolve(identity, entry, self.owner_died_outcome)
            self._settle(identity, entry)

    # -- actors ----------------------------------------------------------------------------------

    def actor_created(self, process: ProcessId, actor: ObjectId) -> None:
        """Count handles of an actor; its creator has the first."""
        entry = self._entry(actor)
        entry.is_actor = entry.known = True
        entry.outcome = b"\0"
        self._add(actor, entry, process, 1)

    # -- spilling --------------------------------------------------------------------------------

    def stored(self) -> list[tuple[ObjectId, Entry]]:
        """Return the objects that lie in memory, oldest first."""
        return [(identity, entry) for identity, entry in self.entries.items() if entry.offset >= 0]

    def unpinned(self, process: ProcessId, identities: list[ObjectId]) -> None:
        """UNPINNED: the process has forgotten where these lie."""
        for identity in identities:
            entry = self.entries.get(identity)
            if entry is not None:
                entry.pinned.discard(process)

    def spilled(self, identity: ObjectId, file: Any) -> bool:
        """A copy is on disk: free the extent. False: the object went or was pinned meanwhile."""
        entry = self.entries.get(identity)
        if entry is None or entry.pinned or entry.offset < 0:
            return False
        if entry.copies:
            return False  # Somebody may have been told of a copy: it stays where it is.
        entry.file = file
        self.commands.append(FreeExtent(entry.offset))
        entry.offset = -1
        entry.outcome = outcome.ELSEWHERE_OUTCOME
        return True

    def restored(self, identity: ObjectId, offset: int) -> bool:
        """The object is in memory again; False: nobody wants it any more."""
        entry = self.entries.get(identity)
        if entry is None or not entry.restoring:
            return False
        entry.restoring = False
        entry.offset = offset
        self.commands.append(DeleteSpilled(identity, entry.file))
        entry.file = None
        self._resolve(identity, entry, outcome.stored(offset, entry.nbytes))
        self._settle(identity, entry)  # Who waited may have let go of it meanwhile.
        return True

    def restore_failed(self, identity: ObjectId, found: bytes) -> None:
        """The spilled copy can't be read, or memory can't be had: tell those who wait."""
        entry = self.entries.get(identity)
        if entry is None:
            return
        entry.restoring = False
        waiters, entry.waiters = entry.waiters, set()
        for process in sorted(waiters):
            self.commands.append(Locate(process, identity, found))
        self._settle(identity, entry)

    # -- for people and tests --------------------------------------------------------------------

    def statistics(self) -> dict[str, int]:
        """Return counts for status and metrics."""
        stored = [entry for entry in self.entries.values() if entry.offset >= 0]
        spilled = [entry for entry in self.entries.values() if entry.file is not None]
        return {
            "objects": sum(not entry.is_actor for entry in self.entries.values()),
            "stored_objects": len(stored),
            "stored_bytes": sum(e.nbytes for e in stored),
            "spilled_objects": len(spilled),
            "spilled_bytes": sum(e.nbytes for e in spilled),
        }

    def check(self) -> None:
        """Raise AssertionError where an invariant is broken."""
        for identity, entry in self.entries.items():
            assert entry.holders or entry.waiters or entry.registered, f"{identity.hex()} is loose"
            assert entry.known or not entry.waiters, "somebody waits for news of nothing"
            assert entry.registered is None or entry.registered in self.alive
            assert 0 not in entry.holders.values()
            for holder in entry.holders:
                assert len(holder) == 16 or holder in self.alive
                assert len(holder) == 8 or holder in self.entries
            for inner in entry.contained:
                assert self.entries[inner].holders.get(identity), "a contained object is not held"
            assert entry.pinned <= self.alive
        offsets = [entry.offset for entry in self.entries.values() if entry.offset >= 0]
        offsets += [offset for entry in self.entries.values() for offset in entry.copies]
        assert len(offsets) == len(set(offsets)), "two objects in one extent"
