"""@remote and @method.

What    remote() makes a RemoteFunction of a function and an ActorClass of a class; method() sets
        the options of one method.
Caller  users.
Never   starts zray.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from zray import errors
from zray.actor import METHOD_OPTIONS, Actor, ActorClass, actor_class
from zray.options import ActorOptions, MethodOptions, TaskOptions
from zray.remote_function import RemoteFunction


def method(*args: Any, **options: Any) -> Any:
    """Set options of an actor method: ``@zray.method(num_returns=2)``, or bare."""
    if len(args) == 1 and callable(args[0]) and not options:
        return args[0]
    if args:
        raise errors.OptionError("@zray.method takes keyword options only", option="method")
    parsed = MethodOptions.parse(options)

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        setattr(function, METHOD_OPTIONS, parsed)
        return function

    return decorate


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
        if issubclass(target, Actor):
            # The class itself: it stays a type for annotations and for classes derived from it.
            actor_class(target, ActorOptions.parse(options))
            return target
        return ActorClass(target, ActorOptions.parse(options))
    if isinstance(target, (RemoteFunction, ActorClass)):
        raise TypeError(f"{target!r} is remote already: use .options(...)")
    if inspect.iscoroutinefunction(target):
        raise TypeError(
            f"{target.__qualname__} is async: tasks are plain functions; use an actor"
            " with async methods, or asyncio.run() inside a plain function"
        )
    return RemoteFunction(target, TaskOptions.parse(options))
