"""The Chrome trace made of scheduling events.

What    trace_events(): spans, moments, lanes, order.
Caller  pytest.
Never   starts a node.
"""

import json

from zray.trace import trace_events

TASK = bytes(range(16))


def executed(worker, started_at, duration_s, function="work", count=3):
    return [
        "task_executed",
        started_at + duration_s,
        {
            "task": TASK,
            "function": function,
            "worker": worker,
            "started_at": started_at,
            "duration_s": duration_s,
            "error": None,
            "count": count,
        },
    ]


def test_a_report_of_a_worker_is_a_span_in_microseconds():
    (span,) = [each for each in trace_events([executed("w1", 100.0, 0.25)]) if each["ph"] == "X"]
    assert span["name"] == "work"
    assert span["ts"] == 100.0 * 1e6
    assert span["dur"] == 0.25 * 1e6
    assert span["args"] == {"task": TASK.hex(), "tasks": 3, "error": None}


def test_each_worker_has_a_lane_with_a_name():
    events = [executed("w1", 1.0, 0.1), executed("w2", 1.0, 0.1), executed("w1", 2.0, 0.1)]
    trace = trace_events(events)
    lanes = {
        each["tid"]: each["args"]["name"]
        for each in trace
        if each["ph"] == "M" and each["name"] == "thread_name"
    }
    used = [lanes[each["tid"]] for each in trace if each["ph"] == "X"]
    assert used == ["worker w1", "worker w2", "worker w1"]
    assert lanes[0] == "scheduler"


def test_other_events_are_moments():
    trace = trace_events(
        [
            ["node_started", 5.0, {"node": "n", "resources": "{}"}],
            ["actor_state", 6.0, {"actor": TASK, "state": "alive", "worker": "w1", "reason": ""}],
        ]
    )
    node, actor = [each for each in trace if each["ph"] == "i"]
    assert (node["name"], node["s"], node["tid"]) == ("node_started", "p", 0)
    assert (actor["name"], actor["s"]) == ("actor_state: alive", "t")
    assert actor["args"]["actor"] == TASK.hex()


def test_spans_are_in_the_order_they_began_and_fit_into_json():
    trace = trace_events([executed("w", 9.0, 1.0), executed("w", 3.0, 0.0, function="")])
    spans = [each for each in trace if each["ph"] == "X"]
    assert [each["ts"] for each in spans] == [3e6, 9e6]
    assert spans[0]["name"] == "task"
    assert spans[0]["dur"] > 0, "a span of no length is not shown"
    assert json.loads(json.dumps(trace)) == trace


def test_no_events_make_a_trace_with_nothing_in_it():
    assert {each["ph"] for each in trace_events([])} == {"M"}
