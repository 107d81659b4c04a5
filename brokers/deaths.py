"""What follows from the death of a process: its work, its objects, its actors, its files.

What    process_gone() forgets a process of this node; tell_of_death() tells the machines and all
        who had dealings with it, which is the whole of it for a worker of another node.
Caller  brokers/node.py, brokers/cluster.py.
Never   finds out that a process is dead: the end of its lifeline, or of its node's, says so.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import TYPE_CHECKING

from zray import errors, node_directory
from zray.protocol import messages
from zray.protocol.ids import node_of
from zray.protocol.limits import WORKER_STARTS_FAILED_MAX

from .node_commands import perform_all
from .node_outcomes import error_outcome
from .scheduling import JOB_VARIABLE, job_of
from .workers import describe_exit

if TYPE_CHECKING:
    from .node import Node
    from .peers import Process


def process_gone(node: Node, identity: bytes, reason: str) -> None:
    """A driver or worker is dead: everything derives from this one fact."""
    process = node.processes.by_id.get(identity)
    if node.embedded and process is not None and set(node.processes.drivers) == {identity}:
        # Everything ends with it: telling ten thousand actors one by one would take longer.
        node.stop("its driver has ended")
        return
    if process is not None and process.calls is not None:
        # Its last words were accepted by the kernel before it died.
        words, process.calls = process.calls, None
        node.unwatch(words.fileno())
        received: list[bytes] = []
        with contextlib.suppress(errors.RemoteProtocolError):
            received, _alive = words.drain()
        for packed in node.own_calls(process, received):
            node.handle_call(process, packed)
        words.close()
        # An actor that ended itself has its own cause: that must be told before the death.
        perform_all(node)
    worker = node.workers.forget(identity)
    starting = node.scheduler.workers.get(identity)
    if worker is not None and starting is not None and starting.state == "STARTING":
        # Somebody's kill -9 says nothing about whether workers can start.
        status = worker.status
        killed = status is not None and os.WIFSIGNALED(status)
        starting.blameless = killed and os.WTERMSIG(status or 0) == signal.SIGKILL
    if worker is not None and not reason:
        reason = describe_exit(worker.status)
    node.processes.leave(identity)
    node.process_questions.process_left(identity)
    node.processes.by_routing_id.pop(node.routing_id(identity), None)
    if process is not None:
        node.unwatch(process.lifeline.fileno())
        process.lifeline.close()
    if process is not None and process.role == "observer":
        return
    tell_of_death(node, identity, reason, process)
    node.peers.drop(identity)
    node_directory.remove_mailbox(node.directory, identity)


def tell_of_death(
    node: Node, identity: bytes, reason: str, process: Process | None, *, may_run: bool = False
) -> None:
    """Tell the machines, and who had dealings with it. may_run: it is out of reach."""
    text = f"worker {identity.hex()} died: {reason}"
    if node.cluster is not None:
        node.cluster.process_left(identity)
    if process is not None:
        for other in sorted(process.acquainted):
            node.send(other, messages.PROCESS_DIED, identity, text)
    worker = node.scheduler.workers.get(identity)
    node.scheduler.worker_died(identity, text)
    if worker is not None:
        _worker_left(node, job_of(worker.env))
    if node.scheduler.failed_starts >= WORKER_STARTS_FAILED_MAX:
        node.stop(
            f"{WORKER_STARTS_FAILED_MAX} workers in a row died while they started; the"
            f" last one: {reason}"
        )
    cause = error_outcome(errors.ActorDiedError(f"its {text}"))
    node.dispatcher.worker_died(identity, cause, may_run=may_run)
    node.dispatcher.process_died(identity, cause)
    node.scheduler.client_died(identity)
    node.objects.process_died(identity)
    node.store.process_died(identity)
    node.processes.drop_classes(identity)
    if process is not None and process.role == "driver":
        _driver_left(node, process)


def _worker_left(node: Node, job: str) -> None:
    """The last worker of an ended job may have submitted tasks after its driver's end."""
    if job in node.scheduler.ended_jobs and not any(
        job_of(worker.env) == job for worker in node.scheduler.workers.values()
    ):
        node.gcs.forget_lineage(job)


def _driver_left(node: Node, process: Process) -> None:
    state = "succeeded" if process.said_goodbye else "failed"
    now = time.time()
    node.gcs.job_ended(process.identity, state, now)
    node.shared_tables.job_ended(process.identity, state, now)
    job_left(node, process.identity.hex())
    node.placement_groups.driver_left()
    if node.cluster is not None:
        node.cluster.job_ended(process.identity.hex())


def job_left(node: Node, job: str) -> None:
    """A driver is gone, here or elsewhere: its actors end, and the workers that served it."""
    for actor in list(node.dispatcher.actors.values()):
        of_job = actor.details["env"][JOB_VARIABLE] == job
        if of_job and not actor.details["detached"]:
            cause = error_outcome(errors.ActorDiedError("its driver has ended"))
            node.dispatcher.kill(actor.actor, cause, no_restart=True)
    node.scheduler.job_ended(job)
    node.gcs.forget_lineage(job)
    if node.cluster is not None:
        node.cluster.lineage.job_ended(job)


def jobs_left(node: Node, home: bytes) -> None:
    """A node is gone, and with it all drivers that were there."""
    jobs = {job_of(worker.env) for worker in node.scheduler.workers.values()}
    jobs.update(actor.details["env"][JOB_VARIABLE] for actor in node.dispatcher.actors.values())
    for job in sorted(jobs):
        if job and node_of(bytes.fromhex(job)) == home:
            job_left(node, job)
