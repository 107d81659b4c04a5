"""Two TCP ports a node: which they are, what others are told of them, IPv4 and IPv6.

What    Nodes started by zray-node, by zray.toml and by code; behind forwarders that stand for NAT
        and services; over ::1.
Caller  pytest.
Never   binds anything but loopback.
"""

from __future__ import annotations

import json
import os
import socket
from typing import Any

import numpy as np
import psutil
import pytest

import zray
from tests.cluster.nodes import Place
from tests.multinode.forwarder import Forwarder, free_port
from tests.multinode.gcs_processes import gcs_pid
from tests.multinode.objects import MB, at, ones, total
from zray import launch
from zray.observer import Observer
from zray.util import kv

START = ("--num-cpus", "1", "--object-store-memory", "100MiB", "--json")


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
            return True
    except OSError:
        return False


def start(place: Place, name: str, *arguments: str, **env: str) -> dict[str, Any]:
    """Start a node in a folder of this name; returns what it reports."""
    folder = str(place.folder / name)
    done = place.run("start", "--dir", folder, *arguments, *START, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def about(directory: str) -> dict[str, Any]:
    with Observer(directory) as observer:
        found: dict[str, Any] = observer.ask("status")
    return found["cluster"]


def listening(pid: int) -> set[int]:
    """Return the TCP ports that a process listens at."""
    found = psutil.Process(pid).net_connections(kind="tcp")
    return {each.laddr.port for each in found if each.status == psutil.CONN_LISTEN}


def works(directory: str) -> None:
    """Run a task, move objects both ways and ask the GCS, as a driver at this node."""
    with zray.init(directory, log_to_driver=False):
        made = at(ones, "second").remote(10 * MB)
        assert zray.get(made, timeout=20).nbytes == 10 * MB
        sent = zray.put(np.ones(5 * MB, dtype=np.uint8))
        assert zray.get(at(total, "second").remote(sent), timeout=20) == 5 * MB
        assert kv.put("key", b"value")
        assert kv.get("key") == b"value"


def test_a_node_listens_at_its_two_ports_and_the_gcs_at_none(place: Place) -> None:
    ports = [free_port(), free_port()]
    given = ("--port", str(ports[0]), "--bulk-port", str(ports[1]))
    head = start(place, "a", "--head", *given)
    other = start(place, "b", "--join", head["address"])
    assert head["address"] == f"127.0.0.1:{ports[0]}"
    assert about(head["directory"])["bulk_address"] == f"tcp://127.0.0.1:{ports[1]}"
    assert listening(head["pid"]) == set(ports)
    assert listening(gcs_pid(head["directory"])) == set()
    assert len(listening(other["pid"])) == 2
    assert place.run("stop", "--all").returncode == 0


def test_nodes_behind_other_addresses_are_reached_by_what_they_advertise(place: Place) -> None:
    """As behind NAT or a service: the outside port is another one, of both ports."""
    ports = [free_port() for _ in range(4)]
    forwarders = [Forwarder(port) for port in ports]
    try:
        told = [each.address for each in forwarders]
        head = start(
            place,
            "a",
            *("--head", "--port", str(ports[0]), "--bulk-port", str(ports[1])),
            *("--advertise", told[0], "--bulk-advertise", told[1]),
        )
        assert head["address"] == told[0]
        (place.folder / "zray.toml").write_text(
            f'port = {ports[2]}\nadvertise = "{told[2]}"\n[resources]\nsecond = 2\n'
        )
        env = {"ZRAY_BULK_PORT": str(ports[3]), "ZRAY_BULK_ADVERTISE": told[3]}
        other = start(place, "b", "--join", told[0], **env)
        found = about(other["directory"])
        assert [found["address"], found["bulk_address"]] == [f"tcp://{each}" for each in told[2:]]
        works(head["directory"])
        assert all(each.opened for each in forwarders), "somebody took another way"
    finally:
        assert place.run("stop", "--all").returncode == 0
        for each in forwarders:
            each.close()


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no ::1")
@pytest.mark.parametrize("keys", [(), ("--keys", "none")])
def test_all_of_it_works_over_ipv6(place: Place, keys: tuple[str, ...]) -> None:
    head = start(place, "a", "--head", "--host", "::1", *keys)
    assert head["address"].startswith("[::1]:")
    resources = ("--resources", '{"second": 2}')
    other = start(place, "b", "--join", head["address"], *resources, *keys)
    found = about(other["directory"])
    for name in ("address", "bulk_address"):
        assert found[name].startswith("tcp://[::1]:"), "it took the way to who it joins"
    works(head["directory"])
    assert place.run("stop", "--all").returncode == 0


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no ::1")
def test_code_chooses_ports_and_ipv6_as_the_command_line_does(place: Place) -> None:
    ports = [free_port("::1"), free_port("::1")]
    with Forwarder(ports[0], host="::1") as outside:
        told = outside.address
        cluster = {
            "head": True,
            "host": "::1",
            "port": ports[0],
            "bulk_port": ports[1],
            "advertise": told,
        }
        folder = place.folder / "a"
        folder.mkdir(mode=0o700)
        settings = {"num_cpus": 1, "parent": os.getpid(), "cluster": cluster}
        place.children.append(launch.launch_node(str(folder), settings))  # type: ignore[arg-type]
        found = about(str(folder))
        assert found["address"] == f"tcp://{told}"
        assert found["bulk_address"] == f"tcp://[::1]:{ports[1]}", "the host is that of the other"
        other = start(place, "b", "--join", told, "--keys", "none", "--resources", '{"second": 2}')
        works(str(folder))
        assert outside.opened
        assert place.run("stop", "--dir", other["directory"]).returncode == 0


@pytest.mark.parametrize(
    ("variable", "value"),
    [("ZRAY_BULK_ADVERTISE", "[::1]:x"), ("ZRAY_ADVERTISE", "a:70000"), ("ZRAY_BULK_PORT", "-1")],
)
def test_an_address_that_is_none_is_refused_before_a_node_starts(
    place: Place, variable: str, value: str
) -> None:
    done = place.run("start", "--head", env={variable: value})
    assert done.returncode == 2, done.stdout + done.stderr
    assert variable in done.stderr
    assert not place.processes()
