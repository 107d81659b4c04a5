"""Workers that die while they start are forked again, later and later.

What    The scheduler's back-off, event by event.
Never   forks.
"""

from zray.brokers.resources import ResourceSet
from zray.brokers.scheduler import Scheduler
from zray.brokers.scheduling import Fork

IDLE_S = 5.0


def forks(scheduler: Scheduler) -> int:
    """Return how many forks were commanded since the last look."""
    commands, scheduler.commands = scheduler.commands, []
    return sum(command.count for command in commands if isinstance(command, Fork))


def test_a_worker_that_dies_while_it_starts_is_forked_again_after_a_while_only():
    scheduler = Scheduler(ResourceSet({"CPU": 10_000}), pool_size=1)
    scheduler.start_pool()
    assert forks(scheduler) == 1
    now, waits = 0.0, []
    for number in range(4):
        name = b"worker-%d" % number
        scheduler.worker_forked(name, ())
        scheduler.worker_died(name, "it could not start")
        assert forks(scheduler) == 0, "at once: a hot loop"
        died_at = now
        while not forks(scheduler):
            now += 0.05
            scheduler.retire(now, IDLE_S)
        waits.append(now - died_at)
    assert waits == sorted(waits), "each wait is longer than the one before"
    assert scheduler.failed_starts == 4


def test_a_worker_that_starts_ends_the_back_off():
    scheduler = Scheduler(ResourceSet({"CPU": 10_000}), pool_size=1)
    scheduler.start_pool()
    scheduler.worker_forked(b"worker-1", ())
    scheduler.worker_died(b"worker-1", "it could not start")
    scheduler.retire(1.0, IDLE_S)
    scheduler.worker_forked(b"worker-2", ())
    scheduler.worker_ready(b"worker-2")
    assert scheduler.failed_starts == 0
    forks(scheduler)
    scheduler.worker_died(b"worker-2", "killed")
    assert forks(scheduler) == 1, "one that had started is replaced at once"


def test_a_node_that_ends_replaces_none_of_its_workers():
    scheduler = Scheduler(ResourceSet({"CPU": 20_000}), pool_size=2)
    scheduler.start_pool()
    for name in (b"worker-1", b"worker-2"):
        scheduler.worker_forked(name, ())
    scheduler.worker_ready(b"worker-1")
    forks(scheduler)
    scheduler.stop_forking()
    scheduler.worker_died(b"worker-1", "it was told to")
    scheduler.worker_ready(b"worker-2")  # It was on its way.
    scheduler.worker_died(b"worker-2", "it was told to")
    scheduler.retire(1000.0, IDLE_S)
    assert forks(scheduler) == 0
