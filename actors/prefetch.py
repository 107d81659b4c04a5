"""Arguments of tasks that wait behind the one that runs, brought to this node meanwhile.

What    Where a task's arguments had to come from another node, those of the next few tasks probably
        have to: Prefetch takes holds of them and asks for them, least urgent of all, before the
        worker begins to wait or to compute.
Caller  actors/task_runner.py.
Never   waits; keeps anything for a task that has run or was taken back.
"""

from __future__ import annotations

from collections.abc import Iterable

from zray.protocol import outcome
from zray.protocol.purposes import Purpose
from zray.runtime import Runtime
from zray.session.references import Key

from .values import remote_ids

Task = tuple[bytes, int]
"""Its caller, and its number."""

TASKS_MAX = 2
"""So many ahead: the transfer of one hides behind the run of another; more takes memory that the
tasks of other workers need now."""


class Prefetch:
    """What one worker has asked for ahead of time."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.held: dict[Task, list[Key]] = {}
        """Local references to drop when the task has run."""

    def ask(self, tasks: Iterable[tuple[Task, bytes]]) -> None:
        """Have the arguments of these tasks brought here; those of others are let go."""
        runtime = self.runtime
        references = runtime.session.references
        asked = False
        ahead = dict(tasks)
        for task in self.held.keys() - ahead.keys():
            self.drop(task)  # It was taken back.
        for task, data in ahead.items():
            if task in self.held or data[0] != outcome.ARGUMENTS:
                continue
            keys = [
                references.key_of(each) for each in remote_ids(outcome.arguments_parts(data)[1])
            ]
            if not keys:
                continue
            with runtime.lock:
                for key in keys:
                    references.restore(key)
            runtime.locate(keys, Purpose.PREFETCH)
            self.held[task] = keys
            asked = True
        if asked:
            runtime.flush()

    def drop(self, task: Task) -> None:
        """A task has run, and has its arguments by itself."""
        self.runtime.garbage.extend(self.held.pop(task, ()))

    def clear(self) -> None:
        """Nothing waits here any more."""
        held, self.held = self.held, {}
        for keys in held.values():
            self.runtime.garbage.extend(keys)
