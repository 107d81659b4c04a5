"""Threaded actors: how many calls run at once, in which order, and what a kill leaves.

What    Threads with real threads and a runner that executes by holding a call until the test lets
        it go on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from tests.actors.fakes import CALLER, OTHER
from tests.waiting import wait_until
from zray.actors import context, threads
from zray.actors.context import Execution
from zray.actors.instance import Instance
from zray.actors.threads import Threads
from zray.actors.work import ActorCall, ActorStart

DETAILS = {
    **{"concurrency": 2, "groups": {"narrow": 1}, "resources": {}, "gpus": [], "name": None},
    **{"class": "Actor", "methods": {}, "pending": -1},
}


class Methods:
    """The actor: its methods are looked up, and run by the runner of the test."""

    def work(self) -> None: ...


class Runner:
    """Executes a call by holding it until it is let go on, and notes all it is told."""

    def __init__(self) -> None:
        self.began: list[int] = []
        self.gates: dict[int, threading.Event] = {}
        self.executed_in: dict[int, int] = {}
        self.seen: dict[int, Execution | None] = {}
        self.errors: list[BaseException] = []
        self.ended = 0
        self.cancelled: dict[int, bool] = {}
        self.flushed = self.lingered = 0
        self.after: list[Execution | None] = []
        outbound = SimpleNamespace(unsent=False)
        self.host = SimpleNamespace(
            outbound=outbound,
            runtime=SimpleNamespace(flush=self._flush),
            linger=self._linger,
        )

    def _flush(self) -> None:
        self.flushed += 1
        self.after.append(context.current())

    def _linger(self) -> None:
        self.lingered += 1
        self.after.append(context.current())

    def was_cancelled(self, call: ActorCall) -> bool:
        return self.cancelled.pop(call.number, False)

    def execute(self, _instance: Instance, call: ActorCall, execution: Execution) -> None:
        number = call.number
        self.executed_in[number] = threading.get_ident()
        self.seen[number] = context.current()
        assert (execution.client, execution.number) == (call.client, number)
        self.began.append(number)
        assert self.gates.setdefault(number, threading.Event()).wait(20)

    def failed(
        self, _instance: Instance, _call: ActorCall, _running: Any, _label: str, error: Any
    ) -> None:
        self.errors.append(error)

    def call_ended(self, _instance: Instance) -> None:
        self.ended += 1

    def let_go(self, *numbers: int) -> None:
        for number in numbers:
            self.gates.setdefault(number, threading.Event()).set()

    def await_begun(self, *numbers: int) -> None:
        wait_until(lambda: sorted(self.began) == sorted(numbers), what=f"{numbers} to run")

    def await_ended(self, count: int) -> None:
        wait_until(lambda: self.ended == count, what=f"the end of {count} calls")


@pytest.fixture
def runner() -> Iterator[Any]:
    made = Runner()
    yield made
    made.let_go(*range(20))


@pytest.fixture
def pool(runner, monkeypatch) -> Iterator[Any]:
    monkeypatch.setattr(threads, "_IDLE_S", 0.2)
    before = set(threading.enumerate())
    yield Threads(runner)
    runner.let_go(*range(20))
    wait_until(lambda: set(threading.enumerate()) <= before, what="the end of idle threads")


@pytest.fixture
def instance() -> Instance:
    made = Instance(ActorStart([b"actor", 0, b"class", DETAILS, b"", (CALLER, "")]))
    made.value = Methods()
    return made


@pytest.fixture
def submit(pool, instance) -> Callable[..., ActorCall]:
    def submit(number: int, method: str = "work", client: bytes = CALLER) -> ActorCall:
        call = ActorCall(client, [b"actor", number, method, 1, b""], 0)
        pool.submit(instance, call)
        return call

    return submit


def test_as_many_calls_run_as_the_group_allows_and_the_others_in_order(runner, pool, submit):
    for number in range(1, 6):
        submit(number)
    runner.await_begun(1, 2)
    assert pool.busy == 2
    for number in range(1, 5):
        assert sorted(runner.began) == list(range(1, min(number + 1, 5) + 1))
        runner.let_go(number)
        runner.await_begun(*range(1, min(number + 2, 5) + 1))
    runner.let_go(5)
    runner.await_ended(5)
    assert pool.busy == 0


def test_a_group_that_is_full_does_not_hold_up_another(runner, submit):
    submit(1, "work@narrow")
    submit(2, "work@narrow")
    submit(3)
    submit(4)
    runner.await_begun(1, 3, 4)
    runner.let_go(1)
    runner.await_begun(1, 2, 3, 4)


def test_a_group_has_room_again_when_its_calls_have_ended(runner, submit):
    for round_ in range(3):
        submit(round_, "work@narrow")
        runner.let_go(round_)
        runner.await_ended(round_ + 1)
    assert runner.began == [0, 1, 2]


def test_an_idle_thread_runs_the_next_call_of_any_group(runner, pool, submit):
    submit(1)
    runner.let_go(1)
    wait_until(lambda: pool._idle)
    submit(2, "work@narrow")
    runner.await_begun(1, 2)
    assert runner.executed_in[1] == runner.executed_in[2]


def test_threads_end_when_they_are_idle_and_later_calls_get_new_ones(runner, pool, submit):
    submit(1)
    runner.let_go(1)
    runner.await_ended(1)
    wait_until(lambda: not any(each.name == "zray-method" for each in threading.enumerate()))
    assert pool._idle == []
    submit(2)
    runner.await_begun(1, 2)


def test_a_call_handed_to_a_thread_that_is_about_to_end_runs(runner, pool, submit, monkeypatch):
    """Its time is over, and it has been taken from the idle ones in the same moment."""

    class Late(threads.queue.SimpleQueue):
        def get(self, block=True, timeout=None):
            if timeout is not None and not runner.gates.get(2):
                submit(2)  # Before the thread looks whether it is still among the idle.
                raise threads.queue.Empty
            return super().get(block, timeout)

    monkeypatch.setattr(threads.queue, "SimpleQueue", Late)
    runner.let_go(1)
    submit(1)
    wait_until(lambda: 2 in runner.began)
    assert runner.executed_in[1] == runner.executed_in[2]
    runner.let_go(2)
    runner.await_ended(2)


def test_what_runs_is_the_context_of_its_thread(runner, submit):
    submit(1)
    submit(2, client=OTHER)
    runner.await_begun(1, 2)
    found = {number: (run.client, run.number) for number, run in runner.seen.items()}
    assert found == {1: (CALLER, 1), 2: (OTHER, 2)}
    assert context.current() is None
    runner.let_go(1, 2)
    runner.await_ended(2)
    assert runner.after == [None, None], "an idle thread keeps nothing of what it ran"


def test_a_method_that_does_not_exist_fails_its_call_and_takes_no_room(runner, pool, submit):
    for number in range(3):
        submit(number, "no_such_method")
    assert [type(error) for error in runner.errors] == [AttributeError] * 3
    assert runner.ended == 3
    submit(4)
    submit(5)
    runner.await_begun(4, 5)


def test_results_leave_at_once_where_nothing_of_the_group_waits(runner, submit):
    runner.host.outbound.unsent = True
    for number in (1, 2):
        submit(number, "work@narrow")
    runner.await_begun(1)
    runner.let_go(1)
    runner.await_begun(1, 2)
    assert (runner.flushed, runner.lingered) == (0, 1)
    runner.let_go(2)
    runner.await_ended(2)
    assert (runner.flushed, runner.lingered) == (1, 1)


# -- cancel, kill ----------------------------------------------------------------------------------


def test_a_cancel_marks_the_call_that_runs(runner, pool, submit):
    submit(1)
    submit(1, client=OTHER)
    runner.await_begun(1, 1)
    execution = pool.cancel(OTHER, 1)
    assert execution.is_cancelled
    assert execution.client == OTHER
    assert pool.cancel(CALLER, 2) is None
    runner.let_go(1)
    runner.await_ended(2)
    assert pool.cancel(OTHER, 1) is None, "it has ended"


def test_a_call_is_found_as_long_as_it_waits(runner, pool, submit):
    submit(1, "work@narrow")
    waiting = submit(2, "work@narrow")
    assert pool.find_waiting(CALLER, 2) is waiting
    assert pool.find_waiting(OTHER, 2) is None
    assert pool.find_waiting(CALLER, 1) is None, "it runs"
    runner.let_go(1)
    runner.await_begun(1, 2)
    assert pool.find_waiting(CALLER, 2) is None


def test_a_cancelled_call_does_not_begin_and_makes_room(runner, submit):
    submit(1, "work@narrow")
    submit(2, "work@narrow")
    submit(3, "work@narrow")
    runner.cancelled[2] = True
    runner.let_go(1)
    runner.await_begun(1, 3)
    assert runner.ended == 2


def test_calls_of_an_actor_that_has_ended_do_not_begin(runner, instance, submit):
    submit(1, "work@narrow")
    submit(2, "work@narrow")
    runner.await_begun(1)
    instance.ended = True
    runner.let_go(1)
    runner.await_ended(2)
    assert runner.began == [1]


def test_a_killed_actor_leaves_no_call_waiting(runner, pool, instance, submit):
    for number in (1, 2, 3):
        submit(number, "work@narrow")
    runner.await_begun(1)
    pool.abandon(instance)
    assert pool.find_waiting(CALLER, 2) is None
    runner.let_go(1)
    runner.await_ended(1)
    submit(4, "work@narrow")
    runner.await_begun(1, 4)
