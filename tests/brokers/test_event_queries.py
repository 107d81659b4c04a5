"""Questions for events: whom the node asks, and when it answers.

What    EventQueries around a node that only keeps what it was told; what EVENTS may be.
Never   starts a process.
"""

from types import SimpleNamespace

import msgpack
import pytest

from zray.brokers.event_queries import EventQueries
from zray.brokers.gcs.catalog import Catalog
from zray.brokers.validation import check_fields
from zray.errors import RemoteProtocolError
from zray.protocol import frames, messages
from zray.protocol.limits import EVENTS_ANSWER_S, EVENTS_BATCH_BYTES_MAX, EVENTS_BATCH_MAX

WORKERS = [b"worker-1", b"worker-2"]


class Node:
    """Processes, and what was sent to them."""

    def __init__(self):
        def process(identity, role):
            return SimpleNamespace(identity=identity, role=role)

        self.asker = process(b"driver-1", "driver")
        rows = [self.asker, *(process(identity, "worker") for identity in WORKERS)]
        self.processes = SimpleNamespace(by_id={row.identity: row for row in rows})
        self.now = 100.0
        self.told = []
        self.answers = []

    def tell(self, identity, kind, *fields):
        self.told.append((identity, kind, *fields))

    def answer(self):
        self.answers.append("told")


@pytest.fixture
def node():
    return Node()


@pytest.fixture
def queries(node):
    return EventQueries(node)


def answer(node, queries, identity, question):
    queries.answered(node.processes.by_id[identity], question)


def test_every_worker_is_asked_and_the_answer_waits_for_all_of_them(node, queries):
    queries.ask(node.answer)
    assert node.told == [(identity, messages.EVENTS_WANTED, 1) for identity in WORKERS]
    for identity in WORKERS:
        queries.settle(node.now)
        assert not node.answers
        assert queries, "the loop must look again"
        answer(node, queries, identity, 1)
    queries.settle(node.now)
    assert node.answers == ["told"]
    assert not queries


def test_a_worker_that_does_not_answer_delays_it_by_a_bound(node, queries):
    queries.ask(node.answer)
    queries.settle(node.now + EVENTS_ANSWER_S * 0.9)
    assert not node.answers
    queries.settle(node.now + EVENTS_ANSWER_S)
    assert len(node.answers) == 1


def test_a_worker_that_dies_is_not_waited_for(node, queries):
    queries.ask(node.answer)
    answer(node, queries, WORKERS[0], 1)
    del node.processes.by_id[WORKERS[1]]
    queries.settle(node.now)
    assert len(node.answers) == 1


def test_the_answer_to_an_older_question_is_none_to_a_newer_one(node, queries):
    queries.ask(node.answer)
    queries.ask(node.answer)
    for identity in WORKERS:
        answer(node, queries, identity, 1)
    queries.settle(node.now)
    assert len(node.answers) == 1
    assert queries


def packed(count):
    return msgpack.packb([["call_executed", 1.0, *range(8)]] * count)


@pytest.fixture
def catalog(tmp_path):
    opened = Catalog(str(tmp_path), node=b"node----", durable=False, resources={})
    yield opened
    opened.close(2.0)


def test_events_of_a_worker_and_what_it_dropped_are_in_the_ring(catalog):
    catalog.ran(b"worker-1", 41, packed(3), 7)
    kinds = [event.kind for event in catalog.events.select()]
    assert kinds == ["node_started", *["call_executed"] * 3, "events_dropped"]
    (dropped,) = catalog.events.select(kind="events_dropped")
    assert dropped.fields == {"worker": b"worker-1".hex(), "pid": 41, "count": 7}
    assert catalog.statistics()["events_unsent"] == 7


@pytest.mark.parametrize("batch", [b"\x00", packed(EVENTS_BATCH_MAX + 1)], ids=["none", "many"])
def test_a_batch_that_is_none_or_claims_too_much_is_refused(catalog, batch):
    with pytest.raises(RemoteProtocolError, match="EVENTS"):
        catalog.ran(b"worker-1", 41, batch, 0)
    assert len(catalog.events.select()) == 1


@pytest.mark.parametrize(
    "fields",
    [
        ("text", 0, None),
        (bytes(EVENTS_BATCH_BYTES_MAX + 1), 0, None),
        (b"", -1, None),
        (b"", 1.0, None),
        (b"", 0, "1"),
        (b"", 0, -1),
    ],
)
def test_fields_of_events_are_looked_at(fields):
    message = frames.unpack(frames.pack(messages.EVENTS, *fields))
    with pytest.raises(RemoteProtocolError, match="EVENTS with a malformed"):
        check_fields(message)
