"""Waits for some of many refs: what they return, and how often they look.

What    split() and Arrivals over a real session whose messages a scripted client hands in one by
        one. Costs are counted in looks at outcomes, not in seconds.
Never   opens a socket.
"""

from __future__ import annotations

import contextlib
import gc
from collections import deque
from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from zray.protocol import frames, messages, outcome
from zray.refs import ObjectRef
from zray.session.references import Key
from zray.session.session import Session
from zray.waits import Arrivals, split

ME, NODE, WORKER = b"a-client", b"the-node", b"worker-1"
VALUE = b"\x80value"
THEIRS = b"another!" + bytes(7) + b"\1"


class Looks(dict[Key, bytes]):
    """Outcomes, and how often somebody looked at one."""

    count = 0

    def __contains__(self, key: object) -> bool:
        self.count += 1
        return super().__contains__(key)

    def get(self, key: Any, default: Any = None) -> Any:
        self.count += 1
        return super().get(key, default)


class Client:
    """A session to which the messages of ``inbox`` come one at a time, while somebody waits."""

    def __init__(self) -> None:
        self.session = Session(ME, NODE, lambda what, _reason: b"\x02" + what.encode())
        self.results = Looks()
        for machine in (self.session, self.session.references, self.session.tasks):
            machine.results = self.results
        self.lock = contextlib.nullcontext()
        self.garbage: deque[Key] = deque()
        self.inbox: deque[list[int]] = deque()
        self.function = self.session.tasks.declare(
            [b"f", "f", {}, 1, 1, None, 0, {}, 0], shape=(), returns=1, max_retries=1
        )

    def submit(self, count: int) -> list[ObjectRef[Any]]:
        tasks = self.session.tasks
        refs: list[ObjectRef[Any]] = []
        for _ in range(count):
            number = tasks.submit(self.function, b"", None)
            refs.append(ObjectRef(self, number))  # type: ignore[arg-type]
            self.session.flush()
        self.session.outbox.messages.clear()
        return refs

    def is_ready(self, key: Key) -> bool:
        found = self.results.get(key)
        return found is not None and found[0] != outcome.ELSEWHERE

    def read(self) -> None:
        for number in self.inbox.popleft():
            packed = frames.pack(messages.RESULTS, number, 0, 1, False, payloads=1)
            self.session.handle(WORKER, frames.unpack(packed), [msgpack.packb([VALUE])])
        if self.session.references.news:
            self.session.after_arrival()

    def wait_until(self, ready: Callable[[], bool], timeout_s: float | None = None) -> bool:
        while not ready():
            if not self.inbox:
                assert timeout_s is not None, "a wait that nothing ends"
                return False
            self.read()
        return True


@pytest.fixture
def client() -> Any:
    made = Client()
    yield made
    made.session.check()


def _keys(refs: list[ObjectRef[Any]]) -> list[Key]:
    return [ref.key for ref in refs]


def _arrive(client: Client, refs: list[ObjectRef[Any]]) -> None:
    client.inbox.extend([ref.key] for ref in refs)  # type: ignore[list-item]


def test_the_first_ready_ones_are_returned_in_order(client: Any) -> None:
    refs = client.submit(20)
    _arrive(client, refs[::-2])
    while client.inbox:
        client.read()
    ready, others = split(client, list(refs), _keys(refs), [], 10, None)
    assert ready == refs[1::2]
    assert others == refs[::2]
    assert split(client, list(refs), _keys(refs), [], 3, None)[0] == refs[1:6:2]


def test_a_wait_whose_time_is_over_returns_what_is_there(client: Any) -> None:
    refs = client.submit(5)
    _arrive(client, refs[3:4])
    ready, others = split(client, list(refs), _keys(refs), [], 2, 0.1)
    assert ready == [refs[3]]
    assert others == refs[:3] + refs[4:]


def test_the_same_ref_twice_is_refused(client: Any) -> None:
    refs = client.submit(2)
    with pytest.raises(ValueError, match="twice"):
        split(client, [refs[0], refs[0]], _keys([refs[0], refs[0]]), [], 1, None)
    arrivals = Arrivals(client)
    arrivals.add(refs)
    with pytest.raises(ValueError, match="twice"):
        arrivals.add(refs[1:])
    arrivals.close()


def test_arrivals_come_in_the_order_of_their_outcomes(client: Any) -> None:
    refs = client.submit(6)
    _arrive(client, [refs[4]])
    client.read()
    arrivals = Arrivals(client)
    arrivals.add(refs[:])
    _arrive(client, [refs[2], refs[0], refs[5], refs[1], refs[3]])
    order = []
    while len(arrivals):
        order += arrivals.take(2)
    assert order == [refs[number] for number in (4, 2, 0, 5, 1, 3)]
    arrivals.close()


def test_arrivals_hold_no_ref_that_was_taken(client: Any) -> None:
    refs = client.submit(3)
    keys = _keys(refs)
    arrivals = Arrivals(client)
    arrivals.add(refs[:])
    _arrive(client, refs)
    refs.clear()
    arrivals.take(1)
    gc.collect()
    assert list(client.garbage) == keys[:1]
    arrivals.close()


@pytest.mark.parametrize("count", [500, 4_000])
def test_each_of_many_results_is_looked_at_a_bounded_number_of_times(
    client: Any, count: int
) -> None:
    """as_completed over n refs cost n looks for each message: 9 s for 10 000."""
    refs = client.submit(count)
    arrivals = Arrivals(client)
    client.results.count = 0
    arrivals.add(refs[:])
    _arrive(client, refs[::-1])
    taken = 0
    while len(arrivals):
        taken += len(arrivals.take(10))
    assert taken == count
    assert client.results.count <= 8 * count
    arrivals.close()


def test_a_wait_for_many_looks_at_all_refs_only_twice(client: Any) -> None:
    refs = client.submit(1_000)
    client.results.count = 0
    _arrive(client, refs[:900])
    ready, others = split(client, list(refs), _keys(refs), [], 900, None)
    assert (len(ready), len(others)) == (900, 100)
    assert client.results.count <= 8 * 1_000


def test_what_only_the_node_knows_is_asked_for_and_awaited(client: Any) -> None:
    client.session.references.restore(THEIRS)
    ref: ObjectRef[Any] = ObjectRef(client, THEIRS)
    ready, _others = split(client, [ref], [THEIRS], [], 1, 0.1)
    assert ready == []
    assert THEIRS in client.session.references.located
    packed = frames.pack(messages.LOCATED, [(THEIRS, VALUE)])
    client.session.handle(NODE, frames.unpack(packed), [])
    client.session.after_arrival()
    assert split(client, [ref], [THEIRS], [], 1, 0.1)[0] == [ref]


def test_a_watch_that_is_closed_is_forgotten(client: Any) -> None:
    refs = client.submit(2)
    split(client, list(refs), _keys(refs), [], 1, 0.0)
    arrivals = Arrivals(client)
    arrivals.add(refs[:])
    arrivals.close()
    _arrive(client, refs)
    client.read()
    assert client.session.watches == []
    assert client.session.references.news == []
