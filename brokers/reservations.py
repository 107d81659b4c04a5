"""A node's side of placement groups: bundles that are reserved here, prepared or committed.

What    prepare() takes the resources of a group's bundles on this node, all or none; commit() makes
        them the group's; cancel() and remove() give them back. What is prepared and hears nothing
        asks the coordinator, whose record settles it, also after a crash: a prepared bundle is
        never given up on a guess, since the decision may have been made already. A bundle opens
        for work when it is committed and its group has been ready: all of it, on every node.
Caller  brokers/placement_groups.py, told by brokers/groups.py of the coordinator.
Never   decides about a group, or releases a bundle while somebody works in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .bundles import Accounts
from .resources import Grant

_ASK_AFTER_S = 2.0
"""A bundle that has been prepared for so long asks what became of its group, and so on."""

_SETTLED_MAX = 10_000
"""Groups whose last attempt is remembered, against a prepare that comes late."""


@dataclass(slots=True)
class Bundle:
    """One bundle that is reserved here. Tasks run in it once it is committed."""

    group: bytes
    index: int
    attempt: int
    grant: Grant
    committed: bool
    ask_at: float
    leaving: bool = False
    """Its group is removed; it is released when nobody works in it any more."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """Answer a prepare."""

    group: bytes
    attempt: int
    ok: bool


@dataclass(frozen=True, slots=True)
class Committed:
    """Answer a commit; not ok: nothing of this attempt is here."""

    group: bytes
    attempt: int
    ok: bool


@dataclass(frozen=True, slots=True)
class Inquire:
    """Ask the coordinator what became of an attempt."""

    group: bytes
    attempt: int


@dataclass(frozen=True, slots=True)
class Evict:
    """End the tasks and actors in these bundles, then call evicted()."""

    group: bytes
    indexes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Removed:
    """Answer a remove: nothing of the group is here any more."""

    group: bytes


ReservationCommand = Prepared | Committed | Inquire | Evict | Removed


class Reservations:
    """The bundles of one node.

    Args:
        resources: the node's account, from which the bundles are taken.
    """

    def __init__(self, resources: Accounts) -> None:
        self.resources = resources
        self.commands: list[ReservationCommand] = []
        self.bundles: dict[tuple[bytes, int], Bundle] = {}
        self._ready: set[bytes] = set()
        """Groups of bundles here that are known to have been whole."""
        self._settled: dict[bytes, int] = {}

    def prepare(
        self, group: bytes, attempt: int, wanted: Mapping[int, Mapping[str, int]], now: float
    ) -> None:
        """Reserve bundles, all or none, for an attempt; an older attempt's make way.

        Args:
            group: its id.
            attempt: which attempt; larger is later.
            wanted: units of each bundle, by its index.
            now: seconds.
        """
        if attempt <= self._settled.get(group, -1):
            self.commands.append(Prepared(group, attempt, False))
            return
        mine = self._of(group)
        if any(_stands_in_the_way(bundle, attempt, wanted) for bundle in mine):
            self.commands.append(Prepared(group, attempt, False))
            return
        if wanted.keys() <= {bundle.index for bundle in mine if bundle.attempt == attempt}:
            self.commands.append(Prepared(group, attempt, True))
            return
        for bundle in mine:
            if not bundle.committed:
                self._release(bundle)
        taken: list[Bundle] = []
        for index, amounts in sorted(wanted.items()):
            grant = self.resources.acquire(amounts)
            if grant is None:
                break
            taken.append(Bundle(group, index, attempt, grant, False, now + _ASK_AFTER_S))
        if len(taken) < len(wanted):
            for bundle in taken:
                self.resources.release(bundle.grant)
            self._settle(group, attempt)
            self.commands.append(Prepared(group, attempt, False))
            return
        self.bundles.update({(group, bundle.index): bundle for bundle in taken})
        self.commands.append(Prepared(group, attempt, True))

    def commit(self, group: bytes, attempt: int) -> None:
        """The coordinator has recorded this attempt: its bundles are the group's."""
        bundles = [bundle for bundle in self._of(group) if bundle.attempt == attempt]
        for bundle in bundles:
            bundle.committed = True
        self._open(group)
        ok = bool(bundles) and not any(bundle.leaving for bundle in bundles)
        self.commands.append(Committed(group, attempt, ok))

    def ready(self, group: bytes) -> None:
        """The group is, or once was, whole: work may begin in its bundles."""
        if group not in self._ready and self._of(group):
            self._ready.add(group)
            self._open(group)

    def _open(self, group: bytes) -> None:
        for bundle in self._of(group):
            if group in self._ready and bundle.committed and not bundle.leaving:
                self.resources.open(group, bundle.index, bundle.grant)

    def cancel(self, group: bytes, attempt: int) -> None:
        """Nothing came of an attempt: release what it has prepared."""
        for bundle in self._of(group):
            if bundle.attempt <= attempt and not bundle.committed:
                self._release(bundle)
        self._settle(group, attempt)

    def remove(self, group: bytes, attempt: int) -> None:
        """The group is removed: release its bundles when nobody works in them.

        Args:
            group: its id.
            attempt: its last one: a prepare of it may still be on its way.
        """
        self._settle(group, attempt)
        working = []
        for bundle in self._of(group):
            if bundle.committed:
                working += [] if bundle.leaving else [bundle.index]
                bundle.leaving = True
                self.resources.shut(group, bundle.index)
            else:
                self._release(bundle)
        if working:
            self.commands.append(Evict(group, tuple(sorted(working))))
        elif not self._of(group):
            self.commands.append(Removed(group))

    def evicted(self, group: bytes) -> None:
        """Nobody works in the group's bundles any more."""
        leaving = [bundle for bundle in self._of(group) if bundle.leaving]
        for bundle in leaving:
            self._release(bundle)
        if leaving:
            self.commands.append(Removed(group))

    def tick(self, now: float) -> None:
        """Time has passed: ask about what has been prepared for long."""
        asked: set[tuple[bytes, int]] = set()
        for bundle in self.bundles.values():
            if not bundle.committed and now >= bundle.ask_at:
                bundle.ask_at = now + _ASK_AFTER_S
                asked.add((bundle.group, bundle.attempt))
        self.commands += [Inquire(*each) for each in sorted(asked)]

    def _of(self, group: bytes) -> list[Bundle]:
        return [bundle for bundle in self.bundles.values() if bundle.group == group]

    def leaving(self) -> dict[bytes, list[int]]:
        """Return the bundles that are released when nobody works in them, by group."""
        found: dict[bytes, list[int]] = {}
        for bundle in self.bundles.values():
            if bundle.leaving:
                found.setdefault(bundle.group, []).append(bundle.index)
        return found

    def _release(self, bundle: Bundle) -> None:
        del self.bundles[(bundle.group, bundle.index)]
        self.resources.close(bundle.group, bundle.index)
        self.resources.release(bundle.grant)
        if not self._of(bundle.group):
            self._ready.discard(bundle.group)

    def _settle(self, group: bytes, attempt: int) -> None:
        last = self._settled.pop(group, -1)
        self._settled[group] = max(last, attempt)
        if len(self._settled) > _SETTLED_MAX:
            del self._settled[next(iter(self._settled))]

    def check(self) -> None:
        """Raise AssertionError where an invariant is broken."""
        for key, bundle in self.bundles.items():
            assert key == (bundle.group, bundle.index)
            assert bundle.committed or bundle.attempt > self._settled.get(bundle.group, -1)
            assert bundle.committed or not bundle.leaving
        numbers = [bundle.grant.number for bundle in self.bundles.values()]
        assert len(set(numbers)) == len(numbers), "a grant holds two bundles"
        self.resources.check()


def _stands_in_the_way(bundle: Bundle, attempt: int, wanted: Mapping[int, object]) -> bool:
    """Return whether a bundle forbids an attempt: it is newer, or somebody works in it."""
    again = bundle.committed and bundle.index in wanted and bundle.attempt != attempt
    return bundle.attempt > attempt or bundle.leaving or again
