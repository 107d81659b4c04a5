"""Submitted tasks: batches, numbers, outcomes once and again, leases, retries.

What    Events into Tasks, messages out of its outbox; ends with check().
Never   opens a socket.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgpack
import pytest

from tests.outbox import sent
from zray.errors import RemoteProtocolError
from zray.protocol import frames, messages, outcome
from zray.protocol.limits import BATCH_TASKS_MAX
from zray.session.outbox import Outbox
from zray.session.references import Key, References
from zray.session.tasks import MODE_MAP, TaskBatch, TaskClass, Tasks

ME, NODE, WORKER = b"a-client", b"the-node", b"worker-1"
ONE, TWO, ERROR = b"\x80one", b"\x80two", b"\x02boom"


class Client:
    """Tasks with its outbox, and two functions."""

    def __init__(self) -> None:
        self.outbox = Outbox()
        self.results: dict[Key, bytes] = {}
        self.references = References(ME, NODE, self.results, self.outbox)
        self.tasks = Tasks(NODE, self.results, self.references, self.outbox)
        self.tasks.split_values = lambda values, item: values[item : item + 1]
        self.plain = self.declare(retries=1)
        self.double = self.declare(retries=0, returns=2)

    def declare(self, *, retries: int, returns: int = 1) -> TaskClass:
        spec = [b"f", "f", {}, returns, retries, None, 0, {}, 0]
        return self.tasks.declare(spec, shape=(), returns=returns, max_retries=retries)

    def submit(self, count: int = 1, task_class: TaskClass | None = None) -> TaskBatch:
        """Submit tasks in one batch."""
        numbers = [
            self.tasks.submit(task_class or self.plain, b"arguments", None) for _ in range(count)
        ]
        self.tasks.close_open()
        return self.tasks.batches[numbers[0]]

    def submit_map(self, count: int) -> TaskBatch:
        batch = self.tasks.map_batch(self.plain, b"items", count, [])
        self.tasks.submit_batch(batch)
        return batch

    def arrive(self, batch: TaskBatch, low: int, *outcomes: bytes, special: bool = False) -> None:
        count = len(outcomes) // max(1, batch.task_class.returns)
        self.tasks.results_arrived(batch.first, low, count, list(outcomes), special)

    def sent(self, kind: int) -> list[list[Any]]:
        """Return the fields of the messages and calls of a kind since the last look."""
        return sent(self.outbox, kind)


@pytest.fixture
def client() -> Iterator[Client]:
    made = Client()
    yield made
    made.tasks.check()
    made.references.check()


def test_tasks_of_a_class_leave_as_one_message(client: Client) -> None:
    client.submit(3)
    (((peer, header, payloads)),) = client.outbox.messages
    assert peer == NODE
    assert frames.unpack(header)[3] == [[client.plain.number, 1, 3, 0, 3, 0, 1]]
    assert msgpack.unpackb(payloads[0]) == [b"arguments"] * 3


def test_numbers_are_consecutive_whatever_comes_between(client: Client) -> None:
    numbers = [client.tasks.submit(client.plain, b"", None) for _ in range(2)]
    taken = client.tasks.take_numbers()
    numbers.append(client.tasks.submit(client.plain, b"", None))
    client.tasks.close_open()
    assert numbers == [1, 2, 3]
    assert taken > BATCH_TASKS_MAX


def test_a_full_batch_leaves_by_itself(client: Client) -> None:
    for _ in range(BATCH_TASKS_MAX + 1):
        client.tasks.submit(client.plain, b"", None)
    assert [rows[0][2] for (rows,) in client.sent(messages.SUBMIT)] == [BATCH_TASKS_MAX]


def test_outcomes_may_come_in_parts_and_in_any_order(client: Client) -> None:
    batch = client.submit(3)
    client.arrive(batch, 1, TWO, TWO)
    assert list(batch.missing()) == [(0, 1)]
    client.arrive(batch, 0, ONE)
    assert client.results == {1: ONE, 2: TWO, 3: TWO}
    assert not client.tasks.batches


def test_several_returns_are_objects_of_their_own(client: Client) -> None:
    batch = client.submit(1, client.double)
    client.arrive(batch, 0, ONE, TWO)
    assert client.results == {1: ONE, (1 << 40) + 1: TWO}


def test_the_first_outcome_stands(client: Client) -> None:
    batch = client.submit(2)
    client.arrive(batch, 0, ONE)
    client.arrive(batch, 0, TWO, TWO)
    client.arrive(batch, 0, TWO, TWO)
    assert client.results == {1: ONE, 2: TWO}


def test_a_result_that_comes_after_the_end_is_given_up(client: Client) -> None:
    batch = client.submit()
    client.arrive(batch, 0, ONE)
    client.arrive(batch, 0, outcome.stored(4096, 100), special=True)
    client.references.collect()
    assert client.sent(messages.RELEASE) == [[[], [ME + bytes(7) + b"\1"]]]


def test_more_outcomes_than_tasks_are_refused(client: Client) -> None:
    batch = client.submit(2)
    with pytest.raises(RemoteProtocolError):
        client.arrive(batch, 1, ONE, ONE)


def test_two_executions_of_a_map_may_be_cut_differently(client: Client) -> None:
    """Found by simulation (seed 628): items of an abandoned map stayed for ever."""
    batch = client.submit_map(4)
    client.tasks.map_arrived(batch.first, 0, 2, b"ab")
    client.tasks.abandon([batch], frozenset(), 4)
    client.tasks.map_arrived(batch.first, 1, 3, b"bcd")
    assert not client.tasks.batches
    assert not client.results


def test_an_item_that_is_looked_at_becomes_an_object(client: Client) -> None:
    batch = client.submit_map(3)
    early = client.tasks.watch_item(batch, 0)
    client.tasks.map_arrived(batch.first, 0, 3, b"abc")
    late = client.tasks.watch_item(batch, 2)
    assert client.results == {early: b"a", late: b"c"}
    assert batch.mode == MODE_MAP


# -- retries -------------------------------------------------------------------------------------


def test_each_task_has_retries_of_its_own(client: Client) -> None:
    """One crash that loses two parts of a batch is one retry for each task, not two for all."""
    batch = client.submit(10)
    client.sent(messages.SUBMIT)
    assert client.tasks.again(batch, 0, 3) == []
    assert client.tasks.again(batch, 5, 8) == []
    assert [rows[0][3:] for (rows,) in client.sent(messages.SUBMIT)] == [[0, 3, 0, 0], [5, 8, 0, 0]]
    assert client.tasks.again(batch, 0, 10) == [(0, 3), (5, 8)]
    assert [rows[0][3:5] for (rows,) in client.sent(messages.SUBMIT)] == [[3, 5], [8, 10]]


def test_a_task_that_may_not_run_again_is_said_to_be_spent(client: Client) -> None:
    batch = client.submit(1, client.double)
    assert client.tasks.again(batch, 0, 1) == [(0, 1)]
    client.tasks.failed(batch, 0, ERROR)
    assert client.results == {1: ERROR, (1 << 40) + 1: ERROR}


def test_a_failed_task_keeps_the_outcome_it_had(client: Client) -> None:
    batch = client.submit(2)
    client.arrive(batch, 0, ONE)
    client.tasks.failed(batch, 0, ERROR)
    assert client.results == {1: ONE}


def test_what_the_node_should_have_is_what_is_not_done(client: Client) -> None:
    batch = client.submit(5)
    client.arrive(batch, 1, ONE, ONE)
    assert client.tasks.unfinished() == [[1, 0, 1], [1, 3, 5]]


# -- leases --------------------------------------------------------------------------------------


def lease(client: Client) -> None:
    """Work synchronously until the node is asked for a lease, and get it."""
    for _ in range(3):
        batch = client.submit()
        client.arrive(batch, 0, ONE)
    assert client.sent(messages.LEASE) == [[client.plain.number]]
    client.tasks.leased(client.plain.number, WORKER)


def test_who_works_synchronously_calls_its_worker_directly(client: Client) -> None:
    lease(client)
    batch = client.submit()
    assert [peer for peer, _header, _payloads in client.outbox.messages] == [WORKER]
    assert batch.target == WORKER
    assert client.tasks.unfinished() == [], "the node knows nothing of it"


def test_a_lease_is_given_back_when_it_is_wanted(client: Client) -> None:
    lease(client)
    client.tasks.recalled(WORKER, busy=False)
    assert client.sent(messages.UNLEASE) == [[WORKER]]


def ask_for_lease(client: Client) -> TaskBatch:
    """Work synchronously until the node is asked for a lease; returns the task that waits."""
    for _ in range(2):
        client.arrive(client.submit(), 0, ONE)
    batch = client.submit()
    assert client.sent(messages.LEASE) == [[client.plain.number]]
    return batch


def test_a_recall_that_overtakes_its_lease_gives_the_lease_back_unused(client: Client) -> None:
    """The node recalls a lease once: who waits for the worker waited until we were idle."""
    batch = ask_for_lease(client)
    client.arrive(batch, 0, ONE)
    client.tasks.recalled(WORKER, busy=False)
    assert client.sent(messages.UNLEASE) == [], "there is no lease yet"
    client.tasks.leased(client.plain.number, WORKER)
    assert client.sent(messages.UNLEASE) == [[WORKER]]
    assert client.tasks.leases.get(client.plain.shape) is None


def test_a_recall_that_overtakes_its_lease_lets_the_waiting_task_run(client: Client) -> None:
    batch = ask_for_lease(client)
    client.tasks.recalled(WORKER, busy=False)
    client.tasks.leased(client.plain.number, WORKER)
    assert batch.target == WORKER
    assert client.tasks.turn_runs
    client.tasks.end_turn()
    assert client.sent(messages.UNLEASE) == [], "its task runs"
    client.arrive(batch, 0, ONE)
    assert client.sent(messages.UNLEASE) == [[WORKER]]


def test_an_early_recall_is_good_for_one_lease_of_that_worker(client: Client) -> None:
    client.arrive(ask_for_lease(client), 0, ONE)
    client.tasks.recalled(b"worker-2", busy=False)
    client.tasks.leased(client.plain.number, WORKER)
    assert client.sent(messages.UNLEASE) == [], "another worker's"
    client.tasks.recalled(WORKER, busy=False)
    client.sent(messages.UNLEASE)
    for lent_again in (True, False):
        client.tasks.leased(client.plain.number, b"worker-2")
        assert client.sent(messages.UNLEASE) == [[b"worker-2"]] * lent_again


def test_who_uses_a_lease_that_others_wait_for_keeps_it_for_a_turn(client: Client) -> None:
    lease(client)
    client.tasks.recalled(WORKER, busy=True)
    assert client.tasks.turn_runs
    for _ in range(10):
        batch = client.submit()
        assert batch.target == WORKER
        client.arrive(batch, 0, ONE)
    assert client.sent(messages.UNLEASE) == []
    client.tasks.end_turn()
    assert client.sent(messages.UNLEASE) == [[WORKER]]
    client.sent(messages.LEASE)
    client.submit()
    assert client.sent(messages.LEASE) == [[client.plain.number]], "it asks again at once"


def test_a_turn_that_ends_during_a_task_gives_the_lease_back_after_it(client: Client) -> None:
    lease(client)
    batch = client.submit()
    client.tasks.recalled(WORKER, busy=False)
    client.tasks.end_turn()
    assert client.sent(messages.UNLEASE) == []
    client.arrive(batch, 0, ONE)
    assert client.sent(messages.UNLEASE) == [[WORKER]]


def test_a_lease_is_not_kept_for_a_turn_by_who_waits_for_the_node(client: Client) -> None:
    lease(client)
    client.submit()
    client.arrive(client.submit(), 0, ONE)  # It went to the node: the leased worker was in use.
    waiting = client.submit()
    held = client.tasks.leases[client.plain.shape]
    assert held is not None
    held.batch = None
    client.tasks.recalled(WORKER, busy=True)
    assert waiting.target is None
    assert client.sent(messages.UNLEASE) == [[WORKER]]


def test_a_lease_for_a_turn_runs_the_task_that_asked_for_it(client: Client) -> None:
    for _ in range(2):
        client.arrive(client.submit(), 0, ONE)
    batch = client.submit()
    client.tasks.leased(client.plain.number, WORKER, recalled=True)
    assert batch.target == WORKER
    client.tasks.end_turn()
    client.arrive(batch, 0, ONE)
    assert client.sent(messages.UNLEASE) == [[WORKER]]


def test_a_lease_nobody_uses_is_given_back(client: Client) -> None:
    lease(client)
    assert client.tasks.sweep_leases()
    assert not client.tasks.sweep_leases()
    assert client.sent(messages.UNLEASE) == [[WORKER]]


def test_a_task_on_a_leased_worker_that_dies_goes_to_the_node(client: Client) -> None:
    lease(client)
    batch = client.submit()
    client.sent(messages.RUN)
    assert client.tasks.worker_died(WORKER, "killed") == []
    assert len(client.sent(messages.SUBMIT)) == 1
    assert batch.target is None
    assert not client.tasks.leases
