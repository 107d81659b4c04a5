"""Questions over links: asked of nodes, answered here for other nodes, a page at a time.

What    ask() puts a question to some nodes, this one among them, and gives what has come when all
        have answered or their time is over. A question of another node is answered by the same
        rule as one of ours; what does not fit into a page waits until it is asked for.
Caller  brokers/state_questions.py asks; brokers/link_rules.py has QUERY_RULES.
Never   waits, or knows what is asked: brokers/node_answers.py does.
Spec    RFC 5905 (NTP), section 8, for the difference between two clocks.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zray import errors
from zray.protocol import link_messages
from zray.protocol.ids import NodeId
from zray.protocol.limits import (
    QUERIES_MAX,
    QUERY_ANSWER_S,
    QUERY_PAGE_BYTES,
    QUERY_ROWS_MAX,
    QUERY_TIMEOUT_S,
)
from zray.protocol.packing import packb
from zray.protocol.roles import Role

from .gathering import Gathered, Gatherings, NextPage

if TYPE_CHECKING:
    from zray.net.link_inbox import Payload

    from .cluster import Cluster
    from .node import Node

_KEPT_ROWS_MAX = 4 * QUERY_ROWS_MAX
"""Rows that are kept for others to fetch: a hostile one may ask and never fetch."""
_NOT_FOR_GATEWAYS = frozenset(("log", "find"))
"""What workers print and nodes say may be anything; who only calls actors is to see none of it."""

Done = Callable[[list[Any], Exception | None], None]
"""Called once with the rows of an answer, or with why there are none."""
Answer = Callable[["Node", dict[str, Any], Done], None]
"""Answers one kind of question about this node."""


@dataclass(slots=True)
class _Kept:
    """Pages of an answer that another node has not asked for yet."""

    pages: deque[list[Any]]
    until: float


@dataclass(frozen=True, slots=True)
class Clock:
    """How another node's clock differs from ours.

    Args:
        ahead_s: its clock less ours, in seconds.
        error_s: by how much that may be wrong: half of what the messages took.
    """

    ahead_s: float
    error_s: float

    @property
    def is_off(self) -> bool:
        """Whether it differs for certain."""
        return abs(self.ahead_s) > self.error_s


class Queries:
    """The questions of one node, and those of others to it.

    Args:
        node: whose.
        answers: gives what is answered here, by the name of the question; called when somebody
            asks for the first time.
    """

    def __init__(self, node: Node, answers: Callable[[], dict[str, Answer]]) -> None:
        self._node = node
        self._answers = answers
        self._gatherings = Gatherings(
            answer_s=QUERY_ANSWER_S, timeout_s=QUERY_TIMEOUT_S, open_max=QUERIES_MAX
        )
        self._done: dict[int, Callable[[Gathered], None]] = {}
        self._sent_at: dict[tuple[int, NodeId], float] = {}
        self._kept: dict[tuple[NodeId, int], _Kept] = {}
        self.clocks: dict[NodeId, Clock] = {}
        """Of other nodes, as the answers to questions have shown."""

    def __bool__(self) -> bool:
        return bool(self._gatherings or self._kept)

    # -- asking ----------------------------------------------------------------------------------

    def ask(
        self,
        nodes: Iterable[NodeId],
        what: str,
        arguments: dict[str, Any],
        done: Callable[[Gathered], None],
        *,
        rows_max: int,
    ) -> int:
        """Put a question to some nodes; returns its number.

        Args:
            nodes: this one may be among them. Others that are no nodes answer by took().
            what: its name.
            arguments: plain types.
            done: called once, after this call has returned.
            rows_max: rows of all nodes together.

        Raises:
            ClusterError: too many questions are open.
        """
        node, wanted = self._node, list(dict.fromkeys(nodes))
        number = self._gatherings.begin(wanted, rows_max=rows_max, now=node.now)
        self._done[number] = done
        for each in wanted:
            if each == node.process:
                self._ask_here(number, what, arguments)
            elif node.cluster is not None and each in node.cluster.members:
                self._sent_at[number, each] = time.time()
                node.cluster.send(each, link_messages.QUERY, number, what, arguments)
        return number

    def _ask_here(self, number: int, what: str, arguments: dict[str, Any]) -> None:
        def took(rows: list[Any], error: Exception | None) -> None:
            self.took(number, self._node.process, rows, error)

        self.answer(what, arguments, took)

    def took(
        self, number: int, source: NodeId, rows: list[Any], error: Exception | None = None
    ) -> None:
        """A source that is asked by other means has answered, or can't."""
        if error is None:
            self._gatherings.took(number, source, rows, more=False, now=self._node.now)
        else:
            self._gatherings.failed(number, source, str(error))

    def page_came(self, peer: NodeId, message: list[Any]) -> None:
        """QUERY_ROWS: a page of another node."""
        number, rows, more, error, received_at, sent_at = message[3:9]
        if type(rows) is not list or not all(_is_time(at) for at in (received_at, sent_at)):
            raise errors.RemoteProtocolError("QUERY_ROWS without rows and times")
        asked_at = self._sent_at.pop((number, peer), None)
        if asked_at is not None:
            self._look_at_clock(peer, asked_at, float(received_at), float(sent_at))
        if error is not None:
            self._gatherings.failed(number, peer, str(error))
        else:
            now = self._node.now
            self._gatherings.took(number, peer, rows, more=more is True, now=now)

    def _look_at_clock(
        self, peer: NodeId, asked_at: float, received_at: float, sent_at: float
    ) -> None:
        now = time.time()
        ahead_s = ((received_at - asked_at) + (sent_at - now)) / 2
        error_s = max(0.0, (now - asked_at) - (sent_at - received_at)) / 2
        self.clocks[peer] = Clock(ahead_s, error_s)

    def node_lost(self, node: NodeId, reason: str) -> None:
        """Another node is gone: nobody waits for it, and it asks for nothing more."""
        self._gatherings.source_lost(node, f"it is gone: {reason}")
        self.clocks.pop(node, None)
        for peer, request in list(self._kept):
            if peer == node:
                del self._kept[peer, request]

    def settle(self, now: float) -> None:
        """Give the answers that need wait no longer; forget pages that nobody asks for."""
        self._gatherings.tick(now)
        # What is answered may ask the next question, and have it answered here, at once.
        while self._gatherings.commands:
            commands, self._gatherings.commands = self._gatherings.commands, []
            for command in commands:
                if isinstance(command, NextPage):
                    self._ask_for_more(command)
                else:
                    self._give(command)
        for key, kept in list(self._kept.items()):
            if now > kept.until:
                del self._kept[key]

    def _give(self, gathered: Gathered) -> None:
        number = gathered.number
        self._sent_at = {key: at for key, at in self._sent_at.items() if key[0] != number}
        self._done.pop(number)(gathered)

    def _ask_for_more(self, command: NextPage) -> None:
        cluster = self._node.cluster
        if cluster is not None:
            self._sent_at[command.number, command.source] = time.time()
            cluster.send(command.source, link_messages.QUERY_NEXT, command.number)

    # -- answering -------------------------------------------------------------------------------

    def answer(self, what: str, arguments: dict[str, Any], done: Done) -> None:
        """Answer a question about this node, of whoever asks."""
        rule = self._answers().get(what)
        if rule is None:
            done([], errors.RemoteProtocolError(f"it does not know the question {what!r}"))
            return
        try:
            rule(self._node, arguments, done)
        except errors.ZrayError as error:
            done([], error)

    def asked(self, peer: NodeId, request: int, what: str, arguments: dict[str, Any]) -> None:
        """QUERY: another node asks."""
        received_at = time.time()

        def answered(rows: list[Any], error: Exception | None) -> None:
            if error is not None:
                self._send_page(peer, request, [], False, str(error), received_at)
                return
            pages = deque(_pages(rows))
            first = pages.popleft()
            if pages and (len(self._kept) >= QUERIES_MAX or self._kept_len > _KEPT_ROWS_MAX):
                said = "too many answers wait to be fetched from it: ask again in a moment"
                self._send_page(peer, request, [], False, said, received_at)
                return
            if pages:
                self._keep(peer, request, pages)
            self._send_page(peer, request, first, bool(pages), None, received_at)

        self.answer(what, arguments, answered)

    def more_wanted(self, peer: NodeId, request: int) -> None:
        """QUERY_NEXT: another node is ready for the next page."""
        received_at = time.time()
        kept = self._kept.pop((peer, request), None)
        if kept is None:
            said = "it keeps an answer for a few seconds, and those are over"
            self._send_page(peer, request, [], False, said, received_at)
            return
        page = kept.pages.popleft()
        if kept.pages:
            self._keep(peer, request, kept.pages)
        self._send_page(peer, request, page, bool(kept.pages), None, received_at)

    @property
    def _kept_len(self) -> int:
        return sum(len(page) for kept in self._kept.values() for page in kept.pages)

    def _keep(self, peer: NodeId, request: int, pages: deque[list[Any]]) -> None:
        self._kept[peer, request] = _Kept(pages, self._node.now + 2 * QUERY_ANSWER_S)

    def _send_page(
        self,
        peer: NodeId,
        request: int,
        rows: list[Any],
        more: bool,
        error: str | None,
        received_at: float,
    ) -> None:
        cluster = self._node.cluster
        if cluster is not None and peer in cluster.members:
            at = (received_at, time.time())
            cluster.send(peer, link_messages.QUERY_ROWS, request, rows, more, error, *at)


def _pages(rows: list[Any]) -> list[list[Any]]:
    """Divide rows into pages of QUERY_PAGE_BYTES; at least one, if an empty one."""
    pages: list[list[Any]] = [[]]
    size = 0
    for row in rows:
        row_bytes = len(packb(row))
        if size + row_bytes > QUERY_PAGE_BYTES and pages[-1]:
            pages.append([])
            size = 0
        pages[-1].append(row)
        size += row_bytes
    return pages


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float)


# -- rules -----------------------------------------------------------------------------------------


def _query(cluster: Cluster, peer: bytes, message: list[Any], _frames: list[Payload]) -> None:
    request, what, arguments = message[3:6]
    if type(request) is not int or type(what) is not str or type(arguments) is not dict:
        raise errors.RemoteProtocolError("QUERY without a number, a question and arguments")
    if what in _NOT_FOR_GATEWAYS and cluster.members[peer].role is Role.GATEWAY:
        raise errors.RemoteProtocolError(f"a gateway asks for {what!r}")
    cluster.node.queries.asked(peer, request, what, arguments)


def _query_rows(cluster: Cluster, peer: bytes, message: list[Any], _frames: list[Payload]) -> None:
    if type(message[3]) is not int:
        raise errors.RemoteProtocolError("QUERY_ROWS without the number of its question")
    cluster.node.queries.page_came(peer, message)


def _query_next(cluster: Cluster, peer: bytes, message: list[Any], _frames: list[Payload]) -> None:
    if type(message[3]) is not int:
        raise errors.RemoteProtocolError("QUERY_NEXT without the number of its question")
    cluster.node.queries.more_wanted(peer, message[3])


QUERY_RULES: dict[int, Callable[[Cluster, bytes, list[Any], list[Payload]], None]] = {
    link_messages.QUERY: _query,
    link_messages.QUERY_ROWS: _query_rows,
    link_messages.QUERY_NEXT: _query_next,
}
