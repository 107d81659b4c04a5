"""What runs now, what it has submitted, and what a recursive cancel reaches.

What    Execution, current(), note_child() and cancel_children() on a real session.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextvars import copy_context
from typing import Any

import pytest

from tests.actors.fakes import CALLER, FakeRuntime
from zray.actors import context
from zray.actors.context import Execution, Place
from zray.protocol.ids import object_id
from zray.session.tasks import TaskClass

DONE = b"\x80done"


def execution(number: int = 7) -> Execution:
    return Execution(CALLER, number, "f", Place({}, []))


@pytest.fixture
def runtime() -> Any:
    return FakeRuntime()


@pytest.fixture
def function(runtime) -> TaskClass:
    return runtime.session.tasks.declare(
        [b"f", "f", {}, 1, 0, None, 0, {}, 0], shape=(), returns=1, max_retries=0
    )


@pytest.fixture
def running() -> Iterator[Execution]:
    """Return what the main thread runs."""
    context.main = execution()
    yield context.main
    context.main = None


# -- what runs -------------------------------------------------------------------------------------


def test_a_range_counts_on_by_the_values_it_has():
    run = execution(100)
    assert run.task_id == object_id(CALLER, 100)
    run.values = ["a", "b"]
    assert run.at() == 102
    assert run.task_id == object_id(CALLER, 102)


def test_only_the_number_that_was_cancelled_is_cancelled():
    run = execution(100)
    run.values = []
    run.cancelled = 101
    assert not run.is_cancelled
    run.values.append("a")
    assert run.is_cancelled
    run.values.append("b")
    assert not run.is_cancelled


def test_nothing_runs_outside_of_tasks():
    assert context.current() is None


def test_another_thread_or_coroutine_has_its_own_execution(running):
    own = execution(8)
    seen: dict[str, Execution | None] = {}

    def method() -> None:
        context.local.set(own)
        seen["inside"] = context.current()

    def look() -> None:
        seen["beside"] = context.current()

    for target in (method, look):
        thread = threading.Thread(target=copy_context().run, args=(target,))
        thread.start()
        thread.join()
    assert seen == {"inside": own, "beside": running}
    assert context.current() is running


# -- children --------------------------------------------------------------------------------------


def test_children_are_noted_at_who_submitted_them(runtime, running):
    for number in (1, 2, -3):
        context.note_child(runtime, number)
    assert running.children == [1, 2, -3]


def test_what_no_task_has_submitted_is_noted_nowhere(runtime):
    context.note_child(runtime, 1)
    assert context.current() is None


def test_children_that_have_ended_are_forgotten_now_and_then(
    runtime, function, running, monkeypatch
):
    monkeypatch.setattr(context, "_CHILDREN_KEPT", 4)
    session = runtime.session
    task = session.tasks.submit(function, b"", None)
    done = session.tasks.submit(function, b"", None)
    session.tasks.close_open()
    batch = session.map_batch(function, b"\x80items", 3, [], None)
    session.results[done] = DONE
    call = session.tasks.take_numbers()
    session.actors.by_number[call] = object()
    never_heard_of = session.tasks.take_numbers()
    for number in (task, done, call):
        context.note_child(runtime, number)
    assert running.children == [task, done, call]
    context.note_child(runtime, -batch.first)
    assert running.children == [task, call, -batch.first]
    context.note_child(runtime, never_heard_of)
    assert running.children == [task, call, -batch.first], "a fifth, and one has ended"


def test_a_map_that_has_ended_is_forgotten(runtime, function, running, monkeypatch):
    monkeypatch.setattr(context, "_CHILDREN_KEPT", 1)
    batch = runtime.session.map_batch(function, b"\x80items", 3, [], None)
    context.note_child(runtime, -batch.first)
    del runtime.session.tasks.batches[batch.first]
    context.note_child(runtime, -batch.first)
    assert running.children == []


def test_every_child_and_each_unfinished_item_of_a_map_is_cancelled(runtime, function):
    session = runtime.session
    task = session.tasks.submit(function, b"", None)
    batch = session.map_batch(function, b"\x80items", 4, [], None)
    batch.done[1] = 1
    context.cancel_children(runtime, [task, -batch.first, -999])
    assert runtime.cancelled == [
        (task, True),
        *((batch.first + item, True) for item in (0, 2, 3)),
    ]


def test_who_has_submitted_nothing_has_nothing_cancelled(runtime):
    context.cancel_children(runtime, None)
    assert runtime.cancelled == []
