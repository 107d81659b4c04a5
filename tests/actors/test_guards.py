"""Workers under a lease: stopped when it is over, continued when it stands again.

What    Real children that count in shared memory, a real table of leases.
Caller  pytest.
Never   leaves a child behind.
"""

from __future__ import annotations

import mmap
import os
import signal
import time
from collections.abc import Iterator

import pytest

from tests.waiting import wait_until
from zray.actors.guards import Guards
from zray.store.lease_table import LeaseTable

FOREVER = float("inf")
STEP_S = 0.001


class Child:
    """A process that counts."""

    def __init__(self) -> None:
        self.shared = mmap.mmap(-1, 8)
        self.count = memoryview(self.shared).cast("Q")
        self.pid = os.fork()
        if self.pid == 0:
            while True:
                self.count[0] += 1
                time.sleep(STEP_S)

    def state(self) -> str:
        with open(f"/proc/{self.pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0]

    def close(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self.count.release()
        self.shared.close()


@pytest.fixture
def child() -> Iterator[Child]:
    made = Child()
    yield made
    made.close()


@pytest.fixture
def tables() -> Iterator[tuple[LeaseTable, LeaseTable]]:
    """Return a node's table, and the zygote's view of it."""
    ours = LeaseTable.create()
    theirs = LeaseTable(os.dup(ours.read_only_fd), writable=False)
    yield ours, theirs
    ours.close()
    theirs.close()


def test_a_child_stands_still_while_its_lease_is_over(
    child: Child, tables: tuple[LeaseTable, LeaseTable]
) -> None:
    ours, theirs = tables
    guards = Guards(theirs)
    assert guards.enforce(0.0) is None
    ours.set_end(3, 10.0)
    guards.add(child.pid, 3)
    assert guards.enforce(9.75) == 0.25
    assert child.state() in "SR"
    assert guards.enforce(10.0) is not None
    wait_until(lambda: child.state() == "T")
    seen = child.count[0]
    ours.set_end(3, FOREVER)
    assert child.count[0] == seen
    guards.enforce(11.0)
    wait_until(lambda: child.count[0] > seen)


def test_a_lease_that_never_stood_lets_nothing_run(
    child: Child, tables: tuple[LeaseTable, LeaseTable]
) -> None:
    guards = Guards(tables[1])
    guards.add(child.pid, 7)
    guards.enforce(time.monotonic())
    wait_until(lambda: child.state() == "T")


def test_an_end_that_is_moved_nearer_is_seen_in_time(
    child: Child, tables: tuple[LeaseTable, LeaseTable]
) -> None:
    """A node that has just joined runs actors before it knows of any lease of its own."""
    ours, theirs = tables
    guards = Guards(theirs)
    ours.set_end(0, FOREVER)
    ours.set_end(1, FOREVER)
    guards.add(child.pid, 1)
    again_s = guards.enforce(0.0)
    assert again_s is not None
    assert again_s < 1.0
    guards.add(child.pid, 0)
    assert guards.enforce(0.0) is None, "nothing of it can end"


def test_who_was_stopped_by_somebody_else_is_left_alone(
    child: Child, tables: tuple[LeaseTable, LeaseTable]
) -> None:
    ours, theirs = tables
    ours.set_end(1, FOREVER)
    guards = Guards(theirs)
    guards.add(child.pid, 1)
    os.kill(child.pid, signal.SIGSTOP)
    wait_until(lambda: child.state() == "T")
    guards.enforce(1.0)
    assert child.state() == "T"
    os.kill(child.pid, signal.SIGCONT)


def test_a_child_that_was_reaped_is_not_signalled_again(
    child: Child, tables: tuple[LeaseTable, LeaseTable]
) -> None:
    ours, theirs = tables
    ours.set_end(1, 5.0)
    guards = Guards(theirs)
    guards.add(child.pid, 1)
    guards.forget(child.pid)
    assert guards.enforce(6.0) is None
    assert child.state() in "SR"


def test_who_reads_the_table_cannot_write_to_it(tables: tuple[LeaseTable, LeaseTable]) -> None:
    ours, theirs = tables
    ours.set_end(0, 1.5)
    assert theirs.end(0) == 1.5
    with pytest.raises(TypeError):
        theirs.set_end(0, 2.0)
    with pytest.raises(PermissionError):
        mmap.mmap(ours.read_only_fd, 4096, mmap.MAP_SHARED, mmap.PROT_WRITE)
