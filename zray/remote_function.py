"""Functions whose calls are tasks.

What    RemoteFunction (.remote, .map, .options), and what a call returns by its num_returns.
Caller  zray/remote_decorators.py makes them, users call them, zray/actor.py shares the returns.
Never   starts zray on import: the first .remote() does, as in Ray.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from math import inf
from typing import Any

import msgpack

from zray import api, errors
from zray.options import TaskOptions
from zray.refs import ObjectRef, RefSequence
from zray.runtime import STREAMING, Runtime
from zray.runtime_groups import check_request, where_of
from zray.session.tasks import TaskClass


def returns_of(given: Any, function: Any) -> int:
    """Return the number of returns: STREAMING for generators unless told otherwise."""
    if given is None:
        generator = inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
        return STREAMING if generator else 1
    return STREAMING if given == "streaming" else int(given)


def packed_retry_types(given: Any) -> bytes | None:
    """Pickle what retry_exceptions names, for the worker: classes, or all exceptions for True."""
    if given is False:
        return None
    import cloudpickle

    types = (Exception,) if given is True else tuple(given)
    data: bytes = cloudpickle.dumps(types)
    return data


def packed_spec(parts: Any) -> bytes:
    """Pack plain values: a key to compare by, or a name that carries options."""
    packed: Any = msgpack.packb(parts)
    return bytes(packed)


def refs_of(runtime: Runtime, number: int, returns: int) -> Any:
    """Return what ``.remote()`` gives for a task of ``returns`` returns."""
    if returns == 1:
        return ObjectRef(runtime, number)
    if returns == STREAMING:
        return runtime.stream(number)
    if returns == 0:
        ObjectRef(runtime, number)  # Made and dropped: its outcome is let go when it arrives.
        return None
    return [ObjectRef(runtime, index << 40 | number) for index in range(returns)]


class _Code:
    """What a function and its variants by .options() share: its bytes travel once."""

    __slots__ = ("classes", "function_id", "refs", "runtime")

    def __init__(self) -> None:
        self.runtime: Runtime | None = None
        self.function_id = b""
        self.refs: list[Any] = []
        self.classes: dict[bytes, TaskClass] = {}
        """By packed spec: f.options(...) in a loop declares each variant once."""


class RemoteFunction:
    """A function whose calls are tasks. Made by @zray.remote."""

    def __init__(
        self, function: Callable[..., Any], options: TaskOptions, code: _Code | None = None
    ) -> None:
        self._function = function
        self._options = options
        self._code = code or _Code()
        self._name = options.name or str(getattr(function, "__qualname__", function))
        self._returns = returns_of(options.num_returns, function)
        self._args_min, self._args_max = positional(function)
        self._runtime: Runtime | None = None
        self._group: list[Any] | None = None
        """What the runtime captured for its placement group when this was prepared."""
        self._class: TaskClass | None = None
        self.__doc__ = function.__doc__
        self.__name__ = getattr(function, "__name__", self._name)
        self.__qualname__ = getattr(function, "__qualname__", self._name)
        self.__module__ = function.__module__
        self.__wrapped__ = function

    def __call__(self, *_args: Any, **_kwargs: Any) -> Any:
        """Refuse: a call that runs here and one that runs elsewhere must not look alike."""
        raise TypeError(
            f"remote function {self._name} can't be called directly: use"
            f" {self.__name__}.remote(...), or {self.__name__}.__wrapped__(...)"
            " to run it here"
        )

    def options(self, **options: Any) -> RemoteFunction:
        """Return the same function with other options (see docs/reference/options.md)."""
        return RemoteFunction(self._function, self._options.merged(options), self._code)

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Submit one task; returns its ObjectRef (a list, a generator or None by num_returns).

        Raises:
            TypeError: the arguments do not fit the function.
            SerializationError: the function or an argument cannot be pickled.
            UnschedulableError: no node could ever meet the resources asked for.
        """
        runtime = api.runtime_if_ready()
        if (
            runtime is None
            or runtime is not self._runtime
            or runtime.captured_group is not self._group
        ):
            runtime = self._prepare()
        if kwargs or not self._args_min <= len(args) <= self._args_max:
            inspect.signature(self._function).bind(*args, **kwargs)
        returns = self._returns
        assert self._class is not None
        number = runtime.submit(self._class, args, kwargs, streaming=returns == STREAMING)
        if runtime.child_made is not None:
            runtime.child_made(number)
        if returns == 1:
            return ObjectRef(runtime, number)
        return refs_of(runtime, number, returns)

    def map(self, items: Iterable[Any]) -> RefSequence[Any]:
        """Submit a task for each item (its only argument); returns their refs, made lazily."""
        runtime = api.runtime_if_ready()
        if (
            runtime is None
            or runtime is not self._runtime
            or runtime.captured_group is not self._group
        ):
            runtime = self._prepare()
        if self._returns != 1:
            raise errors.OptionError("map() needs a function with one return", option="num_returns")
        if not self._args_min <= 1 <= self._args_max:
            raise TypeError(
                f"map() calls {self._name} with one argument, and it takes"
                f" {self._args_min}: let it take a tuple, or call .remote(...) for"
                " each item"
            )
        assert self._class is not None
        return runtime.submit_map(self._class, items)

    def _prepare(self) -> Runtime:
        runtime = api.runtime()
        options, code = self._options, self._code
        if code.runtime is not runtime:
            code.function_id, code.refs = runtime.export(self._function)
            code.runtime, code.classes = runtime, {}
        resources = options.resource_request()
        where = where_of(options, runtime)
        check_request(runtime, where, resources, self._name)
        env_vars = {**runtime.env_vars, **options.env_vars}
        spec = [
            code.function_id,
            self._name,
            resources,
            self._returns,
            options.max_retries,
            packed_retry_types(options.retry_exceptions),
            options.generator_backlog,
            env_vars,
            options.max_calls,
            where,
        ]
        packed = packed_spec(spec)
        declared = code.classes.get(packed)
        if declared is None:
            with runtime.lock:
                declared = runtime.session.tasks.declare(
                    spec,
                    shape=(
                        *sorted(resources.items()),
                        *sorted(env_vars.items()),
                        ("", repr(where)),
                    ),
                    returns=self._returns,
                    max_retries=options.max_retries,
                )
                declared.keep = code.refs
            code.classes[packed] = declared
        self._class = declared
        self._runtime, self._group = runtime, runtime.captured_group
        return runtime

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteFunction, (self._function, self._options)

    def __repr__(self) -> str:
        return f"<remote function {self._name}>"


def positional(function: Callable[..., Any]) -> tuple[int, float]:
    """Return how many positional arguments fit: a check of 50 ns, before bind() of 5 us.

    The least is infinite where keywords are required, so that bind() says which is missing.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return 0, inf  # A builtin that does not tell.
    least, most = 0, 0.0
    for parameter in parameters:
        required = parameter.default is parameter.empty
        if parameter.kind is parameter.VAR_POSITIONAL:
            most = inf
        elif parameter.kind is parameter.KEYWORD_ONLY and required:
            return 1 << 62, 0
        elif parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            least += required
            most += 1
    return least, most
