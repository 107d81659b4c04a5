"""The serving side of the transfer machine: who is sent which chunk, and when.

What    Readers are pulls of other nodes. A reader of an object that is complete here is sent what
        it asks for; a reader of one that is still on its way in is told what is here, and of each
        chunk that comes. Nodes take turns, chunk by chunk, and within a node what somebody waits
        for goes before what is prefetched. Only a few chunks of each node are in ZeroMQ's hands
        at a time; those keep their memory, whatever becomes of the object.
Caller  brokers/transfer.py.
Never   looks at bytes, or keeps an object longer than somebody reads it.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable

from zray.protocol.chunks import CHUNK_BYTES, Ask, Gone, Have, chunk_count, chunk_span
from zray.protocol.ids import ObjectId

from .transferring import Command, Copy, FreeExtent, Locate, Peer, Priority, Send, SendChunk, Unpin

SEND_BYTES = 4 * CHUNK_BYTES
"""In ZeroMQ's hands for one node: enough to keep the line busy, little enough to take turns."""

READER_IDLE_S = 10.0
"""A reader that has asked for nothing for this long is forgotten; it may come back."""


class Reader:
    """A pull of another node."""

    __slots__ = (
        "copy",
        "gained",
        "heard_at",
        "nbytes",
        "number",
        "object",
        "peer",
        "priority",
        "queue",
        "refused",
        "told",
    )

    def __init__(self, peer: Peer, ask: Ask) -> None:
        self.peer = peer
        self.number = ask.pull
        self.object = ask.object
        self.nbytes = ask.nbytes
        self.priority = Priority(ask.priority)
        self.copy: Copy | None = None
        """None: the node is looking for it, or it waits here for memory."""
        self.queue: dict[int, None] = {}
        """Chunks to send, in order."""
        self.told = False
        """Whether the reader was told what is here: then it must hear of all that comes."""
        self.gained: list[int] = []
        self.refused: list[int] = []
        self.heard_at = 0.0


class Outgoing:
    """What is sent to one node."""

    __slots__ = ("in_flight_bytes", "peer", "ready")

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.in_flight_bytes = 0
        self.ready: tuple[OrderedDict[int, Reader], ...] = tuple(OrderedDict() for _ in Priority)
        """Readers with a queue that can be served, by priority; the next one first."""


class Serving:
    """All readers of one node. See brokers/transfer.py for the meaning of the methods' names.

    Args:
        emit: takes commands.
        is_wanted: tells whether this node itself waits for an object.
    """

    def __init__(
        self, emit: Callable[[Command], None], is_wanted: Callable[[ObjectId], bool]
    ) -> None:
        self.readers: dict[tuple[Peer, int], Reader] = {}
        self.copies: dict[ObjectId, Copy] = {}
        """What can be served: pinned by the node, or on its way in."""
        self.outgoing: dict[Peer, Outgoing] = {}
        self._pinned: set[ObjectId] = set()
        self._sends: dict[int, tuple[Copy, Outgoing, int]] = {}
        self._detached: dict[ObjectId, dict[tuple[Peer, int], Reader]] = {}
        """Readers without a copy."""
        self._locating: set[ObjectId] = set()
        self._next_serial = 1
        self._news: dict[tuple[Peer, int], Reader] = {}
        """Readers to be told something, in flush()."""
        self._turns: deque[Peer] = deque()
        """Nodes that something can be sent to, the next one first; each once."""
        self._emit = emit
        self._is_wanted = is_wanted

    # -- what readers say ------------------------------------------------------------------------

    def ask(self, peer: Peer, ask: Ask, now: float) -> None:
        """ASK: begin or go on to read."""
        key = peer, ask.pull
        reader = self.readers.get(key)
        if reader is None:
            reader = self.readers[key] = Reader(peer, ask)
            self._attach(reader)
        elif reader.copy is None:
            # It was silence that made it ask again: a sign of life, and it may ask elsewhere.
            self._refuse_all(reader)
        if ask.priority != reader.priority:
            self._unready(reader)
            reader.priority = Priority(ask.priority)
        reader.heard_at = now
        if reader.copy is not None and reader.copy.nbytes != ask.nbytes:
            self._gone(reader, f"its copy has {reader.copy.nbytes} bytes, not {ask.nbytes}")
            return
        self._queue(reader, ask.chunks)
        if not ask.chunks and reader.copy is not None and reader.copy.present is None:
            reader.gained = list(range(reader.copy.count))
            self._news[key] = reader

    def _attach(self, reader: Reader) -> None:
        """Find the copy that a new reader reads, or remember that it waits for one."""
        key = reader.peer, reader.number
        copy = self.copies.get(reader.object)
        if copy is not None:
            copy.readers[key] = reader
            reader.copy = copy
            return
        self._detached.setdefault(reader.object, {})[key] = reader
        if self._is_wanted(reader.object):
            reader.told = True
            self._news[key] = reader
        elif reader.object not in self._locating:
            self._locating.add(reader.object)
            self._emit(Locate(reader.object, reader.nbytes))

    def _queue(self, reader: Reader, chunks: list[int]) -> None:
        copy = reader.copy
        here = copy.present if copy is not None else None
        if here is not None and not reader.told:
            reader.told = True
            reader.gained = list(here)
            self._news[reader.peer, reader.number] = reader
        for chunk in chunks:
            if reader.told and (copy is None or (here is not None and chunk not in here)):
                reader.refused.append(chunk)
                self._news[reader.peer, reader.number] = reader
            else:
                reader.queue[chunk] = None
        if copy is not None and reader.queue:
            self._ready(reader)

    def _refuse_all(self, reader: Reader) -> None:
        reader.refused.extend(reader.queue)
        reader.queue.clear()
        reader.told = True
        self._news[reader.peer, reader.number] = reader

    def drop(self, peer: Peer, number: int) -> None:
        """DROP: the reader needs nothing more."""
        reader = self.readers.get((peer, number))
        if reader is not None:
            self._forget(reader)

    def node_died(self, peer: Peer) -> None:
        """Forget all readers of a node; what is in ZeroMQ's hands comes back by sent()."""
        for reader in [reader for key, reader in self.readers.items() if key[0] == peer]:
            self._forget(reader)
        if self.outgoing.pop(peer, None) is not None and peer in self._turns:
            self._turns.remove(peer)

    def _forget(self, reader: Reader) -> None:
        key = reader.peer, reader.number
        del self.readers[key]
        self._news.pop(key, None)
        self._unready(reader)
        reader.queue.clear()
        copy, reader.copy = reader.copy, None
        if copy is not None:
            del copy.readers[key]
            self._settle(copy)
            return
        detached = self._detached[reader.object]
        del detached[key]
        if not detached:
            del self._detached[reader.object]

    def _gone(self, reader: Reader, reason: str) -> None:
        self._forget(reader)
        self._emit(Send(reader.peer, Gone(reader.number, reason)))

    # -- copies ----------------------------------------------------------------------------------

    def located(self, identity: ObjectId, offset: int, nbytes: int) -> None:
        """Serve this object from here; the node has pinned it."""
        self._locating.discard(identity)
        if identity not in self._detached or identity in self.copies:
            # Its readers have gone, or it is on its way in as well and is served from there.
            self._emit(Unpin(identity, offset))
            return
        self._pinned.add(identity)
        self.opened(Copy(identity, offset, nbytes, chunk_count(nbytes), complete=True))

    def absent(self, identity: ObjectId, reason: str) -> None:
        """Tell all readers that it is not here."""
        self._locating.discard(identity)
        wanted = self._is_wanted(identity)
        for reader in list(self._detached.get(identity, {}).values()):
            if wanted:
                self._refuse_all(reader)  # It will be told when chunks come in.
            else:
                self._gone(reader, reason)

    def opened(self, copy: Copy) -> None:
        """Attach all readers that waited for this copy."""
        before = self.copies.get(copy.object)
        assert before is None or before.object in self._pinned
        if before is not None:
            return  # The node has a complete copy pinned for readers: they stay with that.
        self.copies[copy.object] = copy
        for key, reader in self._detached.pop(copy.object, {}).items():
            reader.copy = copy
            copy.readers[key] = reader
            if copy.nbytes != reader.nbytes:
                self._gone(reader, f"its copy has {copy.nbytes} bytes, not {reader.nbytes}")
                continue
            chunks = list(reader.queue)
            reader.queue.clear()
            self._queue(reader, chunks)
            if copy.present is None and reader.told:
                reader.gained = list(range(copy.count))
                self._news[key] = reader

    def gained(self, copy: Copy, chunk: int) -> None:
        """A chunk of a copy has come in: its readers may ask for it."""
        for key, reader in copy.readers.items():
            reader.gained.append(chunk)
            self._news[key] = reader

    def completed(self, copy: Copy) -> bool:
        """The pull of a copy is over; returns whether it goes on being served: it is pinned."""
        copy.present = None
        if self.copies.get(copy.object) is not copy:
            return False
        if copy.readers or copy.sending:
            self._pinned.add(copy.object)
            return True
        del self.copies[copy.object]
        return False

    def closed(self, copy: Copy, reason: str) -> None:
        """The pull of a copy has failed: it is not served any more."""
        if self.copies.get(copy.object) is copy:
            del self.copies[copy.object]
        for reader in list(copy.readers.values()):
            self._gone(reader, f"its own pull failed: {reason}")
        copy.closed = True
        if not copy.sending:
            self._emit(FreeExtent(copy.offset))

    def unwanted(self, identity: ObjectId) -> None:
        """A pull without memory is over: readers that waited for it to begin have nobody here."""
        for reader in list(self._detached.get(identity, {}).values()):
            if identity not in self._locating:
                self._gone(reader, "its own pull is over")

    def _settle(self, copy: Copy) -> None:
        """Give up a copy that nobody reads."""
        if copy.readers or copy.sending:
            return
        if copy.closed:
            self._emit(FreeExtent(copy.offset))
        elif copy.object in self._pinned and self.copies.get(copy.object) is copy:
            self._pinned.discard(copy.object)
            del self.copies[copy.object]
            self._emit(Unpin(copy.object, copy.offset))

    # -- sending ---------------------------------------------------------------------------------

    def _ready(self, reader: Reader) -> None:
        outgoing = self.outgoing.get(reader.peer)
        if outgoing is None:
            outgoing = self.outgoing[reader.peer] = Outgoing(reader.peer)
        if not any(outgoing.ready) and outgoing.in_flight_bytes < SEND_BYTES:
            self._turns.append(reader.peer)
        outgoing.ready[reader.priority][reader.number] = reader

    def _unready(self, reader: Reader) -> None:
        outgoing = self.outgoing.get(reader.peer)
        if outgoing is None:
            return
        outgoing.ready[reader.priority].pop(reader.number, None)
        if not any(outgoing.ready):
            if reader.peer in self._turns:
                self._turns.remove(reader.peer)
            if not outgoing.in_flight_bytes:
                del self.outgoing[reader.peer]

    def flush(self) -> None:
        """Tell readers what is new, then send to each node in turn."""
        news, self._news = self._news, {}
        for reader in news.values():
            self._emit(Send(reader.peer, Have(reader.number, reader.refused, reader.gained)))
            reader.refused, reader.gained = [], []
        while self._turns:
            peer = self._turns.popleft()
            outgoing = self.outgoing[peer]
            self._send_one(peer, outgoing)
            if any(outgoing.ready) and outgoing.in_flight_bytes < SEND_BYTES:
                self._turns.append(peer)

    def _send_one(self, peer: Peer, outgoing: Outgoing) -> None:
        ready = next(ready for ready in outgoing.ready if ready)
        number, reader = ready.popitem(last=False)
        copy = reader.copy
        assert copy is not None
        chunk = next(iter(reader.queue))
        del reader.queue[chunk]
        if reader.queue:
            ready[number] = reader
        start, nbytes = chunk_span(copy.nbytes, chunk)
        serial = self._next_serial
        self._next_serial += 1
        self._sends[serial] = copy, outgoing, nbytes
        copy.sending += 1
        outgoing.in_flight_bytes += nbytes
        self._emit(SendChunk(peer, number, chunk, copy.offset + start, nbytes, serial))

    def sent(self, serial: int) -> None:
        """ZeroMQ is done with the bytes of a chunk: they are gone, or their receiver is."""
        copy, outgoing, nbytes = self._sends.pop(serial)
        was_full = outgoing.in_flight_bytes >= SEND_BYTES
        outgoing.in_flight_bytes -= nbytes
        copy.sending -= 1
        self._settle(copy)
        if self.outgoing.get(outgoing.peer) is not outgoing:
            return  # That node has died since.
        if any(outgoing.ready):
            if was_full and outgoing.in_flight_bytes < SEND_BYTES:
                self._turns.append(outgoing.peer)
        elif not outgoing.in_flight_bytes:
            del self.outgoing[outgoing.peer]

    # -- time ------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Forget readers whose DROP was lost with a connection."""
        for reader in list(self.readers.values()):
            if now - reader.heard_at >= READER_IDLE_S and not reader.queue:
                self._forget(reader)

    def check(self) -> None:
        """Assert that the books agree with each other."""
        for key, reader in self.readers.items():
            assert key == (reader.peer, reader.number)
            if reader.copy is None:
                assert self._detached[reader.object][key] is reader
                assert reader.object in self._locating or self._is_wanted(reader.object)
            else:
                assert reader.copy.readers[key] is reader
                assert not reader.copy.closed
                ready = self.outgoing[reader.peer].ready if reader.queue else ()
                assert not reader.queue or reader.number in ready[reader.priority]
        assert all(self._detached.values())
        for identity, copy in self.copies.items():
            assert copy.object == identity
            assert not copy.closed
            assert copy.present is not None or identity in self._pinned
        assert self._pinned <= self.copies.keys()
        for identity in self._pinned:
            copy = self.copies[identity]
            assert copy.readers or copy.sending, "pinned for nobody"
        in_flight: dict[int, int] = {}
        for copy, outgoing, nbytes in self._sends.values():
            assert copy.sending > 0
            in_flight[id(outgoing)] = in_flight.get(id(outgoing), 0) + nbytes
        for peer, outgoing in self.outgoing.items():
            waits = any(outgoing.ready) and outgoing.in_flight_bytes < SEND_BYTES
            assert waits == (peer in self._turns), "a node was left out"
            assert outgoing.in_flight_bytes == in_flight.get(id(outgoing), 0)
            assert outgoing.in_flight_bytes < SEND_BYTES + CHUNK_BYTES
        assert len(set(self._turns)) == len(self._turns)
