"""What runs in this worker and what waits in it, for people who ask.

What    Read from the frames of its threads and from its queues, when somebody asks: a run costs
        nothing for it. Tasks and calls of actors, since when, and their stacks.
Caller  actors/host.py gives it to zray/runtime_state.py.
Never   runs user code or waits for a thread that does.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

from zray.protocol.ids import object_id
from zray.runtime_state import ROWS_MAX, awaited, stack_of

from .actor_runner import ActorRunner
from .context import Execution
from .task_runner import TaskRunner
from .work import ActorCall, ActorStart, TaskRange

if TYPE_CHECKING:
    from .host import Host

_TASK_CODES = (TaskRunner._step_calls.__code__, TaskRunner._step_map.__code__)
_CALL_CODE = ActorRunner.execute.__code__
_INIT_CODE = ActorRunner._make.__code__


class Running:
    """What one worker has to say of its work.

    Args:
        host: of this worker.
    """

    def __init__(self, host: Host) -> None:
        self._host = host

    def details(self, threads: dict[int, FrameType], stacks: bool) -> dict[str, Any]:
        """Return what runs and what waits (the background thread calls it).

        Args:
            threads: the innermost frame of each thread.
            stacks: whether to say where each run is.
        """
        # What lies unread in the inbox waits as well.
        self._host.runtime.read_pending(ROWS_MAX)
        running: list[dict[str, Any]] = []
        for frame in threads.values():
            running.extend(self._of_thread(frame, stacks))
        running.extend(self._of_loop(stacks))
        queued = self._queued()
        return {
            "running": running[:ROWS_MAX],
            "queued": queued[:ROWS_MAX],
            "queued_count": len(queued),
        }

    # -- what runs -------------------------------------------------------------------------------

    def _of_thread(self, frame: FrameType, stacks: bool) -> Iterator[dict[str, Any]]:
        """Yield what a thread runs: at most one task or call, the innermost."""
        innermost: FrameType | None = frame
        while frame is not None:
            code = frame.f_code
            if code is _CALL_CODE or code in _TASK_CODES or code is _INIT_CODE:
                row = self._of_frame(code, frame.f_locals)
                if row is not None:
                    if stacks:
                        row["stack"] = stack_of(innermost)
                        row["waits_for"] = awaited(self._host.runtime, innermost)
                    yield row
                return
            if frame.f_back is None:
                return
            frame = frame.f_back

    def _of_frame(self, code: Any, found: dict[str, Any]) -> dict[str, Any] | None:
        running = found.get("running")
        now = time.monotonic()
        if code in _TASK_CODES:
            step, work = found.get("step"), found["work"]
            began = found["started"] if step is None else step.started
            return _run(found["running"], now - began, direct=work.direct)
        if code is _INIT_CODE:
            start = found["start"]
            instance = found["instance"].running
            return {**_run(instance, None, direct=True), "task": start.actor, "actor": start.actor}
        if not isinstance(running, Execution):
            return None  # It is about to begin.
        stretch, began = found.get("stretch"), found.get("began", 0.0)
        since = stretch.began if stretch is not None and stretch.count else began
        return _run(running, now - since if since else None, direct=True)

    def _of_loop(self, stacks: bool) -> Iterator[dict[str, Any]]:
        loop = self._host.event_loop
        if loop is None:
            return
        for task, execution in loop.runs():
            row = _run(execution, None, direct=True)
            if stacks:
                frames = task.get_stack()
                row["stack"] = [line for frame in frames for line in stack_of(frame)[-1:]]
                row["waits_for"] = []
            yield row

    # -- what waits ------------------------------------------------------------------------------

    def _queued(self) -> list[dict[str, Any]]:
        host = self._host
        names = {actor: each.class_name for actor, each in list(host.actors.instances.items())}
        rows: list[dict[str, Any]] = []
        for item in list(host.queue.items):
            if type(item) is ActorCall:
                rows.append(_waiting(item, names))
            elif type(item) is TaskRange and item.direct:
                task = object_id(item.client, item.first + item.next)
                rows.append({"task": task, "name": item.task_class.name, "actor": b""})
            elif type(item) is ActorStart:
                name = f"{item.details['class']}.__init__"
                rows.append({"task": item.actor, "name": name, "actor": item.actor})
        rows += [_waiting(call, names) for call in host.actors.waiting_calls()]
        return rows


def _run(running: Execution, since_s: float | None, *, direct: bool) -> dict[str, Any]:
    return {
        "task": running.task_id,
        "name": running.name,
        "actor": running.place.actor_id,
        "since_s": since_s,
        "direct": direct,
    }


def _waiting(call: ActorCall, names: dict[bytes, str]) -> dict[str, Any]:
    method = call.method if isinstance(call.method, str) else "(a method)"
    name = f"{names.get(call.actor, '?')}.{method.partition('@')[0]}"
    return {"task": object_id(call.client, call.number), "name": name, "actor": call.actor}
