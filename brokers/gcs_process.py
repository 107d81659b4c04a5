"""The GCS process beside the head node: started, started again when it dies, ended.

What    The two share a socket that nothing is sent on: its end tells either of the other's death
        at once. Each life is reached at the same place in the directory, by this machine alone.
Caller  brokers/gcs_relay.py, in the head node.
Never   speaks with the GCS: that is a session, as every node has one.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from zray.errors import NodeStartError
from zray.net.mailbox import ipc_endpoint

_START_TIMEOUT_S = 15.0
_STOP_TIMEOUT_S = 3.0
_RETRY_S = 0.1
_RETRY_S_MAX = 5.0
_STEADY_S = 10.0
"""A life that has lasted so long has not failed to start: the next one begins at once."""

Watch = Callable[[int, Callable[[], None]], None]


class GcsProcess:
    """One GCS for the cluster, by as many processes as it takes.

    Args:
        directory: its own; made if need be, and what is in it is served again.
        watch: calls back whenever a descriptor is readable.
        unwatch: ends that.

    Raises:
        NodeStartError: it did not start; the message has its reason.
        OSError: the directory's path is too long for a socket.
    """

    def __init__(self, directory: str, *, watch: Watch, unwatch: Callable[[int], None]) -> None:
        self.directory = directory
        self.endpoint = ipc_endpoint(directory, "gcs.sock")
        """Where this machine reaches it."""
        self.starts = 0
        self._watch = watch
        self._unwatch = unwatch
        self._child: subprocess.Popen[bytes] | None = None
        self._life: socket.socket | None = None
        self._ready = -1
        self._ready_bytes = b""
        self._started_at = 0.0
        self._retry_s = _RETRY_S
        self._retry_at: float | None = None
        self._stopping = False
        os.makedirs(directory, mode=0o700, exist_ok=True)
        self._begin()

    # -- the first start -------------------------------------------------------------------------

    def _begin(self) -> None:
        """Start it and wait for its report."""
        self._spawn(0.0)
        line = b""
        while not line.endswith(b"\n"):
            readable = select.select([self._ready], [], [], _START_TIMEOUT_S)[0]
            part = os.read(self._ready, 65536) if readable else b""
            if not part:
                line = json.dumps({"error": "it gave no sign of life: see node.log"}).encode()
                break
            line += part
        report: dict[str, Any] = json.loads(line)
        if report.get("error"):
            self._forget_child()
            raise NodeStartError(f"the GCS did not start: {report['error']}")
        self._close_ready()

    # -- lives -----------------------------------------------------------------------------------

    def _spawn(self, now: float) -> None:
        ours, its = socket.socketpair()
        self._ready, ready = os.pipe()
        command = [
            *(sys.executable, "-m", "zray.brokers", "gcs", "--dir", self.directory),
            *("--bind", self.endpoint),
            *("--ready-fd", str(ready), "--life-fd", str(its.fileno())),
        ]
        try:
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                pass_fds=(ready, its.fileno()),
                start_new_session=True,  # A signal to the node's group is the node's affair.
                cwd="/",
            )
        finally:
            os.close(ready)
            its.close()
        ours.setblocking(False)
        self._life = ours
        self._ready_bytes = b""
        self._started_at = now
        self._retry_at = None
        self.starts += 1
        self._watch(ours.fileno(), self._ended)

    def _read_ready(self) -> None:
        part = os.read(self._ready, 65536)
        self._ready_bytes += part
        if part and not self._ready_bytes.endswith(b"\n"):
            return
        self._close_ready()
        report = json.loads(self._ready_bytes or b'{"error": "it ended before it was ready"}')
        if report.get("error"):
            print(f"the GCS did not start: {report['error']}", flush=True)
        else:
            # Whatever kills it again, leases run out while nobody renews them.
            self._retry_s = _RETRY_S
            print(f"the GCS runs again, pid {report['pid']}", flush=True)

    def _close_ready(self) -> None:
        if self._ready >= 0:
            self._unwatch(self._ready)
            os.close(self._ready)
            self._ready = -1

    def _ended(self) -> None:
        """Its end of the socket is closed: it is dead, or about to be."""
        if self._child is not None and not self._stopping:
            print(f"the GCS process {self._child.pid} has ended; it is started again", flush=True)
        self._forget_child()
        self._retry_at = 0.0

    def _forget_child(self) -> None:
        self._close_ready()
        if self._life is not None:
            self._unwatch(self._life.fileno())
            self._life.close()
            self._life = None
        if self._child is not None:
            with contextlib.suppress(ProcessLookupError):
                self._child.kill()  # It may hang in its last breath, with the files still its own.
            self._child.wait()
            self._child = None

    @property
    def due_s(self) -> float:
        """In how many seconds tick() wants to be called."""
        return 60.0 if self._retry_at is None else 0.02

    def tick(self, now: float) -> None:
        """Start it again where it has died."""
        if self._retry_at is None or self._stopping:
            return
        if self._retry_at == 0.0:
            if now - self._started_at > _STEADY_S:
                self._retry_s = _RETRY_S
                self._retry_at = now
            else:
                self._retry_at = now + self._retry_s
                self._retry_s = min(self._retry_s * 2, _RETRY_S_MAX)
        if now >= self._retry_at:
            self._spawn(now)
            self._watch(self._ready, self._read_ready)

    def stop(self) -> None:
        """End it in order: what it has answered is on disk, and what is queued may leave."""
        self._stopping = True
        child = self._child
        if child is not None:
            child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(_STOP_TIMEOUT_S)
        self._forget_child()
