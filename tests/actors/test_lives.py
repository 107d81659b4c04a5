"""Which life of an actor a call is meant for: unit and property tests.

What    Calls, starts and ends in every order that three channels can bring them in.
Caller  pytest.
Never   starts a process.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zray.actors.lives import Lives
from zray.actors.work import ActorCall, ActorEnd, ActorStart

ACTOR = b"a" * 16
CALLER = b"c" * 8


@dataclass
class Actor:
    """One life."""

    incarnation: int
    actor: bytes = ACTOR
    ran: list[int] = field(default_factory=list)


def call(number: int, incarnation: int) -> ActorCall:
    return ActorCall(CALLER, [ACTOR, number, "m", 1, b""], incarnation)


def start(incarnation: int) -> ActorStart:
    return ActorStart([ACTOR, incarnation, b"", {}, b"", [CALLER, ""]])


def end(incarnation: int, *, killed: bool = True) -> ActorEnd:
    return ActorEnd(ACTOR, incarnation, killed=killed)


@pytest.fixture
def lives() -> Lives[Actor]:
    return Lives()


def numbers(calls: list[ActorCall] | None) -> list[int]:
    assert calls is not None
    return [each.number for each in calls]


def test_calls_that_come_before_their_actor_are_its_first(lives: Lives[Actor]) -> None:
    assert lives.of(call(1, 0)) is None
    assert lives.of(call(2, 0)) is None
    assert numbers(lives.waiting()) == [1, 2]
    actor = Actor(0)
    assert lives.may_begin(start(0))
    assert numbers(lives.begin(actor)) == [1, 2]
    assert lives.of(call(3, 0)) is actor
    assert lives.waiting() == []


def test_a_call_sent_again_for_the_next_life_waits_though_it_came_before_the_kill(
    lives: Lives[Actor],
) -> None:
    """Found by simulation (several nodes, seed 40107): it was dropped with those of the old."""
    first = Actor(0)
    lives.begin(first)
    assert lives.meant_by(end(0)) is first
    lives.over(first, b"killed")
    assert lives.of(call(1, 0)) is None
    assert lives.of(call(1, 1)) is None
    assert numbers(lives.waiting()) == [1]
    assert numbers(lives.begin(Actor(1))) == [1]
    assert lives.cause(ACTOR) == b""


def test_a_call_for_the_next_life_never_runs_in_this_one(lives: Lives[Actor]) -> None:
    first = Actor(0)
    lives.begin(first)
    assert lives.of(call(2, 1)) is None
    assert lives.of(call(1, 0)) is first
    lives.over(first, b"why")
    assert lives.cause(ACTOR) == b"why"
    second = Actor(1)
    assert numbers(lives.begin(second)) == [2]
    assert lives.of(call(3, 0)) is None
    assert lives.of(call(3, 1)) is second


def test_a_life_killed_before_it_begins_does_not_begin(lives: Lives[Actor]) -> None:
    lives.of(call(1, 0))
    lives.of(call(2, 1))
    assert lives.meant_by(end(0)) is None
    assert not lives.may_begin(start(0))
    assert numbers(lives.waiting()) == [2], "the one for the life that never was is let go"
    assert lives.may_begin(start(1))
    assert numbers(lives.begin(Actor(1))) == [2]


def test_a_life_killed_while_it_begins_ends_at_once(lives: Lives[Actor]) -> None:
    assert lives.may_begin(start(0))
    assert lives.meant_by(end(0)) is None
    assert lives.begin(Actor(0)) is None
    assert not lives.here


def test_an_actor_that_ends_with_its_worker_is_still_found(lives: Lives[Actor]) -> None:
    actor = Actor(0)
    lives.begin(actor)
    assert lives.meant_by(end(0, killed=False)) is actor
    lives.over(actor, b"", stays=True)
    assert lives.of(call(1, 0)) is actor


@given(st.data())
def test_each_life_runs_what_was_meant_for_it_in_order_whatever_overtakes_what(data: Any) -> None:
    """Three streams, each in order: calls of a caller, starts of the node, kills."""
    count = data.draw(st.integers(1, 4))
    sent = [sorted(data.draw(st.lists(st.integers(0, 9), max_size=4))) for _ in range(count)]
    calls = [call(each, life) for life, each_of in enumerate(sent) for each in each_of]
    starts = [start(life) for life in range(count)]
    ends = [end(life) for life in range(count - 1)]
    lives: Lives[Actor] = Lives()
    began: dict[int, Actor] = {}
    while calls or starts or ends:
        # A life is started when the one before it has been told to end, never earlier.
        ready = [each for each in (calls, starts, ends) if each]
        item: Any = data.draw(st.sampled_from(ready)).pop(0)
        if isinstance(item, ActorCall):
            actor = lives.of(item)
            if actor is not None:
                assert actor.incarnation == item.incarnation
                actor.ran.append(item.number)
        elif isinstance(item, ActorStart):
            if lives.may_begin(item):
                actor = began[item.incarnation] = Actor(item.incarnation)
                actor.ran += numbers(lives.begin(actor))
        else:
            meant = lives.meant_by(item)
            if meant is not None:
                lives.over(meant, b"")
    assert lives.waiting() == [], "nothing waits for a life that is over"
    last = began[count - 1]
    assert last.ran == sent[-1], "what was meant for the life that goes on has run, in order"
    for life, actor in began.items():
        assert actor.ran == sent[life][: len(actor.ran)]
