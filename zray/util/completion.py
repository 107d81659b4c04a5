"""Results in the order they come.

What    as_completed() over refs, map_unordered() over items with a bounded number under way.
Caller  users.
Never   holds a ref longer than it takes to yield its value.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from zray import api
from zray.refs import ObjectRef
from zray.waits import Arrivals

if TYPE_CHECKING:
    from zray.signatures import RemoteFunction


def as_completed(
    refs: Sequence[ObjectRef[Any]], *, chunk_size: int = 10, yield_obj_refs: bool = False
) -> Iterator[Any]:
    """Yield the values of refs as they arrive, whatever their order.

    Args:
        refs: distinct refs.
        chunk_size: how many to take at once where that many are there.
        yield_obj_refs: yield the refs, each ready, in place of the values.

    Raises what the task raised, at its turn.
    """
    _check_positive(chunk_size, "chunk_size")
    return _completed(list(refs), chunk_size, yield_obj_refs)


def _completed(refs: list[ObjectRef[Any]], chunk_size: int, yield_obj_refs: bool) -> Iterator[Any]:
    api.check_refs(refs, "util.as_completed")
    under_way = Arrivals(api.runtime())
    try:
        under_way.add(refs)
        refs.clear()
        while under_way:
            yield from _each(under_way.take(chunk_size), yield_obj_refs)
    finally:
        under_way.close()


def _each(ready: list[ObjectRef[Any]], yield_obj_refs: bool) -> Iterator[Any]:
    ready.reverse()
    while ready:
        yield ready.pop() if yield_obj_refs else api.get(ready.pop())


def map_unordered(
    fn: RemoteFunction[..., Any],
    items: Iterable[Any],
    *,
    backpressure_size: int | None = 100,
    chunk_size: int = 10,
    yield_obj_refs: bool = False,
) -> Iterator[Any]:
    """Call a remote function for each item; yield results as they arrive.

    Args:
        fn: the remote function; gets an item as its only argument.
        items: taken one by one, as results make room: it may be endless.
        backpressure_size: tasks under way at most; None: all items at once.
        chunk_size: how many results to take at once where that many are there.
        yield_obj_refs: yield the refs, each ready, in place of the values.
    """
    _check_positive(chunk_size, "chunk_size")
    if backpressure_size is not None:
        _check_positive(backpressure_size, "backpressure_size")
        if backpressure_size < chunk_size:
            raise ValueError(
                f"backpressure_size={backpressure_size} is less than chunk_size={chunk_size}"
            )
    if not callable(getattr(fn, "remote", None)):
        raise TypeError(f"map_unordered() takes a remote function, not {fn!r}")
    return _unordered(fn, iter(items), backpressure_size, chunk_size, yield_obj_refs)


def _unordered(
    fn: RemoteFunction[..., Any],
    items: Iterator[Any],
    limit: int | None,
    chunk_size: int,
    yield_obj_refs: bool,
) -> Iterator[Any]:
    under_way = Arrivals(api.runtime())
    try:
        under_way.add([fn.remote(item) for item in islice(items, limit)])
        while under_way:
            ready = under_way.take(chunk_size)
            under_way.add([fn.remote(item) for item in islice(items, len(ready))])
            yield from _each(ready, yield_obj_refs)
    finally:
        under_way.close()


def _check_positive(number: Any, name: str) -> None:
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ValueError(f"{name}={number!r}: it is 1 or more")
