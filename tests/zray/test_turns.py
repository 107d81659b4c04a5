"""Threads that wait while another one reads: who is woken by what.

What    Real threads behind Turns; wakes counted.
Caller  pytest.
Never   reads an inbox.
"""

from __future__ import annotations

import threading
from typing import Any

import pytest

from tests.waiting import wait_until
from zray.turns import Turns


class Waiter:
    """A thread behind a gate."""

    def __init__(self, turns: Turns, key: Any, over: bool = False) -> None:
        self.woken = False
        self._turns, self._key, self._over = turns, key, over
        self.thread = threading.Thread(target=self._wait, daemon=True)
        before = len(turns)
        self.thread.start()
        wait_until(lambda: over or len(turns) == before + 1)

    def _wait(self) -> None:
        self._turns.wait(self._key, 20.0, lambda: self._over)
        self.woken = True


@pytest.fixture
def turns() -> Turns:
    return Turns()


def test_news_wake_whom_they_concern_and_who_waits_for_anything(turns: Turns) -> None:
    one, two, any_ = Waiter(turns, 1), Waiter(turns, 2), Waiter(turns, None)
    turns.news({1: b"here"})
    wait_until(lambda: one.woken and any_.woken)
    assert not two.woken
    assert len(turns) == 1
    turns.wake_all()
    wait_until(lambda: two.woken)


def test_who_has_waited_longest_reads_next(turns: Turns) -> None:
    first, second = Waiter(turns, 1), Waiter(turns, 2)
    turns.pass_on()
    wait_until(lambda: first.woken)
    assert not second.woken
    turns.pass_on()
    wait_until(lambda: second.woken)
    turns.pass_on()  # Nobody is left: nothing to do.
    assert not len(turns)


def test_nobody_waits_for_what_is_over(turns: Turns) -> None:
    waiter = Waiter(turns, 1, over=True)
    wait_until(lambda: waiter.woken)
    assert not len(turns)


def test_a_wait_ends_with_its_time(turns: Turns) -> None:
    turns.wait(1, 0.01, lambda: False)
    assert not len(turns)
