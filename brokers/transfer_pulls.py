"""The pulling side of the transfer machine: which chunk is asked from whom, and when.

What    One pull for each object, however many wait for it. Pulls are admitted by priority within
        a budget of memory; a get pushes prefetches out again. What may be outstanding at a source
        is bounded in bytes over all pulls; who has the higher priority takes the credit first,
        equals take turns. A source is taken to be complete until it says what it has; then it is
        asked only for that, so two nodes that pull from each other never wait for each other.
Caller  brokers/transfer.py.
Never   writes bytes: it says where they go.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from math import gcd
from typing import TYPE_CHECKING
from zlib import crc32

from zray.protocol.chunks import CHUNK_BYTES, Ask, Drop, chunk_count, chunk_span
from zray.protocol.ids import ObjectId

from .transferring import (
    Allocate,
    Arrived,
    Command,
    Copy,
    Failed,
    FreeExtent,
    Peer,
    Priority,
    Send,
)

if TYPE_CHECKING:
    from .transfer_serving import Serving

WINDOW_BYTES = 8 * CHUNK_BYTES
"""Asked of one source and not yet here: a round trip is hidden, a dead source costs little."""

ASK_STEP_BYTES = 2 * CHUNK_BYTES
"""Credit is used when so much of it is free: half the messages for the same flow."""

SHARED_LEN = 2
"""Chunks asked of one that has all, while others that pull the same are there: what it is asked for
by two of them it sends twice, and they could have had it from each other."""

PULLS_MAX = 64
"""Pulls that have an extent, or have asked for one."""

RETRY_S = 2.0
"""A source that was silent for this long is asked again, and others are asked in its place."""

SILENCES_MAX = 5
"""A source that was asked so often and is silent is given up."""

STALL_S = 5.0
"""Without a new chunk for this long while no source has all: the parts will not become a whole."""

LOCATING_S = 30.0
"""Sources that answer but send nothing get this long."""

LINKS_MAX = 16
"""Sources of one pull beyond those that the home has named: each hears of every chunk."""

_LOOKAHEAD = 32


class Link:
    """One source of one pull."""

    __slots__ = ("asked", "contacted", "have", "heard_at", "offers", "peer", "silences")

    def __init__(self, peer: Peer, now: float) -> None:
        self.peer = peer
        self.asked: dict[int, int] = {}
        """Chunks on their way: chunk -> bytes."""
        self.have: set[int] | None = None
        """What it has; None: everything, as far as we know."""
        self.offers: deque[int] = deque()
        """Chunks it has that may be still to do."""
        self.heard_at = now
        self.silences = 0
        self.contacted = False


class Pull:
    """One object on its way here."""

    __slots__ = (
        "active",
        "copy",
        "fresh",
        "left",
        "links",
        "nbytes",
        "number",
        "object",
        "priority",
        "progress_at",
        "todo",
        "tried",
    )

    def __init__(
        self, number: int, identity: ObjectId, nbytes: int, priority: Priority, now: float
    ) -> None:
        self.number = number
        self.object = identity
        self.nbytes = nbytes
        self.priority = priority
        self.links: dict[Peer, Link] = {}
        self.tried: dict[Peer, str] = {}
        """Sources given up, and why."""
        self.active = False
        self.copy: Copy | None = None
        self.fresh = False
        self.todo: dict[int, None] = {}
        """Chunks that nobody is asked for, in the order to ask in."""
        self.left = chunk_count(nbytes)
        self.progress_at = now

    def is_shared(self) -> bool:
        """Return whether others pull it as well, or that is not known yet."""
        if self.left == chunk_count(self.nbytes) and len(self.links) > 1:
            return True
        return any(link.have is not None and not link.silences for link in self.links.values())


class Source:
    """What is outstanding at one node, over all pulls."""

    __slots__ = ("in_flight_bytes", "pulls", "turns")

    def __init__(self) -> None:
        self.in_flight_bytes = 0
        self.pulls: dict[int, Pull] = {}
        """All that name this source."""
        self.turns: tuple[OrderedDict[int, Pull], ...] = tuple(OrderedDict() for _ in Priority)
        """Those of them that have memory, by priority, the next one to be served first."""


class Pulls:
    """All pulls of one node. See brokers/transfer.py for the meaning of the methods' names.

    Args:
        own: this node's name among peers; spreads where several pullers begin.
        budget_bytes: sum of the lengths of objects that are pulled at a time.
        window_bytes: see WINDOW_BYTES.
        emit: takes commands.
        serving: gets the chunks that are here: it sends them on.
    """

    def __init__(
        self,
        own: Peer,
        budget_bytes: int,
        window_bytes: int,
        *,
        emit: Callable[[Command], None],
        serving: Serving,
    ) -> None:
        self.by_object: dict[ObjectId, Pull] = {}
        self.by_number: dict[int, Pull] = {}
        self.sources: dict[Peer, Source] = {}
        self._own = own
        self._budget_bytes = budget_bytes
        self._window_bytes = window_bytes
        self._waiting: tuple[OrderedDict[int, Pull], ...] = tuple(OrderedDict() for _ in Priority)
        self._active_bytes = 0
        self._active_count = 0
        self._next_number = 1
        self._emit = emit
        self._serving = serving
        self._hungry: dict[Peer, None] = {}
        """Sources that may have credit to use, looked at in flush()."""

    # -- wanting ---------------------------------------------------------------------------------

    def want(
        self,
        identity: ObjectId,
        nbytes: int,
        sources: Iterable[Peer],
        priority: Priority,
        now: float,
    ) -> None:
        """Begin a pull, or add to the one there is."""
        pull = self.by_object.get(identity)
        if pull is None:
            pull = Pull(self._next_number, identity, nbytes, priority, now)
            self._next_number += 1
            self.by_object[identity] = self.by_number[pull.number] = pull
            self._waiting[priority][pull.number] = pull
        elif priority < pull.priority:
            self._raise(pull, priority)
        for peer in sources:
            if peer not in pull.links:
                pull.tried.pop(peer, None)
                self._add_link(pull, peer, now)
        if not pull.links:
            self._fail(pull, "no node that has it is known")

    def _raise(self, pull: Pull, priority: Priority) -> None:
        places = [self._waiting, *(self.sources[peer].turns for peer in pull.links)]
        for place in places:
            if place[pull.priority].pop(pull.number, None) is not None:
                place[priority][pull.number] = pull
        pull.priority = priority

    def _add_link(self, pull: Pull, peer: Peer, now: float) -> None:
        pull.links[peer] = Link(peer, now)
        source = self.sources.setdefault(peer, Source())
        source.pulls[pull.number] = pull
        if pull.copy is not None:
            source.turns[pull.priority][pull.number] = pull
            self._hungry[peer] = None

    def met(self, peer: Peer, identity: ObjectId, now: float) -> None:
        """A node asks here for what is pulled here: each can give the other what it has.

        The home has named those who came first to those who came later, and not the other way.
        """
        pull = self.by_object.get(identity)
        if pull is None or peer in pull.links or peer in pull.tried:
            return
        if len(pull.links) >= LINKS_MAX:
            return
        self._add_link(pull, peer, now)
        link = pull.links[peer]
        link.have = set()
        if pull.copy is not None:
            self._ask(pull, link, [], now)

    def cancel(self, identity: ObjectId) -> None:
        """End a pull that nobody waits for."""
        pull = self.by_object.get(identity)
        if pull is not None:
            self._fail(pull, "it was cancelled")

    # -- memory ----------------------------------------------------------------------------------

    def admit(self, now: float) -> None:
        """Ask for memory for those that come next, as far as the budget goes."""
        for waiting in self._waiting:
            while waiting:
                pull = next(iter(waiting.values()))
                if not self._fits(pull) and not self._push_out(pull):
                    return
                del waiting[pull.number]
                pull.active = True
                pull.progress_at = now
                self._active_bytes += pull.nbytes
                self._active_count += 1
                self._emit(Allocate(pull.number, pull.object, pull.nbytes, pull.priority))

    def _fits(self, pull: Pull, spare_bytes: int = 0, spare_count: int = 0) -> bool:
        if self._active_count - spare_count == 0:
            return True  # Larger than the budget: alone, it may.
        if self._active_count - spare_count >= PULLS_MAX:
            return False
        return self._active_bytes - spare_bytes + pull.nbytes <= self._budget_bytes

    def _push_out(self, pull: Pull) -> bool:
        """Take the memory of prefetches for a pull that somebody waits for."""
        if pull.priority == Priority.PREFETCH:
            return False
        victims: list[Pull] = []
        spare_bytes = 0
        for other in reversed(self.by_number.values()):  # The youngest has the least to lose.
            if self._fits(pull, spare_bytes, len(victims)):
                break
            if other.active and other.priority == Priority.PREFETCH:
                victims.append(other)
                spare_bytes += other.nbytes
        if not self._fits(pull, spare_bytes, len(victims)):
            return False
        for victim in victims:
            self._restart(victim)
        return True

    def _restart(self, pull: Pull) -> None:
        """Give up what has arrived; begin again, under a new number, when there is room."""
        self._deactivate(pull, "it made way for one that is waited for")
        del self.by_number[pull.number]
        links, pull.links = pull.links, {}
        for link in links.values():
            self._unlink(pull, link)
        pull.number = self._next_number
        self._next_number += 1
        pull.todo = {}
        pull.left = chunk_count(pull.nbytes)
        self.by_number[pull.number] = pull
        self._waiting[pull.priority][pull.number] = pull
        for peer in links:
            self._add_link(pull, peer, pull.progress_at)

    def allocated(self, number: int, offset: int, fresh: bool, now: float) -> None:
        """Begin to ask: there is memory."""
        pull = self.by_number.get(number)
        if pull is None or not pull.active or pull.copy is not None:
            self._emit(FreeExtent(offset))  # It was cancelled meanwhile.
            return
        count = chunk_count(pull.nbytes)
        pull.copy = Copy(pull.object, offset, pull.nbytes, count, complete=False)
        pull.fresh = fresh
        pull.progress_at = now
        pull.todo = dict.fromkeys(self._order(pull, count))
        for peer, link in pull.links.items():
            link.heard_at = now
            self.sources[peer].turns[pull.priority][number] = pull
            self._hungry[peer] = None
            if link.have is not None:
                self._ask(pull, link, [], now)
        self._serving.opened(pull.copy)

    def _order(self, pull: Pull, count: int) -> Iterable[int]:
        """Return all chunks in the order to ask in.

        Several pullers that go different ways have something to give to each other; two that went
        the same way, one behind the other, would each ask for what the other one has asked for.
        """
        if len(pull.links) < 2 or count < 3:
            return range(count)
        spread = crc32(self._own + pull.object)
        stride = 1 + (spread >> 16) % (count - 1)
        while gcd(stride, count) > 1:
            stride += 1
        return (chunk % count for chunk in range(spread, spread + count * stride, stride))

    def refused(self, number: int, reason: str) -> None:
        """End a pull that there is no memory for."""
        pull = self.by_number.get(number)
        if pull is not None and pull.active and pull.copy is None:
            self._fail(pull, reason)

    def unwritable(self, number: int, reason: str) -> None:
        """End a pull whose extent turned out to have no memory behind it."""
        pull = self.by_number.get(number)
        if pull is not None:
            self._fail(pull, reason)

    # -- asking ----------------------------------------------------------------------------------

    def flush(self, now: float) -> None:
        """Use the credit of every source that has some.

        Who has all and was left out comes last: partial holders may have more to give than they
        can be asked for now.
        """
        hungry, self._hungry = self._hungry, {}
        for peer in hungry:
            self._use_credit(peer, now)
        for peer in list(self._left_out(hungry)):
            self._use_credit(peer, now)

    def _left_out(self, hungry: Iterable[Peer]) -> Iterator[Peer]:
        """Yield complete holders that nothing is asked of, of pulls that have more to ask for."""
        pulls: dict[int, Pull] = {}
        for peer in hungry:
            if peer in self.sources:
                pulls |= self.sources[peer].pulls
        for pull in pulls.values():
            for peer, link in pull.links.items() if pull.todo else ():
                if self._is_left_out(link):
                    yield peer

    @staticmethod
    def _is_left_out(link: Link) -> bool:
        return link.have is None and not link.asked and not link.silences

    def _use_credit(self, peer: Peer, now: float) -> None:
        source = self.sources.get(peer)
        if source is None or not self._has_credit(source):
            return
        asked: dict[int, list[int]] = {}
        while source.in_flight_bytes < self._window_bytes:
            pull = self._next_turn(peer, source)
            if pull is None:
                break
            asked.setdefault(pull.number, []).append(next(reversed(pull.links[peer].asked)))
        for number, chunks in asked.items():
            self._ask(self.by_number[number], self.by_number[number].links[peer], chunks, now)

    def _next_turn(self, peer: Peer, source: Source) -> Pull | None:
        """Give one chunk's credit to the next pull that can use it."""
        for turns in source.turns:
            for number in list(turns):
                pull = turns[number]
                link = pull.links[peer]
                if len(link.asked) >= SHARED_LEN and link.have is None and pull.is_shared():
                    continue
                chunk = self._choose(pull, link)
                if chunk is None:
                    continue
                turns.move_to_end(number)
                del pull.todo[chunk]
                nbytes = chunk_span(pull.nbytes, chunk)[1]
                link.asked[chunk] = nbytes
                source.in_flight_bytes += nbytes
                return pull
        return None

    def _choose(self, pull: Pull, link: Link) -> int | None:
        if not pull.todo:
            return None
        if link.have is not None:
            while link.offers:
                chunk = link.offers.popleft()
                if chunk in pull.todo:
                    return chunk
            return None
        # What a partial holder will send is left to it: the complete one has better to do.
        for _, chunk in zip(range(_LOOKAHEAD), pull.todo, strict=False):
            if not any(self._will_send(other, chunk) for other in pull.links.values()):
                return chunk
        return None

    def _will_send(self, link: Link, chunk: int) -> bool:
        """Return whether a partial holder has a chunk, answers, and can be asked for more."""
        if link.have is None or chunk not in link.have or link.silences:
            return False
        return self._has_credit(self.sources[link.peer])

    def _has_credit(self, source: Source) -> bool:
        free_bytes = self._window_bytes - source.in_flight_bytes
        return free_bytes >= min(ASK_STEP_BYTES, self._window_bytes) or not source.in_flight_bytes

    def _ask(self, pull: Pull, link: Link, chunks: list[int], now: float) -> None:
        if not link.contacted or len(link.asked) == len(chunks):
            link.heard_at = now  # Nothing was expected of it before: its silence begins now.
        link.contacted = True
        ask = Ask(pull.number, pull.object, pull.nbytes, int(pull.priority), chunks)
        self._emit(Send(link.peer, ask))

    # -- what sources say ------------------------------------------------------------------------

    def destination(self, number: int, chunk: int) -> tuple[int, int, bool] | None:
        """Return (offset, bytes, fresh) for a chunk that is still needed; None: throw it away."""
        pull = self.by_number.get(number)
        if pull is None or pull.copy is None or chunk >= pull.copy.count:
            return None
        assert pull.copy.present is not None
        if chunk in pull.copy.present:
            return None  # It may be on its way to somebody else from here: never written again.
        start, nbytes = chunk_span(pull.nbytes, chunk)
        return pull.copy.offset + start, nbytes, pull.fresh

    def chunk(self, peer: Peer, number: int, chunk: int, now: float) -> None:
        """The chunk's bytes are where destination() said, or were thrown away."""
        pull = self.by_number.get(number)
        if pull is None:
            return
        link = pull.links.get(peer)
        if link is not None:
            link.heard_at, link.silences = now, 0
            self._credit(peer, link.asked.pop(chunk, 0))
        if self.destination(number, chunk) is None:
            return
        assert pull.copy is not None
        assert pull.copy.present is not None
        pull.todo.pop(chunk, None)
        pull.copy.present.add(chunk)
        self._serving.gained(pull.copy, chunk)
        pull.left -= 1
        pull.progress_at = now
        if not pull.left:
            self._arrived(pull, pull.copy)

    def _credit(self, peer: Peer, nbytes: int) -> None:
        source = self.sources.get(peer)
        if source is not None and nbytes:
            source.in_flight_bytes -= nbytes
            self._hungry[peer] = None

    def have(
        self, peer: Peer, number: int, refused: list[int], gained: list[int], now: float
    ) -> None:
        """HAVE: the source is a partial holder."""
        pull = self.by_number.get(number)
        link = pull.links.get(peer) if pull is not None else None
        if pull is None or link is None or pull.copy is None:
            return
        link.heard_at, link.silences = now, 0
        if link.have is None:
            link.have = set()
        link.have.difference_update(refused)
        new = [chunk for chunk in gained if chunk < pull.copy.count and chunk not in link.have]
        link.have.update(new)
        link.offers.extend(new)
        self._put_back(pull, link, refused)
        if len(link.have) == pull.copy.count:
            link.have = None
            link.offers.clear()
        self._hungry[peer] = None

    def _put_back(self, pull: Pull, link: Link, chunks: Iterable[int]) -> None:
        """Chunks will not come from this source: others may be asked for them."""
        assert pull.copy is not None
        assert pull.copy.present is not None
        returned: list[int] = []
        for chunk in chunks:
            nbytes = link.asked.pop(chunk, 0)
            if not nbytes:
                continue
            self._credit(link.peer, nbytes)
            if chunk not in pull.copy.present:
                pull.todo[chunk] = None
                returned.append(chunk)
        if not returned:
            return
        for other in pull.links.values():
            if other.have is not None:
                other.offers.extend(chunk for chunk in returned if chunk in other.have)
            self._hungry[other.peer] = None

    def gone(self, peer: Peer, number: int, reason: str, *, tell: bool = False) -> None:
        """GONE, or nothing that makes sense: this source is of no use for this pull."""
        pull = self.by_number.get(number)
        if pull is not None and peer in pull.links:
            self._lose(pull, peer, reason, tell=tell)

    def node_died(self, peer: Peer) -> None:
        """Every pull goes on without this source."""
        source = self.sources.get(peer)
        if source is None:
            return
        for pull in list(source.pulls.values()):
            self._lose(pull, peer, "the node died")
        assert peer not in self.sources

    def _lose(self, pull: Pull, peer: Peer, reason: str, *, tell: bool = False) -> None:
        link = pull.links[peer]
        pull.tried[peer] = reason
        if pull.copy is not None:
            self._put_back(pull, link, list(link.asked))
        self._unlink(pull, link, tell=tell)
        del pull.links[peer]
        if not pull.links:
            self._fail(pull, "no node is left that can send it")

    def _unlink(self, pull: Pull, link: Link, *, tell: bool = True) -> None:
        """Take a pull out of a source's books, and tell the source where it is still there."""
        source = self.sources[link.peer]
        del source.pulls[pull.number]
        source.turns[pull.priority].pop(pull.number, None)
        source.in_flight_bytes -= sum(link.asked.values())
        link.asked.clear()
        if link.contacted and tell:
            self._emit(Send(link.peer, Drop(pull.number)))
        if source.pulls:
            self._hungry[link.peer] = None
        else:
            del self.sources[link.peer]

    # -- the end ---------------------------------------------------------------------------------

    def _arrived(self, pull: Pull, copy: Copy) -> None:
        self._end(pull)
        pinned = self._serving.completed(copy)
        self._emit(Arrived(pull.object, copy.offset, pull.nbytes, pinned))

    def _fail(self, pull: Pull, reason: str) -> None:
        if pull.tried:
            told = "; ".join(f"{peer.hex()}: {why}" for peer, why in pull.tried.items())
            reason = f"{reason} ({told})"
        self._deactivate(pull, reason)
        self._end(pull)
        self._serving.unwanted(pull.object)
        self._emit(Failed(pull.object, reason))

    def _deactivate(self, pull: Pull, reason: str) -> None:
        """Give up the memory of a pull."""
        if pull.active:
            pull.active = False
            self._active_bytes -= pull.nbytes
            self._active_count -= 1
        else:
            self._waiting[pull.priority].pop(pull.number, None)
        copy, pull.copy = pull.copy, None
        if copy is not None:
            self._serving.closed(copy, reason)

    def _end(self, pull: Pull) -> None:
        if pull.active:
            pull.active = False
            self._active_bytes -= pull.nbytes
            self._active_count -= 1
        for link in pull.links.values():
            self._unlink(pull, link)
        pull.links.clear()
        del self.by_object[pull.object]
        del self.by_number[pull.number]

    # -- time ------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Look for sources that are silent and pulls that do not move."""
        for pull in list(self.by_number.values()):
            if pull.copy is None:
                continue
            if self._is_starved(pull):
                pull.progress_at = now
            still_s = now - pull.progress_at
            complete = any(link.have is None for link in pull.links.values())
            if still_s >= (LOCATING_S if complete else STALL_S):
                who = "" if complete else ", and nobody asked has more than a part of it"
                self._fail(pull, f"no chunk has come for {still_s:.0f} s{who}")
                continue
            for link in list(pull.links.values()):
                if now - link.heard_at >= RETRY_S and pull.number in self.by_number:
                    self._silent(pull, link, now)

    @staticmethod
    def _is_starved(pull: Pull) -> bool:
        """Return whether it could ask for more but others have the credit: it must not fail."""
        return not any(link.asked for link in pull.links.values()) and any(
            link.have is None or not link.have.isdisjoint(pull.todo) for link in pull.links.values()
        )

    def _silent(self, pull: Pull, link: Link, now: float) -> None:
        if not link.asked and link.have is None:
            return  # Nothing was asked of it: it owes no answer.
        link.silences += 1
        if link.silences > SILENCES_MAX:
            self._lose(pull, link.peer, "it does not answer on its bulk port", tell=True)
            return
        asked = list(link.asked)
        if len(pull.links) > 1:
            self._put_back(pull, link, asked)
            self._hungry.pop(link.peer, None)  # The others first.
            self._hungry |= dict.fromkeys(other for other in pull.links if other != link.peer)
            if len(self.sources[link.peer].pulls) > 1:
                self._hungry[link.peer] = None
        self._ask(pull, link, list(link.asked), now)
        link.heard_at = now

    def check(self) -> None:
        """Assert that the books agree with each other."""
        in_flight: dict[Peer, int] = {}
        active = [pull for pull in self.by_number.values() if pull.active]
        assert sum(pull.nbytes for pull in active) == self._active_bytes
        assert len(active) == self._active_count <= PULLS_MAX
        assert self._active_bytes <= self._budget_bytes or self._active_count == 1
        assert set(self.by_object.values()) == set(self.by_number.values())
        for number, pull in self.by_number.items():
            assert pull.number == number
            assert pull.links, "a pull without a source"
            assert pull.active != (number in self._waiting[pull.priority])
            assert pull.active or pull.copy is None
            for peer, link in pull.links.items():
                assert pull is self.sources[peer].pulls[number]
                assert (pull.copy is not None) == (
                    number in self.sources[peer].turns[pull.priority]
                )
                in_flight[peer] = in_flight.get(peer, 0) + sum(link.asked.values())
            if pull.copy is not None:
                self._check_chunks(pull, pull.copy)
        for peer, source in self.sources.items():
            assert source.pulls, "a source without a pull"
            assert sum(map(len, source.turns)) <= len(source.pulls)
            assert source.in_flight_bytes == in_flight[peer]
            assert source.in_flight_bytes < self._window_bytes + CHUNK_BYTES

    def _check_chunks(self, pull: Pull, copy: Copy) -> None:
        assert not copy.closed
        assert copy.present is not None
        assert len(copy.present) + pull.left == copy.count
        asked = {chunk for link in pull.links.values() for chunk in link.asked}
        assert not copy.present & pull.todo.keys(), "a chunk that is here is still to do"
        assert copy.present | pull.todo.keys() | asked == set(range(copy.count)), "a lost chunk"
        for link in pull.links.values():
            if self._is_left_out(link) and not self._hungry:
                assert self._waits(pull, link), "who has all is idle, and others are not asked"
            if link.have is not None:
                offered = set(link.offers)
                assert link.have & pull.todo.keys() <= offered, "an offer was forgotten"

    def _waits(self, pull: Pull, link: Link) -> bool:
        """Return whether a complete holder that nothing is asked of has to wait."""
        return not self._has_credit(self.sources[link.peer]) or self._choose(pull, link) is None
