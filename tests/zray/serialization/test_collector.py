"""Collectors: per thread, nesting, and an error where nobody collects.

What    start, stop, collecting and note.
Never   starts a process.
"""

from __future__ import annotations

import threading

import pytest

from zray.errors import SerializationError
from zray.serialization import collector


def test_a_ref_pickled_outside_of_zray_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(SerializationError, match=r"'ref' was pickled outside .* zray\.put"):
        collector.note("ref")


def test_an_inner_collector_hides_the_outer_one_until_it_stops() -> None:
    with collector.collecting() as outer:
        collector.note(1)
        with collector.collecting() as inner:
            collector.note(2)
        collector.note(3)
    assert (outer, inner) == ([1, 3], [2])
    assert not collector.open_collectors


def test_an_error_closes_the_collector() -> None:
    with pytest.raises(KeyError), collector.collecting():
        raise KeyError
    with pytest.raises(SerializationError):
        collector.note(1)


def test_a_collector_is_of_one_thread() -> None:
    refused: list[Exception] = []

    def note_elsewhere() -> None:
        try:
            collector.note(1)
        except SerializationError as error:
            refused.append(error)

    with collector.collecting() as found:
        thread = threading.Thread(target=note_elsewhere)
        thread.start()
        thread.join()
    assert found == []
    assert len(refused) == 1
