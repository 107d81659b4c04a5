"""Actor classes, handles of actors and their methods.

What    ActorClass (.remote, .options), ActorHandle, ActorMethod; Actor, the base class for those
        who want type checkers to see all of it; exit_actor().
Caller  zray/remote_decorators.py makes classes; users.
Never   runs a method here: the worker that hosts the actor does.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from zray import api, errors
from zray.context import exit_actor
from zray.options import ActorOptions, MethodOptions
from zray.protocol import messages
from zray.refs import ObjectRef, restore
from zray.remote_function import (
    packed_retry_types,
    packed_spec,
    positional,
    refs_of,
    returns_of,
)
from zray.runtime import Runtime
from zray.runtime_groups import check_request, where_of
from zray.session.actors import ActorRoute

METHOD_OPTIONS = "__zray_method_options__"
_ACTOR_CLASS = "__zray_actor_class__"


_VARIANTS_MAX = 256


class _ClassFacts:
    """What looking at the class tells, once for all the options it is used with."""

    __slots__ = ("args_max", "args_min", "asynchronous", "exported", "methods")

    def __init__(self, cls: type) -> None:
        self.args_min, self.args_max = positional(cls)
        self.exported: tuple[Runtime, bytes, list[Any]] | None = None
        self.asynchronous = False
        self.methods: dict[str, tuple[int, int | None, str]] = {}
        """Returns, retries (None: the actor's), concurrency group."""
        for name, member in inspect.getmembers(cls, callable):
            if inspect.iscoroutinefunction(member) or inspect.isasyncgenfunction(member):
                self.asynchronous = True
            if name.startswith("__") and name != "__call__":
                continue
            if inspect.getattr_static(cls, name) is Actor.__dict__.get(name, cls):
                continue  # remote and options, from the base class.
            parsed: MethodOptions | None = getattr(member, METHOD_OPTIONS, None)
            self.methods[name] = (
                returns_of(parsed.num_returns if parsed else None, member),
                parsed.max_task_retries if parsed else None,
                (parsed.concurrency_group if parsed else None) or "",
            )

    def method_specs(self, options: ActorOptions) -> dict[str, list[Any]]:
        """Return [returns, retries, group] by method, as handles carry them."""
        return {
            name: [returns, options.max_task_retries if retries is None else retries, group]
            for name, (returns, retries, group) in self.methods.items()
        }


class ActorClass:
    """A class whose instances are actors. Made by @zray.remote."""

    def __init__(self, cls: type, options: ActorOptions, facts: _ClassFacts | None = None) -> None:
        self._cls = cls
        self._options = options
        self._facts = facts or _ClassFacts(cls)
        self._variants: dict[Any, ActorClass] = {}
        self._details: dict[str, Any] = {}
        self._runtime: Runtime | None = None
        self._group: list[Any] | None = None
        """What the runtime captured for its placement group when this was prepared."""
        self.__doc__ = cls.__doc__
        self.__name__ = cls.__name__
        self.__qualname__ = cls.__qualname__
        self.__module__ = cls.__module__
        self.__wrapped__ = cls

    def __call__(self, *_args: Any, **_kwargs: Any) -> Any:
        """Refuse: an instance that lives here and one that lives elsewhere must not look alike."""
        raise TypeError(
            f"actor class {self.__name__} can't be instantiated directly: use"
            f" {self.__name__}.remote(...), or {self.__name__}.__wrapped__(...)"
            " for an instance in this process"
        )

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        """Refuse: what would be inherited is this wrapper."""
        raise TypeError(
            f"a class can't derive from actor class {self.__name__}: derive from the"
            " plain class and make both remote, or derive it from zray.Actor"
        )

    def options(self, **options: Any) -> ActorClass:
        """Return the same class with other options (see docs/reference/options.md)."""
        try:
            # Programs write Class.options(...).remote() in loops; checking costs 20 us.
            key = tuple((name, type(value), value) for name, value in options.items())
            made = self._variants.get(key)
        except TypeError:  # An option that is a dict or list.
            return ActorClass(self._cls, self._options.merged(options), self._facts)
        if made is None:
            made = ActorClass(self._cls, self._options.merged(options), self._facts)
            if len(self._variants) < _VARIANTS_MAX:
                self._variants[key] = made
        return made

    def remote(self, *args: Any, **kwargs: Any) -> ActorHandle:
        """Create an actor; returns its handle at once.

        Raises:
            TypeError: the arguments do not fit __init__.
            NameTakenError: an actor of that name lives (unless get_if_exists).
            SerializationError: the class or an argument cannot be pickled.
            UnschedulableError: no node could ever meet the resources asked for.
        """
        runtime = api.runtime_if_ready()
        if (
            runtime is None
            or runtime is not self._runtime
            or runtime.captured_group is not self._group
        ):
            runtime = self._prepare()
        options, details = self._options, self._details
        if details["detached"] and runtime.is_elsewhere:
            return self._remote_at_a_node(args, kwargs)
        if options.get_if_exists:
            found = named_handle(options.name or "", options.namespace)
            if found is not None:
                return found
        facts = self._facts
        if kwargs or not facts.args_min <= len(args) <= facts.args_max:
            inspect.signature(self._cls).bind(*args, **kwargs)
        assert facts.exported is not None
        _runtime, class_id, refs = facts.exported
        try:
            ref, route = runtime.create_actor(class_id, details, args, kwargs, keep=refs)
        except errors.NameTakenError:
            # Somebody else may have been faster between the look and the claim.
            found = named_handle(options.name or "", options.namespace)
            if found is None or not options.get_if_exists:
                raise
            return found
        return ActorHandle(runtime, ref, self.__name__, details["methods"], route)

    def _remote_at_a_node(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ActorHandle:
        """Create a detached actor of a driver whose own node ends with it: in a task."""
        from zray.options import TaskOptions
        from zray.remote_function import RemoteFunction

        options = TaskOptions.parse({"num_cpus": 0, "max_retries": 0, "name": "create_detached"})
        try:
            handle: ActorHandle = api.get(
                RemoteFunction(_create, options).remote(self, list(args), kwargs)
            )
        except errors.TaskError as error:
            if isinstance(error.cause, errors.ZrayError):
                raise error.cause from None
            raise
        return handle

    def _prepare(self) -> Runtime:
        runtime = api.runtime()
        options = self._options
        # Shared actors live with others, and are placed nowhere.
        where = None if options.isolation == "shared" else where_of(options, runtime)
        check_request(runtime, where, options.placement_request(), self.__name__, actor=True)
        facts = self._facts
        if facts.exported is None or facts.exported[0] is not runtime:
            facts.exported = (runtime, *runtime.export(self._cls))
        asynchronous = facts.asynchronous
        self._details = {
            "class": self.__name__,
            "resources": options.resource_request(),
            "placement": options.placement_request(),
            "where": where,
            "restarts": options.restarts,
            "concurrency": options.max_concurrency or (1000 if asynchronous else 1),
            "groups": dict(options.concurrency_groups or {}),
            "async": asynchronous,
            "isolation": options.isolation,
            "name": options.name,
            "namespace": options.namespace or runtime.namespace,
            "detached": options.lifetime == "detached",
            "env": {**runtime.env_vars, **options.env_vars},
            "methods": facts.method_specs(options),
            "pending": options.max_pending_calls,
        }
        self._runtime, self._group = runtime, runtime.captured_group
        return runtime

    def __reduce__(self) -> tuple[Any, ...]:
        return ActorClass, (self._cls, self._options)

    def __repr__(self) -> str:
        return f"<actor class {self.__name__}>"


def _create(actor: ActorClass, args: list[Any], kwargs: dict[str, Any]) -> ActorHandle:
    return actor.remote(*args, **kwargs)


class Actor:
    """Base class for actors that every type checker understands: ``class Counter(zray.Actor)``.

    Counter.remote(...) makes an actor with default options, Counter.options(...).remote(...) one
    with others; ``@zray.remote(...)`` on the class sets its defaults. Counter(...) itself is an
    ordinary instance in this process, as a test may want it.
    """

    @classmethod
    def remote(cls, *args: Any, **kwargs: Any) -> ActorHandle:
        """Create an actor of this class, as ActorClass.remote does."""
        return actor_class(cls).remote(*args, **kwargs)

    @classmethod
    def options(cls, **options: Any) -> ActorClass:
        """Return this class as an actor class with other options."""
        return actor_class(cls).options(**options)


def actor_class(cls: type[Actor], options: ActorOptions | None = None) -> ActorClass:
    """Return the ActorClass of a class that derives from Actor; with ``options``, a fresh one."""
    made: ActorClass | None = cls.__dict__.get(_ACTOR_CLASS)
    if made is None or options is not None:
        made = ActorClass(cls, options or ActorOptions.parse({}))
        setattr(cls, _ACTOR_CLASS, made)
    return made


_SYSTEM_METHODS: dict[str, list[Any]] = {
    name: [1, 0, ""] for name in ("__ray_ready__", "__ray_call__", "__ray_terminate__")
}
"""Methods that every actor has: answer when __init__ is done, call a function with the instance,
end in good order."""


class ActorMethod:
    """One method of an actor handle: ``handle.add.remote(1)``."""

    __slots__ = (
        "_call_name",
        "_group",
        "_name",
        "_ref",
        "_retries",
        "_returns",
        "_route",
        "_runtime",
    )

    def __init__(
        self,
        runtime: Runtime,
        ref: ObjectRef[Any],
        route: ActorRoute,
        name: str,
        returns: int,
        retries: int,
        group: str,
        overrides: dict[str, Any] | None = None,
    ) -> None:
        # The actor's ref, not its handle: a handle keeps its methods, and a cycle would keep
        # the actor alive until the collector runs.
        self._runtime = runtime
        self._ref = ref
        self._route = route
        self._name = name
        self._returns = returns
        self._retries = retries
        self._group = group
        self._call_name: str | bytes = f"{name}@{group}" if group else name
        if overrides:
            self._call_name = packed_spec((name, group, overrides))

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Call the method; returns its ObjectRef (a list, a generator or None by num_returns)."""
        runtime = self._runtime
        returns = self._returns
        number = runtime.call_actor(
            self._route, self._call_name, returns, args, kwargs, self._retries, self._ref
        )
        if runtime.child_made is not None:
            runtime.child_made(number)
        if returns == 1:
            return ObjectRef(runtime, number)
        return refs_of(runtime, number, returns)

    def options(self, **options: Any) -> ActorMethod:
        """Return the method with other options for the calls made through it."""
        parsed = MethodOptions.parse(options)
        returns = (
            self._returns if parsed.num_returns is None else returns_of(parsed.num_returns, None)
        )
        retries = self._retries if parsed.max_task_retries is None else parsed.max_task_retries
        overrides: dict[str, Any] = {}
        if parsed.name is not None:
            overrides["name"] = parsed.name
        if options.get("_generator_backpressure_num_objects") is not None:
            overrides["backlog"] = parsed.generator_backlog
        if options.get("retry_exceptions") is not None:
            overrides["retry"] = packed_retry_types(parsed.retry_exceptions or ())
        if parsed.max_task_retries is not None:
            overrides["retries"] = retries
        return ActorMethod(
            self._runtime,
            self._ref,
            self._route,
            self._name,
            returns,
            retries,
            parsed.concurrency_group or self._group,
            overrides,
        )

    def __call__(self, *_args: Any, **_kwargs: Any) -> Any:
        """Refuse, as remote functions do."""
        raise TypeError(
            f"actor method {self._name} can't be called directly: use .{self._name}.remote(...)"
        )


class ActorHandle:
    """Refers to an actor. Pass it on; the actor ends when its last handle is gone."""

    def __init__(
        self,
        runtime: Runtime,
        ref: ObjectRef[Any],
        class_name: str,
        specs: Mapping[str, list[Any]],
        route: ActorRoute,
    ) -> None:
        self._runtime = runtime
        # An actor is counted like an object: its handles are references to its id.
        self._ref = ref
        self._class_name = class_name
        self._specs = specs
        self._route = route

    @property
    def _actor_id(self) -> bytes:
        return self._route.actor

    def __getattr__(self, name: str) -> ActorMethod:
        spec = self.__dict__.get("_specs", {}).get(name) or _SYSTEM_METHODS.get(name)
        if spec is None:
            raise AttributeError(
                f"actor class {self.__dict__.get('_class_name')} has no method {name!r}"
            )
        # Found in __dict__ from the next time on: 1 us less a call.
        made = ActorMethod(self._runtime, self._ref, self._route, name, *spec)
        self.__dict__[name] = made
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        self._ref.escape()
        return restore_handle, (
            self._route.actor,
            self._class_name,
            dict(self._specs),
            self._route.pending_calls_max,
        )

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._specs]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ActorHandle) and other._actor_id == self._actor_id

    def __hash__(self) -> int:
        return hash(self._actor_id)

    def __repr__(self) -> str:
        return f"Actor({self._class_name}, {self._actor_id.hex()})"


def restore_handle(
    actor: bytes, class_name: str, specs: dict[str, list[Any]], pending_calls_max: int
) -> ActorHandle:
    """Make the handle of an actor that arrived pickled."""
    runtime = api.runtime()
    route = runtime.watch_actor(actor, pending_calls_max)
    return ActorHandle(runtime, restore(actor), class_name, specs, route)


def named_handle(name: str, namespace: str | None) -> ActorHandle | None:
    """Return a handle of the living actor of that name, None where there is none."""
    runtime = api.runtime()
    found = runtime.request(
        messages.NAMED_ACTOR, name, runtime.namespace if namespace is None else namespace
    )
    if found is None:
        return None
    actor, details = found
    return restore_handle(actor, details["class"], details["methods"], details["pending"])


__all__ = [
    "Actor",
    "ActorClass",
    "ActorHandle",
    "ActorMethod",
    "actor_class",
    "exit_actor",
    "named_handle",
    "restore_handle",
]
