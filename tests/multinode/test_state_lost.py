"""What the state API says where a node is lost or says nothing, with real processes.

What    A silent node is named in the answer; a dead one is a row; what only it could run is said to
        run nowhere.
Caller  pytest.
Never   sleeps: what is to be seen is waited for.
"""

from __future__ import annotations

import json
import os
import signal
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


@zray.remote(num_cpus=0, resources={"rare": 1})
def rest(path: str) -> None:
    while not os.path.exists(path):
        time.sleep(LOOK_S)  # Until the test is done with it.


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = "from zray.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_node_that_says_nothing_is_named_and_delays_the_answer_by_a_bound(
    cluster: Cluster,
) -> None:
    near = cluster.add_node(num_cpus=1)
    mute = cluster.add_node(num_cpus=1)
    with zray.init(near.directory):
        os.kill(mute.pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            with pytest.raises(state.StateMissingError, match=mute.node_id) as raised:
                state.list_workers()
            # 2 s for the node, and much for a machine that is busy with other things.
            assert time.monotonic() - began < 15
            assert mute.node_id in raised.value.missing
            assert {row.node_id for row in raised.value.found} == {near.node_id}
            rows = state.list_nodes(raise_on_missing_output=False)
            (row,) = [each for each in rows if each.node_id == mute.node_id]
            assert row.state in ("SILENT", "DEAD")
            assert command("status", "--check", "--dir", near.directory).returncode == 4
        finally:
            os.kill(mute.pid, signal.SIGCONT)


def test_a_lost_node_is_a_row_and_what_only_it_could_run_is_a_problem(
    cluster: Cluster, tmp_path: Any
) -> None:
    near = cluster.add_node(num_cpus=1)
    rare = cluster.add_node(num_cpus=1, resources={"rare": 1})
    with zray.init(near.directory):
        first, second = (rest.remote(str(tmp_path / "go")) for _ in "ab")
        wait_until(lambda: "RUNNING" in [row.state for row in state.list_tasks()], 20)
        cluster.kill_node(rare)

        def waits_for_ever() -> bool:
            return "no node can ever run it" in str(state.why(second))

        wait_until(waits_for_ever, 30)
        assert "no node can ever run it" in str(state.why(first))

        def dead() -> Any:
            # Until the GCS has declared it dead it is alive, and says nothing.
            wanted = [("state", "=", "DEAD")]
            return state.list_nodes(filters=wanted, raise_on_missing_output=False)

        (row,) = wait_until(dead, 20)
        assert row.node_id == rare.node_id
        report = json.loads(command("status", "--json", "--dir", near.directory).stdout)
        said = " ".join(report["problems"])
        assert f"node {rare.node_id} was lost" in said
        assert "which no node has" in said
        assert {each["node_id"]: each["state"] for each in report["all_nodes"]} == {
            near.node_id: "ALIVE",
            rare.node_id: "DEAD",
        }
        assert report["status_of"][near.node_id]["losses"][0]["node_id"] == rare.node_id
