"""The state API, why, the timeline and logs over several nodes, with real processes.

What    Rows of all nodes, filters and limits; what waits for what across nodes; deadlocks. Nodes
        that are lost or say nothing are in test_state_lost.py.
Caller  pytest.
Never   sleeps: what is to be seen is waited for.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

import pytest

import zray
from tests.waiting import wait_until
from zray.testing import Cluster
from zray.util import state

LOOK_S = 0.01


@zray.remote
def rest(path: str) -> None:
    while not os.path.exists(path):
        time.sleep(LOOK_S)  # Until the test is done with it.


@zray.remote
def quick(_value: object = None) -> str:
    return str(zray.get_runtime_context().get_node_id())


@zray.remote
def fail() -> None:
    raise ValueError("on purpose")


@zray.remote
def speak(word: str) -> None:
    print("spoken:", word)


@zray.remote
class Holder:
    def rest(self, path: str) -> None:
        while not os.path.exists(path):
            time.sleep(LOOK_S)

    def ask(self, refs: list[Any]) -> Any:
        return zray.get(refs[0])

    def one(self) -> None:
        return None

    def two(self) -> None:
        return None

    def call_itself(self, me: Any) -> Any:
        return zray.get(me.ask.remote([zray.put(1)]))


@zray.remote(num_cpus=0, resources={"far": 2})
def child() -> int:
    return 1


@zray.remote(num_cpus=0, resources={"far": 2})
def parent() -> Any:
    return zray.get(child.remote())


HOLDER: Any = Holder


@pytest.fixture
def gate(tmp_path: Any) -> Any:
    """Return a path; what rests goes on when a file is there, at the latest after the test."""
    path = str(tmp_path / "go")
    yield path
    open(path, "w").close()


def states(name: str) -> dict[str, str]:
    return {row.task_id: row.state for row in state.list_tasks(filters=[("name", "=", name)])}


def test_tasks_of_all_nodes_are_listed_with_the_node_they_run_on(
    two_nodes: Cluster, gate: str
) -> None:
    near, far = two_nodes.nodes
    refs = [rest.remote(gate), *(rest.options(resources={"far": 1}).remote(gate) for _ in "ab")]
    waiting = quick.remote(refs[0])

    def seen() -> bool:
        rows = state.list_tasks(filters=[("name", "=", "rest"), ("state", "=", "RUNNING")])
        return {row.node_id for row in rows} == {near.node_id, far.node_id} and len(rows) == 3

    wait_until(seen, 20)
    row = state.get_task(waiting.hex())
    assert row is not None
    assert row.state == "PENDING_ARGS_AVAIL"
    assert row["name"] == "quick"
    open(gate, "w").close()
    zray.get([*refs, waiting], timeout=20)
    wait_until(lambda: set(states("rest").values()) == {"FINISHED"}, 20)
    finished = state.get_task(waiting.hex())
    assert finished is not None
    assert finished.state == "FINISHED"
    assert finished.end_time_ms >= finished.start_time_ms > 0


def test_a_task_that_raised_is_failed_on_whichever_node_it_ran(two_nodes: Cluster) -> None:
    refs = [fail.remote(), fail.options(resources={"far": 1}).remote()]
    for ref in refs:
        with pytest.raises(ValueError, match="on purpose"):
            zray.get(ref, timeout=20)

    def failed() -> bool:
        rows = state.list_tasks(filters=[("state", "=", "failed"), ("name", "=", "fail")])
        return {row.task_id for row in rows} == {ref.hex() for ref in refs}

    wait_until(failed, 20)


def test_a_limit_holds_over_all_nodes_and_a_summary_counts_all(two_nodes: Cluster) -> None:
    zray.get([quick.remote(at) for at in range(500)], timeout=30)

    def counted() -> int:
        groups = state.summarize_tasks()["summary"]
        return sum(
            int(group["count"])
            for group in groups
            if (group["name"], group["state"]) == ("quick", "FINISHED")
        )

    before = wait_until(counted, 20)
    assert before >= 500
    rows = state.list_tasks(filters=[("name", "=", "quick")], limit=7)
    assert len(rows) == 7
    assert rows.is_truncated
    assert not state.list_tasks(filters=[("name", "=", "no such")]).is_truncated


def test_actors_objects_jobs_and_nodes_are_listed_once_each(two_nodes: Cluster) -> None:
    _near, far = two_nodes.nodes
    actor = HOLDER.options(name="known", num_cpus=0, resources={"far": 1}).remote()
    zray.get(actor.ask.remote([zray.put(1)]), timeout=20)
    wait_until(lambda: [row.state for row in state.list_actors()] == ["ALIVE"], 10)
    (row,) = state.list_actors(filters=[("name", "=", "known")], detail=True)
    assert row.node_id == far.node_id
    assert row.pid > 0
    assert [each.node_id for each in state.list_nodes()] == [n.node_id for n in two_nodes.nodes]
    (job,) = state.list_jobs(filters=[("status", "=", "RUNNING")])
    assert job.driver_pid == os.getpid()
    large = zray.put(bytes(1 << 20))
    assert zray.get(quick.options(resources={"far": 1}).remote(large), timeout=20) == far.node_id
    assert {each.node_id for each in state.get_objects(large.hex())}
    zray.kill(actor)
    wait_until(lambda: not state.list_actors(filters=[("state", "=", "ALIVE")]), 10)


def test_why_goes_from_an_argument_to_the_stack_on_the_other_node(
    two_nodes: Cluster, gate: str
) -> None:
    _near, far = two_nodes.nodes
    slow = rest.options(resources={"far": 2}).remote(gate)
    waiting = quick.remote(slow)
    wait_until(lambda: "RUNNING" in states("rest").values(), 20)
    found = state.why(waiting)
    assert [step["state"] for step in found.steps] == ["PENDING_ARGS_AVAIL", "RUNNING", "RUNNING"]
    worker = found.cause
    assert worker["node_id"] == far.node_id
    assert worker["name"] == "rest"
    assert worker["since_s"] is not None
    assert any("in rest" in line for line in worker["stack"])
    assert slow.hex() in str(found)
    # Another shape than what runs there, so that it is handed to no busy worker.
    queued = quick.options(resources={"far": 1}).remote()

    def who_holds_it() -> bool:
        steps = state.why(queued).steps
        return [step["state"] for step in steps] == ["PENDING_NODE_ASSIGNMENT", "FULL", "RUNNING"]

    wait_until(who_holds_it, 20)
    first, full, holder = state.why(queued).steps
    assert "it needs 1 CPU and 1 far, elsewhere than here" in first["text"]
    assert "1 far of which 0 of 2 are free" in full["text"]
    assert full["node_id"] == holder["node_id"] == far.node_id
    assert holder["name"] == "rest"


def test_why_of_a_call_shows_what_its_actor_is_at_and_its_place_behind_that(
    two_nodes: Cluster, gate: str
) -> None:
    actor = HOLDER.options(num_cpus=0, resources={"far": 1}).remote()
    actor.rest.remote(gate)
    second, third = actor.rest.remote(gate), actor.rest.remote(gate)
    wait_until(lambda: state.why(third).cause.get("queue_position") == 2, 20)
    assert state.why(second).cause["queue_position"] == 1
    cause = state.why(actor).cause
    assert cause["name"] == "Holder.rest"
    assert any("in rest" in line for line in cause["stack"])
    zray.kill(actor)


def test_an_actor_that_calls_itself_and_a_task_that_holds_what_its_child_needs_are_deadlocks(
    two_nodes: Cluster,
) -> None:
    blocked = parent.remote()
    wait_until(lambda: state.why(blocked).is_deadlock, 20)
    zray.cancel(blocked, force=True)
    ring = HOLDER.options(num_cpus=0).remote()
    outer = ring.call_itself.remote(ring)
    wait_until(lambda: state.why(outer).is_deadlock, 20)
    zray.kill(ring)


def test_an_id_may_be_shortened_as_far_as_it_is_the_only_one(two_nodes: Cluster, gate: str) -> None:
    ref = rest.remote(gate)
    identity = ref.hex()
    assert state.why(f"{identity[:16]}:{int(identity[16:], 16):x}").steps[0]["id"] == identity
    assert state.why(identity[:13]).steps[0]["id"] == identity[:16]
    with pytest.raises(zray.errors.UserError, match="any of these"):
        state.why(identity[:8])
    with pytest.raises(zray.errors.UserError, match="nothing that is there"):
        state.why("0123456789abcd")
    with pytest.raises(zray.errors.UserError, match="zray-node status"):
        state.why(two_nodes.nodes[0].node_id)


def test_the_timeline_has_a_process_for_each_node(two_nodes: Cluster) -> None:
    zray.get([quick.options(resources={"far": 1}).remote() for _ in range(3)], timeout=20)
    zray.get(quick.remote(), timeout=20)

    def named() -> bool:
        trace = zray.timeline()
        names = {e["pid"]: e["args"]["name"] for e in trace if e["name"] == "process_name"}
        where = {names[e["pid"]] for e in trace if e["ph"] == "X" and e["name"] == "quick"}
        return where >= {f"node {two_nodes.nodes[1].node_id}"} and len(names) == 2

    wait_until(named, 20)


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = "from zray.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_command_line_shows_logs_of_another_node_and_why(two_nodes: Cluster, gate: str) -> None:
    near, far = two_nodes.nodes
    zray.get(speak.options(resources={"far": 1}).remote("heron"), timeout=20)
    where = ("--dir", near.directory)
    done = command("logs", "--on", far.node_id[:8], *where)
    assert done.returncode == 0, done.stderr
    assert "spoken: heron" in done.stdout
    assert "runs in" in command("logs", "--on", far.node_id, "--node", *where).stdout
    assert far.node_id in command("logs", "--on", "nothex", *where).stderr
    ref = rest.options(resources={"far": 2}).remote(gate)
    wait_until(lambda: "RUNNING" in states("rest").values(), 20)
    told = command("why", ref.hex(), *where)
    assert told.returncode == 0, told.stderr
    assert "in rest" in told.stdout


def test_rows_that_do_not_fit_into_a_page_come_page_by_page(two_nodes: Cluster) -> None:
    near, far = two_nodes.nodes
    actor = HOLDER.options(num_cpus=0, resources={"far": 1}).remote()
    calls = 4000  # Of two methods by turns, so that each is an event: far more than one page.
    zray.get([(actor.one if at % 2 else actor.two).remote() for at in range(calls)], timeout=60)
    rows = state.list_cluster_events(limit=100_000)
    assert {row.node_id for row in rows} == {near.node_id, far.node_id}
    own = [row for row in rows if row.fields.get("function") in ("Holder.one", "Holder.two")]
    assert sum(row.fields["count"] for row in own) == calls
    assert len(own) > 2500, "too few to need pages"
    times = [row.time for row in rows]
    assert times == sorted(times, reverse=True)
    zray.kill(actor)


def test_what_waits_for_a_placement_group_says_so(two_nodes: Cluster) -> None:
    from zray.util.placement_group import placement_group, remove_placement_group
    from zray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    group = placement_group([{"far": 1}, {"far": 2}], name="wide")
    strategy = PlacementGroupSchedulingStrategy(group)
    ref = quick.options(num_cpus=0, resources={"far": 1}, scheduling_strategy=strategy).remote()
    wait_until(lambda: group.id.hex() in str(state.why(ref)), 20)
    assert "is PENDING" in state.why(ref).cause["text"]
    (row,) = state.list_placement_groups(filters=[("name", "=", "wide")], detail=True)
    assert (row.state, row.placement_group_id) == ("PENDING", group.id.hex())
    assert [bundle["node"] for bundle in row.bundles] == ["", ""]
    remove_placement_group(group)
    wait_until(lambda: not state.list_placement_groups(), 20)
