"""What all files for launching have in common: they read well, and a page says how to use them.

What    Syntax, the rules that keep a shell script from doing harm, and the links between the
        scripts and docs/how-to/deploy-*.md.
Caller  scripts/test.
Never   runs a script.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.deploy.fakes import DEPLOY, check_shell
from tests.house.sources import ROOT, walk

SCRIPTS = ("slurm.sh", "ssh-launch")
HOW_TO = {
    "slurm.sh": "deploy-slurm.md",
    "ssh-launch": "deploy-ssh.md",
    "kubernetes.yaml": "deploy-kubernetes.md",
    "systemd": "deploy-systemd.md",
}
HARMFUL = {
    r"\beval\b": "runs words that came from elsewhere",
    r"`": "is $(...) that cannot be nested",
    r"StrictHostKeyChecking|UserKnownHostsFile": "lets anybody play a host that is to get keys",
    r"rm -rf (?!-- )": "a name that begins with a dash is an option",
    r"\bchmod (?:777|666|a\+)": "opens a file to everybody",
    r"\$[@*](?=\s|$)": "splits words at blanks: quote it",
    r"\t": "a tab",
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_right_as_far_as_bash_and_shellcheck_can_tell(name):
    check_shell(DEPLOY / name)
    assert os.access(DEPLOY / name, os.X_OK)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_stops_at_its_first_error_and_does_nothing_harmful(name):
    text = (DEPLOY / name).read_text(encoding="utf-8")
    lines = text.splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert "set -euo pipefail" in lines
    code = [line for line in lines if not line.lstrip().startswith("#")]
    found = [
        f"{line.strip()}: {why}"
        for line in code
        for pattern, why in HARMFUL.items()
        if re.search(pattern, line)
    ]
    assert not found, found
    assert max(map(len, lines)) <= 100


def test_every_file_has_a_page_that_names_it_and_names_its_page():
    there = {path.relative_to(DEPLOY).parts[0] for path in walk(DEPLOY)}
    assert there == set(HOW_TO)
    for name, page in HOW_TO.items():
        text = (ROOT / "docs" / "how-to" / page).read_text(encoding="utf-8")
        assert f"scripts/deploy/{name}" in text
        files = [DEPLOY / name] if (DEPLOY / name).is_file() else list(_units(DEPLOY / name))
        for file in files:
            assert f"docs/how-to/{page}" in file.read_text(encoding="utf-8"), file


def _units(folder: Path) -> list[Path]:
    return [path for path in walk(folder) if path.suffix == ".service"]


def test_the_list_of_pages_has_these():
    listed = (ROOT / "docs" / "how-to" / "README.md").read_text(encoding="utf-8")
    assert [page for page in HOW_TO.values() if f"({page})" not in listed] == []
