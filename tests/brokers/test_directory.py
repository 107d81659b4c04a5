"""The object directory, event by event: what it is told, and what it commands.

What    Sharing, registering once and again, holding, locating, containing, deaths, spilling.
        Random orders are tests/property/test_directory_machine.py's.
Never   touches memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from zray.brokers.directory import Directory
from zray.brokers.sharing import (
    Command,
    DeleteSpilled,
    FreeExtent,
    Locate,
    Restore,
    Unreferenced,
)
from zray.protocol import outcome
from zray.protocol.ids import object_id

OWNER, FRIEND, WORKER = b"an-owner", b"a-friend", b"a-worker"
X, Y = object_id(OWNER, 1), object_id(OWNER, 2)
PLAIN, LOST, DEAD = b"\x80plain", b"\x02lost", b"\x02dead"


class Objects:
    """A directory of three processes, and what it has commanded since the last look."""

    def __init__(self) -> None:
        self.directory = Directory()
        self.directory.lost_outcome = LOST
        self.directory.owner_died_outcome = DEAD
        for process in (OWNER, FRIEND, WORKER):
            self.directory.process_joined(process)

    def share(
        self, identity: bytes, found: bytes | None = PLAIN, contained: list[bytes] | None = None
    ) -> None:
        self.directory.share(OWNER, identity, found, contained or [], first=True)

    def register(self, identity: bytes, offset: int, contained: list[bytes] | None = None) -> None:
        self.directory.register(WORKER, identity, offset, 100, contained or [], OWNER)

    def release(self, process: bytes, *identities: bytes) -> None:
        self.directory.release(process, [(identity, 1) for identity in identities], [])

    def give_up(self, *identities: bytes) -> None:
        self.directory.release(OWNER, [], list(identities))

    def commands(self) -> list[Command]:
        commands, self.directory.commands = self.directory.commands, []
        return commands


@pytest.fixture
def objects() -> Iterator[Objects]:
    made = Objects()
    yield made
    made.directory.check()


def test_an_object_lives_as_long_as_somebody_holds_it(objects: Objects) -> None:
    objects.share(X)
    objects.directory.hold(FRIEND, [X])
    objects.release(OWNER, X)
    assert X in objects.directory.entries
    objects.release(FRIEND, X)
    assert not objects.directory.entries


def test_who_asks_is_told_when_the_outcome_is_there(objects: Objects) -> None:
    objects.share(X, None)
    objects.directory.hold(FRIEND, [X])
    objects.directory.locate(FRIEND, [X])
    assert objects.commands() == []
    objects.directory.share(OWNER, X, PLAIN, [], first=False)
    assert objects.commands() == [Locate(FRIEND, X, PLAIN)]


def test_an_owner_that_let_go_early_publishes_without_holding_again(objects: Objects) -> None:
    """Found by simulation (seed 11): its outcome was kept until the owner ended."""
    objects.share(X, None)
    objects.directory.hold(FRIEND, [X])
    objects.release(OWNER, X)
    objects.directory.share(OWNER, X, PLAIN, [], first=False)
    objects.release(FRIEND, X)
    assert not objects.directory.entries
    objects.directory.share(OWNER, X, PLAIN, [], first=False)
    assert not objects.directory.entries, "nobody is left to read it"


def test_a_result_is_held_for_its_owner_until_it_is_given_up(objects: Objects) -> None:
    objects.register(X, 4096)
    assert objects.directory.entries[X].pinned == {OWNER}
    objects.give_up(X)
    assert objects.commands() == [FreeExtent(4096)]


def test_a_result_made_twice_is_given_up_once(objects: Objects) -> None:
    """A crash may lose word of either execution: both extents stay until the object goes."""
    objects.register(X, 4096)
    objects.register(X, 8192)
    assert objects.commands() == []
    objects.give_up(X)
    assert objects.commands() == [FreeExtent(4096), FreeExtent(8192)]
    objects.give_up(X)
    assert objects.commands() == []


def test_a_result_on_its_way_holds_what_it_contains(objects: Objects) -> None:
    objects.directory.share(WORKER, Y, PLAIN, [], first=True)
    objects.directory.hold_for(X, [Y])
    objects.release(WORKER, Y)
    assert Y in objects.directory.entries
    objects.give_up(X)
    assert not objects.directory.entries


def test_a_chain_of_containers_goes_at_once(objects: Objects) -> None:
    chain = [object_id(OWNER, number) for number in range(1, 6)]
    objects.share(chain[0])
    for inner, outer in itertools.pairwise(chain):
        objects.share(outer, PLAIN, [inner])
        objects.release(OWNER, inner)
    assert len(objects.directory.entries) == 5
    objects.release(OWNER, chain[-1])
    assert not objects.directory.entries


def test_a_hold_alone_brings_nothing_back(objects: Objects) -> None:
    """Found by simulation (seed 159): a second execution waited for ever for what was gone."""
    objects.directory.hold(FRIEND, [X])
    assert not objects.directory.knows([X])
    objects.directory.locate(FRIEND, [X])
    assert objects.commands() == [Locate(FRIEND, X, LOST)]
    assert objects.directory.hold_certain(WORKER, [X]) == [(X, None)]


def test_what_a_dead_owner_never_published_is_lost(objects: Objects) -> None:
    objects.share(X, None)
    objects.directory.hold(FRIEND, [X])
    objects.directory.locate(FRIEND, [X])
    objects.directory.process_died(OWNER)
    assert objects.commands() == [Locate(FRIEND, X, DEAD)]


def test_the_dead_hold_nothing(objects: Objects) -> None:
    objects.register(X, 4096)
    objects.directory.process_died(OWNER)
    assert objects.commands() == [FreeExtent(4096)]
    objects.register(Y, 8192)
    assert objects.commands() == [FreeExtent(8192)], "made for somebody who is gone"


def test_an_actor_without_handles_is_reported(objects: Objects) -> None:
    objects.directory.actor_created(OWNER, X)
    objects.directory.hold(FRIEND, [X])
    objects.release(OWNER, X)
    assert objects.commands() == []
    objects.directory.process_died(FRIEND)
    assert objects.commands() == [Unreferenced(X)]


def test_what_somebody_has_mapped_is_not_spilled(objects: Objects) -> None:
    objects.register(X, 4096)
    assert not objects.directory.spilled(X, "file")
    objects.directory.unpinned(OWNER, [X])
    assert objects.directory.spilled(X, "file")
    assert objects.commands() == [FreeExtent(4096)]


def test_a_spilled_object_comes_back_for_who_asks(objects: Objects) -> None:
    objects.register(X, 4096)
    objects.directory.unpinned(OWNER, [X])
    objects.directory.spilled(X, "file")
    objects.commands()
    objects.directory.locate(OWNER, [X])
    assert objects.commands() == [Restore(X)]
    assert objects.directory.restored(X, 8192)
    assert objects.commands() == [
        DeleteSpilled(X, "file"),
        Locate(OWNER, X, outcome.stored(8192, 100)),
    ]
    assert not objects.directory.spilled(X, "file"), "it has been told where it lies"


def test_a_copy_that_nobody_wants_any_more_is_refused(objects: Objects) -> None:
    objects.register(X, 4096)
    objects.give_up(X)
    assert not objects.directory.spilled(X, "file")
    assert not objects.directory.restored(X, 8192)
