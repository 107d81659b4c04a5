"""The GCS around its state machine: who is alive, who carries which load, who is told what.

What    Requests gather until run(), which does them in one commit and answers after it. Nodes hold
        leases: one that has not renewed for NODE_LEASE_S, or whose connection broke, is declared
        dead by a command like any other. In the second case it may live on, and know nothing of
        it, until its lease is over: the names of its actors are free only then. Leases and loads
        are in memory only: after a start every living node has its full time again, and reports
        its load anew.
Caller  server.py.
Never   opens a socket, reads a clock, answers before the commit, keeps a message for a slow peer.
Spec    docs/explanation/architecture.md, "The GCS and lineage".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from zray.errors import GcsUnavailableError, RemoteProtocolError

from .commands import Command, check_command
from .loads import Loads
from .machine import Request, Session, StateMachine
from .store import Change, Store
from .tables import NodeRecord
from .watchers import Send, Watchers
from .wire import (
    COMMANDS,
    NODE_LEASE_S,
    REFUSED,
    RENEWED,
    UNAVAILABLE,
    pack,
    unpack,
    unpack_plain,
)

TICK_S = 0.25
"""run() is called so often, at the least."""

PEER_SILENT_S = 10.0
"""The watches of a peer that said nothing for so long are given up; it renews them."""

SESSION_IDLE_S = 3600.0
SESSIONS_MAX = 20_000
UNFINISHED_S = 600.0
"""A function has to be whole so long after its first chunk."""

BATCH_BYTES_MAX = 64 << 20
"""Requests that wait for one commit; those beyond it are dropped, and will be repeated."""

HEARD_S = 0.75
"""A beat of a node that has heard nothing for longer does not renew its lease: what we say does
not get there, and it will stand still though its own words arrive."""

_SWEEP_S = 1.0
_STALL_S = 4 * TICK_S
_PRUNE_S = 60.0
_LOAD_TABLE = "load"


@dataclass(frozen=True, slots=True)
class ReplicaStatistics:
    """Numbers for people and metrics, since the start of this process."""

    revision: int
    commits: int
    commands: int
    repeated: int
    malformed: int
    dropped: int
    unsent: int
    held_back: int
    failed_commits: int
    sessions: int
    nodes: int
    deaths: int


class Replica:
    """The GCS as one machine; see the module's docstring.

    Args:
        store: the tables; written by nobody else.
        boot: random bytes, new with each start: peers see by them that they must resend.
        now: monotonic time in seconds, as in every method.
    """

    def __init__(self, store: Store, *, boot: bytes, now: float) -> None:
        self.boot = boot
        self.machine = StateMachine(store)
        self._store = store
        self._watchers = Watchers(store, boot)
        self._requests: list[Request] = []
        self._request_bytes = 0
        self._internal: list[Command] = []
        self._soft_replies: list[tuple[bytes, bytes]] = []
        self._deadlines = dict.fromkeys(self.machine.alive, now + NODE_LEASE_S)
        self._names_free_at = dict.fromkeys(self.machine.dead_nodes(), now + NODE_LEASE_S)
        """Dead nodes, and when they have noticed it at the latest."""
        self._heard_peers: dict[bytes, float] = {}
        self._heard_sessions = dict.fromkeys(self.machine.sessions, now)
        self._peer_of_session: dict[bytes, bytes] = {}
        self._ran_at = now
        self._relay_heard_at: float | None = None
        self._unheard_s = 0.0
        """The longest silence, since the last run, of who brings the frames of other nodes."""
        self._loads = Loads(boot)
        self._unfinished = {key: now for key, _entry in store.scan("unfinished").entries}
        """Functions of which some chunks were put, by their hashes, and since when."""
        self._next_sweep = now + _SWEEP_S
        self._next_prune = now + _PRUNE_S
        self._ended_since_prune = 1
        self.commits = self.commands = self.repeated = self.deaths = 0
        self.malformed = self.dropped = self.unsent = self.failed_commits = 0

    # ----------------------------------------------------------------------------------- hearing

    def received(self, peer: bytes, frame: bytes, now: float, node: bytes = b"") -> None:
        """Take one message of a peer; what it asks happens in run().

        Args:
            peer: whom to answer.
            frame: as it came.
            now: monotonic time in seconds.
            node: id of the node that has sent it, where somebody else than itself says so.

        Raises:
            RemoteProtocolError: the message is malformed, or in another peer's session, and
                ignored.
        """
        try:
            kind, fields = unpack(frame, to_gcs=True)
            if kind == COMMANDS:
                session, acknowledged, first, packed = fields
                self._heard(peer, session, now)
                request = Request(peer, session, acknowledged, first, packed, node)
                self._gather(request, len(frame))
            else:
                self._soft(peer, fields, now)
        except RemoteProtocolError:
            self.malformed += 1
            raise

    def speaker(self, session: bytes) -> tuple[bytes, str]:
        """Return the node that a session speaks for, b"" for none, and the role it joined with."""
        known = self.machine.sessions.get(session)
        if known is None or not known.node:
            return b"", ""
        entry = self._store.get("nodes", known.node)
        return known.node, "" if entry is None else NodeRecord.unpack(entry.value).role

    def _heard(self, peer: bytes, session: bytes, now: float) -> None:
        if self._peer_of_session.get(session, peer) != peer:
            raise RemoteProtocolError("a message in the session of another peer")
        self._heard_peers[peer] = now
        if session in self.machine.sessions:
            self._heard_sessions[session] = now
        self._peer_of_session[session] = peer

    def _gather(self, request: Request, size: int) -> None:
        if self._request_bytes + size > BATCH_BYTES_MAX and self._requests:
            self.dropped += 1
            return
        self._request_bytes += size
        self._requests.append(request)

    def _soft(self, peer: bytes, fields: list[Any], now: float) -> None:
        name, acknowledged, packed = fields
        commands = [_soft_command(one) for one in packed]
        self._heard(peer, name, now)
        session = self.machine.sessions.get(name)
        if session is None and acknowledged > 1:
            text = "the GCS does not know this session"
            self._soft_replies.append((peer, pack(REFUSED, self.boot, name, "lost", text)))
            return
        if session is not None:
            session.acknowledge(min(acknowledged, session.next))
        for command in commands:
            if command.name == "RENEW":
                self._renew(peer, name, session, command.fields, now)
            elif command.name == "LOAD":
                self._set_load(session, *command.fields)
            elif command.name == "WATCH":
                self._watch(peer, *command.fields)
            else:
                self._unwatch(peer, *command.fields)

    def _renew(
        self, peer: bytes, name: bytes, session: Session | None, fields: Any, now: float
    ) -> None:
        stamp, silent_s, load = fields
        if session is not None and self.machine.is_fenced(session):
            text = f"incarnation {session.incarnation} of this node was declared dead; join again"
            self._soft_replies.append((peer, pack(REFUSED, self.boot, name, "fenced", text)))
            return
        incarnation = 0
        if session is not None and session.node and silent_s <= HEARD_S:
            incarnation = session.incarnation
            self._deadlines[session.node] = now + NODE_LEASE_S
            if load is not None:
                self._set_load(session, load)
        watches = self._watchers.count(peer) + self._loads.is_watched_by(peer)
        reply = (self.boot, name, stamp, incarnation, watches, self._store.revision)
        self._soft_replies.append((peer, pack(RENEWED, *reply)))

    def _set_load(self, session: Session | None, load: bytes) -> None:
        """A row is the node's whose session it comes in, whatever it says of itself."""
        if session is not None and self._speaks(session):
            self._loads.set(session.node, load)

    def _watch(self, peer: bytes, table: str, prefix: bytes, from_revision: int) -> None:
        if table == _LOAD_TABLE:
            self._loads.watch(peer)
        else:
            self._watchers.add(peer, table, prefix, from_revision)

    def _unwatch(self, peer: bytes, table: str, prefix: bytes) -> None:
        if table == _LOAD_TABLE:
            self._loads.unwatch(peer)
        else:
            self._watchers.remove(peer, table, prefix)

    def relay_heard(self, now: float) -> None:
        """Who brings the frames of other nodes was heard: while it is silent all of them are."""
        if self._relay_heard_at is not None:
            self._unheard_s = max(self._unheard_s, now - self._relay_heard_at)
        self._relay_heard_at = now

    def unlinked(self, peer: bytes) -> None:
        """The way to a peer is cut: its watches end. It may come back, and sets them again."""
        self._forget_peer(peer)

    def disconnected(self, peer: bytes) -> None:
        """A peer is not there any more: its watches end, and the nodes it spoke for are dead."""
        self._forget_peer(peer)
        for name in [name for name, one in self._peer_of_session.items() if one == peer]:
            del self._peer_of_session[name]
            session = self.machine.sessions.get(name)
            if session is not None and session.node and not self.machine.is_fenced(session):
                self._declare_dead(session.node, session.incarnation, "its connection broke")

    def _forget_peer(self, peer: bytes) -> None:
        self._watchers.forget(peer)
        self._loads.unwatch(peer)
        self._heard_peers.pop(peer, None)

    def _declare_dead(self, node: bytes, incarnation: int, cause: str) -> None:
        command = Command("NODE_DIED", (node, incarnation, cause))
        if command not in self._internal:
            self._internal.append(command)

    # --------------------------------------------------------------------------------------- run

    def run(self, now: float, wall: float, send: Send) -> None:
        """Do what has gathered in one commit, then tell everybody concerned.

        Args:
            now: monotonic time in seconds.
            wall: wall-clock time in seconds; it goes into records.
            send: (peer, frame) -> whether it was taken. One that was not is lost for answers,
                which are asked for again, and repeated from the history for changes.
        """
        self._expire(now)
        if self._requests or self._internal:
            self._commit(now, wall, send)
        soft, self._soft_replies = self._soft_replies, []
        for peer, frame in soft:
            self._send(send, peer, frame)
        if self._watchers.is_behind:
            self._watchers.pump(send)
        self._loads.publish(now, send)

    def _commit(self, now: float, wall: float, send: Send) -> None:
        requests, self._requests, self._request_bytes = self._requests, [], 0
        try:
            done = self.machine.run(requests, self._internal, wall)
        except GcsUnavailableError as error:
            self.failed_commits += 1
            told = dict.fromkeys((request.peer, request.session) for request in requests)
            for peer, session in told:
                self._send(send, peer, pack(UNAVAILABLE, self.boot, session, str(error)))
            return
        self._internal = []
        self.failed_commits = 0
        self.commits += 1
        self.commands += done.commands
        self.repeated += done.repeated
        self._follow(requests, done.changes, now)
        # Before the answers: who has an answer finds it in what it watches too.
        self._watchers.publish(done.changes, send)
        for peer, kind, fields in done.replies:
            self._send(send, peer, pack(kind, self.boot, *fields))

    def _send(self, send: Send, peer: bytes, frame: bytes) -> None:
        if not send(peer, frame):
            self.unsent += 1

    def _follow(self, requests: Sequence[Request], changes: Sequence[Change], now: float) -> None:
        """Start the leases of nodes that came, and end what is soft of those that went."""
        for request in requests:
            if request.session in self.machine.sessions:
                self._heard_sessions[request.session] = now
        changed = {change.table for change in changes}
        if "unfinished" in changed:
            self._follow_unfinished(changes, now)
        if "nodes" in changed:
            self._follow_nodes(changes, now)

    def _follow_unfinished(self, changes: Sequence[Change], now: float) -> None:
        for change in changes:
            if change.table == "unfinished" and change.value is not None:
                self._unfinished[change.key] = now
            elif change.table == "unfinished":
                self._unfinished.pop(change.key, None)

    def _follow_nodes(self, changes: Sequence[Change], now: float) -> None:
        alive = self.machine.alive
        for node in [node for node in self._deadlines if node not in alive]:
            self._names_free_at[node] = self._deadlines.pop(node)
            self.deaths += 1
            self._ended_since_prune += 1
            self._loads.remove(node)
        for change in changes:
            if change.table == "nodes" and change.key in alive:
                self._deadlines[change.key] = now + NODE_LEASE_S

    # ------------------------------------------------------------------------------ as time goes

    def _expire(self, now: float) -> None:
        # This process stood still (SIGSTOP, a slow disk), or the one that brings the nodes' frames
        # did: what they have said meanwhile may not be read yet, and is no silence of theirs.
        deaf_s = max(now - self._ran_at, self._unheard_s)
        self._ran_at, self._unheard_s = now, 0.0
        if deaf_s > _STALL_S:
            for node in self._deadlines:
                self._deadlines[node] += deaf_s
        relay_heard_at = now if self._relay_heard_at is None else self._relay_heard_at
        if now - relay_heard_at <= _STALL_S:
            self._end_leases(now)
        if now >= self._next_sweep:
            self._next_sweep = now + _SWEEP_S
            self._sweep(now)

    def _end_leases(self, now: float) -> None:
        for node, deadline in list(self._deadlines.items()):
            incarnation = self.machine.alive.get(node)
            if incarnation is None:
                del self._deadlines[node]  # It joined in a batch whose commit failed.
            elif deadline <= now:
                cause = f"it has not renewed its lease of {NODE_LEASE_S} s"
                self._declare_dead(node, incarnation, cause)
        over = [node for node, at in self._names_free_at.items() if at <= now]
        if over:
            self._internal.append(Command("NAMES_FREE", (over,)))
            for node in over:
                del self._names_free_at[node]

    def _sweep(self, now: float) -> None:
        for peer in [one for one, at in self._heard_peers.items() if now - at > PEER_SILENT_S]:
            self._forget_peer(peer)
        sessions = self.machine.sessions
        for name in [name for name in self._heard_sessions if name not in sessions]:
            del self._heard_sessions[name]
        for name in [name for name in self._peer_of_session if name not in sessions]:
            del self._peer_of_session[name]
        ended = [
            name
            for name, at in self._heard_sessions.items()
            if now - at > SESSION_IDLE_S and not self._speaks(sessions[name])
        ]
        if len(sessions) - len(ended) > SESSIONS_MAX:
            idle = sorted(self._heard_sessions, key=self._heard_sessions.__getitem__)
            ended = [name for name in idle if not self._speaks(sessions[name])]
            ended = ended[: len(sessions) - SESSIONS_MAX]
        if ended:
            self._internal.append(Command("SESSION_END", (ended,)))
        late = [name for name, since in self._unfinished.items() if now - since > UNFINISHED_S]
        if late:
            self._internal.append(Command("FUNCTION_DROP", (late,)))
        if now >= self._next_prune and self._ended_since_prune:
            self._next_prune, self._ended_since_prune = now + _PRUNE_S, 0
            self._internal.append(Command("PRUNE"))

    def _speaks(self, session: Session) -> bool:
        """Whether a session is that of a living node."""
        return bool(session.node) and not self.machine.is_fenced(session)

    def next_deadline(self) -> float:
        """Return the monotonic time at which run() is to be called at the latest."""
        tick = self._ran_at + TICK_S
        due_at = self._loads.due_at(self._ran_at)
        ends = (*self._deadlines.values(), *self._names_free_at.values())
        return min(tick, due_at, self._next_sweep, *ends)

    @property
    def has_requests(self) -> bool:
        """Whether run() has something to do at once."""
        return bool(self._requests or self._internal or self._soft_replies)

    # ----------------------------------------------------------------------------------- service

    def statistics(self) -> ReplicaStatistics:
        """Return numbers for people and metrics."""
        return ReplicaStatistics(
            revision=self._store.revision,
            commits=self.commits,
            commands=self.commands,
            repeated=self.repeated,
            malformed=self.malformed,
            dropped=self.dropped,
            unsent=self.unsent,
            held_back=self._watchers.held_back,
            failed_commits=self.failed_commits,
            sessions=len(self.machine.sessions),
            nodes=len(self.machine.alive),
            deaths=self.deaths,
        )

    def check(self) -> None:
        """Raise AssertionError where an invariant does not hold; between two runs only."""
        self.machine.check()
        self._watchers.check()
        assert self._deadlines.keys() == self.machine.alive.keys(), "a node without a lease"
        self._loads.check()
        assert self._loads.nodes <= self.machine.alive.keys(), "the load of a dead node"


def _soft_command(packed: bytes) -> Command:
    found = unpack_plain(packed)
    if (
        type(found) is not list
        or len(found) != 2
        or type(found[0]) is not str
        or type(found[1]) is not list
    ):
        raise RemoteProtocolError("a command is an array of its name and its fields")
    command = Command(found[0], tuple(found[1]))
    if check_command(command).effect != "soft":
        raise RemoteProtocolError(f"{command.name} is numbered; send it in its session's order")
    return command
