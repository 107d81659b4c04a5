"""The session's door: arguments that are not ready, deaths, generators.

What    Messages into Session, messages out of its outbox; ends with check().
Never   opens a socket.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest

from tests.outbox import sent
from zray.protocol import frames, messages, outcome
from zray.protocol.ids import object_id, return_number
from zray.protocol.limits import GENERATOR_BACKLOG_MAX
from zray.session.session import Session
from zray.session.tasks import TaskClass

ME, NODE, WORKER = b"a-client", b"the-node", b"worker-1"
ONE, TWO, BOOM = b"\x80one", b"\x80two", b"\x02boom"
ACTOR = object_id(ME, 77)


class Client:
    """A session and one function."""

    def __init__(self) -> None:
        self.session = Session(ME, NODE, lambda what, reason: b"\x02" + what.encode())
        self.function: TaskClass = self.session.tasks.declare(
            [b"f", "f", {}, 1, 1, None, 0, {}, 0], shape=(), returns=1, max_retries=1
        )

    def handle(
        self, sender: bytes, kind: int, *fields: Any, payloads: tuple[bytes, ...] = ()
    ) -> None:
        packed = frames.pack(kind, *fields, payloads=len(payloads))
        self.session.handle(sender, frames.unpack(packed), list(payloads))
        self.session.after_arrival()

    def arrive(self, number: int, found: bytes) -> None:
        """The outcome of a task arrives."""
        self.handle(
            WORKER, messages.RESULTS, number, 0, 1, True, payloads=(msgpack.packb([found]),)
        )

    def submit(self) -> int:
        number = self.session.tasks.submit(self.function, b"", None)
        self.session.flush()
        return number

    def hold(self, *keys: int) -> int:
        """Submit a task that takes these as arguments; returns its number."""
        number = self.session.tasks.take_numbers()
        self.session.submit_held(
            self.function,
            number,
            b"\x80args",
            {key: [position] for position, key in enumerate(keys)},
            None,
        )
        return number

    def sent(self, kind: int) -> list[list[Any]]:
        self.session.flush()
        return sent(self.session.outbox, kind)


@pytest.fixture
def client() -> Iterator[Client]:
    made = Client()
    yield made
    made.session.check()


def test_a_task_leaves_when_its_last_argument_is_here(client: Client) -> None:
    first, second = client.submit(), client.submit()
    client.sent(messages.SUBMIT)
    client.hold(first, second)
    client.arrive(first, ONE)
    assert client.sent(messages.SUBMIT) == []
    client.arrive(second, TWO)
    assert len(client.sent(messages.SUBMIT)) == 1


def test_an_argument_that_failed_fails_the_whole_chain_at_once(client: Client) -> None:
    """Found by simulation (seed 60): the last of the chain waited for ever."""
    first = client.submit()
    second = client.hold(first)
    third = client.hold(second)
    client.arrive(first, BOOM)
    assert client.session.results == {first: BOOM, second: BOOM, third: BOOM}
    assert not client.session.held


def test_a_held_call_lies_in_the_outbox_when_its_argument_has_arrived(client: Client) -> None:
    """Found by simulation (seed 253): the shell looks there, and nowhere else."""
    from zray.session.actors import ActorCall

    session = client.session
    argument = client.submit()
    route = session.actors.route(ACTOR)
    client.handle(NODE, messages.ACTOR_STATE, [[ACTOR, "ALIVE", WORKER, "endpoint", 0, b""]])
    call = ActorCall(session.tasks.take_numbers(), "m", 1, None, None, 0)
    session.actors.call(route, call)
    session.resolve(
        b"\x80args",
        {argument: [0]},
        lambda filled: session.actors.arguments_ready(route, call.number, filled),
        lambda found: session.actors.argument_failed(route, call.number, found),
    )
    session.flush()
    session.outbox.messages.clear()
    client.arrive(argument, ONE)
    assert [peer for peer, _header, _payloads in session.outbox.messages] == [WORKER]


def test_an_error_among_the_items_of_a_map_does_not_end_the_others(client: Client) -> None:
    failed = client.submit()
    client.sent(messages.SUBMIT)
    batch = client.session.map_batch(client.function, b"\x80items", 3, [], {failed: [1]})
    client.arrive(failed, BOOM)
    assert [rows[0][1:3] for (rows,) in client.sent(messages.SUBMIT)] == [[batch.first, 3]]
    assert batch.done == bytearray(3)


# -- deaths --------------------------------------------------------------------------------------


def test_after_a_death_the_node_is_asked_what_it_does_not_have(client: Client) -> None:
    number = client.submit()
    client.sent(messages.SUBMIT)
    client.handle(NODE, messages.PROCESS_DIED, WORKER, "killed")
    assert client.session.reconcile_wanted
    client.session.reconcile()
    assert client.sent(messages.RECONCILE) == [[[[number, 0, 1]]]]
    client.handle(NODE, messages.RECONCILED, [[number, 0, 1]])
    assert len(client.sent(messages.SUBMIT)) == 1
    client.handle(NODE, messages.RECONCILED, [[number, 0, 1]])
    assert client.session.results == {number: b"\x02task"}


def test_the_question_travels_behind_what_it_asks_about(client: Client) -> None:
    """Found by simulation (seed 159): it overtook a submission, which then ran twice."""
    client.submit()
    client.session.reconcile()
    kinds = [frames.unpack(header)[1] for _peer, header, _p in client.session.outbox.messages]
    assert kinds == [messages.SUBMIT, messages.RECONCILE]


def test_only_the_node_is_believed_about_deaths_and_failures(client: Client) -> None:
    number = client.submit()
    client.handle(WORKER, messages.TASK_FAILED, number, [0], BOOM)
    client.handle(WORKER, messages.PROCESS_DIED, WORKER, "a lie")
    assert not client.session.results
    assert not client.session.reconcile_wanted


# -- actors whose arguments come late ------------------------------------------------------------


def test_an_actors_arguments_follow_when_they_are_here(client: Client) -> None:
    session = client.session
    argument = client.submit()
    route = session.actors.route(object_id(ME, session.tasks.take_numbers()))
    assert session.arguments_now(b"\x80args", {argument: [0]}) is None
    session.arguments_later(route, b"\x80args", {argument: [0]})
    assert not client.sent(messages.ACTOR_ARGUMENTS)
    client.arrive(argument, ONE)
    actor, arguments, error = client.sent(messages.ACTOR_ARGUMENTS)[0]
    assert (actor, error) == (route.actor, b"")
    assert arguments == session.arguments_now(b"\x80args", {argument: [0]})


def test_an_actor_whose_argument_failed_is_dead_for_all(client: Client) -> None:
    session = client.session
    argument = client.submit()
    route = session.actors.route(object_id(ME, session.tasks.take_numbers()))
    session.arguments_later(route, b"\x80args", {argument: [0]})
    client.arrive(argument, BOOM)
    assert route.state == "DEAD"
    assert session.arguments_now(b"\x80args", {argument: [0]}) is None
    assert client.sent(messages.ACTOR_ARGUMENTS) == [[route.actor, None, BOOM]]


# -- generators ----------------------------------------------------------------------------------


def test_items_of_a_generator_are_objects_in_order(client: Client) -> None:
    stream = client.session.streams.start(5)
    for index, found in enumerate((ONE, TWO)):
        client.handle(WORKER, messages.YIELDED, 5, index, found)
    assert client.session.streams.consume(stream) == return_number(5, 1)
    assert client.session.results[return_number(5, 1)] == ONE


def test_a_consumer_that_has_caught_up_says_so(client: Client) -> None:
    """Found by simulation: with a backlog below 8 the generator waited for ever."""
    stream = client.session.streams.start(5)
    client.handle(WORKER, messages.YIELDED, 5, 0, ONE)
    client.handle(WORKER, messages.YIELDED, 5, 1, TWO)
    client.session.streams.consume(stream)
    assert client.sent(messages.CONSUMED) == []
    client.session.streams.consume(stream)
    assert client.sent(messages.CONSUMED) == [[5, 2]]


def test_a_second_execution_repeats_nothing(client: Client) -> None:
    stream = client.session.streams.start(5)
    client.handle(WORKER, messages.YIELDED, 5, 0, ONE)
    client.handle(WORKER, messages.YIELDED, 5, 0, TWO)
    assert stream.arrived == 1
    assert client.session.results[return_number(5, 1)] == ONE
    assert client.sent(messages.CONSUMED) == [[5, 1]]


def test_an_abandoned_generator_is_stopped_and_its_items_go(client: Client) -> None:
    stream = client.session.streams.start(5)
    client.handle(WORKER, messages.YIELDED, 5, 0, outcome.stored(4096, 100))
    client.session.streams.close(stream)
    assert client.sent(messages.CONSUMED) == [[5, -1]]
    client.handle(WORKER, messages.YIELDED, 5, 1, outcome.stored(8192, 100))
    assert client.sent(messages.RELEASE) == [[[], [object_id(ME, return_number(5, 2))]]]
    assert not client.session.results


def test_items_that_a_dying_worker_made_and_did_not_send_are_given_up(client: Client) -> None:
    stream = client.session.streams.start(5)
    client.handle(WORKER, messages.YIELDED, 5, 0, ONE)
    client.handle(NODE, messages.PROCESS_DIED, WORKER, "killed")
    client.session.streams.close(stream)
    ((deltas, given_up),) = client.sent(messages.RELEASE)
    assert deltas == []
    assert len(given_up) == GENERATOR_BACKLOG_MAX


@pytest.mark.parametrize("kind", ["one task takes all", "a task for each", "a callback for each"])
def test_a_pending_argument_costs_as_much_for_each_of_many(client: Client, kind: str) -> None:
    """Each message made the session look at all that is awaited: the square of it."""

    def seconds(count: int) -> float:
        numbers = [client.submit() for _ in range(count)]
        if kind == "one task takes all":
            client.hold(*numbers)
        for number in numbers:
            if kind == "a task for each":
                client.hold(number)
            elif kind == "a callback for each":
                client.session.callbacks[number] = [lambda: None]
        # Those that never come are awaited all the time.
        absent = [client.submit() for _ in range(count)]
        client.hold(*absent)
        began = time.thread_time()
        for number in numbers:
            client.arrive(number, ONE)
        took = time.thread_time() - began
        for number in absent:
            client.arrive(number, ONE)
        client.session.flush()
        client.session.outbox.messages.clear()
        assert not client.session.held
        return took

    small = min(seconds(500) for _ in range(3))
    large = min(seconds(4_000) for _ in range(2))
    assert large < 8 * small * 3, f"{large / small:.0f} times the time for 8 times the work"
