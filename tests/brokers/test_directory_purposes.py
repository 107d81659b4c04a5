"""Why somebody asks where an object is, and what the directory makes of it.

What    Asking for the place alone moves nothing and makes nobody a source; of several that ask,
        the most urgent counts; who needs the value after all has it brought.
Caller  pytest.
Never   has a network: commands are looked at.
"""

from __future__ import annotations

import pytest

from zray.brokers import sharing
from zray.brokers.directory import Directory
from zray.protocol import outcome
from zray.protocol.ids import node_id, object_id, process_id
from zray.protocol.purposes import Purpose

HOME, OTHER, THIRD = b"aaaa\0\0\0\0", b"bbbb\0\0\0\0", b"cccc\0\0\0\0"
ALICE, BOB = b"bbbb0001", b"bbbb0002"
OWNER = b"aaaa0001"
OBJECT = OWNER + bytes(8)
MB = 1 << 20


@pytest.fixture
def there() -> Directory:
    """Return a node's directory that knows of another one's object: two processes hold it."""
    directory = Directory(OTHER)
    for process in (ALICE, BOB):
        directory.process_joined(process)
        directory.hold(process, [OBJECT])
    directory.node_joined(HOME)
    directory.node_joined(THIRD)
    _taken(directory)
    return directory


@pytest.fixture
def home() -> Directory:
    """Return the directory of the object's home, in whose memory it lies."""
    directory = Directory(HOME)
    directory.process_joined(OWNER)
    for node in (OTHER, THIRD):
        directory.node_joined(node)
        directory.hold(node, [OBJECT])
    directory.register(OWNER, OBJECT, 4096, MB, [], OWNER)
    _taken(directory)
    return directory


def _taken(directory: Directory) -> list[sharing.Command]:
    directory.check()
    commands, directory.commands = directory.commands, []
    return commands


def test_who_asks_for_the_place_hears_of_it_and_nothing_is_pulled(there: Directory) -> None:
    there.locate(ALICE, [OBJECT], Purpose.PLACE)
    assert _taken(there) == [sharing.LocateAt(OBJECT, Purpose.PLACE)]
    there.found(OBJECT, None, MB, [HOME])
    assert _taken(there) == [sharing.Locate(ALICE, OBJECT, outcome.ELSEWHERE_OUTCOME)]


def test_the_value_is_pulled_for_who_needs_it_after_all(there: Directory) -> None:
    there.locate(ALICE, [OBJECT], Purpose.PLACE)
    there.found(OBJECT, None, MB, [HOME])
    _taken(there)
    there.locate(ALICE, [OBJECT], Purpose.ARGUMENT)
    assert _taken(there) == [sharing.Pull(OBJECT, MB, (HOME,), Purpose.ARGUMENT)]


def test_the_home_is_asked_again_where_the_value_is_needed_now(there: Directory) -> None:
    there.locate(ALICE, [OBJECT], Purpose.PLACE)
    there.locate(BOB, [OBJECT], Purpose.GET)
    there.locate(ALICE, [OBJECT], Purpose.ARGUMENT)
    assert _taken(there) == [
        sharing.LocateAt(OBJECT, Purpose.PLACE),
        sharing.LocateAt(OBJECT, Purpose.GET),
    ]
    there.found(OBJECT, None, MB, [HOME])
    pulls = [each for each in _taken(there) if isinstance(each, sharing.Pull)]
    assert min(each.purpose for each in pulls) == Purpose.GET


def test_a_pull_becomes_urgent_when_somebody_waits_for_it(there: Directory) -> None:
    there.locate(ALICE, [OBJECT], Purpose.PREFETCH)
    there.found(OBJECT, None, MB, [HOME])
    _taken(there)
    there.locate(BOB, [OBJECT], Purpose.ARGUMENT)
    assert _taken(there) == [sharing.Pull(OBJECT, MB, (HOME,), Purpose.ARGUMENT)]
    there.locate(ALICE, [OBJECT], Purpose.PREFETCH)
    assert _taken(there) == [], "it is more urgent already"


def test_who_asked_for_the_place_alone_is_no_source_for_others(home: Directory) -> None:
    home.locate(OTHER, [OBJECT], Purpose.PLACE)
    home.locate(THIRD, [OBJECT], Purpose.GET)
    home.locate(OTHER, [OBJECT], Purpose.GET)
    sources = [each.sources for each in _taken(home) if isinstance(each, sharing.Found)]
    assert sources == [(HOME,), (HOME,), (HOME, THIRD)]


def test_who_waits_hears_that_a_value_is_lost_when_the_last_who_was_to_get_it_has_given_up() -> (
    None
):
    """Its only source has died while another node pulled it."""
    home, source, puller = node_id(b"home"), node_id(b"srce"), node_id(b"pull")
    driver = process_id(home, b"driv")
    result = object_id(driver, 1)
    directory = Directory(home)
    directory.copies_died_outcome = b"\x02copies"
    directory.process_joined(driver)
    for node in (source, puller):
        directory.node_joined(node)
    directory.stored_at(source, result, 4096, driver)
    directory.hold(puller, [result])
    directory.locate(puller, [result], Purpose.GET)
    directory.node_lost(source)
    directory.copy_gone(puller, [result])
    directory.commands.clear()
    directory.locate(driver, [result], Purpose.GET)
    assert directory.commands == [sharing.Locate(driver, result, b"\x02copies")]
    directory.check()
