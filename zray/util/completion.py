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

if TYPE_CHECKING:
    from zray.signatures import RemoteFunction


def as_completed(
    refs: Sequence[ObjectRef[Any]], *, chunk_size: int = 10, yield_obj_refs: bool = False
) -> Iterator[Any]:
    """Yield the values of refs as they arrive, whatever their order.

    Args:
        refs: distinct refs.
        chunk_size: how many to take at once where that many are there; more of very many refs.
        yield_obj_refs: yield the refs, each ready, in place of the values.

    Raises what the task raised, at its turn.
    """
    _check_positive(chunk_size, "chunk_size")
    return _completed(list(refs), chunk_size, yield_obj_refs)


def _completed(
    waiting: list[ObjectRef[Any]], chunk_size: int, yield_obj_refs: bool
) -> Iterator[Any]:
    while waiting:
        ready, waiting = _take(waiting, chunk_size)
        for ref in ready:
            yield ref if yield_obj_refs else api.get(ref)


def _take(
    waiting: list[ObjectRef[Any]], chunk_size: int
) -> tuple[list[ObjectRef[Any]], list[ObjectRef[Any]]]:
    """Return up to chunk_size ready refs (an eighth of many), at least one, and the rest."""
    # Each look costs as much as there are refs: the more there are, the more are taken by one.
    many = min(len(waiting), max(chunk_size, len(waiting) // 8))
    ready, rest = api.wait(waiting, num_returns=many, timeout=0)
    if not ready:
        ready, rest = api.wait(waiting, num_returns=1)
    return ready, rest


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
    waiting = [fn.remote(item) for item in islice(items, limit)]
    while waiting:
        ready, waiting = _take(waiting, chunk_size)
        waiting += [fn.remote(item) for item in islice(items, len(ready))]
        for ref in ready:
            yield ref if yield_obj_refs else api.get(ref)


def _check_positive(number: Any, name: str) -> None:
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ValueError(f"{name}={number!r}: it is 1 or more")
