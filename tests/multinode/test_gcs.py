"""What all nodes share through the GCS, and what becomes of it when a process of it dies.

What    Names and key-value pairs from any node, the GCS process killed under work, nodes killed,
        stopped and cut off.
Caller  pytest.
Never   sleeps: what changes by itself is waited for.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

import zray
from tests.cluster.nodes import Place
from tests.multinode.gcs_processes import gcs_pid
from tests.waiting import wait_until
from zray import launch
from zray.errors import ActorDiedError, NameTakenError
from zray.observer import Observer
from zray.protocol.limits import INLINE_BYTES_MAX
from zray.testing import Cluster, TestNode
from zray.util import kv, list_named_actors

STEP_S = 0.01
HERE = textwrap.dedent(
    """
    import sys, zray
    from zray.util import kv, list_named_actors
    zray.init(address=sys.argv[1], namespace="shared", log_to_driver=False)
    """
)


@zray.remote(num_cpus=0)
class _Counter:
    def __init__(self) -> None:
        self.count = 0

    def add(self, number: int) -> int:
        self.count += number
        return self.count

    def pid(self) -> int:
        return os.getpid()


Counter: Any = _Counter
"""mypy sees a class where the decorator has made another thing of it."""


def on(node: TestNode, program: str) -> str:
    """Run a program as a driver of another node; returns the last line it prints."""
    done = subprocess.run(
        [sys.executable, "-c", HERE + textwrap.dedent(program), node.directory],
        env=launch.package_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().rpartition("\n")[2]


def kill_gcs(head: TestNode) -> int:
    """Kill the GCS process; returns the pid it had."""
    pid = gcs_pid(head)
    os.kill(pid, signal.SIGKILL)
    return pid


def log(node: TestNode) -> str:
    return Path(node.directory, "node.log").read_text()


def known_to(node: TestNode) -> int:
    with Observer(node.directory) as observer:
        return int(observer.ask("cluster")["nodes"])


@pytest.fixture
def pair(cluster: Cluster) -> Cluster:
    """Return a cluster of a head and another node, with a driver at the head."""
    cluster.add_node(num_cpus=1)
    cluster.add_node(num_cpus=1)
    zray.init(cluster.address, namespace="shared")
    return cluster


# ------------------------------------------------------------------------------- from any node


def test_an_actor_named_on_one_node_is_found_on_another(pair: Cluster) -> None:
    counter = Counter.options(name="counter").remote()
    assert zray.get(counter.add.remote(1), timeout=20) == 1
    found = on(
        pair.nodes[1], "print(zray.get(zray.get_actor('counter').add.remote(2), timeout=20))"
    )
    assert found == "3"
    assert on(pair.nodes[1], "print(list_named_actors())") == "['counter']"


def test_a_name_has_one_holder_in_the_whole_cluster(pair: Cluster) -> None:
    make = """
        @zray.remote(num_cpus=0)
        class Other:
            pass
        try:
            made = Other.options(name="one").remote()
            print(zray.get(made.__ray_ready__.remote(), timeout=20))
        except zray.errors.NameTakenError:
            print("taken")
    """
    counter = Counter.options(name="one").remote()
    assert on(pair.nodes[1], make) == "taken"
    zray.kill(counter)
    wait_until(lambda: list_named_actors() == [])
    assert on(pair.nodes[1], make) == "True"
    # It died with its driver, and its name with it, though this node has never seen it.
    wait_until(lambda: list_named_actors() == [])
    again = Counter.options(name="one").remote()
    assert zray.get(again.add.remote(1), timeout=20) == 1
    with pytest.raises(NameTakenError):
        Counter.options(name="one").remote()


def test_a_name_that_nobody_has_is_not_found(pair: Cluster) -> None:
    del pair
    with pytest.raises(ValueError, match="nobody"):
        zray.get_actor("nobody")


def test_keys_and_values_are_the_same_on_every_node(pair: Cluster) -> None:
    large = os.urandom(INLINE_BYTES_MAX * 20)
    assert kv.put("a", b"1")
    assert not kv.put("a", b"2", overwrite=False)
    assert kv.put("large", large)
    program = """
        import hashlib
        assert kv.get("a") == b"1"
        assert kv.exists("a") and not kv.exists("b")
        assert kv.delete("a") and not kv.delete("a")
        kv.put("b/1", b"x"); kv.put("b/2", b"y", namespace="apart")
        print(hashlib.sha256(kv.get("large")).hexdigest())
    """
    import hashlib

    assert on(pair.nodes[1], program) == hashlib.sha256(large).hexdigest()
    assert kv.get("a") is None
    assert kv.keys("b/") == [b"b/1"]
    assert kv.keys(namespace="apart") == [b"b/2"]
    with pytest.raises(zray.errors.GcsError):
        kv.put("k" * 600, b"")


def test_a_node_that_joins_late_finds_what_is_there(pair: Cluster) -> None:
    counter = Counter.options(name="early").remote()
    kv.put("early", b"1")
    late = pair.add_node(num_cpus=1)
    assert on(late, "print(kv.get('early'))") == "b'1'"
    assert on(late, "print(zray.get(zray.get_actor('early').add.remote(1), timeout=20))") == "1"
    del counter


# ------------------------------------------------------------------------ the GCS process dies


@zray.remote(num_cpus=1)
def step(number: int) -> int:
    time.sleep(STEP_S)
    return number


def test_work_does_not_notice_that_the_gcs_process_is_killed(pair: Cluster) -> None:
    counter = Counter.options(name="counter").remote()
    assert zray.get(counter.add.remote(1), timeout=20) == 1
    kv.put("before", b"1")
    refs = [step.remote(number) for number in range(400)]
    before = kill_gcs(pair.nodes[0])
    assert zray.get([counter.add.remote(1) for _ in range(100)], timeout=20)[-1] == 101
    assert zray.get(refs, timeout=60) == list(range(400))
    wait_until(lambda: gcs_pid(pair.nodes[0]) != before, 10)
    assert kv.get("before") == b"1"
    kv.put("after", b"2")
    program = (
        "print(kv.get('after'), zray.get(zray.get_actor('counter').add.remote(1), timeout=20))"
    )
    assert on(pair.nodes[1], program) == "b'2' 102"
    assert [known_to(node) for node in pair.nodes] == [2, 2]
    assert all("is gone" not in log(node) for node in pair.nodes)


def test_what_is_asked_while_the_gcs_is_down_is_answered_when_it_is_back(pair: Cluster) -> None:
    for number in range(3):
        kill_gcs(pair.nodes[0])
        assert kv.put(f"key{number}", b"")
        counter = Counter.options(name=f"name{number}").remote()
        assert zray.get(counter.add.remote(number), timeout=20) == number
    assert kv.keys("key") == [b"key0", b"key1", b"key2"]


def test_the_gcs_ends_with_the_head_however_that_ends(cluster: Cluster) -> None:
    for graceful in (True, False):
        head = cluster.add_node(num_cpus=1)
        process = psutil.Process(gcs_pid(head))
        cluster.remove_node(head, graceful=graceful)
        wait_until(lambda each=process: not each.is_running(), 10)  # type: ignore[misc]


# ------------------------------------------------------------------------------------ nodes die


def test_a_killed_node_is_known_to_be_dead_at_once(pair: Cluster) -> None:
    third = pair.add_node(num_cpus=1)
    made = "Counter.options(name='far', lifetime='detached').remote()"
    program = f"""
        @zray.remote(num_cpus=0)
        class Counter:
            def add(self, number):
                return number
        far = {made}
        print(zray.get(far.add.remote(1), timeout=20))
    """
    assert on(third, program) == "1"
    far: Any = zray.get_actor("far")
    assert zray.get(far.add.remote(7), timeout=20) == 7
    pair.kill_node(third)
    began = time.monotonic()
    wait_until(lambda: [known_to(node) for node in pair.nodes] == [2, 2], 3)
    wait_until(lambda: list_named_actors() == [], 3)
    assert time.monotonic() - began < 3
    with pytest.raises(ActorDiedError):
        zray.get(far.add.remote(1), timeout=20)


def test_a_node_that_stands_still_is_dead_within_three_seconds_and_comes_back_as_another_one(
    pair: Cluster,
) -> None:
    still = pair.nodes[1]
    before, address, program = still.node_id, still.address, "print(kv.put('n', b'1'))"
    third = pair.add_node(num_cpus=1)
    os.kill(still.pid, signal.SIGSTOP)
    try:
        wait_until(lambda: [known_to(node) for node in (pair.nodes[0], third)] == [2, 2], 3.5)
    finally:
        os.kill(still.pid, signal.SIGCONT)
    wait_until(lambda: still.node_id != before, 15)
    pair.wait_for_nodes(3, timeout_s=15)
    assert "to the rest of the cluster it is dead" in log(still)
    assert still._process.poll() is None, "it is the same process"
    assert still.address == address
    assert on(still, program) == "True"
    living = {row["NodeID"]: row["Alive"] for row in zray.nodes()}
    assert living[still.node_id]
    assert not living.get(before, False)


def test_a_node_whose_head_stays_away_gives_up_and_joins_the_next_one(
    place: Place,
) -> None:
    folders = [place.folder / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir(mode=0o700)
    parent = {"num_cpus": 1, "parent": os.getpid()}

    def start_head() -> subprocess.Popen[bytes]:
        made = launch.launch_node(str(folders[0]), {**parent, "cluster": {"head": True}})
        place.children.append(made)  # type: ignore[arg-type]
        return made

    def node_id() -> str:
        with contextlib.suppress(OSError, ValueError):
            return str(json.loads((folders[1] / "node.json").read_text())["node"])
        return ""

    head = start_head()
    report = json.loads((folders[0] / "node.json").read_text())
    joining = {"join": [report["address"]], "fence_s": 0.5}
    other = launch.launch_node(str(folders[1]), {**parent, "cluster": joining})
    place.children.append(other)  # type: ignore[arg-type]
    before = node_id()
    head.kill()
    head.wait()
    wait_until(lambda: node_id() not in ("", before), 15)
    assert other.poll() is None
    again = json.loads((folders[1] / "node.json").read_text())["node"]
    start_head()
    with Observer(str(folders[1])) as observer:
        wait_until(lambda: observer.ask("cluster")["nodes"] == 2, 20)
    assert node_id() == again, "nothing of it had to end a second time"
