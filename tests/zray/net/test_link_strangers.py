"""Who does not get in, and what a hostile peer can't do to those who are.

What    Strangers without, with other and with revoked keys, floods, and members that misbehave.
Caller  pytest.
Never   leaves the loopback.
"""

import os
import resource
import struct

import psutil
import pytest

from tests.zray.net.link_ends import HERE, OTHER, THERE
from zray.errors import LocalProtocolError
from zray.net import connections, guarded_port, link_inbox, links
from zray.net.curve import ClusterKeys, Role, make_pair
from zray.net.links import Links, LinkState

# -- who does not get in ---------------------------------------------------------------------------


def test_a_stranger_who_knows_the_server_key_is_refused_and_told_why(ends, keys, tmp_path):
    stranger = ends.links(keys=ClusterKeys.create(str(tmp_path / "other")))
    stranger.connect(THERE, ends.inbox.address, keys.server_keys())
    assert stranger.send(THERE, b"let me in")
    event = ends.until(lambda: ends.events and ends.events[0])
    assert event == (THERE, LinkState.REFUSED, "it does not know our key")
    assert not stranger.send(THERE, b"please")
    assert not stranger.knows(THERE)
    assert ends.inbox.refused["unknown key"] == 1
    ends.assert_alive()
    assert len(ends.messages) == 1


def test_a_link_that_was_refused_can_be_dialled_again_when_its_key_is_a_member(
    ends, keys, tmp_path
):
    theirs = ClusterKeys.create(str(tmp_path / "other"))
    newcomer = ends.links(OTHER, theirs)
    newcomer.connect(THERE, ends.inbox.address, keys.server_keys())
    ends.until(lambda: LinkState.REFUSED in ends.states())
    keys.admit(theirs.pair(Role.NODE).public, Role.CLIENT)
    newcomer.connect(THERE, ends.inbox.address, keys.server_keys())
    assert newcomer.send(THERE, b"now")
    ends.until(lambda: ends.headers() == [b"now"])
    assert ends.messages[0][0].role is Role.CLIENT


def test_an_impostor_of_a_node_is_told_nothing(ends):
    link = ends.links()
    link.connect(THERE, ends.inbox.address, [make_pair().public])
    assert link.send(THERE, b"secret")
    ends.until(lambda: LinkState.REFUSED in ends.states())
    assert not link.is_connected(THERE)
    assert not ends.messages


def test_of_several_server_keys_the_right_one_is_found_and_nothing_is_lost(ends, keys):
    link = ends.links()
    link.connect(
        THERE, ends.inbox.address, [make_pair().public, make_pair().public, *keys.server_keys()]
    )
    assert link.send(THERE, b"1")
    assert link.send(THERE, b"2")
    ends.until(lambda: ends.headers() == [b"1", b"2"])
    assert ends.states() == [LinkState.CONNECTED]


def test_a_client_without_curve_is_refused(ends):
    ends.raw().send(b"hello")
    # Both ends see at once that they do not match; it depends on who is quicker what is told.
    ends.until(lambda: ends.inbox.refused.total())
    ends.assert_alive()
    assert len(ends.messages) == 1


def test_a_link_without_keys_is_told_that_keys_are_needed(ends):
    link = Links(ends.context(), HERE, None)
    ends._links.append(link)
    link.connect(THERE, ends.inbox.address)
    ends.until(lambda: LinkState.REFUSED in ends.states())
    assert "key" in ends.events[-1].reason


def test_nobody_gets_in_where_no_handler_answers(make_ends, monkeypatch):
    # Who asks a handler that is just being closed gets no refusal, but no answer either.
    monkeypatch.setattr(link_inbox, "HELLO_TIMEOUT_S", 1.0)
    ends = make_ends()
    port = ends.inbox._port
    handler, port._zap = port._zap, None
    port._control.unregister(handler.descriptor)
    handler.close()
    raw = ends.raw(ends.keys.pair(Role.NODE))
    raw.send(b"open?")
    ends.until(lambda: ends.inbox.refused["handshake broken off"])
    assert not ends.messages


def test_random_bytes_change_nothing(ends):
    for size in (1, 10, 64, 1000, 100_000):
        ends.tcp().sendall(os.urandom(size))
    ends.assert_alive()
    assert len(ends.messages) == 1


def test_a_handshake_that_takes_too_long_is_ended(make_ends, monkeypatch):
    monkeypatch.setattr(link_inbox, "HELLO_TIMEOUT_S", 0.1)
    ends = make_ends()
    half_open = ends.tcp()
    half_open.sendall(b"\xff" + bytes(8) + b"\x7f\x03")
    ends.until(lambda: len(ends.inbox) == 1)
    ends.until(lambda: ends.inbox.refused["handshake broken off"])
    ends.until(lambda: len(ends.inbox) == 0)
    ends.assert_alive()


@pytest.fixture
def many_descriptors():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_thousand_silent_connections_make_way_for_an_honest_one(ends, many_descriptors):
    before = psutil.Process().memory_info().rss
    for count in range(1000):
        ends.tcp()
        if count % 50 == 0:
            ends.turn(0)
    ends.assert_alive()
    ends.until(lambda: len(ends.inbox) <= 130, "the limit of handshakes to hold")
    assert ends.inbox.refused["too many handshakes from one address"] >= 850
    assert psutil.Process().memory_info().rss - before < 100 * 2**20


def test_members_count_too(make_ends):
    ends = make_ends(connections_max=5)
    made = [ends.links(bytes([n])) for n in range(8)]
    for each in made:
        each.connect(THERE, ends.inbox.address)
    ends.until(lambda: ends.inbox.refused["too many connections"] >= 3)
    ends.until(lambda: sum(each.is_connected(THERE) for each in made) == 5)


def test_one_address_has_its_share_only(make_ends, monkeypatch):
    monkeypatch.setattr(connections.Connections.__init__, "__kwdefaults__", _SMALL)
    ends = make_ends()
    made = [ends.links(bytes([n])) for n in range(6)]
    for each in made:
        each.connect(THERE, ends.inbox.address)
    ends.until(lambda: ends.inbox.refused["too many connections from one address"] >= 2)
    ends.until(lambda: sum(each.is_connected(THERE) for each in made) == 4)
    made[next(n for n, each in enumerate(made) if each.is_connected(THERE))].drop(THERE)
    ends.until(lambda: sum(each.is_connected(THERE) for each in made) == 4, "another one's turn")


_SMALL = {
    **(connections.Connections.__init__.__kwdefaults__ or {}),
    "address_connections_max": 4,
}


def test_a_stranger_who_sends_on_and_on_is_cut(ends):
    hostile = ends.tcp()
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"CURVE".ljust(20, b"\0") + bytes(32)
    hostile.sendall(greeting + b"\x06" + struct.pack(">Q", 20_000_000) + bytes(100_000))

    def is_cut():
        ends.inbox.sweep()
        return ends.inbox.refused["too many bytes without a key"]

    ends.until(is_cut)
    ends.until(lambda: len(ends.inbox) == 0)
    ends.assert_alive()


# -- members that misbehave ------------------------------------------------------------------------


def test_a_message_without_end_is_cut(make_ends, monkeypatch):
    monkeypatch.setattr(connections, "UNFINISHED_BYTES_MAX", 4 * 2**20)
    ends = make_ends(None)
    hostile = ends.tcp()
    hostile.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32))
    hostile.sendall(b"\x04\x1c\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER")
    answer = bytearray()
    while b"READY" not in answer:  # Who speaks before it is refused.
        answer += hostile.recv(100)
    hostile.sendall(b"\x00\x05hello")
    ends.until(lambda: ends.messages)
    part = b"\x03" + struct.pack(">Q", 2**20) + bytes(2**20)
    hostile.setblocking(False)
    left = bytearray()

    def is_cut():
        left.extend(b"" if left else part)
        try:
            del left[: hostile.send(left)]
        except BlockingIOError:
            pass
        ends.inbox.sweep()
        return ends.inbox.refused["message without end"]

    ends.until(is_cut)
    ends.until(lambda: ends.departed)
    assert len(ends.messages) == 1
    ends.assert_alive()


def test_a_frame_over_the_limit_ends_its_connection_only(make_ends, keys, monkeypatch):
    monkeypatch.setattr(link_inbox, "LINK_FRAME_BYTES_MAX", 2**20)
    ends = make_ends()
    hostile = ends.raw(keys.pair(Role.CLIENT), RECONNECT_IVL=-1)
    hostile.send(b"hello")
    ends.until(lambda: ends.messages)
    hostile.send(bytes(2**21))
    ends.until(lambda: ends.departed)
    ends.assert_alive()
    assert len(ends.messages) == 2


def test_a_message_larger_than_a_link_carries_is_refused_before_it_is_sent(ends, link):
    with pytest.raises(LocalProtocolError, match="bulk port"):
        link.send(THERE, b"h", [bytes(links.LINK_FRAME_BYTES_MAX + 1)])
    with pytest.raises(LocalProtocolError, match="bulk port"):
        link.send(THERE, b"h", [bytes(2**25)] * 3)
    assert link.send(THERE, b"h", [b"small"])
    ends.until(lambda: ends.messages)


def test_a_client_cannot_take_the_name_of_a_node_that_is_there(ends, keys, link):
    hostile = ends.raw(keys.pair(Role.CLIENT), HERE.hex().encode() + b".00")
    hostile.send(b"I am the node")
    ends.until(lambda: ends.inbox.refused["name of another"])
    assert link.send(THERE, b"no, I am")
    ends.until(lambda: ends.headers() == [b"no, I am"])
    assert not ends.departed


def test_a_node_takes_its_name_back_from_a_client(ends, keys):
    client = ends.raw(keys.pair(Role.CLIENT), HERE.hex().encode() + b".00")
    client.send(b"from a client")
    ends.until(lambda: ends.messages)
    assert ends.messages[0][0].role is Role.CLIENT
    node = ends.links(HERE)
    node.connect(THERE, ends.inbox.address)
    node.send(THERE, b"from the node")
    ends.until(lambda: ends.headers()[1:] == [b"from the node"])
    assert [sender.role for sender in ends.departed] == [Role.CLIENT]


def test_a_node_is_not_believed_to_be_another_one(ends, keys, link, tmp_path):
    link.send(THERE, b"I am here")
    ends.until(lambda: ends.messages)
    other = keys.issue("other", Role.NODE, str(tmp_path / "other"))
    liar = ends.links(HERE, other)
    liar.connect(b"liar", ends.inbox.address)
    liar.send(b"liar", b"I am that one")
    ends.until(lambda: LinkState.REFUSED in ends.states(b"liar"))
    assert ends.inbox.refused["name of another"] >= 3
    assert "name" in ends.events[-1].reason
    assert not liar.knows(b"liar")
    assert ends.headers() == [b"I am here"]
    assert not ends.departed
    # Nor after that one has left: its name was its own for its life.
    link.drop(THERE)
    ends.until(lambda: ends.departed)
    liar.connect(b"liar", ends.inbox.address)
    liar.send(b"liar", b"now it is mine")
    ends.until(lambda: ends.states(b"liar").count(LinkState.REFUSED) == 2)
    assert ends.headers() == [b"I am here"]


def test_who_makes_up_names_makes_nobody_else_forgotten(ends, keys, link, tmp_path, monkeypatch):
    monkeypatch.setattr(guarded_port, "_NAMES_MAX", 5)
    link.send(THERE, b"I am here")
    ends.until(lambda: ends.messages)
    liar = keys.issue("liar", Role.NODE, str(tmp_path / "liar"))
    for number in range(8):
        raw = ends.raw(liar.pair(Role.NODE), b"%02x.00" % number)
        raw.send(b"name %d" % number)
        ends.until(lambda: len(ends.messages) == number + 2)  # noqa: B023
    hostile = ends.raw(liar.pair(Role.NODE), HERE.hex().encode() + b".00")
    hostile.send(b"I am that one")
    ends.until(lambda: ends.inbox.refused["name of another"])
    assert b"I am that one" not in ends.headers()


def test_a_routing_id_says_nothing_of_who_it_is(ends, keys):
    first = ends.raw(keys.pair(Role.NODE), ROUTING_ID=b"chosen")
    first.send(b"1")
    ends.until(lambda: ends.messages)
    second = ends.raw(keys.pair(Role.GATEWAY), ROUTING_ID=b"chosen")
    second.send(b"2")
    first.send(b"3")
    ends.until(lambda: b"3" in ends.headers())
    ends.assert_alive()
    heard = {header: sender.role for sender, header, _payloads in ends.messages}
    assert heard[b"1"] is heard[b"3"] is Role.NODE
    assert heard.get(b"2", Role.GATEWAY) is Role.GATEWAY


@pytest.mark.parametrize("name", [b"zz", b"abc", b"." * 10, b"61" * 65, b"\xff\xfe"])
def test_a_name_that_is_none_is_no_name(ends, keys, name):
    raw = ends.raw(keys.pair(Role.CLIENT), name)
    raw.send(b"hello")
    ends.until(lambda: ends.messages)
    assert ends.messages[0][0].peer == b""
