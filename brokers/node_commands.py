"""What the node does when a machine commands it.

What    perform_all() empties the command lists of scheduler, dispatcher and directory until all
        are empty: performing one may produce another.
Caller  brokers/node.py, at the end of every wake.
Never   decides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from zray import errors
from zray.protocol import messages, outcome
from zray.serialization.exceptions import encode_exception

from . import dispatcher, scheduling, sharing
from .draining import moved_cause
from .peers import Process

if TYPE_CHECKING:
    from .loans import Loans
    from .node import Node

_EVENTS_MAX = 1000
"""Of tasks that fail at once, so many are events: a whole queue may go with a node."""


def perform_all(node: Node) -> None:
    """Perform every pending command."""
    scheduler, actors, objects = node.scheduler, node.dispatcher, node.objects
    while scheduler.commands or actors.commands or objects.commands:
        for machine in (scheduler, actors):
            commands: list[Any] = machine.commands
            if commands:
                machine.commands = []
                told: dict[bytes, list[Any]] = {}
                starts: dict[bytes, list[Any]] = {}
                for command in commands:
                    kind = type(command)
                    if kind is dispatcher.Tell:
                        told.setdefault(command.process, []).append(_state_row(node, command))
                    elif kind is dispatcher.Start:
                        _gather_start(node, command, starts)
                    else:
                        _PERFORM[kind](node, command)
                _send_gathered(node, told, starts)
        if objects.commands:
            perform_objects(node)
    node.gcs.commit()


def perform_objects(node: Node) -> None:
    """Perform what the directory alone has commanded so far."""
    commands, node.objects.commands = node.objects.commands, []
    located: dict[bytes, list[Any]] = {}
    elsewhere: list[sharing.Command] = []
    for command in commands:
        if isinstance(command, sharing.Locate):
            located.setdefault(command.process, []).append((command.object, command.outcome))
        elif type(command) in _PERFORM:
            _PERFORM[type(command)](node, command)
        else:
            elsewhere.append(command)
    if elsewhere and node.cluster is not None:
        node.cluster.objects.perform(elsewhere)
    for process, rows in located.items():
        node.send(process, messages.LOCATED, rows)


def _send_gathered(
    node: Node,
    told: dict[bytes, list[Any]],
    starts: dict[bytes, list[Any]],
) -> None:
    for worker, rows in starts.items():
        node.send(worker, messages.START_ACTOR, rows)
    for process, rows in told.items():
        node.send(process, messages.ACTOR_STATE, rows)


# -- scheduler -------------------------------------------------------------------------------------


def _run(node: Node, command: scheduling.Run) -> None:
    work = command.work
    task_class = work.task_class
    process = node.process_of(command.worker)
    if process is not None:
        process.acquainted.add(task_class.client)
    client = node.processes.by_id.get(task_class.client)
    endpoint = client.details["endpoint"] if client is not None else ""
    spec = [*task_class.spec, endpoint] if command.introduce else None
    node.send(
        command.worker,
        messages.RUN,
        task_class.client,
        task_class.key[1],
        spec,
        work.first,
        work.count,
        command.low,
        command.high,
        work.mode,
        list(command.gpu_ids),
        [],
        payloads=(work.payload,),
    )
    if command.introduce:
        worker = node.workers.by_process.get(command.worker)
        if worker is not None:
            worker.label = task_class.name


def _reclaim(node: Node, command: scheduling.Reclaim) -> None:
    node.tell(command.worker, messages.RECLAIM, command.count)


def _suspect(node: Node, command: scheduling.Suspect) -> None:
    if node.cluster is not None and command.worker in node.cluster.borrowed:
        node.cluster.loans.suspect(command.worker)
    elif node.workers.is_stopped(command.worker):
        node.scheduler.seize(command.worker)


def _recall(node: Node, command: scheduling.Recall) -> None:
    node.tell(command.client, messages.RECALL, command.worker)


def _granted(node: Node, command: scheduling.Granted) -> None:
    endpoint = None
    process = node.processes.by_id.get(command.worker or b"")
    if process is None:
        command.worker = None  # It has died in this very wake.
    else:
        process.acquainted.add(command.client)
        endpoint = process.details["endpoint"]
    node.send(
        command.client,
        messages.LEASED,
        command.class_number,
        command.worker,
        endpoint,
        command.recalled,
    )


def _fork(node: Node, command: scheduling.Fork) -> None:
    for done in range(command.count):
        try:
            starting = len(node.processes.starting)
            worker = node.workers.fork(command.env, starting=starting)
        except OSError as error:
            node.put_off(scheduling.Fork(command.env, command.count - done), error)
            return
        node.processes.forked(worker.process, node.now)
        node.scheduler.worker_forked(worker.process, command.env)


def _kill(node: Node, command: scheduling.Kill) -> None:
    if command.graceful:
        node.tell(command.worker, messages.EXIT, command.reason)
    else:
        node.kill_worker(command.worker)


def _tasks_failed(
    node: Node, client: bytes, first: int, items: list[int], name: str, error: Exception
) -> None:
    for item in items[:_EVENTS_MAX]:
        node.gcs.task_failed(client, first + item, name, str(error))
    found = outcome.error(encode_exception(error, where="node"))
    node.send(client, messages.TASK_FAILED, first, items, found)


def _fail(node: Node, command: scheduling.Fail) -> None:
    error = errors.WorkerCrashedError(
        f"task {command.name} did not finish: {command.reason}; its max_retries are used up"
    )
    _tasks_failed(node, command.client, command.first, command.items, command.name, error)


def _by_loans(perform: Callable[[Loans, Any], None]) -> Callable[[Node, Any], None]:
    """Return what performs a command that only a node among others gets."""

    def obey(node: Node, command: Any) -> None:
        if node.cluster is not None:
            perform(node.cluster.loans, command)

    return obey


def _unschedulable(node: Node, command: scheduling.Unschedulable) -> None:
    kind = errors.TaskPlacementGroupRemovedError if command.group else errors.TaskUnschedulableError
    error = kind(f"task {command.name} can't run: {command.reason}")
    _tasks_failed(node, command.client, command.first, command.items, command.name, error)


def _claim_refused(node: Node, command: scheduling.ClaimRefused) -> None:
    kind = (
        errors.ActorPlacementGroupRemovedError if command.group else errors.ActorUnschedulableError
    )
    error = kind(f"the actor can't be placed: {command.reason}")
    node.dispatcher.kill(
        command.actor, outcome.error(encode_exception(error, where="node")), no_restart=True
    )


def _cancelled_early(node: Node, command: scheduling.Cancelled) -> None:
    for item in command.items:
        _cancelled(node, command.client, command.first, item)


def _claimed(node: Node, command: scheduling.Claimed) -> None:
    if command.worker not in node.scheduler.workers:
        # It has died in this very wake. What it held is free, but for the share of a host.
        if command.in_host and command.grant is not None:
            _release_grant(node, dispatcher.ReleaseGrant(command.grant))
        node.dispatcher.claim_lost(command.actor)
        return
    node.dispatcher.claimed(command.actor, command.worker, command.grant, in_host=command.in_host)


# -- dispatcher ------------------------------------------------------------------------------------


def _state_row(node: Node, command: dispatcher.Tell) -> list[Any]:
    actor = node.dispatcher.actors.get(command.actor)
    if actor is None:
        cause = node.dispatcher.dead.get(command.actor) or outcome.error(
            encode_exception(
                errors.ActorDiedError(
                    "it has ended: its last handle was dropped, or it was not known to this node"
                ),
                where="node",
            )
        )
        return [command.actor, "DEAD", None, None, 1 << 30, cause]
    endpoint = None
    if actor.worker is not None:
        process = node.process_of(actor.worker)
        if process is not None:
            process.acquainted.add(command.process)
            endpoint = process.details["endpoint"]
    return [actor.actor, actor.state, actor.worker, endpoint, actor.incarnation, actor.cause]


def _gather_start(node: Node, command: dispatcher.Start, starts: dict[bytes, list[Any]]) -> None:
    actor = node.dispatcher.actors.get(command.actor)
    if actor is None or actor.worker is None:
        return
    if node.cluster is not None and not node.cluster.hosting.starts(command):
        return
    owner = node.processes.by_id.get(actor.owner)
    endpoint = owner.details["endpoint"] if owner is not None else ""
    starts.setdefault(actor.worker, []).append(
        [
            actor.actor,
            actor.incarnation,
            actor.class_id,
            {**actor.details, "gpus": list(_gpus(node, actor))},
            actor.arguments,
            [actor.owner, endpoint],
        ]
    )
    worker = node.workers.by_process.get(actor.worker)
    if worker is not None:
        worker.label = actor.details["class"]


def _gpus(node: Node, actor: dispatcher.Actor) -> tuple[str, ...]:
    if actor.grant is not None:
        return actor.grant.gpu_ids
    state = node.scheduler.workers.get(actor.worker or b"")
    if state is None:
        return ()
    return state.grant.gpu_ids if state.grant is not None else state.gpu_ids


def _end(node: Node, command: dispatcher.End) -> None:
    node.tell(
        command.worker, messages.END_ACTOR, command.actor, command.incarnation, command.killed
    )


def _kill_worker(node: Node, command: dispatcher.KillWorker) -> None:
    node.kill_worker(command.worker)


def _move_actors(node: Node, command: scheduling.MoveActors) -> None:
    node.dispatcher.move(command.worker, moved_cause())


def _release_grant(node: Node, command: dispatcher.ReleaseGrant) -> None:
    node.resources.release(command.grant)
    node.scheduler.pump()


def _record(node: Node, command: dispatcher.Record) -> None:
    actor = node.dispatcher.actors.get(command.actor)
    if actor is None:
        node.objects.actor_ended(command.actor)
        node.gcs.actor_died(command.actor)
        is_free = node.cluster is None or node.cluster.hosting.died(command.actor)
        node.shared_tables.actor_died(command.actor, keeps_name=not is_free)
    else:
        place = (actor.state, actor.worker or b"", actor.incarnation, actor.restarts_left)
        node.gcs.actor_changed(actor.actor, *place)
        node.shared_tables.actor_changed(actor.actor, *place)


def _claim(node: Node, command: scheduling.Claim) -> None:
    node.scheduler.claim(command)
    node.scheduler.pump()


def _withdraw(node: Node, command: dispatcher.Withdraw) -> None:
    node.scheduler.withdraw(command.actor)


# -- directory -------------------------------------------------------------------------------------


def _free_extent(node: Node, command: sharing.FreeExtent) -> None:
    node.store.free_extent(command.offset)
    if node.store.waiting:
        node.store.serve(node.now)


def _delete_spilled(node: Node, command: sharing.DeleteSpilled) -> None:
    node.store.spill.delete(command.file)


def _restore(node: Node, command: sharing.Restore) -> None:
    identity = command.object

    def failed(error: Exception) -> None:
        found = outcome.error(encode_exception(error, where="node"))
        node.objects.restore_failed(identity, found)

    node.store.restore(identity, node.now, failed)


def _unreferenced(node: Node, command: sharing.Unreferenced) -> None:
    node.dispatcher.unreferenced(command.actor)


_PERFORM: dict[type, Callable[[Any, Any], None]] = {
    scheduling.Run: _run,
    scheduling.Reclaim: _reclaim,
    scheduling.Recall: _recall,
    scheduling.Suspect: _suspect,
    scheduling.Granted: _granted,
    scheduling.Fork: _fork,
    scheduling.Kill: _kill,
    scheduling.Cancelled: _cancelled_early,
    scheduling.Fail: _fail,
    scheduling.Claimed: _claimed,
    scheduling.Claim: _claim,
    dispatcher.End: _end,
    dispatcher.KillWorker: _kill_worker,
    dispatcher.ReleaseGrant: _release_grant,
    dispatcher.Record: _record,
    dispatcher.Withdraw: _withdraw,
    sharing.FreeExtent: _free_extent,
    sharing.DeleteSpilled: _delete_spilled,
    sharing.Restore: _restore,
    sharing.Unreferenced: _unreferenced,
    scheduling.Borrow: _by_loans(lambda loans, command: loans.borrow(command)),
    scheduling.GiveBack: _by_loans(lambda loans, command: loans.give_back(command)),
    scheduling.Lend: _by_loans(lambda loans, command: loans.lend(command)),
    scheduling.MoveActors: _move_actors,
    scheduling.WantBack: _by_loans(lambda loans, command: loans.want_back(command)),
    scheduling.Offer: _by_loans(lambda loans, command: loans.offer(command)),
    scheduling.LoanLost: _by_loans(lambda loans, command: loans.lost(command)),
    scheduling.Unschedulable: _unschedulable,
    scheduling.ClaimRefused: _claim_refused,
}


def cancel(
    node: Node,
    process: Process,
    worker: bytes | None,
    first: int,
    item: int,
    force: bool,
    recursive: bool,
) -> None:
    """CANCEL: remove a queued task, interrupt a running one, or kill its worker."""
    client = process.identity
    if worker is None:
        removed, worker = node.scheduler.cancel(client, first, item)
        if removed:
            _cancelled(node, client, first, item)
            return
    if worker is None:
        return  # It has ended: its outcome stands.
    if force:
        node.scheduler.forgive(worker, client, first, item)
        _cancelled(node, client, first, item)
        node.kill_worker(worker)
    else:
        node.tell(worker, messages.INTERRUPT, client, first, item, recursive)


def _cancelled(node: Node, client: bytes, first: int, item: int) -> None:
    error = errors.TaskCancelledError("the task was cancelled")
    _tasks_failed(node, client, first, [item], "", error)
