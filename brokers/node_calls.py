"""The node's rules for calls that come by unix stream.

What    One function a kind: fields to a machine's method, an answer where the caller waits.
Caller  brokers/node.py.
Never   holds state.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from zray import errors
from zray.protocol import link_messages, messages
from zray.protocol.ids import node_of

from .allocator import Extent
from .node_outcomes import error_outcome
from .peers import Process
from .scheduling import JOB_VARIABLE

if TYPE_CHECKING:
    from .node import Node

Rule = Callable[["Node", Process, list[Any]], None]


def _declare_class(node: Node, process: Process, message: list[Any]) -> None:
    spec = message[4]
    spec[7] = {**spec[7], JOB_VARIABLE: node.job_of(process)}
    node.gcs.class_declared(node.job_of(process), process.identity, message[3], spec)
    node.scheduler.declare(process.identity, message[3], spec)


def _put_function(node: Node, process: Process, message: list[Any]) -> None:
    node.code_arrived(message[3], message[4])
    if node.cluster is not None:
        node.cluster.code.put(message[3], message[4], node.job_of(process))
    node.shared_tables.put_function(message[3], message[4])


def answer_code(node: Node, process: Process, function: bytes, code: bytes) -> None:
    """The first code a worker asks for comes with the job it is to be run in."""
    details = None
    if not process.knows_job:
        job = node.job_of(process)
        details = node.processes.jobs.get(job)
        if details is None and node.cluster is not None and node.cluster.code.is_elsewhere(job):
            _wait_for_code(node, process, function)
            return
        process.knows_job = True
    node.answer(process, [code, details])


def _wait_for_code(node: Node, process: Process, function: bytes) -> None:
    node.processes.waiting_for_function.setdefault(function, []).append(process)
    if node.cluster is not None:
        node.cluster.code.fetch(function, node.job_of(process))


def _get_function(node: Node, process: Process, message: list[Any]) -> None:
    function = message[3]
    code = node.gcs.tables.functions.get(function)
    if code is not None:
        answer_code(node, process, function, code)
    else:
        _wait_for_code(node, process, function)


def _allocate(node: Node, process: Process, message: list[Any]) -> None:
    nbytes = message[3]
    if type(nbytes) is not int or nbytes <= 0:
        raise errors.RemoteProtocolError(f"ALLOCATE of {nbytes!r} bytes")

    def done(extent: Extent | None, error: Exception | None) -> None:
        value = None
        if extent is not None:
            spares = node.store.spares(process.identity, extent.nbytes)
            value = [extent.offset, extent.nbytes, extent.fresh, spares]
        node.answer(process, value, error)

    node.store.allocate(process.identity, nbytes, node.now, done)


def _free(node: Node, process: Process, message: list[Any]) -> None:
    node.store.freed(process.identity, message[3])


def _register(node: Node, process: Process, message: list[Any]) -> None:
    identity, offset, nbytes, contained, holder = message[3:8]
    if not node.store.owns(process.identity, offset):
        raise errors.RemoteProtocolError("REGISTER of an extent that is not the sender's")
    node.store.registered(offset)
    node.objects.register(process.identity, identity, offset, nbytes, contained, holder)


def _share(node: Node, process: Process, message: list[Any]) -> None:
    node.objects.share(process.identity, message[3], message[4], message[5], first=message[6])


def _hold(node: Node, process: Process, message: list[Any]) -> None:
    if message[4]:
        if not node.objects.knows(message[3]) and node.not_yet(process, message):
            return
        node.answer(process, node.objects.hold_certain(process.identity, message[3]))
    else:
        node.objects.hold(process.identity, message[3])


def _hold_for(node: Node, _process: Process, message: list[Any]) -> None:
    node.objects.hold_for(message[3], message[4])


def _transfer(node: Node, process: Process, message: list[Any]) -> None:
    # The giver has a result from its worker, whose own word to us may be unread yet.
    if not node.objects.knows(message[4]) and node.not_yet(process, message):
        return
    node.objects.transfer(process.identity, message[3], message[4])


def _release(node: Node, process: Process, message: list[Any]) -> None:
    node.releases.append((process.identity, message[3], message[4]))


def _locate(node: Node, process: Process, message: list[Any]) -> None:
    if not node.objects.knows(message[3]) and node.not_yet(process, message):
        return
    node.objects.locate(process.identity, message[3], message[4])


def _unpinned(node: Node, process: Process, message: list[Any]) -> None:
    node.objects.unpinned(process.identity, message[3])


def _blocked(node: Node, process: Process, _message: list[Any]) -> None:
    node.scheduler.blocked(process.identity)


def _unblocked(node: Node, process: Process, _message: list[Any]) -> None:
    node.scheduler.unblocked(process.identity)


def _create_actor(node: Node, process: Process, message: list[Any]) -> None:
    identity, class_id, details = message[3:6]
    job = node.job_of(process)
    details["env"] = {**details["env"], JOB_VARIABLE: job}
    if details["name"] is None:
        node.gcs.actor_created(identity, class_id, job, details)
        _begin_actor(node, process, message)
        return

    def registered(is_free: bool, error: Exception | None) -> None:
        if not is_free:
            node.answer(process, None, error or _name_taken(details))
        elif not _is_wanted(node, process, details):
            node.gcs.actor_died(identity)
            node.shared_tables.actor_died(identity, keeps_name=False)
        else:
            _begin_actor(node, process, message)
            node.answer(process, True)

    node.shared_tables.register_actor(identity, class_id, job, details, registered)


def _begin_actor(node: Node, process: Process, message: list[Any]) -> None:
    identity, class_id, details, arguments = message[3:7]
    node.objects.actor_created(process.identity, identity)
    node.dispatcher.create(process.identity, identity, class_id, details, arguments)


def _is_wanted(node: Node, process: Process, details: dict[str, Any]) -> bool:
    """Whether its creator and its job are still there, now that its name is registered."""
    if node.processes.by_id.get(process.identity) is not process:
        return False
    driver = bytes.fromhex(details["env"][JOB_VARIABLE])
    is_own = bool(driver) and node_of(driver) == node.process
    return bool(details["detached"]) or not is_own or driver in node.processes.drivers


def _name_taken(details: dict[str, Any]) -> errors.NameTakenError:
    return errors.NameTakenError(
        f"an actor named {details['name']!r} lives in namespace {details['namespace']!r}:"
        " choose another name, pass get_if_exists=True, or zray.kill() it first"
    )


def _actor_arguments(node: Node, process: Process, message: list[Any]) -> None:
    arguments, error = message[4:6]
    node.dispatcher.arguments_arrived(process.identity, message[3], arguments, error)


def _watch_actor(node: Node, process: Process, message: list[Any]) -> None:
    if node.cluster is not None and node_of(message[3]) != node.process:
        node.cluster.watch(process.identity, message[3])
        return
    if not node.dispatcher.knows(message[3]) and node.not_yet(process, message):
        return
    node.dispatcher.watch(process.identity, message[3])


def _kill_actor(node: Node, process: Process, message: list[Any]) -> None:
    home = node_of(message[3])
    if node.cluster is not None and home != node.process:
        node.cluster.send(home, messages.KILL_ACTOR, message[3], message[4])
        return
    if not node.dispatcher.knows(message[3]) and node.not_yet(process, message):
        return
    cause = error_outcome(errors.ActorDiedError("zray.kill() ended it"))
    node.dispatcher.kill(message[3], cause, no_restart=message[4])


def _named_actor(node: Node, process: Process, message: list[Any]) -> None:
    node.shared_tables.find_actor(message[3], message[4], partial(node.answer, process))


def _list_named(node: Node, process: Process, message: list[Any]) -> None:
    node.shared_tables.actor_names(message[3], partial(node.answer, process))


def _cancel(node: Node, process: Process, message: list[Any]) -> None:
    from .node_commands import cancel

    cancel(node, process, *message[3:8])


def _reclaimed(node: Node, process: Process, message: list[Any]) -> None:
    node.scheduler.reclaimed(process.identity, message[3])


def _lease(node: Node, process: Process, message: list[Any]) -> None:
    node.scheduler.lease(process.identity, message[3])


def _unlease(node: Node, process: Process, message: list[Any]) -> None:
    node.scheduler.unlease(process.identity, message[3])


def _kv(node: Node, process: Process, message: list[Any]) -> None:
    node.shared_tables.kv(message[3], message[4], partial(node.answer, process))


def _group(node: Node, process: Process, message: list[Any]) -> None:
    node.placement_groups.ask(process, message[3], message[4])


def _inspect(node: Node, process: Process, message: list[Any]) -> None:
    from . import state_questions  # Few ask, and it has much to import.

    state_questions.inspect(node, process, message[3], message[4])


def _events(node: Node, process: Process, message: list[Any]) -> None:
    packed, dropped, question = message[3:6]
    node.gcs.ran(process.identity, process.pid, packed, dropped)
    if question is not None:
        node.event_queries.answered(process, question)


def _state(node: Node, process: Process, message: list[Any]) -> None:
    node.process_questions.answered(process, message[3], message[4])


def _stop(node: Node, process: Process, message: list[Any]) -> None:
    node.stop(f"{process} asked: {message[3]}")


def _drain_node(node: Node, _process: Process, message: list[Any]) -> None:
    wanted, timeout_s, force = message[3:6]
    cluster = node.cluster
    if cluster is None:
        raise errors.RemoteProtocolError("DRAIN_NODE at a node that is alone")
    if wanted == node.process:
        cluster.draining.begin(timeout_s, force=force)
    elif wanted in cluster.members:
        cluster.send(wanted, link_messages.DRAIN, timeout_s, force)


def _actor_exit(node: Node, process: Process, message: list[Any]) -> None:
    node.dispatcher.exited(process.identity, message[3], message[4])


def _goodbye(node: Node, process: Process, _message: list[Any]) -> None:
    process.said_goodbye = True
    if process.role == "driver":
        # What its tasks have printed goes out before the answer: it is the last it reads.
        node.workers.read_output()
        node.printed.send()
        node.answer(process, True)


CALL_RULES: dict[int, Rule] = {
    messages.DECLARE_CLASS: _declare_class,
    messages.PUT_FUNCTION: _put_function,
    messages.GET_FUNCTION: _get_function,
    messages.ALLOCATE: _allocate,
    messages.FREE: _free,
    messages.REGISTER: _register,
    messages.SHARE: _share,
    messages.HOLD: _hold,
    messages.HOLD_FOR: _hold_for,
    messages.TRANSFER: _transfer,
    messages.RELEASE: _release,
    messages.LOCATE: _locate,
    messages.UNPINNED: _unpinned,
    messages.BLOCKED: _blocked,
    messages.UNBLOCKED: _unblocked,
    messages.CREATE_ACTOR: _create_actor,
    messages.ACTOR_ARGUMENTS: _actor_arguments,
    messages.WATCH_ACTOR: _watch_actor,
    messages.KILL_ACTOR: _kill_actor,
    messages.NAMED_ACTOR: _named_actor,
    messages.LIST_NAMED: _list_named,
    messages.CANCEL: _cancel,
    messages.RECLAIMED: _reclaimed,
    messages.LEASE: _lease,
    messages.UNLEASE: _unlease,
    messages.KV: _kv,
    messages.GROUP: _group,
    messages.INSPECT: _inspect,
    messages.STOP: _stop,
    messages.DRAIN_NODE: _drain_node,
    messages.ACTOR_EXIT: _actor_exit,
    messages.EVENTS: _events,
    messages.STATE: _state,
    messages.GOODBYE: _goodbye,
}
