"""What a process says of itself: bounded, and never at the price of the thread that says it.

What    install(), bounded(), stack_of() around a runtime that only keeps what it was told.
Never   opens a socket.
"""

import sys
import threading
from types import SimpleNamespace

from zray.protocol import frames, messages
from zray.protocol.limits import PROCESS_STATE_BYTES_MAX
from zray.runtime_state import bounded, install, is_user_code, stack_of


def asked(session, about=None):
    said = []
    runtime = SimpleNamespace(
        lifeline_rules={},
        lock=threading.RLock(),
        session=session,
        call=lambda *fields: said.append(fields),
    )
    install(runtime)
    runtime.lifeline_rules[messages.STATE_WANTED]([1, messages.STATE_WANTED, 0, 7, about])
    ((kind, question, state),) = said
    assert (kind, question) == (messages.STATE, 7)
    return state


def test_an_account_that_fails_is_said_and_ends_no_thread():
    state = asked(session=None)
    assert "AttributeError" in state["error"]


def test_what_is_said_fits_into_one_message_the_stacks_going_first():
    line = "x" * 1000
    threads = [{"name": "t", "stack": [line] * 30, "waits_for": []}] * 50
    held = [{"task": bytes(16), "name": "f", "actor": b"", "waits_for": []}] * 10
    state = bounded({"pid": 1, "threads": threads, "held": held})
    assert len(frames.pack(messages.STATE, 0, state)) <= PROCESS_STATE_BYTES_MAX
    assert state["threads"] == []
    assert state["held"] == held
    small = {"pid": 1, "threads": threads[:1], "held": held}
    assert bounded(small) == small


def test_a_stack_has_the_lines_of_user_code_innermost_last():
    def inner():
        return sys._getframe()

    frame = inner()
    lines = stack_of(frame)
    assert is_user_code(frame)
    assert "in inner" in lines[-1]
    assert "return sys._getframe()" in lines[-1]
    assert not any("<frozen" in line for line in lines[:1])
