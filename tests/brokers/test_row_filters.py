"""Filters of the state API, as they come in a message.

What    What is admitted, and what is refused with a reason.
Never   starts a process.
"""

import pytest

from zray.brokers.row_filters import read_wanted
from zray.errors import RemoteProtocolError
from zray.protocol.state_classes import CLASSES


def wanted(*filters, of="tasks", **more):
    return read_wanted({"of": of, "filters": [list(each) for each in filters], **more})


ROW = {"task_id": "ab", "name": "f", "state": "RUNNING", "worker_pid": 41}


@pytest.mark.parametrize(
    ("filters", "admitted"),
    [
        ([], True),
        ([("state", "=", "running")], True),
        ([("state", "!=", "RUNNING")], False),
        ([("worker_pid", "=", 41)], True),
        ([("worker_pid", "=", "41")], True),
        ([("worker_pid", "!=", 41)], False),
        ([("name", "=", "f"), ("state", "=", "FAILED")], False),
        ([("actor_id", "!=", "x")], True),
    ],
)
def test_all_filters_have_to_hold(filters, admitted):
    assert wanted(*filters).admits(ROW) == admitted


def test_a_filter_of_the_key_is_left_out_where_a_row_stands_for_many():
    asked = wanted(("task_id", "=", "zz"), ("state", "=", "RUNNING"))
    assert not asked.admits(ROW)
    assert asked.admits(ROW, without="task_id")
    assert asked.value_of("task_id") == "zz"
    assert asked.value_of("name") is None


def test_what_can_not_be_among_the_rows_need_not_be_looked_for():
    assert not wanted(("state", "=", "RUNNING")).asks_for("state", "FAILED")
    assert not wanted(("state", "!=", "FAILED")).asks_for("state", "FAILED")
    assert wanted(("name", "=", "f")).asks_for("state", "FAILED")


def test_columns_of_detail_are_shown_to_who_asks_for_them():
    row = {name: 0 for name in CLASSES["tasks"].all_columns}
    assert set(wanted().shown(row)) == set(CLASSES["tasks"].columns)
    assert set(wanted(detail=True).shown(row)) == set(row)


def test_a_question_survives_the_way_to_another_node():
    asked = wanted(("state", "=", "RUNNING"), limit=7, detail=True)
    again = read_wanted(asked.fields())
    assert again.fields() == asked.fields()


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"of": "sheep"},
        {"of": ["tasks"]},
        {"of": "tasks", "limit": -1},
        {"of": "tasks", "limit": 1.5},
        {"of": "tasks", "limit": 10**9},
        {"of": "tasks", "filters": "state"},
        {"of": "tasks", "filters": [["state", "="]]},
        {"of": "tasks", "filters": [["state", "<", "A"]]},
        {"of": "tasks", "filters": [["wool", "=", "A"]]},
        {"of": "tasks", "filters": [[{}, "=", "A"]]},
        {"of": "tasks", "filters": [["state", "=", ["A"]]]},
        {"of": "tasks", "filters": [["state", "=", "A"]] * 99},
    ],
)
def test_what_is_malformed_is_refused_with_a_reason(arguments):
    with pytest.raises(RemoteProtocolError):
        read_wanted(arguments)


def test_every_class_has_its_key_and_what_it_is_counted_by_among_its_columns():
    for each in CLASSES.values():
        assert not each.key or each.key in each.columns
        assert set(each.counted_by) <= set(each.columns)
        assert not set(each.columns) & set(each.detail)
