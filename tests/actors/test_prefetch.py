"""Arguments of tasks that wait, asked for ahead.

What    Whom Prefetch asks for what, once; what it lets go when a task has run or was taken back.
Caller  pytest.
Never   starts a node.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

from zray.actors.prefetch import Prefetch
from zray.protocol import outcome
from zray.protocol.purposes import Purpose

CALLER = b"callcall"


class References:
    def __init__(self) -> None:
        self.held: list[bytes] = []

    def key_of(self, identity: bytes) -> bytes:
        return identity

    def restore(self, key: bytes) -> None:
        self.held.append(key)


class Runtime:
    """What Prefetch sees of a runtime."""

    def __init__(self) -> None:
        self.session = self
        self.references = References()
        self.lock = threading.Lock()
        self.garbage: deque[bytes] = deque()
        self.asked: list[tuple[list[bytes], int]] = []
        self.flushes = 0

    def locate(self, keys: list[bytes], purpose: int) -> None:
        self.asked.append((keys, purpose))

    def flush(self) -> None:
        self.flushes += 1


def _call(*objects: bytes) -> bytes:
    filled = {at: (each, outcome.ELSEWHERE_OUTCOME) for at, each in enumerate(objects)}
    return outcome.arguments(b"", filled)


def _made() -> tuple[Any, Any]:
    runtime: Any = Runtime()
    return Prefetch(runtime), runtime


def test_what_is_elsewhere_is_asked_for_once_and_least_urgently() -> None:
    prefetch, runtime = _made()
    ahead = [((CALLER, 1), _call(b"a" * 16, b"b" * 16)), ((CALLER, 2), b"\x80plain")]
    prefetch.ask(ahead)
    prefetch.ask(ahead)
    assert runtime.asked == [([b"a" * 16, b"b" * 16], Purpose.PREFETCH)]
    assert runtime.references.held == [b"a" * 16, b"b" * 16]
    assert runtime.flushes == 1


def test_what_has_run_or_was_taken_back_is_let_go() -> None:
    prefetch, runtime = _made()
    prefetch.ask([((CALLER, 1), _call(b"a" * 16)), ((CALLER, 2), _call(b"b" * 16))])
    prefetch.drop((CALLER, 1))
    assert list(runtime.garbage) == [b"a" * 16]
    prefetch.ask([((CALLER, 3), _call(b"c" * 16))])
    assert list(runtime.garbage) == [b"a" * 16, b"b" * 16]
    prefetch.clear()
    assert list(runtime.garbage) == [b"a" * 16, b"b" * 16, b"c" * 16]
    assert not prefetch.held
