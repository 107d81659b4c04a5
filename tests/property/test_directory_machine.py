"""The object directory against a model that counts who holds what.

What    A Hypothesis state machine shares, registers (once or more often), holds, locates, spills,
        restores and releases objects, nests them, and lets processes die: an object lives exactly
        as long as somebody holds it, its extents with it, and what is mapped does not move.
Never   knows how the directory counts.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from zray.brokers import sharing
from zray.brokers.directory import Directory
from zray.protocol import outcome
from zray.protocol.ids import object_id, owner_of

PROCESSES = (b"proc-one", b"proc-two", b"proc-ten")
LOST, OWNER_DIED = b"\x02lost", b"\x02owner"
PLAIN = b"\x80plain"


class Model:
    """One object as the model sees it."""

    def __init__(self) -> None:
        self.holders: dict[bytes, int] = {}
        self.registered = False
        self.pending = True
        self.contained: list[bytes] = []
        self.extents: set[int] = set()
        self.mapped: set[bytes] = set()
        self.waiters: set[bytes] = set()
        self.file: int | None = None
        self.restoring = False


class DirectoryMachine(RuleBasedStateMachine):
    """``objects`` are those that must be in the directory, ``extents`` those in use."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Directory()
        self.directory.lost_outcome = LOST
        self.directory.owner_died_outcome = OWNER_DIED
        self.alive: list[bytes] = []
        self.objects: dict[bytes, Model] = {}
        self.next_number = 1
        self.next_offset = 0
        self.files: set[int] = set()

    @initialize()
    def all_join(self) -> None:
        for process in PROCESSES:
            self.directory.process_joined(process)
            self.alive.append(process)

    # -- what the directory commands --------------------------------------------------------------

    def settle(self) -> None:
        """Drop what nobody holds from the model, then compare the commands with it."""
        dropped: dict[bytes, Model] = {}
        while dead := [
            identity
            for identity, model in self.objects.items()
            if not (model.holders or model.registered or model.waiters or self.containers(identity))
        ]:
            for identity in dead:
                dropped[identity] = self.objects.pop(identity)
        commands, self.directory.commands = self.directory.commands, []
        for command in commands:
            if isinstance(command, sharing.FreeExtent):
                owners = [model for model in dropped.values() if command.offset in model.extents]
                assert len(owners) == 1, "an extent was freed under somebody who holds it"
                owners[0].extents.remove(command.offset)
            elif isinstance(command, sharing.DeleteSpilled):
                self.files.remove(command.file)
            elif isinstance(command, sharing.Locate):
                self.located(command)
            elif isinstance(command, sharing.Restore):
                self.objects[command.object].restoring = True
        for model in dropped.values():
            assert not model.extents, "an extent was not freed"

    def located(self, command: sharing.Locate) -> None:
        model = self.objects.get(command.object)
        if model is None:
            return
        model.waiters.discard(command.process)
        if command.outcome[0] == outcome.STORED:
            offset, _nbytes = outcome.stored_location(command.outcome)
            assert offset in model.extents, "told of an extent that is not the object's"
            if self.holds(command.process, command.object):
                model.mapped.add(command.process)

    def containers(self, identity: bytes) -> list[bytes]:
        return [outer for outer, model in self.objects.items() if identity in model.contained]

    def holds(self, process: bytes, identity: bytes) -> bool:
        model = self.objects[identity]
        return process in model.holders or (model.registered and owner_of(identity) == process)

    def new_offset(self) -> int:
        self.next_offset += 4096
        return self.next_offset

    def draw_held(self, data: st.DataObject, process: bytes) -> bytes | None:
        found = sorted(identity for identity in self.objects if self.holds(process, identity))
        return data.draw(st.sampled_from(found)) if found else None

    # -- owners and workers -----------------------------------------------------------------------

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), pending=st.booleans(), nested=st.booleans())
    def share(self, data: st.DataObject, pending: bool, nested: bool) -> None:
        owner = data.draw(st.sampled_from(self.alive))
        inner = self.draw_held(data, owner) if nested and not pending else None
        identity = object_id(owner, self.next_number)
        self.next_number += 1
        model = self.objects[identity] = Model()
        model.holders[owner] = 1
        model.pending = pending
        model.contained = [inner] if inner is not None else []
        self.directory.share(
            owner, identity, None if pending else PLAIN, model.contained, first=True
        )
        self.settle()

    @rule(data=st.data())
    def publish(self, data: st.DataObject) -> None:
        found = sorted(
            identity
            for identity, model in self.objects.items()
            if model.pending and owner_of(identity) in self.alive
        )
        if not found:
            return
        identity = data.draw(st.sampled_from(found))
        model = self.objects[identity]
        model.pending = False
        model.waiters.clear()
        self.directory.share(owner_of(identity), identity, PLAIN, [], first=False)
        self.settle()

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), again=st.booleans(), nested=st.booleans())
    def register(self, data: st.DataObject, again: bool, nested: bool) -> None:
        worker = data.draw(st.sampled_from(self.alive))
        known = sorted(identity for identity in self.objects if owner_of(identity) in self.alive)
        if again and known:
            identity = data.draw(st.sampled_from(known))
        else:
            identity = object_id(data.draw(st.sampled_from(self.alive)), self.next_number)
            self.next_number += 1
        inner = self.draw_held(data, worker) if nested else None
        if inner is not None and inner >= identity:
            inner = None  # No circles: a value holds only what was there before it.
        model = self.objects.setdefault(identity, Model())
        model.registered = True
        if model.pending:
            model.waiters.clear()
        model.pending = False
        offset = self.new_offset()
        model.extents.add(offset)
        model.mapped.add(owner_of(identity))
        model.contained += [inner] if inner is not None else []
        self.directory.register(
            worker, identity, offset, 100, [inner] if inner is not None else [], owner_of(identity)
        )
        self.settle()

    # -- holders ----------------------------------------------------------------------------------

    @precondition(lambda self: self.alive and self.objects)
    @rule(data=st.data(), certain=st.booleans())
    def hold(self, data: st.DataObject, certain: bool) -> None:
        process = data.draw(st.sampled_from(self.alive))
        identity = data.draw(st.sampled_from(sorted(self.objects)))
        model = self.objects[identity]
        model.holders[process] = model.holders.get(process, 0) + 1
        if not certain:
            self.directory.hold(process, [identity])
        else:
            ((_identity, found),) = self.directory.hold_certain(process, [identity])
            assert found is not None, "a held object is said to be gone"
            if found[0] == outcome.STORED:
                assert outcome.stored_location(found)[0] in model.extents
                model.mapped.add(process)
        self.settle()

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), result=st.booleans())
    def release(self, data: st.DataObject, result: bool) -> None:
        process = data.draw(st.sampled_from(self.alive))
        identity = self.draw_held(data, process)
        if identity is None:
            return
        model = self.objects[identity]
        units = data.draw(st.integers(0, model.holders.get(process, 0)))
        if units:
            model.holders[process] -= units
            if not model.holders[process]:
                del model.holders[process]
        if result and owner_of(identity) == process:
            model.registered = False
        if not self.holds(process, identity):
            model.mapped.discard(process)
        self.directory.release(
            process, [(identity, units)] if units else [], [identity] if result else []
        )
        self.settle()

    @rule(data=st.data())
    def release_of_what_is_gone(self, data: st.DataObject) -> None:
        identity = object_id(data.draw(st.sampled_from(PROCESSES)), 1 << 30)
        self.directory.release(PROCESSES[0], [(identity, 1)], [identity])
        self.settle()

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def locate(self, data: st.DataObject) -> None:
        process = data.draw(st.sampled_from(self.alive))
        identity = self.draw_held(data, process)
        if identity is None:
            return
        model = self.objects[identity]
        if (model.pending and owner_of(identity) in self.alive) or model.file is not None:
            model.waiters.add(process)
        self.directory.locate(process, [identity])
        self.settle()

    @precondition(lambda self: len(self.alive) > 1)
    @rule(data=st.data())
    def process_dies(self, data: st.DataObject) -> None:
        process = data.draw(st.sampled_from(self.alive))
        self.alive.remove(process)
        for identity, model in self.objects.items():
            model.holders.pop(process, None)
            model.waiters.discard(process)
            model.mapped.discard(process)
            if owner_of(identity) == process:
                model.registered = False
                if model.pending:
                    model.pending = False
                    model.waiters.clear()
        self.directory.process_died(process)
        self.settle()

    # -- spilling ---------------------------------------------------------------------------------

    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        found = sorted(identity for identity, model in self.objects.items() if model.mapped)
        if found:
            identity = data.draw(st.sampled_from(found))
            model = self.objects[identity]
            for process in sorted(model.mapped):
                self.directory.unpinned(process, [identity])
            model.mapped.clear()

    @rule(data=st.data())
    def spill(self, data: st.DataObject) -> None:
        found = sorted(identity for identity, model in self.objects.items() if model.extents)
        if not found:
            return
        identity = data.draw(st.sampled_from(found))
        model, file = self.objects[identity], self.next_offset + 1
        self.next_offset += 4096
        if self.directory.spilled(identity, file):
            assert not model.mapped, "it was moved under somebody who has it mapped"
            (command,) = self.directory.commands
            assert isinstance(command, sharing.FreeExtent)
            model.extents.remove(command.offset)
            self.directory.commands = []
            model.file = file
            self.files.add(file)

    @rule(data=st.data(), works=st.booleans())
    def restore(self, data: st.DataObject, works: bool) -> None:
        found = sorted(identity for identity, model in self.objects.items() if model.restoring)
        if not found:
            return
        identity = data.draw(st.sampled_from(found))
        model = self.objects[identity]
        model.restoring = False
        model.waiters.clear()
        if works:
            offset = self.new_offset()
            model.extents.add(offset)
            model.file = None
            assert self.directory.restored(identity, offset)
        else:
            self.directory.restore_failed(identity, LOST)
        self.settle()

    # -- what must hold ---------------------------------------------------------------------------

    @invariant()
    def the_machine_is_sound(self) -> None:
        self.directory.check()

    @invariant()
    def exactly_what_is_held_lives(self) -> None:
        assert self.directory.entries.keys() == self.objects.keys()

    @invariant()
    def no_spilled_copy_is_left_behind(self) -> None:
        assert self.files == {
            model.file for model in self.objects.values() if model.file is not None
        }


TestDirectoryMachine = DirectoryMachine.TestCase
TestDirectoryMachine.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
