"""zray-node doctor among nodes: ports, keys, clocks and versions of a cluster that runs.

What    The command as it is typed, beside real nodes, and before one is started.
Caller  pytest.
Never   sets a clock, or binds anything but loopback.
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.nodes import Place
from tests.multinode.forwarder import Forwarder, free_port
from tests.multinode.test_ports import has_ipv6, start

Findings = dict[str, list[dict[str, str]]]


def doctor(place: Place, *arguments: str, ok: bool = True, **env: str) -> Findings:
    """Return what it finds by check; fails where the exit code is another one."""
    done = place.run("doctor", "--json", *arguments, env=env)
    report: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (0 if ok else 1), report
    assert report["ok"] == ok
    found: Findings = {}
    for row in report["findings"]:
        found.setdefault(row["check"], []).append(row)
    return found


def problems(place: Place, directory: str) -> list[str]:
    done = place.run("status", "--dir", directory, "--json")
    found: list[str] = json.loads(done.stdout)["problems"]
    return found


def test_doctor_finds_a_running_cluster_whole_and_leaves_no_trace_in_it(place: Place) -> None:
    head = start(place, "a", "--head")
    start(place, "b", "--join", head["address"])
    for directory in (head["directory"], str(place.folder / "b")):
        found = doctor(place, "--dir", directory)
        assert found["nodes"][0]["found"] == "2 answer"
        assert found["addresses"][0]["found"] == "both ports of 2 nodes are reached from here"
        for check in ("clocks", "versions", "node key"):
            assert [row["level"] for row in found[check]] == ["ok"]
    assert found["versions"][0]["found"].startswith("2 nodes agree: zray 0.")
    assert problems(place, head["directory"]) == []
    assert place.run("stop", "--all").returncode == 0


def test_doctor_tries_the_way_in_before_a_node_is_started(place: Place) -> None:
    ports = [free_port(), free_port()]
    given = ("--port", str(ports[0]), "--bulk-port", str(ports[1]))
    found = doctor(place, "--head", *given)
    assert "the head makes them" in found["keys"][0]["found"]
    assert f"{ports[0]} is free" in found["port"][0]["found"]
    gone = doctor(place, "--join", f"127.0.0.1:{ports[0]}", ok=False)
    assert gone["keys"][0]["level"] == "failure"
    head = start(place, "a", "--head", *given)
    found = doctor(place, "--join", head["address"], *given)
    assert [row["level"] for row in found["join"]] == ["ok"]
    assert f"the node in {head['directory']} has it" in found["port"][0]["found"]
    with_others = place.folder / "others"
    assert place.run("keygen", "--dir", str(with_others)).returncode == 0
    found = doctor(place, "--join", head["address"], "--keys", str(with_others), ok=False)
    assert "no way into the node" in found["join"][0]["found"]
    found = doctor(place, "--join", head["address"], "--keys", "none", ok=False)
    assert "no way into the node" in found["join"][0]["found"]
    assert place.run("stop", "--all").returncode == 0
    found = doctor(place, "--join", head["address"], ok=False)
    assert "connection refused" in found["join"][0]["found"]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_doctor_tells_of_ports_that_are_taken_and_of_ways_that_lead_elsewhere(
    place: Place, host: str
) -> None:
    if host == "::1" and not has_ipv6():
        pytest.skip("this machine has no IPv6")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as taken:
        port = str(taken.getsockname()[1])
        found = doctor(place, "--head", "--host", host, "--port", port, ok=False)
        assert "address already in use" in found["port"][0]["found"]
        given = ("--head", "--host", host, "--advertise", f"127.0.0.1:{port}")
        elsewhere = doctor(place, *given)
        if host == "127.0.0.1":
            assert elsewhere["port"][0]["level"] == "warning"
            assert "does not arrive here" in elsewhere["port"][0]["found"]


def test_doctor_follows_what_is_advertised_to_a_port_of_ours(place: Place) -> None:
    port = free_port()
    forwarder = Forwarder(port)
    try:
        given = ("--head", "--port", str(port), "--advertise", forwarder.address)
        found = doctor(place, *given)
        assert found["port"][0]["level"] == "ok", found["port"]
        assert forwarder.address in found["port"][0]["found"]
    finally:
        forwarder.close()


def test_doctor_names_a_node_whose_bulk_port_is_not_reached(place: Place) -> None:
    """As with a firewall that lets only one of the two ports through."""
    head = start(place, "a", "--head")
    shut = f"127.0.0.1:{free_port()}"
    start(place, "b", "--join", head["address"], "--bulk-advertise", shut)
    found = doctor(place, "--dir", head["directory"], ok=False)
    (row,) = found["addresses"]
    assert row["level"] == "failure"
    assert shut in row["found"]
    assert place.run("stop", "--all").returncode == 0


def test_doctor_tells_of_keys_that_others_can_read_and_of_rotations(place: Place) -> None:
    folder = place.folder / ".zray" / "cluster"
    assert place.run("keygen").returncode == 0
    assert doctor(place, "--head")["node key"][0]["level"] == "ok"
    assert place.run("keys", "add").returncode == 0
    (row,) = doctor(place, "--head")["node key"]
    assert (row["level"], "keys activate" in row["advice"]) == ("warning", True)
    assert place.run("keys", "activate").returncode == 0
    (row,) = doctor(place, "--head")["node key"]
    assert (row["level"], row["advice"]) == ("warning", "zray-node keys retire head")
    assert place.run("keys", "retire", "head").returncode == 0
    assert doctor(place, "--head")["node key"][0]["level"] == "ok"
    out = place.folder / "w1"
    assert place.run("keys", "issue", "w1", "--out", str(out)).returncode == 0
    assert doctor(place, "--head", "--keys", str(out))["node key"][0]["level"] == "ok"
    os.chmod(folder / "keys.json", 0o644)
    (row,) = doctor(place, "--head", ok=False)["keys"]
    assert "chmod 0600" in row["found"]


def test_doctor_names_the_nodes_whose_python_and_clock_are_others(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another interpreter and another clock, stood for by a module that the node imports first."""
    head = start(place, "a", "--head")
    Path(place.folder, "sitecustomize.py").write_text(
        "import platform, time\n"
        "true_time = time.time\n"
        "time.time = lambda: true_time() + 90\n"
        "platform.python_version = lambda: '3.99.1'\n"
    )
    path = os.pathsep.join([str(place.folder), os.environ.get("PYTHONPATH", "")])
    other = start(place, "b", "--join", head["address"], PYTHONPATH=path)
    found = doctor(place, "--dir", head["directory"], ok=False)
    (row,) = found["versions"]
    assert row["level"] == "failure"
    assert other["node"] in row["found"]
    assert "3.99" in row["found"]
    (row,) = found["clocks"]
    assert row["level"] == "warning"
    assert "+90.0 s" in row["found"]
    assert place.run("stop", "--all").returncode == 0
