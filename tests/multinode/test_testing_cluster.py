"""zray.testing as its users see it: nodes that come, go and are killed, and nothing left behind.

What    Cluster, TestNode and the pytest fixture, which runs in a pytest of its own.
Caller  pytest.
Never   looks into the nodes: what is asked is what users can ask.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import psutil
import pytest

import zray
from tests.house.sources import ROOT
from tests.waiting import wait_until
from zray.errors import GetTimeoutError, NodeStartError, OptionError
from zray.testing import Cluster, TestNode


@zray.remote(resources={"far": 1})
def where_it_runs() -> str:
    return str(zray.get_runtime_context().get_node_id())


def processes_of(node: TestNode) -> list[psutil.Process]:
    return [psutil.Process(node.pid), *psutil.Process(node.pid).children(recursive=True)]


def lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_work_runs_on_the_node_that_has_what_it_asks_for(cluster: Cluster) -> None:
    first = cluster.add_node(num_cpus=1)
    second = cluster.add_node(num_cpus=1, resources={"far": 1})
    assert cluster.address == first.directory
    with zray.init(cluster.address):
        assert zray.get(where_it_runs.remote(), timeout=20) == second.node_id


def test_a_killed_node_dies_with_all_its_processes_and_the_others_notice(cluster: Cluster) -> None:
    first, second = cluster.add_node(), cluster.add_node()
    processes = processes_of(second)
    assert len(processes) >= 2
    cluster.kill_node(second)
    assert cluster.nodes == [first]
    cluster.wait_for_nodes(1)
    wait_until(lambda: not any(map(lives, processes)))
    assert os.path.exists(os.path.join(second.directory, "node.log")), "for a look at it"


@pytest.mark.parametrize("graceful", [True, False])
def test_when_a_node_is_removed_its_processes_are_gone_and_the_others_know(
    cluster: Cluster, graceful: bool
) -> None:
    first, second = cluster.add_node(), cluster.add_node()
    processes = processes_of(second)
    cluster.remove_node(second, graceful=graceful)
    assert not any(map(lives, processes))
    with zray.init(cluster.address):
        assert [row["NodeID"] for row in zray.nodes()] == [first.node_id]
    with pytest.raises(OptionError, match="not a living node"):
        cluster.remove_node(second)
    third = cluster.add_node()
    assert cluster.nodes == [first, third]


def test_the_first_node_may_go_and_another_one_takes_its_place(cluster: Cluster) -> None:
    first, second = cluster.add_node(), cluster.add_node()
    cluster.kill_node(first)
    cluster.wait_for_nodes(1)
    assert cluster.address == second.directory
    cluster.add_node(resources={"far": 1})
    with zray.init(cluster.address):
        assert zray.get(where_it_runs.remote(), timeout=20) != second.node_id


def test_a_node_that_ends_by_itself_is_no_node_of_the_cluster_any_more(cluster: Cluster) -> None:
    first, second = cluster.add_node(), cluster.add_node()
    os.kill(second.pid, signal.SIGTERM)
    wait_until(lambda: cluster.nodes == [first])
    cluster.wait_for_nodes(1)
    assert os.path.exists(os.path.join(second.directory, "node.log")), "for a look at it"


def test_who_waits_in_vain_is_told_how_many_there_are(cluster: Cluster) -> None:
    with pytest.raises(NodeStartError, match="add_node"):
        _ = cluster.address
    node = cluster.add_node()
    with pytest.raises(GetTimeoutError, match=f"{node.node_id}': 1"):
        cluster.wait_for_nodes(2, timeout_s=0.2)


def test_a_wrong_option_is_refused_before_a_process_starts(cluster: Cluster) -> None:
    with pytest.raises(OptionError, match=r"Cluster\.add_node"):
        cluster.add_node(num_cpus=-1)
    assert cluster.nodes == []


def test_the_nodes_of_a_cluster_take_no_settings_from_outside(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZRAY_RESOURCES", '{"stray": 1}')
    cluster.add_node()
    monkeypatch.delenv("ZRAY_RESOURCES")
    with zray.init(cluster.address):
        assert "stray" not in zray.cluster_resources()


def test_the_end_of_a_cluster_disconnects_its_driver(cluster: Cluster) -> None:
    cluster.add_node()
    zray.init(cluster.address)
    cluster.shutdown()
    assert not zray.is_initialized()
    cluster.shutdown()  # Safe to repeat.


PROGRAM = """
import os, signal
from zray.testing import Cluster
cluster = Cluster()
for _ in range(2):
    print(cluster.add_node().directory, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_nodes_end_with_the_process_that_started_them_even_if_it_is_killed(
    run_folder: Path,
) -> None:
    before = set(run_folder.glob("zray-*"))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    directories = done.stdout.split()
    assert len(directories) == 2, done.stderr
    wait_until(lambda: not any(map(os.path.exists, directories)))
    try:
        wait_until(lambda: set(run_folder.glob("zray-*")) <= before, what="keys to be gone")
    except AssertionError:
        pytest.fail(f"left behind: {[str(each) for each in run_folder.rglob('*')]}")


USERS_TEST = """
import zray

def test_mine(zray_cluster):
    zray_cluster.add_node()
    zray_cluster.add_node(num_cpus=2)
    zray.init(zray_cluster.address)
    assert zray.cluster_resources()["CPU"] == 3

def test_the_next_one_begins_afresh(zray_cluster):
    assert zray_cluster.nodes == []
    assert not zray.is_initialized()
"""


def test_the_pytest_fixture_gives_each_test_a_cluster(tmp_path: Path) -> None:
    (tmp_path / "test_users.py").write_text(USERS_TEST)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    entry = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    plugin = entry["pytest11"]["zray"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:zray", "-p", plugin, str(tmp_path)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


def test_the_plugin_costs_a_run_without_it_nothing_heavy() -> None:
    code = "import sys, zray.pytest_plugin; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not {"zmq", "numpy", "zray.testing", "cloudpickle"} & set(done.stdout.split())
