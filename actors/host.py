"""The worker process: receives work, runs it, sends what came of it.

What    Host joins a Runtime (this worker is a client like any driver), the work queue and the
        executors. The main thread waits for work the way a driver waits in get: it reads the
        inbox itself. The background thread answers the node: takes back, cancels, ends.
        In a worker that actors share, a thread that waits inside a method hands its place to
        another, so that the actors it waits for can run.
Caller  actors/zygote.py, in a freshly forked child.
Never   runs user code anywhere but in the main thread, an actor's own threads or its loop.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any

import zray.context
from zray import api, runtime_state
from zray.protocol import frames, messages
from zray.protocol.limits import BLOCKED_AFTER_S, EDGE_BACKLOG_BYTES_MAX, RESULT_LINGER_US
from zray.runtime import Runtime
from zray.serialization import functions

from . import context
from .actor_runner import ActorRunner
from .event_loop import EventLoop
from .events import Events, Stretch
from .interrupts import Interrupts
from .outbound import Outbound
from .running import Running
from .streams import Streams
from .task_runner import TaskRunner
from .values import Values
from .work import ActorCall, ActorEnd, ActorStart, TaskClass, TaskRange, WorkQueue

_LINGER_S = RESULT_LINGER_US / 1e6
_DRAIN_S = 1.0
"""How long a worker that ends waits for callers to take their results."""
_REPORT_S = 0.02
"""Time for the node to handle the last reports before it sees the worker's end."""
_EARLY_MAX = 10_000
_ROOM_S = 0.1
_ITEMS_IDLE_S = 0.05
"""A worker that has had nothing to do for so long gets no more of the last map."""


class Host:
    """One worker process."""

    def __init__(self, directory: str, process: bytes) -> None:
        self.runtime = Runtime(directory, process, "worker")
        self.queue = WorkQueue()
        self.classes: dict[tuple[bytes, int], TaskClass] = {}
        self.code: dict[bytes, Any] = {}
        self.exiting: str | None = None
        self.shared = False
        """Actors of isolation "shared" live here."""
        self.main_thread = threading.get_ident()
        self.event_loop: EventLoop | None = None
        self.outbound = Outbound(self.runtime)
        self.events = Events(self.runtime)
        values = Values(self.runtime)
        self.streams = Streams(values, self.outbound)
        self.interrupts = Interrupts(self.runtime, self.wake_main)
        self.tasks = TaskRunner(self, values)
        self.actors = ActorRunner(self, values)
        self._early: dict[tuple[bytes, int, int], None] = {}
        """Tasks cancelled before they arrived: the lifeline overtook the inbox."""
        self._gpus: list[str] | None = None
        self._servers = 1
        self.order = threading.Lock()
        """Held while a call is taken and its actor with it: several threads may serve actors."""
        self._blocked = 0
        self._told_blocked = False
        self._blocking = threading.Lock()
        runtime = self.runtime
        runtime.worker_message = self._on_message
        runtime.before_flush = self.outbound.gather
        runtime.on_blocked = self.report_blocked
        runtime.patience_s = self.patience_s
        runtime.child_made = lambda number: context.note_child(runtime, number)
        zray.context.set_provider(context.current)
        runtime.lifeline_rules.update(
            {
                messages.RECLAIM: self._on_reclaim,
                messages.INTERRUPT: self._on_interrupt,
                messages.EXIT: self._on_exit,
                messages.END_ACTOR: self._on_end_actor,
                messages.EVENTS_WANTED: lambda message: self.events.send(message[3]),
            }
        )
        runtime_state.install(runtime, Running(self).details)

    def _join_job(self, job: dict[str, Any]) -> None:
        """Import what the job's driver can import, in its order, from where it runs."""
        path = list(job["path"])
        sys.path[:] = path + [entry for entry in sys.path if entry not in path]
        if job["cwd"] and os.path.isdir(job["cwd"]):
            os.chdir(job["cwd"])
        os.environ["ZRAY_JOB_ID"] = job["job"]
        self.runtime.namespace = job["namespace"]
        self.runtime.env_vars = job["env_vars"]

    # -- the main loop ---------------------------------------------------------------------------

    def serve(self) -> int:
        """Run work until told to end."""
        api.set_runtime(self.runtime)
        api.in_worker = True
        self.interrupts.install()
        self.runtime.start()
        items, runtime, stretch = self.queue.items, self.runtime, self.events.stretch
        while self.exiting is None:
            if self.is_full:
                self.await_room()
                continue
            if self.event_loop is not None and not self.shared:
                self.event_loop.serve()
                break
            if self.shared:
                self._serve_shared(substitute=False)
                break
            if not items:
                if stretch.count:
                    stretch.close(time.monotonic())
                if self.outbound.unsent or runtime.session.outbox:
                    runtime.flush()
                if self.tasks.keeps_items and not runtime.wait_for_work(
                    self._has_work, _ITEMS_IDLE_S
                ):
                    self.tasks.let_go()
                    runtime.flush()
                runtime.wait_for_work(self._has_work)
                continue
            try:
                item = items.popleft()
            except IndexError:
                continue
            self.perform(item)
            self.linger(stretch)
        return self._finish()

    def _has_work(self) -> bool:
        return bool(self.queue.items) or self.exiting is not None

    def _finish(self) -> int:
        runtime = self.runtime
        runtime.flush()
        self.events.stretch.close(time.monotonic())
        self.events.send()  # Before ACTOR_EXIT: the node ends this process when it has read that.
        self.actors.close()
        runtime.flush()
        runtime.drain_outbound(_DRAIN_S)
        api.set_runtime(None)
        zray.context.set_provider(None)
        runtime.close()
        return 0

    def perform(self, item: Any) -> None:
        """Run one item of the queue."""
        if type(item) is ActorCall:
            self.actors.call(item)
        elif type(item) is TaskRange:
            self.tasks.run(item)
        elif type(item) is ActorStart:
            self._start_actor(item)
        elif type(item) is ActorEnd:
            self.actors.end(item)

    def _start_actor(self, start: ActorStart) -> None:
        if start.details["isolation"] == "shared":
            if not self.shared:
                self.shared = True
                self.actors.stretch = None
                self.queue.items.appendleft(start)  # The loop for shared actors takes it.
                return
        elif start.details["async"] and self.event_loop is None:
            # Its loop becomes this worker's main loop, and its __init__ runs on it.
            self.event_loop = EventLoop(self)
            self.queue.items.appendleft(start)
            return
        self.actors.start(start)

    def need_event_loop(self) -> EventLoop:
        """Return the loop of this worker's async actors, started at first use."""
        if self.event_loop is None:
            self.event_loop = EventLoop(self)
            self.event_loop.start_thread()
        return self.event_loop

    def linger(self, stretch: Stretch | None = None) -> None:
        """Send results when nothing follows or the first of them has waited long enough.

        Args:
            stretch: that of the calling thread, closed when it is as old.
        """
        outbound = self.outbound
        if outbound.unsent:
            now = time.monotonic()
            is_due = now - outbound.since > _LINGER_S
            if stretch is not None and (is_due or now - stretch.began > _LINGER_S):
                stretch.close(now)
            if is_due:
                self.runtime.flush()
                if self.is_full:
                    self.await_room()

    @property
    def is_full(self) -> bool:
        """Whether so much waits for callers who do not read that nothing more is to begin."""
        return self.runtime.inbox.backlog_bytes > EDGE_BACKLOG_BYTES_MAX

    def await_room(self) -> None:
        """Wait until callers have read some of what they were sent, or have died."""
        while self.is_full and self.exiting is None:
            self.runtime.drain_outbound(_ROOM_S, EDGE_BACKLOG_BYTES_MAX)

    def show_gpus(self, gpus: list[str]) -> None:
        """Let user code see the GPUs it was given, and no others."""
        if gpus != self._gpus:
            has_gpus = self.runtime.welcome["resources"].get("GPU", 0) > 0
            if gpus or has_gpus:
                os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
            self._gpus = gpus

    # -- shared workers --------------------------------------------------------------------------

    def _serve_shared(self, *, substitute: bool) -> None:
        """Serve sync actors; a substitute ends when the thread it stood in for is back."""
        items, runtime = self.queue.items, self.runtime
        stretch = None if substitute else self.events.stretch
        while self.exiting is None:
            if self.is_full:
                self.await_room()
                continue
            if substitute and self._resigns():
                runtime.flush()
                return
            if not items:
                if stretch is not None and stretch.count:
                    stretch.close(time.monotonic())
                if self.outbound.unsent or runtime.session.outbox:
                    runtime.flush()
                runtime.wait_for_work(
                    lambda: self._has_work() or (substitute and self._servers > 1)
                )
                continue
            self._perform_shared(stretch)
            self.linger()

    def _resigns(self) -> bool:
        with self._blocking:
            if self._servers == 1:
                return False
            self._servers -= 1
            return True

    def _perform_shared(self, stretch: Stretch | None) -> None:
        # Taking a call and taking its actor are one step: two threads may be at it.
        with self.order:
            try:
                item = self.queue.items.popleft()
            except IndexError:
                return
            claimed = self.actors.claim(item) if type(item) is ActorCall else None
        if type(item) is not ActorCall:
            if stretch is not None:
                stretch.close(time.monotonic())
            self.perform(item)
        elif claimed is not None:
            self.actors.run_claimed(claimed, item, stretch)

    def patience_s(self, queued: bool) -> float | None:
        """Return how long a thread waits before it is reported; None: nobody gains by knowing.

        On a node whose CPUs all wait, a task that no worker has begins only when one is lent: who
        waits for it says so at once. A call of an actor or a leased worker takes 0.1 ms, and must
        never cost those two messages.
        """
        if not self.shared and self.queue.running is None and not self.actors.holds_cpu:
            return None
        return 0.0 if queued and not self.shared else BLOCKED_AFTER_S

    def report_blocked(self, blocked: bool) -> None:
        """A thread waits in get, or runs again: tell the node when nothing else runs here."""
        if context.current() is None:
            return  # A thread of the user's own: nobody gave it a CPU.
        if self.shared:
            self._report_blocked_shared(blocked)
            return
        with self._blocking:
            running = max(1, self.actors.threads.busy)
            was = self._blocked >= running
            self._blocked += 1 if blocked else -1
            now = self._blocked >= running
        if was == now or not (self._told_blocked or self._has_something_to_lend()):
            return
        self._told_blocked = now
        self.runtime.call(messages.BLOCKED if now else messages.UNBLOCKED)

    def _has_something_to_lend(self) -> bool:
        """Whether the node gains by knowing: a CPU, or tasks queued behind the waiting one.

        Two messages for every wait of an actor that holds no CPU would be most of its cost.
        """
        work = self.queue.running
        if work is None:
            return self.actors.holds_cpu
        return bool(
            work.task_class.resources.get("CPU") or work.next < work.high or self.queue.items
        )

    def _report_blocked_shared(self, blocked: bool) -> None:
        if not _serves_shared.here:
            return  # On the loop or in a method's own thread: it keeps nobody from serving.
        with self._blocking:
            self._servers += -1 if blocked else 1
            alone = self._servers == 0
            if alone:
                self._servers = 1
        if alone:
            threading.Thread(target=self._stand_in, name="zray-server", daemon=True).start()

    def _stand_in(self) -> None:
        _serves_shared.here = True
        self._serve_shared(substitute=True)

    # -- what arrives ----------------------------------------------------------------------------

    def _on_message(self, sender: bytes, message: list[Any], payloads: list[bytes]) -> None:
        kind = message[1]
        if kind == messages.CALL:
            items, incarnation = self.queue.items, message[4]
            for row in message[3]:
                items.append(ActorCall(sender, row, incarnation))
        elif kind == messages.RUN:
            self._on_run(sender, message, payloads)
        elif kind == messages.START_ACTOR:
            for row in message[3]:
                self.queue.items.append(ActorStart(row))
        elif kind == messages.CONSUMED:
            self.outbound.consumed(sender, message[3], message[4])

    def _on_run(self, sender: bytes, message: list[Any], payloads: list[bytes]) -> None:
        client, number, spec, first, count, low, high, mode, gpus, held = message[3:13]
        key = (client, number)
        task_class = self.classes.get(key)
        if task_class is None:
            task_class = self.classes[key] = TaskClass(spec)
        runtime = self.runtime
        if not runtime.peers.knows(client):
            # A lease holder's mailbox lies beside ours.
            runtime.peers.connect(client, f"ipc://{runtime.directory}/{client.hex()}")
        direct = sender != runtime.node
        work = TaskRange(
            client, task_class, first, count, low, high, mode, payloads[0], gpus, direct=direct
        )
        if held:
            with runtime.lock:
                work.held = runtime.session.references.accept(held)
        if self._early:
            for item in [each[2] for each in self._early if each[:2] == (client, first)]:
                if low <= item < high:
                    work.cancelled = (work.cancelled or set()) | {item}
                    del self._early[(client, first, item)]
        self.queue.items.append(work)

    # -- the lifeline (background thread) ----------------------------------------------------------

    def _on_reclaim(self, message: list[Any]) -> None:
        self.runtime.read_pending()
        rows = self.queue.take_back(message[3])
        self.runtime.call(messages.RECLAIMED, rows)

    def _on_interrupt(self, message: list[Any]) -> None:
        runtime = self.runtime
        runtime.read_pending()
        client, first, item, recursive = message[3:7]
        running = self.interrupts.running
        begun = running.at() - first if running is not None else -1
        work = self.queue.cancel(client, first, item, begun)
        if work is not None:
            self.tasks.cancel_waiting(work, item)
            return
        execution = self.interrupts.request(client, first + item)
        if execution is not None:
            if recursive:
                context.cancel_children(runtime, execution.children)
            return
        self.actors.cancel(client, first + item, recursive)
        self._early[(client, first, item)] = None
        if len(self._early) > _EARLY_MAX:
            del self._early[next(iter(self._early))]

    def _on_end_actor(self, message: list[Any]) -> None:
        self.runtime.read_pending()
        end = ActorEnd(message[3], message[4], killed=bool(message[5]))
        if end.killed:
            self.actors.end(end)  # Now, not behind the calls that it is to prevent.
        else:
            self.queue.items.append(end)
        self.wake_main()

    def _on_exit(self, message: list[Any]) -> None:
        if self.runtime.node_died is not None or context.main is not None:
            # Nobody is left to report to, or user code is in the way: leave now.
            self._leave_now(0 if self.runtime.node_died is None else 1)
        self.leave(message[3] or "the node asked")

    def leave(self, reason: str) -> None:
        """End this worker in good order, soon (any thread)."""
        self.exiting = self.exiting or reason
        self.wake_main()

    def crash(self, status: int) -> None:
        """A task has called sys.exit(): its worker is gone, what it had done before is not."""
        self.runtime.flush()
        self.events.send()
        self.runtime.drain_outbound(_DRAIN_S)
        time.sleep(_REPORT_S)
        self._leave_now(status)

    @staticmethod
    def _leave_now(status: int) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    def wake_main(self) -> None:
        """End the main thread's wait: a message to our own inbox."""
        runtime = self.runtime
        runtime.peers.connect(runtime.process, runtime.inbox.endpoint)
        runtime.peers.send(runtime.process, frames.pack(messages.PING))

    # -- code ------------------------------------------------------------------------------------

    def load_code(self, identity: bytes) -> Any:
        """Return a function or class by its hash, from the GCS at first use."""
        code = self.code.get(identity)
        if code is None:
            data, job = self.runtime.request(messages.GET_FUNCTION, identity)
            if job is not None:
                self._join_job(job)
            code = self.code[identity] = functions.load(data)
        return code


class _ServesShared(threading.local):
    """Whether the calling thread serves the sync actors of a shared worker."""

    here = False


_serves_shared = _ServesShared()


def run(directory: str, process: bytes) -> int:
    """Be the worker ``process`` of the node in ``directory``."""
    _serves_shared.here = True
    return Host(directory, process).serve()
