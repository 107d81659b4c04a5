"""Three nodes' object books without sockets: links, mailboxes and memory are lists.

What    NodesWorld holds for each node the real Directory, ObjectsElsewhere with its fence, the
        rules of links, and what stands in for all else: a bulk thread that copies when told to, a
        store that counts extents, processes that hold, pass and drop references as sessions do.
        Links are in order for each pair of nodes; nothing else is promised.
Caller  tests/brokers/test_directory_nodes.py.
Never   counts holders: it only knows who has which reference, and where values lie.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from unittest.mock import patch

from zray.brokers import objects_elsewhere, transferring
from zray.brokers.allocator import Extent
from zray.brokers.cluster import Cluster, Member
from zray.brokers.directory import Directory
from zray.brokers.link_rules import handle
from zray.brokers.membership import Membership
from zray.brokers.node_commands import perform_objects
from zray.brokers.relays import Relays
from zray.net.link_inbox import Sender
from zray.protocol import messages, outcome
from zray.protocol.envelopes import Reassembly, check_envelope, destination_of, seal
from zray.protocol.frames import pack
from zray.protocol.ids import NODE_PREFIX_BYTES, node_id, node_of, object_id, process_id
from zray.protocol.packing import packb, unpackb
from zray.protocol.roles import Role

LOST, OWNER_DIED = b"\x02lost", b"\x02owner"
HOME_DIED, COPIES_DIED = b"\x02home", b"\x02copies"
PLAIN = b"\x80plain"
NBYTES = 100
NAMES = ("a", "b", "c")


class Bulk:
    """A bulk thread that moves nothing by itself."""

    def __init__(self, *_arguments: Any, **_named: Any) -> None:
        self.endpoint, self.port = "tcp://127.0.0.1:1", 1
        self.queue: list[Any] = []
        self.wanted: dict[bytes, tuple[int, list[bytes]]] = {}
        self.answers: dict[bytes, int | None] = {}
        self.given: list[int] = []
        self.refused: list[int] = []
        self.has_room = True

    def connect(self, *_arguments: Any, is_source: bool = True) -> None:
        return

    def disconnect(self, _peer: bytes) -> None:
        return

    def events(self) -> list[Any]:
        events, self.queue = self.queue, []
        return events

    def want(self, identity: bytes, nbytes: int, sources: list[bytes], _priority: Any) -> None:
        known = self.wanted.get(identity, (nbytes, []))[1]
        self.wanted[identity] = nbytes, [*known, *sources]

    def cancel(self, identity: bytes) -> None:
        if self.wanted.pop(identity, None) is not None:
            self.queue.append(transferring.Failed(identity, "it was cancelled"))

    def allocated(self, _pull: int, offset: int, *, fresh: bool) -> None:
        assert not fresh
        self.given.append(offset)

    def refused_because(self, pull: int) -> None:
        self.refused.append(pull)

    def located(self, identity: bytes, offset: int, _nbytes: int) -> None:
        self.answers[identity] = offset

    def absent(self, identity: bytes, _reason: str) -> None:
        self.answers[identity] = None

    def statistics(self) -> dict[str, int]:
        return {}


class Extents:
    """A store of numbered extents, each of one object."""

    def __init__(self) -> None:
        self.objects: dict[int, bytes] = {}
        self.pins: Counter[int] = Counter()
        self.segment = self
        self.capacity_bytes = 1 << 20
        self.waiting = False
        self.filling = b""
        self._next = 1

    def place(self, identity: bytes) -> int:
        self._next += 1
        self.objects[self._next] = identity
        return self._next

    def allocate(
        self, _process: bytes, nbytes: int, _now: float, done: Callable[..., None]
    ) -> None:
        done(Extent(self.place(self.filling), nbytes, fresh=False), None)

    def registered(self, offset: int) -> None:
        assert offset in self.objects

    def freed(self, _process: bytes, offsets: list[int]) -> None:
        for offset in offsets:
            self.free_extent(offset)

    def free_extent(self, offset: int) -> None:
        del self.objects[offset]

    def pin(self, offset: int) -> None:
        self.pins[offset] += 1

    def unpin(self, offset: int) -> None:
        self.pins[offset] -= 1


class Links:
    """The sending ends of one node's links."""

    def __init__(self, world: NodesWorld, own: bytes) -> None:
        self.world = world
        self.own = own

    def send(self, link: bytes, header: bytes, payloads: Iterable[bytes] = ()) -> bool:
        self.world.links.setdefault((self.own, link), deque()).append((header, list(payloads)))
        return True

    def connect(self, _peer: bytes, _address: str) -> None:
        return

    def drop(self, _link: bytes) -> None:
        return


class Books(Cluster):
    """A Cluster of which only the objects part is there."""

    def __init__(self, world: NodesWorld, node: Node) -> None:
        self.node = node  # type: ignore[assignment]
        self.links = Links(world, node.process)  # type: ignore[assignment]
        self.members = {}
        self.key_role = Role.NODE
        self.refused = 0
        self.inbox = type("Inbox", (), {"address": "tcp://127.0.0.1:1"})()
        with patch.object(objects_elsewhere, "Bulk", Bulk):
            self.objects = objects_elsewhere.ObjectsElsewhere(self, None, host="127.0.0.1")
        self.overflowed = set()
        self.borrowed = {}
        self.membership = Membership(node.process)
        self.relays = Mail(self)


class Mail(Relays):
    """What processes of two nodes say to each other, without their streams."""

    def hand_over(self, peer: bytes, sealed: Sequence[Any]) -> None:
        """A process is handed what another one said."""
        books: Any = self._node
        for envelope in sealed:
            check_envelope(envelope, peer[:NODE_PREFIX_BYTES])
            found = Reassembly().add(bytes(envelope))
            assert found is not None, "a short message in pieces"
            assert node_of(found[0]) == peer
            books.processes[destination_of(envelope)].mailbox.append(unpackb(found[1]))


class Process:
    """A process as its session behaves: what it has, and what it may not drop yet."""

    def __init__(self, identity: bytes) -> None:
        self.identity = identity
        self.mailbox: deque[list[Any]] = deque()
        self.held: set[bytes] = set()
        self.results: dict[bytes, list[bytes]] = {}
        """Objects made for it that it has not given up, and the references in them."""
        self.lent: Counter[tuple[bytes, bytes]] = Counter()
        """References that it has passed on and keeps until the receiver has answered."""
        self.awaited: set[bytes] = set()
        self.told: dict[bytes, bytes] = {}
        self.numbers = 0

    def has(self, identity: bytes) -> bool:
        return identity in self.held or identity in self.results

    def may_drop(self, identity: bytes) -> bool:
        return not any(lent == identity for lent, _to in self.lent)


class Node:
    """What the rules and ObjectsElsewhere see of a node."""

    def __init__(self, world: NodesWorld, name: str) -> None:
        self.world = world
        self.process = node_id(f"nod{name}".encode())
        self.now = 0.0
        self.wake = type("Wake", (), {"set": lambda _self: None})()
        self.objects = Directory(self.process)
        self.store = Extents()
        self.cluster = Books(world, self)
        directory = self.objects
        directory.lost_outcome, directory.owner_died_outcome = LOST, OWNER_DIED
        directory.home_died_outcome, directory.copies_died_outcome = HOME_DIED, COPIES_DIED
        self.processes = {
            each: Process(each)
            for each in (process_id(self.process, own) for own in (b"ppp1", b"ppp2"))
        }
        for each in self.processes:
            directory.process_joined(each)

    def send(self, process: bytes, kind: int, rows: list[Any]) -> None:
        """Take LOCATED for a process."""
        assert kind == messages.LOCATED
        receiver = self.processes[process]
        for identity, found in rows:
            receiver.awaited.discard(identity)
            receiver.told[identity] = found

    def perform(self) -> None:
        """Do what a wake of the node does at its end."""
        self.cluster.objects.serve()
        self.cluster.objects.after_wake()
        while self.objects.commands:
            perform_objects(self)  # type: ignore[arg-type]
        self.objects.check()
        self.cluster.objects.fence.check()


class NodesWorld:
    """All of it."""

    def __init__(self) -> None:
        self.links: dict[tuple[bytes, bytes], deque[tuple[bytes, list[Any]]]] = {}
        self.nodes = {node.process: node for node in (Node(self, name) for name in NAMES)}
        self.dead: set[bytes] = set()
        self.unburied: list[tuple[bytes, bytes]] = []
        self.primary: dict[bytes, bytes] = {}
        """Where each object's value was made, of those that are in shared memory."""
        self.coming: dict[bytes, tuple[bytes, bytes]] = {}
        """Results that their callers have not read yet: worker and caller."""
        self.parted = False
        """Two nodes have lost each other: what one held of the other may be gone."""
        self.doubtful: set[bytes] = set()
        """Objects that a node's death may have taken."""
        for one in self.nodes.values():
            for other in self.nodes.values():
                if one is not other:
                    self.join(one, other.process)

    def join(self, node: Node, other: bytes) -> None:
        """Make a link, as LINK_HELLO does."""
        node.cluster.members[other] = Member(other, "", {}, other)
        node.cluster.objects.node_joined(other, ["", other + b"12345678"], b"")

    def process(self, identity: bytes) -> Process:
        return self.nodes[node_of(identity)].processes[identity]

    @property
    def living(self) -> list[Node]:
        return [node for node in self.nodes.values() if node.process not in self.dead]

    # -- what moves ------------------------------------------------------------------------------

    def deliver(self, source: bytes, receiver: bytes) -> bool:
        """Hand over the oldest message of one link."""
        waiting = self.links.get((source, receiver))
        if not waiting:
            return False
        header, payloads = waiting.popleft()
        if receiver not in self.dead:
            books = self.nodes[receiver].cluster
            handle(books, Sender(source, Role.NODE, b"", "", b""), header, [*payloads])
            assert not books.refused
        return True

    def read(self, identity: bytes) -> bool:
        """Let a process read its oldest message."""
        process = self.process(identity)
        if not process.mailbox:
            return False
        kind, source, subject, contained = process.mailbox.popleft()
        if kind == "give":
            self.hold(identity, subject)
            self.say(identity, source, "thanks", subject)
        elif kind == "thanks":
            process.lent -= Counter({(subject, source): 1})
        elif kind == "result":
            process.results[subject] = contained
            del self.coming[subject]
        return True

    def say(self, source: bytes, to: bytes, kind: str, subject: bytes, held: Any = ()) -> None:
        """A process writes to another one: through both nodes, where there are two."""
        body = [kind, source, subject, list(held)]
        if node_of(source) == node_of(to):
            self.process(to).mailbox.append(body)
            return
        cluster = self.nodes[node_of(source)].cluster
        sealed = seal(to, source, [packb(body)])
        process: Any = self.process(source)
        cluster.relays.forward(process, [pack(messages.FORWARD, each) for each in sealed])

    def pull(self, node: Node, identity: bytes) -> None:
        """Let the bulk threads end a pull: with the bytes of a source, or without."""
        wanted: Any = node.cluster.objects.bulk
        _nbytes, sources = wanted.wanted.pop(identity)
        for peer in sources:
            source = self.nodes[node_of(peer[:8])]
            if source.process in self.dead:
                continue
            bulk: Any = source.cluster.objects.bulk
            bulk.answers.pop(identity, None)
            bulk.queue.append(transferring.Locate(identity, NBYTES))
            source.perform()
            offset = bulk.answers.pop(identity, None)
            if offset is None:
                continue
            assert source.store.objects[offset] == identity, "somebody else's bytes are sent"
            bulk.queue.append(transferring.Unpin(identity, offset))
            source.perform()
            self._arrive(node, identity)
            return
        bulk = node.cluster.objects.bulk
        bulk.queue.append(transferring.Failed(identity, "nobody has it"))

    def _arrive(self, node: Node, identity: bytes) -> None:
        bulk: Any = node.cluster.objects.bulk
        node.store.filling = identity
        bulk.queue.append(transferring.Allocate(1, identity, NBYTES, transferring.Priority.GET))
        node.cluster.objects.serve()
        bulk.queue.append(transferring.Arrived(identity, bulk.given.pop(), NBYTES, pinned=False))

    def settle(self, slow: tuple[bytes, bytes] | None = None) -> None:
        """Let everything that is under way arrive, but for what one slow link carries."""
        moved = True
        while moved:
            moved = False
            for link in list(self.links):
                while link != slow and self.deliver(*link):
                    moved = True
            for node in self.living:
                node.perform()
                for identity in node.processes:
                    while self.read(identity):
                        moved = True
                bulk: Any = node.cluster.objects.bulk
                for identity in list(bulk.wanted):
                    self.pull(node, identity)
                    moved = True
                node.perform()
            moved = moved or any(each for link, each in self.links.items() if link != slow)

    # -- what processes do -----------------------------------------------------------------------

    def new_id(self, owner: bytes) -> bytes:
        process = self.process(owner)
        process.numbers += 1
        return object_id(owner, process.numbers)

    def put(self, owner: bytes, contained: list[bytes], *, large: bool) -> bytes:
        """Make an object, and share its reference."""
        identity = self.new_id(owner)
        node = self.nodes[node_of(owner)]
        if large:
            offset = node.store.place(identity)
            self.primary[identity] = node.process
            node.objects.register(owner, identity, offset, NBYTES, contained, owner)
            self.process(owner).results[identity] = contained
        else:
            node.objects.share(owner, identity, PLAIN, contained, first=True)
            self.process(owner).held.add(identity)
        return identity

    def compute(
        self, worker: bytes, caller: bytes, contained: list[bytes], *, large: bool
    ) -> bytes:
        """A worker makes a result of the caller, with references of its own in it."""
        identity = self.new_id(caller)
        node = self.nodes[node_of(worker)]
        if large:
            offset = node.store.place(identity)
            self.primary[identity] = node.process
            node.objects.register(worker, identity, offset, NBYTES, contained, caller)
        else:
            node.objects.hold_for(identity, contained)
        self.coming[identity] = worker, caller
        self.say(worker, caller, "result", identity, contained)
        return identity

    def hold(self, identity: bytes, subject: bytes) -> None:
        """A process has unpickled a reference."""
        process = self.process(identity)
        if subject not in process.held:
            process.held.add(subject)
            self.nodes[node_of(identity)].objects.hold(identity, [subject])

    def give(self, giver: bytes, receiver: bytes, subject: bytes) -> None:
        """Pass a reference on; it is kept until the receiver has answered."""
        self.process(giver).lent[subject, receiver] += 1
        self.say(giver, receiver, "give", subject)

    def drop(self, identity: bytes, subject: bytes) -> None:
        """Give up all that a process has of an object."""
        process = self.process(identity)
        node = self.nodes[node_of(identity)]
        units = [(subject, 1)] if subject in process.held else []
        results = [subject] if subject in process.results else []
        process.held.discard(subject)
        process.results.pop(subject, None)
        node.objects.release(identity, units, results)

    def locate(self, identity: bytes, subject: bytes) -> None:
        """Ask for the value."""
        self.process(identity).awaited.add(subject)
        self.nodes[node_of(identity)].objects.locate(identity, [subject])

    # -- deaths ----------------------------------------------------------------------------------

    def kill(self, victim: bytes) -> None:
        """End a node; what it had sent may still arrive."""
        self.dead.add(victim)
        for node in self.living:
            for process in node.processes.values():
                self.doubtful.update(self._taken(process, victim))

    def _taken(self, process: Process, victim: bytes) -> set[bytes]:
        return {
            each
            for each in process.held | process.results.keys()
            if node_of(each) == victim or self.primary.get(each) == victim
        }

    def notice(self, node: Node, victim: bytes) -> None:
        """A node learns that another is dead: nothing comes from it any more."""
        self._lose(node, victim)
        node.cluster.objects._dying.clear()  # It is buried when the world says so.
        self.unburied.append((node.process, victim))

    def part(self, one: Node, other: Node) -> None:
        """The connection of two nodes ends, and they find each other again."""
        self.parted = True
        for node, peer in ((one, other), (other, one)):
            self._lose(node, peer.process)
        for node, peer in ((one, other), (other, one)):
            self.join(node, peer.process)

    def _lose(self, node: Node, victim: bytes) -> None:
        self.links.pop((victim, node.process), None)
        self.links.pop((node.process, victim), None)
        node.cluster.members.pop(victim)
        node.cluster.objects.node_lost(victim)
        for subject, (worker, caller) in list(self.coming.items()):
            arrived = any(mail[2] == subject for mail in self.process(caller).mailbox)
            if node_of(caller) == node.process and node_of(worker) == victim and not arrived:
                # Its session hears that the worker is gone, and gives up what it may have made.
                del self.coming[subject]
                node.objects.release(caller, [], [subject])
        for process in node.processes.values():
            for lent, to in list(process.lent):
                if node_of(to) == victim:
                    del process.lent[lent, to]

    def bury(self) -> None:
        """Enough time has passed that all that was under way has arrived: see _BURY_S."""
        self.settle()
        for node, victim in self.unburied:
            if node not in self.dead:
                self.nodes[node].objects.bury(victim)
        self.unburied.clear()

    # -- what must be true -----------------------------------------------------------------------

    def check(self) -> None:
        """Assert that whatever a process refers to is there."""
        if self.parted:
            return
        for node in self.living:
            for process in node.processes.values():
                for identity in (process.held | process.results.keys()) - self.doubtful:
                    self._check_there(process, identity)

    def _check_there(self, process: Process, identity: bytes) -> None:
        home = self.nodes[node_of(identity)]
        if home.process in self.dead or self.primary.get(identity, home.process) in self.dead:
            return
        entry = home.objects.entries.get(identity)
        who = f"{identity.hex()}, which {process.identity.hex()} has"
        assert entry is not None, f"{who}, was freed"
        assert entry.known, f"{who}, was freed and is held again"
        where = self.primary.get(identity)
        if where is not None:
            # What a node that means to leave had kept may be at its home by now.
            places = {where, node_of(identity)} - self.dead
            found = [self.nodes[place].store.objects.values() for place in places]
            assert any(identity in values for values in found), f"{who}: its value is gone"

    def finish(self) -> None:
        """Everybody drops everything: then nothing is left anywhere."""
        for victim in self.dead:
            for node in self.living:
                if victim in node.cluster.members:
                    self.notice(node, victim)
        self.bury()
        for node in self.living:
            for identity, process in node.processes.items():
                assert not process.awaited, "somebody waits for ever"
                assert not process.lent, "somebody waits for thanks for ever"
                for subject in process.held | process.results.keys():
                    self.drop(identity, subject)
        self.settle()
        for node in self.living:
            left = {
                identity.hex(): entry.holders for identity, entry in node.objects.entries.items()
            }
            assert not left, f"{node.process!r} keeps {left}"
            assert not node.store.objects, f"{node.process!r} keeps extents"
            assert not any(node.store.pins.values())
            assert node.cluster.objects.fence.is_open, "something waits for a count for ever"


def is_there(found: bytes) -> bool:
    """Return whether LOCATED brought a value, not an error."""
    return found == PLAIN or found[0] == outcome.STORED
