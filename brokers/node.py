"""The node router: sockets around the scheduler, the dispatcher, the directory and the store.

What    One poll loop. Each wake drains the inbox, then every unix stream, and handles the streams
        first: whatever a process told its node before it sent a message is known when the message
        is handled. Machines answer with commands, which are performed at the end of the wake.
Caller  brokers/__main__.py.
Never   decides: the machines do. Never unpickles. Never blocks on one peer.
Spec    docs/reference/protocol.md; docs/explanation/architecture.md.
"""

from __future__ import annotations

import contextlib
import os
import time
import traceback
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from zray import detect, errors, node_directory
from zray.net import channel, mailbox, tokens
from zray.net.poller import READABLE, WRITABLE, new_poller
from zray.net.wake import Wake
from zray.protocol import frames, messages
from zray.protocol.ids import NODE_PREFIX_BYTES, PROCESS_ID_BYTES, node_id, node_of
from zray.protocol.limits import (
    ANSWERS_BYTES_MAX,
    LIFELINE_BACKLOG_BYTES_MAX,
    LINEAGE_BYTES_MAX,
    SHUTDOWN_GRACE_S,
    WORKER_IDLE_S,
    WORKER_START_TIMEOUT_S,
)
from zray.protocol.roles import Role
from zray.serialization.exceptions import encode_exception
from zray.store.segment import default_capacity_bytes

from .bundles import Accounts
from .deaths import process_gone
from .directory import Directory
from .dispatcher import Dispatcher
from .event_queries import EventQueries
from .gcs.catalog import Catalog
from .health import Health
from .node_calls import CALL_RULES, answer_code
from .node_commands import perform_all
from .node_mailbox import MAILBOX_RULES
from .node_outcomes import error_outcome
from .output import OutputLog, bound_log
from .peers import Process, Processes
from .placement_groups import PlacementGroups
from .printed_lines import PrintedLines
from .process_questions import ProcessQuestions
from .queries import Answer, Queries
from .reception import Reception
from .scheduler import Scheduler
from .scheduling import JOB_VARIABLE, Fork, job_of
from .shared_tables import OwnTables, SharedTables
from .store import Store
from .validation import check_fields
from .workers import NoZygote, Workers, Zygote, describe_exit

if TYPE_CHECKING:
    from .cluster import Cluster

_TICK_S = 0.01
_SWEEP_S = 0.5
_BATCH_MESSAGES = 1000
"""Messages handled in one wake: the unix streams get their turn in between."""
_TELL_S = 10.0
_READY_S = 1.0
_JOIN_S = 8.0
"""A node that is to join others waits for them so long before it says that it is there."""


def _answers() -> dict[str, Answer]:
    # Who starts a node waits for all that is imported before it is asked anything.
    from .node_answers import ANSWERS

    return ANSWERS


class Node:
    """One node: see the module's docstring.

    Args:
        directory: this node's private directory (0700).
        settings: num_cpus, num_gpus, memory, resources, object_store_memory, spill_directory and
            ``embedded`` (the node ends with its first driver).
        zygote: the process that forks workers.
    """

    def __init__(self, directory: str, settings: dict[str, Any], zygote: Zygote | NoZygote) -> None:
        self.directory = directory
        self.settings = settings
        self.embedded = bool(settings.get("embedded"))
        self.process = node_id(os.urandom(NODE_PREFIX_BYTES))
        self.secret = os.urandom(tokens.SECRET_BYTES)
        """Known to the processes of this node alone: by it they believe each other."""
        self.started_at = time.time()
        self.stopping: str | None = None
        self.begins_anew = False
        """Whether this process is to start the node again when this life is over."""
        self.poller = new_poller()
        self.callbacks: dict[int, Callable[[], None]] = {}
        self.carriers: set[int] = set()
        """Descriptors of which most wakes change nothing here, see watch()."""
        self.stirred = False
        """Whether a wake of those has changed something after all."""
        self.wake = Wake()
        self.watch(self.wake.fileno(), self.wake.clear)
        self.printed = PrintedLines(self)
        self.workers = Workers(
            zygote,
            node=self.process,
            on_lines=self.printed.add,
            watch=self.watch,
            unwatch=self.unwatch,
        )
        self._set_up_tables()
        self._set_up_sockets()
        self.malformed = 0
        self.early: list[tuple[Process, bytes]] = []
        self.releases: list[tuple[bytes, list[Any], list[bytes]]] = []
        """Calls RELEASE, to be heeded when the streams have been read once more."""
        self.looking_again = False
        self.event_queries = EventQueries(self)
        self.process_questions = ProcessQuestions(self)
        self.queries = Queries(self, _answers)
        self.health = Health(self)
        self.shared_tables: SharedTables = OwnTables(self)
        """Those of the cluster, where it has a GCS process."""
        self.placement_groups = PlacementGroups(self, self.resources)
        self.cluster: Cluster | None = None
        """Set where there may be other nodes."""
        self.on_ready: Callable[[], None] | None = None
        """Called once, when the first worker is there (or has not come for a second)."""
        self.now = time.monotonic()
        self._ready_by = self.now + _READY_S
        self._join_by = self.now + _JOIN_S
        self._next_sweep = self.now + _SWEEP_S
        self._put_off: list[Fork] = []
        """Workers that could not be forked: for the next sweep."""
        self._told_of_forks = float("-inf")
        self.output_log = None if self.embedded else OutputLog(directory)
        self.scheduler.start_pool()
        perform_all(self)

    def _set_up_tables(self) -> None:
        settings = self.settings
        memory = detect.detect_memory_bytes()
        capacity = int(settings.get("object_store_memory") or default_capacity_bytes(memory))
        found = detect.node_resources(
            num_cpus=settings.get("num_cpus"),
            num_gpus=settings.get("num_gpus"),
            memory=settings.get("memory"),
            resources=settings.get("resources"),
            object_store_bytes=capacity,
        )
        self.resources = Accounts(found.total, found.gpu_ids)
        self.role = Role((settings.get("cluster") or {}).get("role", Role.NODE))
        cpus = max(1, found.total.get("CPU", 0) // 10000)
        self.scheduler = Scheduler(
            self.resources,
            pool_size=min(cpus, 64) if self.role is Role.NODE else 0,
            node=self.process,
            labels=settings.get("labels"),
            runs_work=self.role is Role.NODE,
        )
        self.dispatcher = Dispatcher(shared_hosts=cpus)
        self.objects = Directory(b"" if settings.get("cluster") is None else self.process)
        self.objects.owner_died_outcome = error_outcome(
            errors.OwnerDiedError(
                "the process that was to make this object died before it had a value"
            )
        )
        self.objects.lost_outcome = error_outcome(
            errors.ObjectLostError(
                "the node does not have this object: its last reference was given up"
            )
        )
        self.store = Store(
            capacity,
            self.objects,
            settings.get("spill_directory") or os.path.join(self.directory, "spill"),
            ask_clients=self._ask_clients,
            unpin=self._unpin,
            wake=self.wake.set,
            spill_shared=bool(settings.get("spill_directory")),
        )
        self.gcs = Catalog(
            os.path.join(self.directory, "gcs"),
            node=self.process,
            durable=not self.embedded,
            resources=dict(found.total),
            lineage_bytes_max=settings.get("lineage_bytes", LINEAGE_BYTES_MAX),
        )

    def _set_up_sockets(self) -> None:
        self.context = mailbox.new_context()
        self.inbox = mailbox.Inbox(self.context, mailbox.ipc_endpoint(self.directory, "node"))
        self.peers = mailbox.Peers(self.context, self.routing_id(self.process))
        self.processes = Processes()
        path = os.path.join(self.directory, "node.sock")
        self.reception = Reception(self, path, self._joined)
        self.poller.register(self.inbox.descriptor, READABLE)

    # -- polling ---------------------------------------------------------------------------------

    def watch(
        self, descriptor: int, callback: Callable[[], None], *, carries: bool = False
    ) -> None:
        """Call back whenever the descriptor is readable.

        Args:
            descriptor: to poll.
            callback: never blocks.
            carries: it sets ``stirred`` where it does anything but pass on what processes of two
                nodes say to each other.
        """
        self.callbacks[descriptor] = callback
        if carries:
            self.carriers.add(descriptor)
        self.poller.register(descriptor, READABLE)

    def unwatch(self, descriptor: int) -> None:
        """Stop watching a descriptor that is about to be closed."""
        if self.callbacks.pop(descriptor, None) is not None:
            self.poller.unregister(descriptor)
            self.carriers.discard(descriptor)

    def run(self) -> None:
        """Serve until stopped."""
        inbox_fd = self.inbox.descriptor
        more, due_at = True, 0.0
        while self.stopping is None:
            ready = self.poller.poll(max(0.0, due_at - time.monotonic()))
            self.now = time.monotonic()
            if self.now < due_at and self._only_carries(ready):
                continue
            received: list[mailbox.Message] = []
            if more or any(descriptor == inbox_fd for descriptor, _events in ready):
                # The descriptor is edge-triggered: it speaks again only after the inbox has
                # been found empty (nothing is ever sent on this socket that could swallow it).
                received, more = self._drain_inbox()
            if received:
                # What was written to a stream before one of these messages was sent is readable
                # by now, though it may not have been when poll returned.
                ready = self.poller.poll(0)
            self._serve(ready, received)
            now = time.monotonic()
            due_at = 0.0 if more else now + self._timeout_s(now)
        self._shut_down()

    def _serve(self, ready: list[tuple[int, int]], received: list[mailbox.Message]) -> None:
        """Handle what one wake has brought, in the order that the module's docstring promises."""
        self._serve_streams(ready)
        if self.early or self.releases:
            self._second_look()
        if self.cluster is not None:
            self.cluster.serve()
        for sender, header, payloads in received:
            self._handle_message(sender, header, payloads)
        self._duties()
        if self.cluster is not None:
            self.cluster.after_wake()
        perform_all(self)

    def _only_carries(self, ready: list[tuple[int, int]]) -> bool:
        """Serve a wake in which others' messages pass through and nothing of ours changes.

        To look at all else cost four times as much as to pass one on. False: there is more.
        """
        if self.cluster is None or not ready:
            return False
        for descriptor, _events in ready:
            if descriptor not in self.carriers:
                return False
        self.stirred = False
        self._serve_streams(ready)
        if self.cluster.has_more and not self.stirred:
            self.cluster.carry()
        return not self.stirred

    def _serve_streams(self, ready: list[tuple[int, int]]) -> None:
        for descriptor, _events in ready:
            callback = self.callbacks.get(descriptor)
            if callback is not None:
                callback()

    def _second_look(self) -> None:
        """Handle what must come after all that was written before it, to whichever stream.

        Calls that named something nobody had told of: a process may have learnt of it from
        another one, whose own stream was read before it wrote of it: that is readable by now.
        And releases: who gives up a reference may have passed it on before.
        """
        early, self.early = self.early, []
        releases, self.releases = self.releases, []
        self._serve_streams(self.poller.poll(0))
        self.looking_again = True
        for process, packed in early:
            self.handle_call(process, packed)
        self.looking_again = False
        for process_id, deltas, results in releases:
            self.objects.release(process_id, deltas, results)

    def not_yet(self, process: Process, message: list[Any]) -> bool:
        """Put off a call whose object or actor is unknown; False where it was put off before."""
        if self.looking_again:
            return False
        self.early.append((process, frames.pack(*message[1:2], *message[3:])))
        return True

    def _timeout_s(self, now: float) -> float:
        if self.early or self.releases:
            return 0.0  # Found when the streams were read for the second time.
        due = self._next_sweep - now
        if self.scheduler.needs_tick() or self.store.waiting or self._is_asked:
            due = min(due, _TICK_S)
        if self.cluster is not None:
            due = min(due, self.cluster.due_s)
        due = min(due, self.placement_groups.due_s)
        return max(0.0, due)

    def _drain_inbox(self) -> tuple[list[mailbox.Message], bool]:
        """Return what has arrived, and whether there may be more."""
        received: list[mailbox.Message] = []
        while (message := self.inbox.receive()) is not None:
            received.append(message)
            if len(received) >= _BATCH_MESSAGES:
                return received, True
        return received, False

    def _handle_message(self, sender: bytes, header: bytes, payloads: list[bytes]) -> None:
        process = self.processes.by_routing_id.get(sender)
        if process is None:
            if not self.processes.has_left(sender[:PROCESS_ID_BYTES]):
                self.malformed += 1  # Nobody who said HELLO.
            return
        try:
            message = frames.unpack(header)
            rule = MAILBOX_RULES.get(message[1])
            if rule is None or message[2] != len(payloads):
                raise errors.RemoteProtocolError("not a message for a node")
            check_fields(message)
            if self.cluster is not None and self.cluster.take_mail(process, message[1], header):
                return
            rule(self, process, message, payloads)
        except Exception as error:  # A broken client must not end the node that serves others.
            self.refuse(process, error)

    def refuse(self, process: Process, error: Exception) -> None:
        """Count and show what a process should not have sent."""
        self.malformed += 1
        if self.malformed < 100:
            print(f"refused a message of {process}: {error!r}", flush=True)
            if not isinstance(error, errors.ZrayError):
                traceback.print_exception(error)  # Our own fault, unless the sender is hostile.

    def _duties(self) -> None:
        now = self.now
        if self.on_ready is not None and self._is_ready(now):
            on_ready, self.on_ready = self.on_ready, None
            on_ready()
        while self.workers.exited:
            worker = self.workers.exited.popleft()
            if worker.process in self.processes.starting:
                # It died before its HELLO: no lifeline tells of it.
                self.process_gone(worker.process, describe_exit(worker.status))
        self.placement_groups.serve()
        self.store.settle()
        if self.store.waiting:
            self.store.serve(now)
        if self.scheduler.needs_tick():
            self.scheduler.tick(now)
        if self.printed.gathered:
            self.printed.send()
        if self._is_asked:
            self.event_queries.settle(now)
            self.process_questions.settle(now)
            self.queries.settle(now)
        if now >= self._next_sweep:
            self._next_sweep = now + _SWEEP_S
            self.scheduler.retire(now, WORKER_IDLE_S)
            self.gcs.flush(time.time())
            self._sweep_starting(now)
            if self._put_off:
                put_off, self._put_off = self._put_off, []
                self.scheduler.commands.extend(put_off)
            self.reception.sweep(now)
            self._sweep_jobs()
            if self.cluster is not None:
                self.cluster.sweep()
            if self.workers.zygote_gone and self.stopping is None:
                self.stopping = "the zygote died"
            if os.getppid() != self.settings.get("parent", os.getppid()):
                # It died before it connected, or a child of its holds its lifeline open.
                self.stopping = "who started it has died"

    @property
    def _is_asked(self) -> bool:
        """Whether somebody waits for an answer that is gathered."""
        return bool(self.queries or self.process_questions or self.event_queries)

    def _is_ready(self, now: float) -> bool:
        """Whether a driver finds a worker here, and what the cluster shares."""
        if self.role is not Role.NODE:
            return True  # No worker is to come, and who waits asks whether it has joined.
        if self.cluster is not None and not self.cluster.is_settled and now < self._join_by:
            return False
        return bool(self.scheduler.idle) or now > self._ready_by

    def _sweep_jobs(self) -> None:
        if self.output_log is not None:
            bound_log(os.path.join(self.directory, "node.log"))
        if self.dispatcher.hosts:
            self.dispatcher.retire_hosts({identity.hex() for identity in self.processes.drivers})
        if len(self.processes.jobs) > len(self.processes.drivers):
            living = {job_of(worker.env) for worker in self.scheduler.workers.values()}
            living.update(
                actor.details["env"][JOB_VARIABLE] for actor in self.dispatcher.actors.values()
            )
            self.processes.forget_jobs(living)

    def job_of(self, process: Process) -> str:
        """Return the job a process belongs to, in hex: a driver is one, a worker serves one."""
        if process.role == "driver":
            return process.identity.hex()
        worker = self.scheduler.workers.get(process.identity)
        return job_of(worker.env) if worker is not None else ""

    def routing_id(self, identity: bytes) -> bytes:
        """Return what a process's messages show of their sender, and nobody else's can."""
        return tokens.routing_id(self.secret, identity)

    def _sweep_starting(self, now: float) -> None:
        for process in self.processes.starting_before(now - WORKER_START_TIMEOUT_S):
            self.workers.kill(process)
            self.process_gone(process, "it did not start in time")

    # -- processes -------------------------------------------------------------------------------

    def _joined(
        self, stream: channel.Channel, role: str, identity: bytes, pid: int, details: dict[str, Any]
    ) -> None:
        """HELLO was in order: this connection is a process's lifeline, or its calls."""
        if role == "calls":
            process = self.processes.by_id[identity]
            process.calls = stream
            self.watch(stream.fileno(), partial(self._read_calls, process), carries=True)
            return
        process = self.processes.join(identity, role, pid, stream, details)
        if role == "observer":
            stream.queue(frames.pack(messages.WELCOME, {"node": self.process}))
            self.watch(stream.fileno(), lambda: self._read_lifeline(process))
            return
        self.processes.by_routing_id[self.routing_id(identity)] = process
        self.peers.connect(identity, details["endpoint"])
        self.objects.process_joined(identity)
        descriptors = self.store.segment.fds()
        welcome = {
            "node": self.process,
            "secret": self.secret,
            "endpoint": self.inbox.endpoint,
            "capacity": self.store.segment.capacity_bytes,
            "resources": self.resources.total,
            "directory": self.directory,
            "role": self.role,
        }
        stream.queue(frames.pack(messages.WELCOME, welcome), descriptors)
        self.watch(stream.fileno(), lambda: self._read_lifeline(process))
        if role == "driver":
            now = time.time()
            self.gcs.job_started(identity, pid, details, now)
            self.processes.driver_joined(process)
            self.shared_tables.job_started(identity, pid, str(details.get("entrypoint", "")), now)
        else:
            self.scheduler.worker_ready(identity)

    def _read_lifeline(self, process: Process) -> None:
        try:
            _received, alive = process.lifeline.drain()
        except errors.RemoteProtocolError as error:
            self.refuse(process, error)
            alive = False
        if not alive:
            self.process_gone(process.identity, "")

    def _read_calls(self, process: Process) -> None:
        calls = process.calls
        if calls is None:
            return
        try:
            received, alive = calls.drain()
        except errors.RemoteProtocolError as error:
            self.refuse(process, error)
            received, alive = [], False
        for packed in self.own_calls(process, received):
            self.stirred = True
            self.handle_call(process, packed)
            if calls.outbound_bytes > ANSWERS_BYTES_MAX:
                fault = errors.RemoteProtocolError("it asks and does not read the answers")
                self.refuse(process, fault)
                alive = False
                break
        if not alive:
            self.process_gone(process.identity, "")

    def own_calls(self, process: Process, received: list[bytes]) -> Iterable[bytes]:
        """Pass on what a process says to those of other nodes, and return the rest, in order."""
        return received if self.cluster is None else self.cluster.relays.passed(process, received)

    def handle_call(self, process: Process, packed: bytes) -> None:
        """Obey one message of a process's calls; what is malformed is counted, never fatal."""
        try:
            message = frames.unpack(packed)
            rule = CALL_RULES.get(message[1])
            if rule is None:
                raise errors.RemoteProtocolError("not a call to a node")
            check_fields(message)
            if self.cluster is not None and self.cluster.take_call(process, message[1], packed):
                return
            rule(self, process, message)
        except Exception as error:  # A broken client must not end the node that serves others.
            self.refuse(process, error)
            if process.calls is not None and _asks(packed):
                self.answer(process, None, error)

    def kill_worker(self, identity: bytes) -> None:
        """Kill a worker of ours, or have a borrowed one killed."""
        if self.cluster is not None and node_of(identity) != self.process:
            self.cluster.end_worker(identity)
        else:
            self.workers.kill(identity)

    def code_arrived(self, function: bytes, code: bytes) -> None:
        """The code of a function is here: workers may wait for it."""
        self.gcs.tables.functions.put(function, code)
        if self.cluster is not None:
            self.cluster.code.is_here(function, code)
        for waiter in self.processes.waiting_for_function.pop(function, ()):
            answer_code(self, waiter, function, code)

    def put_off(self, command: Fork, error: OSError) -> None:
        """A worker could not be forked, for want of descriptors or memory: try again soon."""
        if self.now > self._told_of_forks + _TELL_S:
            self._told_of_forks = self.now
            print(f"a worker can't be started now: {error}", flush=True)
        self._put_off.append(command)

    def process_gone(self, identity: bytes, reason: str) -> None:
        """A driver or worker is dead: everything derives from this one fact."""
        self.stirred = True
        process_gone(self, identity, reason)

    # -- sending ---------------------------------------------------------------------------------

    def process_of(self, identity: bytes) -> Process | None:
        """Return a process of this node, or a borrowed worker."""
        found = self.processes.by_id.get(identity)
        if found is None and self.cluster is not None:
            return self.cluster.borrowed.get(identity)
        return found

    def send(self, peer: bytes, kind: int, *fields: Any, payloads: tuple[bytes, ...] = ()) -> None:
        """Send to a process's mailbox, or to another node."""
        if self.cluster is not None and node_of(peer) != self.process:
            header = frames.pack(kind, *fields, payloads=len(payloads))
            self.cluster.to_process(peer, header, payloads)
            return
        self.peers.send(peer, frames.pack(kind, *fields, payloads=len(payloads)), payloads)

    def tell(self, identity: bytes, kind: int, *fields: Any) -> None:
        """Send on a process's lifeline."""
        process = self.process_of(identity)
        if process is not None:
            process.lifeline.queue(frames.pack(kind, *fields))
            if process.lifeline.outbound_bytes:
                self._flush_later(process.lifeline, lambda: self._read_lifeline(process))

    def _flush_later(self, stream: channel.Channel, read: Callable[[], None]) -> None:
        """The kernel did not take all of it: send the rest when it can."""
        descriptor = stream.fileno()
        self.poller.modify(descriptor, READABLE | WRITABLE)

        def ready() -> None:
            if stream.flush():
                self.poller.modify(descriptor, READABLE)
                self.callbacks[descriptor] = read
            read()

        self.callbacks[descriptor] = ready

    def answer(self, process: Process, value: Any, error: Exception | None = None) -> None:
        """Answer a request on the connection it came by."""
        if process.calls is None:
            return
        packed = None if error is None else encode_exception(error, where="node")
        process.calls.queue(frames.pack(messages.ANSWER, packed, value))
        if process.calls.outbound_bytes:
            self._flush_later(process.calls, lambda: self._read_calls(process))

    def _ask_clients(self) -> None:
        for identity in self.processes.by_id:
            self._ask(identity, messages.RECLAIM_STORE)

    def _unpin(self, wanted: dict[bytes, list[bytes]]) -> None:
        for identity, objects in wanted.items():
            self._ask(identity, messages.UNPIN, objects)

    def _ask(self, identity: bytes, kind: int, *fields: Any) -> None:
        """Tell what will be told again; not to a process that does not read its lifeline."""
        process = self.processes.by_id.get(identity)
        if process and process.lifeline.outbound_bytes <= LIFELINE_BACKLOG_BYTES_MAX:
            self.tell(identity, kind, *fields)

    # -- the end -----------------------------------------------------------------------------------

    def stop(self, reason: str) -> None:
        """End after this wake."""
        self.stopping = reason

    def _shut_down(self) -> None:
        self.scheduler.stop_forking()  # Or every worker that ends now would be replaced.
        for identity in list(self.processes.by_id):
            self.tell(identity, messages.EXIT, f"the node stops: {self.stopping}")
        self._await_workers()
        all_ended = self.workers.close()
        self.reception.close()
        if self.printed.gathered:
            self.printed.send()
        if self.output_log is not None:
            self.output_log.close()
        self.gcs.close(time.time())
        if self.cluster is not None:
            self.cluster.close(all_ended=all_ended)
        self.store.close()
        for process in self.processes.by_id.values():
            process.lifeline.close()
            if process.calls is not None:
                process.calls.close()
        self.peers.close()
        self.inbox.close()
        self.context.destroy(0)
        self.poller.close()
        for path in node_directory.dead_files(self.directory):
            # A driver that is still there may remove its own at the same time.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def _await_workers(self) -> None:
        deadline = time.monotonic() + SHUTDOWN_GRACE_S
        grace = min(deadline, time.monotonic() + 0.2)
        while self.workers.by_process and time.monotonic() < grace:
            for descriptor, _events in self.poller.poll(0.02):
                callback = self.callbacks.get(descriptor)
                if callback is not None:
                    callback()


def _asks(packed: bytes) -> bool:
    """Whether the sender of this malformed call waits for an answer."""
    kind = packed[2]
    return kind in (
        messages.GET_FUNCTION,
        messages.ALLOCATE,
        messages.KV,
        messages.GROUP,
        messages.INSPECT,
        messages.NAMED_ACTOR,
        messages.LIST_NAMED,
    )
