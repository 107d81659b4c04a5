"""The GCS process: one poll loop round the replica.

What    ``python -m zray.brokers gcs --dir DIR --bind ENDPOINT --ready-fd N``. Each wake drains the
        endpoint, does everything in one commit and sends the answers; what arrives during the
        commit is the next batch. Changes go to each watcher by the same way as its answers and not
        by XPUB, which drops silently at its bound: here a refused send leaves the watcher at its
        place in the history. Only this machine reaches it: the head's node brings the frames of
        other nodes, and says whose each is.
Caller  brokers/__main__.py, started by the head node, which starts it again when it dies.
Never   decides: the machines do. Never unpickles. Never waits for one peer.
Spec    docs/explanation/architecture.md, "The GCS and lineage".
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any, Protocol

from zray import errors
from zray.net.gcs_link import GcsEndpoint
from zray.net.poller import READABLE, new_poller
from zray.net.wake import Wake

from .engine import LmdbStore
from .environment import Durability
from .permissions import Permissions
from .relayed import Ended, Link, Peers
from .replica import Replica

_BATCH_MESSAGES = 4000
_HISTORY_LEN = 100_000
_HISTORY_BYTES = 64 << 20
_SYNC_S = 1.0
_RETRY_S = 0.1
_FAILING_S_MAX = 5.0
_LINGER_MS = 500
_NOTES_MAX = 20


class Endpoint(Link, Protocol):
    """What the server needs of a link; see zray/net/gcs_link.py."""

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What to poll for reading."""
        ...

    def has_message(self) -> bool:
        """Return whether receive() or broken() would return something now."""
        ...

    def close(self, linger_ms: int = 0) -> None:
        """Close; what is queued gets `linger_ms` to leave."""
        ...


class GcsServer:
    """The GCS process.

    Args:
        store: the tables; closed with the server.
        link: where it is reached; closed with the server.
        sync_s: bring commits to disk so often, where they do not wait for it themselves; None:
            they do.
        life: a socket whose other end belongs to who has started this process, None where it is
            to outlive that one.

    Raises:
        GcsError: the files are damaged.
    """

    def __init__(
        self,
        store: LmdbStore,
        link: Endpoint,
        *,
        sync_s: float | None = None,
        life: socket.socket | None = None,
    ) -> None:
        self.link = link
        self._peers = Peers(link)
        self._life = life
        self.stopping: str | None = None
        self.wake = Wake()
        self._store = store
        self.boot = os.urandom(8)
        self.replica = Replica(self._store, boot=self.boot, now=time.monotonic())
        self._permissions = Permissions(self.replica.speaker)
        self._poller = new_poller()
        for descriptor in (*link.descriptors, self.wake.fileno()):
            self._poller.register(descriptor, READABLE)
        if life is not None:
            life.setblocking(False)
            self._poller.register(life.fileno(), READABLE)
        self._notes = 0
        self._failing_since: float | None = None
        self._ended = threading.Event()
        self._syncing: threading.Thread | None = None
        if sync_s is not None:
            self._syncing = threading.Thread(
                target=self._sync, args=(sync_s,), name="gcs-sync", daemon=True
            )
            self._syncing.start()

    def _sync(self, every_s: float) -> None:
        while not self._ended.wait(every_s):
            try:
                self._store.sync()
            except errors.GcsError as error:
                self._note(f"the tables can't be brought to disk: {error}")

    def stop(self, reason: str) -> None:
        """End run() after the commit under way; safe in a signal handler."""
        self.stopping = self.stopping or reason
        self.wake.set()

    def run(self) -> None:
        """Serve until stop(), then close.

        Raises:
            GcsError: the tables can't be read, or not be written for too long; started again, the
                process may.
        """
        try:
            while self.stopping is None:
                self._wait()
                self._wake()
        finally:
            self.close()

    def _wait(self) -> None:
        if self._failing_since is None and (self.replica.has_requests or self.link.has_message()):
            return
        now = time.monotonic()
        due = self.replica.next_deadline() if self._failing_since is None else now + _RETRY_S
        for descriptor, _events in self._poller.poll(max(0.0, due - now)):
            if descriptor == self.wake.fileno():
                self.wake.clear()
            elif self._life is not None and descriptor == self._life.fileno():
                # Started again, that process will want these files for another one.
                self.stop("the node that started it has ended")

    def _wake(self) -> None:
        now = time.monotonic()
        self._hear(now)
        self.replica.run(now, time.time(), self._peers.send)
        self._watch_failures(now)

    def _hear(self, now: float) -> None:
        peers = self._peers
        for ended in peers.broken():
            self._ended_way(ended)
        for _ in range(_BATCH_MESSAGES):
            try:
                said = peers.receive()
                if said is None:
                    break
                if isinstance(said, Ended):
                    self._ended_way(said)
                    continue
                frame = self._permissions.screened(said.role, said.frame)
                self.replica.received(said.peer, frame, now, said.node)
            except errors.RemoteProtocolError as error:
                self._note(f"refused a malformed message: {error}")
        if peers.take_relay_heard():
            self.replica.relay_heard(now)

    def _ended_way(self, ended: Ended) -> None:
        if ended.is_dead:
            self.replica.disconnected(ended.peer)
        else:
            self.replica.unlinked(ended.peer)

    def _watch_failures(self, now: float) -> None:
        """End a process whose commits keep failing: LMDB writes no more after some failures."""
        if not self.replica.failed_commits:
            self._failing_since = None
        elif self._failing_since is None:
            self._failing_since = now
            self._note("a commit has failed; nothing of it happened, and it is tried again")
        elif now - self._failing_since > _FAILING_S_MAX:
            raise errors.GcsUnavailableError(
                f"no commit has succeeded for {_FAILING_S_MAX} s; make room on the disk"
            )

    def _note(self, text: str) -> None:
        self._notes += 1
        if self._notes <= _NOTES_MAX:
            note(text)

    def close(self) -> None:
        """Close the link and the tables; what was answered is on disk."""
        self._ended.set()
        if self._syncing is not None:
            self._syncing.join()
        self._poller.close()
        self.link.close(_LINGER_MS)
        self._store.close()
        self.wake.close()
        if self._life is not None:
            self._life.close()


def serve(
    directory: str,
    bind: str,
    ready_fd: int,
    *,
    durability: Durability = "disk",
    life_fd: int | None = None,
) -> int:
    """Run the GCS until it is stopped; report on ready_fd first. Returns the exit status.

    Args:
        directory: where the tables are; made if need be.
        bind: where it is to be reached, "ipc://PATH".
        ready_fd: gets one line of JSON.
        durability: "disk": an answer means that a power loss will not undo it. "process": only
            that the death of this process will not.
        life_fd: a socket whose other end belongs to who has started this process: nothing is
            touched before a byte has come by it.
    """
    store: LmdbStore | None = None
    life = None if life_fd is None else socket.socket(fileno=life_fd)
    if life is not None and not life.recv(1):
        return 0
    try:
        # Before it is bound: who does not get the files must not get the address either.
        store = LmdbStore(
            directory,
            durability=durability,
            history_len_max=_HISTORY_LEN,
            history_bytes_max=_HISTORY_BYTES,
        )
        link = GcsEndpoint(bind)
        sync_s = _SYNC_S if durability == "process" else None
        server = GcsServer(store, link, sync_s=sync_s, life=life)
    except (errors.ZrayError, OSError) as error:
        if store is not None:
            store.close()
        _report({"error": f"{type(error).__name__}: {error}"}, ready_fd)
        return 1
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda number, _frame: server.stop(signal.Signals(number).name))
    report = {
        "directory": directory,
        "pid": os.getpid(),
        "endpoint": link.endpoint,
        "boot": server.boot.hex(),
        "durability": durability,
        "started_at": time.time(),
    }
    _write_report(directory, report)
    _report(report, ready_fd)
    note(f"the GCS serves {directory} at {link.endpoint}, pid {os.getpid()}")
    gc.freeze()  # Modules and what was loaded stay: no collection need look at them.
    try:
        server.run()
    except errors.GcsUnavailableError as error:
        note(f"the GCS has ended: {error}")
        return 1
    note(f"the GCS has ended: {server.stopping}")
    return 0


def _write_report(directory: str, report: dict[str, Any]) -> None:
    """Say who serves, for people and tests; whole, or as it was."""
    path = Path(directory, "gcs.json")
    try:
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(report))
        fresh.replace(path)
    except OSError as error:  # A full disk does not keep it from serving what is there.
        note(f"{path} can't be written: {error}")


def _report(report: dict[str, Any], ready_fd: int) -> None:
    try:
        os.write(ready_fd, json.dumps(report).encode() + b"\n")
    except BrokenPipeError:
        note("nobody waits for the GCS's report")
    os.close(ready_fd)


def note(text: str) -> None:
    """Print a line for the log."""
    print(time.strftime("%Y-%m-%dT%H:%M:%S"), text, flush=True)
