"""What clients and gateways say on links, message by message.

What    Kinds for a role, what a client says of others, calls of gateways that are no data.
Caller  pytest.
Never   opens a socket.
"""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zray.brokers.link_roles import RoleError, check, check_sources, refused_calls
from zray.errors import RemoteProtocolError
from zray.protocol import frames, link_messages, messages
from zray.protocol.envelopes import seal
from zray.protocol.ids import return_number
from zray.protocol.packing import packb
from zray.protocol.roles import LINK_SENDERS, Role
from zray.serialization import blob
from zray.serialization.data import encode_data

PEER, OTHER = b"peer" + bytes(4), b"othr" + bytes(4)
DRIVER, STRANGER = b"peerdriv", b"othrdriv"
JOB, OTHERS_JOB = DRIVER.hex(), STRANGER.hex()
WORKER, ACTOR = b"othr0001", b"othrdriv" + bytes(8)


def message(kind: int, *fields: Any) -> list[Any]:
    return [1, kind, 0, *fields]


ITS_OWN = [
    message(link_messages.BORROW, 1, {}, {}, [["ZRAY_JOB_ID", JOB], ["A", "b"]], False, False),
    message(link_messages.BORROW, 1, {}, {}, [], False, False),
    message(link_messages.CODE, b"f", b"code", {"job": JOB}),
    message(link_messages.CODE, b"f", b"code", None),
    message(link_messages.JOB_ENDED, JOB),
    message(messages.PROCESS_DIED, DRIVER, "it left"),
    message(messages.ACTOR_STATE, [[DRIVER + bytes(8), "DEAD", None, None, 0, b""]]),
]
OF_OTHERS = [
    message(link_messages.BORROW, 1, {}, {}, [["ZRAY_JOB_ID", OTHERS_JOB]], False, False),
    message(link_messages.CODE, b"f", b"code", {"job": OTHERS_JOB}),
    message(link_messages.JOB_ENDED, OTHERS_JOB),
    message(messages.PROCESS_DIED, WORKER, "it is said"),
    message(
        messages.ACTOR_STATE,
        [
            [DRIVER + bytes(8), "DEAD", None, None, 0, b""],
            [ACTOR, "DEAD", None, None, 0, b""],
        ],
    ),
]


@pytest.mark.parametrize("sent", ITS_OWN, ids=repr)
def test_a_client_speaks_of_itself_and_its_own_jobs(sent: list[Any]) -> None:
    check(Role.CLIENT, PEER, sent)


@pytest.mark.parametrize("sent", OF_OTHERS, ids=repr)
def test_what_a_client_says_of_others_is_refused(sent: list[Any]) -> None:
    with pytest.raises(RoleError, match="only of itself"):
        check(Role.CLIENT, PEER, sent)
    check(Role.NODE, PEER, sent)


def test_what_processes_say_is_of_those_of_the_node_that_brings_it() -> None:
    own, others = seal(WORKER, DRIVER, [b"x"]), seal(WORKER, STRANGER, [b"x"])
    check_sources(Role.CLIENT, PEER, [*own, *own])
    malicious: list[list[bytes]] = [others, [*own, *others], [b""], [WORKER + DRIVER]]
    for sealed in malicious:
        with pytest.raises(RoleError, match="its own processes"):
            check_sources(Role.CLIENT, PEER, sealed)


@pytest.mark.parametrize("role", [Role.CLIENT, Role.GATEWAY])
def test_kinds_of_others_are_refused_whatever_is_in_them(role: Role) -> None:
    for kind, senders in LINK_SENDERS.items():
        if role not in senders:
            with pytest.raises(RoleError, match=role):
                check(role, PEER, message(kind))


@given(st.lists(st.none() | st.integers() | st.binary() | st.text(), max_size=7))
def test_fields_of_no_shape_are_refused_and_nothing_worse(fields: list[Any]) -> None:
    for kind in LINK_SENDERS:
        for role in Role:
            try:
                check(role, PEER, message(kind, *fields))
            except RoleError:
                continue


# -- calls of gateways -----------------------------------------------------------------------------


def call(
    arguments: Any, *, method: Any = "add", number: Any = 7, returns: Any = 1, actor: Any = ACTOR
) -> list[Any]:
    return [actor, number, method, returns, arguments]


def sent(*rows: Any) -> list[bytes]:
    return [frames.pack(messages.CALL, list(rows), 0)]


FINE = encode_data((1, "a", np.arange(3)))


@pytest.mark.parametrize(
    "row",
    [
        call(FINE),
        call(FINE, method="add@group"),
        call(FINE, method="__call__"),
        call(FINE, method=packb(["add", "", {"name": "x", "backlog": 3, "retries": 2}])),
        call(FINE, returns=-1),
    ],
)
def test_calls_with_data_are_brought_on(row: list[Any]) -> None:
    assert refused_calls(sent(row, row)) is None
    assert refused_calls([memoryview(sent(row)[0])]) is None


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (call(pickle.dumps((1,))), "pickled"),
        (call(blob.to_bytes(blob.encode((np.zeros(1 << 14),)))), "pickled"),
        (call(blob.to_bytes(blob.encode(np.zeros(1 << 14)))), "pickled"),
        (call(b"\x05" + packb((b"", {"": [ACTOR, pickle.dumps(1)]}))), "pickled"),
        (call(b"\x06"), "pickled"),
        (call(b""), "pickled"),
        (call(b"\x01\x02\x04" + FINE[3:]), "pickled"),
        (call(FINE, method="__ray_call__"), "__ray_call__"),
        (call(FINE, method="__ray_terminate__"), "__ray_terminate__"),
        (call(FINE, method="__setattr__@g"), "__setattr__"),
        (call(FINE, method=packb(["__reduce__", "", {}])), "__reduce__"),
    ],
)
def test_calls_that_are_code_are_refused_with_all_that_came_with_them(
    row: list[Any], why: str
) -> None:
    refused = refused_calls(sent(call(FINE, number=6, returns=2), row))
    assert refused is not None
    assert why in refused.reason
    assert refused.numbers == [6, return_number(6, 1), 7]


@pytest.mark.parametrize(
    "payloads",
    [
        [],
        [b"random"],
        [frames.pack(messages.RUN, b"", 0, None, 1, 1, 0, 1, 0, [], [])],
        [frames.pack(messages.START_ACTOR, [])],
        [frames.pack(messages.RESULTS, 1, 0, 1, False, payloads=1), b"x"],
        [frames.pack(messages.CALL, [call(FINE)], 0), b"more"],
        [frames.pack(messages.CALL, {}, 0)],
        [frames.pack(messages.CALL, [call(FINE)], "0")],
        [frames.pack(messages.CONSUMED, "a", 1)],
        sent([]),
        sent(call(FINE, number="1")),
        sent(call(FINE, number=1 << 60)),
        sent(call(FINE, returns=1 << 40)),
        sent(call(FINE, actor=b"short")),
        sent(call("text")),
        sent(call(FINE, method=None)),
        sent(call(FINE, method=b"\xc1")),
        sent(call(FINE, method=packb(["add", "", {"retry": pickle.dumps((OSError,))}]))),
        sent(call(FINE, method=packb([1, "", {}]))),
    ],
    ids=repr,
)
def test_what_no_driver_of_a_gateway_sends_is_a_lie(payloads: list[bytes]) -> None:
    with pytest.raises(RemoteProtocolError):
        refused_calls(payloads)


def test_a_gateway_may_say_how_far_it_has_read() -> None:
    assert refused_calls([frames.pack(messages.CONSUMED, 5, 2)]) is None
