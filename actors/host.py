"""The worker process: receives work, runs it in the main thread, sends what came of it.

What    Host joins a Runtime (this worker is a client like any driver), the work queue and the
        executors. The main thread waits for work the way a driver waits in get: it reads the
        inbox itself. The background thread answers the node: takes back, cancels, ends.
Caller  actors/zygote.py, in a freshly forked child.
Never   runs user code anywhere but in the main thread, an actor's own threads or its loop.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any

from zray import api
from zray.protocol import messages
from zray.protocol.limits import RESULT_LINGER_US
from zray.runtime import Runtime
from zray.serialization import functions

from .actor_runner import ActorRunner
from .outbound import Outbound
from .task_runner import TaskRunner
from .work import ActorCall, ActorEnd, ActorStart, TaskClass, TaskRange, WorkQueue

_LINGER_S = RESULT_LINGER_US / 1e6


class Host:
    """One worker process."""

    def __init__(self, directory: str, process: bytes) -> None:
        self.runtime = Runtime(directory, process, "worker")
        self.queue = WorkQueue()
        self.classes: dict[tuple[bytes, int], TaskClass] = {}
        self.code: dict[bytes, Any] = {}
        self.exiting: str | None = None
        self.main_thread = threading.get_ident()
        self.outbound = Outbound(self.runtime)
        self.tasks = TaskRunner(self)
        self.actors = ActorRunner(self)
        runtime = self.runtime
        runtime.worker_message = self._on_message
        runtime.before_flush = self.outbound.gather
        runtime.lifeline_rules.update({
            messages.RECLAIM: self._on_reclaim, messages.INTERRUPT: self._on_interrupt,
            messages.EXIT: self._on_exit, messages.END_ACTOR: self._on_end_actor})

    def _join_job(self, job: dict[str, Any]) -> None:
        """Import what the job's driver can import, in its order, from where it runs."""
        path = list(job["path"])
        sys.path[:] = path + [entry for entry in sys.path if entry not in path]
        if job["cwd"] and os.path.isdir(job["cwd"]):
            os.chdir(job["cwd"])
        os.environ["ZRAY_JOB_ID"] = job["job"]
        self.runtime.namespace = job["namespace"]

    def serve(self) -> int:
        """Run work until told to end."""
        api.set_runtime(self.runtime)
        api.in_worker = True
        self.tasks.install_interrupt()
        self.runtime.start()
        items, runtime = self.queue.items, self.runtime
        while self.exiting is None:
            if not items:
                if self.outbound.unsent or runtime.session.outbox:
                    runtime.flush()
                if not runtime.wait_for_work(self._has_work):
                    continue
                if self.exiting is not None:
                    break
            try:
                item = items.popleft()
            except IndexError:
                continue
            self.perform(item)
            self.linger()
        runtime.flush()
        self.actors.close()
        api.set_runtime(None)
        runtime.close()
        return 0

    def _has_work(self) -> bool:
        return bool(self.queue.items) or self.exiting is not None

    def perform(self, item: Any) -> None:
        """Run one item of the queue."""
        if type(item) is ActorCall:
            self.actors.call(item)
        elif type(item) is TaskRange:
            self.tasks.run(item)
        elif type(item) is ActorStart:
            self.actors.start(item)
        elif type(item) is ActorEnd:
            self.actors.end(item)

    def linger(self) -> None:
        """Send results when nothing follows or the first of them has waited long enough."""
        outbound = self.outbound
        if outbound.unsent and time.monotonic() - outbound.since > _LINGER_S:
            self.runtime.flush()

    def report_blocked(self, blocked: bool) -> None:
        """Tell the node that the running task waits, or runs again."""
        kind = messages.BLOCKED if blocked else messages.UNBLOCKED
        self.runtime.call(kind)

    # -- what arrives ----------------------------------------------------------------------------

    def _on_message(self, sender: bytes, message: list[Any], payloads: list[bytes]) -> None:
        kind = message[1]
        if kind == messages.CALL:
            items = self.queue.items
            for row in message[3]:
                items.append(ActorCall(sender, row))
            self.actors.arrived()
        elif kind == messages.RUN:
            self._on_run(sender, message, payloads)
        elif kind == messages.START_ACTOR:
            for row in message[3]:
                self.queue.items.append(ActorStart(row))
        elif kind == messages.CONSUMED:
            self.outbound.consumed(sender, message[3], message[4])

    def _on_run(self, sender: bytes, message: list[Any], payloads: list[bytes]) -> None:
        client, number, spec, first, count, low, high, mode, gpus = message[3:12]
        key = (client, number)
        task_class = self.classes.get(key)
        if task_class is None:
            task_class = self.classes[key] = TaskClass(spec)
        if spec is not None and len(spec) > 9:
            self.runtime.peers.connect(client, spec[9])
        direct = sender != self.runtime.node
        work = TaskRange(client, task_class, first, count, low, high, mode, payloads[0], gpus,
                         direct=direct)
        self.queue.items.append(work)

    # -- the lifeline (background thread) ----------------------------------------------------------

    def _on_reclaim(self, message: list[Any]) -> None:
        self._read_pending()
        rows = self.queue.take_back(message[3])
        self.runtime.call(messages.RECLAIMED, rows)

    def _read_pending(self) -> None:
        """Bring what lies unread in the inbox into the queue, unless the main thread is there."""
        runtime = self.runtime
        if runtime.io_lock.acquire(False):
            try:
                while (received := runtime.inbox.receive()) is not None:
                    runtime._apply(*received)
            finally:
                runtime.io_lock.release()

    def _on_interrupt(self, message: list[Any]) -> None:
        self._read_pending()
        client, first, item, recursive = message[3:7]
        if not self.queue.cancel(client, first, item):
            self.tasks.interrupt(client, first, item, recursive)
            self.actors.interrupt(client, first + item)

    def _on_end_actor(self, message: list[Any]) -> None:
        self._read_pending()
        self.queue.items.append(ActorEnd(message[3], message[4]))
        self.wake_main()

    def _on_exit(self, message: list[Any]) -> None:
        if self.runtime.node_died is not None or self.tasks.busy:
            # Nobody is left to report to, or user code is in the way: leave now.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0 if self.runtime.node_died is None else 1)
        self.exiting = message[3] or "the node asked"
        self.wake_main()

    def wake_main(self) -> None:
        """End the main thread's wait: a message to our own inbox."""
        runtime = self.runtime
        runtime.peers.connect(runtime.process, runtime.inbox.endpoint)
        from zray.protocol import frames
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


def run(directory: str, process: bytes) -> int:
    """Be the worker ``process`` of the node in ``directory``."""
    return Host(directory, process).serve()
