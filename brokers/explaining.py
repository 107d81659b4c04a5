"""Why something waits, as far as one node knows: a sentence, and what it waits for in turn.

What    explain() takes an id of 16 bytes (object, task, call, actor) at its home, or of 8 (a
        process) at its node. It asks the process concerned, looks at the node's own tables and
        answers with one row: kind, state, text, since when, stack, and the next places to look.
Caller  brokers/node_answers.py; the walk from one to the next is brokers/why_walk.py.
Never   guesses: what nobody knows is said to be unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from zray.errors import RemoteProtocolError
from zray.protocol.ids import (
    OBJECT_ID_BYTES,
    PROCESS_ID_BYTES,
    node_of,
    number_of,
    owner_of,
    task_number_of,
)
from zray.protocol.packing import unpackb

from . import waiting
from .dispatcher import ALIVE, STARTING
from .queries import Done
from .resources import read_request
from .waiting import Row, row

if TYPE_CHECKING:
    from .dispatcher import Actor
    from .node import Node
    from .sharing import Entry

_FOLLOWED_MAX = 4
_RUNS_SHOWN_MAX = 4


def explain(node: Node, arguments: dict[str, Any], done: Done) -> None:
    """Answer the question "explain": {"id": bytes, "about": bytes}.

    Raises RemoteProtocolError where it is malformed.
    """
    identity, about = arguments.get("id"), arguments.get("about", b"")
    if type(identity) is not bytes or type(about) is not bytes:
        raise RemoteProtocolError("what is to be explained is named by its id")
    if identity == node.process:
        done([waiting.here(node, _needs(about))], None)
    elif len(identity) == PROCESS_ID_BYTES:
        _explain_process(node, identity, about, done)
    elif len(identity) == OBJECT_ID_BYTES:
        actor = node.dispatcher.actors.get(identity)
        if actor is not None and actor.arguments is not None:
            done([_placed_actor(node, actor)], None)
        elif identity in node.dispatcher.dead:
            done([_dead_actor(node, identity)], None)
        else:
            _ask_owner(node, identity, actor, done)
    else:
        raise RemoteProtocolError("an id has 8 or 16 bytes")


def _needs(packed: bytes) -> dict[str, int]:
    try:
        return read_request(unpackb(packed))
    except (ValueError, TypeError) as error:
        raise RemoteProtocolError(
            f"what a node is to have room for is malformed: {error}"
        ) from None


def _to(identity: bytes, about: bytes = b"") -> list[bytes]:
    """Return a place to look: what, at the node that is its home, and what of it matters."""
    return [node_of(identity), identity, about]


# -- objects, tasks and calls ----------------------------------------------------------------------


def _ask_owner(node: Node, identity: bytes, actor: Actor | None, done: Done) -> None:
    owner = owner_of(identity)

    def answered(said: Mapping[bytes, Mapping[str, Any]], silent: dict[bytes, str]) -> None:
        about = said[owner].get("about", {}) if owner in said else None
        if actor is not None:
            done([_unready_actor(actor, about)], None)
        else:
            done([_object(node, identity, about, silent.get(owner, ""))], None)

    node.process_questions.ask([owner], identity, answered)


def _object(node: Node, identity: bytes, about: Mapping[str, Any] | None, silent: str) -> Row:
    entry = node.objects.entries.get(identity)
    if about is None:
        return _ownerless(node, identity, entry, silent)
    rule = _ABOUT.get(about.get("state", ""))
    if rule is not None:
        return rule(node, identity, about)
    if entry is not None:
        return _kept(node, identity, entry)
    return row(
        "object",
        "UNKNOWN",
        f"process {owner_of(identity).hex()} knows no such object: its last reference was dropped,"
        " or the id is wrong",
    )


def _ownerless(node: Node, identity: bytes, entry: Entry | None, silent: str) -> Row:
    owner = owner_of(identity)
    if owner in node.processes.by_id:
        stopped = node.workers.is_stopped(owner)
        why = "it is stopped (SIGSTOP, or a debugger)" if stopped else silent
        task = waiting.scheduled(node, owner, task_number_of(number_of(identity)))
        if task is not None:
            return task
        return row("object", "UNKNOWN", f"its owner, process {owner.hex()}, says nothing: {why}")
    if entry is not None and entry.outcome is not None:
        return _kept(node, identity, entry)
    return row(
        "object",
        "LOST",
        f"process {owner.hex()}, which was to make it, is not there any more: get() raises",
    )


def _kept(node: Node, identity: bytes, entry: Entry) -> Row:
    """An object of which this node knows more than who made it."""
    size = f"{entry.nbytes} bytes, " if entry.nbytes else ""
    if entry.pulling:
        places = ", ".join(place.hex() for place in entry.places)
        return row("object", "FETCHED", f"{size}on its way here from node {places}")
    if entry.restoring:
        return row("object", "RESTORED", f"{size}read back from disk, where it had to make room")
    if entry.outcome is not None:
        return row("object", "READY", f"{size}it is there: get() returns at once, or fetches it")
    if entry.asked:
        home = node_of(identity)
        return row(
            "object", "ASKED", f"node {home.hex()} is to say when it is there", next=[_to(identity)]
        )
    return row("object", "PENDING", "its owner has not said what became of it")


def _ready(_node: Node, _identity: bytes, about: Mapping[str, Any]) -> Row:
    how = about.get("how", "a value")
    if how == "error":
        return row("object", "FAILED", "what was to make it has failed: get() raises its error")
    return row("object", "READY", f"it is there ({how}): get() returns at once, or fetches it")


def _held(_node: Node, _identity: bytes, about: Mapping[str, Any]) -> Row:
    awaited = about.get("waits_for", [])
    return row(
        "call" if about.get("actor") else "task",
        "PENDING_ARGS_AVAIL",
        f"waits for {_count(len(awaited), 'argument')}, in the process that submitted it",
        name=about.get("name", ""),
        next=[_to(each) for each in awaited[:_FOLLOWED_MAX]],
    )


def _gathering(_node: Node, _identity: bytes, about: Mapping[str, Any]) -> Row:
    return row(
        "task",
        "GATHERING",
        "its process is about to send it with others, and does so within 2 ms unless it stands"
        " still",
        name=about.get("name", ""),
    )


def _lease(node: Node, identity: bytes, about: Mapping[str, Any]) -> Row:
    return waiting.for_lease(node, owner_of(identity), str(about.get("name", "")))


def _at_worker(_node: Node, identity: bytes, about: Mapping[str, Any]) -> Row:
    worker = about["worker"]
    return row(
        "task",
        "SUBMITTED_TO_WORKER",
        f"its caller has sent it to worker {worker.hex()}",
        name=about.get("name", ""),
        next=[_to(worker, identity)],
    )


def _submitted(node: Node, identity: bytes, about: Mapping[str, Any]) -> Row:
    found = waiting.scheduled(node, owner_of(identity), task_number_of(number_of(identity)))
    if found is not None:
        return found
    return row(
        "task",
        "SENT",
        "the node has handed it out and has it no more: its result is on its way, or its worker"
        " has died and its process asks which tasks were lost",
        name=about.get("name", ""),
    )


def _behind(_node: Node, _identity: bytes, about: Mapping[str, Any]) -> Row:
    return row(
        "call",
        "PENDING_ARGS_AVAIL",
        "calls to an actor keep their order: an earlier one of the same process waits for its"
        " arguments",
        name=about.get("name", ""),
        next=[_to(each) for each in about.get("waits_for", [])],
    )


def _waits_for_actor(_node: Node, _identity: bytes, about: Mapping[str, Any]) -> Row:
    return row(
        "call",
        "WAITS_FOR_ACTOR",
        "it is sent as soon as its actor has a place",
        name=about.get("name", ""),
        next=[_to(about["actor"])],
    )


def _sent(_node: Node, identity: bytes, about: Mapping[str, Any]) -> Row:
    worker, ahead = about["worker"], about.get("ahead", 0)
    behind = f", behind {_count(ahead, 'call')} of the same process" if ahead else ""
    return row(
        "call",
        "SUBMITTED_TO_WORKER",
        f"sent to worker {worker.hex()}, where its actor lives{behind}",
        name=about.get("name", ""),
        next=[_to(worker, identity)],
    )


_ABOUT = {
    "READY": _ready,
    "HELD": _held,
    "GATHERING": _gathering,
    "LEASE": _lease,
    "AT_WORKER": _at_worker,
    "SUBMITTED": _submitted,
    "BEHIND": _behind,
    "WAITS_FOR_ACTOR": _waits_for_actor,
    "SENT": _sent,
}


# -- actors ----------------------------------------------------------------------------------------


def _unready_actor(actor: Actor, about: Mapping[str, Any] | None) -> Row:
    awaited = [] if about is None else about.get("waits_for", [])
    return row(
        "actor",
        "DEPENDENCIES_UNREADY",
        f"its constructor waits for {_count(len(awaited), 'argument')}, in process"
        f" {actor.owner.hex()}, which made it",
        name=actor.details["class"],
        next=[_to(each) for each in awaited[:_FOLLOWED_MAX]],
    )


def _placed_actor(node: Node, actor: Actor) -> Row:
    name = actor.details["class"]
    if actor.worker is not None:
        place = f"worker {actor.worker.hex()} of node {node_of(actor.worker).hex()}"
        following = [_to(actor.worker, actor.actor)]
        if actor.state == STARTING:
            text = f"its __init__ is to run, or runs, at {place}"
            return row("actor", "PENDING_CREATION", text, name=name, next=following)
        assert actor.state == ALIVE
        return row("actor", "ALIVE", f"it lives at {place}", name=name, next=following)
    state = "RESTARTING" if actor.incarnation else "PENDING_CREATION"
    return waiting.actor(node, actor, state)


def _dead_actor(node: Node, identity: bytes) -> Row:
    node.gcs.write()
    record = node.gcs.tables.actors.get(identity)
    why = "" if record is None or not record.death_cause else f": {record.death_cause}"
    name = "" if record is None else record.class_name
    return row("actor", "DEAD", f"it has ended{why}", name=name)


# -- processes -------------------------------------------------------------------------------------


def _explain_process(node: Node, identity: bytes, about: bytes, done: Done) -> None:
    process = node.processes.by_id.get(identity)
    if process is None:
        text = "no such process is there (any more): what it had runs again, or fails"
        done([row("process", "DEAD", text)], None)
        return

    def answered(said: Mapping[bytes, Mapping[str, Any]], silent: dict[bytes, str]) -> None:
        state = said.get(identity)
        kind = process.role
        if state is None:
            stopped = node.workers.is_stopped(identity)
            text = (
                "is stopped (SIGSTOP, or a debugger): `kill -CONT` has it go on"
                if stopped
                else f"says nothing: {silent.get(identity, '')}; native code may hold its"
                " interpreter, or the machine is busy"
            )
            done([row(kind, "SILENT", f"pid {process.pid} {text}", pid=process.pid)], None)
        elif kind == "worker":
            done([_worker(process.pid, state, about)], None)
        else:
            done([_driver(process.pid, state)], None)

    node.process_questions.ask([identity], b"", answered)


def _driver(pid: int, state: Mapping[str, Any]) -> Row:
    threads = [each for each in state.get("threads", []) if each.get("waits_for")]
    awaited = [one for each in threads for one in each["waits_for"]] or state.get("awaited", [])
    shown = threads or state.get("threads", [])[:1]
    return row(
        "driver",
        "WAITS" if awaited else "RUNS",
        f"pid {pid} waits for {_count(len(awaited), 'object')}" if awaited else f"pid {pid} runs",
        pid=pid,
        stack=[line for each in shown[:1] for line in each.get("stack", [])],
        next=[_to(each) for each in awaited[:_FOLLOWED_MAX]],
    )


def _worker(pid: int, state: Mapping[str, Any], about: bytes) -> Row:
    running = state.get("running", [])
    mine = [run for run in running if about in (run["task"], run["actor"], b"")] or running
    text, place = _place_at(state, about)
    if not running:
        idle = "it runs nothing, and what was sent to it has not come or has ended"
        return row("worker", "IDLE", f"pid {pid}: {text or idle}", pid=pid)
    awaited = [each for run in mine for each in run.get("waits_for", [])] or (
        state.get("awaited", []) if any(run["since_s"] is None for run in mine) else []
    )
    first = mine[0]
    told = "; ".join(_run_text(run) for run in mine[:_RUNS_SHOWN_MAX])
    waits = f", which waits for {_count(len(awaited), 'object')}" if awaited else ""
    return row(
        "worker",
        "WAITS" if awaited else "RUNNING",
        f"pid {pid}{text}: runs {told}{waits}",
        pid=pid,
        name=first["name"],
        since_s=first.get("since_s"),
        queue_position=place,
        queue_len=state.get("queued_count", 0),
        stack=first.get("stack", []),
        next=[_to(each) for each in awaited[:_FOLLOWED_MAX]],
    )


def _place_at(state: Mapping[str, Any], about: bytes) -> tuple[str, int | None]:
    """Return where in the worker's queue something is, in words and as a number from 1 on."""
    queued = state.get("queued", [])
    for position, each in enumerate(queued, 1):
        if each["task"] == about:
            return f", where it is number {position} of {state['queued_count']} that wait", position
    of_actor = sum(each["actor"] == about for each in queued) if about else 0
    return (f", where {_count(of_actor, 'call')} wait for it", None) if of_actor else ("", None)


def _run_text(run: Mapping[str, Any]) -> str:
    since = run.get("since_s")
    return run["name"] if since is None else f"{run['name']} since {since:.1f} s"


def _count(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
