"""A live cluster among enemies: strangers at its ports, and a member that lies.

What    1000 connections, random bytes and slow handshakes at both ports; a valid key with mutated
        frames (Hypothesis), pickles that would tell of being opened, and lies about others. After
        all of it nodes run tasks, and memory and descriptors are what they were.
Caller  pytest.
Never   leaves the loopback.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import zray
from tests.brokers.test_link_validation import HONEST, OTHER, OURS, THEIRS, _payloads, _replaced
from tests.multinode.hostile import HostileNode, Vitals
from tests.waiting import wait_until
from zray.net.curve import ClusterKeys, Role
from zray.observer import Observer
from zray.protocol import frames, link_messages, messages
from zray.protocol.envelopes import seal
from zray.protocol.ids import process_id
from zray.testing import Cluster, TestNode

MIB = 1 << 20
AUDIT = """
import os, sys
if "zray.brokers" in sys.orig_argv and "node" in sys.orig_argv:
    node = os.getpid()
    def hook(event, arguments):
        if event != "pickle.find_class" or os.getpid() != node:
            return
        if arguments[0] != "zray.errors":
            with open({path!r}, "a") as file:
                file.write(repr(arguments) + chr(10))
    sys.addaudithook(hook)
"""
"""Tells of what a node's own process looks up while it unpickles, but errors that it has made and
tries itself; not of its workers."""
_unpickled: list[Path] = []
"""Where it tells."""


class Bomb:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str, int]]:
        return os.open, (self.path, os.O_CREAT | os.O_WRONLY)


@pytest.fixture(scope="module")
def besieged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Return two nodes, with a driver, that write down what they unpickle."""
    folder = tmp_path_factory.mktemp("audit")
    (folder / "sitecustomize.py").write_text(AUDIT.format(path=str(folder / "unpickled")))
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = f"{folder}{os.pathsep}{before}"
    _unpickled.append(folder / "unpickled")
    try:
        with Cluster() as made:
            made.add_node(num_cpus=1)
            made.add_node(num_cpus=1, resources={"far": 1})
            with zray.init(made.address):
                assert zray.get(_square.remote(2)) == 4
                yield made
    finally:
        os.environ["PYTHONPATH"] = before
        _unpickled.clear()


@zray.remote
def _square(number: int) -> int:
    return number * number


@pytest.fixture
def target(besieged: Cluster) -> TestNode:
    return besieged.nodes[0]


@pytest.fixture(scope="module")
def member(besieged: Cluster, tmp_path_factory: pytest.TempPathFactory) -> ClusterKeys:
    """Return the keys of a further member."""
    assert besieged._keys is not None
    authority = ClusterKeys.load(besieged._keys)
    return authority.issue("liar", Role.NODE, str(tmp_path_factory.mktemp("liar") / "keys"))


def _security(node: TestNode) -> dict[str, Any]:
    with Observer(node.directory) as observer:
        found: dict[str, Any] = observer.ask("cluster")["security"]
    return found


def _node_id(node: TestNode) -> bytes:
    return bytes.fromhex(node.node_id)


def _assert_all_is_well(cluster: Cluster) -> None:
    """Tasks run here and there, both nodes know each other, and nothing was unpickled by a node."""
    far = _square.options(resources={"far": 1})
    assert zray.get([_square.remote(3), far.remote(4)], timeout=60) == [9, 16]
    cluster.wait_for_nodes(2, timeout_s=30)
    assert not _unpickled[0].exists(), _unpickled[0].read_text()


def _ports(node: TestNode) -> list[int]:
    with Observer(node.directory) as observer:
        found = observer.ask("cluster")
    return [int(found[name].rpartition(":")[2]) for name in ("address", "bulk_address")]


# -- strangers -------------------------------------------------------------------------------------


def test_a_thousand_connections_and_random_bytes_change_nothing(
    besieged: Cluster, target: TestNode
) -> None:
    vitals = Vitals(target.pid)
    for port in _ports(target):
        with contextlib.ExitStack() as made:
            for number in range(1000):
                with contextlib.suppress(OSError):  # Some are cut at once.
                    one = socket.create_connection(("127.0.0.1", port), timeout=10)
                    made.enter_context(one)
                    # Half of them are silent: handshakes as slow as can be.
                    one.sendall(os.urandom(number % 2 * number))
            assert vitals.more_descriptors < 400
            _assert_all_is_well(besieged)
    found = _security(target)
    for each in ("refused_connections", "refused_bulk_connections"):
        assert found[each]["too many handshakes from one address"] > 100
    assert vitals.grown_bytes < 100 * MIB
    wait_until(lambda: vitals.more_descriptors < 20, 30, what="the descriptors to come back")


# -- a member that lies ----------------------------------------------------------------------------


def _lies(third: bytes) -> dict[str, tuple[int, list[Any]]]:
    """Return messages about somebody else, each of which was obeyed once."""
    worker = process_id(third, b"\0\0\0\1")
    thing = worker + bytes(8)
    return {
        "a call in another's name": (link_messages.RELAY, []),
        "a row of another's load": (
            link_messages.OFFER,
            [[third, 9, 9, {}, {}, {}, 0, 0, 0, 0, "DEAD"]],
        ),
        "the death of another's worker": (link_messages.WORKER_DIED, [worker, "I say so"]),
        "the end of another's job": (link_messages.JOB_ENDED, [worker.hex()]),
        "the state of another's actor": (
            messages.ACTOR_STATE,
            [[[thing, "DEAD", None, None, 9, None]]],
        ),
        "where another's object is": (link_messages.FOUND, [[[thing, b"\x80", -1, []]]]),
        "a loan of another's worker": (link_messages.LENT, [1, worker, 1, [], None]),
        "what another's worker did": (link_messages.FROM_WORKER, [worker, b""]),
        "keys that are not its to change": (link_messages.ROSTER, [{}]),
        "another's name": (link_messages.LINK_HELLO, [{}]),
    }


@pytest.mark.parametrize("lie", _lies(OTHER))
def test_a_member_that_lies_is_dropped_and_shown(
    besieged: Cluster, target: TestNode, member: ClusterKeys, lie: str
) -> None:
    third = _node_id(besieged.nodes[1])
    before = _security(target)["refused_messages"]
    with HostileNode(member, target.address) as liar:
        liar.join()
        kind, fields = _lies(third)[lie]
        if kind == link_messages.LINK_HELLO:
            fields = [liar.greeting(node=third)]
        sealed = seal(process_id(_node_id(target), b"\0\0\0\1"), third, [b"header"])
        payloads = tuple(sealed) if kind == link_messages.RELAY else ()
        liar.send(kind, *fields, payloads=payloads)
        liar.await_cut()
        found = _security(target)
        assert found["refused_messages"] > before
        (row,) = (row for row in found["shut_out"] if row["node"] == liar.own.hex())
        assert row["key"] == member.pair(Role.NODE).public.decode()
        with Observer(target.directory) as observer:
            problems = observer.ask("status")["problems"]
        assert any(f"{liar.own.hex()} is shut out" in each for each in problems)
        # It comes no more under this name.
        liar.states.clear()
        liar.heard.clear()
        liar.send(link_messages.LINK_HELLO, liar.greeting())
        liar.until(lambda: any("refused" in str(each) for each in liar.heard), "a refusal")
    _assert_all_is_well(besieged)


def test_a_node_that_takes_another_s_name_is_not_heard(
    besieged: Cluster, target: TestNode, member: ClusterKeys
) -> None:
    third = _node_id(besieged.nodes[1])
    with HostileNode(member, target.address) as liar:
        liar.links.close()
        liar.own = third
        from zray.net.links import Links

        liar.links = Links(liar.contexts[1], third, member)
        liar.links.connect(b"the node", liar.address)
        liar.send(link_messages.LINK_HELLO, liar.greeting())
        liar.await_cut()
    assert _security(target)["refused_connections"]["name of another"] > 0
    _assert_all_is_well(besieged)


_kinds = sorted(HONEST)
_values = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=50)
    | st.binary(max_size=50)
    | st.lists(st.integers(0, 3) | st.binary(max_size=16), max_size=3)
)


Said = tuple[int, list[Any], int, list[tuple[int, int]]]
"""Kind, fields, number of payloads, and which bytes of the header are changed."""


@st.composite
def _mutated(draw: st.DrawFn) -> Said:
    """Draw a message of an honest node, with other fields, other payloads, other bytes."""
    kind = draw(st.sampled_from(_kinds))
    fields = list(HONEST[kind])
    for _ in range(draw(st.integers(0, 2)) if fields else 0):
        fields[draw(st.integers(0, len(fields) - 1))] = draw(_values)
    payloads = draw(st.sampled_from([_payloads(kind)] * 3 + [0, 1, 3]))
    flips = draw(st.lists(st.tuples(st.integers(0, 200), st.integers(1, 255)), max_size=3))
    return kind, fields, payloads, flips


_honest: st.SearchStrategy[Any] = st.sampled_from(
    [*_kinds, *[link_messages.RELAY, link_messages.TO_WORKER] * 3]
).map(lambda kind: (kind, HONEST[kind], _payloads(kind), []))
"""What is obeyed before the first mutated one ends the connection."""


_TWICE: list[Said] = [(link_messages.BORROW, HONEST[link_messages.BORROW], 0, [])] * 6
"""One request made again and again: the second worker for it ended the node."""


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(_honest, max_size=8), st.lists(_mutated(), min_size=1, max_size=4))
@example(honest=_TWICE, mutated=[_TWICE[0]])
def test_mutated_frames_of_a_valid_key_stop_nothing(
    besieged: Cluster,
    target: TestNode,
    member: ClusterKeys,
    tmp_path_factory: pytest.TempPathFactory,
    honest: list[Said],
    mutated: list[Said],
) -> None:
    bomb = str(tmp_path_factory.getbasetemp() / "exploded")
    payload = pickle.dumps(Bomb(bomb))
    worker = process_id(_node_id(target), b"\0\0\0\1")
    vitals = _vitals(target)
    with HostileNode(member, target.address) as liar:
        liar.join()
        for kind, said, payloads, flips in honest + mutated:
            fields = _replaced(said, OURS, _node_id(target))
            fields = _replaced(fields, THEIRS, liar.own)
            header = bytearray(frames.pack(kind, *fields, payloads=payloads))
            for at, flip in flips:
                header[at % len(header)] ^= flip
            part = payload
            if kind == link_messages.RELAY:
                (part,) = seal(worker, process_id(liar.own, b"\0\0\0\1"), [payload])
            liar.send_raw(bytes(header), (part,) * payloads)
        liar.send_raw(b"\xc1")  # No MessagePack at all: all that came before it was read.
        liar.await_cut()
    assert not os.path.exists(bomb)
    assert vitals.grown_bytes < 100 * MIB
    assert vitals.more_descriptors < 200


_known: dict[int, Vitals] = {}


def _vitals(node: TestNode) -> Vitals:
    """Return what a node had before the first mutated frame."""
    return _known.setdefault(node.pid, Vitals(node.pid))


def test_after_all_of_it_nodes_are_as_they_were(besieged: Cluster, target: TestNode) -> None:
    _assert_all_is_well(besieged)
    vitals = _vitals(target)
    assert vitals.grown_bytes < 100 * MIB
    wait_until(lambda: vitals.more_descriptors < 20, 60, what="the descriptors to come back")
    log = Path(target.directory, "node.log").read_text()
    assert "Traceback" not in log, log[log.index("Traceback") - 500 :][:3000]
