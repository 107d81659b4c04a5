"""Questions put to many at once: whose rows are here, who is waited for, who said nothing in time.

What    A question goes to sources, which are nodes or processes. Each answers with pages of rows,
        one at a time, as they are asked for. It is over when all have answered, have failed or
        have let their time go by; those are named with the reason, and nobody waits for them.
Caller  brokers/queries.py (nodes), brokers/process_questions.py (processes of this node).
Never   sends, reads a clock, or keeps more rows than the question asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from zray.errors import ClusterError


@dataclass(frozen=True, slots=True)
class NextPage:
    """Ask a source for its next page."""

    number: int
    source: bytes


@dataclass(slots=True)
class Gathered:
    """What came of a question.

    Args:
        number: of the question.
        rows: by the source that gave them, in the order it gave them.
        missing: sources that gave nothing or not all, and why.
        is_truncated: there are more rows than were asked for.
    """

    number: int
    rows: dict[bytes, list[Any]] = field(default_factory=dict)
    missing: dict[bytes, str] = field(default_factory=dict)
    is_truncated: bool = False


Command = NextPage | Gathered


class _Question:
    """One that is open."""

    __slots__ = ("awaited", "gathered", "rows_left", "until")

    def __init__(self, number: int, rows_max: int, until: float) -> None:
        self.gathered = Gathered(number)
        self.rows_left = rows_max
        self.until = until
        self.awaited: dict[bytes, float] = {}
        """Sources that owe a page, and when the time for it is over."""


class Gatherings:
    """All open questions of one node.

    Args:
        answer_s: how long one page of a source is waited for.
        timeout_s: how long a question may take, however many pages there are.
        open_max: questions at a time.
    """

    def __init__(self, *, answer_s: float, timeout_s: float, open_max: int) -> None:
        self.answer_s = answer_s
        self.timeout_s = timeout_s
        self.open_max = open_max
        self.commands: list[Command] = []
        self._open: dict[int, _Question] = {}
        self._last = 0

    def __bool__(self) -> bool:
        return bool(self._open or self.commands)

    def begin(self, sources: Iterable[bytes], *, rows_max: int, now: float) -> int:
        """Open a question to these sources, which are about to be asked; returns its number.

        Raises:
            ClusterError: too many are open.
        """
        if len(self._open) >= self.open_max:
            raise ClusterError(
                f"{len(self._open)} questions about the cluster are open at this node: ask again"
                " in a moment"
            )
        self._last += 1
        question = _Question(self._last, rows_max, now + self.timeout_s)
        until = min(now + self.answer_s, question.until)
        question.awaited = dict.fromkeys(sources, until)
        self._open[self._last] = question
        self._settle(question)
        return self._last

    def took(self, number: int, source: bytes, rows: list[Any], *, more: bool, now: float) -> None:
        """A page has come. One that nobody waits for (any more) changes nothing."""
        question = self._open.get(number)
        if question is None or source not in question.awaited:
            return
        gathered = question.gathered
        kept = rows[: question.rows_left]
        question.rows_left -= len(kept)
        gathered.rows.setdefault(source, []).extend(kept)
        if len(kept) < len(rows) or (more and not question.rows_left):
            gathered.is_truncated = True
        if more and question.rows_left:
            question.awaited[source] = min(now + self.answer_s, question.until)
            self.commands.append(NextPage(number, source))
        else:
            del question.awaited[source]
            self._settle(question)

    def failed(self, number: int, source: bytes, reason: str) -> None:
        """A source can't answer this question."""
        question = self._open.get(number)
        if question is not None and question.awaited.pop(source, None) is not None:
            question.gathered.missing[source] = reason
            self._settle(question)

    def source_lost(self, source: bytes, reason: str) -> None:
        """A source is gone: no question waits for it."""
        for number in list(self._open):
            self.failed(number, source, reason)

    def tick(self, now: float) -> None:
        """Wait no longer for those whose time is over."""
        for number, question in list(self._open.items()):
            for source, until in list(question.awaited.items()):
                if now >= until:
                    waited = min(self.answer_s, self.timeout_s)
                    self.failed(number, source, f"it has not answered within {waited:g} s")

    def _settle(self, question: _Question) -> None:
        if not question.awaited:
            del self._open[question.gathered.number]
            self.commands.append(question.gathered)

    def check(self) -> None:
        """Raise AssertionError where an invariant is broken."""
        assert len(self._open) <= self.open_max
        for number, question in self._open.items():
            assert question.gathered.number == number
            assert question.awaited, "a question that waits for nobody is open"
            assert question.rows_left >= 0
            assert not question.awaited.keys() & question.gathered.missing.keys()
            assert all(until <= question.until for until in question.awaited.values())
