"""The simulated node: the real Node, its rules and machines, over simulated streams and memory.

What    SimNode inherits everything but sockets, processes and files: what it overrides is how
        bytes come and go. SimStore inserts the world's memory under the real Store.
Caller  tests/sim/simulation.py.
Never   repeats a rule of the node: those are what is under test.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from zray import errors
from zray.brokers import store
from zray.brokers.allocator import Allocator
from zray.brokers.bundles import Accounts
from zray.brokers.directory import Directory
from zray.brokers.dispatcher import Dispatcher
from zray.brokers.event_queries import EventQueries
from zray.brokers.health import Health
from zray.brokers.node import Node
from zray.brokers.node_commands import perform_all
from zray.brokers.node_outcomes import error_outcome
from zray.brokers.peers import Processes
from zray.brokers.placement_groups import PlacementGroups
from zray.brokers.printed_lines import PrintedLines
from zray.brokers.process_questions import ProcessQuestions
from zray.brokers.queries import Queries
from zray.brokers.reception import Reception
from zray.brokers.scheduler import Scheduler
from zray.brokers.shared_tables import OwnTables
from zray.brokers.store import Store
from zray.net import channel
from zray.protocol import frames
from zray.protocol.ids import node_id, process_id
from zray.protocol.roles import Role
from zray.store.segment import Segment

if TYPE_CHECKING:
    from tests.sim.world import Envelope, World

_SWEEP_S = 0.5
_TICK_S = 0.01
NODE = node_id(b"node")


class Stream:
    """The node's end of one unix stream. What was written arrives, also from the dead."""

    def __init__(self, world: World, number: int, receiver: Callable[[bytes], None]) -> None:
        self.world = world
        self.number = number
        self.inbound: deque[bytes] = deque()
        self.closed = False
        self.open = True
        self.outbound_bytes = 0
        self.peer_pid = 0
        self.message_bytes_max = 0
        self._receiver = receiver
        self._last = 0.0

    def fileno(self) -> int:
        return self.number

    def write(self, packed: bytes) -> None:
        """The process writes: readable at once."""
        if self.open:
            self.inbound.append(packed)
            self.world.node.wake_soon()

    def hang_up(self) -> None:
        """The process is gone: EOF behind what it wrote."""
        self.open = False
        self.world.node.wake_soon()

    @property
    def readable(self) -> bool:
        return bool(self.inbound) or not self.open

    def drain(self, messages_max: int | None = None) -> tuple[list[bytes], bool]:
        count = len(self.inbound) if messages_max is None else messages_max
        received = [self.inbound.popleft() for _ in range(min(count, len(self.inbound)))]
        return received, self.open or bool(self.inbound)

    def queue(self, packed: bytes, _descriptors: tuple[int, ...] = ()) -> None:
        """The node writes: the process reads it a little later, in order."""
        arrival = max(self._last, self.world.now + self.world.rng.expovariate(1 / 0.0001))
        self._last = arrival
        self.world.at(arrival, "stream", lambda: self._arrive(packed))

    def _arrive(self, packed: bytes) -> None:
        if self.open:
            self._receiver(packed)

    def close(self) -> None:
        self.closed = True


class SimPeers:
    """Who is connected to whom: what is sent elsewhere is dropped, as ZeroMQ would."""

    def __init__(self, world: World, own: bytes) -> None:
        self.world = world
        self.own = own
        self.known: set[bytes] = set()

    def connect(self, peer: bytes, _endpoint: str) -> None:
        """Open a way; where the peer is a process it is the way back as well."""
        other = self.world.processes.get(peer)
        if other is not None and self.own in self.world.processes:
            if other.dead:
                return
            other.peers.known.add(self.own)
        self.known.add(peer)

    def knows(self, peer: bytes) -> bool:
        return peer in self.known

    def drop(self, peer: bytes) -> None:
        self.known.discard(peer)

    def send(self, peer: bytes, header: bytes, payloads: tuple[bytes, ...] = ()) -> bool:
        world = self.world
        if peer not in self.known:
            world.tell_message(
                f"{world.name(self.own)} -| {world.name(peer)} (not connected)",
                frames.unpack(header),
            )
            return False
        world.tell_message(f"{world.name(self.own)} -> {world.name(peer)}", frames.unpack(header))
        world.post(self.own, peer, header, tuple(payloads))
        return True


class SimWorkerProcess:
    """What the node knows of a forked worker."""

    def __init__(self, process: bytes) -> None:
        self.process = process
        self.label = ""
        self.status = None
        self.pid = 0


class SimWorkers:
    """Forks simulated workers."""

    def __init__(self, world: World, start: Callable[[bytes], None]) -> None:
        self.world = world
        self.by_process: dict[bytes, SimWorkerProcess] = {}
        self.zygote_gone = False
        self.exited: list[Any] = []
        self._start = start
        self._count = 0

    def fork(self, _env: tuple[tuple[str, str], ...], *, starting: int = 0) -> SimWorkerProcess:
        self._count += 1
        process = process_id(NODE, b"w" + self._count.to_bytes(3, "big"))
        self.world.names[process] = f"w{self._count}"
        self.by_process[process] = SimWorkerProcess(process)
        delay = self.world.rng.uniform(0.001, 0.004)
        self.world.after(delay, "fork", lambda: self._start(process))
        return self.by_process[process]

    def is_stopped(self, _process: bytes) -> bool:
        """Return False: nobody stops a process here."""
        return False

    def kill(self, process: bytes) -> None:
        self.world.tell(f"node kills {self.world.name(process)}")
        self.world.after(0.0001, "kill", lambda: self._kill(process))

    def _kill(self, process: bytes) -> None:
        victim = self.world.processes.get(process)
        if victim is not None:
            victim.crash("killed by the node")

    def read_output(self) -> None:
        return None

    def forget(self, process: bytes) -> SimWorkerProcess | None:
        return self.by_process.pop(process, None)


class _Functions:
    def get(self, _function: bytes) -> bytes:
        return b"code"

    def put(self, _function: bytes, _code: bytes) -> None:
        return None


class SimCatalog:
    """The GCS tables the rules write to: names of actors; the rest has tests of its own."""

    class _Tables:
        functions = _Functions()

    tables = _Tables()

    def __init__(self) -> None:
        self.names: dict[tuple[str, str], bytes] = {}

    def actor_created(
        self, actor: bytes, _class_id: bytes, _owner: bytes, details: dict[str, Any]
    ) -> bytes | None:
        if details["name"] is None:
            return None
        key = (details["namespace"], details["name"])
        if key in self.names:
            return self.names[key]
        self.names[key] = actor
        return None

    def actor_named(self, name: str, namespace: str) -> bytes | None:
        return self.names.get((namespace, name))

    def actor_died(self, actor: bytes) -> None:
        for key in [key for key, value in self.names.items() if value == actor]:
            del self.names[key]

    def __getattr__(self, _name: str) -> Callable[..., None]:
        return lambda *_arguments, **_named: None


class SimSegment:
    """Extents as entries of the world's memory."""

    def __init__(self, world: World, capacity_bytes: int) -> None:
        self.world = world
        self.capacity_bytes = capacity_bytes

    def fds(self) -> tuple[int, int]:
        return (0, 0)

    def readable(self, offset: int, _nbytes: int, _gone: Callable[[], None]) -> int:
        return offset

    def writable(self, offset: int, _nbytes: int) -> int:
        return offset

    def commit(self, _offset: int, _nbytes: int) -> None:
        return None

    def prefault(self, _nbytes: int) -> None:
        return None

    def holes(self, _offset: int, _nbytes: int) -> list[tuple[int, int]]:
        """Return no part without memory: there is none here."""
        return []


class SimSpill:
    """Spill files in a dict."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.files: dict[int, bytes] = {}
        self.count = 0

    def write(self, _identity: bytes, offset: int) -> int:
        self.count += 1
        # Freed meanwhile: what is read then is thrown away.
        self.files[self.count] = self.world.memory.get(offset, b"")
        return self.count

    def read_into(self, file: int, offset: int) -> None:
        if file not in self.files:
            raise errors.ObjectLostError("the spill file is gone")
        self.world.memory[offset] = self.files[file]

    def delete(self, file: int) -> None:
        self.files.pop(file, None)


class SimAllocator(Allocator):
    """The real allocator; what it frees is gone from memory."""

    memory: dict[int, bytes]

    def free(self, offset: int) -> int:
        self.memory.pop(offset, None)
        return super().free(offset)


class SimStore(Store):
    """The real store over simulated memory; its thread is an event of the world."""

    def __init__(self, world: World, capacity_bytes: int, node: SimNode) -> None:
        self.world = world
        segment = SimSegment(world, capacity_bytes)
        spill = SimSpill(world)
        with (
            patch.object(Segment, "create", lambda _capacity: segment),
            patch.object(store, "SpillStore", lambda *_arguments, **_named: spill),
        ):
            super().__init__(
                capacity_bytes,
                node.objects,
                "",
                ask_clients=node._ask_clients,
                unpin=node._unpin,
                wake=node.wake_soon,
            )
        self.files = spill.files
        self.allocator = SimAllocator(capacity_bytes)
        self.allocator.memory = world.memory

    def _submit(self, job: Callable[[], Callable[[], None]]) -> None:
        def run() -> None:
            self._done.append(job())
            self.world.node.wake_soon()

        self.world.after(self.world.rng.uniform(0.0001, 0.003), "disk", run)


class _Inbox:
    endpoint = "node"


class SimListener:
    """Connections that the node has not accepted yet."""

    def __init__(self) -> None:
        self.pending: deque[Stream] = deque()
        self.refused = 0

    def fileno(self) -> int:
        return 0

    @property
    def readable(self) -> bool:
        return bool(self.pending)

    def accept(self) -> Stream | None:
        return self.pending.popleft() if self.pending else None


class SimPoller:
    """Says which streams are readable, in any order."""

    def __init__(self, node: SimNode) -> None:
        self.node = node

    def poll(self, _timeout_s: float) -> list[tuple[int, int]]:
        node = self.node
        ready = [(number, 1) for number in node.callbacks if node.streams[number].readable]
        node.world.rng.shuffle(ready)
        return ready


class SimNode(Node):
    """The real node over simulated streams: one wake is one event of the world."""

    def __init__(
        self,
        world: World,
        start_worker: Callable[[bytes], None],
        *,
        total: dict[str, int],
        capacity_bytes: int,
    ) -> None:
        self.world = world
        self.directory = ""
        self.settings = {}
        self.embedded = False
        self.process = NODE
        self.secret = b""
        world.names[self.process] = "node"
        world.node = self
        self.stopping = None
        self.callbacks = {}
        self.poller = SimPoller(self)  # type: ignore[assignment]
        self.early = []
        self.releases = []
        self.event_queries = EventQueries(self)
        self.process_questions = ProcessQuestions(self)
        self.queries = Queries(self, dict)
        self.health = Health(self)
        self.looking_again = False
        self.streams: dict[int, Stream | SimListener] = {}
        self.workers = SimWorkers(world, start_worker)  # type: ignore[assignment]
        self.resources = Accounts(total)
        cpus = max(1, total["CPU"] // 10000)
        self.scheduler = Scheduler(self.resources, pool_size=cpus)
        self.dispatcher = Dispatcher(shared_hosts=cpus)
        self.objects = Directory()
        self.objects.owner_died_outcome = error_outcome(errors.OwnerDiedError("sim"))
        self.objects.lost_outcome = error_outcome(errors.ObjectLostError("sim"))
        self._waking = False
        self.store: SimStore = SimStore(world, capacity_bytes, self)
        self.gcs = SimCatalog()  # type: ignore[assignment]
        self.inbox = _Inbox()  # type: ignore[assignment]
        self.peers = SimPeers(world, self.process)  # type: ignore[assignment]
        self.processes = Processes()
        self.listener = SimListener()
        with patch.object(channel, "Listener", lambda *_given, **_named: self.listener):
            self.reception = Reception(self, "", self._joined)
        self.streams[0] = self.listener
        self.on_ready = None
        self.output_log = None
        self.cluster = None
        self.role = Role.NODE
        self.stirred = False
        self.carriers = set()
        self._put_off = []
        self._told_of_forks = float("-inf")
        self.shared_tables = OwnTables(self)
        self.placement_groups = PlacementGroups(self, self.resources)
        self.malformed = 0
        self.now = 0.0
        self._next_sweep = _SWEEP_S
        self.printed = PrintedLines(self)
        self._mail: list[Envelope] = []
        self._waking = False
        self._due = -1.0
        self.scheduler.start_pool()
        perform_all(self)
        self._tick_later()

    # -- what comes ------------------------------------------------------------------------------

    def watch(
        self, descriptor: int, callback: Callable[[], None], *, carries: bool = False
    ) -> None:
        self.callbacks[descriptor] = callback

    def unwatch(self, descriptor: int) -> None:
        self.callbacks.pop(descriptor, None)

    def connect(self, receiver: Callable[[bytes], None]) -> Stream:
        """A process connects: the node reads its HELLO at the next wake."""
        stream = Stream(self.world, len(self.streams), receiver)
        self.streams[stream.number] = stream
        self.listener.pending.append(stream)
        self.wake_soon()
        return stream

    def mail_arrived(self, envelope: Envelope) -> None:
        """A mailbox message is readable."""
        self._mail.append(envelope)
        self.wake_soon()

    def wake_soon(self) -> None:
        """Something is readable: the loop comes to it."""
        if not self._waking:
            self._waking = True
            self.world.after(self.world.rng.expovariate(1 / 0.0001), "wake", self._wake)

    def _wake(self) -> None:
        self._waking = False
        self.now = self.world.now
        mail, self._mail = self._mail, []
        self._serve_streams(self.poller.poll(0))
        if self.early or self.releases:
            self._second_look()
        for envelope in mail:
            self._handle_message(envelope.sender, envelope.header, list(envelope.payloads))
        self._duties()
        perform_all(self)
        self.check()
        self._tick_later()
        if self.early or self.releases:
            self.wake_soon()  # Found when the streams were read for the second time.
        if any(self.streams[number].readable for number in self.callbacks):
            self.wake_soon()

    def _tick_later(self) -> None:
        due = self._next_sweep
        if self.scheduler.needs_tick() or self.store.waiting:
            due = min(due, self.world.now + _TICK_S)
        if self._due <= self.world.now or due < self._due:
            self._due = due
            self.world.after(max(0.0, due - self.world.now), "tick", self.wake_soon)

    def handle_call(self, process: Any, packed: bytes) -> None:
        self.world.tell_message(
            f"{self.world.name(process.identity)} => node", frames.unpack(packed)
        )
        super().handle_call(process, packed)

    def routing_id(self, identity: bytes) -> bytes:
        return identity  # Nobody lies here.

    def _malformed(self, process: Any, error: Exception) -> None:
        raise AssertionError(f"the node refused a message of {process}: {error!r}") from error

    def process_gone(self, identity: bytes, reason: str) -> None:
        self.world.tell(f"node sees the death of {self.world.name(identity)}")
        super().process_gone(identity, reason)

    def check(self) -> None:
        """Every machine's invariants."""
        self.scheduler.check()
        self.dispatcher.check()
        self.objects.check()
        self.store.allocator.check()

    def state(self) -> str:
        """Say what the scheduler has, when somebody waits too long."""
        scheduler = self.scheduler
        queues = list(scheduler.queues.all_ranges())
        workers = [
            f"{self.world.name(worker.process)} {worker.state}"
            f"{' blocked' if worker.blocked else ''}"
            f"{' reclaiming' if worker.reclaiming else ''} {list(worker.outstanding)}"
            f" {worker.grant.amounts if worker.grant else ''}"
            for worker in scheduler.workers.values()
        ]
        return (
            f"queues {queues}; workers {workers}; claims {list(scheduler.claims)}; forking"
            f" {scheduler.forking}; {self.resources!r}; {self.dispatcher.statistics()}"
        )

    def leaks(self) -> list[str]:
        """Say what is left where nothing should be: after the last reference is gone."""
        left = []
        for identity, entry in self.objects.entries.items():
            holders = {self.world.name(holder): units for holder, units in entry.holders.items()}
            left.append(
                f"object {self.world.name(identity)}: held by {holders}, waited for by"
                f" {[self.world.name(w) for w in entry.waiters]}"
            )
        for actor in self.dispatcher.actors.values():
            left.append(f"actor {self.world.name(actor.actor)}: {actor.state}")
        if self.store.allocator.used_bytes:
            left.append(
                f"{self.store.allocator.used_bytes} bytes of the store, leased: {self.store.leased}"
            )
        if self.store.files:
            left.append(f"spill files {self.store.files}")
        if self.scheduler.queues.task_count or self.scheduler.claims:
            left.append(f"queued {self.scheduler.queues.by_shape}, claims {self.scheduler.claims}")
        hosts = [self.scheduler.workers[host].grant for host in self.dispatcher.hosts]
        if self.resources.available != self.resources.total and not all(
            grant is None or not grant.amounts for grant in hosts
        ):
            left.append(f"a shared host holds {hosts}")
        for name, total in self.resources.total.items():
            if self.resources.available[name] != total:
                left.append(
                    f"{name}: {self.resources.available[name]} of {total} free; {self.state()}"
                )
        return left
