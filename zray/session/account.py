"""What a session knows of its objects, tasks and calls, for people who ask what waits.

What    about() says of one object what it waits for and who has it; held() lists what waits for its
        arguments. All as plain types, with ids as the 16 bytes they are anywhere.
Caller  zray/runtime_state.py, when the node asks.
Never   changes anything. Needs the session's lock.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

from zray.protocol import outcome
from zray.protocol.ids import object_id, task_number_of

from .actors import ActorCall, ActorRoute
from .references import Key
from .session import HeldCall, Session
from .tasks import TaskBatch

AWAITED_MAX = 16
"""Of what one call waits for, so many are named."""

_READY = {
    outcome.STORED: "in shared memory",
    outcome.ELSEWHERE: "on another node, or on disk",
    outcome.ERROR: "error",
    outcome.HOLDING: "a value",
}


def ids_of(session: Session, keys: Iterable[Key]) -> list[bytes]:
    """Return the ids of some keys, the first of them."""
    return [session.references.id_of(key) for key in islice(keys, AWAITED_MAX)]


def about(session: Session, identity: bytes) -> dict[str, Any]:
    """Return what is known here of an object, or of the task or call that makes it.

    ``state`` says which of these it is: READY, HELD (waits for ``waits_for``), GATHERING, LEASE
    (waits for a worker of its own), AT_WORKER, SUBMITTED (the node has it), BEHIND (an earlier
    call of this process to the actor waits for its arguments), WAITS_FOR_ACTOR, SENT, AWAITED
    (another process or the node knows), UNKNOWN.
    """
    key = session.references.key_of(identity)
    found = session.results.get(key)
    if found is not None:
        return {"state": "READY", "how": _READY.get(found[0], "a value")}
    if not isinstance(key, int):
        is_here = session.references.is_shared(key)
        return {"state": "AWAITED" if is_here else "UNKNOWN"}
    number = task_number_of(key)
    held = _held_of(session, number)
    if held is not None:
        return {**_call(held), "state": "HELD", "waits_for": ids_of(session, held.slots)}
    batch = session.tasks.batch_of(number)
    if batch is not None:
        return _submitted(session, batch)
    for task_class in session.tasks.open.values():
        if 0 <= number - task_class.open_first < len(task_class.open_calls):
            return {"state": "GATHERING", "name": task_class.spec[1]}
    route = session.actors.by_number.get(number)
    if route is not None:
        return _called(session, route, route.pending[number])
    return {"state": "AWAITED" if session.references.is_shared(key) else "UNKNOWN"}


def _held_of(session: Session, number: int) -> HeldCall | None:
    for calls in session.held.values():
        for held in calls:
            first, count = held.whose[:2]
            if first <= number < first + count:
                return held
    return None


def _submitted(session: Session, batch: TaskBatch) -> dict[str, Any]:
    known = {"name": batch.task_class.spec[1]}
    if batch.target is not None:
        return {**known, "state": "AT_WORKER", "worker": batch.target}
    if session.tasks.is_parked(batch):
        return {**known, "state": "LEASE"}
    return {**known, "state": "SUBMITTED", "first": batch.first}


def _called(session: Session, route: ActorRoute, call: ActorCall) -> dict[str, Any]:
    known: dict[str, Any] = {"name": _text(call.method), "actor": route.actor}
    if call in route.unready:
        first = route.unready[0]
        return {
            **known,
            "state": "BEHIND",
            "waits_for": [object_id(session.process, first.number)],
        }
    if route.process is None:
        return {**known, "state": "WAITS_FOR_ACTOR"}
    ahead = sum(number < call.number for number in route.pending)
    return {**known, "state": "SENT", "worker": route.process, "ahead": ahead}


def _call(held: HeldCall) -> dict[str, Any]:
    _first, _count, name, actor = held.whose
    return {"name": _text(name), "actor": actor}


def _text(name: str | bytes) -> str:
    """Return what is called; a method with options of its call is packed, and has its name."""
    if isinstance(name, str):
        return name.partition("@")[0]
    from zray.protocol.packing import unpackb

    return str(unpackb(name)[0])


def held(session: Session, limit: int) -> list[dict[str, Any]]:
    """Return what waits for its arguments in this process: tasks, calls, actors to be made."""
    rows: dict[int, dict[str, Any]] = {}
    for calls in session.held.values():
        for each in calls:
            number = each.whose[0]
            if not number or number in rows or not each.slots:
                continue
            if len(rows) >= limit:
                return list(rows.values())
            rows[number] = {
                **_call(each),
                "task": object_id(session.process, number),
                "waits_for": ids_of(session, each.slots),
            }
    return list(rows.values())
