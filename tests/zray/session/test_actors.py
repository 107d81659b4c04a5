"""Calls to actors: their order, what a death does to them, what comes back late.

What    Events into ActorCalls, messages out of its outbox; ends with check(). A Hypothesis machine
        plays an actor that dies and restarts at any moment.
Never   opens a socket.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from zray.protocol import frames, messages, outcome
from zray.protocol.limits import CALLS_BYTES_MAX
from zray.session.actors import DEAD, ActorCall, ActorCalls, ActorRoute
from zray.session.outbox import Outbox
from zray.session.references import Key, References

ME, NODE, W1, W2 = b"a-client", b"the-node", b"worker-1", b"worker-2"
ACTOR = ME + bytes(7) + b"\x09"
ONE, DIED, BOOM = b"\x80one", b"\x02died", b"\x02boom"
SECOND = 1 << 40


class Client:
    """Actor calls with their outbox, and one actor."""

    def __init__(self) -> None:
        self.outbox = Outbox()
        self.results: dict[Key, bytes] = {}
        self.references = References(ME, NODE, self.results, self.outbox)
        self.calls = ActorCalls(self.references, self.outbox)
        self.route: ActorRoute = self.calls.route(ACTOR)
        self.next_number = 10

    def call(self, *, retries: int = 0, returns: int = 1, ready: bool = True) -> int:
        number, self.next_number = self.next_number, self.next_number + 1
        self.calls.call(
            self.route,
            ActorCall(number, "m", returns, b"arguments" if ready else None, None, retries),
        )
        return number

    def lives(self, worker: bytes = W1, incarnation: int = 0) -> None:
        self.calls.state_changed(ACTOR, "ALIVE", worker, "endpoint", incarnation, DIED)

    def sent(self) -> list[tuple[bytes, int]]:
        """Return (worker, number) of the calls that have left since the last look."""
        if self.calls.dirty:
            self.calls.flush()
        queued, self.outbox.messages = self.outbox.messages, []
        found: list[tuple[bytes, int]] = []
        for peer, header, _payloads in queued:
            message: list[Any] = frames.unpack(header)
            assert message[1] == messages.CALL
            found += [(peer, row[1]) for row in message[3]]
        return found


@pytest.fixture
def client() -> Iterator[Client]:
    made = Client()
    yield made
    made.calls.check()
    made.references.check()


@pytest.mark.parametrize("routes", [1, 2])
def test_what_has_waited_for_an_actor_goes_in_messages_of_a_bounded_size(
    client: Client, routes: int
) -> None:
    large = b"x" * (CALLS_BYTES_MAX // 8)
    if routes == 2:
        other = client.calls.route(ME + bytes(7) + b"\x0a")
        client.calls.state_changed(other.actor, "ALIVE", W1, "endpoint", 0, DIED)
        client.calls.call(other, ActorCall(1, "m", 1, b"arguments", None, 0))
    for number in range(100, 150):
        client.calls.call(client.route, ActorCall(number, "m", 1, large, None, 0))
    client.lives()
    client.calls.flush()
    sent = [len(header) for _peer, header, _payloads in client.outbox.messages]
    assert len(sent) >= 50 // 9
    assert max(sent) < CALLS_BYTES_MAX + 2 * len(large)
    numbers = [number for _worker, number in client.sent()]
    assert [number for number in numbers if number >= 100] == list(range(100, 150))


def test_calls_wait_until_it_is_known_where_the_actor_lives(client: Client) -> None:
    numbers = [client.call() for _ in range(3)]
    assert client.sent() == []
    assert client.calls.waiting_for_place == 3
    client.lives()
    assert client.sent() == [(W1, number) for number in numbers]


def test_a_call_whose_arguments_are_not_ready_holds_back_those_behind_it(client: Client) -> None:
    client.lives()
    first, second = client.call(ready=False), client.call()
    assert client.sent() == []
    client.calls.arguments_ready(client.route, first, b"arguments")
    assert client.sent() == [(W1, first), (W1, second)]


def test_a_held_call_that_failed_holds_nobody_back(client: Client) -> None:
    """Found by simulation (seed 8): calls behind two held ones never left."""
    client.lives()
    first, second, third = client.call(ready=False), client.call(ready=False), client.call()
    client.calls.argument_failed(client.route, second, BOOM)
    client.calls.arguments_ready(client.route, first, b"arguments")
    assert client.sent() == [(W1, first), (W1, third)]
    assert client.results == {second: BOOM}


def test_calls_under_way_fail_with_their_actor(client: Client) -> None:
    client.lives()
    number = client.call()
    client.sent()
    client.calls.process_died(W1, DIED)
    assert client.results == {number: DIED}


def test_calls_that_may_be_retried_go_first_to_the_next_incarnation(client: Client) -> None:
    client.lives()
    first = client.call(retries=1)
    client.sent()
    second = client.call(retries=1)
    client.calls.process_died(W1, DIED)
    third = client.call(retries=1)
    client.lives(W2, 1)
    assert client.sent() == [(W2, first), (W2, second), (W2, third)]
    client.calls.process_died(W2, DIED)
    assert client.results == {first: DIED}
    client.lives(W1, 2)
    assert client.sent() == [(W1, second), (W1, third)]


def test_calls_that_had_not_left_are_not_lost_with_the_worker(client: Client) -> None:
    client.lives()
    number = client.call()
    client.calls.process_died(W1, DIED)
    client.lives(W2, 1)
    assert client.sent() == [(W2, number)]


def test_an_actor_that_restarts_where_it_was_has_lost_its_calls_too(client: Client) -> None:
    """Found by simulation (seed 3343): shared actors, killed with restart, never answered."""
    client.lives()
    number, again = client.call(), client.call(retries=1)
    client.sent()
    client.lives(W1, 1)
    assert client.results == {number: DIED}
    assert client.sent() == [(W1, again)]


def test_an_actor_that_moved_unheard_has_lost_its_calls_too(client: Client) -> None:
    """Found by simulation (seed 6936): its end and its new place came in one message."""
    client.lives()
    number, again = client.call(), client.call(retries=1)
    client.sent()
    client.lives(W2, 1)
    assert client.results == {number: DIED}
    assert client.sent() == [(W2, again)]


def test_a_late_reply_ends_a_call_that_was_to_be_sent_again(client: Client) -> None:
    """Found by simulation (seed 905)."""
    client.lives()
    number = client.call(retries=3)
    client.sent()
    client.calls.process_died(W1, DIED)
    client.calls.replied([number], [ONE], special=False)
    client.lives(W2, 1)
    assert client.sent() == []
    assert client.results == {number: ONE}


def test_a_reply_after_the_failure_is_given_up(client: Client) -> None:
    client.lives()
    number = client.call()
    client.calls.process_died(W1, DIED)
    client.sent()
    client.calls.state_changed(ACTOR, DEAD, None, None, 1 << 30, DIED)
    client.references.voided.clear()
    client.calls.replied([number], [outcome.stored(4096, 100)], special=True)
    assert client.results == {number: DIED}
    assert client.references.voided == [client.references.id_of(number)]


def test_what_has_arrived_of_several_returns_stays(client: Client) -> None:
    client.lives()
    number = client.call(returns=2)
    client.sent()
    client.calls.replied([number], [ONE], special=True)
    client.calls.process_died(W1, DIED)
    assert client.results == {number: ONE, SECOND + number: DIED}


def test_a_dead_actor_refuses_at_once_and_forgets_its_arguments(client: Client) -> None:
    client.route.keep = object()
    early = client.call()
    client.calls.state_changed(ACTOR, DEAD, None, None, 1 << 30, DIED)
    late = client.call()
    assert client.results == {early: DIED, late: DIED}
    assert client.route.keep is None
    assert not client.calls.routes


class CallsMachine(RuleBasedStateMachine):
    """An actor behind a worker that runs what it gets, in order, and dies at any moment."""

    def __init__(self) -> None:
        super().__init__()
        self.client = Client()
        self.incarnation = 0
        self.worker: bytes | None = None
        self.inbox: list[int] = []
        self.executed: list[int] = []
        self.runs: dict[int, int] = {}
        self.retries: dict[int, int] = {}
        self.unready: list[int] = []

    def take(self) -> None:
        for worker, number in self.client.sent():
            assert worker == self.worker, "a call for a worker that is not the actor's"
            self.inbox.append(number)

    @rule(retries=st.sampled_from((0, 1, -1)), ready=st.booleans())
    def call(self, retries: int, ready: bool) -> None:
        number = self.client.call(retries=retries, ready=ready)
        self.retries[number] = retries
        if not ready:
            self.unready.append(number)

    @precondition(lambda self: self.unready)
    @rule(data=st.data(), works=st.booleans())
    def arguments(self, data: st.DataObject, works: bool) -> None:
        number = self.unready.pop(data.draw(st.integers(0, len(self.unready) - 1)))
        if works:
            self.client.calls.arguments_ready(self.client.route, number, b"arguments")
        else:
            self.client.calls.argument_failed(self.client.route, number, BOOM)

    @precondition(lambda self: self.worker is None)
    @rule(same=st.booleans())
    def starts(self, same: bool) -> None:
        self.worker = W1 if same else W2
        self.client.lives(self.worker, self.incarnation)

    @rule()
    def flush(self) -> None:
        self.take()

    @precondition(lambda self: self.inbox)
    @rule(late=st.booleans())
    def runs_one(self, late: bool) -> None:
        number = self.inbox.pop(0)
        if self.executed and number <= self.executed[-1]:
            return  # A duplicate, which the worker drops.
        self.executed.append(number)
        self.runs[number] = self.runs.get(number, 0) + 1
        if late:
            self.dies(tell=False)
        self.client.calls.replied([number], [ONE], special=False)

    @precondition(lambda self: self.worker is not None)
    @rule(tell=st.booleans())
    def dies(self, tell: bool) -> None:
        """The node's words: of the process, or only of the actor's next state."""
        if self.worker is None:
            return
        self.take()
        self.incarnation += 1
        if tell:
            self.client.calls.process_died(self.worker, DIED)
        else:
            self.client.calls.state_changed(ACTOR, "RESTARTING", None, None, self.incarnation, DIED)
        self.worker, self.inbox, self.executed = None, [], []

    @invariant()
    def it_is_sound(self) -> None:
        self.client.calls.check()
        self.client.references.check()

    @invariant()
    def no_call_runs_more_often_than_it_may(self) -> None:
        for number, count in self.runs.items():
            assert self.retries[number] < 0 or count <= self.retries[number] + 1

    def teardown(self) -> None:
        """The actor lives on: every call ends."""
        for number in self.unready:
            self.client.calls.arguments_ready(self.client.route, number, b"arguments")
        if self.worker is None:
            self.starts(True)
        self.take()
        while self.inbox:
            self.runs_one(False)
        assert not self.client.calls.by_number
        assert self.client.results.keys() == self.retries.keys(), "a call without an outcome"


TestCallsMachine = CallsMachine.TestCase
TestCallsMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
