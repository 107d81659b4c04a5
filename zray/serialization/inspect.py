"""Which member of a value cannot be pickled.

What    inspect_serializability() as in Ray: tries the value, then its members, down to the ones at
        fault. culprits() gives their paths for error messages.
Caller  blob.py and functions.py when pickling has failed; users, through zray.util.
Never   runs on a path that succeeds: it pickles every member again.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, TextIO

from . import collector

_MEMBERS_MAX = 1000
"""Members of one container that are tried: a list of a million need not be pickled one by one."""
_CULPRITS_MAX = 3


@dataclass(frozen=True, eq=False, slots=True)
class Failure:
    """One thing that cannot be pickled.

    Attributes:
        obj: the thing itself.
        name: how it is reached from the inspected object, such as "config.lock".
        parent: the object that holds it; the inspected object itself for a top-level failure.
    """

    obj: Any
    name: str
    parent: Any


def inspect_serializability(
    obj: Any, name: str | None = None, depth: int = 3, print_file: TextIO | None = None
) -> tuple[bool, set[Failure]]:
    """Find out whether `obj` can be sent, and if not, what in it cannot.

    Args:
        obj: a value, function or class.
        name: what to call it in the report; its own name by default.
        depth: how many levels of members to descend.
        print_file: where the report goes; standard output by default.

    Returns:
        Whether it can be pickled, and the innermost members that cannot.
    """
    label = name or getattr(obj, "__qualname__", None) or type(obj).__qualname__
    failures = _failures(obj, label, depth)
    file = print_file or sys.stdout
    if not failures:
        print(f"{label} can be pickled.", file=file)
        return True, set()
    print(f"{label} cannot be pickled. At fault:", file=file)
    for failure in failures:
        reason = _refusal(failure.obj)
        print(f"  {failure.name}: {type(failure.obj).__qualname__} ({reason})", file=file)
    print("Leave it out, create it inside the task, or zray.util.register_serializer.", file=file)
    return False, set(failures)


def culprits(obj: Any, name: str, depth: int = 4) -> list[str]:
    """Return the paths of the first few members of `obj` that cannot be pickled."""
    return [failure.name for failure in _failures(obj, name, depth)[:_CULPRITS_MAX]]


def _failures(obj: Any, name: str, depth: int) -> list[Failure]:
    if _refusal(obj) is None:
        return []
    found = _descend(obj, name, depth, {id(obj)})
    return found or [Failure(obj, name, obj)]


def _descend(obj: Any, name: str, depth: int, seen: set[int]) -> list[Failure]:
    """Return the innermost failures among the members of `obj`, which is known to fail."""
    if depth <= 0:
        return []
    failures: list[Failure] = []
    for suffix, member in islice(_members(obj), _MEMBERS_MAX):
        if id(member) in seen or _refusal(member) is None:
            continue
        seen.add(id(member))
        path = name + suffix
        failures += _descend(member, path, depth - 1, seen) or [Failure(member, path, obj)]
        if len(failures) >= _CULPRITS_MAX:
            break
    return failures


def _refusal(obj: Any) -> str | None:
    """Why `obj` cannot be pickled; None where it can."""
    from .reducers import dump_by_value

    hidden = collector.start()
    try:
        dump_by_value(obj, lambda _buffer: False)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        collector.stop(hidden)
    return None


def _members(obj: Any) -> Iterator[tuple[str, Any]]:
    """Yield what pickling `obj` would pickle: (how it is written after the object's name, it)."""
    if isinstance(obj, dict):
        for key, value in obj.items():
            yield f"[{key!r}]", value
            yield f" key {key!r}", key
    elif isinstance(obj, (list, tuple, set, frozenset)):
        for index, value in enumerate(obj):
            yield f"[{index}]", value
    elif inspect.isfunction(obj):
        yield from _captured(obj)
    elif inspect.ismethod(obj):
        yield ".__self__", obj.__self__
    elif isinstance(obj, type):
        for key, value in vars(obj).items():
            if not key.startswith("__"):
                yield f".{key}", value
    else:
        yield from _attributes(obj)


def _captured(function: Any) -> Iterator[tuple[str, Any]]:
    """Yield the variables that a function takes along."""
    code = function.__code__
    for variable, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        if cell != type(cell)():  # A cell of a variable that is not assigned yet holds nothing.
            yield f" (captured variable {variable})", cell.cell_contents
    for variable in code.co_names:
        if variable in function.__globals__:
            yield f" (global variable {variable})", function.__globals__[variable]
    for index, value in enumerate(function.__defaults__ or ()):
        yield f" (default argument {index})", value


def _attributes(obj: Any) -> Iterator[tuple[str, Any]]:
    """Yield instance attributes, of __dict__ and of __slots__; and an exception's args."""
    if isinstance(obj, BaseException):
        yield ".args", obj.args
    for key, value in list(getattr(obj, "__dict__", {}).items()):
        yield f".{key}", value
    for cls in type(obj).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for key in (slots,) if isinstance(slots, str) else slots:
            if key not in ("__dict__", "__weakref__") and hasattr(obj, key):
                yield f".{key}", getattr(obj, key)
