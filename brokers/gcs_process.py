"""The GCS process beside the head node: started, started again when it dies, ended.

What    The two share a socket: its end tells either of the other's death at once. Each life is
        reached at the same place in the directory, by this machine alone. Beside one that serves
        another one waits, with all imported, for the byte on its socket that says that its turn
        has come: leases run out while nobody renews them, and a busy machine imports for seconds.
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
_SPARE_S = 2.0
"""So long after one serves the next one is made ready: not while the node starts."""

Watch = Callable[[int, Callable[[], None]], None]


class _Life:
    """One process, from its start to its end."""

    def __init__(self, directory: str, endpoint: str) -> None:
        self.socket, its = socket.socketpair()
        self.ready, ready = os.pipe()
        self.report = b""
        command = [
            *(sys.executable, "-m", "zray.brokers", "gcs", "--dir", directory),
            *("--bind", endpoint, "--ready-fd", str(ready), "--life-fd", str(its.fileno())),
        ]
        try:
            self.child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                pass_fds=(ready, its.fileno()),
                start_new_session=True,  # A signal to the node's group is the node's affair.
                cwd="/",
            )
        finally:
            os.close(ready)
            its.close()
        self.socket.setblocking(False)

    def begin(self) -> bool:
        """Let it take the files and serve; False where it is dead already."""
        try:
            return self.socket.send(b"!") == 1
        except OSError:
            return False

    def close_ready(self) -> None:
        """Its report was read."""
        if self.ready >= 0:
            os.close(self.ready)
            self.ready = -1

    def end(self) -> None:
        """Kill it where it lives, and reap it."""
        self.close_ready()
        self.socket.close()
        with contextlib.suppress(ProcessLookupError):
            self.child.kill()  # It may hang in its last breath, with the files still its own.
        self.child.wait()


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
        self._life: _Life | None = None
        self._spare: _Life | None = None
        self._spare_at: float | None = None
        self._serves = False
        self._started_at = 0.0
        self._retry_s = _RETRY_S
        self._retry_at: float | None = None
        self._stopping = False
        os.makedirs(directory, mode=0o700, exist_ok=True)
        self._begin()

    # -- the first start -------------------------------------------------------------------------

    def _begin(self) -> None:
        """Start it and wait for its report."""
        life = self._spawn(0.0)
        while not life.report.endswith(b"\n"):
            readable = select.select([life.ready], [], [], _START_TIMEOUT_S)[0]
            part = os.read(life.ready, 65536) if readable else b""
            if not part:
                life.report = json.dumps({"error": "no sign of life: see node.log"}).encode()
                break
            life.report += part
        report: dict[str, Any] = json.loads(life.report)
        if report.get("error"):
            self._forget_life()
            raise NodeStartError(f"the GCS did not start: {report['error']}")
        life.close_ready()
        self._serves = True

    # -- lives -----------------------------------------------------------------------------------

    def _spawn(self, now: float) -> _Life:
        life, self._spare = self._spare, None
        if life is not None:
            self._unwatch(life.socket.fileno())
            if not life.begin():
                life.end()
                life = None
        if life is None:
            life = _Life(self.directory, self.endpoint)
            life.begin()
        self._life = life
        self._serves = False
        self._spare_at = None
        self._started_at = now
        self._retry_at = None
        self.starts += 1
        self._watch(life.socket.fileno(), self._ended)
        return life

    def _read_ready(self) -> None:
        life = self._life
        assert life is not None
        part = os.read(life.ready, 65536)
        life.report += part
        if part and not life.report.endswith(b"\n"):
            return
        self._unwatch(life.ready)
        life.close_ready()
        report = json.loads(life.report or b'{"error": "it ended before it was ready"}')
        if report.get("error"):
            print(f"the GCS did not start: {report['error']}", flush=True)
        else:
            self._serves = True
            self._retry_s = _RETRY_S
            print(f"the GCS runs again, pid {report['pid']}", flush=True)

    def _ended(self) -> None:
        """Its end of the socket is closed: it is dead, or about to be."""
        if self._life is not None and not self._stopping:
            pid = self._life.child.pid
            print(f"the GCS process {pid} has ended; it is started again", flush=True)
        self._forget_life()
        self._retry_at = 0.0

    def _forget_life(self) -> None:
        life, self._life = self._life, None
        if life is not None:
            self._unwatch(life.socket.fileno())
            if life.ready >= 0:
                self._unwatch(life.ready)
            life.end()

    def _spare_ended(self) -> None:
        self._forget_spare()
        self._spare_at = None

    def _forget_spare(self) -> None:
        spare, self._spare = self._spare, None
        if spare is not None:
            self._unwatch(spare.socket.fileno())
            spare.end()

    # -- as time goes ----------------------------------------------------------------------------

    @property
    def due_s(self) -> float:
        """In how many seconds tick() wants to be called."""
        if self._retry_at is not None:
            return 0.02
        return 60.0 if self._spare is not None else 0.5

    def tick(self, now: float) -> None:
        """Start it again where it has died; have another one ready where it has not."""
        if self._stopping:
            return
        if self._retry_at is None:
            self._see_to_spare(now)
            return
        if self._retry_at == 0.0:
            if self._spare is not None or now - self._started_at > _STEADY_S:
                self._retry_s = _RETRY_S
                self._retry_at = now
            else:
                self._retry_at = now + self._retry_s
                self._retry_s = min(self._retry_s * 2, _RETRY_S_MAX)
        if now >= self._retry_at:
            self._watch(self._spawn(now).ready, self._read_ready)

    def _see_to_spare(self, now: float) -> None:
        if self._spare is not None or not self._serves:
            return
        if self._spare_at is None:
            self._spare_at = now + _SPARE_S
        elif now >= self._spare_at:
            self._spare = _Life(self.directory, self.endpoint)
            self._watch(self._spare.socket.fileno(), self._spare_ended)

    def stop(self) -> None:
        """End it in order: what it has answered is on disk, and what is queued may leave."""
        self._stopping = True
        self._forget_spare()
        if self._life is not None:
            self._life.child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._life.child.wait(_STOP_TIMEOUT_S)
        self._forget_life()
