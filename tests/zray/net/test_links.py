"""Links between nodes: what arrives, from whom, and what is told when a connection ends.

What    Order, streams, bounds for a peer that does not read, rotation of keys, addresses.
Caller  pytest.
Never   leaves the loopback.
"""

import contextlib
import itertools
import os
import socket

import pytest

from tests.waiting import wait_until
from tests.zray.net.link_ends import HERE, OTHER, THERE, Ends
from zray.errors import SecurityError
from zray.net import link_inbox
from zray.net.curve import ClusterKeys, Role, make_pair, secure_client
from zray.net.link_inbox import LinkInbox
from zray.net.links import LinkState
from zray.net.mailbox import new_context

# -- what arrives ----------------------------------------------------------------------------------


def test_messages_arrive_whole_and_in_order_with_the_key_of_their_sender(ends, keys):
    link = ends.links()
    link.connect(THERE, ends.inbox.address)
    sent = [(b"%d" % n, [b"", b"x" * n, os.urandom(70_000)][: n % 4]) for n in range(600)]
    for header, payloads in sent:
        assert link.send(THERE, header, payloads)
    ends.until(lambda: len(ends.messages) == len(sent), "all messages")
    got = [(header, [bytes(each) for each in payloads]) for _s, header, payloads in ends.messages]
    assert got == sent
    senders = {sender for sender, *_ in ends.messages}
    assert len(senders) == 1
    sender = senders.pop()
    assert (sender.peer, sender.role, sender.address) == (HERE, Role.NODE, "127.0.0.1")
    assert sender.key == keys.pair(Role.NODE).public
    assert ends.states() == [LinkState.CONNECTED]
    assert not ends.inbox.refused


@pytest.mark.parametrize("role", [Role.CLIENT, Role.GATEWAY])
def test_a_sender_has_the_role_of_its_key(ends, keys, tmp_path, role):
    link = ends.links(OTHER, keys.export(str(tmp_path / role), role), role)
    link.connect(THERE, ends.inbox.address)
    link.send(THERE, b"hello")
    ends.until(lambda: ends.messages, "a message")
    sender = ends.messages[0][0]
    assert (sender.peer, sender.role, sender.key) == (OTHER, role, keys.pair(role).public)


def test_ipv6_on_the_loopback(make_ends):
    ends = make_ends(host="::1")
    assert ends.inbox.address == f"tcp://[::1]:{ends.inbox.port}"
    ends.assert_alive()


def test_without_keys_the_loopback_serves_this_machine(make_ends):
    ends = make_ends(None)
    ends.assert_alive()
    assert ends.messages[0][0].key == b""


def test_handshakes_are_answered_while_nobody_sends_a_message(ends, link):
    assert ends.states() == [LinkState.CONNECTED]
    assert not ends.messages


# -- streams ---------------------------------------------------------------------------------------


def _cut_from_outside(ends) -> None:
    """Reset every TCP connection of the inbox, as a middlebox does."""
    connections = ends.inbox._port._connections
    for descriptor in list(connections._named):
        connections.cut(descriptor, "test")


def test_the_end_of_a_connection_is_told_at_once_on_both_sides(ends, link):
    link.send(THERE, b"before")
    ends.until(lambda: ends.messages)
    _cut_from_outside(ends)
    ends.until(lambda: LinkState.DISCONNECTED in ends.states(), timeout_s=1.0)
    ends.until(lambda: ends.departed)
    assert ends.departed[0] == ends.messages[0][0]
    ends.until(lambda: ends.states()[-1] is LinkState.CONNECTED)
    assert link.send(THERE, b"after")
    ends.until(lambda: ends.headers() == [b"before", b"after"])
    first, second = (sender for sender, *_ in ends.messages)
    assert first.peer == second.peer
    assert first.stream != second.stream


def test_a_peer_that_closes_is_told_at_once(make_ends):
    here, there = make_ends(), make_ends()
    link = here.links()
    link.connect(THERE, there.inbox.address)
    wait_until(lambda: there.turn() or here.turn() or link.is_connected(THERE), interval_s=0.0001)
    there.close()
    here.until(lambda: LinkState.DISCONNECTED in here.states(), timeout_s=1.0)
    assert link.knows(THERE)


def test_the_last_messages_come_before_the_news_that_their_sender_left(ends, link):
    for number in range(500):
        assert link.send(THERE, b"%d" % number, [bytes(1000)])
    link.close(linger_ms=5000)
    ends._links.remove(link)
    ends.until(lambda: ends.departed)
    assert ends.headers() == [b"%d" % number for number in range(500)]


def test_they_do_even_where_both_come_between_two_looks(ends, link):
    link.send(THERE, b"first")
    ends.until(lambda: ends.messages)
    inbox, look = ends.inbox, ends.inbox._serve_control

    def late():
        inbox._serve_control = look
        link.send(THERE, b"last")
        link.close(linger_ms=5000)
        ends._links.remove(link)
        wait_until(lambda: inbox._port._arrivals.poll(0) and inbox._port._control.poll(0))
        return look()

    inbox._serve_control = late
    assert inbox.receive()[1] == b"last"
    assert not inbox.departed
    ends.until(lambda: ends.departed)


def test_what_libzmq_dials_again_by_itself_is_refused(ends, keys):
    name = HERE.hex().encode() + b".0123"
    first = ends.raw(keys.pair(Role.NODE), name)
    first.send(b"1")
    ends.until(lambda: ends.messages)
    _cut_from_outside(ends)
    ends.until(lambda: ends.departed)
    ends.until(lambda: len(ends.inbox) == 1)
    first.send(b"after a gap")
    ends.until(lambda: ends.inbox.refused["stream with a gap"])
    fresh = ends.raw(keys.pair(Role.NODE), HERE.hex().encode() + b".4567")
    fresh.send(b"2")
    ends.until(lambda: len(ends.messages) == 2)
    assert ends.headers() == [b"1", b"2"]


def test_nothing_of_an_old_stream_comes_after_a_new_one(ends, keys):
    first = ends.raw(keys.pair(Role.NODE), HERE.hex().encode() + b".01")
    first.send(b"1")
    ends.until(lambda: ends.messages)
    second = ends.raw(keys.pair(Role.NODE), HERE.hex().encode() + b".02")
    second.send(b"2")
    ends.until(lambda: len(ends.messages) == 2)
    assert ends.departed == [ends.messages[0][0]]
    first.send(b"too late")
    second.send(b"3")
    ends.until(lambda: len(ends.messages) == 3)
    ends.assert_alive()
    assert b"too late" not in ends.headers()


def test_a_peer_that_is_not_there_yet_gets_all_that_was_kept_for_it(make_ends, keys):
    ends = make_ends()
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    link = ends.links()
    link.connect(OTHER, f"tcp://127.0.0.1:{port}")
    for number in range(100):
        assert link.send(OTHER, b"%d" % number)
    assert link.queued(OTHER) == (100, 190)
    ends.turn(0.2)
    assert not ends.events
    there = make_ends(port=port)
    wait_until(lambda: ends.turn() or there.turn() or len(there.messages) == 100)
    assert there.headers() == [b"%d" % number for number in range(100)]
    assert link.queued(OTHER) == (0, 0)


@pytest.mark.parametrize(("size", "limit"), [(10, 2**16), (200_000, 2**22)])
def test_a_peer_that_does_not_read_costs_a_bounded_number_of_bytes(ends, size, limit):
    link = ends.links(backlog_bytes_max=limit)
    link.connect(THERE, ends.inbox.address)
    ends.until(lambda: link.is_connected(THERE))
    ends.reading = False
    body = bytes(size)
    accepted = 0
    for accepted in itertools.count():
        if not link.send(THERE, b"%d" % accepted, [body]):
            ends.turn()
            if not link.send(THERE, b"%d" % accepted, [body]):
                break
        assert link.queued(THERE)[1] <= limit
    assert accepted >= 20
    assert not link.send(THERE, b"x" * 1000, [body])
    assert ends.states() == [LinkState.CONNECTED]
    ends.reading = True
    ends.until(lambda: len(ends.messages) == accepted, "what was accepted to arrive")
    assert ends.headers() == [b"%d" % number for number in range(accepted)]
    assert link.send(THERE, b"again", [body])
    ends.until(lambda: ends.headers()[-1] == b"again")


def test_a_dropped_peer_is_unknown(ends, link):
    link.drop(THERE)
    assert not link.knows(THERE)
    assert not link.send(THERE, b"anybody?")
    ends.until(lambda: ends.departed)
    assert ends.states() == [LinkState.CONNECTED]


def test_links_that_are_dropped_in_the_middle_of_anything_hold_up_no_other(ends, link):
    steady = ends.links(OTHER)
    steady.connect(b"steady", ends.inbox.address)
    for number in range(100):
        steady.connect(THERE + b"%d" % number, ends.inbox.address)
        for _ in range(number % 5):
            ends.turn(0.0005)
        _cut_from_outside(ends)
        steady.drop(THERE + b"%d" % number)
    steady.drop(b"steady")
    steady.connect(b"steady", ends.inbox.address)
    assert steady.send(b"steady", b"still here")
    ends.until(lambda: b"still here" in ends.headers())


def test_what_leaves_and_comes_is_forgotten(ends, monkeypatch):
    monkeypatch.setattr(link_inbox, "_STREAMS_MAX", 3)
    for number in range(20):
        link = ends.links(bytes([number]))
        link.connect(THERE, ends.inbox.address)
        link.send(THERE, b"hello")
        ends.until(lambda number=number: len(ends.messages) == number + 1)
        link.drop(THERE)
        ends.until(lambda number=number: len(ends.departed) == number + 1)
    inbox = ends.inbox
    assert not inbox._inbound
    assert len(inbox) == 0
    assert len(inbox._streams) == len(inbox._tokens) <= 4


# -- rotation --------------------------------------------------------------------------------------


def test_keys_rotate_while_messages_flow(ends, keys, link):
    theirs = ClusterKeys.load(keys.directory)
    old = keys.pair(Role.NODE)

    def say(made, text):
        assert made.send(THERE, text)
        ends.until(lambda: ends.headers()[-1:] == [text])
        ends.inbox.sweep()

    say(link, b"old key")
    theirs.add(Role.NODE)
    say(link, b"new key known")
    new = theirs.activate(Role.NODE)
    say(link, b"new key in use")
    newcomer = ends.links(OTHER)
    newcomer.connect(THERE, ends.inbox.address, [ends.inbox.server_key])
    say(newcomer, b"with the new key")
    assert ends.messages[-1][0].key == new.public
    assert ends.inbox.server_key == new.public
    late = ends.links(b"late")
    late.connect(THERE, ends.inbox.address, [old.public])
    say(late, b"who knew the old key finds the new one")
    theirs.retire(Role.NODE)
    say(link, b"the old connection stays")
    assert ends.messages[-1][0].key == old.public
    assert set(ends.states()) == {LinkState.CONNECTED}
    late = ends.raw(old)
    late.send(b"too late")
    ends.until(lambda: ends.inbox.refused["key that counts no more"])
    assert b"too late" not in ends.headers()


def test_a_port_shows_its_new_key_to_all_who_come_and_keeps_who_is_there(ends, keys, link):
    assert link.send(THERE, b"before")
    ends.until(lambda: ends.messages)
    before = ends.inbox.server_key
    for _ in range(3):
        old = keys.pair(Role.NODE)
        keys.add(Role.NODE)
        new = keys.activate(Role.NODE)
        ends.inbox.sweep()
        for number in range(10):
            newcomer = ends.raw(new)  # It expects what the inbox shows now.
            newcomer.send(b"%d" % number)
            ends.until(lambda number=number: ends.headers()[-1] == b"%d" % number)
        stale = ends.raw(connect=False)
        secure_client(stale, new, old.public)
        stale.connect(ends.inbox.address)
        stale.send(b"expects a key that is not shown any more")
        ends.until(lambda: ends.inbox.refused["handshake refused"])
    assert before != ends.inbox.server_key
    assert link.send(THERE, b"the same connection as ever")
    ends.until(lambda: ends.headers()[-1] == b"the same connection as ever")
    assert ends.states() == [LinkState.CONNECTED]
    assert not ends.departed


def test_a_port_with_several_keys_behind_it_is_given_up_at_once(ends, keys):
    keys.add(Role.NODE)
    keys.activate(Role.NODE)
    ends.inbox.sweep()
    with pytest.raises(OSError, match="in use"):
        LinkInbox(ends.context(), keys, port=ends.inbox.port)
    port = ends.inbox.port
    ends.close()

    def is_free():
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return True

    wait_until(is_free)


def test_who_shows_a_key_that_was_revoked_is_hung_up_on(ends, keys, tmp_path):
    elsewhere = keys.issue("elsewhere", Role.NODE, str(tmp_path / "elsewhere"))
    there = Ends(elsewhere)
    try:
        link = ends.links()
        link.connect(OTHER, there.inbox.address, [there.inbox.server_key])
        wait_until(lambda: there.turn() or ends.turn() or link.is_connected(OTHER))
        keys.revoke("elsewhere")
        ends.inbox.sweep()
        link.sweep()
        ends.until(lambda: LinkState.REFUSED in ends.states(OTHER))
        assert ends.states(OTHER) == [
            LinkState.CONNECTED,
            LinkState.DISCONNECTED,
            LinkState.REFUSED,
        ]
        assert "elsewhere was revoked" in ends.events[-1].reason
        assert not link.knows(OTHER)
        with pytest.raises(SecurityError, match="no key of elsewhere counts"):
            link.connect(OTHER, there.inbox.address, [there.inbox.server_key])
    finally:
        there.close()


def test_a_revoked_key_is_cut_at_the_next_sweep(ends, keys, tmp_path):
    client = keys.export(str(tmp_path / "client"), Role.CLIENT)
    link = ends.links(OTHER, client, Role.CLIENT)
    link.connect(THERE, ends.inbox.address)
    link.send(THERE, b"hello")
    ends.until(lambda: ends.messages)
    ClusterKeys.load(keys.directory).revoke(client.pair(Role.CLIENT).public)
    ends.inbox.sweep()
    link.send(THERE, b"one more")
    ends.until(lambda: ends.states()[-1] is LinkState.REFUSED)
    assert [sender.role for sender in ends.departed] == [Role.CLIENT]
    assert ends.headers() == [b"hello"]
    ends.assert_alive()


def test_nobody_new_gets_in_while_the_keys_cannot_be_read(ends, keys, link):
    path = os.path.join(keys.directory, "keys.json")
    os.chmod(path, 0o644)
    raw = ends.raw(make_pair())
    raw.send(b"hello")
    ends.until(lambda: ends.inbox.refused["unreadable keys"])
    with pytest.raises(SecurityError, match="open to others"):
        ends.inbox.sweep()
    assert link.send(THERE, b"still here")
    ends.until(lambda: ends.messages)
    os.chmod(path, 0o600)
    ends.assert_alive()


# -- addresses -------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "[::]", "10.0.0.1", "example.org", "*", ""])
def test_no_port_is_opened_to_others_without_keys(no_leaks, host):
    context = new_context()
    try:
        with pytest.raises(SecurityError, match=r"no cluster keys.*zray-node keygen"):
            LinkInbox(context, None, host=host)
    finally:
        context.destroy(0)


def test_with_keys_all_addresses_may_be_bound(make_ends):
    ends = make_ends(host="0.0.0.0")
    assert "0.0.0.0" not in ends.inbox.address
    ends.assert_alive()


def test_a_port_that_is_taken_is_an_error_that_leaves_nothing_behind(ends, keys, no_leaks):
    context = new_context()
    try:
        with pytest.raises(OSError, match=rf"cannot bind tcp://127.0.0.1:{ends.inbox.port}"):
            LinkInbox(context, keys, port=ends.inbox.port)
    finally:
        context.destroy(0)
