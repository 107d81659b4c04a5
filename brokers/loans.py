"""Workers lent and borrowed, as messages: the shell around borrowing.py and lending.py.

What    Carries requests and answers, work for borrowed workers and what lent workers tell of
        their work. LOAN_RULES has a function for each kind that comes from another node.
Caller  brokers/cluster.py, brokers/link_rules.py, brokers/node_commands.py.
Never   decides who lends or gives back; lets a node speak to a worker that it has not borrowed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

from zray import errors
from zray.net.channel import Channel
from zray.net.link_inbox import Payload
from zray.protocol import frames, link_messages, messages
from zray.protocol.ids import NodeId, node_of
from zray.protocol.packing import packb, unpackb
from zray.protocol.roles import Role

from . import deaths, scheduling
from .link_validation import BreachError
from .load import read_load
from .node_calls import CALL_RULES
from .node_mailbox import MAILBOX_RULES
from .peers import Process
from .resources import read_request
from .validation import check_fields

if TYPE_CHECKING:
    from .cluster import Cluster

_LOAD_S = 0.1
_EARLY_ROWS_MAX = 4096
_LOAD_SOON_S = 0.01
"""News that there is room again must not wait for long: others may."""
_SEEK_S = 0.001
"""A loaded node wakes thousands of times a second: it looks around less often."""

_MAIL = frozenset((messages.FINISHED, messages.ACTOR_STARTED))
_CALLS = frozenset((messages.RECLAIMED, messages.ACTOR_EXIT, messages.BLOCKED, messages.UNBLOCKED))
"""What a lent worker tells of its work: for who has borrowed it."""
_BOTH_CALLS = frozenset((messages.BLOCKED, messages.UNBLOCKED))
"""Of these: its own node counts the CPU, the borrower the work."""
_LIFELINE = frozenset((messages.RECLAIM, messages.INTERRUPT, messages.END_ACTOR, messages.EXIT))
"""What a borrower may tell a worker."""


class _Lifeline:
    """What the node writes to a borrowed worker's lifeline: through its own node."""

    def __init__(self, cluster: Cluster, worker: bytes) -> None:
        self._cluster = cluster
        self._worker = worker
        self.outbound_bytes = 0

    def queue(self, packed: bytes) -> None:
        """Send on."""
        self._cluster.send(node_of(self._worker), link_messages.TELL_WORKER, self._worker, packed)


class Loans:
    """The borrowed workers as processes, and the load that others are told of."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.node = cluster.node
        self.borrowed: dict[bytes, Process] = {}
        self._load_at = self._sought_at = self._swept_at = 0.0
        self._early: dict[NodeId, bytes] = {}
        """Rows that the GCS has told of nodes that are no members yet."""
        self._load: list[Any] = []
        """What was reported last, as far as it is news when it changes."""

    # -- every wake ------------------------------------------------------------------------------

    @property
    def due_s(self) -> float:
        """In how many seconds after_wake() wants to be called."""
        scheduler = self.node.scheduler
        if scheduler.borrowing.needs_tick or scheduler.lending.needs_tick:
            return 0.005
        due = scheduler.offering.due_s(self.node.now)
        return min(due, _LOAD_S) if self.cluster.members else 60.0

    def after_wake(self) -> None:
        """What waits here may run elsewhere; what is free here others may use."""
        scheduler, now = self.node.scheduler, self.node.now
        scheduler.lending.tick(now)
        scheduler.offering.tick(now)
        if now >= self._sought_at + _SEEK_S:
            self._sought_at = now
            scheduler.borrowing.seek(now)
            scheduler.borrowing.sweep(now)
        if now >= self._swept_at + _LOAD_S:
            self._swept_at = now
            scheduler.borrowing.table.forget_sent(now)
        if scheduler.runs_work and self.cluster.members and now >= self._load_at + _LOAD_SOON_S:
            self._report_load(now)

    def _report_load(self, now: float) -> None:
        """Give the GCS our row of the load table, where it has changed: it tells all others."""
        scheduler, gcs = self.node.scheduler, self.cluster.gcs
        if gcs is None or not gcs.is_joined:
            return
        available = scheduler.resources.offered
        before: dict[str, int] = self._load[1] if self._load else {}
        more = any(units > before.get(name, 0) for name, units in available.items())
        if not more and now < self._load_at + _LOAD_S:
            return
        row = scheduler.borrowing.report(now)
        # A wait is an estimate that moves while nothing happens: half or twice as much is news.
        wait = row.wait_us.bit_length()
        load = [row.incarnation, available, dict(row.total), row.queue_tasks, wait, row.state]
        if load != self._load:
            self._load = load
            gcs.session.set_load(packb(row.fields()))
        self._load_at = now

    def published(self, rows: Mapping[bytes, bytes]) -> None:
        """The GCS tells rows of the load table, by node; those of who is no member count nothing.

        Raises:
            RemoteProtocolError: one of them is malformed.
        """
        cluster, found = self.cluster, []
        for node, packed in rows.items():
            member = cluster.members.get(node)
            if member is not None and member.role is not Role.NODE:
                continue  # A client has nothing to offer, whatever it says.
            if member is not None:
                row = read_load(unpackb(packed))
                if row.node == node and cluster.membership.admits(node, row.incarnation):
                    found.append(row)
            elif node != self.node.process:
                self._early[node] = packed
        while len(self._early) > _EARLY_ROWS_MAX:
            del self._early[next(iter(self._early))]
        self.node.scheduler.borrowing.table.published(found)

    def node_joined(self, node: NodeId, greeted: list[Any]) -> None:
        """A node is a member now.

        Args:
            node: which.
            greeted: its row as it was when it greeted us; the GCS may have told a newer one since.
        """
        self.node.scheduler.borrowing.heard(read_load(greeted))
        early = self._early.pop(node, None)
        if early is not None:
            self.published({node: early})

    # -- borrowed workers ------------------------------------------------------------------------

    def borrow(self, command: scheduling.Borrow) -> None:
        """Ask for a worker."""
        sent = self.cluster.send(
            command.node,
            link_messages.BORROW,
            command.request,
            command.placement,
            command.resources,
            [list(pair) for pair in command.env],
            command.for_actor,
            command.patient,
        )
        if not sent:
            self.node.scheduler.borrowing.lent(
                command.node, command.request, None, (), self.node.now
            )

    def came(self, worker: bytes, pid: int) -> None:
        """A borrowed worker is ours to give work to."""
        lifeline = cast(Channel, _Lifeline(self.cluster, worker))  # It is only written to.
        self.borrowed[worker] = Process(worker, "borrowed", pid, lifeline, {"endpoint": ""})

    def give_back(self, command: scheduling.GiveBack) -> None:
        """A borrowed worker is not needed any more."""
        self.borrowed.pop(command.worker, None)
        self.cluster.send(command.lender, link_messages.GIVE_BACK, command.worker, command.spent)

    def worker_died(self, worker: bytes, reason: str) -> None:
        """A borrowed worker has died: its node says so."""
        self._gone(worker, f"{reason}, on node {node_of(worker).hex()}", may_run=False)
        self.cluster.hosting.borrowed_died(worker)

    def worker_lost(self, worker: bytes, reason: str) -> None:
        """A borrowed worker is out of reach."""
        self._gone(worker, reason, may_run=True)
        self.cluster.hosting.borrowed_lost(worker)

    def _gone(self, worker: bytes, reason: str, *, may_run: bool) -> None:
        process = self.borrowed.pop(worker, None)
        if process is not None:
            deaths.tell_of_death(self.node, worker, reason, process, may_run=may_run)

    def suspect(self, worker: bytes) -> None:
        """A borrowed worker does not answer: is it stopped?"""
        self.cluster.send(node_of(worker), link_messages.SUSPECTED, worker)

    # -- lent workers ----------------------------------------------------------------------------

    def lend(self, command: scheduling.Lend) -> None:
        """Answer a request."""
        worker = command.worker
        scheduler = self.node.scheduler
        # Who was refused has an old row of ours: the next one asks where there is more.
        load = scheduler.borrowing.report(self.node.now).fields() if worker is None else None
        process = None if worker is None else self.node.processes.by_id.get(worker)
        loan = None if worker is None else self.node.scheduler.lending.loans.get(worker)
        if worker is not None and loan is not None and loan.for_actor:
            self.cluster.hosting.lent(worker, command.node)
        self.cluster.send(
            command.node,
            link_messages.LENT,
            command.request,
            worker,
            0 if process is None else process.pid,
            list(command.gpu_ids),
            load,
        )

    def want_back(self, command: scheduling.WantBack) -> None:
        """Our own tasks wait."""
        self.cluster.send(command.node, link_messages.WANTED_BACK, command.worker, command.if_idle)

    def offer(self, command: scheduling.Offer) -> None:
        """Somebody waits, and we have nothing to do."""
        row = self.node.scheduler.borrowing.report(self.node.now).fields()
        self.cluster.send(command.node, link_messages.OFFER, row)

    def lost(self, command: scheduling.LoanLost) -> None:
        """A lent worker has died."""
        reason = command.reason.removeprefix(f"worker {command.worker.hex()} died: ")
        self.cluster.send(command.node, link_messages.WORKER_DIED, command.worker, reason)

    def take_mail(self, process: Process, kind: int, header: bytes) -> bool:
        """A lent worker reports of its work: to who has borrowed it. False: it is for us."""
        return kind in _MAIL and self._pass_on(process, header)

    def take_call(self, process: Process, kind: int, packed: bytes) -> bool:
        """The same of what it writes to its stream."""
        return kind in _CALLS and self._pass_on(process, packed) and kind not in _BOTH_CALLS

    def _pass_on(self, process: Process, packed: bytes) -> bool:
        loan = self.node.scheduler.lending.loans.get(process.identity)
        if loan is None:
            return False
        self.cluster.send(loan.borrower, link_messages.FROM_WORKER, process.identity, packed)
        return True


# -- rules -----------------------------------------------------------------------------------------


def _offer(cluster: Cluster, _peer: bytes, message: list[Any], _frames: list[Payload]) -> None:
    cluster.node.scheduler.borrowing.offered(read_load(message[3]), cluster.node.now)


def _borrow(cluster: Cluster, peer: bytes, message: list[Any], _frames: list[Payload]) -> None:
    number, placement, resources, environment, for_actor, patient = message[3:9]
    cluster.node.scheduler.lending.borrow(
        peer,
        number,
        read_request(placement),
        read_request(resources),
        tuple((name, value) for name, value in environment),
        for_actor=for_actor,
        patient=patient,
        now=cluster.node.now,
    )


def _lent(cluster: Cluster, peer: bytes, message: list[Any], _frames: list[Payload]) -> None:
    number, worker, pid, gpus, load = message[3:8]
    if worker is not None:
        cluster.loans.came(worker, pid)
    if load is not None:
        row = read_load(load)
        if row.node != peer:
            raise errors.RemoteProtocolError("LENT with the load of another node")
        cluster.node.scheduler.borrowing.heard(row)
    cluster.node.scheduler.borrowing.lent(peer, number, worker, tuple(gpus), cluster.node.now)


def _give_back(cluster: Cluster, peer: bytes, message: list[Any], _frames: list[Payload]) -> None:
    lending = cluster.node.scheduler.lending
    if lending.is_lent_to(peer, message[3]):
        cluster.hosting.given_back(message[3])
        lending.given_back(peer, message[3], spent=message[4])


def _wanted_back(
    cluster: Cluster, _peer: bytes, message: list[Any], _frames: list[Payload]
) -> None:
    cluster.node.scheduler.borrowing.want_back(message[3], if_idle=message[4])


def _to_worker(cluster: Cluster, peer: bytes, message: list[Any], payloads: list[Payload]) -> None:
    if cluster.node.scheduler.lending.is_lent_to(peer, message[3]):
        header, *rest = [bytes(each) for each in payloads]
        if not cluster.hosting.take_mail(message[3], header, rest):
            cluster.node.peers.send(message[3], header, rest)


def _tell_worker(cluster: Cluster, peer: bytes, message: list[Any], _frames: list[Payload]) -> None:
    if cluster.node.scheduler.lending.is_lent_to(peer, message[3]):
        told = _inside(message[4])
        if told[1] not in _LIFELINE:
            raise BreachError("TELL_WORKER of something else than its work")
        cluster.node.tell(message[3], told[1], *told[3:])


def _end_worker(cluster: Cluster, peer: bytes, message: list[Any], _frames: list[Payload]) -> None:
    cluster.node.scheduler.lending.end(peer, message[3])


def _from_worker(
    cluster: Cluster, _peer: bytes, message: list[Any], _frames: list[Payload]
) -> None:
    worker, packed = message[3:5]
    process = cluster.borrowed.get(worker)
    if process is None:
        return  # It was given back, or its death was told of, while this was on its way.
    told = _inside(packed)
    if told[1] in _MAIL:
        MAILBOX_RULES[told[1]](cluster.node, process, told, [])
    elif told[1] in _CALLS:
        CALL_RULES[told[1]](cluster.node, process, told)
    else:
        raise BreachError("FROM_WORKER of something else than its work")


def _inside(packed: bytes) -> list[Any]:
    """Return the message of a worker's stream that another node has passed on."""
    try:
        told = frames.unpack(packed)
        check_fields(told)
    except errors.RemoteProtocolError as error:
        raise BreachError(f"a malformed message is passed on: {error}") from None
    return told


def _worker_died(
    cluster: Cluster, _peer: bytes, message: list[Any], _frames: list[Payload]
) -> None:
    cluster.loans.worker_died(message[3], message[4])


def _suspected(cluster: Cluster, peer: bytes, message: list[Any], _frames: list[Payload]) -> None:
    worker = message[3]
    is_lent = cluster.node.scheduler.lending.is_lent_to(peer, worker)
    if is_lent and cluster.node.workers.is_stopped(worker):
        cluster.send(peer, link_messages.STOPPED, worker)


def _stopped(cluster: Cluster, _peer: bytes, message: list[Any], _frames: list[Payload]) -> None:
    cluster.node.scheduler.seize(message[3])


def _job_ended(cluster: Cluster, _peer: bytes, message: list[Any], _frames: list[Payload]) -> None:
    deaths.job_left(cluster.node, message[3])


Rule = Callable[["Cluster", bytes, list[Any], list[Payload]], None]

LOAN_RULES: dict[int, Rule] = {
    link_messages.OFFER: _offer,
    link_messages.BORROW: _borrow,
    link_messages.LENT: _lent,
    link_messages.GIVE_BACK: _give_back,
    link_messages.WANTED_BACK: _wanted_back,
    link_messages.TO_WORKER: _to_worker,
    link_messages.TELL_WORKER: _tell_worker,
    link_messages.END_WORKER: _end_worker,
    link_messages.FROM_WORKER: _from_worker,
    link_messages.WORKER_DIED: _worker_died,
    link_messages.SUSPECTED: _suspected,
    link_messages.STOPPED: _stopped,
    link_messages.JOB_ENDED: _job_ended,
}
