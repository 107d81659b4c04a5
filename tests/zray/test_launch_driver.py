"""Where a driver goes: every kind of address, and what is decided without one.

What    find() and what it reads: remembered nodes, addresses, keys.
Caller  pytest.
Never   starts a process.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from zray import configuration, launch_driver, node_address, node_directory
from zray.errors import NodeStartError, OptionError, SecurityError
from zray.net.curve import ClusterKeys
from zray.protocol.roles import Role


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Make what a living node leaves to see: its lock, its report, its line in the context file."""
    held: list[int] = []

    def living(name: str, address: str | None = None) -> str:
        directory = tmp_path / name
        directory.mkdir(mode=0o700)
        report = {"node": "00" * 8, "address": address, "role": "node"}
        (directory / "node.json").write_text(json.dumps(report))
        held.append(node_directory.hold(str(directory)))
        node_address.remember(str(directory))
        return str(directory)

    yield living
    for descriptor in held:
        os.close(descriptor)


@pytest.fixture
def port() -> Iterator[int]:
    """Listen somewhere, so that somebody seems to be there."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def find(given: dict[str, Any] | None = None, **driver: Any) -> launch_driver.Place:
    resolved = configuration.resolve({**driver, **(given or {})}, environ={}, folder=os.sep)
    return launch_driver.find(resolved, given or {})


def test_without_anything_it_is_a_node_of_its_own() -> None:
    place = find()
    assert place.directory is None
    assert place.settings == {}
    assert "no node of this user runs" in place.why


def test_without_an_address_it_is_the_last_living_node(
    node: Callable[..., str], tmp_path: Path
) -> None:
    first = node("first")
    (tmp_path / "dead").mkdir()
    node_address.remember(str(tmp_path / "dead"))
    assert find().directory == first
    second = node("second")
    assert find().directory == second
    assert find({"num_cpus": 2}) == launch_driver.Place(
        None, {"num_cpus": 2}, "a node of its own: num_cpus was given"
    )
    assert find(address="local").directory is None
    assert find(address="auto").directory == second


def test_a_node_that_is_open_to_others_is_passed_by(
    node: Callable[..., str], tmp_path: Path
) -> None:
    first = node("first")
    os.chmod(node("second"), 0o777)
    assert find().directory == first


def test_of_a_cluster_with_a_node_here_it_is_that_node(node: Callable[..., str]) -> None:
    node("lone")
    member = node("member", "tcp://127.0.0.1:7001")
    node("other", "tcp://127.0.0.1:7002")
    for address in ("zray://127.0.0.1:7001", "zray://localhost:7001", "127.0.0.1:7001"):
        assert find(address=address).directory == member
    with pytest.raises(OptionError, match="which has its settings already"):
        find({"object_store_memory": 1 << 30}, address="zray://127.0.0.1:7001")


def test_who_names_keys_gets_a_node_of_its_own(
    node: Callable[..., str], port: int, tmp_path: Path
) -> None:
    node("member", f"tcp://127.0.0.1:{port}")
    keys = ClusterKeys.create(str(tmp_path / "keys"))
    place = find(address=f"zray://127.0.0.1:{port}", keys=keys.directory)
    assert place.directory is None
    assert place.settings["cluster"]["keys"] == keys.directory


def test_a_node_of_its_own_offers_nothing_and_says_how_it_is_reached(
    port: int, tmp_path: Path
) -> None:
    keys = ClusterKeys.create(str(tmp_path / "keys")).directory
    options = {"driver_port": 7003, "driver_advertise": "b", "driver_host": "127.0.0.1"}
    given = {"object_store_memory": 1 << 30, "num_cpus": None}
    place = find(given, address=f"zray://127.0.0.1:{port}", keys=keys, **options)
    assert place.settings == {
        "num_cpus": 0,
        "num_gpus": 0,
        "memory": 0,
        "object_store_memory": 1 << 30,
        "cluster": {
            "join": [f"tcp://127.0.0.1:{port}"],
            "host": "127.0.0.1",
            "port": 7003,
            "bulk_port": 0,
            "advertise": "b",
            "role": Role.CLIENT,
            "key_role": Role.CLIENT,
            "keys": keys,
        },
    }


@pytest.mark.parametrize(
    ("exported", "role"),
    [(Role.CLIENT, Role.CLIENT), (Role.GATEWAY, Role.GATEWAY), (Role.NODE, Role.CLIENT)],
)
def test_the_keys_say_what_a_driver_may_do(
    port: int, tmp_path: Path, exported: Role, role: Role
) -> None:
    keys = ClusterKeys.create(str(tmp_path / "all")).export(str(tmp_path / "one"), exported)
    found = find(address=f"zray://127.0.0.1:{port}", keys=keys.directory).settings["cluster"]
    assert (found["key_role"], found["role"]) == (exported, role)


def test_without_keys_there_is_a_reason_or_a_cluster_without_any(port: int) -> None:
    address = f"zray://127.0.0.1:{port}"
    with pytest.raises(SecurityError, match="ZRAY_KEYS"):
        find(address=address)
    found = find(address=address, keys="none").settings["cluster"]
    assert (found["keys"], found["role"]) == (None, Role.CLIENT)
    with pytest.raises(SecurityError, match="no cluster keys"):
        find(address=address, keys="none", driver_host="10.0.0.9")


def test_of_several_addresses_one_is_enough(port: int) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{taken.getsockname()[1]}"
        address = f"zray://{nobody},127.0.0.1:{port}"
        found = find(address=address, keys="none").settings["cluster"]["join"]
        assert found == [f"tcp://{nobody}", f"tcp://127.0.0.1:{port}"]
        with pytest.raises(NodeStartError, match=f"nobody answers at {nobody}"):
            find(address=f"zray://{nobody}", keys="none")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("zray://a:1", ["tcp://a:1"]),
        ("tcp://a:1", ["tcp://a:1"]),
        ("a:1", ["tcp://a:1"]),
        ("[::1]:6380", ["tcp://[::1]:6380"]),
        ("zray://[::1]:6380,b:2", ["tcp://[::1]:6380", "tcp://b:2"]),
        ("/some/directory", None),
        ("./relative", None),
    ],
)
def test_addresses_of_clusters(address: str, expected: list[str] | None) -> None:
    assert node_address.cluster_of(address) == expected


@pytest.mark.parametrize(
    "address", ["ray://a:1", "zray://a", "zray://", "zray://a:0", "http://a:1"]
)
def test_addresses_of_no_known_form_are_refused(address: str) -> None:
    with pytest.raises(OptionError, match="zray://HOST:PORT of any node"):
        node_address.cluster_of(address)
