"""Generators: items of a running task, as references, with back-pressure.

What    Item i of generator task n is object (i + 1) << 40 | n. The worker sends items as it
        yields them and stops ahead of the consumer by the backlog; CONSUMED lets it run on.
        The task's own outcome (object n) is the number of items, or its error.
Caller  zray/session/session.py, zray/refs.py.
Never   waits.
"""

from zray.protocol import messages
from zray.protocol.ids import ProcessId, return_number
from zray.protocol.limits import GENERATOR_BACKLOG_MAX

from .outbox import Outbox
from .references import References

_CLOSED_KEPT = 256


class Stream:
    """One generator task as its consumer sees it."""

    __slots__ = ("arrived", "consumed", "doubtful", "number", "owed", "worker")

    def __init__(self, number: int) -> None:
        self.number = number
        self.arrived = 0
        self.consumed = 0
        self.worker: ProcessId | None = None
        self.owed = 0
        self.doubtful = False
        """Its worker has died: it may have made items that nobody will hear of."""


class Streams:
    """The generators that this process consumes. Methods need the session's lock."""

    def __init__(self, references: References, outbox: Outbox) -> None:
        self.references = references
        self.outbox = outbox
        self.open: dict[int, Stream] = {}
        self.closed: dict[int, Stream] = {}
        """The last ones whose consumer has gone: their workers may still be making items."""

    def start(self, number: int) -> Stream:
        """Follow the items of generator task ``number``."""
        stream = self.open[number] = Stream(number)
        return stream

    def yielded(self, worker: ProcessId, number: int, index: int, found: bytes) -> None:
        """YIELDED: item ``index``. A second execution's repeats are acknowledged, not kept."""
        stream = self.open.get(number)
        if stream is None:
            self.references.arrived_again(return_number(number, index + 1), found)
            self.outbox.message(worker, messages.CONSUMED, number, -1)
            return
        stream.worker = worker
        if index < stream.arrived:
            self.references.arrived_again(return_number(number, index + 1), found)
            self.outbox.message(worker, messages.CONSUMED, number, max(stream.consumed, index + 1))
            return
        stream.arrived = index + 1
        self.references.arrived(return_number(number, index + 1), found)

    def consume(self, stream: Stream) -> int:
        """Take the next item: returns its object number; the worker may run on."""
        stream.consumed += 1
        stream.owed += 1
        # Who has caught up waits next: the worker may be waiting for this very word.
        if stream.owed >= 8 or stream.consumed >= stream.arrived:
            self.acknowledge(stream)
        return return_number(stream.number, stream.consumed)

    def acknowledge(self, stream: Stream) -> None:
        """Tell the worker how far the consumer has come."""
        if stream.worker is not None and stream.owed:
            stream.owed = 0
            self.outbox.message(stream.worker, messages.CONSUMED, stream.number, stream.consumed)

    def process_died(self, process: ProcessId) -> None:
        """A worker is gone, perhaps between making an item and sending word of it."""
        for stream in self.open.values():
            if stream.worker is None or stream.worker == process:
                stream.doubtful = True
        for number in [n for n, stream in self.closed.items() if stream.worker == process]:
            self._void_rest(self.closed.pop(number))

    def _void_rest(self, stream: Stream) -> None:
        for index in range(stream.arrived, stream.arrived + GENERATOR_BACKLOG_MAX):
            self.references.void(return_number(stream.number, index + 1))

    def close(self, stream: Stream) -> None:
        """The consumer has gone: the generator may stop, its items go."""
        if self.open.pop(stream.number, None) is None:
            return
        for index in range(stream.consumed, stream.arrived):
            self.references.garbage.append(return_number(stream.number, index + 1))
        if stream.doubtful:
            self._void_rest(stream)
        self.closed[stream.number] = stream
        if len(self.closed) > _CLOSED_KEPT:
            del self.closed[next(iter(self.closed))]
        if stream.worker is not None:
            self.outbox.message(stream.worker, messages.CONSUMED, stream.number, -1)
