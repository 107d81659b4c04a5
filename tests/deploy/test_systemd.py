"""The systemd units: right for systemd itself where it is here, and for this release's zray-node.

What    `systemd-analyze verify`; what each unit starts, asks and sets, parsed.
Caller  scripts/test.
Never   needs a running systemd, or installs a unit.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.deploy.fakes import DEPLOY, check_command_line
from tests.house.sources import ROOT
from zray.configuration import SETTINGS, resolve

FOLDER = DEPLOY / "systemd"
UNITS = ("zray-head.service", "zray-node.service")
COMMAND = "/opt/zray/bin/zray-node"
Unit = dict[str, list[str]]


def read(name: str) -> Unit:
    """Return the settings of a unit: "Section.Name" to its values, continued lines joined."""
    text = (FOLDER / name).read_text(encoding="utf-8").replace("\\\n", " ")
    section = ""
    found: Unit = {}
    for line in text.splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            key, equals, value = line.partition("=")
            assert equals, line
            found.setdefault(f"{section}.{key}", []).append(value)
    return found


def settings_of(name: str) -> dict[str, str]:
    """Return the variables of a file of them."""
    lines = (FOLDER / name).read_text(encoding="utf-8").splitlines()
    return dict(
        line.split("=", 1)
        for line in lines
        if line.startswith("ZRAY_") or line.startswith("#ZRAY_")
    )


@pytest.fixture(params=UNITS)
def unit(request: pytest.FixtureRequest) -> Unit:
    """Return one unit after the other."""
    return read(request.param)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd here")
@pytest.mark.parametrize("name", UNITS)
def test_systemd_finds_nothing_to_complain_of(name, tmp_path: Path):
    stand_in = tmp_path / "zray-node"
    stand_in.write_text("#!/bin/sh\n", encoding="utf-8")
    stand_in.chmod(0o755)
    for each in UNITS:
        text = (FOLDER / each).read_text(encoding="utf-8").replace(COMMAND, str(stand_in))
        (tmp_path / each).write_text(text, encoding="utf-8")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / name)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    said = [line for line in done.stderr.splitlines() if str(tmp_path) in line or name in line]
    assert said == []
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("name", "role"), list(zip(UNITS, ("--head", "--join"), strict=True)))
def test_a_unit_starts_a_node_in_its_role_that_stays_in_the_foreground(name, role):
    (line,) = read(name)["Service.ExecStart"]
    words = shlex.split(line.replace("${ZRAY_JOIN}", "head:6380"))
    assert words[:2] == [COMMAND, "start"]
    assert ("--head" in words, "--join" in words) == (role == "--head", role == "--join")
    assert "--block" in words
    check_command_line(["zray-node", *words[1:]])


def test_a_unit_is_active_when_its_own_node_answers(unit):
    (start,) = unit["Service.ExecStart"]
    (after,) = unit["Service.ExecStartPost"]
    shell, option, script = shlex.split(after)
    assert (shell, option) == ("/bin/sh", "-c")
    asked = re.search(rf"{COMMAND} (status .*?)>/dev/null", script)
    assert asked is not None
    words = ["zray-node", *asked[1].split()]
    check_command_line(words)
    assert words[-1] == shlex.split(start)[shlex.split(start).index("--dir") + 1]
    assert subprocess.run(["sh", "-n", "-c", script], check=False).returncode == 0


def test_what_a_unit_needs_lies_in_a_folder_of_its_user_alone(unit):
    (state,) = unit["Service.StateDirectory"]
    assert unit["Service.StateDirectoryMode"] == ["0700"]
    assert unit["Service.UMask"] == ["0077"]
    assert unit["Service.User"] == ["zray"]
    (start,) = unit["Service.ExecStart"]
    words = shlex.split(start)
    for option in ("--keys", "--dir"):
        assert words[words.index(option) + 1].startswith(f"/var/lib/{state}/")


def test_a_unit_is_started_again_and_ended_in_order(unit):
    assert unit["Service.Restart"] == ["on-failure"]
    assert unit["Service.KillMode"] == ["mixed"]
    assert unit["Service.OOMPolicy"] == ["continue"]
    assert int(unit["Service.LimitNOFILE"][0]) >= 65536
    assert unit["Service.LimitCORE"] == ["0"]


def test_the_two_exclude_each_other():
    assert read(UNITS[0])["Unit.Conflicts"] == [UNITS[1]]
    assert read(UNITS[1])["Unit.Conflicts"] == [UNITS[0]]


def test_only_who_joins_must_be_told_whom():
    assert read("zray-head.service")["Service.EnvironmentFile"] == ["-/etc/zray/node.env"]
    assert read("zray-node.service")["Service.EnvironmentFile"] == ["/etc/zray/node.env"]


def test_all_variables_are_settings_with_good_values(unit):
    set_here = dict(
        pair.split("=", 1) for line in unit["Service.Environment"] for pair in line.split()
    )
    example = {name.lstrip("#"): value for name, value in settings_of("node.env").items()}
    assert "ZRAY_JOIN" in example
    together = set_here | example
    assert {name.removeprefix("ZRAY_").lower() for name in together} <= set(SETTINGS)
    resolve({}, environ=together, folder=str(ROOT / "docs"))
