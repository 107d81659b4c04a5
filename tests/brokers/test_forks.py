"""Workers started ahead of a chain of waiting tasks.

What    How many, when, and that nothing is started ahead where nobody waits or enough are there.
Never   starts a worker.
"""

from __future__ import annotations

from tests.brokers.test_scheduler import CLIENT, Node
from zray.brokers.scheduling import Fork


def _forked(node: Node) -> int:
    return sum(each.count for each in node.commands() if isinstance(each, Fork))


def _descend(node: Node, level: int) -> None:
    """One level of a chain: a worker gets a task, and waits for the next one."""
    worker = b"chain%03d" % level
    if worker not in node.scheduler.workers:
        node.start(worker)
    node.submit(level + 1, 1)
    (busy,) = [
        each.process
        for each in node.scheduler.workers.values()
        if each.outstanding and not each.blocked
    ]
    node.scheduler.blocked(busy)


def test_nothing_is_forked_ahead_of_a_single_wait() -> None:
    node = Node()
    _descend(node, 0)
    assert _forked(node) == 0
    node.scheduler.check()


def test_the_deeper_a_chain_the_more_workers_are_on_their_way() -> None:
    node = Node()
    on_their_way = []
    for level in range(8):
        _descend(node, level)
        on_their_way.append(node.scheduler.forking.get((), 0))
    assert on_their_way == [0, 2, 2, 2, 2, 4, 4, 4]
    node.scheduler.check()


def test_idle_workers_are_enough_to_go_on_with() -> None:
    node = Node()
    node.start(*(b"spare%03d" % number for number in range(8)))
    for level in range(4):
        node.submit(level + 1, 1, client=CLIENT)
        (busy,) = [
            each.process
            for each in node.scheduler.workers.values()
            if each.outstanding and not each.blocked
        ]
        node.scheduler.blocked(busy)
    assert _forked(node) == 0
    node.scheduler.check()
