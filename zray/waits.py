"""Waits for some of many refs: zray.wait(), and results in the order they come.

What    split() sorts refs into ready and not; Arrivals hands out refs as their outcomes arrive.
        Both follow what the session says of each arrival, so that n outcomes cost n steps and
        not a look at all refs for each.
Caller  zray/api.py, zray/util/completion.py.
Never   reads a value.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import partial
from itertools import compress, count
from typing import TYPE_CHECKING, Any

from zray.protocol.purposes import Purpose
from zray.refs import ObjectRef, ObjectRefGenerator
from zray.session.session import Watch

if TYPE_CHECKING:
    from zray.runtime import Runtime


_FEW = 8
"""Deleting so few items moves less memory than copying the others does."""


class Arrivals:
    """Refs whose outcomes are awaited, taken in the order the outcomes come.

    Args:
        client: the runtime of all the refs.
    """

    def __init__(self, client: Runtime) -> None:
        self._client = client
        self._watch = Watch()
        self._refs: dict[Any, ObjectRef[Any]] = {}

    def __len__(self) -> int:
        return len(self._refs)

    def add(self, refs: list[ObjectRef[Any]]) -> None:
        """Follow these as well; those that are ready have arrived, in this order.

        Raises ValueError where one is there already.
        """
        keys = [ref.key for ref in refs]
        before = len(self._refs)
        self._refs.update(zip(keys, refs, strict=True))
        if len(self._refs) != before + len(refs):
            raise ValueError("the same ref is there twice: its result comes only once")
        client = self._client
        with client.lock:
            client.session.follow(self._watch, keys)

    def take(self, count_max: int) -> list[ObjectRef[Any]]:
        """Wait until one has arrived; return up to ``count_max`` of those that have."""
        arrived = self._watch.arrived
        if not arrived:
            self._client.wait_until(partial(self._watch.has, 1))
        ready = min(count_max, len(arrived))
        return [self._refs.pop(arrived.popleft()) for _ in range(ready)]

    def close(self) -> None:
        """Follow nothing any more."""
        self._watch.closed = True


def split(
    client: Runtime,
    refs: list[Any],
    keys: list[Any],
    generators: list[ObjectRefGenerator[Any]],
    num_returns: int,
    timeout_s: float | None,
    *,
    fetch: bool = True,
) -> tuple[list[Any], list[Any]]:
    """Split refs into ready and not, num_returns ready unless time is over; order kept.

    Args:
        client: the runtime of all the refs.
        refs: ObjectRefs and generators. The list is used up.
        keys: the key of each ref, a generator itself.
        generators: those among the refs.
        num_returns: how many to wait for, and how many to return as ready at most.
        timeout_s: seconds to wait at most, None: for ever.
        fetch: a ref is ready when its value is on this node; False: when it is anywhere.

    Raises ValueError where a ref is there twice.
    """
    distinct = set(keys)
    if len(distinct) != len(refs):
        raise ValueError("zray.wait() was given the same ref twice")
    wait = _Wait(client, keys, distinct, generators, num_returns, fetch=fetch)
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    left, in_time = timeout_s, True
    positions = wait.ready_at()
    while in_time and len(positions) < num_returns:
        in_time = wait.enough(left)
        positions = wait.ready_at()
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
    return [refs[position] for position in positions], _others(refs, positions)


class _Wait:
    """One call of split()."""

    def __init__(
        self,
        client: Runtime,
        keys: list[Any],
        distinct: set[Any],
        generators: list[ObjectRefGenerator[Any]],
        num_returns: int,
        *,
        fetch: bool,
    ) -> None:
        self.client = client
        self.fetch = fetch
        self.keys = keys
        self.distinct = distinct
        self.generators = generators
        self.num_returns = num_returns

    def ready_at(self) -> list[int]:
        """Return where the first ready ones are, at most num_returns."""
        # Whoever waits for one of n refs at a time comes here n times: C code looks at the n.
        results = self.client.results
        if self.generators:
            looks: Iterable[bool] = map(self._is_ready, self.keys)
        elif results.keys().isdisjoint(self.distinct):
            return []
        else:
            looks = map(results.__contains__, self.keys)
        positions: list[int] = []
        for position in compress(count(), looks):
            if self._is_ready(self.keys[position]):
                positions.append(position)
                if len(positions) == self.num_returns:
                    break
        return positions

    def _is_ready(self, key: Any) -> bool:
        if type(key) is ObjectRefGenerator:
            return key.next_ready()
        return self.client.is_ready(key) if self.fetch else key in self.client.results

    def enough(self, timeout_s: float | None) -> bool:
        """Wait until num_returns may be ready; False when the time is over.

        No ref is looked at until as many outcomes have come as are wanted, so that a wait for k
        of n refs costs n looks, not n a message.
        """
        client, watch = self.client, Watch(Purpose.GET if self.fetch else Purpose.PLACE)
        awaited = self.distinct
        if self.generators:
            awaited = awaited.difference(self.generators)
            for generator in self.generators:
                awaited.update(generator.next_keys())
        with client.lock:
            client.session.follow(watch, awaited)
        wanted = self.num_returns
        if self.generators:
            # An item and the end may both be here, and are one ready generator.
            wanted += len(watch.arrived) - len(self.ready_at())
        try:
            return client.wait_until(partial(watch.has, wanted), timeout_s)
        finally:
            watch.closed = True


def _others(refs: list[Any], positions: list[int]) -> list[Any]:
    if len(positions) <= _FEW:
        for position in reversed(positions):
            del refs[position]
        return refs
    others: list[Any] = []
    low = 0
    for position in positions:
        others += refs[low:position]
        low = position + 1
    others += refs[low:]
    return others
