"""Nodes without room: a full disk under the head, descriptors that run out.

What    What goes on meanwhile, who is told what, and that all is well when there is room again.
Caller  pytest.
Never   fills a disk but one of its own.
"""

from __future__ import annotations

import resource
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import zray
from tests.cluster.nodes import Place
from tests.multinode.test_start_join import start
from tests.waiting import wait_until
from zray.errors import GcsUnavailableError
from zray.testing import Cluster
from zray.util import kv

DISK = "24m"
STEP_S = 0.1


@zray.remote(num_cpus=0, resources={"far": 0.01})
class _Counter:
    def __init__(self) -> None:
        self.count = 0

    def add(self) -> int:
        self.count += 1
        return self.count


Counter: Any = _Counter


@zray.remote(num_cpus=0, resources={"far": 0.01})
def next_of(number: int) -> int:
    return number + 1


@pytest.fixture
def small_disk(place: Place) -> Iterator[Path]:
    """Return a folder with little room; skip where none can be made."""
    folder = place.folder / "disk"
    folder.mkdir(mode=0o700)
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK},mode=0700", "none", str(folder)]
    made = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    if made.returncode:
        pytest.skip(f"no small disk can be made here: {made.stderr.strip()}")
    try:
        yield folder
    finally:
        place.run("stop", "--all", "--force")
        place.await_no_process()
        subprocess.run(["umount", "-l", str(folder)], timeout=10, check=True)


def fill(folder: Path) -> Path:
    """Leave no room in a folder; returns the file that takes it."""
    path = folder / "fill"
    with path.open("wb", buffering=0) as file:
        size = 1 << 16
        while size:
            try:
                file.write(b"x" * size)
            except OSError:
                size //= 2
    return path


@pytest.mark.timeout(120)
def test_a_full_disk_under_the_head_stops_what_is_to_be_durable_and_nothing_else(
    place: Place, small_disk: Path
) -> None:
    options = ("--num-cpus", "1")
    head = start(place, "--head", "--dir", str(small_disk / "head"), *options)
    start(
        place,
        *("--join", head["address"], "--dir", str(place.folder / "one"), *options),
        *("--resources", '{"far": 1}'),
    )
    before = [psutil.Process(head["pid"])]
    with zray.init(head["directory"], log_to_driver=False):
        counter = Counter.options(name="counter").remote()
        assert zray.get([counter.add.remote(), next_of.remote(1)], timeout=20) == [1, 2]
        filling = fill(small_disk)
        told: list[Any] = []

        def put() -> None:
            try:
                told.append(kv.put("key", bytes(500_000)))
            except GcsUnavailableError as error:
                told.append(error)

        putting = threading.Thread(target=put)
        putting.start()
        # Long enough for the GCS process to give up, and to be started again, more than once.
        until = time.monotonic() + 12.0
        number = 1
        while time.monotonic() < until:
            number += 1
            found = zray.get([counter.add.remote(), next_of.remote(number)], timeout=5)
            assert found == [number, number + 1]
            time.sleep(STEP_S)
        assert told == [], "it was not durable, and not refused"
        filling.unlink()
        putting.join(40)
        assert told == [True]
        assert kv.put("after", b"1")
        assert zray.get(Counter.options(name="another").remote().add.remote(), timeout=20) == 1
        assert len([row for row in zray.nodes() if row["Alive"]]) == 2
    assert all(each.is_running() for each in before)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_who_waits_for_a_full_disk_is_told_that_it_is_full(place: Place, small_disk: Path) -> None:
    head = start(place, "--head", "--dir", str(small_disk / "head"), "--num-cpus", "1")
    with zray.init(head["directory"], log_to_driver=False):
        filling = fill(small_disk)
        with pytest.raises(GcsUnavailableError, match="room on the disk"):
            kv.put("key", bytes(500_000))
        filling.unlink()
        assert kv.put("key", b"1")


@pytest.mark.parametrize("which", [0, 1])
def test_a_node_whose_descriptors_run_out_starts_no_more_workers_and_goes_on(
    cluster: Cluster, which: int
) -> None:
    head = cluster.add_node(num_cpus=1)
    other = cluster.add_node(num_cpus=1, resources={"far": 1})
    zray.init(cluster.address, log_to_driver=False)
    node = (head, other)[which]
    counter = Counter.remote()
    assert zray.get([counter.add.remote(), next_of.remote(1)], timeout=20) == [1, 2]
    process = psutil.Process(node.pid)
    before = resource.prlimit(node.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(
        node.pid, resource.RLIMIT_NOFILE, ((process.num_fds() + 40) * 4 // 3, before[1])
    )
    try:
        more = [Counter.remote() for _ in range(20)]
        log = Path(node.directory, "node.log")
        if node is other:
            wait_until(lambda: "few descriptors are left" in log.read_text(), 20)
        assert zray.get([counter.add.remote() for _ in range(10)], timeout=20)[-1] == 11
        # What is left is enough for another node.
        third = cluster.add_node(num_cpus=1)
    finally:
        resource.prlimit(node.pid, resource.RLIMIT_NOFILE, before)
    assert zray.get([each.add.remote() for each in more], timeout=30) == [1] * 20
    assert zray.get(next_of.remote(3), timeout=20) == 4
    cluster.remove_node(third)
    assert process.is_running()
