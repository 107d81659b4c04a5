"""Results on their way out: what gathers, which messages become of it, and who is told.

What    Outbound on a runtime without sockets: what lies in the outbox after gather(); and the
        credit of generators.
"""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from tests.actors.fakes import CALLER, NODE, OTHER, FakeRuntime, task_range
from zray.actors.outbound import Outbound
from zray.protocol import messages

ONE, TWO, BOOM = b"\x80one", b"\x80two", b"\x02boom"


@pytest.fixture
def runtime() -> Any:
    return FakeRuntime()


@pytest.fixture
def outbound(runtime) -> Outbound:
    return Outbound(runtime)


# -- results ---------------------------------------------------------------------------------------


def test_results_go_to_the_caller_and_a_report_to_the_node(runtime, outbound):
    outbound.results(task_range(), 3, 2, [ONE, TWO], False, 50)
    assert runtime.left() == [], "they gather first"
    outbound.gather()
    assert runtime.left() == [
        (CALLER, messages.RESULTS, [100, 3, 2, False], (msgpack.packb([ONE, TWO]),)),
        (NODE, messages.FINISHED, [[[CALLER, 100, 3, 5, 50]]], ()),
    ]


def test_several_results_are_several_messages_and_one_report(runtime, outbound):
    outbound.results(task_range(), 0, 1, [ONE], False, 1)
    outbound.results(task_range(first=200, client=OTHER), 4, 1, [BOOM], True, 2)
    outbound.gather()
    left = runtime.left()
    assert [(peer, fields) for peer, _kind, fields, _payloads in left] == [
        (CALLER, [100, 0, 1, False]),
        (OTHER, [200, 4, 1, True]),
        (NODE, [[[CALLER, 100, 0, 1, 1], [OTHER, 200, 4, 5, 2, [4]]]]),
    ]


def test_the_node_is_not_told_of_what_a_lease_holder_sent(runtime, outbound):
    outbound.results(task_range(direct=True), 0, 1, [ONE], False, 1)
    outbound.gather()
    assert [message[:2] for message in runtime.left()] == [(CALLER, messages.RESULTS)]


def test_values_of_a_map_go_as_the_one_list_they_are(runtime, outbound):
    outbound.map_results(task_range(), 2, 3, b"pickled list", 9)
    outbound.gather()
    assert runtime.left() == [
        (CALLER, messages.MAP_RESULTS, [100, 2, 3], (b"pickled list",)),
        (NODE, messages.FINISHED, [[[CALLER, 100, 2, 5, 9]]], ()),
    ]


def test_replies_to_one_caller_are_one_message(runtime, outbound):
    outbound.reply(CALLER, 1, ONE, False)
    outbound.reply(OTHER, 1, TWO, False)
    outbound.reply(CALLER, 2, TWO, False)
    outbound.gather()
    assert runtime.left() == [
        (CALLER, messages.REPLIES, [[1, 2], [ONE, TWO], False], ()),
        (OTHER, messages.REPLIES, [[1], [TWO], False], ()),
    ]


@pytest.mark.parametrize("at", [0, 1, 2])
def test_one_special_reply_makes_the_message_special(runtime, outbound, at):
    for number in range(3):
        outbound.reply(CALLER, number, BOOM, number == at)
    outbound.gather()
    ((_peer, _kind, fields, _payloads),) = runtime.left()
    assert fields == [[0, 1, 2], [BOOM] * 3, True]


def test_what_has_left_does_not_leave_again(runtime, outbound):
    outbound.reply(CALLER, 1, ONE, False)
    outbound.results(task_range(), 0, 1, [ONE], False, 1)
    outbound.gather()
    assert len(runtime.left()) == 3
    assert not outbound.unsent
    outbound.gather()
    assert runtime.left() == []
    outbound.reply(CALLER, 2, TWO, False)
    outbound.gather()
    assert runtime.left() == [(CALLER, messages.REPLIES, [[2], [TWO], False], ())]


def test_the_clock_of_what_gathers_starts_with_the_first(runtime, outbound, monkeypatch):
    times = iter((1.0, 2.0, 3.0))
    monkeypatch.setattr("zray.actors.outbound.time.monotonic", lambda: next(times))
    outbound.started()
    assert outbound.unsent
    outbound.reply(CALLER, 1, ONE, False)
    outbound.map_results(task_range(), 0, 1, b"", 1)
    assert (outbound.unsent, outbound.since) == (True, 1.0)
    outbound.gather()
    outbound.results(task_range(), 0, 1, [ONE], False, 1)
    assert (outbound.unsent, outbound.since) == (True, 2.0)


@pytest.mark.parametrize(("returns", "copies"), [(0, 1), (1, 1), (3, 3)])
def test_a_cancelled_item_is_told_at_once_and_to_its_caller_alone(
    runtime, outbound, returns, copies
):
    outbound.cancelled(task_range(returns=returns), 4, BOOM)
    assert runtime.left() == [
        (CALLER, messages.RESULTS, [100, 4, 1, True], (msgpack.packb([BOOM] * copies),))
    ]
    assert runtime.flushed == 1


# -- generators ------------------------------------------------------------------------------------


def test_an_item_leaves_at_once(runtime, outbound):
    outbound.begin_stream(CALLER, 5)
    assert outbound.yield_item(CALLER, 5, 0, ONE, backlog=2)
    assert runtime.left() == [(CALLER, messages.YIELDED, [5, 0, ONE], ())]
    assert runtime.flushed == 1


def test_a_generator_waits_while_its_consumer_is_a_backlog_behind(runtime, outbound):
    outbound.begin_stream(CALLER, 5)
    arrivals = [lambda: outbound.consumed(CALLER, 5, 1), lambda: outbound.consumed(CALLER, 5, 2)]
    runtime.arrivals.extend(arrivals)
    assert outbound.yield_item(CALLER, 5, 0, ONE, backlog=2)
    assert len(runtime.arrivals) == 2, "there is room for one more"
    assert outbound.yield_item(CALLER, 5, 1, ONE, backlog=2)
    assert len(runtime.arrivals) == 1
    assert outbound.yield_item(CALLER, 5, 2, ONE, backlog=2)
    assert not runtime.arrivals


def test_a_generator_whose_consumer_has_gone_is_told_so(runtime, outbound):
    outbound.begin_stream(CALLER, 5)
    runtime.arrivals.append(lambda: outbound.consumed(CALLER, 5, -1))
    assert not outbound.yield_item(CALLER, 5, 0, ONE, backlog=1)
    assert outbound.is_abandoned(CALLER, 5)


def test_how_far_a_consumer_is_does_not_go_back(outbound):
    outbound.begin_stream(CALLER, 5)
    outbound.consumed(CALLER, 5, 4)
    outbound.consumed(CALLER, 5, 3)
    assert outbound.has_room(CALLER, 5, sent=4, backlog=1)
    assert not outbound.has_room(CALLER, 5, sent=5, backlog=1)


def test_streams_of_one_number_belong_to_their_callers(outbound):
    outbound.begin_stream(CALLER, 5)
    outbound.begin_stream(OTHER, 5)
    outbound.consumed(OTHER, 5, -1)
    assert outbound.is_abandoned(OTHER, 5)
    assert not outbound.is_abandoned(CALLER, 5)


def test_whoever_asked_is_called_back_when_the_consumer_moves_until_the_end(outbound):
    moves: list[int] = []
    outbound.begin_stream(CALLER, 5)
    outbound.consumed(CALLER, 5, 1)
    outbound.on_consumed(CALLER, 5, lambda: moves.append(1))
    outbound.consumed(CALLER, 5, 2)
    outbound.consumed(CALLER, 5, -1)
    assert len(moves) == 2
    outbound.end_stream(CALLER, 5)
    outbound.begin_stream(CALLER, 5)  # Tried again: the callback was of the first try.
    outbound.consumed(CALLER, 5, 1)
    assert len(moves) == 2


def test_an_ended_generator_keeps_nothing_and_hears_nothing(outbound):
    outbound.begin_stream(CALLER, 5)
    outbound.end_stream(CALLER, 5)
    outbound.consumed(CALLER, 5, 3)
    assert outbound.is_abandoned(CALLER, 5)
    assert outbound.has_room(CALLER, 5, sent=99, backlog=1), "nothing waits for its consumer"
    assert outbound._credit == {}


def test_a_generator_that_is_tried_again_begins_with_no_credit(outbound):
    outbound.begin_stream(CALLER, 5)
    outbound.consumed(CALLER, 5, 9)
    outbound.begin_stream(CALLER, 5)
    assert not outbound.has_room(CALLER, 5, sent=1, backlog=1)
