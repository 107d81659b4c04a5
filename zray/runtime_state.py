"""What a process says of itself when its node asks: what runs, what waits for what, its stacks.

What    install() has the thread that answers the node's lifeline answer STATE_WANTED. What a
        thread waits for and what it runs is read from its frames, so that neither a call nor a
        wait costs anything for it. A worker adds what it runs (actors/running.py).
Caller  zray/api.py (driver), actors/host.py (worker).
Never   runs user code, or waits for a thread that does: a process whose user code hangs answers.
"""

from __future__ import annotations

import linecache
import os
import sys
import threading
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

from zray import errors
from zray.client import Client
from zray.protocol import frames, messages
from zray.protocol.limits import PROCESS_STATE_BYTES_MAX
from zray.runtime import Runtime
from zray.session import account
from zray.session.session import Watch

ROWS_MAX = 1000
"""Of each kind of thing that waits or runs here, so many are named."""

_FRAMES_MAX = 30
_AWAIT_KEYS = Runtime.await_keys.__code__
_WAIT_UNTIL = Client.wait_until.__code__
"""The frames that a thread waits in."""
_PACKAGE = os.path.dirname(os.path.abspath(errors.__file__)) + os.sep
_STARTERS = (_PACKAGE, "<frozen", os.path.abspath(threading.__file__))

Details = Callable[[dict[int, FrameType], bool], dict[str, Any]]
"""What a worker adds: given the frames of all threads and whether stacks are wanted."""


def install(runtime: Runtime, details: Details | None = None) -> None:
    """Answer STATE_WANTED from here on.

    Args:
        runtime: of this process.
        details: what else there is to say.
    """

    def answer(message: list[Any]) -> None:
        question, about = message[3:5]
        try:
            state = bounded(state_of(runtime, about, details))
        except Exception as error:  # The thread that hears of the node's end must go on.
            state = {"pid": os.getpid(), "error": f"{type(error).__name__}: {error}"}
        runtime.call(messages.STATE, question, state)

    runtime.lifeline_rules[messages.STATE_WANTED] = answer


def state_of(runtime: Runtime, about: bytes | None, details: Details | None) -> dict[str, Any]:
    """Return what this process has to say.

    Args:
        runtime: of this process.
        about: None: what runs and waits. b"": stacks as well. An id of 16 bytes: what is known of
            that as well.
        details: of a worker.
    """
    threads = sys._current_frames()
    threads.pop(threading.get_ident(), None)
    found: dict[str, Any] = {"pid": os.getpid()}
    if details is not None:
        found.update(details(threads, about is not None))
    with runtime.lock:
        found["held"] = account.held(runtime.session, ROWS_MAX)
        if about:
            found["about"] = account.about(runtime.session, about)
    if about is not None:
        found["threads"] = _threads(runtime, threads)
        with runtime.lock:
            found["awaited"] = account.ids_of(runtime.session, runtime.session.callbacks)
    return found


def _threads(runtime: Runtime, threads: dict[int, FrameType]) -> list[dict[str, Any]]:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    rows = []
    for ident, frame in threads.items():
        name = names.get(ident, "")
        if not name.startswith("zray-") or is_user_code(frame):
            waits = awaited(runtime, frame)
            rows.append({"name": name, "stack": stack_of(frame), "waits_for": waits})
    return rows[:ROWS_MAX]


def is_user_code(frame: FrameType | None) -> bool:
    """Return whether a frame outside of zray and the standard library's threads is below this."""
    while frame is not None:
        if not _is_ours(frame.f_code):
            return True
        frame = frame.f_back
    return False


def _is_ours(code: CodeType) -> bool:
    """Return whether this is zray's code, or what starts a process or a thread."""
    return code.co_filename.startswith(_STARTERS)


# -- what a thread waits for -----------------------------------------------------------------------


def awaited(runtime: Runtime, frame: FrameType | None) -> list[bytes]:
    """Return the ids of what a thread waits for in get, wait or a generator; [] where it runs."""
    found: list[Any] = []
    while frame is not None:
        if frame.f_code is _AWAIT_KEYS:
            # The keys that have come are passed over: the wait itself knows the first one alone.
            found = [key for key in frame.f_locals["keys"] if not runtime.is_ready(key)]
            break
        if frame.f_code is _WAIT_UNTIL:
            found = _keys_of(runtime, frame)
            if len(found) != 1 or frame.f_locals["only"] is not None:
                break
        frame = frame.f_back
    with runtime.lock:
        return account.ids_of(runtime.session, found)


def _keys_of(runtime: Runtime, frame: FrameType) -> list[Any]:
    first, ready = frame.f_locals["first"], frame.f_locals["ready"]
    if first is not None:
        return [first]
    bound = getattr(ready, "func", ready)
    owner = getattr(bound, "__self__", None)
    if isinstance(owner, Watch):
        with runtime.lock:
            return list(owner.keys)
    stream = getattr(owner, "_stream", None)
    return [] if stream is None else [stream.number]


# -- stacks ----------------------------------------------------------------------------------------


def stack_of(frame: FrameType | None) -> list[str]:
    """Return the frames of a thread as lines of text, the innermost last.

    What zray called on the way to user code is left out, and what it does below it too, but for
    the function that user code has called.
    """
    below: list[FrameType] = []
    while frame is not None:
        below.append(frame)
        frame = frame.f_back
    below.reverse()
    ours = [_is_ours(each.f_code) for each in below]
    if not all(ours):
        first = ours.index(False)
        last = len(ours) - 1 - ours[::-1].index(False)
        below = below[first : last + 2]
    return [_line(each) for each in below[-_FRAMES_MAX:]]


def _line(frame: FrameType) -> str:
    code = frame.f_code
    source = linecache.getline(code.co_filename, frame.f_lineno).strip()
    where = f'File "{code.co_filename}", line {frame.f_lineno}, in {code.co_name}'
    return f"{where}: {source}" if source else where


def bounded(state: dict[str, Any]) -> dict[str, Any]:
    """Return as much of what is to be said as one message may have, the stacks going first."""
    for cut in (None, "threads", "queued", "held", "running"):
        if cut is not None:
            state = {**state, cut: state.get(cut, [])[:20] if cut != "threads" else []}
        if len(frames.pack(messages.STATE, 0, state)) <= PROCESS_STATE_BYTES_MAX:
            return state
    return {"pid": state["pid"]}
