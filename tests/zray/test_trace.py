"""The Chrome trace made of scheduling events.

What    trace_events(): spans, moments, lanes, order.
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
            "failed": None,
            "count": count,
            "pid": 41,
        },
    ]


def test_a_report_of_a_worker_is_a_span_in_microseconds():
    (span,) = [each for each in trace_events([executed("w1", 100.0, 0.25)]) if each["ph"] == "X"]
    assert span["name"] == "work"
    assert span["ts"] == 100.0 * 1e6
    assert span["dur"] == 0.25 * 1e6
    assert span["args"] == {"task": TASK.hex(), "tasks": 3, "failed": None, "pid": 41}


def test_each_worker_has_a_lane_with_a_name():
    events = [executed("w1", 1.0, 0.1), executed("w2", 1.0, 0.1), executed("w1", 2.0, 0.1)]
    trace = trace_events(events)
    lanes = {
        each["tid"]: each["args"]["name"]
        for each in trace
        if each["ph"] == "M" and each["name"] == "thread_name"
    }
    used = [lanes[each["tid"]] for each in trace if each["ph"] == "X"]
    assert used == ["worker w1 (pid 41)", "worker w2 (pid 41)", "worker w1 (pid 41)"]
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


def called(worker, started_at, duration_s, failed=False):
    fields = executed(worker, started_at, duration_s, "Box.take", 1)[2]
    return ["call_executed", started_at + duration_s, {**fields, "failed": failed}]


def spans_of(trace):
    names = {
        each["tid"]: each["args"]["name"]
        for each in trace
        if each["ph"] == "M" and each["name"] == "thread_name"
    }
    return [(names[each["tid"]], each) for each in trace if each["ph"] == "X"]


def test_a_call_of_an_actor_is_a_span_named_after_its_method():
    ((lane, span),) = spans_of(trace_events([called("w", 2.0, 0.5, failed=True)]))
    assert (lane, span["name"], span["cat"]) == ("worker w (pid 41)", "Box.take", "call")
    assert (span["ts"], span["dur"], span["args"]["failed"]) == (2e6, 5e5, True)


def test_calls_that_ran_at_the_same_time_lie_in_lanes_of_their_own():
    events = [called("w", 2.0, 1.0), called("w", 1.0, 3.0), called("w", 3.5, 1.0)]
    lanes = [(lane, span["ts"]) for lane, span in spans_of(trace_events(events))]
    assert lanes == [
        ("worker w (pid 41)", 1e6),
        ("worker w (pid 41) #2", 2e6),
        ("worker w (pid 41) #2", 3.5e6),
    ]


def test_calls_one_after_the_other_share_a_lane_though_a_double_is_not_exact():
    began = 1.7e9
    events = [called("w", began + at * 1e-4, 1e-4 + 5e-7) for at in range(50)]
    assert len({lane for lane, _span in spans_of(trace_events(events))}) == 1


def test_what_a_worker_could_not_keep_is_a_moment_with_its_number():
    fields = {"worker": "w", "pid": 41, "count": 12}
    (moment,) = [
        each for each in trace_events([["events_dropped", 5.0, fields]]) if each["ph"] == "i"
    ]
    assert moment["name"] == "events_dropped: 12"
    assert moment["s"] == "t"


def test_a_worker_that_packs_nonsense_spoils_nobody_elses_trace():
    short = ["call_executed", 1.0, {"task": TASK}]
    wrong = ["task_executed", 1.0, {**executed("w", 1.0, 1.0)[2], "started_at": "now"}]
    assert [
        span["ts"] for _lane, span in spans_of(trace_events([short, wrong, called("w", 2.0, 1.0)]))
    ] == [2e6]


def test_no_events_make_a_trace_with_nothing_in_it():
    assert {each["ph"] for each in trace_events([])} == {"M"}


def test_each_node_is_a_process_and_a_lent_worker_is_its_own_nodes():
    near, far = "aaaaaaaa00000000", "bbbbbbbb00000000"
    worker = "bbbbbbbb00000007"
    trace = trace_events(
        [
            ["node_started", 1.0, {"node": near, "resources": "{}"}, near],
            [*executed(worker, 2.0, 0.1), near],
            [*called(worker, 3.0, 0.1), far],
        ]
    )
    names = {e["pid"]: e["args"]["name"] for e in trace if e["name"] == "process_name"}
    assert set(names.values()) == {f"node {near}", f"node {far}"}
    spans = [each for each in trace if each["ph"] == "X"]
    assert [names[each["pid"]] for each in spans] == [f"node {far}"] * 2
    assert len({each["tid"] for each in spans}) == 1
