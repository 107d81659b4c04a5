"""The ObjectRefs met while a value is pickled.

What    ObjectRef.__reduce__ calls note(); who pickles opens a collector around it and is told
        which references the bytes contain, so that their holds travel with them. Collectors are
        per thread and nest: a __reduce__ that calls zray.put collects into its own list.
Caller  blob.py, functions.py, exceptions.py, inspect.py; note() by zray/refs.py.
Never   holds a reference beyond its stop().
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from threading import get_ident
from typing import Any

from zray.errors import SerializationError

open_collectors: dict[int, list[Any]] = {}
"""Thread ident -> the list being filled. Empty nearly always, which is what makes the common
case free: blob.encode pickles without a collector and opens one only after note() has refused."""


def start() -> list[Any] | None:
    """Open a collector for this thread; return the one it hides, for stop()."""
    ident = get_ident()
    hidden = open_collectors.get(ident)
    open_collectors[ident] = []
    return hidden


def stop(hidden: list[Any] | None) -> list[Any]:
    """Close this thread's collector and return its references, in the order they were met.

    Args:
        hidden: what the matching start() returned.
    """
    ident = get_ident()
    found = open_collectors[ident]
    if hidden is None:
        del open_collectors[ident]
    else:
        open_collectors[ident] = hidden
    return found


@contextmanager
def collecting() -> Generator[list[Any]]:
    """Collect into the list that the `with` statement is given; 1 us dearer than start/stop."""
    hidden = start()
    try:
        yield open_collectors[get_ident()]
    finally:
        stop(hidden)


def note(ref: Any) -> None:
    """Record that `ref` is being pickled by this thread.

    Raises:
        SerializationError: nobody collects, so the bytes would name an object that nothing holds.
    """
    found = open_collectors.get(get_ident())
    if found is None:
        raise SerializationError(
            f"{ref!r} was pickled outside of zray, where nothing would keep its object alive: "
            "pass it as an argument, return it or put it inside a value given to zray.put"
        )
    found.append(ref)
