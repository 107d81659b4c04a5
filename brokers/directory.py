"""The object directory: shared objects and actors' references, and who holds them.

What    An entry exists from the moment a reference escapes its process until nobody holds it:
        no process (signed units, because a transfer and a release may cross), no object that
        contains it. A process that was told where an object lies has it pinned there.
        Of an object of another node, the *home*, an entry counts this node's own holders; the
        home counts this node as one while there are any, and knows who has a copy.
Caller  brokers/node.py, tests/sim.
Never   touches memory or files: it says which extent or file is free.
"""

from __future__ import annotations

from typing import Any

from zray.protocol import outcome
from zray.protocol.ids import NodeId, ObjectId, ProcessId, node_of, owner_of
from zray.protocol.purposes import Purpose

from .evacuation import Evacuation
from .sharing import (
    Absent,
    CancelPull,
    Command,
    CopyGone,
    DeleteSpilled,
    Entry,
    Found,
    FreeExtent,
    HoldAt,
    Locate,
    LocateAt,
    Pull,
    ReleaseAt,
    Restore,
    Serve,
    StoredHere,
    Unreferenced,
)

_SOURCES_MAX = 8
"""Nodes named to who asks: some to share the work, and one more round trip if all have died."""
_PULLS_MAX = 3
"""In a row, before those who wait are told that it cannot be had."""


class Directory:
    """All shared objects of one node."""

    def __init__(self, home: NodeId = b"") -> None:
        self.home = home
        """This node; b"" where there are no others."""
        self.entries: dict[ObjectId, Entry] = {}
        self.alive: set[ProcessId] = set()
        """Whose holds count: processes of this node, and other nodes."""
        self.nodes: set[NodeId] = set()
        """Other nodes that are there."""
        self.gone: set[NodeId] = set()
        self.held_by: dict[ProcessId, set[ObjectId]] = {}
        self.actors: set[ObjectId] = set()
        """Living actors of this node."""
        self.commands: list[Command] = []
        self.evacuation = Evacuation(self)
        self.owner_died_outcome = b""
        """Set by the node: the outcome of what a dead process never published."""
        self.lost_outcome = b""
        self.home_died_outcome = b""
        """Of what the dead node's processes owned and this node has no copy of."""
        self.copies_died_outcome = b""
        """Of what only dead nodes had."""

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
            if identity in self.actors:
                # All had let go of it, and somebody has found it by its name before it ended.
                _counts_handles(entry)
        return entry

    def _add(self, identity: ObjectId, entry: Entry, holder: bytes, units: int) -> None:
        if len(holder) == 8 and holder not in self.alive:
            return
        left = entry.holders.get(holder, 0) + units
        if left:
            entry.holders[holder] = left
            if len(holder) == 8:
                self.held_by.setdefault(holder, set()).add(identity)
        else:
            entry.holders.pop(holder, None)
            if len(holder) == 8:
                self.held_by.get(holder, set()).discard(identity)
                if entry.registered != holder:
                    entry.pinned.discard(holder)
        self._tell_home(identity, entry)

    def _tell_home(self, identity: ObjectId, entry: Entry) -> None:
        """Have the home of a foreign object count this node while anybody but itself holds it.

        What is kept here for the home alone is no hold of ours: both would wait for each other.
        """
        if not self.is_foreign(identity):
            return
        home = node_of(identity)
        held = home not in self.gone and any(holder != home for holder in entry.holders)
        if held != entry.held_at_home:
            entry.held_at_home = held
            if home not in self.gone:
                self.commands.append(HoldAt(identity) if held else ReleaseAt(home, identity))

    def _settle(self, identity: ObjectId, entry: Entry) -> None:
        """Drop an entry that nobody holds."""
        if entry.holders or entry.waiters or entry.registered is not None:
            return
        if self.entries.pop(identity, None) is None:
            return
        self.evacuation.dropped(identity)
        if entry.is_actor:
            self.commands.append(Unreferenced(identity))
        if entry.held_at_home:
            self.commands.append(ReleaseAt(node_of(identity), identity))
        if entry.pulling is not None:
            self.commands.append(CancelPull(identity))
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
            self.contain(identity, entry, contained)
            self._resolve(identity, entry, found)
        self._settle(identity, entry)

    def contain(self, identity: ObjectId, entry: Entry, contained: list[ObjectId]) -> None:
        """Let an object hold what its value contains."""
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
        if entry.outcome is not None and entry.outcome != self.copies_died_outcome:
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
        self.contain(identity, entry, contained)
        home = node_of(identity)
        if self.is_foreign(identity) and node_of(owner) != self.home:
            if home not in entry.holders and home not in self.gone:
                self.alive.add(home)  # Its link may be on its way to us still.
                self._add(identity, entry, home, 1)
        elif owner in self.alive:
            entry.registered = owner
            entry.pinned.add(owner)

    def _resolve(self, identity: ObjectId, entry: Entry, found: bytes) -> None:
        entry.outcome = found
        waiters, entry.waiters = entry.waiters, {}
        for process, purpose in sorted(waiters.items()):
            self._tell(process, identity, entry, purpose)

    def _tell(self, process: ProcessId, identity: ObjectId, entry: Entry, purpose: int) -> None:
        """Tell who waits what is known, or see to it that the value comes here."""
        assert entry.outcome is not None
        if process in self.nodes:
            self._answer_node(process, identity, entry, purpose)
        elif entry.offset >= 0:
            if process == self.home:
                self.commands.append(Serve(identity, entry.offset, entry.nbytes))
                return
            if process in entry.holders or process == entry.registered:
                entry.pinned.add(process)
            self.commands.append(Locate(process, identity, entry.outcome))
        elif purpose == Purpose.PLACE and (entry.file is not None or entry.places):
            self.commands.append(Locate(process, identity, outcome.ELSEWHERE_OUTCOME))
        elif entry.file is not None:
            _await(entry, process, purpose)
            if not entry.restoring:
                entry.restoring = True
                self.commands.append(Restore(identity))
        elif process == self.home:
            self.commands.append(Absent(identity))
        elif entry.places:
            _await(entry, process, purpose)
            self.pull(identity, entry)
        else:
            self.commands.append(Locate(process, identity, entry.outcome))

    def _refuse(self, identity: ObjectId, entry: Entry, found: bytes) -> None:
        """Tell those who wait an error that is theirs alone: the next may have better luck."""
        waiters, entry.waiters = entry.waiters, {}
        for process in sorted(waiters):
            if process == self.home:
                self.commands.append(Absent(identity))
            elif process in self.nodes:
                self.commands.append(Found(process, identity, found, -1, ()))
            else:
                self.commands.append(Locate(process, identity, found))

    # -- other nodes -----------------------------------------------------------------------------

    def node_joined(self, node: NodeId) -> None:
        """Count what another node holds, and what it keeps for this one.

        One that was lost with its connection may come back: then it has dropped all it kept for
        us, and counts us anew.
        """
        self.nodes.add(node)
        self.alive.add(node)
        if node in self.gone:
            self.gone.discard(node)
            for identity, entry in self.entries.items():
                if node_of(identity) == node:
                    self._tell_home(identity, entry)
                    if entry.outcome == self.home_died_outcome:
                        entry.outcome = None

    def pull(self, identity: ObjectId, entry: Entry) -> None:
        """Have a value brought here, as urgently as those who wait for it need it."""
        purpose = min(entry.waiters.values(), default=Purpose.GET)
        if entry.pulling is None or purpose < entry.pulling:
            entry.pulling = purpose
            self.commands.append(Pull(identity, entry.nbytes, tuple(entry.places), purpose))

    def _ask_home(self, identity: ObjectId, entry: Entry, process: ProcessId, purpose: int) -> None:
        if node_of(identity) in self.gone:
            self.commands.append(Locate(process, identity, self.home_died_outcome))
            return
        _await(entry, process, purpose)
        # Who has asked for the place alone is not named to others: now it will have the value.
        if entry.asked is None or purpose < Purpose.PLACE == entry.asked:
            entry.asked = purpose
            self.commands.append(LocateAt(identity, purpose))

    def _answer_node(self, node: NodeId, identity: ObjectId, entry: Entry, purpose: int) -> None:
        """Name the nodes that have the value, or that were told so a moment ago.

        Who pulls it is named to the next: of an object that many pull, each sends on what it has.
        """
        assert entry.outcome is not None
        is_here = entry.offset >= 0 or entry.file is not None
        others = [place for place in entry.places if place != node]
        if is_here or others:
            sure = [place for place in others if entry.kept_at.get(place)]
            late = [place for place in others if not entry.kept_at.get(place)]
            first = [self.home, *sure] if is_here else sure
            sources = (first + late[-_SOURCES_MAX:])[:_SOURCES_MAX]
            self.commands.append(Found(node, identity, None, entry.nbytes, tuple(sources)))
            if purpose < Purpose.PLACE:
                entry.places[node] = None
        elif entry.outcome == outcome.ELSEWHERE_OUTCOME:  # Only who asks is said to have it.
            self.commands.append(Found(node, identity, self.copies_died_outcome, -1, ()))
        else:
            self.commands.append(Found(node, identity, entry.outcome, -1, ()))

    def found(
        self, identity: ObjectId, found: bytes | None, nbytes: int, sources: list[NodeId]
    ) -> None:
        """FOUND: the home's answer to LocateAt."""
        entry = self.entries.get(identity)
        if entry is None or entry.asked is None:
            return
        entry.asked = None
        if entry.outcome is not None:
            return  # It was made here meanwhile.
        if found is None:
            entry.nbytes, entry.places = nbytes, dict.fromkeys(sources)
            found = outcome.ELSEWHERE_OUTCOME if sources else self.copies_died_outcome
        self._resolve(identity, entry, found)
        self._settle(identity, entry)

    def stored_at(self, node: NodeId, identity: ObjectId, nbytes: int, holder: ProcessId) -> None:
        """STORED_AT: another node keeps an object of a process of ours, or what it contains."""
        entry = self._entry(identity)
        entry.known = True
        entry.kept_at.setdefault(node, False)
        if holder in self.alive:
            entry.registered = holder
        if nbytes >= 0 and entry.outcome in (None, self.copies_died_outcome):
            entry.nbytes = nbytes
            entry.kept_at[node] = True
            entry.places[node] = None
            self._resolve(identity, entry, outcome.ELSEWHERE_OUTCOME)
        elif nbytes >= 0 and not entry.kept_at[node]:
            # Of a second execution: its bytes may be others, and must not mix with the first's.
            entry.places.pop(node, None)
        self._settle(identity, entry)

    def copy_gone(self, node: NodeId, identities: list[ObjectId]) -> None:
        """COPY_GONE: the node dropped its copy of each of these, or did not get it."""
        for identity in identities:
            entry = self.entries.get(identity)
            if entry is not None and not entry.kept_at.get(node):
                entry.places.pop(node, None)
                if entry.is_lost and not self.is_foreign(identity):
                    self._resolve(identity, entry, self.copies_died_outcome)

    def pulled(self, identity: ObjectId, offset: int, nbytes: int) -> None:
        """A copy is here."""
        entry = self.entries.get(identity)
        if entry is None or entry.pulling is None:
            self.commands.append(FreeExtent(offset))
            return
        entry.pulling = None
        entry.failures = 0
        entry.offset, entry.nbytes = offset, nbytes
        if self.is_foreign(identity):
            entry.places.clear()
        self.evacuation.arrived(identity, entry)
        self._resolve(identity, entry, outcome.stored(offset, nbytes))
        self._settle(identity, entry)

    def pull_failed(self, identity: ObjectId, found: bytes, *, no_room: bool) -> None:
        """A pull came to nothing: for want of memory here, or of a node that could send it."""
        entry = self.entries.get(identity)
        if entry is None or entry.pulling is None:
            return
        entry.pulling = None
        self.evacuation.dropped(identity)
        entry.failures = 0 if no_room else entry.failures + 1
        again = 0 < entry.failures < _PULLS_MAX and bool(entry.waiters)
        if self.is_foreign(identity):
            self._pull_elsewhere(identity, entry, again=again, no_room=no_room)
        elif not no_room:
            entry.places = {node: None for node in entry.places if entry.kept_at.get(node)}
            if not entry.places:
                self._resolve(identity, entry, self.copies_died_outcome)
            elif again:
                self.pull(identity, entry)
        if entry.asked is not None or entry.pulling is not None:
            return
        entry.failures = 0
        self._refuse(identity, entry, found)
        self._settle(identity, entry)

    def _pull_elsewhere(
        self, identity: ObjectId, entry: Entry, *, again: bool, no_room: bool
    ) -> None:
        """The home may know of other nodes that have it by now."""
        if node_of(identity) in self.gone:
            if not no_room:
                self._resolve(identity, entry, self.home_died_outcome)
            return
        self.commands.append(CopyGone(identity))
        if not no_room:
            entry.outcome = None
            entry.places.clear()
            if again:
                entry.asked = min(entry.waiters.values(), default=Purpose.GET)
                self.commands.append(LocateAt(identity, entry.asked))

    def node_lost(self, node: NodeId) -> None:
        """A node is gone: what only it had is lost. Its holds stay until bury()."""
        self.nodes.discard(node)
        self.gone.add(node)
        for identity, entry in list(self.entries.items()):
            entry.waiters.pop(node, None)
            entry.kept_at.pop(node, None)
            entry.places.pop(node, None)
            if self.is_foreign(identity) and node_of(identity) == node:
                entry.held_at_home, entry.asked = False, None
                if entry.pulling is None and (entry.outcome is None or entry.is_elsewhere):
                    self._resolve(identity, entry, self.home_died_outcome)
            elif entry.is_lost:
                if self.is_foreign(identity):
                    entry.outcome = None  # Who needs it asks its home again.
                else:
                    self._resolve(identity, entry, self.copies_died_outcome)
            self._settle(identity, entry)

    def bury(self, node: NodeId) -> None:
        """Drop what a lost node held: holds of what it had passed on have arrived by now."""
        self.process_died(node)

    def is_copy(self, identity: ObjectId, entry: Entry) -> bool:
        """Return whether an object in memory is kept by another node that is there."""
        home = node_of(identity)
        if self.is_foreign(identity):
            return home in self.nodes and home not in entry.holders
        return any(kept and node in entry.places for node, kept in entry.kept_at.items())

    def drop_copy(self, identity: ObjectId) -> bool:
        """Free the extent of a copy that nobody has mapped; False where it must stay."""
        entry = self.entries[identity]
        if entry.pinned or entry.copies or entry.offset < 0 or not self.is_copy(identity, entry):
            return False
        self.commands.append(FreeExtent(entry.offset))
        entry.offset = -1
        if self.is_foreign(identity):
            entry.outcome = None
            self.commands.append(CopyGone(identity))
        else:
            entry.outcome = outcome.ELSEWHERE_OUTCOME
        return True

    def serve(self, identity: ObjectId) -> None:
        """The bulk thread asks for an object on behalf of another node: Serve or Absent."""
        entry = self.entries.get(identity)
        if entry is None or (entry.offset < 0 and entry.file is None):
            self.commands.append(Absent(identity))
        else:
            self._tell(self.home, identity, entry, Purpose.GET)

    # -- what processes say, continued -----------------------------------------------------------

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
                entry.offset < 0 and (entry.file is not None or entry.places)
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
            if process not in entry.holders and not entry.kept_at.get(process):
                entry.places.pop(process, None)
            self._settle(identity, entry)
        for identity in results:
            entry = self.entries.get(identity)
            if entry is not None and entry.registered == process:
                entry.registered = None
                if process not in entry.holders:
                    entry.pinned.discard(process)
                self._settle(identity, entry)

    def locate(
        self, process: ProcessId, identities: list[ObjectId], purpose: int = Purpose.GET
    ) -> None:
        """LOCATE: tell the process each outcome, when it is there; and where, for Purpose.PLACE."""
        for identity in identities:
            entry = self.entries.get(identity)
            if entry is None or not entry.known:
                if process in self.nodes:
                    self.commands.append(Found(process, identity, self.lost_outcome, -1, ()))
                    continue
                alive = owner_of(identity) in self.alive or self.is_foreign(identity)
                found = self.lost_outcome if alive else self.owner_died_outcome
                self.commands.append(Locate(process, identity, found))
            elif entry.outcome is None:
                if self.is_foreign(identity):
                    self._ask_home(identity, entry, process, purpose)
                elif owner_of(identity) in self.alive:
                    _await(entry, process, purpose)
                elif process in self.nodes:
                    found = self.owner_died_outcome
                    self.commands.append(Found(process, identity, found, -1, ()))
                else:
                    self.commands.append(Locate(process, identity, self.owner_died_outcome))
            else:
                self._tell(process, identity, entry, purpose)

    def process_died(self, process: ProcessId) -> None:
        """Drop all that a dead process held; what it never published is lost."""
        self.alive.discard(process)
        for identity in sorted(self.held_by.pop(process, ())):
            entry = self.entries.get(identity)
            if entry is not None:
                entry.holders.pop(process, None)
                entry.pinned.discard(process)
                entry.waiters.pop(process, None)
                self._tell_home(identity, entry)
                self._settle(identity, entry)
        for identity, entry in list(self.entries.items()):
            entry.pinned.discard(process)
            entry.waiters.pop(process, None)
            if entry.registered == process:
                entry.registered = None
            if entry.outcome is None and not entry.is_actor and owner_of(identity) == process:
                self._resolve(identity, entry, self.owner_died_outcome)
            self._settle(identity, entry)

    # -- actors ----------------------------------------------------------------------------------

    def actor_created(self, process: ProcessId, actor: ObjectId) -> None:
        """Count handles of an actor; its creator has the first."""
        self.actors.add(actor)
        _counts_handles(entry := self._entry(actor))
        self._add(actor, entry, process, 1)

    def actor_ended(self, actor: ObjectId) -> None:
        """Who finds its name finds nobody."""
        self.actors.discard(actor)

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
        self._refuse(identity, entry, found)
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
            assert entry.pulling is None or entry.offset < 0, "what is here is pulled"
            assert entry.outcome is None or Purpose.PLACE not in entry.waiters.values()
            assert self.home not in entry.places
            if not self.is_foreign(identity):  # A foreign one's home may reach whom we don't.
                assert not entry.places.keys() & self.gone
            if self.is_foreign(identity) and node_of(identity) not in self.gone:
                home = node_of(identity)
                held = any(holder != home for holder in entry.holders)
                assert entry.held_at_home == held, f"{identity.hex()} is counted wrong at home"
        offsets = [entry.offset for entry in self.entries.values() if entry.offset >= 0]
        offsets += [offset for entry in self.entries.values() for offset in entry.copies]
        assert len(offsets) == len(set(offsets)), "two objects in one extent"


def _await(entry: Entry, process: ProcessId, purpose: int) -> None:
    entry.waiters[process] = min(purpose, entry.waiters.get(process, purpose))


def _counts_handles(entry: Entry) -> None:
    """Have an entry count the handles of an actor, which is told of the last one's end."""
    entry.is_actor, entry.known, entry.outcome = True, True, b"\0"
