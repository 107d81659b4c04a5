"""Keys at the GCS: who is let in, what each role may ask, and what becomes of a revoked key.

What    A GCS process with CURVE, and sessions with it under keys of each kind.
Caller  pytest.
Never   binds anything but loopback.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.brokers.gcs.gcs_process import START_S, Driven
from tests.house.sources import ROOT
from zray.brokers.gcs.tables import NodeRecord
from zray.brokers.gcs.wire import COMMANDS, pack
from zray.errors import GcsError, NodeStartError
from zray.net.curve import ClusterKeys, Role
from zray.net.gcs_link import GcsEndpoint, GcsPeer
from zray.protocol.packing import packb

NODE = b"n" * 4 + bytes(4)
Join = tuple[bytes, dict[str, str], dict[str, float], dict[str, str], str, int, str]
JOIN: Join = (NODE, {}, {}, {}, "", 1, "node")
VISITOR = b"v" * 4 + bytes(4)
VISIT: Join = (VISITOR, {}, {}, {}, "", 1, "client")


class KeyedDriven(Driven):
    """A session whose link shows a key."""

    def __init__(self, endpoint: str, keys: ClusterKeys, role: Role = Role.NODE) -> None:
        super().__init__(endpoint, b"n" + os.urandom(7))
        self.link.close()
        self.link = GcsPeer(endpoint, self.identity, keys, role)
        self.session._send = self.link.send


@pytest.fixture
def keys(tmp_path: Path) -> ClusterKeys:
    return ClusterKeys.create(str(tmp_path / "keys"))


@pytest.fixture
def endpoint(tmp_path: Path, keys: ClusterKeys) -> Iterator[str]:
    """Return where a GCS with these keys is reached."""
    ours, its = os.pipe()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "zray.brokers", "gcs", "--dir", str(tmp_path / "gcs")),
            *("--ready-fd", str(its), "--keys", keys.directory, "--durability", "process"),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        pass_fds=(its,),
    )
    os.close(its)
    with os.fdopen(ours, "rb", buffering=0) as pipe:
        assert select.select([pipe], [], [], START_S)[0]
        report = json.loads(pipe.readline())
    yield report["endpoint"]
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0


@pytest.fixture
def connect(endpoint: str) -> Iterator[Callable[..., KeyedDriven]]:
    opened: list[KeyedDriven] = []

    def make(keys: ClusterKeys, role: Role = Role.NODE) -> KeyedDriven:
        opened.append(KeyedDriven(endpoint, keys, role))
        return opened[-1]

    yield make
    for one in opened:
        one.link.close()


def heard(driven: Driven, within_s: float) -> bool:
    """Whether the GCS answers in this time."""
    began = time.monotonic()
    driven.session.heard_at = 0.0
    while time.monotonic() < began + within_s:
        driven.step()
        if driven.session.heard_at:
            return True
    return False


def test_a_node_joins_with_its_key(connect: Callable[..., KeyedDriven], keys: ClusterKeys) -> None:
    one, two = connect(keys), connect(keys)
    assert one.ask("JOIN", *JOIN) == 1
    assert one.ask("KV_PUT", "", b"k", b"v", True) is True
    assert two.ask("KV_GET", "", b"k") == b"v"


def test_a_client_joins_as_what_it_is_and_is_told_what_it_may_not_ask(
    connect: Callable[..., KeyedDriven], keys: ClusterKeys, tmp_path: Path
) -> None:
    own = keys.export(str(tmp_path / "client"), Role.CLIENT)
    client = connect(own, Role.CLIENT)
    assert client.ask("KV_PUT", "", b"k", b"v", True) is True
    assert client.ask("NAME_LIST", None, 10, b"") == [[], None]
    with pytest.raises(GcsError, match="of itself"):
        client.ask("JOIN", *JOIN)
    assert connect(keys).ask("NODE_LIST", 10, b"") == [[], None]
    assert client.ask("JOIN", *VISIT) == 1  # Its session goes on after what was refused.
    with pytest.raises(GcsError, match="refused to the key of a client"):
        client.ask("NAME_CLAIM", "", "n", b"o" * 16)
    with pytest.raises(GcsError, match="of itself"):
        client.ask("JOB_FINISH", NODE[:4] + b"jobs", "failed", 1.0, "")
    (packed,), _more = connect(keys).ask("NODE_LIST", 10, b"")
    assert NodeRecord.unpack(packed).role == "client"


def test_a_client_cannot_take_the_name_of_a_node(
    connect: Callable[..., KeyedDriven], keys: ClusterKeys, tmp_path: Path
) -> None:
    assert connect(keys).ask("JOIN", *JOIN) == 1
    client = connect(keys.export(str(tmp_path / "client"), Role.CLIENT), Role.CLIENT)
    with pytest.raises(GcsError, match="is the id of a node"):
        client.ask("JOIN", *JOIN[:-1], "client")


def test_strangers_are_not_heard(
    connect: Callable[..., KeyedDriven], endpoint: str, keys: ClusterKeys, tmp_path: Path
) -> None:
    outside = ClusterKeys.create(str(tmp_path / "other"))
    # It knows whom to expect, and its own key is nobody's here.
    outside.admit(keys.pair(Role.NODE).public, Role.NODE)
    stranger = connect(outside)
    assert not heard(stranger, 0.5)
    stranger.link.redial()
    assert not heard(stranger, 0.5)
    plain = Driven(endpoint)
    assert not heard(plain, 0.5)
    plain.link.close()
    assert heard(connect(keys), 10.0)


def test_a_client_cannot_speak_in_the_session_of_a_node(
    connect: Callable[..., KeyedDriven], keys: ClusterKeys, tmp_path: Path
) -> None:
    node = connect(keys)
    assert node.ask("JOIN", *JOIN) == 1
    client = connect(keys.export(str(tmp_path / "client"), Role.CLIENT), Role.CLIENT)
    assert client.ask("KV_EXISTS", "", b"k") is False
    leave = packb(("LEAVE", (NODE, 1)))
    assert client.link.send(pack(COMMANDS, node.session.session, 1, 3, [leave]))
    assert client.ask("KV_EXISTS", "", b"k") is False  # That was looked at before.
    (packed,), _more = node.ask("NODE_LIST", 10, b"")
    assert NodeRecord.unpack(packed).state == "alive"


def test_a_revoked_key_ends_its_node(
    connect: Callable[..., KeyedDriven], keys: ClusterKeys
) -> None:
    old = connect(keys)
    assert old.ask("JOIN", *JOIN) == 1
    former = keys.pair(Role.NODE).public
    keys.add(Role.NODE)
    keys.activate(Role.NODE)
    keys.retire(Role.NODE)
    assert heard(old, 5.0)  # Retired: what is open stays open.
    keys.revoke(former)
    until = time.monotonic() + 1.0
    while time.monotonic() < until:
        old.step()
    assert not heard(old, 1.0)


def test_a_link_that_hears_nothing_tries_the_next_key_of_the_nodes(
    connect: Callable[..., KeyedDriven], keys: ClusterKeys
) -> None:
    keys.add(Role.NODE)
    keys.activate(Role.NODE)  # The GCS still shows the one it began with.
    driven = connect(keys)
    assert not heard(driven, 0.5)
    driven.link.redial()
    assert driven.ask("KV_EXISTS", "", b"k") is False


def test_other_machines_are_let_in_only_with_keys(keys: ClusterKeys) -> None:
    with pytest.raises(NodeStartError, match="without keys"):
        GcsEndpoint("tcp://0.0.0.0:0")
    GcsEndpoint("tcp://0.0.0.0:0", keys).close()
