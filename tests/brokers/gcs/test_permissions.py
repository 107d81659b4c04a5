"""What the GCS lets clients and gateways ask, message by message.

What    Commands by role, by field, wherever they stand in a message; whose session it is.
Caller  pytest.
Never   opens a socket.
"""

from __future__ import annotations

from typing import Any

import pytest

from zray.brokers.gcs.permissions import Permissions
from zray.brokers.gcs.rules import job_place
from zray.brokers.gcs.wire import COMMANDS, SOFT, pack, unpack, unpack_plain
from zray.errors import RemoteProtocolError
from zray.protocol.packing import packb
from zray.protocol.roles import Role

OWN, NODE = b"v" * 4 + bytes(4), b"n" * 4 + bytes(4)
DRIVER, OTHER = OWN[:4] + b"driv", NODE[:4] + b"driv"
SESSION = b"s" * 16
JOIN: tuple[str, tuple[Any, ...]] = ("JOIN", (OWN, {}, {}, {}, "", 1, "client"))
READ = ("KV_GET", ("", b"k"))


def frame(*commands: Any) -> bytes:
    return pack(COMMANDS, SESSION, 1, 1, [packb(each) for each in commands])


def names(screened: bytes) -> list[str]:
    """Return the commands that are left of a message."""
    _kind, fields = unpack(screened, to_gcs=True)
    return [unpack_plain(packed)[0] for packed in fields[-1]]


def fresh() -> Permissions:
    return Permissions(lambda _session: (b"", ""))


def joined(role: str = "client") -> Permissions:
    return Permissions(lambda _session: (OWN, role))


ITS_OWN: list[tuple[Any, ...]] = [
    READ,
    ("KV_PUT", ("", b"k", b"v", True)),
    ("FUNCTION_PUT", (b"h" * 16, 1, b"c")),
    ("LEAVE", (OWN, 1)),
    ("JOB_START", ({"job_id": DRIVER},)),
    ("JOB_FINISH", (DRIVER, "failed", 1.0, "")),
    ("ACTOR_REGISTER", ({"actor_id": DRIVER + bytes(8), "job_id": DRIVER, "node_id": OWN},)),
    ("ACTOR_UPDATE", (DRIVER + bytes(8), {"state": "dead"})),
    ("TRANSACT", ([], [["put", "cluster", job_place(DRIVER), b"x"]], [])),
]
OF_OTHERS: list[tuple[Any, ...]] = [
    ("LEAVE", (NODE, 1)),
    ("JOIN", (NODE, {}, {}, {}, "", 1, "client")),
    ("JOIN", (OWN, {}, {"CPU": 1.0}, {}, "", 1, "client")),
    ("JOIN", (OWN, {}, {}, {}, "", 1, "node")),
    ("JOB_START", ({"job_id": OTHER},)),
    ("JOB_FINISH", (OTHER, "failed", 1.0, "")),
    ("ACTOR_REGISTER", ({"actor_id": OTHER + bytes(8), "job_id": DRIVER},)),
    ("ACTOR_REGISTER", ({"actor_id": DRIVER + bytes(8), "job_id": DRIVER, "node_id": NODE},)),
    ("ACTOR_UPDATE", (OTHER + bytes(8), {"state": "dead"})),
    ("ACTOR_UPDATE", (DRIVER + bytes(8), {"node_id": NODE})),
    ("TRANSACT", ([], [["put", "cluster", job_place(OTHER), b"x"]], [])),
    ("TRANSACT", ([], [], [["delete", "kv", b"x"]])),
    ("NAME_CLAIM", ("", "n", DRIVER + bytes(8))),
    ("NODE_DIED", (NODE, 1, "")),
    ("REFUSED_BY", ()),
]


@pytest.mark.parametrize("command", ITS_OWN, ids=lambda each: each[0])
def test_a_client_speaks_of_itself_and_what_it_has_made(command: Any) -> None:
    sent = frame(READ, command)
    assert joined().screened(Role.CLIENT, sent) == sent


@pytest.mark.parametrize("command", OF_OTHERS, ids=repr)
def test_what_a_client_says_of_others_is_refused_wherever_it_stands(command: Any) -> None:
    found = names(joined().screened(Role.CLIENT, frame(READ, command, READ)))
    assert found == ["KV_GET", "REFUSED", "KV_GET"]
    assert joined().screened(Role.NODE, frame(command)) == frame(command)


@pytest.mark.parametrize("command", [each for each in ITS_OWN[1:] if "JOB" not in each[0]])
def test_a_gateway_only_reads_and_comes_and_goes(command: Any) -> None:
    allowed = [command[0]] if command[0] == "LEAVE" else ["REFUSED"]
    assert names(joined("gateway").screened(Role.GATEWAY, frame(command))) == allowed


def test_a_gateway_cannot_join_as_a_client() -> None:
    assert names(fresh().screened(Role.GATEWAY, frame(JOIN))) == ["REFUSED"]
    as_gateway = ("JOIN", (*JOIN[1][:-1], "gateway"))
    assert names(fresh().screened(Role.GATEWAY, frame(as_gateway))) == ["JOIN"]
    assert names(fresh().screened(Role.CLIENT, frame(as_gateway))) == ["JOIN"]


def test_before_it_has_joined_a_client_has_nothing_of_its_own() -> None:
    job = ("JOB_START", ({"job_id": DRIVER},))
    permissions = fresh()
    assert names(permissions.screened(Role.CLIENT, frame(job))) == ["REFUSED"]
    # Not even behind its JOIN: that may name a node that is there, and be refused by the tables.
    assert names(permissions.screened(Role.CLIENT, frame(JOIN, job))) == ["JOIN", "REFUSED"]
    assert names(permissions.screened(Role.CLIENT, frame(job))) == ["REFUSED"]
    assert names(joined().screened(Role.CLIENT, frame(JOIN, job))) == ["JOIN", "JOB_START"]


@pytest.mark.parametrize("role", ["node", "", "king"])
def test_the_session_of_a_node_is_for_nodes(role: str) -> None:
    with pytest.raises(RemoteProtocolError, match="session of a node"):
        joined(role).screened(Role.CLIENT, frame(READ))


@pytest.mark.parametrize("malicious", [[], "KV_GET", {}, ["KV_GET"], [1, []], ["KV_GET", 1]])
def test_what_is_no_command_spoils_its_message(malicious: Any) -> None:
    with pytest.raises(RemoteProtocolError):
        joined().screened(Role.CLIENT, frame(READ, malicious))


@pytest.mark.parametrize("command", ITS_OWN[3:], ids=lambda each: each[0])
def test_fields_of_no_shape_end_nothing_here(command: Any) -> None:
    shapes: list[tuple[Any, ...]] = [(), (None,), (1, 2, 3, 4), ([],), ({},)]
    for fields in shapes:
        joined().screened(Role.CLIENT, frame((command[0], fields)))


def test_beats_and_watches_are_for_all_and_nothing_else_goes_unnumbered() -> None:
    beat = pack(SOFT, SESSION, 1, [packb(("RENEW", (1.0, None)))])
    assert fresh().screened(Role.GATEWAY, beat) == beat
    for other in (("NODE_DIED", ()), ("LOAD", (b"row",))):
        with pytest.raises(RemoteProtocolError):
            fresh().screened(Role.CLIENT, pack(SOFT, SESSION, 1, [packb(other)]))
