"""The load table: newest rows, ended lives, and what was sent before it is reported.

What    Cases by hand, and rows as messages carry them.
Caller  pytest.
Never   decides a placement: that is test_placement.py's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from zray.brokers.load import (
    ALIVE,
    DEAD,
    DRAINING,
    LoadTable,
    NodeLoad,
    estimate_wait_us,
    read_load,
)
from zray.errors import RemoteProtocolError

ONE = 10_000
OWN, A, B = b"own-0000", b"a-000000", b"b-000000"


def row(node: bytes, revision: int = 1, **changes: Any) -> NodeLoad:
    cpus = {"CPU": 4 * ONE}
    return replace(NodeLoad(node, 1, revision, cpus, cpus), **changes)


@pytest.fixture
def table() -> LoadTable:
    made = LoadTable(OWN)
    made.changed_here(row(OWN))
    made.published([row(A), row(B)])
    return made


def test_a_row_survives_the_way_through_a_message():
    sent = row(A, labels={"zone": "x"}, queue_tasks=3, wait_us=70, store_bytes=1, store_bytes_max=9)
    assert read_load(sent.fields()) == sent


def test_owed_cpus_are_published_as_none():
    assert read_load(row(A, available={"CPU": -ONE}).fields()).available == {}


@pytest.mark.parametrize(
    ("position", "wrong"),
    [
        (0, b"short"),
        (1, -1),
        (2, "1"),
        (3, {"CPU": -1}),
        (4, [1]),
        (5, {"zone": 1}),
        (6, True),
        (7, 2**63),
        (10, "WELL"),
    ],
)
def test_a_row_with_a_wrong_field_is_refused(position: int, wrong: object):
    fields = row(A).fields()
    fields[position] = wrong
    with pytest.raises(RemoteProtocolError):
        read_load(fields)
    with pytest.raises(RemoteProtocolError):
        read_load(fields[:-1])


def test_an_older_row_never_replaces_a_newer_one(table: LoadTable):
    table.published([row(A, 5, wait_us=50)])
    table.published([row(A, 4, wait_us=40)])
    assert table.rows[A].wait_us == 50
    table.published([row(A, 1, incarnation=2, wait_us=10)])
    assert table.rows[A].wait_us == 10
    table.check()


def test_the_own_row_comes_from_this_node_alone(table: LoadTable):
    table.published([row(OWN, 99, wait_us=99)])
    assert table.rows[OWN].wait_us == 0
    table.changed_here(row(OWN, 2, wait_us=7))
    assert table.wait_us(OWN, 0.0) == 7


def test_nodes_that_drain_or_died_get_nothing(table: LoadTable):
    table.published([row(A, 2, state=DRAINING)])
    assert table.candidates == [B, OWN]
    table.published([row(B, 2, state=DEAD)])
    assert table.candidates == [OWN]
    assert not table.has_others()
    table.published([row(A, 3, state=ALIVE)])
    assert table.candidates == [A, OWN]
    table.check()


def test_rows_of_an_ended_life_come_too_late_and_a_new_life_is_welcome(table: LoadTable):
    table.sent(A, 5_000, 0.0)
    table.died(A, 1)
    table.published([row(A, 9)])
    assert A not in table.rows
    table.check()
    table.published([row(A, 1, incarnation=2)])
    assert table.work_us(A, 0.0) == 0
    table.died(A, 1)
    assert A in table.rows, "the end of its first life says nothing of its second"
    table.check()


def test_what_was_sent_counts_at_once_and_drains_at_the_speed_of_the_node(table: LoadTable):
    table.sent(A, 8_000, 1.0)
    assert table.wait_us(A, 1.0) == 2_000
    assert table.wait_us(A, 1.001) == pytest.approx(1_000)
    assert table.wait_us(A, 2.0) == 0
    table.sent(A, 8_000, 2.0)
    assert table.work_us(A, 2.0) == 8_000, "what has drained is not counted again"


def test_what_was_sent_is_taken_to_be_in_the_second_report_after_it(table: LoadTable):
    table.sent(A, 8_000, 0.0, {"GPU": 4})
    table.published([row(A, 2, total={"CPU": 4 * ONE, "GPU": 8}, available={"GPU": 8})])
    assert table.work_us(A, 0.0) == 4_000
    assert table.available(A) == {"GPU": 6}
    table.published([row(A, 2)])
    assert table.work_us(A, 0.0) == 4_000, "an old row is no report"
    table.published([row(A, 3)])
    assert table.work_us(A, 0.0) == 0
    table.check()


def test_what_stays_here_is_not_counted_as_sent(table: LoadTable):
    table.sent(OWN, 8_000, 0.0)
    table.sent(b"nobody-0", 8_000, 0.0)
    assert table.work_us(OWN, 0.0) == 0
    table.check()


def test_amounts_that_were_sent_are_not_free_until_they_are_taken_back(table: LoadTable):
    amounts = {"CPU": 3 * ONE}
    assert table.fits_now(A, amounts)
    table.sent(A, 0.0, 0.0, amounts)
    assert not table.fits_now(A, amounts)
    assert table.fits_ever(A, amounts)
    table.published([row(A, 2)])
    table.taken_back(A, amounts)
    assert table.available(A) == {"CPU": 4 * ONE}, "half was taken to be reported: never too much"


def test_what_was_sent_long_ago_is_forgotten_where_no_report_comes(table: LoadTable):
    """The GCS is away, or nothing changes there: what is known is taken as it is."""
    table.sent(A, 0.0, 0.0, {"CPU": 3 * ONE})
    table.sent(B, 4 * 3e6, 0.0)
    table.forget_sent(0.9)
    assert table.available(A) == {"CPU": ONE}
    table.forget_sent(1.1)
    assert table.available(A) == {"CPU": 4 * ONE}
    assert table.wait_us(B, 1.1) > 1e6, "work that is not done yet was forgotten"
    table.forget_sent(60.0)
    assert table.wait_us(B, 60.0) == 0
    table.check()


def test_a_new_task_waits_for_the_first_cpu_that_gets_free_behind_the_queue():
    assert estimate_wait_us(0, [100_000, 0]) == 0
    assert estimate_wait_us(0, [100_000, 3_000]) == 3_000
    assert estimate_wait_us(2_000, [100_000, 3_000]) == 5_000
    assert estimate_wait_us(8_000, [1_000, 5_000]) == 7_000
    assert estimate_wait_us(8_000, []) == 8_000


def test_a_row_that_came_with_a_message_is_newer_than_the_publication_after_it(table: LoadTable):
    revision = table.revision
    table.heard(row(A, 7, wait_us=70))
    table.published([row(A, 6, wait_us=60)])
    assert table.rows[A].wait_us == 70
    table.heard(row(OWN, 7, wait_us=70))
    assert table.rows[OWN].wait_us == 0
    assert table.revision == revision + 1
