"""The node's rules for messages of other nodes.

What    One function a kind: fields to a machine's method, or on to a process of this node.
Caller  brokers/cluster.py.
Never   believes a node that is not a member in anything but who it is; opens what processes say to
        each other, or what the GCS and its sessions do.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from zray import errors
from zray.net.link_inbox import Payload, Sender
from zray.protocol import frames, link_messages, messages
from zray.protocol.roles import Role, may_claim

from . import link_roles
from .hosting import HOSTING_RULES
from .link_roles import RoleError
from .link_validation import BreachError, check_link_message
from .loans import LOAN_RULES
from .node_outcomes import error_outcome
from .placement_groups import group_ask, group_gone, group_said
from .queries import QUERY_RULES
from .relays import RELAY_ONE

if TYPE_CHECKING:
    from .cluster import Cluster

Rule = Callable[["Cluster", bytes, list[Any], list[Payload]], None]
OpenRule = Callable[["Cluster", Sender, list[Any], list[Payload]], None]


_RELAY_ONE = frames.unpack(RELAY_ONE)


def handle(cluster: Cluster, sender: Sender, header: bytes, payloads: list[Payload]) -> None:
    """Obey one message; what is malformed ends its link and is counted, never fatal.

    A message left out would make all that come after it wrong.
    """
    try:
        # Known by its bytes, because most messages are these.
        message = _RELAY_ONE if header == RELAY_ONE else _unpacked(cluster, sender, header)
        if message is None:
            return
        check_link_message(message, len(payloads), sender.peer, cluster.node.process)
        open_rule = OPEN_RULES.get(message[1])
        if open_rule is not None:
            cluster.node.stirred = True
            open_rule(cluster, sender, message, payloads)
            return
        rule = LINK_RULES[message[1]]
        if rule is not _relay:
            cluster.node.stirred = True
        member = cluster.members.get(sender.peer)
        if member is None:
            raise errors.RemoteProtocolError("a message of a node that is not a member")
        if member.role is not Role.NODE or sender.role is not Role.NODE:
            _check_role(member.role, sender, message)
        rule(cluster, sender.peer, message, payloads)
    except (RoleError, BreachError) as error:
        cluster.refused += 1
        cluster.refusals.shut_out(sender, str(error))
    except Exception as error:  # A broken node must not end this one.
        cluster.refused += 1
        if cluster.refused < 100:
            print(f"refused a message of node {sender.peer.hex()}: {error!r}", flush=True)
            if not isinstance(error, errors.ZrayError):
                traceback.print_exception(error)


def _unpacked(cluster: Cluster, sender: Sender, header: bytes) -> list[Any] | None:
    """Return a header's fields, None of a greeting in another version: that was answered."""
    try:
        return frames.unpack(header)
    except errors.RemoteProtocolError as error:
        if cluster.refusals.read_other_version(sender, header):
            return None
        raise BreachError(str(error)) from None


def _check_role(role: Role, sender: Sender, message: list[Any]) -> None:
    if not may_claim(sender.role, role):
        raise RoleError(f"the key of a {sender.role} speaks for a {role}")
    link_roles.check(role, sender.peer, message)


# -- of anybody with a key -------------------------------------------------------------------------


def _hello(cluster: Cluster, sender: Sender, message: list[Any], _frames: list[Payload]) -> None:
    cluster.welcome(sender, message[3])


def _roster(cluster: Cluster, sender: Sender, message: list[Any], _frames: list[Payload]) -> None:
    cluster.roster.heard(sender, message[3])


def _gcs_call(
    cluster: Cluster, sender: Sender, message: list[Any], payloads: list[Payload]
) -> None:
    if cluster.gcs_relay is None:
        raise errors.RemoteProtocolError("GCS_CALL to a node that is not the head")
    (piece,) = payloads
    cluster.gcs_relay.call(sender, message[3], message[4], bytes(piece))


def _gcs_answer(
    cluster: Cluster, sender: Sender, message: list[Any], payloads: list[Payload]
) -> None:
    if cluster.gcs is None or cluster.gcs.head != sender.peer:
        raise errors.RemoteProtocolError("GCS_ANSWER of a node that is not the head")
    if sender.role is not Role.NODE:
        raise RoleError(f"the key of a {sender.role} speaks for the head")
    (piece,) = payloads
    cluster.gcs.take(message[3], message[4], bytes(piece))


OPEN_RULES: dict[int, OpenRule] = {
    link_messages.LINK_HELLO: _hello,
    link_messages.ROSTER: _roster,
    link_messages.GCS_CALL: _gcs_call,
    link_messages.GCS_ANSWER: _gcs_answer,
}
"""What is heard of who is no member: the GCS says who is one, so it speaks with all; of the list of
keys it is the key that counts."""


# -- of members ------------------------------------------------------------------------------------


def _relay(cluster: Cluster, peer: bytes, _message: list[Any], payloads: list[Payload]) -> None:
    role = cluster.members[peer].role
    if role is not Role.NODE:
        link_roles.check_sources(role, peer, payloads)
    if role is Role.GATEWAY:
        payloads = [*cluster.refusals.gateways.admitted(peer, payloads)]
    if payloads:
        try:
            cluster.relays.hand_over(peer, payloads)
        except errors.RemoteProtocolError as error:
            raise BreachError(str(error)) from None


# -- code ------------------------------------------------------------------------------------------


def _code_wanted(cluster: Cluster, peer: bytes, message: list[Any], _frames: list[Payload]) -> None:
    cluster.code.wanted_by(peer, message[3], message[4])


def _code(cluster: Cluster, _peer: bytes, message: list[Any], _frames: list[Payload]) -> None:
    cluster.code.came(*message[3:6])


# -- actors ----------------------------------------------------------------------------------------


def _watch_actor(cluster: Cluster, peer: bytes, message: list[Any], _frames: list[Payload]) -> None:
    node, actor = cluster.node, message[3]
    node.shared_tables.after_registration(actor, lambda: node.dispatcher.watch(peer, actor))


def _kill_actor(cluster: Cluster, _peer: bytes, message: list[Any], _frames: list[Payload]) -> None:
    cause = error_outcome(errors.ActorDiedError("zray.kill() ended it"))
    actor, no_restart = message[3:5]
    node = cluster.node
    node.shared_tables.after_registration(
        actor, lambda: node.dispatcher.kill(actor, cause, no_restart=no_restart)
    )


def _actor_state(
    cluster: Cluster, _peer: bytes, message: list[Any], _frames: list[Payload]
) -> None:
    cluster.actor_states(message[3])


def _process_died(
    cluster: Cluster, peer: bytes, message: list[Any], _frames: list[Payload]
) -> None:
    cluster.tell_of_death(peer, message[3], message[4])


def _output(cluster: Cluster, peer: bytes, message: list[Any], _frames: list[Payload]) -> None:
    job, lines = message[3:5]
    where = f", node {peer.hex()[:8]}"
    cluster.node.printed.show(job, [(f"{who}{where}", *rest) for who, *rest in lines])


def _take_over(cluster: Cluster, peer: bytes, message: list[Any], _frames: list[Payload]) -> None:
    rows = [(each, held) for each, held in message[3]]
    cluster.node.objects.evacuation.take_over(peer, rows)


# -- leaving ---------------------------------------------------------------------------------------


def _drain(cluster: Cluster, _peer: bytes, message: list[Any], _frames: list[Payload]) -> None:
    timeout_s, force = message[3:5]
    cluster.draining.begin(float(timeout_s), force=force)


def _leaving(cluster: Cluster, peer: bytes, message: list[Any], _frames: list[Payload]) -> None:
    cluster.draining.told(peer, message[3])


# -- lineage ---------------------------------------------------------------------------------------


def _job(value: Any) -> str:
    """A job as a folder's name: nothing else may come from another node."""
    if type(value) is not str or len(value) != 16 or len(bytes.fromhex(value)) != 8:
        raise errors.RemoteProtocolError("LINEAGE of no job")
    return value


def _lineage(cluster: Cluster, peer: bytes, message: list[Any], frames: list[Payload]) -> None:
    epoch, job, positions = message[3:6]
    blobs = [bytes(each) for each in frames]
    cluster.lineage.received(peer, epoch, _job(job), positions, blobs)


def _lineage_kept(
    cluster: Cluster, peer: bytes, message: list[Any], _frames: list[Payload]
) -> None:
    cluster.lineage.acknowledged(peer, message[3], message[4])


def _lineage_ended(
    cluster: Cluster, peer: bytes, message: list[Any], _frames: list[Payload]
) -> None:
    cluster.lineage.ended(peer, message[3], _job(message[4]))


# -- objects ---------------------------------------------------------------------------------------


def _hold(cluster: Cluster, peer: bytes, message: list[Any], _frames: list[Payload]) -> None:
    cluster.objects.hold(peer, message[3])


def _release(cluster: Cluster, peer: bytes, message: list[Any], _frames: list[Payload]) -> None:
    cluster.node.objects.release(peer, message[3], message[4])


def _stored_at(cluster: Cluster, peer: bytes, message: list[Any], _frames: list[Payload]) -> None:
    identity, nbytes, holder = message[3:6]
    cluster.node.objects.stored_at(peer, identity, nbytes, holder)


def _locate(cluster: Cluster, peer: bytes, message: list[Any], _frames: list[Payload]) -> None:
    cluster.node.objects.locate(peer, message[3], message[4])


def _found(cluster: Cluster, _peer: bytes, message: list[Any], _frames: list[Payload]) -> None:
    for identity, found, nbytes, sources in message[3]:
        cluster.node.objects.found(identity, found, nbytes, sources)


def _counted(cluster: Cluster, peer: bytes, message: list[Any], _frames: list[Payload]) -> None:
    cluster.objects.counted(peer, message[3])


def _copy_gone(cluster: Cluster, peer: bytes, message: list[Any], _frames: list[Payload]) -> None:
    cluster.node.objects.copy_gone(peer, message[3])


LINK_RULES: dict[int, Rule] = {
    **LOAN_RULES,
    **QUERY_RULES,
    **HOSTING_RULES,
    link_messages.RELAY: _relay,
    link_messages.CODE_WANTED: _code_wanted,
    link_messages.CODE: _code,
    link_messages.STORED_AT: _stored_at,
    link_messages.LOCATE_FOREIGN: _locate,
    link_messages.FOUND: _found,
    link_messages.HOLDS_COUNTED: _counted,
    link_messages.COPY_GONE: _copy_gone,
    link_messages.TAKE_OVER: _take_over,
    link_messages.DRAIN: _drain,
    link_messages.LEAVING: _leaving,
    link_messages.OUTPUT: _output,
    link_messages.LINEAGE: _lineage,
    link_messages.LINEAGE_KEPT: _lineage_kept,
    link_messages.LINEAGE_ENDED: _lineage_ended,
    link_messages.GROUP_ASK: group_ask,
    link_messages.GROUP_SAID: group_said,
    link_messages.GROUP_GONE: group_gone,
    messages.HOLD: _hold,
    messages.RELEASE: _release,
    messages.WATCH_ACTOR: _watch_actor,
    messages.KILL_ACTOR: _kill_actor,
    messages.ACTOR_STATE: _actor_state,
    messages.PROCESS_DIED: _process_died,
}
