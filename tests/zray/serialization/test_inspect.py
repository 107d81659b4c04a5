"""Inspection: the innermost member at fault is named, wherever it hides.

What    inspect_serializability and culprits.
Never   starts a process.
"""

from __future__ import annotations

import io
import threading
from typing import Any

import pytest

from zray.serialization.inspect import culprits, inspect_serializability

LOCK = threading.Lock()


class Holder:
    __slots__ = ("inner",)

    def __init__(self, inner: Any) -> None:
        self.inner = inner


class Node:
    def __init__(self) -> None:
        self.good = 1
        self.bad = LOCK

    def method(self) -> None:
        """Do nothing."""


def captures() -> Any:
    lock = LOCK
    return lambda: lock


def uses_global() -> Any:
    return LOCK


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (LOCK, "v"),
        ([1, LOCK], "v[1]"),
        ({"a": {"b": LOCK}}, "v['a']['b']"),
        (Holder([Node()]), "v.inner[0].bad"),
        (captures(), "v (captured variable lock)"),
        (Node().method, "v.__self__.bad"),
        (ValueError(LOCK), "v.args[0]"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_innermost_culprit_is_named(value: Any, path: str) -> None:
    assert culprits(value, "v") == [path]


def test_a_global_that_a_function_by_value_uses_is_named() -> None:
    function = eval("lambda: LOCK", {"LOCK": LOCK})
    assert culprits(function, "f") == ["f (global variable LOCK)"]


def test_a_value_that_refers_to_itself_ends_the_search() -> None:
    loop: dict[str, Any] = {"lock": LOCK}
    loop["self"] = loop
    assert culprits(loop, "v") == ["v['lock']"]


def test_the_report_says_what_is_at_fault_and_what_to_do() -> None:
    file = io.StringIO()
    fine, failures = inspect_serializability(Node(), name="node", print_file=file)
    assert not fine
    (failure,) = failures
    assert (failure.obj, failure.name) == (LOCK, "node.bad")
    assert isinstance(failure.parent, Node)
    assert "node.bad: lock" in file.getvalue()
    assert "register_serializer" in file.getvalue()


def test_what_can_be_pickled_is_reported_as_such(capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect_serializability([1, 2], name="numbers") == (True, set())
    assert capsys.readouterr().out == "numbers can be pickled.\n"


def test_depth_bounds_the_search() -> None:
    assert culprits([[[LOCK]]], "v", depth=2) == ["v[0][0]"]
