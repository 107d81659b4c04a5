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
from zray.protocol.ids import ObjectId, ProcessId, owner_of


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


Command = Locate | FreeExtent | DeleteSpilled | Restore | Unreferenced


class Entry:
    """One shared object."""

    __slots__ = (
        "contained",
        "copies",
        "file",
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


class Directory:
    """All shared objects of one node."""

    def __init__(self) -> None:
        self.entries: dict[ObjectId, Entry] = {}
        self.alive: set[ProcessId] = set()
        self.held_by: dict[ProcessId, set[ObjectId]] = {}
        self.commands: list[Command] = []
        self.owner_died_outcome = b""
        """Set by the node: the outcome of what a dead process never published."""
        self.lost_outcome = b""

    def process_joined(self, process: ProcessId) -> None:
        """Count a process's references from here on."""
        self.alive.add(process)

    def _entry(self, identity: ObjectId) -> Entry:
        entry = self.entries.get(identity)
        if entry is None:
            entry = self.entries[identity] = Entry()
        return entry

    def _add(self, identity: ObjectId, entry: Entry, holder: bytes, units: int) -> None:
        if len(holder) == 8 and holder not in self.alive:
            return
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
        self._settle(identity, entry)

    def hold_for(self, identity: ObjectId, contained: list[ObjectId]) -> None:
        """HOLD_FOR: a result that is on its way to its owner by itself holds these."""
        entry = self._entry(identity)
        self._hold_result(identity, entry, contained, owner_of(identity))
        self._settle(identity, entry)

    def _hold_result(
        self, identity: ObjectId, entry: Entry, contained: list[ObjectId], owner: ProcessId
    ) -> None:
        entry.known = True
        self._contain(identity, entry, contained)
        if owner in self.alive:
            entry.registered = owner
            entry.pinned.add(owner)

    def _resolve(self, identity: ObjectId, entry: Entry, found: bytes) -> None:
        entry.outcome = found
        waiters, entry.waiters = entry.waiters, set()
        for process in sorted(waiters):
            self._tell(process, identity, entry)

    def _tell(self, process: ProcessId, identity: ObjectId, entry: Entry) -> None:
        assert entry.outcome is not None
        if entry.file is not None and entry.offset < 0:
            entry.waiters.add(process)
            if not entry.restoring:
                entry.restoring = True
                self.commands.append(Restore(identity))
            return
        if entry.offset >= 0 and (process in entry.holders or process == entry.registered):
            entry.pinned.add(process)
        self.commands.append(Locate(process, identity, entry.outcome))

    def knows(self, identities: list[ObjectId]) -> bool:
        """Return whether somebody has told of every one of these."""
        return all(
            (entry := self.entries.get(identity)) is not None and entry.known
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
            if entry is None or not entry.known:
                answers.append((identity, None))
                continue
            self._add(identity, entry, process, 1)
            if entry.outcome is None or (entry.file is not None and entry.offset < 0):
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
                alive = owner_of(identity) in self.alive
                self.commands.append(
                    Locate(
                        process, identity, self.lost_outcome if alive else self.owner_died_outcome
                    )
                )
            elif entry.outcome is None:
                if owner_of(identity) in self.alive:
                    entry.waiters.add(process)
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
