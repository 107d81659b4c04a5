"""The simulated GCS process: the real server's rules and replica over a store in memory.

What    SimGcs dies and opens again from what was committed; its answers may die with it.
        SimGcsPeer is the head's way to it, by which all nodes speak: nothing waits there while
        there is no process, and what was under way is lost without a word. So sessions repeat
        commands, and the replica sees them twice.
Caller  brokers/gcs_relay.py of a simulated head; tests/sim/nodes_simulation.py.
Never   answers before the commit.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from zray import errors
from zray.brokers.gcs.history import History, HistoryWatch
from zray.brokers.gcs.permissions import Permissions
from zray.brokers.gcs.relayed import Peers
from zray.brokers.gcs.replica import Replica
from zray.brokers.gcs.server import GcsServer
from zray.brokers.gcs.store import Change, Entry, Reader, Snapshot

if TYPE_CHECKING:
    from tests.sim.member import NodesWorld
    from tests.sim.node import SimNode

_REDIAL_S = (0.02, 0.2)
_PROBE_S = (0.0005, 0.01)
_START_S = (0.3, 1.5)
"""A GCS process takes so long to be there again."""
_HISTORY_LEN = 1000


class MemoryStore:
    """What of brokers/gcs/store.py a replica uses, in memory: what is here is committed."""

    def __init__(self) -> None:
        self.tables: dict[str, dict[bytes, Entry]] = {}
        self.revision = 0
        self.fails = False
        """The disk is full: nothing can be committed."""
        self._lock = threading.Lock()
        self.reopen()

    def reopen(self) -> None:
        """A new process opens the files: the history is gone."""
        self._history = History(self.revision, _HISTORY_LEN, 1 << 30)

    @property
    def compacted_revision(self) -> int:
        """Changes up to and including this revision can no longer be watched."""
        return self._history.compacted_revision

    def get(self, table: str, key: bytes) -> Entry | None:
        """Return the entry under `key`, or None."""
        return self.tables.get(table, {}).get(key)

    def scan(
        self, table: str, prefix: bytes = b"", limit: int | None = None, *, after: bytes = b""
    ) -> Snapshot:
        """Return entries in key order."""
        rows = sorted(
            (key, entry)
            for key, entry in self.tables.get(table, {}).items()
            if key.startswith(prefix) and key > after
        )
        if limit is None or len(rows) <= limit:
            return Snapshot(self.revision, tuple(rows))
        return Snapshot(self.revision, tuple(rows[:limit]), more=True)

    def reader(self) -> Reader:
        """Return itself: nobody writes between the commits."""
        return self

    def close(self) -> None:
        """Nothing is held."""

    def __enter__(self) -> MemoryStore:
        return self

    def __exit__(self, *_exception: object) -> None:
        return

    def commit(self, changes: Sequence[Change]) -> None:
        """Make changes that the machine has worked out, or none of them."""
        if self.fails:
            raise errors.GcsUnavailableError("the disk is full")
        if not changes:
            return
        assert changes[0].revision == self.revision + 1, "changes that do not follow the store's"
        for revision, table, key, value, created in changes:
            assert revision - self.revision in (0, 1), "a revision was left out"
            self.revision = revision
            rows = self.tables.setdefault(table, {})
            if value is None:
                del rows[key]
            else:
                assert created == (rows[key].create_revision if key in rows else revision)
                rows[key] = Entry(value, created, revision)
        self._history.extend(list(changes))

    def watch(
        self, table: str, prefix: bytes = b"", from_revision: int | None = None
    ) -> HistoryWatch:
        """Watch a range from a revision on."""
        revision = self.revision + 1 if from_revision is None else from_revision
        number = self._history.number_of(revision)
        return HistoryWatch(self._history, self._lock, table, prefix, number)


class SimGcs(GcsServer):
    """The GCS process, life after life, and its link to who brings all others."""

    def __init__(self, world: NodesWorld) -> None:
        self.world = world
        self.store = MemoryStore()
        self.alive = False
        self.lives = 0
        self._starts = 0
        """Heads that have died: what they were about to start does not come."""
        self.peer: SimGcsPeer | None = None
        self._notes = 0
        self._waking = False
        self._due = -1.0

    def start(self) -> None:
        """Open what is committed."""
        self.lives += 1
        self.alive = True
        self.store.reopen()
        self.replica = Replica(
            self.store,  # type: ignore[arg-type]
            boot=self.lives.to_bytes(8, "big"),
            now=self.world.now,
        )
        self._permissions = Permissions(self.replica.speaker)
        self._peers = Peers(self)
        self._inbound: deque[tuple[bytes, list[bytes]]] = deque()
        self.world.tell(f"the GCS serves, life {self.lives}")
        self._tick_later()

    def crash(self, *, again: bool = True) -> None:
        """SIGKILL, before or after the commit of what has come; its head starts it again."""
        if not again:
            self._starts += 1
        if not self.alive:
            return
        self.world.tell("the GCS CRASHES")
        if self.world.rng.random() < 0.5:
            self._hear(self.world.now)
            self.replica.run(self.world.now, self.world.now, lambda _peer, _frame: False)
        self.alive = False
        if self.peer is not None:
            self.peer.broken()
        if again:
            starts = self._starts
            delay_s = self.world.rng.uniform(*_START_S)
            # Unless its head has died since.
            self.world.after(
                delay_s, "gcs", lambda: self.start() if starts == self._starts else None
            )

    # -- its link --------------------------------------------------------------------------------

    def arrived(self, peer: bytes, frames: list[bytes], life: int) -> None:
        """A message has come for this life."""
        if self.alive and life == self.lives:
            self._inbound.append((peer, frames))
            self._wake_soon()

    def receive(self) -> tuple[bytes, list[bytes]] | None:
        """Return (connection, frames), as a link does."""
        return self._inbound.popleft() if self._inbound else None

    def broken(self) -> list[bytes]:
        """Return nobody: the one connection there is ends with this process or its head."""
        return []

    def send(self, _peer: bytes, *frames: bytes) -> bool:
        """Send a message, as a link does."""
        if self.peer is None or not self.peer.is_up:
            return False
        peer, life = self.peer, self.lives
        delay_s = self.world.rng.expovariate(1 / 0.0001)
        peer.last = max(peer.last, self.world.now + delay_s)
        self.world.at(peer.last, "gcs", lambda: peer.arrived(list(frames), life))
        return True

    # -- its loop --------------------------------------------------------------------------------

    def _wake_soon(self) -> None:
        if not self._waking:
            self._waking = True
            self.world.after(self.world.rng.expovariate(1 / 0.0003), "gcs", self._turn)

    def _turn(self) -> None:
        self._waking = False
        if not self.alive:
            return
        self._hear(self.world.now)
        self.replica.run(self.world.now, self.world.now, self._peers.send)
        self.replica.check()
        self._peers.check()
        self._tick_later()

    def _tick_later(self) -> None:
        due = self.replica.next_deadline()
        if self.replica.has_requests:
            due = min(due, self.world.now + 0.1)  # Its commit has failed.
        due = max(due, self.world.now + 0.001)
        if self._due <= self.world.now or due < self._due:
            self._due = due
            self.world.at(due, "gcs", self._wake_soon)

    def _note(self, text: str) -> None:
        raise AssertionError(f"the GCS: {text}")


class SimGcsPeer:
    """The head's way to the GCS. See zray/net/gcs_link.py."""

    def __init__(self, node: SimNode, gcs: SimGcs) -> None:
        self.node = node
        self.world = node.world
        self.gcs = gcs
        self.is_up = False
        self.last = 0.0
        """When the last message to it that is under way arrives."""
        self.descriptor = node.add_descriptor(self)
        self._sent_until = 0.0
        self._received: deque[list[bytes]] = deque()
        self._connect()

    @property
    def readable(self) -> bool:
        return bool(self._received)

    def _connect(self) -> None:
        if self.gcs.alive and not self.node.dead:
            self.is_up = True
            self.gcs.peer = self
        elif not self.node.dead:
            self.world.after(self.world.rng.uniform(*_REDIAL_S), "gcs", self._connect)

    def broken(self) -> None:
        """The GCS process is dead; this end dials again by itself."""
        self.is_up = False
        self._connect()

    def arrived(self, frames: list[bytes], life: int) -> None:
        """A message has come of that life of the GCS."""
        if life == self.gcs.lives and self.is_up:
            self._received.append(frames)
            self.node.wake_soon()

    def send(self, *frames: bytes) -> bool:
        if not self.is_up:
            return False
        gcs, life = self.gcs, self.gcs.lives
        delay_s = self.world.rng.expovariate(1 / 0.0001)
        self._sent_until = max(self._sent_until, self.world.now + delay_s)
        identity = self.node.process
        self.world.at(self._sent_until, "gcs", lambda: gcs.arrived(identity, list(frames), life))
        return True

    def has_message(self) -> bool:
        return bool(self._received)

    def receive(self) -> list[bytes] | None:
        return self._received.popleft() if self._received else None

    def close(self, _linger_ms: int = 0) -> None:
        self.is_up = False


class SimGcsProcess:
    """The child of the head's that SimGcs stands for. See brokers/gcs_process.py."""

    endpoint = "ipc://sim"
    due_s = 60.0

    def __init__(self, gcs: SimGcs) -> None:
        gcs.start()

    def tick(self, _now: float) -> None:
        return

    def stop(self) -> None:
        return


class SimProber:
    """Looks whether a port is listened to. See zray/net/probe.py."""

    def __init__(self, world: NodesWorld, wake: Callable[[], object]) -> None:
        self.world = world
        self._wake = wake
        self._gone: list[bytes] = []

    def ask(self, name: bytes, address: str) -> None:
        delay_s = self.world.rng.uniform(*_PROBE_S)
        self.world.after(delay_s, "probe", lambda: self._look(name, address))

    def _look(self, name: bytes, address: str) -> None:
        # Of somebody who is cut off, or lives, there is nothing to say; nor where another listens.
        if name not in self.world.nodes and address not in self.world.inboxes:
            self._gone.append(name)
            self._wake()

    def take_gone(self) -> list[bytes]:
        gone, self._gone = self._gone, []
        return gone
