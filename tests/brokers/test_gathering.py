"""Questions put to many at once: pages, deadlines, and who is named as missing.

What    The machine by itself, with times as numbers.
Never   starts a process.
"""

import pytest

from zray.brokers.gathering import Gathered, Gatherings, NextPage
from zray.errors import ClusterError

A, B, C = b"node-a", b"node-b", b"node-c"


@pytest.fixture
def gatherings():
    made = Gatherings(answer_s=2.0, timeout_s=10.0, open_max=3)
    yield made
    made.check()


def done(gatherings):
    commands, gatherings.commands = gatherings.commands, []
    return commands


def test_it_is_over_when_all_have_answered(gatherings):
    number = gatherings.begin([A, B], rows_max=10, now=0.0)
    gatherings.took(number, A, [1, 2], more=False, now=0.1)
    assert not gatherings.commands
    gatherings.took(number, B, [3], more=False, now=0.2)
    assert done(gatherings) == [Gathered(number, {A: [1, 2], B: [3]})]
    assert not gatherings


def test_who_says_nothing_is_named_and_waited_for_no_longer(gatherings):
    number = gatherings.begin([A, B], rows_max=10, now=0.0)
    gatherings.took(number, A, [1], more=False, now=0.1)
    gatherings.tick(1.9)
    assert not gatherings.commands
    gatherings.tick(2.0)
    (found,) = done(gatherings)
    assert found.rows == {A: [1]}
    assert list(found.missing) == [B]
    assert "2 s" in found.missing[B]
    gatherings.took(number, B, [2], more=False, now=2.1)
    assert not gatherings


def test_each_page_is_asked_for_and_has_a_time_of_its_own(gatherings):
    number = gatherings.begin([A], rows_max=10, now=0.0)
    gatherings.took(number, A, [1, 2], more=True, now=1.5)
    assert done(gatherings) == [NextPage(number, A)]
    gatherings.tick(3.4)
    assert not gatherings.commands
    gatherings.took(number, A, [3], more=False, now=3.4)
    assert done(gatherings) == [Gathered(number, {A: [1, 2, 3]})]


def test_pages_without_end_are_cut_by_the_time_of_the_question(gatherings):
    number = gatherings.begin([A], rows_max=1000, now=0.0)
    now = 0.0
    while now < 9.0:
        now += 1.0
        gatherings.took(number, A, [now], more=True, now=now)
    done(gatherings)
    gatherings.tick(10.0)
    (found,) = done(gatherings)
    assert found.rows[A] == [float(at) for at in range(1, 10)]
    assert A in found.missing


def test_no_more_rows_are_kept_or_asked_for_than_were_wanted(gatherings):
    number = gatherings.begin([A, B], rows_max=3, now=0.0)
    gatherings.took(number, A, [1, 2, 3, 4], more=True, now=0.1)
    assert not gatherings.commands, "what is not wanted is not asked for"
    gatherings.took(number, B, [], more=False, now=0.2)
    (found,) = done(gatherings)
    assert found.rows == {A: [1, 2, 3], B: []}
    assert found.is_truncated


def test_a_source_that_is_gone_is_missing_in_every_question(gatherings):
    first = gatherings.begin([A, B], rows_max=10, now=0.0)
    second = gatherings.begin([B], rows_max=10, now=0.0)
    gatherings.source_lost(B, "its cable was cut")
    (over,) = done(gatherings)
    assert over == Gathered(second, missing={B: "its cable was cut"})
    gatherings.failed(first, A, "it does not know the question")
    (over,) = done(gatherings)
    assert set(over.missing) == {A, B}


def test_what_comes_twice_or_from_nobody_asked_changes_nothing(gatherings):
    number = gatherings.begin([A, B], rows_max=10, now=0.0)
    gatherings.took(number, A, [1], more=False, now=0.1)
    gatherings.took(number, A, [1], more=False, now=0.1)
    gatherings.took(number, C, [9], more=False, now=0.1)
    gatherings.took(number + 7, B, [9], more=False, now=0.1)
    gatherings.took(number, B, [2], more=False, now=0.1)
    assert done(gatherings) == [Gathered(number, {A: [1], B: [2]})]


def test_a_question_to_nobody_is_answered(gatherings):
    number = gatherings.begin([], rows_max=10, now=0.0)
    assert done(gatherings) == [Gathered(number)]


def test_too_many_questions_are_refused_until_one_is_over(gatherings):
    numbers = [gatherings.begin([A], rows_max=1, now=0.0) for _ in range(3)]
    with pytest.raises(ClusterError, match="3 questions"):
        gatherings.begin([A], rows_max=1, now=0.0)
    gatherings.took(numbers[0], A, [], more=False, now=0.0)
    gatherings.begin([A], rows_max=1, now=0.0)
