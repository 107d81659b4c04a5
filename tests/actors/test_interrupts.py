"""Interrupts: raised in the user's code of the task that is meant, and nowhere else.

What    Real signals in this thread, and the handler called with the frames of prepared stacks.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import CodeType, FrameType
from typing import Any

import pytest

from tests.actors.fakes import CALLER, OTHER, FakeRuntime
from tests.waiting import wait_until
from zray.actors import interrupts
from zray.actors.context import Execution, Place
from zray.actors.interrupts import END, Interrupts, advance, gather, invoke, invoke_each

TASK, DEADLINE_S = 7, 10.0


@pytest.fixture
def runtime() -> Any:
    return FakeRuntime()


@pytest.fixture
def woken() -> list[int]:
    """Return what is appended to whenever the main thread's wait is ended."""
    return []


@pytest.fixture
def installed(runtime, woken) -> Iterator[Interrupts]:
    before = signal.getsignal(signal.SIGUSR2)
    made = Interrupts(runtime, lambda: woken.append(1))
    made.install()
    yield made
    made.running = None
    wait_until(lambda: made._wanted is None)
    wait_until(lambda: not [t for t in threading.enumerate() if t.name == "zray-interrupt"])
    signal.signal(signal.SIGUSR2, before)


@pytest.fixture
def quiet(runtime, monkeypatch) -> Interrupts:
    """Return interrupts whose insisting thread does nothing: the test calls the handler."""
    monkeypatch.setattr(Interrupts, "_insist", lambda *_: None)
    return Interrupts(runtime, lambda: None)


def execution(number: int = TASK) -> Execution:
    return Execution(CALLER, number, "f", Place({}, []))


def loop_until(flag: list[Any]) -> str:
    """Be a user's task: bytecode without an end, until there is something in the list."""
    deadline = time.monotonic() + DEADLINE_S
    while not flag and time.monotonic() < deadline:
        pass
    return "ended by itself"


def in_zray(source: str) -> CodeType:
    """Compile a function body as if it stood in zray's own package."""
    return compile(source, interrupts._PACKAGE + "client.py", "exec")


# -- real signals ----------------------------------------------------------------------------------


def test_a_task_in_its_own_code_is_interrupted(installed, runtime, woken):
    installed.running = running = execution()

    def task() -> str:
        assert installed.request(CALLER, TASK) is running
        return loop_until([])

    with pytest.raises(KeyboardInterrupt):
        invoke(task, (), {})
    assert running.is_cancelled
    assert woken, "it may have been waiting for a message"


def test_zrays_own_code_goes_on_and_the_user_is_interrupted_behind_it(installed):
    installed.running = execution()
    state: dict[str, Any] = {"time": time, "woken": installed._wake_main, "steps": 0}
    exec(
        in_zray(
            "def critical():\n"
            "    global steps\n"
            "    until = time.monotonic() + 0.1\n"
            "    while time.monotonic() < until:\n"
            "        steps += 1\n"
            "    return 'whole'\n"
        ),
        state,
    )
    found: list[str] = []

    def task() -> None:
        installed.request(CALLER, TASK)
        found.append(state["critical"]())
        loop_until([])

    with pytest.raises(KeyboardInterrupt):
        invoke(task, (), {})
    assert found == ["whole"]
    assert state["steps"] > 0


def test_a_task_that_ends_first_takes_the_interrupt_with_it(installed, runtime):
    installed.running = execution()
    # Outside of a door no signal raises: it is as if the task ended before the first one came.
    installed.request(CALLER, TASK)
    installed.running = execution(TASK + 1)
    wait_until(lambda: runtime.check_interrupt is None, what="the end of the insisting thread")
    flag: list[int] = []
    threading.Timer(0.05, flag.append, (1,)).start()
    assert invoke(loop_until, (flag,), {}) == "ended by itself"


def test_two_tasks_are_interrupted_one_after_the_other(installed):
    for number in (TASK, TASK + 1):
        installed.running = execution(number)

        def task(number: int = number) -> None:
            assert installed.request(CALLER, number)
            loop_until([])

        with pytest.raises(KeyboardInterrupt):
            invoke(task, (), {})


# -- who is meant ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("client", "number"), [(OTHER, TASK), (CALLER, TASK + 1)], ids=["caller", "number"]
)
def test_a_request_for_another_task_does_nothing(quiet, runtime, client, number):
    quiet.running = execution()
    assert quiet.request(client, number) is None
    assert runtime.check_interrupt is None
    assert not quiet.running.is_cancelled


def test_a_request_where_nothing_runs_does_nothing(quiet, runtime):
    assert quiet.request(CALLER, TASK) is None
    assert runtime.check_interrupt is None


def test_in_a_map_the_item_that_runs_is_meant(quiet):
    quiet.running = execution(100)
    quiet.running.values = ["a", "b"]
    assert quiet.request(CALLER, 100) is None
    assert quiet.request(CALLER, 102) is quiet.running
    quiet.running.values.append("c")
    assert raised_in(quiet, invoke) is False, "the next item is not the one that was meant"


# -- where it raises -------------------------------------------------------------------------------


def raised_by(interrupts_: Interrupts, frame: FrameType | None) -> bool:
    """Return whether the handler raises when the signal comes in this frame."""
    try:
        interrupts_._on_signal(signal.SIGUSR2, frame)
    except KeyboardInterrupt:
        return True
    return False


def raised_in(interrupts_: Interrupts, door: Any) -> bool:
    """Return whether the handler raises in a user's frame below a door."""
    frames: list[FrameType] = []

    def users(*_: object) -> int:
        frames.append(sys._getframe())
        return 1

    if door is invoke:
        invoke(users, (), {})
    elif door is invoke_each:
        invoke_each(users, [1], lambda _value: None)
    else:
        door(map(users, [1]))
    return raised_by(interrupts_, frames[0])


@pytest.mark.parametrize("door", [invoke, invoke_each, advance, gather])
def test_user_code_is_interrupted_behind_each_door(quiet, door):
    quiet.running = execution()
    quiet.request(CALLER, TASK)
    assert raised_in(quiet, door)
    assert not raised_in(quiet, door), "once"


def test_without_a_request_a_signal_does_nothing(quiet):
    quiet.running = execution()
    assert not raised_in(quiet, invoke)


def test_frames_that_no_door_is_above_of_are_not_the_users(quiet):
    quiet.running = execution()
    quiet.request(CALLER, TASK)
    assert not raised_by(quiet, sys._getframe())
    assert not raised_by(quiet, None)


def test_a_callback_of_zrays_code_is_not_interrupted(quiet):
    """A user's __reduce__ called while zray pickles: an exception there leaves zray half done."""
    quiet.running = execution()
    quiet.request(CALLER, TASK)
    frames: list[FrameType] = []
    state: dict[str, Any] = {"users": lambda: frames.append(sys._getframe())}
    exec(in_zray("def pickle():\n    users()\n"), state)
    invoke(state["pickle"], (), {})
    assert not raised_by(quiet, frames[0])


# -- waits -----------------------------------------------------------------------------------------


def test_a_wait_of_the_main_thread_raises_once(quiet, runtime):
    quiet.running = execution()
    quiet.request(CALLER, TASK)
    with pytest.raises(KeyboardInterrupt):
        runtime.check_interrupt()
    runtime.check_interrupt()


def test_a_wait_of_another_thread_does_not_raise(quiet, runtime):
    quiet.running = execution()
    quiet.request(CALLER, TASK)
    failures: list[BaseException] = []

    def wait() -> None:
        try:
            runtime.check_interrupt()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    thread.join()
    assert failures == []
    with pytest.raises(KeyboardInterrupt):
        runtime.check_interrupt()


# -- the doors themselves --------------------------------------------------------------------------


def test_doors_do_what_they_are_named_for():
    assert invoke(lambda x, y: x - y, (5,), {"y": 3}) == 2
    found: list[int] = []
    invoke_each(lambda x: x + 1, [1, 2], found.append)
    assert found == [2, 3]
    iterator = iter([1])
    assert advance(iterator) == 1
    assert advance(iterator) is END
    assert gather(x for x in (1, 2)) == (1, 2)
