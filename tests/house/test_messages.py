"""The table of messages against the code that sends and reads them, and against its page.

What    Kinds are unique, rows complete, every message has a sender and a receiver in the code.
Caller  scripts/test, scripts/check.
Never   opens a socket.
"""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from tests.house.sources import ROOT, python_files, report
from zray.protocol import messages
from zray.protocol.messages import MESSAGES

CHANNELS = {"mailbox", "calls", "lifeline", "zygote"}
ROLES = {"client", "driver", "worker", "node", "process", "zygote", "node or lease holder"}


def test_no_two_messages_share_a_kind_or_a_name():
    assert len({row.kind for row in MESSAGES}) == len(MESSAGES)
    assert len({row.name for row in MESSAGES}) == len(MESSAGES)


def test_every_row_names_known_roles_and_says_what_the_message_is_for():
    problems = [
        f"{row.name}: {row.channel} from {row.sender} to {row.receiver}: {row.text!r}"
        for row in MESSAGES
        if row.channel not in CHANNELS
        or not {row.sender, row.receiver} <= ROLES
        or not row.text.endswith((".", "?"))
        or row.since < 1
        or len(set(row.fields)) != len(row.fields)
    ]
    assert not problems, report(problems)


def test_every_kind_is_a_constant_with_the_name_of_its_row():
    problems = [
        f"{row.name} = {row.kind}, the constant says {getattr(messages, row.name, None)}"
        for row in MESSAGES
        if getattr(messages, row.name, None) != row.kind
    ]
    assert not problems, report(problems)


def _mentions(folder: str) -> set[str]:
    """Return the constants of the table that the code of one folder uses."""
    names = {row.name for row in MESSAGES}
    used: set[str] = set()
    for source in python_files(folder):
        if source.module.startswith("zray.protocol"):
            continue
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Attribute):
                used.add(node.attr)
            elif isinstance(node, ast.Name):
                used.add(node.id)
    return used & names


def test_every_message_is_used_by_the_code_of_both_its_ends():
    folders = {"node": {"brokers"}, "zygote": {"actors"}, "driver": {"zray"}}
    folders |= {role: {"zray", "actors"} for role in ("client", "worker", "process")}
    folders["node or lease holder"] = {"brokers", "zray"}
    mentions = {folder: _mentions(folder) for folder in ("zray", "brokers", "actors")}
    if not (ROOT / "brokers" / "node.py").exists():
        pytest.skip("brokers/node.py is not written yet")
    problems = [
        f"{row.name}: no code of the {role} ({', '.join(sorted(folders[role]))}/) names it"
        for row in MESSAGES
        for role in {row.sender, row.receiver}
        if not any(row.name in mentions[folder] for folder in folders[role])
    ]
    assert not problems, report(problems)


def test_the_generated_pages_are_those_of_the_code():
    checked = subprocess.run(
        [sys.executable, "scripts/docs_generate.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
