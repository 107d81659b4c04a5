"""The node's rules for messages of other nodes.

What    One function a kind: fields to a machine's method, or on to a process of this node.
Caller  brokers/cluster.py.
Never   believes a node that is not a member, or opens what processes say to each other.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from zray import errors
from zray.net.curve import Role
from zray.net.link_inbox import Payload, Sender
from zray.protocol import frames, link_messages, messages
from zray.protocol.ids import node_of

from .cluster import FORWARDED_CALLS, FORWARDED_MAIL
from .node_calls import CALL_RULES
from .node import error_outcome
from .node_mailbox import MAILBOX_RULES
from .scheduling import Claim
from .validation import check_fields

if TYPE_CHECKING:
    from .cluster import Cluster

Rule = Callable[["Cluster", bytes, list[Any], list[Payload]], None]


def handle(cluster: Cluster, sender: Sender, header: bytes, payloads: list[Payload]) -> None:
    """Obey one message; what is malformed is counted, never fatal."""
    try:
        message = frames.unpack(header)
        rule = LINK_RULES.get(message[1])
        if rule is None or message[2] != len(payloads) or sender.role is not Role.NODE:
            raise errors.RemoteProtocolError("not a message of a node for a node")
        if message[1] == link_messages.LINK_HELLO:
            cluster.welcome(sender, message[3])
            return
        if sender.peer not in cluster.members:
            raise errors.RemoteProtocolError("a message of a node that is not a member")
        rule(cluster, sender.peer, message, payloads)
    except Exception as error:  # A broken node must not end this one.
        cluster.refused += 1
        if cluster.refused < 100:
            print(f"refused a message of node {sender.peer.hex()}: {error!r}", flush=True)
            if not isinstance(error, errors.ZrayError):
                traceback.print_exception(error)


def _hello(_cluster: Cluster, _peer: bytes, _message: list[Any], _frames: list[Payload]) -> None:
    return


def _load(cluster: Cluster, peer: bytes, message: list[Any], _frames: list[Payload]) -> None:
    cluster.node.scheduler.borrowing.node_reports(peer, message[3], message[4])


def _relay(cluster: Cluster, peer: bytes, message: list[Any], payloads: list[Payload]) -> None:
    destination, source = message[3:5]
    if node_of(source) != peer:
        raise errors.RemoteProtocolError("RELAY of a process of another node")
    header = frames.pack(messages.FORWARDED, source, payloads=len(payloads))
    cluster.node.peers.send(destination, header, [bytes(each) for each in payloads])


# -- workers ---------------------------------------------------------------------------------------


def _borrow(cluster: Cluster, peer: bytes, message: list[Any], _frames: list[Payload]) -> None:
    number, amounts, environment = message[3:6]
    node = cluster.node
    scheduler = node.scheduler
    if scheduler.claims or scheduler.queues.task_count or not node.resources.fits(amounts):
        cluster.send(peer, link_messages.LENT, number, None, 0, [])
        return
    claim = peer + number.to_bytes(8, "big")
    cluster.lending[claim] = (peer, number)
    env = tuple((str(name), str(value)) for name, value in environment)
    scheduler.claim(Claim(claim, dict(amounts), dict(amounts), env))
    scheduler.pump()


def _lent(cluster: Cluster, peer: bytes, message: list[Any], _frames: list[Payload]) -> None:
    number, worker, pid, gpus = message[3:7]
    if worker is not None:
        if node_of(worker) != peer:
            raise errors.RemoteProtocolError("LENT of another node's worker")
        cluster.worker_came(worker, pid)
    cluster.node.scheduler.borrowing.lent(peer, number, worker, tuple(gpus), cluster.node.now)


def _give_back(cluster: Cluster, peer: bytes, message: list[Any], _frames: list[Payload]) -> None:
    lent = cluster.lent.get(message[3])
    if lent is not None and lent.borrower == peer:
        del cluster.lent[message[3]]
        cluster.node.scheduler.returned(message[3])


def _wanted_back(cluster: Cluster, peer: bytes, message: list[Any], _frames: list[Payload]) -> None:
    if node_of(message[3]) == peer:
        cluster.node.scheduler.borrowing.want_back(message[3])


def _is_lent_to(cluster: Cluster, peer: bytes, worker: bytes) -> bool:
    lent = cluster.lent.get(worker)
    return lent is not None and lent.borrower == peer


def _to_worker(cluster: Cluster, peer: bytes, message: list[Any], payloads: list[Payload]) -> None:
    if _is_lent_to(cluster, peer, message[3]):
        header, *rest = [bytes(each) for each in payloads]
        cluster.node.peers.send(message[3], header, rest)


def _tell_worker(cluster: Cluster, peer: bytes, message: list[Any], _frames: list[Payload]) -> None:
    if _is_lent_to(cluster, peer, message[3]):
        process = cluster.node.processes.by_id.get(message[3])
        if process is not None:
            process.lifeline.queue(message[4])


def _end_worker(cluster: Cluster, peer: bytes, message: list[Any], _frames: list[Payload]) -> None:
    if _is_lent_to(cluster, peer, message[3]):
        cluster.node.workers.kill(message[3])


def _from_worker(cluster: Cluster, peer: bytes, message: list[Any], _frames: list[Payload]) -> None:
    worker, packed = message[3:5]
    process = cluster.borrowed.get(worker)
    if process is None or node_of(worker) != peer:
        return  # It was given back, or its death was told of, while this was on its way.
    told = frames.unpack(packed)
    check_fields(told)
    if told[1] in FORWARDED_MAIL:
        MAILBOX_RULES[told[1]](cluster.node, process, told, [])
    elif told[1] in FORWARDED_CALLS:
        CALL_RULES[told[1]](cluster.node, process, told)
    else:
        raise errors.RemoteProtocolError("FROM_WORKER of something else than its work")


def _worker_died(cluster: Cluster, peer: bytes, message: list[Any], _frames: list[Payload]) -> None:
    if node_of(message[3]) == peer:
        cluster.worker_lost(message[3], message[4])


# -- code ------------------------------------------------------------------------------------------


def _code_wanted(cluster: Cluster, peer: bytes, message: list[Any], _frames: list[Payload]) -> None:
    function, job = message[3:5]
    node = cluster.node
    code = node.gcs.tables.functions.get(function)
    if code is not None:
        cluster.send(peer, link_messages.CODE, function, code, node.processes.jobs.get(job))


def _code(cluster: Cluster, _peer: bytes, message: list[Any], _frames: list[Payload]) -> None:
    function, code, job = message[3:6]
    node = cluster.node
    if job is not None:
        node.processes.jobs[job["job"]] = job
        cluster.code_wanted.discard((function, job["job"]))
    node.code_arrived(function, code)


# -- actors ----------------------------------------------------------------------------------------


def _watch_actor(cluster: Cluster, peer: bytes, message: list[Any], _frames: list[Payload]) -> None:
    node = cluster.node
    if not node.dispatcher.knows(message[3]) and node.objects.is_pending(message[3]):
        node.dispatcher.watch(peer, message[3])
        return
    node.dispatcher.watch(peer, message[3])


def _kill_actor(cluster: Cluster, _peer: bytes, message: list[Any], _frames: list[Payload]) -> None:
    cause = error_outcome(errors.ActorDiedError("zray.kill() ended it"))
    cluster.node.dispatcher.kill(message[3], cause, no_restart=message[4])


def _actor_state(cluster: Cluster, peer: bytes, message: list[Any], _frames: list[Payload]) -> None:
    cluster.actor_states([row for row in message[3] if node_of(row[0]) == peer])


def _process_died(
    cluster: Cluster, _peer: bytes, message: list[Any], _frames: list[Payload]
) -> None:
    cluster.tell_of_death(message[3], message[4])


# -- objects ---------------------------------------------------------------------------------------


def _hold(cluster: Cluster, peer: bytes, message: list[Any], _frames: list[Payload]) -> None:
    cluster.node.objects.hold(peer, message[3])


def _release(cluster: Cluster, peer: bytes, message: list[Any], _frames: list[Payload]) -> None:
    cluster.node.objects.release(peer, message[3], message[4])


def _stored_at(cluster: Cluster, peer: bytes, message: list[Any], _frames: list[Payload]) -> None:
    identity, nbytes, holder = message[3:6]
    cluster.node.objects.stored_at(peer, identity, nbytes, holder)


def _locate(cluster: Cluster, peer: bytes, message: list[Any], _frames: list[Payload]) -> None:
    cluster.node.objects.locate(peer, message[3])


def _found(cluster: Cluster, _peer: bytes, message: list[Any], _frames: list[Payload]) -> None:
    for identity, found, nbytes, sources in message[3]:
        cluster.node.objects.found(identity, found, nbytes, sources)


def _pull(cluster: Cluster, peer: bytes, message: list[Any], _frames: list[Payload]) -> None:
    identity, offset, nbytes = message[3:6]
    node = cluster.node
    entry = node.objects.entries.get(identity)
    if entry is None or entry.offset < 0 or not 0 <= offset < offset + nbytes <= entry.nbytes:
        cluster.send(peer, link_messages.CHUNK, identity, offset, -1)
        return
    # A copy: the extent may be given to somebody else before the bytes have left.
    data = node.store.segment.copy_out(entry.offset + offset, nbytes)
    cluster.send(peer, link_messages.CHUNK, identity, offset, nbytes, payloads=(data,))


def _chunk(cluster: Cluster, _peer: bytes, message: list[Any], payloads: list[Payload]) -> None:
    identity, offset, nbytes = message[3:6]
    cluster.chunk(identity, offset, payloads[0] if nbytes >= 0 else None)


LINK_RULES: dict[int, Rule] = {
    link_messages.LINK_HELLO: _hello,
    link_messages.LOAD: _load,
    link_messages.RELAY: _relay,
    link_messages.BORROW: _borrow,
    link_messages.LENT: _lent,
    link_messages.GIVE_BACK: _give_back,
    link_messages.WANTED_BACK: _wanted_back,
    link_messages.TO_WORKER: _to_worker,
    link_messages.TELL_WORKER: _tell_worker,
    link_messages.END_WORKER: _end_worker,
    link_messages.FROM_WORKER: _from_worker,
    link_messages.WORKER_DIED: _worker_died,
    link_messages.CODE_WANTED: _code_wanted,
    link_messages.CODE: _code,
    link_messages.STORED_AT: _stored_at,
    link_messages.LOCATE_FOREIGN: _locate,
    link_messages.FOUND: _found,
    link_messages.PULL: _pull,
    link_messages.CHUNK: _chunk,
    messages.HOLD: _hold,
    messages.RELEASE: _release,
    messages.WATCH_ACTOR: _watch_actor,
    messages.KILL_ACTOR: _kill_actor,
    messages.ACTOR_STATE: _actor_state,
    messages.PROCESS_DIED: _process_died,
}
