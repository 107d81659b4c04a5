"""References of one process: what is counted here, and what the node is told of it.

What    Events into References, calls and messages out of its outbox; ends with check(). Random
        orders against a real directory are tests/property/test_references_machine.py's.
Never   opens a socket.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.outbox import taken
from zray.protocol import messages, outcome
from zray.protocol.ids import object_id
from zray.session.outbox import Outbox
from zray.session.references import Key, References

ME, OTHER, NODE = b"a-client", b"somebody", b"the-node"
PLAIN, ERROR = b"\x80plain", b"\x02boom"
STORED = outcome.stored(4096, 100)
THEIRS = object_id(OTHER, 5)


class Client:
    """References with their outbox."""

    def __init__(self) -> None:
        self.outbox = Outbox()
        self.results: dict[Key, bytes] = {}
        self.references = References(ME, NODE, self.results, self.outbox)
        self.freed: list[int] = []
        self.registered: list[int] = []
        self.references.free_private = self.freed.append
        self.references.register_private = lambda number, _held: self.registered.append(number)

    def drop(self, *keys: Key) -> list[list[Any]]:
        """Drop references; returns the fields of what the node is told."""
        self.references.garbage.extend(keys)
        self.references.collect()
        return self.told()

    def told(self) -> list[list[Any]]:
        """Return [kind, *fields] of what the node was told since the last look."""
        return taken(self.outbox)


def mine(number: int) -> bytes:
    """Return the id of one of the client's objects."""
    return object_id(ME, number)


@pytest.fixture
def client() -> Iterator[Client]:
    made = Client()
    yield made
    made.references.check()


def test_the_node_hears_nothing_of_a_private_object(client: Client) -> None:
    client.results[1] = PLAIN
    assert client.drop(1) == []
    assert not client.results


def test_a_private_extent_is_freed_with_its_last_reference(client: Client) -> None:
    client.results[1] = STORED
    client.references.add(1)
    assert client.drop(1) == []
    assert client.freed == []
    client.drop(1)
    assert client.freed == [1]


def test_an_array_over_an_object_keeps_it(client: Client) -> None:
    client.results[1] = STORED
    gone = client.references.view_opened(1)
    client.drop(1)
    assert client.freed == []
    gone()
    client.references.collect()
    assert client.freed == [1]


def test_a_reference_escapes_once(client: Client) -> None:
    client.results[1] = PLAIN
    client.references.share(1)
    client.references.share(1)
    assert client.told() == [[messages.SHARE, mine(1), PLAIN, [], True]]
    assert client.drop(1) == [[messages.RELEASE, [[mine(1), 1]], []]]


def test_a_pending_reference_is_published_when_its_outcome_arrives(client: Client) -> None:
    client.references.share(1)
    client.references.arrived(1, PLAIN)
    assert client.told() == [
        [messages.SHARE, mine(1), None, [], True],
        [messages.SHARE, mine(1), PLAIN, [], False],
    ]


def test_a_pending_reference_is_published_for_others_when_nobody_here_wants_it(
    client: Client,
) -> None:
    client.references.share(1)
    assert client.drop(1)[1] == [messages.RELEASE, [[mine(1), 1]], []]
    client.references.arrived(1, PLAIN)
    client.references.collect()
    assert client.told() == [[messages.SHARE, mine(1), PLAIN, [], False]]
    assert not client.results


def test_an_outcome_nobody_waits_for_is_not_kept(client: Client) -> None:
    client.drop(1)
    client.references.arrived(1, PLAIN)
    client.references.collect()
    assert not client.results


def test_a_stored_result_is_given_up_once(client: Client) -> None:
    client.references.arrived(1, STORED)
    client.references.arrived_again(1, STORED)
    assert client.drop(1) == [[messages.RELEASE, [], [mine(1)]]]
    client.references.arrived_again(1, STORED)
    assert client.drop() == [[messages.RELEASE, [], [mine(1)]]]


def test_a_result_with_references_inside_is_given_up_like_a_stored_one(client: Client) -> None:
    client.references.arrived(1, outcome.holding([THEIRS], PLAIN))
    assert client.results[1] == PLAIN
    assert client.drop(1) == [[messages.RELEASE, [], [mine(1)]]]


def test_an_error_gives_up_what_an_execution_before_it_may_have_made(client: Client) -> None:
    client.references.arrived(1, ERROR)
    assert client.drop() == [[messages.RELEASE, [], [mine(1)]]]


def test_a_stored_result_needs_no_word_to_be_shared(client: Client) -> None:
    client.references.arrived(1, STORED)
    client.references.share(1)
    assert client.told() == []
    assert client.registered == []


def test_a_private_object_is_registered_when_it_escapes(client: Client) -> None:
    client.results[1] = STORED
    client.references.share(1)
    assert client.registered == [1]
    assert client.drop(1) == [[messages.RELEASE, [], [mine(1)]]]
    assert client.freed == []


def test_the_first_reference_to_anothers_object_takes_a_hold(client: Client) -> None:
    client.references.restore(THEIRS)
    client.references.restore(THEIRS)
    assert client.told() == [[messages.HOLD, [THEIRS], False]]
    assert client.drop(THEIRS) == []
    assert client.drop(THEIRS) == [[messages.RELEASE, [[THEIRS, 1]], []]]


def test_an_own_reference_that_comes_home_late_waits_for_its_own_outcome(client: Client) -> None:
    client.references.share(1)
    client.drop(1)
    client.references.restore(1)
    client.references.arrived(1, PLAIN)
    client.references.collect()
    assert client.results == {1: PLAIN}


def test_an_argument_that_was_fetched_does_not_cost_a_reference(client: Client) -> None:
    """A worker that has the ref already fetches the value for one more task, and drops that."""
    client.references.restore(THEIRS)
    client.references.fetched(THEIRS, STORED)
    client.told()
    assert client.drop(THEIRS) == []
    assert client.drop(THEIRS) == [[messages.RELEASE, [[THEIRS, 2]], []]]


def test_a_place_is_forgotten_unless_it_is_in_use(client: Client) -> None:
    client.references.arrived(1, STORED)
    client.references.arrived(2, STORED)
    client.references.view_opened(2)
    assert client.references.unpin([mine(1), mine(2)]) == [mine(1)]
    assert client.results[1] == outcome.ELSEWHERE_OUTCOME
    assert client.references.locate(1)
    client.references.found(mine(1), STORED)
    assert client.results[1] == STORED


def test_an_actors_handle_is_counted_and_never_awaited(client: Client) -> None:
    client.references.created(1)
    assert client.drop(1) == [[messages.RELEASE, [[mine(1), 1]], []]]
    assert not client.references.dropped
