"""What a worker notes of what it ran: rows, stretches, the bound, the message.

What    EventBuffer, Stretch, Events over a runtime that only keeps what it was told.
Never   starts a worker.
"""

import threading
from types import SimpleNamespace

import msgpack
import pytest

from zray.actors.events import CALL, TASK, EventBuffer, Events, Stretch
from zray.protocol import messages
from zray.protocol.ids import object_id
from zray.protocol.limits import (
    EVENTS_BATCH_BYTES_MAX,
    EVENTS_BATCH_MAX,
    EVENTS_LINGER_S,
    EVENTS_UNSENT_MAX,
)

CLIENT = b"client--"


@pytest.fixture
def reminders():
    return []


@pytest.fixture
def buffer(reminders):
    return EventBuffer(10, lambda: reminders.append(None))


def ran(buffer, number=1, began=1.0, duration_s=1e-5, **more):
    buffer.ran(TASK, "work", CLIENT, number, began, began + duration_s, **more)


def test_a_run_is_a_row_that_is_taken_once(buffer):
    buffer.ran(TASK, "work", CLIENT, 7, 1.0, 3.0, 4, True)
    assert buffer.take() == ([(TASK, "work", CLIENT, 7, 1.0, 3.0, 4, True)], 0)
    assert buffer.take() == ([], 0)


def test_only_the_first_run_after_a_take_reminds(buffer, reminders):
    ran(buffer)
    ran(buffer)
    assert len(reminders) == 1
    buffer.take()
    assert len(reminders) == 1, "nothing has run: nothing is to be done"
    ran(buffer)
    assert len(reminders) == 2


def test_what_does_not_fit_is_counted(buffer, reminders):
    for number in range(20):
        ran(buffer, number, count=3)
    rows, dropped = buffer.take()
    assert [row[3] for row in rows] == [0, 1, 2, 3, 4, 5, 6]
    assert dropped == 13 * 3
    assert buffer.take() == ([], 0)


def test_short_runs_leave_a_quarter_of_the_room_to_long_ones(buffer):
    for number in range(100):
        ran(buffer, number)
    for number in range(100, 120):
        ran(buffer, number, duration_s=0.01)
    rows, dropped = buffer.take()
    assert [row[3] for row in rows] == [0, 1, 2, 3, 4, 5, 6, 100, 101, 102]
    assert dropped == 93 + 17


def test_runs_dropped_after_a_take_has_begun_remind_too(reminders):
    buffer = EventBuffer(0, lambda: reminders.append(None))
    ran(buffer)
    assert len(reminders) == 1
    assert buffer.take() == ([], 1)


def test_threads_that_run_while_another_takes_lose_no_row():
    buffer = EventBuffer(1_000_000, lambda: None)
    each, taken = 5000, []

    def run(first):
        for number in range(first, first + each):
            ran(buffer, number)

    threads = [threading.Thread(target=run, args=(at * each,)) for at in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        taken += buffer.take()[0]
    taken += buffer.take()[0]
    assert sorted(row[3] for row in taken) == list(range(4 * each))


def test_calls_of_one_method_are_one_row_with_their_count(buffer):
    stretch = Stretch(buffer.ran)
    stretch.begin("A.add", CLIENT, 5, 1.0)
    stretch.count += 3
    stretch.close(1.5)
    stretch.close(1.6)
    assert buffer.take()[0] == [(CALL, "A.add", CLIENT, 5, 1.0, 1.5, 3, False)]
    assert stretch.name == "", "the next call begins one of its own"


def test_another_method_ends_a_stretch(buffer):
    stretch = Stretch(buffer.ran)
    stretch.begin("A.add", CLIENT, 5, 1.0)
    stretch.count += 2
    stretch.begin("A.get", CLIENT, 7, 1.1)
    stretch.count += 1
    stretch.close(1.2, failed=True)
    assert buffer.take()[0] == [
        (CALL, "A.add", CLIENT, 5, 1.0, 1.1, 2, False),
        (CALL, "A.get", CLIENT, 7, 1.1, 1.2, 1, True),
    ]


def test_a_stretch_without_a_call_is_no_row(buffer):
    stretch = Stretch(buffer.ran)
    stretch.begin("A.add", CLIENT, 5, 1.0)
    stretch.close(1.5)
    assert buffer.take() == ([], 0)


class Runtime:
    """Keeps what it is told."""

    process = b"worker--"

    def __init__(self):
        self.sent = []
        self.due = []
        self.on_due = None

    def call(self, kind, *fields):
        self.sent.append((kind, *fields))

    def due_in(self, seconds):
        self.due.append(seconds)


@pytest.fixture
def runtime():
    return Runtime()


def test_events_are_sent_half_a_second_after_the_first_of_them(runtime):
    events = Events(runtime)
    assert not runtime.due, "nothing ran: nothing wakes"
    ran(events)
    ran(events)
    assert runtime.due == [EVENTS_LINGER_S]
    assert not runtime.sent
    runtime.on_due()
    ((kind, packed, dropped, question),) = runtime.sent
    assert (kind, dropped, question) == (messages.EVENTS, 0, None)
    assert len(msgpack.unpackb(packed)) == 2
    runtime.on_due()
    assert len(runtime.sent) == 1


def test_a_row_becomes_an_event_of_the_ring(runtime):
    from zray.brokers.gcs.events import EVENT_FIELDS

    events = Events(runtime)
    events.ran(CALL, "A.add", CLIENT, 9, 10.0, 10.5, 2, True)
    events.send()
    ((kind, at_s, *values),) = msgpack.unpackb(runtime.sent[0][1])
    fields = SimpleNamespace(**dict(zip(EVENT_FIELDS[kind], values, strict=True)))
    assert fields.task == object_id(CLIENT, 9)
    assert (fields.function, fields.worker) == ("A.add", b"worker--".hex())
    assert (fields.failed, fields.count) == (True, 2)
    assert fields.duration_s == 0.5
    assert at_s - fields.started_at == pytest.approx(0.5)
    assert fields.started_at > 1e9, "seconds of the day, not since the machine began"


def test_a_question_is_answered_last_and_also_by_who_has_nothing(runtime):
    events = Events(runtime)
    events.send(3)
    ran(events)
    events.send(4)
    assert [(bool(packed), question) for _kind, packed, _dropped, question in runtime.sent] == [
        (False, 3),
        (True, None),
        (False, 4),
    ]


def test_no_message_is_larger_than_a_node_takes(runtime):
    events = Events(runtime)
    name = "\N{GREEK SMALL LETTER ALPHA}" * 5000
    for number in range(EVENTS_UNSENT_MAX + 100):
        events.ran(CALL, name, CLIENT, number, 1.0, 2.0)
    events.send()
    assert all(len(sent[1]) <= EVENTS_BATCH_BYTES_MAX for sent in runtime.sent)
    lengths = [len(msgpack.unpackb(sent[1])) for sent in runtime.sent if sent[1]]
    assert max(lengths) == EVENTS_BATCH_MAX
    assert sum(lengths) == EVENTS_UNSENT_MAX
    assert [sent[2] for sent in runtime.sent if sent[2]] == [100]
