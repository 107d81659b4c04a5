"""@remote: functions that run as tasks, classes whose instances are actors.

What    RemoteFunction (.remote, .map, .options), ActorClass, ActorHandle and its methods.
Caller  users.
Never   starts zray on import: the first .remote() does, as in Ray.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from zray import api, errors
from zray.options import ActorOptions, MethodOptions, TaskOptions
from zray.protocol import messages
from zray.refs import ObjectRef, RefSequence, restore
from zray.runtime import STREAMING, Runtime
from zray.serialization import collector
from zray.session.actors import ActorRoute
from zray.session.tasks import TaskClass

_METHOD_OPTIONS = "__zray_method_options__"


def _returns(given: Any, function: Any) -> int:
    """Return the number of returns: STREAMING for generators unless told otherwise."""
    if given is None:
        generator = inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
        return STREAMING if generator else 1
    return STREAMING if given == "streaming" else int(given)


def _retry_exceptions(given: Any) -> bytes | None:
    if not given:
        return None
    import cloudpickle
    types = (Exception,) if given is True else tuple(given)
    data: bytes = cloudpickle.dumps(types)
    return data


def _refs(runtime: Runtime, number: int, returns: int) -> Any:
    if returns == 1:
        return ObjectRef(runtime, number)
    if returns == STREAMING:
        return runtime.stream(number)
    if returns == 0:
        ObjectRef(runtime, number)  # Made and dropped: its outcome is let go when it arrives.
        return None
    return [ObjectRef(runtime, index << 40 | number) for index in range(returns)]


class RemoteFunction:
    """A function whose calls are tasks. Made by @zray.remote."""

    def __init__(self, function: Callable[..., Any], options: TaskOptions) -> None:
        self._function = function
        self._options = options
        self._name = options.name or getattr(function, "__qualname__", repr(function))
        self._returns = _returns(options.num_returns, function)
        self._runtime: Runtime | None = None
        self._class: TaskClass | None = None
        self.__doc__ = function.__doc__
        self.__name__ = getattr(function, "__name__", self._name)
        self.__qualname__ = getattr(function, "__qualname__", self._name)
        self.__module__ = function.__module__
        self.__wrapped__ = function

    def __call__(self, *_args: Any, **_kwargs: Any) -> Any:
        raise TypeError(f"remote function {self._name} can't be called directly: use"
                        f" {self.__name__}.remote(...), or {self.__name__}.__wrapped__(...)"
                        " to run it here")

    def options(self, **options: Any) -> RemoteFunction:
        """Return the same function with other options (see docs/reference/options.md)."""
        return RemoteFunction(self._function, self._options.merged(options))

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Submit one task; returns its ObjectRef (a list, a generator or None by num_returns)."""
        runtime = api.runtime_if_ready()
        if runtime is None or runtime is not self._runtime:
            runtime = self._prepare()
        returns = self._returns
        assert self._class is not None
        number = runtime.submit(self._class, args, kwargs, streaming=returns == STREAMING)
        if returns == 1:
            ref: ObjectRef[Any] = ObjectRef(runtime, number)
            if runtime.current_children is not None:
                runtime.note_child(ref)
            return ref
        return _refs(runtime, number, returns)

    def map(self, items: Iterable[Any]) -> RefSequence[Any]:
        """Submit a task for each item (its only argument); returns their refs, made lazily."""
        runtime = api.runtime_if_ready()
        if runtime is None or runtime is not self._runtime:
            runtime = self._prepare()
        if self._returns != 1:
            raise errors.OptionError("map() needs a function with one return",
                                     option="num_returns")
        assert self._class is not None
        return runtime.submit_map(self._class, items)

    def _prepare(self) -> Runtime:
        runtime = api.runtime()
        options = self._options
        function_id, refs = runtime.export(self._function)
        resources = options.resource_request()
        runtime.check_resources(resources, self._name)
        spec = [function_id, self._name, resources, self._returns, options.max_retries,
                _retry_exceptions(options.retry_exceptions), options.generator_backlog,
                options.env_vars, options.max_calls]
        with runtime.lock:
            self._class = runtime.session.tasks.declare(
                spec, shape=tuple(sorted(resources.items())), returns=self._returns,
                max_retries=options.max_retries)
            self._class.keep = refs
        self._runtime = runtime
        return runtime

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteFunction, (self._function, self._options)

    def __repr__(self) -> str:
        return f"<remote function {self._name}>"


def method(*args: Any, **options: Any) -> Any:
    """Set options of an actor method: ``@zray.method(num_returns=2)``, or bare."""
    if len(args) == 1 and callable(args[0]) and not options:
        return args[0]
    if args:
        raise errors.OptionError("@zray.method takes keyword options only", option="method")
    parsed = MethodOptions.parse(options)

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        setattr(function, _METHOD_OPTIONS, parsed)
        return function

    return decorate


class _MethodSpec:
    """What a handle knows of one method."""

    __slots__ = ("group", "name", "retries", "returns")

    def __init__(self, name: str, returns: int, retries: int, group: str) -> None:
        self.name = name
        self.returns = returns
        self.retries = retries
        self.group = group


def _method_specs(cls: type, options: ActorOptions) -> dict[str, list[Any]]:
    specs: dict[str, list[Any]] = {}
    for name, member in inspect.getmembers(cls, callable):
        if name.startswith("__") and name != "__call__":
            continue
        parsed: MethodOptions | None = getattr(member, _METHOD_OPTIONS, None)
        retries = options.max_task_retries
        if parsed is not None and parsed.max_task_retries is not None:
            retries = parsed.max_task_retries
        returns = _returns(parsed.num_returns if parsed else None, member)
        group = (parsed.concurrency_group if parsed else None) or ""
        specs[name] = [returns, retries, group]
    return specs


def _is_async(cls: type) -> bool:
    return any(inspect.iscoroutinefunction(member) or inspect.isasyncgenfunction(member)
               for _name, member in inspect.getmembers(cls, callable))


class ActorClass:
    """A class whose instances are actors. Made by @zray.remote."""

    def __init__(self, cls: type, options: ActorOptions) -> None:
        self._cls = cls
        self._options = options
        self._specs: dict[str, list[Any]] | None = None
        self._exported: tuple[Runtime, bytes, list[Any]] | None = None
        self.__doc__ = cls.__doc__
        self.__name__ = cls.__name__
        self.__qualname__ = cls.__qualname__
        self.__module__ = cls.__module__

    def __call__(self, *_args: Any, **_kwargs: Any) -> Any:
        raise TypeError(f"actor class {self.__name__} can't be instantiated directly: use"
                        f" {self.__name__}.remote(...)")

    def options(self, **options: Any) -> ActorClass:
        """Return the same class with other options (see docs/reference/options.md)."""
        made = ActorClass(self._cls, self._options.merged(options))
        made._specs, made._exported = None, self._exported
        return made

    def remote(self, *args: Any, **kwargs: Any) -> ActorHandle:
        """Create an actor; returns its handle at once.

        Raises NameTakenError where an actor of that name lives (unless get_if_exists).
        """
        runtime = api.runtime()
        options = self._options
        if options.name is not None and options.get_if_exists:
            found = named_handle(options.name, options.namespace)
            if found is not None:
                return found
        if self._specs is None:
            self._specs = _method_specs(self._cls, options)
        if self._exported is None or self._exported[0] is not runtime:
            self._exported = (runtime, *runtime.export(self._cls))
        _runtime, class_id, refs = self._exported
        asynchronous = _is_async(self._cls)
        runtime.check_resources(options.placement_request(), self.__name__)
        details = {
            "class": self.__name__, "resources": options.resource_request(),
            "placement": options.placement_request(), "restarts": options.restarts,
            "concurrency": options.max_concurrency or (1000 if asynchronous else 1),
            "groups": dict(options.concurrency_groups or {}), "async": asynchronous,
            "isolation": options.isolation, "name": options.name,
            "namespace": options.namespace or runtime.namespace,
            "detached": options.lifetime == "detached", "env": options.env_vars,
            "methods": self._specs, "pending": options.max_pending_calls,
        }
        try:
            ref, route = runtime.create_actor(class_id, details, args, kwargs, keep=refs)
        except errors.NameTakenError:
            found = None
            if options.get_if_exists and options.name is not None:
                # Somebody else was faster between the look and the claim.
                found = named_handle(options.name, options.namespace)
            if found is None:
                raise
            return found
        return ActorHandle(runtime, ref, self.__name__, self._specs, route)

    def __reduce__(self) -> tuple[Any, ...]:
        return ActorClass, (self._cls, self._options)

    def __repr__(self) -> str:
        return f"<actor class {self.__name__}>"


class ActorMethod:
    """One method of an actor handle: ``handle.add.remote(1)``."""

    __slots__ = ("_group", "_handle", "_name", "_retries", "_returns")

    def __init__(self, handle: ActorHandle, name: str, returns: int, retries: int,
                 group: str) -> None:
        self._handle = handle
        self._name = name
        self._returns = returns
        self._retries = retries
        self._group = group

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Call the method; returns its ObjectRef (a list, a generator or None by num_returns)."""
        handle = self._handle
        runtime = handle._runtime
        returns = self._returns
        name = f"{self._name}@{self._group}" if self._group else self._name
        number = runtime.call_actor(handle._route, name, returns, args, kwargs, self._retries,
                                    handle)
        if returns == 1:
            return ObjectRef(runtime, number)
        return _refs(runtime, number, returns)

    def options(self, **options: Any) -> ActorMethod:
        """Return the method with other options for the calls made through it."""
        parsed = MethodOptions.parse(options)
        returns = self._returns if parsed.num_returns is None else _returns(
            parsed.num_returns, None)
        retries = self._retries if parsed.max_task_retries is None else parsed.max_task_retries
        return ActorMethod(self._handle, self._name, returns, retries,
                           parsed.concurrency_group or self._group)

    def __call__(self, *_args: Any, **_kwargs: Any) -> Any:
        raise TypeError(f"actor method {self._name} can't be called directly: use"
                        f" .{self._name}.remote(...)")


class ActorHandle:
    """Refers to an actor. Pass it on; the actor ends when its last handle is gone."""

    def __init__(self, runtime: Runtime, ref: ObjectRef[Any], class_name: str,
                 specs: Mapping[str, list[Any]], route: ActorRoute) -> None:
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
        spec = self.__dict__.get("_specs", {}).get(name)
        if spec is None:
            raise AttributeError(f"actor class {self.__dict__.get('_class_name')} has no method"
                                 f" {name!r}")
        made = ActorMethod(self, name, *spec)
        # Not cached in __dict__: method and handle would keep each other alive.
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        collector.note(self._ref)
        return restore_handle, (self._route.actor, self._class_name, dict(self._specs),
                                self._route.pending_calls_max)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ActorHandle) and other._actor_id == self._actor_id

    def __hash__(self) -> int:
        return hash(self._actor_id)

    def __repr__(self) -> str:
        return f"Actor({self._class_name}, {self._actor_id.hex()})"


def restore_handle(actor: bytes, class_name: str, specs: dict[str, list[Any]],
                   pending_calls_max: int) -> ActorHandle:
    """Make the handle of an actor that arrived pickled."""
    runtime = api.runtime()
    route = runtime.watch_actor(actor, pending_calls_max)
    return ActorHandle(runtime, restore(actor), class_name, specs, route)


def named_handle(name: str, namespace: str | None) -> ActorHandle | None:
    """Return a handle of the living actor of that name, None where there is none."""
    runtime = api.runtime()
    found = runtime.request(messages.NAMED_ACTOR, name,
                            runtime.namespace if namespace is None else namespace)
    if found is None:
        return None
    actor, details = found
    return restore_handle(actor, details["class"], details["methods"], details["pending"])


def remote(*args: Any, **options: Any) -> Any:
    """Make a function's calls tasks, or a class's instances actors.

    ``@zray.remote`` bare, or ``@zray.remote(num_cpus=2, ...)``; options are listed in
    docs/reference/options.md.

    Raises OptionError for options that are unknown, wrong, or not honoured by this release.
    """
    if len(args) == 1 and not options and callable(args[0]):
        return _make(args[0], {})
    if args:
        raise TypeError("use @zray.remote or @zray.remote(option=value)")

    def decorate(target: Any) -> Any:
        return _make(target, options)

    return decorate


def _make(target: Any, options: dict[str, Any]) -> Any:
    if inspect.isclass(target):
        return ActorClass(target, ActorOptions.parse(options))
    if isinstance(target, (RemoteFunction, ActorClass)):
        raise TypeError(f"{target!r} is remote already: use .options(...)")
    if inspect.iscoroutinefunction(target):
        raise TypeError(f"{target.__qualname__} is async: tasks are plain functions; use an actor"
                        " with async methods, or asyncio.run() inside a plain function")
    return RemoteFunction(target, TaskOptions.parse(options))


__all__ = ["ActorClass", "ActorHandle", "ActorMethod", "RemoteFunction", "method", "remote"]
