"""Exported code: runs where it is loaded, is named by its content, says what it captures.

What    export and load.
Never   starts a process.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
from typing import Any

import pytest

from zray.errors import SerializationError
from zray.serialization import collector, functions


class Ref:
    """Stands for ObjectRef."""

    def __reduce__(self) -> tuple[Any, ...]:
        collector.note(self)
        return Ref, ()


def test_a_closure_runs_where_it_is_loaded() -> None:
    factor = 3
    identity, data, refs = functions.export(lambda x: x * factor)
    assert (len(identity), refs) == (16, [])
    assert functions.load(data)(14) == 42


def test_equal_bytes_have_equal_ids_and_others_do_not() -> None:
    def make(number: int) -> Any:
        return lambda: number

    assert functions.export(len)[0] == functions.export(len)[0]
    assert functions.export(make(1))[0] != functions.export(make(2))[0]


def test_refs_in_a_closure_are_reported() -> None:
    ref = Ref()
    assert functions.export(lambda: ref)[2] == [ref]
    assert not collector.open_collectors


def test_a_capture_that_cannot_be_pickled_is_named() -> None:
    lock = threading.Lock()
    with pytest.raises(
        SerializationError, match=r"at fault: .*<lambda> \(captured variable lock\)"
    ):
        functions.export(lambda: lock)


def test_a_large_capture_is_warned_of_and_a_huge_one_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = b"x" * 3_000_000
    monkeypatch.setattr(functions, "FUNCTION_BYTES_WARN", 1 << 20)
    with pytest.warns(UserWarning, match=r"3 MiB .* zray\.put"):
        functions.export(lambda: table)
    monkeypatch.setattr(functions, "FUNCTION_BYTES_MAX", 2 << 20)
    with pytest.raises(SerializationError, match=r"limit is 2 MiB: .* zray\.put"):
        functions.export(lambda: table)


def test_code_that_needs_a_missing_module_says_so() -> None:
    data = pickle.dumps(functions.export, 5).replace(b"functions", b"functionz")
    with pytest.raises(SerializationError, match="functionz"):
        functions.load(data)


def test_a_cached_function_of_main_travels_by_value():
    source = (
        "import functools, sys\n"
        "from zray.serialization import functions\n"
        "@functools.lru_cache\n"
        "def double(x):\n"
        "    return 2 * x\n"
        "sys.stdout.buffer.write(functions.export(double)[1])\n"
    )
    data = subprocess.run([sys.executable, "-c", source], capture_output=True, check=True).stdout
    assert functions.load(data)(21) == 42
