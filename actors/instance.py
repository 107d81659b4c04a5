"""An actor in this worker: its instance, its methods as they are called, its groups.

What    Data and lookups. A method's wire name is resolved once: what it is, the group it runs in,
        its back-pressure, its retries.
Caller  actors/actor_runner.py and its executors.
Never   runs a method.
"""

from __future__ import annotations

import inspect
import pickle
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import msgpack

from zray import errors
from zray.protocol.limits import GENERATOR_BACKLOG_MAX

from .context import Execution, Place
from .work import ActorCall, ActorStart, group_of

_METHOD_OPTIONS = "__zray_method_options__"
TERMINATE = "__ray_terminate__"


class Executor(Protocol):
    """Runs the calls of actors whose methods may run at the same time."""

    def submit(self, instance: Instance, call: ActorCall) -> None:
        """Take a call; it begins when its group has room."""

    def cancel(self, client: bytes, number: int) -> Execution | None:
        """Cancel a call that runs as far as that goes; returns its execution (any thread)."""

    def find_waiting(self, client: bytes, number: int) -> ActorCall | None:
        """Return a call that has been taken and has not begun (any thread)."""

    def abandon(self, instance: Instance) -> None:
        """The actor was killed: begin nothing of it any more."""


class Method:
    """One method as it is called by one wire name."""

    __slots__ = ("asynchronous", "backlog", "function", "group", "label", "retries", "retry_types")

    def __init__(
        self,
        function: Callable[..., Any],
        label: str,
        group: str,
        backlog: int,
        retries: int,
        retry_types: tuple[type[BaseException], ...],
    ) -> None:
        self.function = function
        self.label = label
        self.group = group
        self.backlog = backlog
        self.retries = retries
        """How often an exception in retry_types is answered by another try; -1: always."""
        self.retry_types = retry_types
        self.asynchronous = inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(
            function
        )


class Group:
    """Calls of one actor that run at the same time, up to a limit."""

    __slots__ = ("limit", "running", "waiting")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.running = 0
        self.waiting: deque[ActorCall] = deque()


class Instance:
    """One actor."""

    __slots__ = (
        "actor",
        "busy",
        "details",
        "ended",
        "ending",
        "error",
        "executor",
        "groups",
        "incarnation",
        "last",
        "methods",
        "outstanding",
        "place",
        "running",
        "value",
        "waiting",
    )

    def __init__(self, start: ActorStart) -> None:
        details = start.details
        self.actor = start.actor
        self.incarnation = start.incarnation
        self.details = details
        self.value: Any = None
        self.error: bytes | None = None
        """The outcome of every call, where __init__ has failed."""
        self.executor: Executor | None = None
        """Who runs the methods; None: the thread that takes the calls."""
        self.methods: dict[str | bytes, Method] = {}
        self.last: dict[bytes, int] = {}
        """Highest call number taken, by caller: a lower one is a duplicate."""
        self.groups = {"": Group(details["concurrency"])}
        for name, limit in details["groups"].items():
            self.groups[name] = Group(limit)
        self.outstanding = 0
        """Calls that an executor has and that have not ended."""
        self.ending = False
        self.ended = False
        self.busy = False
        """In a shared worker: a thread runs its method, or waits in it."""
        self.waiting: deque[ActorCall] = deque()
        group = group_of(details.get("where"))
        self.place = Place(details["resources"], details["gpus"], group)
        self.place.actor_id = start.actor
        self.place.actor_name = details["name"] or ""
        self.place.class_name = details["class"]
        self.place.incarnation = start.incarnation
        self.place.methods = details["methods"]
        self.place.pending_calls_max = details["pending"]
        self.running = Execution(b"", 0, "", self.place)

    @property
    def class_name(self) -> str:
        """The name of its class."""
        name: str = self.details["class"]
        return name

    def method(self, wire_name: str | bytes) -> Method:
        """Return the method that a call names.

        Raises AttributeError where there is none, OptionError for an unknown group.
        """
        found = self.methods.get(wire_name)
        if found is None:
            found = self.methods[wire_name] = self._resolve(wire_name)
        return found

    def _resolve(self, wire_name: str | bytes) -> Method:
        """A wire name is a name, "name@group", or packed [name, group, options of this call]."""
        overrides: dict[str, Any] = {}
        if isinstance(wire_name, bytes):
            name, group, overrides = msgpack.unpackb(wire_name)
        else:
            name, _at, group = wire_name.partition("@")
        function = self._function(name)
        options = getattr(function, _METHOD_OPTIONS, None)
        group = group or (options and options.concurrency_group) or ""
        if group not in self.groups:
            known = ", ".join(repr(each) for each in self.groups if each) or "none"
            raise errors.OptionError(
                f"actor class {self.class_name} has no concurrency group {group!r}; it has {known}",
                option="concurrency_group",
            )
        label = overrides.get("name") or (options and options.name) or f"{self.class_name}.{name}"
        backlog = overrides.get("backlog") or (options and options.generator_backlog)
        retry_types = self._retry_types(overrides.get("retry"), options)
        spec = self.details["methods"].get(name)
        retries = overrides.get("retries", spec[1] if spec else 0)
        return Method(
            function,
            label,
            group,
            backlog or GENERATOR_BACKLOG_MAX,
            retries if retry_types else 0,
            retry_types,
        )

    def _function(self, name: str) -> Callable[..., Any]:
        if name == "__ray_ready__":
            return lambda: True
        if name == "__ray_call__":
            return lambda function, *args, **kwargs: function(self.value, *args, **kwargs)
        if name == TERMINATE:
            return _terminate
        function: Callable[..., Any] = getattr(self.value, name)
        return function

    @staticmethod
    def _retry_types(packed: bytes | None, options: Any) -> tuple[type[BaseException], ...]:
        given: Any = options.retry_exceptions if options is not None else False
        if packed is not None:
            given = pickle.loads(packed)
        if given is True:
            return (Exception,)
        return tuple(given) if given else ()


def _terminate() -> None:
    from zray.context import ActorExit

    raise ActorExit(f"{TERMINATE} was called")
