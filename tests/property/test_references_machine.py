"""The references of two processes and their node's directory: units balance, nothing leaks.

What    A Hypothesis state machine plays two owners that put, submit, share, pass on, view and drop,
        with outcomes that come late, twice or never, and releases that are heeded late.
        When both have dropped everything the directory is empty, and so is every table.
Never   sends a byte: calls go straight into the directory, releases when a rule says so.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from zray.brokers import sharing
from zray.brokers.directory import Directory
from zray.protocol import frames, messages, outcome
from zray.protocol.ids import object_id
from zray.session.outbox import Outbox
from zray.session.references import Key, References

NODE, WORKER = b"the-node", b"a-worker"
PLAIN, ERROR, LOST = b"\x80plain", b"\x02boom", b"\x02lost"


@dataclass
class Reference:
    """What transfer() reads of an ObjectRef."""

    key: Key


class Client:
    """One process: its references, and how many of each its program has."""

    def __init__(self, process: bytes) -> None:
        self.process = process
        self.outbox = Outbox()
        self.results: dict[Key, bytes] = {}
        self.references = References(process, NODE, self.results, self.outbox)
        self.references.free_private = self.free
        self.references.register_private = self.register
        self.private: dict[int, int] = {}
        self.extents: set[int] = set()
        self.held: dict[Key, int] = {}
        self.pending: dict[int, int] = {}
        """Numbers of tasks, and how many executions have not delivered yet."""
        self.kinds: dict[int, str] = {}
        self.views: list[Any] = []
        self.releases: deque[list[Any]] = deque()
        self.next_number = 1

    def free(self, number: int) -> None:
        self.extents.remove(self.private.pop(number))

    def register(self, number: int, held: list[bytes]) -> None:
        offset = self.private.pop(number)
        self.outbox.call(
            messages.REGISTER, self.references.id_of(number), offset, 1, held, self.process
        )

    def take(self, key: Key) -> None:
        """The program has one more reference, which the references have counted."""
        self.held[key] = self.held.get(key, 0) + 1

    def drop(self, key: Key) -> None:
        self.held[key] -= 1
        if not self.held[key]:
            del self.held[key]
        self.references.garbage.append(key)


class ReferencesMachine(RuleBasedStateMachine):
    """Both clients share one directory; ``extents`` are those that the directory has."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Directory()
        self.directory.lost_outcome = self.directory.owner_died_outcome = LOST
        self.clients = [Client(b"client-a"), Client(b"client-b")]
        for process in (*(client.process for client in self.clients), WORKER):
            self.directory.process_joined(process)
        self.extents: set[int] = set()
        self.next_offset = 0

    def client(self, which: bool) -> Client:
        return self.clients[int(which)]

    # -- the node ---------------------------------------------------------------------------------

    def flush(self, client: Client) -> None:
        """Calls at once; releases wait until heed()."""
        if client.references.garbage or client.references.voided:
            client.references.collect()
        calls, client.outbox.calls = client.outbox.calls, []
        for packed in calls:
            self.call(client, frames.unpack(packed))
        assert not client.outbox.messages
        self.settle()

    def call(self, client: Client, message: list[Any]) -> None:
        kind = message[1]
        if kind == messages.SHARE:
            self.directory.share(
                client.process, message[3], message[4], message[5], first=message[6]
            )
        elif kind == messages.REGISTER:
            client.extents.remove(message[4])
            self.extents.add(message[4])
            self.directory.register(
                client.process, message[3], message[4], message[5], message[6], message[7]
            )
        elif kind == messages.HOLD:
            self.directory.hold(client.process, message[3])
        elif kind == messages.TRANSFER:
            self.directory.transfer(client.process, message[3], message[4])
        elif kind == messages.RELEASE:
            client.releases.append(message)
        else:
            assert kind == messages.LOCATE
            self.directory.locate(client.process, message[3])

    def settle(self) -> None:
        commands, self.directory.commands = self.directory.commands, []
        for command in commands:
            if isinstance(command, sharing.FreeExtent):
                self.extents.remove(command.offset)
            elif isinstance(command, sharing.Locate):
                (client,) = (each for each in self.clients if each.process == command.process)
                assert command.outcome != LOST, "what is held was said to be gone"
                client.references.found(command.object, command.outcome)

    # -- making -----------------------------------------------------------------------------------

    @rule(which=st.booleans(), data=st.data(), stored=st.booleans())
    def put(self, which: bool, data: st.DataObject, stored: bool) -> None:
        client = self.client(which)
        inner: list[Key] = sorted(client.held, key=repr)
        number, client.next_number = client.next_number, client.next_number + 1
        nested: bool = data.draw(st.booleans())
        if inner and nested:
            key: Key = data.draw(st.sampled_from(inner))
            client.references.share(key)
            client.references.contained[number] = [Contained(client, key)]
        if stored:
            self.next_offset += 1
            client.results[number] = outcome.stored(self.next_offset, 1)
            client.private[number] = self.next_offset
            client.extents.add(self.next_offset)
        else:
            client.results[number] = PLAIN
        client.take(number)

    @rule(which=st.booleans(), executions=st.integers(1, 3))
    def submit(self, which: bool, executions: int) -> None:
        client = self.client(which)
        number, client.next_number = client.next_number, client.next_number + 1
        client.pending[number] = executions
        client.take(number)

    @rule(
        which=st.booleans(),
        data=st.data(),
        kind=st.sampled_from(("plain", "error", "stored", "holding")),
        lost=st.booleans(),
    )
    def outcome_arrives(self, which: bool, data: st.DataObject, kind: str, lost: bool) -> None:
        """An execution ends; word of it is lost where its worker died, and another was begun."""
        client = self.client(which)
        if not client.pending:
            return
        number = data.draw(st.sampled_from(sorted(client.pending)))
        # A second execution returns what the first did, or fails.
        kind = kind if kind == "error" else client.kinds.setdefault(number, kind)
        found = self.make(client, number, kind)
        left = client.pending[number] = client.pending[number] - 1
        if left and lost:
            return
        if number in client.references.results or number in self.delivered(client):
            client.references.arrived_again(number, found)
        else:
            self.delivered(client).add(number)
            client.references.arrived(number, found)
        if not left:
            del client.pending[number]

    def delivered(self, client: Client) -> set[int]:
        found: set[int] = client.__dict__.setdefault("delivered", set())
        return found

    def make(self, client: Client, number: int, kind: str) -> bytes:
        """What the worker tells the node before it sends the outcome."""
        identity = object_id(client.process, number)
        inner = object_id(WORKER, 1)
        if kind == "stored":
            self.next_offset += 1
            self.extents.add(self.next_offset)
            self.directory.register(WORKER, identity, self.next_offset, 1, [], client.process)
            self.settle()
            return outcome.stored(self.next_offset, 1)
        if kind == "holding":
            self.directory.share(WORKER, inner, PLAIN, [], first=True)
            self.directory.hold_for(identity, [inner])
            self.directory.release(WORKER, [(inner, 1)], [])
            self.settle()
            return outcome.holding([inner], PLAIN)
        return ERROR if kind == "error" else PLAIN

    # -- passing on and dropping ------------------------------------------------------------------

    @rule(which=st.booleans(), data=st.data(), back=st.booleans())
    def pass_on(self, which: bool, data: st.DataObject, back: bool) -> None:
        """A task of the other process gets the reference, while its caller still holds it."""
        client, other = self.client(which), self.client(not which)
        if not client.held:
            return
        key = data.draw(st.sampled_from(sorted(client.held, key=repr)))
        client.references.share(key)
        self.flush(client)
        identity = client.references.id_of(key)
        theirs = other.references.key_of(identity)
        other.references.restore(theirs)
        other.take(theirs)
        self.flush(other)
        if back:
            mine = client.references.key_of(identity)
            client.references.restore(mine)
            client.take(mine)
            self.flush(client)

    @rule(which=st.booleans(), data=st.data())
    def transfer(self, which: bool, data: st.DataObject) -> None:
        """A leased worker is sent a task: what lies in shared memory is held for it already."""
        client, other = self.client(which), self.client(not which)
        if not client.held:
            return
        key = data.draw(st.sampled_from(sorted(client.held, key=repr)))
        held = client.references.transfer(other.process, [Reference(key)])
        self.flush(client)
        for theirs in other.references.accept(held):
            other.take(theirs)

    @rule(which=st.booleans(), data=st.data())
    def drop(self, which: bool, data: st.DataObject) -> None:
        client = self.client(which)
        if client.held:
            client.drop(data.draw(st.sampled_from(sorted(client.held, key=repr))))

    @rule(which=st.booleans(), data=st.data())
    def look(self, which: bool, data: st.DataObject) -> None:
        """Ask for a value; an array over the segment counts as a reference while it is alive."""
        client = self.client(which)
        if not client.held:
            return
        key = data.draw(st.sampled_from(sorted(client.held, key=repr)))
        client.references.locate(key)
        self.flush(client)
        found = client.results.get(key)
        if found is not None and found[0] == outcome.STORED:
            offset, _nbytes = outcome.stored_location(found)
            assert offset in self.extents or offset in client.extents, "a free extent is read"
            client.views.append(client.references.view_opened(key))

    @rule(which=st.booleans())
    def array_goes(self, which: bool) -> None:
        client = self.client(which)
        if client.views:
            client.views.pop()()

    @rule(which=st.booleans())
    def flush_one(self, which: bool) -> None:
        self.flush(self.client(which))

    @precondition(lambda self: any(client.releases for client in self.clients))
    @rule(which=st.booleans())
    def heed(self, which: bool) -> None:
        client = self.client(which)
        if client.releases:
            message = client.releases.popleft()
            self.directory.release(client.process, message[3], message[4])
            self.settle()

    # -- what must hold ---------------------------------------------------------------------------

    @invariant()
    def the_machines_are_sound(self) -> None:
        self.directory.check()
        for client in self.clients:
            client.references.check()

    def teardown(self) -> None:
        """Let everything end, drop everything: nothing may be left."""
        for client in self.clients:
            for number in list(client.pending):
                if number not in self.delivered(client):
                    client.references.arrived(number, ERROR)
            for gone in client.views:
                gone()
            for key in list(client.held):
                while key in client.held:
                    client.drop(key)
        for which in (False, True, False, True):
            self.flush(self.client(which))
            while self.client(which).releases:
                self.heed(which)
        assert not self.directory.entries, self.directory.entries
        assert not self.extents
        for client in self.clients:
            references = client.references
            for name in (
                "results",
                "units",
                "registered",
                "extra",
                "contained",
                "views",
                "dropped",
                "publish",
                "adopted",
            ):
                assert not getattr(references, name), (name, getattr(references, name))
            assert not client.private
            assert not client.extents


class Contained:
    """A reference inside a value: it goes when the value goes."""

    def __init__(self, client: Client, key: Key) -> None:
        self.client = client
        self.id = client.references.id_of(key)
        client.references.add(key)
        self.key = key

    def __del__(self) -> None:
        self.client.references.garbage.append(self.key)


TestReferencesMachine = ReferencesMachine.TestCase
TestReferencesMachine.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
