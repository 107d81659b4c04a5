"""zray-node for several nodes: keys, the head, who joins it, what status and stop say of all.

What    The commands as they are typed, the one that `start --head` prints among them.
Caller  pytest.
Never   uses keys of the user's home.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import stat
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.nodes import Place
from tests.waiting import wait_until

OPTIONS = ("--object-store-memory", "100MiB", "--json")


def start(place: Place, *arguments: str) -> dict[str, Any]:
    """Start a node; returns what it reports."""
    done = place.run("start", *arguments, *OPTIONS)
    assert done.returncode == 0, done.stdout + done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def status(place: Place, directory: str) -> dict[str, Any]:
    """Return what status says, asked at one node."""
    done = place.run("status", "--dir", directory, "--json")
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def test_a_head_makes_keys_for_its_user_alone_and_prints_how_to_join(place: Place) -> None:
    done = place.run("start", "--head", "--num-cpus", "1", "--object-store-memory", "100MiB")
    assert done.returncode == 0, done.stderr
    keys = place.folder / ".zray" / "cluster"
    assert stat.S_IMODE(keys.stat().st_mode) == 0o700
    assert stat.S_IMODE((keys / "keys.json").stat().st_mode) == 0o600
    (command,) = re.findall(r"^  zray-node (start --join .*)$", done.stdout, re.MULTILINE)
    # As it was printed: on this machine, beside the head, it finds a directory of its own.
    joined = place.run(*shlex.split(command), "--num-cpus", "1", *OPTIONS)
    assert joined.returncode == 0, joined.stderr
    assert json.loads(joined.stdout)["nodes"] == 2
    assert place.run("stop", "--all").returncode == 0
    place.await_no_process()


def test_status_at_each_node_shows_both_with_resources_and_labels(place: Place) -> None:
    head = start(place, "--head", "--num-cpus", "1", "--dir", str(place.folder / "a"))
    other = start(
        place,
        *("--join", head["address"], "--dir", str(place.folder / "b"), "--num-cpus", "2"),
        *("--resources", '{"license": 3}', "--labels", "zone=b,disk=ssd"),
    )
    for asked in (head, other):
        report = status(place, asked["directory"])
        rows = {row["NodeID"]: row for row in report["nodes"]}
        assert set(rows) == {head["node"], other["node"]}
        assert rows[other["node"]]["Resources"]["license"] == 3.0
        assert rows[other["node"]]["Labels"] == {"zone": "b", "disk": "ssd"}
        assert rows[head["node"]]["Labels"] == {}
        assert report["node"] == asked["node"]
        assert report["cluster"]["resources"]["total"]["CPU"] == 3.0
        assert report["problems"] == []
    shown = place.run("status", "--dir", head["directory"]).stdout
    for text in (head["node"], other["node"], "zone=b", "3 of 3 CPU free", other["address"]):
        assert text in shown
    ended = place.run("stop", "--all", "--json")
    assert [row["directory"] for row in json.loads(ended.stdout)] == [
        other["directory"],
        head["directory"],
    ]
    place.await_no_process()


def test_stop_ends_one_node_and_the_others_go_on(place: Place) -> None:
    head = start(place, "--head", "--num-cpus", "1", "--dir", str(place.folder / "a"))
    start(place, "--join", head["address"], "--num-cpus", "1", "--dir", str(place.folder / "b"))
    assert place.run("stop").returncode == 0  # The one started last.
    wait_until(lambda: len(status(place, head["directory"])["nodes"]) == 1)
    again = start(
        place, "--join", head["address"], "--num-cpus", "1", "--dir", str(place.folder / "b")
    )
    assert again["nodes"] == 2
    assert place.run("stop", "--all").returncode == 0


def test_a_killed_node_is_gone_for_the_others(place: Place) -> None:
    head = start(place, "--head", "--num-cpus", "1", "--dir", str(place.folder / "a"))
    other = start(
        place, "--join", head["address"], "--num-cpus", "1", "--dir", str(place.folder / "b")
    )
    os.kill(other["pid"], signal.SIGKILL)
    wait_until(lambda: len(status(place, head["directory"])["nodes"]) == 1)
    assert place.run("stop", "--dir", head["directory"]).returncode == 0


def test_a_node_with_other_keys_is_not_let_in_and_says_why(place: Place) -> None:
    head = start(place, "--head", "--num-cpus", "1", "--dir", str(place.folder / "a"))
    foreign = str(place.folder / "foreign")
    assert place.run("keygen", "--dir", foreign).returncode == 0
    refused = place.run(
        *("start", "--join", head["address"], "--keys", foreign),
        *("--dir", str(place.folder / "b"), "--num-cpus", "1"),
    )
    assert refused.returncode == 1
    assert "does not let this node join" in refused.stderr
    assert "Traceback" not in refused.stderr
    wait_until(lambda: not place.processes(str(place.folder / "b")))
    assert len(status(place, head["directory"])["nodes"]) == 1
    assert place.run("stop").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (
            ["--head", "--host", "0.0.0.0", "--keys", "none"],
            1,
            "can be reached from other machines",
        ),
        (["--head", "--join", "127.0.0.1:1"], 2, "head or join"),
        (["--port", "7000"], 2, "head or join"),
        (["--join", "127.0.0.1"], 2, "HOST:PORT"),
        (["--join", "127.0.0.1:1"], 1, "no cluster keys"),
        (["--head", "--labels", "zone"], 2, "zone=a"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason_before_a_node_starts(
    place: Place, arguments: list[str], code: int, said: str
) -> None:
    done = place.run("start", *arguments, "--num-cpus", "1")
    assert done.returncode == code, done.stdout + done.stderr
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not place.processes()
    assert not (place.folder / ".zray" / "cluster" / "keys.json").exists()


def test_a_port_that_is_taken_is_said_in_one_line(place: Place) -> None:
    head = start(place, "--head", "--num-cpus", "1", "--dir", str(place.folder / "a"))
    port = head["address"].rpartition(":")[2]
    done = place.run("start", "--head", "--port", port, "--dir", str(place.folder / "b"))
    assert done.returncode == 1
    assert f"127.0.0.1:{port}" in done.stderr
    assert "Traceback" not in done.stderr
    wait_until(lambda: not place.processes(str(place.folder / "b")))
    assert place.run("stop").returncode == 0


def test_settings_of_a_cluster_come_from_variables_and_files_too(place: Place) -> None:
    (place.folder / "zray.toml").write_text('head = true\n[labels]\nzone = "file"\n')
    head = start(place, "--num-cpus", "1", "--dir", str(place.folder / "a"))
    env = {"ZRAY_JOIN": head["address"], "ZRAY_LABELS": "zone=variable"}
    done = place.run(
        *("start", "--num-cpus", "1", "--dir", str(place.folder / "b")), *OPTIONS, env=env
    )
    assert done.returncode == 0, done.stderr
    labels = [row["Labels"] for row in status(place, head["directory"])["nodes"]]
    assert labels == [{"zone": "file"}, {"zone": "variable"}]
    assert place.run("stop", "--all").returncode == 0


def test_keygen_makes_keys_once_and_prints_no_secret(place: Place) -> None:
    folder = place.folder / "keys"
    done = place.run("keygen", "--dir", str(folder), "--json")
    assert done.returncode == 0, done.stderr
    text = (folder / "keys.json").read_text()
    assert json.loads(done.stdout)["public_key"] in text
    for secret in re.findall(r'"secret": "(.*?)"', text):
        assert secret not in done.stdout + done.stderr
    assert _mode(folder / "keys.json") == 0o600
    again = place.run("keygen", "--dir", str(folder))
    assert again.returncode == 1
    assert "already" in again.stderr
    assert (folder / "keys.json").read_text() == text


def test_keys_that_others_can_read_are_refused(place: Place) -> None:
    folder = place.folder / "keys"
    assert place.run("keygen", "--dir", str(folder)).returncode == 0
    (folder / "keys.json").chmod(0o644)
    done = place.run("start", "--head", "--keys", str(folder), "--num-cpus", "1")
    assert done.returncode == 1
    assert "open to others" in done.stderr
    assert not place.processes()


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)
