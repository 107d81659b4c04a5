"""Leases of the scheduler: granted, waited for in turn, recalled, refused.

What    LEASE, UNLEASE and what else comes between, into a scheduler of two CPUs; commands out.
Caller  pytest.
Never   starts a process or reads a clock.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.brokers.test_scheduler import CLIENT, ONE, OTHER, W1, W2, Node
from zray.brokers.scheduling import Claim, Granted, Recall

THIRD = b"client-3"


@pytest.fixture
def node() -> Iterator[Node]:
    made = Node()
    made.declare(THIRD, 0, {"CPU": ONE})
    made.start(W1, W2)
    yield made
    made.scheduler.check()
    made.scheduler.leases.check()


def lend_both(node: Node) -> None:
    """CLIENT and OTHER have a worker each."""
    node.scheduler.lease(CLIENT, 0)
    node.scheduler.lease(OTHER, 0)
    granted = [each for each in node.commands() if isinstance(each, Granted)]
    assert {each.worker for each in granted} == {W1, W2}


def lease_of(node: Node, client: bytes) -> bytes:
    (worker,) = (
        worker.process for worker in node.scheduler.workers.values() if worker.lessee == client
    )
    return worker


def test_an_idle_worker_is_lent_at_once(node: Node) -> None:
    node.scheduler.lease(CLIENT, 0)
    assert [type(each) for each in node.commands()] == [Granted]


def test_who_could_get_nothing_from_any_leases_end_is_refused(node: Node) -> None:
    node.submit(1, 500)
    node.commands()
    node.scheduler.lease(OTHER, 0)
    assert Granted(OTHER, 0, None, False) in node.commands()


def test_who_finds_all_workers_lent_waits_for_one_that_is_recalled(node: Node) -> None:
    lend_both(node)
    node.scheduler.lease(THIRD, 0)
    (recall,) = node.commands()
    assert isinstance(recall, Recall)
    node.scheduler.unlease(recall.client, recall.worker)
    assert node.commands() == [Granted(THIRD, 0, recall.worker, False)]


def test_a_lease_that_others_still_wait_for_is_lent_for_a_turn(node: Node) -> None:
    lend_both(node)
    node.scheduler.lease(THIRD, 0)
    (recall,) = node.commands()
    assert isinstance(recall, Recall)
    node.scheduler.unlease(recall.client, recall.worker)
    node.commands()
    node.scheduler.lease(recall.client, 0)
    (second,) = node.commands()
    assert isinstance(second, Recall)
    assert second.worker != recall.worker
    node.scheduler.lease(second.client, 0)
    (third,) = node.commands()
    assert isinstance(third, Recall)
    assert third.client == THIRD
    node.scheduler.unlease(second.client, second.worker)
    assert node.commands() == [Granted(recall.client, 0, second.worker, False)]
    node.scheduler.unlease(THIRD, third.worker)
    assert node.commands() == [Granted(second.client, 0, third.worker, False)]


def test_queue_and_waiting_clients_take_turns(node: Node) -> None:
    lend_both(node)
    node.scheduler.lease(THIRD, 0)
    node.submit(1, 1, client=CLIENT)
    node.submit(2, 1, client=CLIENT)
    worker = lease_of(node, CLIENT)
    node.commands()
    node.scheduler.unlease(CLIENT, worker)
    assert node.runs() == [(worker, 1, 0, 1)]
    node.scheduler.finished(worker, [[CLIENT, 1, 0, 1, 10]], 1.0)
    (granted, *_recall) = node.commands()
    assert granted == Granted(THIRD, 0, worker, False), "not the queue's next task"
    node.scheduler.lease(CLIENT, 0)
    node.scheduler.unlease(THIRD, worker)
    assert node.runs() == [(worker, 2, 0, 1)], "not the next lease"


def test_an_actor_that_wants_a_worker_ends_the_wait_of_all(node: Node) -> None:
    lend_both(node)
    node.scheduler.lease(THIRD, 0)
    node.commands()
    node.scheduler.claim(Claim(b"a" * 16, {"CPU": ONE}, {"CPU": ONE}, ()))
    node.scheduler.pump()
    assert Granted(THIRD, 0, None, False) in node.commands()


def test_a_dead_client_waits_for_nothing(node: Node) -> None:
    lend_both(node)
    node.scheduler.lease(THIRD, 0)
    (recall,) = node.commands()
    assert isinstance(recall, Recall)
    node.scheduler.client_died(THIRD)
    node.scheduler.unlease(recall.client, recall.worker)
    assert not [each for each in node.commands() if isinstance(each, Granted)]


def test_who_waits_is_refused_when_no_lease_is_left_that_could_end(node: Node) -> None:
    lend_both(node)
    node.scheduler.lease(THIRD, 0)
    node.commands()
    for worker in (W1, W2):
        node.scheduler.worker_died(worker, "killed")
    commands = node.commands()
    # Two workers are forked in their place: one of those is for it.
    assert Granted(THIRD, 0, None, False) not in commands
    node.scheduler.worker_forked(b"worker-3", ())
    node.scheduler.worker_ready(b"worker-3")
    assert Granted(THIRD, 0, b"worker-3", False) in node.commands()


def test_a_recalled_lease_whose_task_waits_is_no_hope_for_others(node: Node) -> None:
    """The task may wait for the very one that asks: deep chains stood still for 0.4 s."""
    fourth, third_worker = b"client-4", b"worker-3"
    node.declare(fourth, 0, {"CPU": ONE})
    lend_both(node)
    node.scheduler.lease(THIRD, 0)
    (recall,) = node.commands()
    assert isinstance(recall, Recall)
    node.scheduler.worker_forked(third_worker, ())
    node.scheduler.worker_ready(third_worker)
    node.scheduler.blocked(recall.worker)
    assert Granted(THIRD, 0, third_worker, False) in node.commands()
    node.scheduler.lease(fourth, 0)
    (other,) = node.commands()
    assert isinstance(other, Recall)
    assert other.worker not in (recall.worker, third_worker)
