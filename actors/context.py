"""What runs in this worker now, per thread and per coroutine.

What    Execution, one run of user code: whose, which, where, whether it was cancelled, what it has
        submitted. current() finds the one of the caller: get_runtime_context() and recursive
        cancels read it.
Caller  actors/task_runner.py, actors/actor_runner.py and their executors; zray/context.py, by the
        provider that actors/host.py installs.
Never   decides.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

from zray.protocol.ids import object_id
from zray.runtime import Runtime

_CHILDREN_KEPT = 4096
"""Children noted before those that have ended are looked for and forgotten."""


class Place:
    """What does not change from one run to the next: a function's options, or an actor's."""

    __slots__ = (
        "actor_id",
        "actor_name",
        "class_name",
        "gpus",
        "group",
        "incarnation",
        "methods",
        "pending_calls_max",
        "resources",
    )

    def __init__(
        self, resources: dict[str, int], gpus: list[str], group: list[Any] | None = None
    ) -> None:
        self.resources = resources
        self.gpus = gpus
        self.group = group
        """The placement group it runs in: [id, bundle, whether its children run there], or None."""
        self.actor_id = b""
        self.actor_name = ""
        self.class_name = ""
        self.incarnation = 0
        self.methods: dict[str, list[Any]] = {}
        self.pending_calls_max = -1


class Execution:
    """One run of user code, or the runs one after the other of a range or of a sync actor."""

    __slots__ = ("cancelled", "children", "client", "name", "number", "place", "values")

    def __init__(self, client: bytes, number: int, name: str, place: Place) -> None:
        self.client = client
        self.number = number
        self.name = name
        self.place = place
        self.cancelled = -1
        """The number that was cancelled: comparing it costs less than resetting a flag."""
        self.children: list[int] | None = None
        self.values: list[Any] | None = None
        """In a map: what the items before the running one returned, ``number`` being the first."""

    def at(self) -> int:
        """Return the number of the task or call that runs."""
        values = self.values
        return self.number if values is None else self.number + len(values)

    @property
    def task_id(self) -> bytes:
        """The 16-byte id of the task or call that runs."""
        return object_id(self.client, self.at())

    @property
    def is_cancelled(self) -> bool:
        """Whether somebody has cancelled what runs."""
        return self.cancelled == self.at()


main: Execution | None = None
"""What the main thread runs: a global, because setting a ContextVar costs 0.1 us a task."""

local: ContextVar[Execution | None] = ContextVar("zray_execution", default=None)
"""What another thread or a coroutine runs."""


def current() -> Execution | None:
    """Return what the caller is part of; None where no user code of a task or call runs."""
    return local.get() or main


def note_child(runtime: Runtime, number: int) -> None:
    """Remember a task (a map: the negative of its batch) that the caller has submitted."""
    execution = current()
    if execution is None:
        return
    children = execution.children
    if children is None:
        execution.children = [number]
        return
    children.append(number)
    if len(children) % _CHILDREN_KEPT == 0:
        # Numbers, not refs, and only of what still runs: a long task that submits without end
        # must not keep every result alive, nor remember every number.
        with runtime.lock:
            execution.children = [each for each in children if _runs(runtime, each)]


def _runs(runtime: Runtime, number: int) -> bool:
    session = runtime.session
    if number < 0:
        return -number in session.tasks.batches
    if number in session.results:
        return False
    return number in session.actors.by_number or session.tasks.is_outstanding(number)


def cancel_children(runtime: Runtime, children: list[int] | None) -> None:
    """Cancel what a cancelled task has submitted and nobody has an outcome of."""
    for number in list(children or ()):
        if number < 0:
            batch = runtime.session.tasks.batches.get(-number)
            if batch is not None:
                for low, high in list(batch.missing()):
                    for item in range(low, high):
                        runtime.cancel_number(batch.first + item, recursive=True)
        else:
            runtime.cancel_number(number, recursive=True)
