"""The simulated node: the real Node, its rules and machines, over simulated streams and memory.

What    SimNode inherits everything but sockets, processes and files: what it overrides is how
        bytes come and go.
Caller  tests/sim/simulation.py.
Never   repeats a rule of the node: those are what is under test.
"""

from __future__ import annotations

import contextlib
import signal
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol
from unittest.mock import patch

from tests.sim.memory import SimStore
from zray import detect
from zray.actors import guards
from zray.actors.guards import Guards
from zray.brokers import node as node_module
from zray.brokers.node import Node
from zray.detect import NodeResources
from zray.net import channel, mailbox
from zray.protocol.ids import node_id, node_of, process_id

if TYPE_CHECKING:
    from tests.sim.world import Envelope, World

NODE = node_id(b"node")


class Stream:
    """The node's end of one unix stream. What was written arrives, also from the dead."""

    def __init__(self, node: SimNode, number: int, receiver: Callable[[bytes], None]) -> None:
        self.node = node
        self.world = node.world
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
            self.node.wake_soon()

    def hang_up(self) -> None:
        """The process is gone: EOF behind what it wrote."""
        self.open = False
        self.node.wake_soon()

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

    def __init__(
        self,
        world: World,
        own: bytes,
        forward: Callable[[bytes, list[bytes]], None] | None = None,
    ) -> None:
        self.world = world
        self.own = own
        self.known: set[bytes] = set()
        self._forward = forward
        """Hands what is for a process of another node to ours."""

    def _is_foreign(self, peer: bytes) -> bool:
        return self._forward is not None and node_of(peer) != node_of(self.own)

    def connect(self, peer: bytes, _endpoint: str) -> None:
        """Open a way; where the peer is a process it is the way back as well."""
        if self._is_foreign(peer):
            return
        other = self.world.processes.get(peer)
        if other is not None and self.own in self.world.processes:
            if other.dead:
                return
            other.peers.known.add(self.own)
        self.known.add(peer)

    def knows(self, peer: bytes) -> bool:
        return peer in self.known or self._is_foreign(peer)

    def drop(self, peer: bytes) -> None:
        self.known.discard(peer)

    def send(self, peer: bytes, header: bytes, payloads: tuple[bytes, ...] = ()) -> bool:
        world = self.world
        if self._forward is not None and self._is_foreign(peer):
            self._forward(peer, [header, *payloads])
            return True
        if peer not in self.known:
            world.tell_message(
                f"{world.name(self.own)} -| {world.name(peer)} (not connected)", header
            )
            return False
        world.tell_message(f"{world.name(self.own)} -> {world.name(peer)}", header)
        world.post(self.own, peer, header, tuple(payloads))
        return True


class SimWorkerProcess:
    """What the node knows of a forked worker."""

    def __init__(self, process: bytes, pid: int) -> None:
        self.process = process
        self.label = ""
        self.status = None
        self.pid = pid


class SimZygote:
    """The zygote's part in leases: it looks at the table while the node stands still, too.

    Args:
        node: of whose workers it is the parent.
        table: of the node's leases.
    """

    def __init__(self, node: SimNode, table: Any) -> None:
        self.node = node
        self.world = node.world
        self._guards = Guards(table)
        self._due = -1.0

    def add(self, pid: int, slot: int) -> None:
        """GUARD."""
        self._guards.add(pid, slot)
        self._enforce()

    def _enforce(self) -> None:
        if self.node.dead:
            return
        with patch.object(guards, "_signal", self._signal):
            due_s = self._guards.enforce(self.world.now)
        if due_s is not None:
            self.world.after(due_s, "zygote", self._enforce)

    def _signal(self, pid: int, signum: int) -> None:
        identity = process_id(self.node.process, b"w" + pid.to_bytes(3, "big"))
        process = self.world.processes.get(identity)
        if process is None or process.dead:
            return
        self.world.tell(f"{process.name} gets {signal.Signals(signum).name}")
        if signum == signal.SIGCONT:
            process.go_on()
        else:
            process.stopped = True


class SimWorkers:
    """Forks simulated workers."""

    def __init__(self, node: SimNode, start: Callable[[bytes], None]) -> None:
        self.node = node
        self.world = node.world
        self.by_process: dict[bytes, SimWorkerProcess] = {}
        self.zygote_gone = False
        self.exited: list[Any] = []
        self._start = start
        self._count = 0
        self._zygote: SimZygote | None = None

    def fork(self, _env: tuple[tuple[str, str], ...], *, starting: int = 0) -> SimWorkerProcess:
        self._count += 1
        process = process_id(self.node.process, b"w" + self._count.to_bytes(3, "big"))
        self.world.names[process] = f"{self.node.prefix}w{self._count}"
        self.by_process[process] = SimWorkerProcess(process, self._count)
        delay = self.world.rng.uniform(0.001, 0.004)
        self.world.after(delay, "fork", lambda: self._start(process))
        return self.by_process[process]

    def is_stopped(self, process: bytes) -> bool:
        """Return whether the zygote has stopped a worker."""
        found = self.world.processes.get(process)
        return found is not None and found.stopped

    def guard(self, process: bytes, slot: int, table: Any) -> None:
        """Have the zygote stop a worker while its slot of the table of leases is over."""
        self._zygote = self._zygote or SimZygote(self.node, table)
        zygote, pid = self._zygote, self.by_process[process].pid
        self.world.after(
            self.world.rng.uniform(0.0, 0.001), "zygote", lambda: zygote.add(pid, slot)
        )

    def kill(self, process: bytes, _signum: int = 9) -> None:
        self.world.tell(f"{self.node.name} kills {self.world.name(process)}")
        self.world.after(0.0001, "kill", lambda: self._kill(process))

    def _kill(self, process: bytes) -> None:
        victim = self.world.processes.get(process)
        if victim is not None:
            victim.crash("killed by the node")

    def read_output(self) -> None:
        return None

    def forget(self, process: bytes) -> SimWorkerProcess | None:
        return self.by_process.pop(process, None)


class _Functions(dict[bytes, bytes]):
    """Code by its hash."""

    def put(self, function: bytes, code: bytes) -> None:
        self[function] = code


class SimCatalog:
    """The GCS tables the rules write to: names of actors; the rest has tests of its own."""

    def __init__(self) -> None:
        self.names: dict[tuple[str, str], bytes] = {}
        self.tables = self
        self.functions = _Functions()
        self.lineage_written: list[Any] = []

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


class Readable(Protocol):
    """What the poller looks at."""

    @property
    def readable(self) -> bool: ...


class _Inbox:
    """The node's ZeroMQ inbox: what comes by it is in SimNode._mail."""

    endpoint = "node"
    descriptor = -1


class _Wake:
    """What other threads of the node would end its sleep with."""

    readable = False

    def __init__(self, node: SimNode) -> None:
        self.set = node.wake_soon
        self._descriptor = node.add_descriptor(self)

    def fileno(self) -> int:
        return self._descriptor

    def clear(self) -> None:
        return


class _Clock:
    """The module time, with the world's time in it."""

    def __init__(self, world: World) -> None:
        self.monotonic = self.time = lambda: world.now


class SimListener:
    """Connections that the node has not accepted yet."""

    descriptor = 0

    def __init__(self) -> None:
        self.pending: deque[Stream] = deque()
        self.refused = 0

    def fileno(self) -> int:
        return self.descriptor

    @property
    def readable(self) -> bool:
        return bool(self.pending)

    def accept(self) -> Stream | None:
        return self.pending.popleft() if self.pending else None


class SimPoller:
    """Says which streams are readable, in any order."""

    def __init__(self, node: SimNode) -> None:
        self.node = node

    def register(self, _descriptor: int, _events: int) -> None:
        return

    def unregister(self, _descriptor: int) -> None:
        return

    def poll(self, _timeout_s: float) -> list[tuple[int, int]]:
        node = self.node
        ready = [(number, 1) for number in node.callbacks if node.streams[number].readable]
        node.world.rng.shuffle(ready)
        return ready


class SimNode(Node):
    """The real node over simulated streams: one wake is one event of the world.

    Args:
        world: of which it becomes a node.
        start_worker: called with the id of each process that is to be a worker.
        total: its resources in units.
        capacity_bytes: of its store.
        process: its id.
        name: for the story; its workers are named after it where there are other nodes.
        settings: as Node has them: "labels", and "cluster" where it is to have others.
    """

    store: SimStore
    check_every = 1
    """Wakes between two looks at the invariants."""

    def __init__(
        self,
        world: World,
        start_worker: Callable[[bytes], None],
        *,
        total: dict[str, int],
        capacity_bytes: int,
        process: bytes = NODE,
        name: str = "node",
        settings: dict[str, Any] | None = None,
    ) -> None:
        self.world = world
        self.name = name
        self.prefix = "" if process == NODE else f"{name}."
        self.dead = False
        self.stopped_until = 0.0
        """It stands still (SIGSTOP) until then."""
        self.slowness = 1.0
        self.memory: dict[int, bytes] = {}
        """What lies in its segment, by offset; a freed extent is not there."""
        self.streams: dict[int, Readable] = {}
        self._waking = False
        self._due_at = world.now
        """When it has something to do, whatever is readable."""
        self._wakes = 0
        self._due = -1.0
        self._mail: list[Envelope] = []
        self.listener = SimListener()
        world.names[process] = name
        world.nodes[process] = self
        found = NodeResources(total, ())
        asked = {**(settings or {}), "object_store_memory": capacity_bytes}
        with _simulated(self, process, found, start_worker):
            super().__init__("", asked, None)  # type: ignore[arg-type]
        self.scheduler.now = self.now
        self._tick_later()

    # -- what comes ------------------------------------------------------------------------------

    def connect(self, receiver: Callable[[bytes], None]) -> Stream:
        """A process connects: the node reads its HELLO at the next wake."""
        stream = Stream(self, len(self.streams), receiver)
        self.streams[stream.number] = stream
        self.listener.pending.append(stream)
        self.wake_soon()
        return stream

    def mail_arrived(self, envelope: Envelope) -> None:
        """A mailbox message is readable."""
        self._mail.append(envelope)
        self.wake_soon()

    def add_descriptor(self, readable: Readable) -> int:
        """Return a number that the poller knows something readable by."""
        number = len(self.streams)
        self.streams[number] = readable
        return number

    def wake_soon(self) -> None:
        """Something is readable: the loop comes to it."""
        if not self._waking and not self.dead:
            self._waking = True
            delay_s = self.world.rng.expovariate(1 / 0.0001) * self.slowness
            self.world.at(max(self.stopped_until, self.world.now + delay_s), "wake", self._wake)

    def _wake(self) -> None:
        if self.dead:
            return
        if self.world.now < self.stopped_until:  # It was stopped after it was roused.
            self.world.at(self.stopped_until, "wake", self._wake)
            return
        self._waking = False
        self.now = self.world.now
        mail, self._mail = self._mail, []
        received = [(each.sender, each.header, list(each.payloads)) for each in mail]
        ready = self.poller.poll(0)
        if received or self.now >= self._due_at or not self._only_carries(ready):
            self._serve(self.poller.poll(0), received)
            self._due_at = self.now + self._timeout_s(self.now)
        self._wakes += 1
        if self._wakes % self.check_every == 0:
            self.check()
        if self.stopping is not None:
            self.end()
            return
        self._tick_later()
        if any(self.streams[number].readable for number in self.callbacks):
            self.wake_soon()

    def _tick_later(self) -> None:
        due = self._due_at
        if due <= self.world.now:
            self.wake_soon()
            return
        if self._due <= self.world.now or due < self._due:
            self._due = due
            self.world.at(due, "tick", self.wake_soon)

    def end(self) -> None:
        """Be dead: the node has stopped by its own decision."""
        raise AssertionError(f"the node stops: {self.stopping}")

    def handle_call(self, process: Any, packed: bytes) -> None:
        self.world.tell_message(f"{self.world.name(process.identity)} => {self.name}", packed)
        super().handle_call(process, packed)

    def routing_id(self, identity: bytes) -> bytes:
        return identity  # Nobody lies here.

    def refuse(self, process: Any, error: Exception) -> None:
        raise AssertionError(f"{self.name} refused a message of {process}: {error!r}") from error

    def process_gone(self, identity: bytes, reason: str) -> None:
        self.world.tell(f"{self.name} sees the death of {self.world.name(identity)}")
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


@contextlib.contextmanager
def _simulated(
    node: SimNode, process: bytes, found: NodeResources, start_worker: Callable[[bytes], None]
) -> Iterator[None]:
    """Give a node that is made now what stands for sockets, processes, files and clocks."""
    listener = node.listener
    listener.descriptor = node.add_descriptor(listener)
    shells: dict[str, Any] = {
        "Catalog": lambda *_a, **_n: SimCatalog(),
        "OutputLog": lambda _directory: None,
        "Store": lambda capacity, *_a, **_n: SimStore(capacity, node),
        "Wake": lambda: _Wake(node),
        "Workers": lambda *_a, **_n: SimWorkers(node, start_worker),
        "new_poller": lambda: SimPoller(node),
        "time": _Clock(node.world),
    }
    with (
        patch.multiple(node_module, **shells),
        patch.multiple(
            mailbox,
            Inbox=lambda *_a: _Inbox(),
            Peers=lambda *_a: SimPeers(node.world, process),
            new_context=lambda: None,
        ),
        patch.multiple(
            detect, detect_memory_bytes=lambda: 0, node_resources=lambda **_named: found
        ),
        patch.object(channel, "Listener", lambda *_a, **_n: listener),
        patch("os.urandom", lambda count: process[:count].ljust(count, b"\0")),
    ):
        yield
