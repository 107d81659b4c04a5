"""get_runtime_context(): what the calling code is part of, and exit_actor().

What    RuntimeContext reads ids, names, resources and the cancel flag of the running task or actor
        call; in a driver most of them are None. A worker installs where they come from.
Caller  users; actors/host.py (set_provider); zray/actor.py, zray/state.py.
Never   keeps anything: each method looks anew, so one context serves every thread and coroutine.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from zray import api, errors

if TYPE_CHECKING:
    from zray.actor import ActorHandle
    from zray.runtime import Runtime


class CurrentPlace(Protocol):
    """The function's or actor's side of what runs."""

    actor_id: bytes
    actor_name: str
    class_name: str
    gpus: list[str]
    group: list[Any] | None
    incarnation: int
    methods: dict[str, list[Any]]
    pending_calls_max: int
    resources: dict[str, int]


class Current(Protocol):
    """What a worker tells of the running task or call."""

    name: str

    @property
    def place(self) -> CurrentPlace:
        """Where it runs."""
        ...

    @property
    def task_id(self) -> bytes:
        """Its 16-byte id."""
        ...

    @property
    def is_cancelled(self) -> bool:
        """Whether somebody has cancelled it."""
        ...


class ActorExit(SystemExit):
    """Ends the actor that raises it: see exit_actor()."""


_provider: Callable[[], Any] | None = None


def set_provider(provider: Callable[[], Any] | None) -> None:
    """Install what returns the Current of the calling thread or coroutine, or None."""
    global _provider
    _provider = provider


def _current() -> Current | None:
    found: Current | None = None if _provider is None else _provider()
    return found


def _runtime() -> Runtime:
    found = api.runtime_if_ready()
    if found is None:
        raise errors.NotInitializedError("there is no runtime context before zray.init()")
    return found


class RuntimeContext:
    """What the calling code is part of. Ids are in hexadecimal, as everywhere in zray."""

    # -- ids -------------------------------------------------------------------------------------

    def get_job_id(self) -> str:
        """Return the id of the job: that of its driver."""
        runtime = _runtime()
        if runtime.role == "worker":
            return os.environ.get("ZRAY_JOB_ID", "")
        return runtime.process.hex()

    def get_node_id(self) -> str:
        """Return the id of this process's node."""
        return _runtime().node.hex()

    def get_worker_id(self) -> str:
        """Return the id of this process."""
        return _runtime().process.hex()

    def get_task_id(self) -> str | None:
        """Return the id of the running task or actor call; None in a driver."""
        current = _current()
        return None if current is None else current.task_id.hex()

    def get_actor_id(self) -> str | None:
        """Return the id of the actor whose method runs; None outside of actors."""
        current = _current()
        if current is None or not current.place.actor_id:
            return None
        return current.place.actor_id.hex()

    # -- names -----------------------------------------------------------------------------------

    def get_task_name(self) -> str | None:
        """Return the name of the running task or call: its option ``name``, or its function's."""
        current = _current()
        return None if current is None else current.name

    def get_task_function_name(self) -> str | None:
        """Return the same as get_task_name()."""
        return self.get_task_name()

    def get_actor_name(self) -> str | None:
        """Return the actor's name, "" for one without; None outside of actors."""
        current = _current()
        if current is None or not current.place.actor_id:
            return None
        return current.place.actor_name

    @property
    def namespace(self) -> str:
        """The namespace in which names are looked up here."""
        return _runtime().namespace

    # -- what it was given -----------------------------------------------------------------------

    def get_assigned_resources(self) -> dict[str, float]:
        """Return what the running task or actor holds, amount by resource; {} in a driver."""
        current = _current()
        if current is None:
            return {}
        return {name: units / 10000 for name, units in current.place.resources.items()}

    def get_placement_group_id(self) -> str | None:
        """Return the id of the placement group that the task or actor runs in; None for none."""
        current = _current()
        if current is None or current.place.group is None:
            return None
        group: bytes = current.place.group[0]
        return group.hex()

    def get_accelerator_ids(self) -> dict[str, list[str]]:
        """Return the ids of the accelerators the running task or actor holds, by kind."""
        current = _current()
        return {"GPU": [] if current is None else list(current.place.gpus)}

    @property
    def runtime_env(self) -> dict[str, Any]:
        """What zray.init(runtime_env=...) set for the job."""
        env_vars = _runtime().env_vars
        return {"env_vars": dict(env_vars)} if env_vars else {}

    def get_runtime_env_string(self) -> str:
        """Return ``runtime_env`` as JSON."""
        return json.dumps(self.runtime_env)

    # -- state -----------------------------------------------------------------------------------

    @property
    def was_current_actor_reconstructed(self) -> bool:
        """Whether this actor runs for a second time, after its process died.

        Raises ZrayError outside of actors.
        """
        return self._actor("was_current_actor_reconstructed").place.incarnation > 0

    @property
    def current_actor(self) -> ActorHandle:
        """A handle of the actor whose method runs.

        Raises ZrayError outside of actors.
        """
        from zray.actor import restore_handle

        place = self._actor("current_actor").place
        return restore_handle(
            place.actor_id, place.class_name, place.methods, place.pending_calls_max
        )

    def is_canceled(self) -> bool:
        """Return whether the running task or call was cancelled: methods may look, and end."""
        current = _current()
        return current is not None and current.is_cancelled

    def get(self) -> dict[str, Any]:
        """Return the ids and names as a dict, those that are None left out."""
        found = {
            "job_id": self.get_job_id(),
            "node_id": self.get_node_id(),
            "worker_id": self.get_worker_id(),
            "task_id": self.get_task_id(),
            "actor_id": self.get_actor_id(),
            "namespace": self.namespace,
        }
        return {name: value for name, value in found.items() if value is not None}

    def _actor(self, what: str) -> Current:
        current = _current()
        if current is None or not current.place.actor_id:
            raise errors.UserError(f"{what} is known inside an actor's methods only")
        return current


_context = RuntimeContext()


def get_runtime_context() -> RuntimeContext:
    """Return the context of the calling code: ids, names, resources, whether it was cancelled."""
    return _context


def exit_actor() -> NoReturn:
    """End the actor whose method calls this; calls that have no result fail with ActorDiedError.

    Raises TypeError outside of an actor's method.
    """
    current = _current()
    if current is None or not current.place.actor_id:
        raise TypeError(
            "exit_actor() ends the actor whose method calls it, and this is no actor's method"
        )
    raise ActorExit("exit_actor() was called")
