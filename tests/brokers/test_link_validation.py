"""What a node may say to another: every field of every message, and of whom it may speak.

What    A check for each field; honest messages of all kinds, each field of which is replaced by
        what it can't be, and each id by that of somebody else; anything at all never raises
        another error.
Caller  pytest.
Never   opens a socket.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zray.brokers.link_rules import LINK_RULES
from zray.brokers.link_validation import LINK_CHECKS, BreachError, check_link_message
from zray.protocol import frames, link_messages, messages, outcome
from zray.protocol.link_messages import AS_CLIENT, AS_HOME, LINK_MESSAGES

OURS, THEIRS, OTHER = (bytes([each]) * 4 + bytes(4) for each in (1, 2, 3))
FIELDS = {row.kind: row.fields for row in (*messages.MESSAGES, *LINK_MESSAGES)}


def _process(node: bytes) -> bytes:
    return node[:4] + b"\0\0\0\7"


def _object(node: bytes) -> bytes:
    return _process(node) + bytes(8)


def _job(node: bytes) -> str:
    return _process(node).hex()


LOAD = [THEIRS, 1, 1, {"CPU": 10_000}, {}, {"zone": "a"}, 0, 0, 0, 0, "ALIVE"]
GREETING = {
    "node": THEIRS,
    "address": "tcp://127.0.0.1:7",
    "to": "tcp://[::1]:8",
    "answers": "",
    "gcs": [OTHER, "tcp://10.0.0.2:1"],
    "role": "node",
    "incarnation": 1,
    "losses": [],
    "bulk": ["tcp://example.org:9", b"name"],
    "total": {"CPU": 10_000},
    "load": LOAD,
    "directory": "/tmp/n",
    "hostname": "there",
    "labels": {"zone": "a"},
    "members": [[OTHER, "tcp://10.0.0.1:1"]],
}
HONEST: dict[int, list[Any]] = {
    link_messages.LINK_HELLO: [GREETING],
    link_messages.OFFER: [LOAD],
    link_messages.RELAY: [],
    link_messages.BORROW: [1, {"CPU": 1}, {}, [["A", "b"]], False, True],
    link_messages.LENT: [1, _process(THEIRS), 77, ["0"], LOAD],
    link_messages.GIVE_BACK: [_process(OURS), False],
    link_messages.WANTED_BACK: [_process(THEIRS), True],
    link_messages.TO_WORKER: [_process(OURS)],
    link_messages.TELL_WORKER: [_process(OURS), b"packed"],
    link_messages.END_WORKER: [_process(OURS)],
    link_messages.FROM_WORKER: [_process(THEIRS), b"packed"],
    link_messages.WORKER_DIED: [_process(THEIRS), "it was killed"],
    link_messages.SUSPECTED: [_process(OURS)],
    link_messages.STOPPED: [_process(THEIRS)],
    link_messages.JOB_ENDED: [_job(THEIRS)],
    link_messages.OUTPUT: [_job(OURS), [["worker 7", False, "text"]]],
    link_messages.CODE_WANTED: [bytes(16), _job(OURS)],
    link_messages.CODE: [bytes(16), b"code", {"job": _job(THEIRS), "cwd": None, "path": []}],
    link_messages.STORED_AT: [_object(OURS), -1, _process(OURS)],
    link_messages.LOCATE_FOREIGN: [[_object(OURS)], 0],
    link_messages.FOUND: [[[_object(THEIRS), b"\x80", -1, [OTHER]]]],
    link_messages.HOLDS_COUNTED: [3],
    link_messages.COPY_GONE: [[_object(OURS)]],
    link_messages.ROSTER: [{"keys": []}],
    link_messages.LINEAGE: [1, _job(OTHER), [0, 3]],
    link_messages.LINEAGE_KEPT: [_job(OTHER), 3],
    link_messages.LINEAGE_ENDED: [1, _job(OTHER)],
    link_messages.HOST_RENEW: [1.5],
    link_messages.HOST_RENEWED: [1.5, 3],
    link_messages.HOSTS_ENDED: [],
    link_messages.TAKE_OVER: [[[_object(OURS), [_object(OTHER)]]]],
    link_messages.DRAIN: [30, False],
    link_messages.LEAVING: [["an actor"]],
    link_messages.GROUP_ASK: ["PREPARE", bytes(16), 1, [[0, {"CPU": 1}]]],
    link_messages.GROUP_SAID: ["PREPARED", bytes(16), 1, True],
    link_messages.GROUP_GONE: [bytes(16), "it was removed"],
    link_messages.GCS_CALL: [0, 10],
    link_messages.GCS_ANSWER: [0, 10],
    link_messages.QUERY: [1, "tasks", {"limit": 3}],
    link_messages.QUERY_ROWS: [1, [["row"]], False, None, 1.5, 2],
    link_messages.QUERY_NEXT: [1],
    messages.HOLD: [[_object(OURS)], False],
    messages.RELEASE: [[[_object(OURS), 1], [_object(THEIRS), 1]], []],
    messages.WATCH_ACTOR: [_object(OURS)],
    messages.KILL_ACTOR: [_object(OURS), True],
    messages.ACTOR_STATE: [[[_object(THEIRS), "ALIVE", _process(OTHER), None, 1, None]]],
    messages.PROCESS_DIED: [_process(OTHER), "it was killed"],
}
SPEAKS_FOR_ALL = {
    link_messages.BORROW,  # Of its own number.
    link_messages.HOLDS_COUNTED,
    link_messages.ROSTER,  # Who may is told by its key.
    link_messages.RELAY,  # The envelopes say it, and brokers/relays.py reads them.
    link_messages.HOST_RENEW,
    link_messages.HOST_RENEWED,
    link_messages.HOSTS_ENDED,
    link_messages.DRAIN,
    link_messages.LEAVING,
    link_messages.GROUP_ASK,
    link_messages.GROUP_SAID,
    link_messages.GROUP_GONE,
    link_messages.GCS_CALL,
    link_messages.GCS_ANSWER,
    link_messages.LINEAGE,  # Of jobs of anybody that were submitted there.
    link_messages.LINEAGE_KEPT,
    link_messages.LINEAGE_ENDED,
    link_messages.QUERY,
    link_messages.QUERY_ROWS,
    link_messages.QUERY_NEXT,
    messages.PROCESS_DIED,  # A borrower knows of the death of another node's worker.
}


WITH_PAYLOADS = (
    link_messages.RELAY,
    link_messages.TO_WORKER,
    link_messages.GCS_CALL,
    link_messages.GCS_ANSWER,
)
ANYTHING_GOES = [
    ("stamp", 1.5),
    ("lease_s", 1.5),
    ("timeout_s", 1.5),
    ("arguments", {"a": b""}),
    ("rows", [[]]),
    ("error", "no such thing"),
    ("received_at", 1.5),
    ("sent_at", 1.5),
]


def _payloads(kind: int) -> int:
    return int(kind in WITH_PAYLOADS)


def _check(kind: int, fields: list[Any], payloads: int | None = None) -> None:
    """Check a message as it comes: packed by its sender, unpacked here."""
    count = _payloads(kind) if payloads is None else payloads
    message = frames.unpack(frames.pack(kind, *fields, payloads=count))
    check_link_message(message, count, THEIRS, OURS)


def test_every_field_of_every_message_of_links_has_a_check() -> None:
    kinds = {row.kind for row in LINK_MESSAGES} | set(AS_CLIENT) | set(AS_HOME)
    assert set(LINK_CHECKS) == kinds == set(HONEST)
    for kind in kinds:
        assert len(LINK_CHECKS[kind]) == len(FIELDS[kind]), FIELDS[kind]
    assert set(LINK_RULES) <= kinds


@pytest.mark.parametrize("kind", HONEST)
def test_what_an_honest_node_says_is_taken(kind: int) -> None:
    _check(kind, HONEST[kind])


@pytest.mark.parametrize("kind", HONEST)
def test_no_field_takes_what_it_can_not_be(kind: int) -> None:
    for at, name in enumerate(FIELDS[kind]):
        if kind == link_messages.ROSTER:
            continue  # zray/net/roster.py reads it.
        wrong = [1.5, b"x", "no such thing", -2, 1 << 63, [[]], {"a": b""}, {1: 2}]
        for value in wrong:
            fields = list(HONEST[kind])
            if (
                (type(value) is type(fields[at]) and type(value) in (str, bytes))
                or (kind in (link_messages.BORROW, link_messages.LENT) and fields[at] in ([], {}))
                or (name, value) in ANYTHING_GOES
            ):
                continue  # Any text, any bytes, rows of anything.
            fields[at] = value
            with pytest.raises(BreachError, match=f"field '{name}'|not its own"):
                _check(kind, fields)


@pytest.mark.parametrize("kind", sorted(set(HONEST) - {link_messages.LINEAGE}))
def test_payloads_are_what_the_kind_has(kind: int) -> None:
    with pytest.raises(BreachError, match="payloads"):
        _check(kind, HONEST[kind], 1 - _payloads(kind))


@pytest.mark.parametrize("name", GREETING)
def test_a_greeting_lacks_nothing_and_says_nothing_absurd(name: str) -> None:
    lacking = {key: value for key, value in GREETING.items() if key != name}
    with pytest.raises(BreachError):
        _check(link_messages.LINK_HELLO, [lacking])
    for value in (1.5, b"x", [["x"]], {1: 1}):
        with pytest.raises(BreachError):
            _check(link_messages.LINK_HELLO, [GREETING | {name: value}])


@pytest.mark.parametrize(
    "address",
    ["", "tcp://", "ipc:///tmp/x", "tcp://a;tcp://b:1", "tcp://a:b", "tcp://*:1", "x" * 999],
)
def test_what_is_no_address_is_not_dialled(address: str) -> None:
    for greeting in (
        GREETING | {"address": address},
        GREETING | {"bulk": [address, b"name"]},
        GREETING | {"members": [[OTHER, address]]},
    ):
        with pytest.raises(BreachError):
            _check(link_messages.LINK_HELLO, [greeting])


def _replaced(value: Any, old: bytes, new: bytes) -> Any:
    """Put ids of another node in the place of those of one, wherever they are."""
    match value:
        case bytes():
            return new[:4] + value[4:] if value[:4] == old[:4] else value
        case str():
            return value.replace(old[:4].hex(), new[:4].hex())
        case list():
            return [_replaced(each, old, new) for each in value]
        case dict():
            return {key: _replaced(each, old, new) for key, each in value.items()}
        case _:
            return value


@pytest.mark.parametrize("kind", sorted(set(HONEST) - SPEAKS_FOR_ALL))
def test_a_node_speaks_for_itself_and_to_whom_it_speaks(kind: int) -> None:
    for node in (THEIRS, OURS):
        fields = _replaced(HONEST[kind], node, OTHER)
        if fields == HONEST[kind] or (kind == link_messages.STORED_AT and node == THEIRS):
            continue
        with pytest.raises(BreachError, match="not its own"):
            _check(kind, fields)


def test_nobody_tells_us_what_lies_in_our_own_memory() -> None:
    stored = outcome.stored(0, 100)
    for found in (stored, outcome.holding([], stored), outcome.holding([], b""), b"\x04junk"):
        row = [_object(THEIRS), found, -1, []]
        with pytest.raises(BreachError):
            _check(link_messages.FOUND, [[row]])
    _check(link_messages.FOUND, [[[_object(THEIRS), outcome.holding([], b"\x80"), -1, []]]])


def test_a_kind_of_processes_is_none_of_nodes() -> None:
    with pytest.raises(BreachError, match="STOP is not for a node"):
        check_link_message([1, messages.STOP, 0, "now"], 0, THEIRS, OURS)


_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.binary(max_size=20)
    | st.sampled_from([OURS, THEIRS, OTHER, _object(OURS), _object(THEIRS), _job(THEIRS)]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=8) | st.integers(0, 9), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(kind=st.sampled_from(sorted(HONEST)), data=st.data())
def test_whatever_comes_is_fit_or_a_breach(kind: int, data: st.DataObject) -> None:
    fields = [data.draw(_values | st.just(honest)) for honest in HONEST[kind]]
    try:
        check_link_message([1, kind, 0, *fields], data.draw(st.integers(0, 2)), THEIRS, OURS)
    except BreachError:
        return
