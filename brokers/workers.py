"""Worker processes: the zygote that forks them, their output, their end.

What    Starts ``python -m zray.actors zygote``, asks it for workers, reads what they print, and
        knows pid and exit status of each.
Caller  brokers/node.py.
Never   decides how many workers there are: the scheduler does.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from zray.net.channel import Channel
from zray.net.descriptors import FORK_RESERVE, WORKER_DESCRIPTORS, is_scarce
from zray.protocol import frames, messages
from zray.protocol.ids import worker_id
from zray.store.lease_table import LeaseTable

_LINE_BYTES_MAX = 64 * 1024
_STATUS_S = 0.1


class WorkerProcess:
    """One forked worker."""

    __slots__ = ("buffers", "env", "killed", "label", "pid", "pipes", "process", "status")

    def __init__(
        self, process: bytes, env: tuple[tuple[str, str], ...], pipes: tuple[int, int]
    ) -> None:
        self.process = process
        self.env = env
        self.pid = 0
        self.pipes = pipes
        self.buffers = {pipe: b"" for pipe in pipes}
        self.label = ""
        self.status: int | None = None
        self.killed = False


class Zygote:
    """The process that forks workers, started before its node has imported anything else.

    Args:
        directory: the node's directory, passed on to the workers.
    """

    def __init__(self, directory: str) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "zray.actors",
                "zygote",
                "--fd",
                str(theirs.fileno()),
                "--dir",
                directory,
            ],
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        ours.setblocking(False)
        self.channel = Channel(ours)


class NoProcess:
    """In the place of a process that was never started."""

    def wait(self, timeout: float | None = None) -> int:
        """Return at once."""
        return 0

    def kill(self) -> None:
        """Do nothing."""


class NoZygote:
    """Of a node that runs no work: nothing is forked, and nothing ends."""

    def __init__(self) -> None:
        ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.setblocking(False)
        self.process = NoProcess()
        self.channel = Channel(ours)


class Workers:
    """The zygote and the processes it has forked.

    Args:
        zygote: the process that forks them.
        node: this node's id, which begins theirs.
        on_lines: called with (worker, is_stderr, lines) for what a worker printed.
        watch: called with (descriptor, callback) to be polled for reading.
        unwatch: called with a descriptor that is about to be closed.
    """

    def __init__(
        self,
        zygote: Zygote | NoZygote,
        *,
        node: bytes,
        on_lines: Callable[[WorkerProcess, bool, list[str]], None],
        watch: Callable[[int, Callable[[], None]], None],
        unwatch: Callable[[int], None],
    ) -> None:
        self.node = node
        self._forked = 0
        self.by_process: dict[bytes, WorkerProcess] = {}
        self.by_pid: dict[int, WorkerProcess] = {}
        self.ready = False
        self._on_lines = on_lines
        self._watch = watch
        self._unwatch = unwatch
        self._early: dict[int, int] = {}
        self.exited: deque[WorkerProcess] = deque()
        """Reaped since the node looked last."""
        self.zygote = zygote.process
        self.channel = zygote.channel
        self.zygote_gone = False
        self._has_table = False
        watch(self.channel.fileno(), self._read_zygote)

    # -- forking ---------------------------------------------------------------------------------

    def fork(self, env: tuple[tuple[str, str], ...], *, starting: int = 0) -> WorkerProcess:
        """Ask for one worker; it says HELLO when it runs.

        Args:
            env: what identifies its job, and its variables.
            starting: workers that have been asked for and have not said HELLO.

        Raises OSError where this process has hardly any descriptors left.
        """
        (out_read, out_write), (err_read, err_write) = _two_pipes(starting)
        self._forked += 1
        process = worker_id(self.node, self._forked)
        worker = WorkerProcess(process, env, (out_read, err_read))
        self.by_process[process] = worker
        for descriptor in worker.pipes:
            os.set_blocking(descriptor, False)
            self._watch(descriptor, partial(self._read_output, worker, descriptor))
        message = frames.pack(messages.FORK, process, {"env": dict(env)})
        while not self.channel.flush():
            self._wait_writable()
        self.channel.queue(message, (out_write, err_write))
        os.close(out_write)
        os.close(err_write)
        return worker

    def _wait_writable(self) -> None:
        # A descriptor can't be queued behind unsent bytes: wait the microseconds it takes.
        self.channel.socket.setblocking(True)
        try:
            self.channel.flush()
        finally:
            self.channel.socket.setblocking(False)

    def _read_zygote(self) -> None:
        received, alive = self.channel.drain()
        for packed in received:
            message = frames.unpack(packed)
            self._handle(message)
        if not alive and not self.zygote_gone:
            self.zygote_gone = True
            self._unwatch(self.channel.fileno())

    def _handle(self, message: list[Any]) -> None:
        kind = message[1]
        if kind == messages.ZYGOTE_READY:
            self.ready = True
        elif kind == messages.FORKED:
            worker = self.by_process.get(message[3])
            if worker is not None:
                worker.pid = message[4]
                self.by_pid[worker.pid] = worker
                if worker.pid in self._early:
                    worker.status = self._early.pop(worker.pid)
                    self.exited.append(worker)
        elif kind == messages.CHILD_EXITED:
            pid, status = message[3], message[4]
            worker = self.by_pid.pop(pid, None)
            if worker is not None:
                worker.status = status
                self.exited.append(worker)
            else:
                self._early[pid] = status

    # -- output ----------------------------------------------------------------------------------

    def _read_output(self, worker: WorkerProcess, descriptor: int) -> None:
        try:
            data = os.read(descriptor, _LINE_BYTES_MAX)
        except BlockingIOError:
            return
        if not data:
            self._close_pipe(worker, descriptor)
            return
        self._lines(worker, descriptor, data)

    def read_output(self) -> None:
        """Read what every worker has printed so far, partial lines included."""
        for worker in list(self.by_process.values()):
            for descriptor in list(worker.buffers):
                self._read_available(worker, descriptor)

    def _read_available(self, worker: WorkerProcess, descriptor: int) -> None:
        try:
            # As much as a pipe holds: a worker that prints without end must not hold the node.
            for _ in range(16):
                data = os.read(descriptor, _LINE_BYTES_MAX)
                if not data:
                    break  # Its end is noticed by the poll.
                self._lines(worker, descriptor, data)
        except BlockingIOError:
            pass  # All is read.
        rest = worker.buffers.get(descriptor)
        if rest:
            worker.buffers[descriptor] = b""
            self._on_lines(worker, descriptor == worker.pipes[1], [rest.decode(errors="replace")])

    def _lines(self, worker: WorkerProcess, descriptor: int, data: bytes) -> None:
        *lines, rest = (worker.buffers[descriptor] + data).split(b"\n")
        if len(rest) > _LINE_BYTES_MAX:
            lines.append(rest)
            rest = b""
        worker.buffers[descriptor] = rest
        if lines:
            self._on_lines(
                worker,
                descriptor == worker.pipes[1],
                [line.decode(errors="replace") for line in lines],
            )

    def _close_pipe(self, worker: WorkerProcess, descriptor: int) -> None:
        rest = worker.buffers.pop(descriptor, None)
        if rest is None:
            return
        if rest:
            self._on_lines(worker, descriptor == worker.pipes[1], [rest.decode(errors="replace")])
        self._unwatch(descriptor)
        os.close(descriptor)

    # -- ends ------------------------------------------------------------------------------------

    def kill(self, process: bytes, signum: int = signal.SIGKILL) -> None:
        """Send a signal to a worker that is (perhaps) still alive."""
        worker = self.by_process.get(process)
        if worker is not None and worker.pid and worker.status is None:
            worker.killed = True
            # The zygote reaps its children, and a pid it has not reaped is not reused.
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signum)

    def guard(self, process: bytes, slot: int, table: LeaseTable) -> None:
        """Have the zygote stop a worker while its slot of the table of leases is over."""
        descriptors = () if self._has_table else (table.read_only_fd,)
        self._has_table = True
        while not self.channel.flush():
            self._wait_writable()
        self.channel.queue(frames.pack(messages.GUARD, process, slot), descriptors)

    def is_stopped(self, process: bytes) -> bool:
        """Return whether a signal or a debugger has stopped this worker, where /proc tells."""
        worker = self.by_process.get(process)
        if worker is None or not worker.pid:
            return False
        try:
            with open(f"/proc/{worker.pid}/stat", "rb") as stat:
                return stat.read().rpartition(b")")[2].split()[0] in (b"T", b"t")
        except OSError:
            return False

    def forget(self, process: bytes) -> WorkerProcess | None:
        """A worker is gone: read what it printed last, close its pipes."""
        self._read_zygote()
        worker = self.by_process.pop(process, None)
        if worker is not None:
            if worker.pid and worker.status is None and not worker.killed:
                self._await_status(worker)
            for descriptor in worker.pipes:
                self._drain_pipe(worker, descriptor)
        return worker

    def _await_status(self, worker: WorkerProcess) -> None:
        """A crash's EOF comes before the zygote has reaped it: how it ended is worth a moment."""
        deadline = time.monotonic() + _STATUS_S
        while worker.status is None and not self.zygote_gone:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.channel.fileno()], [], [], left)[0]:
                return
            self._read_zygote()

    def _drain_pipe(self, worker: WorkerProcess, descriptor: int) -> None:
        if descriptor not in worker.buffers:
            return
        with contextlib.suppress(BlockingIOError):
            while data := os.read(descriptor, _LINE_BYTES_MAX):
                self._lines(worker, descriptor, data)
        self._close_pipe(worker, descriptor)

    def close(self) -> bool:
        """End the zygote and every worker, and reap the zygote; returns whether all are dead."""
        for process in list(self.by_process):
            self.kill(process)
        self.channel.close()
        try:
            self.zygote.wait(1.0)
        except subprocess.TimeoutExpired:
            self.zygote.kill()
            self.zygote.wait()
            return False
        return True


def _two_pipes(starting: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the pipes of a worker's output, unless the node would lack what they take."""
    first = os.pipe()
    try:
        second = os.pipe()
    except OSError:
        for descriptor in first:
            os.close(descriptor)
        raise
    if is_scarce(second[1] + starting * WORKER_DESCRIPTORS, FORK_RESERVE):
        for descriptor in (*first, *second):
            os.close(descriptor)
        raise OSError(errno.EMFILE, "few descriptors are left: raise the limit (ulimit -n)")
    return first, second


def describe_exit(status: int | None) -> str:
    """Say how a process ended, from its wait status."""
    if status is None:
        return "its connection closed"
    if os.WIFSIGNALED(status):
        signum = os.WTERMSIG(status)
        name = signal.Signals(signum).name
        hint = {
            signal.SIGKILL: " (the kernel's out-of-memory killer, or somebody's kill -9)",
            signal.SIGSEGV: " (a crash in native code)",
        }.get(signal.Signals(signum), "")
        return f"it was killed by {name}{hint}"
    return f"it exited with status {os.waitstatus_to_exitcode(status)}"
