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
from zray.protocol import link_messages, messages
from zray.protocol.link_messages import LINK_MESSAGES
from zray.protocol.messages import MESSAGES

EVERY = (*MESSAGES, *LINK_MESSAGES)
CHANNELS = {"mailbox", "calls", "lifeline", "zygote", "link"}
ROLES = {"client", "driver", "worker", "node", "process", "zygote", "node or lease holder"}


def test_no_two_messages_share_a_kind_or_a_name():
    assert len({row.kind for row in EVERY}) == len(EVERY)
    assert len({row.name for row in EVERY}) == len(EVERY)


def test_every_row_names_known_roles_and_says_what_the_message_is_for():
    problems = [
        f"{row.name}: {row.channel} from {row.sender} to {row.receiver}: {row.text!r}"
        for row in EVERY
        if row.channel not in CHANNELS
        or (row in LINK_MESSAGES) != (row.channel == "link")
        or not {row.sender, row.receiver} <= ROLES
        or not row.text.endswith((".", "?"))
        or row.since < 1
        or len(set(row.fields)) != len(row.fields)
    ]
    assert not problems, report(problems)


def test_every_kind_is_a_constant_with_the_name_of_its_row():
    problems = [
        f"{row.name} = {row.kind}, the constant says {getattr(module, row.name, None)}"
        for module, table in ((messages, MESSAGES), (link_messages, LINK_MESSAGES))
        for row in table
        if getattr(module, row.name, None) != row.kind
    ]
    assert not problems, report(problems)


def _mentions(folder: str) -> set[str]:
    """Return the constants of the table that the code of one folder uses."""
    names = {row.name for row in EVERY}
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
        for row in EVERY
        for role in {row.sender, row.receiver}
        if not any(row.name in mentions[folder] for folder in folders[role])
    ]
    assert not problems, report(problems)


def test_every_message_of_a_link_is_sent_and_has_a_rule():
    """Both its ends are the same code, so it is named once where it goes and once where it comes.

    A message of processes that a node sends on has no row of its own in the table of links.
    """
    from zray.brokers.link_rules import LINK_RULES, OPEN_RULES

    ruled = LINK_RULES.keys() | OPEN_RULES.keys()
    as_they_are = {*link_messages.AS_CLIENT, *link_messages.AS_HOME}
    kinds = {row.kind for row in LINK_MESSAGES} | as_they_are
    names = {row.kind: row.name for row in EVERY}
    problems = [f"{names[kind]} has no rule" for kind in kinds - ruled]
    problems += [f"{names[kind]} is not for a link" for kind in ruled - kinds]
    sent: set[str] = set()
    for source in python_files("brokers"):
        if source.name != "brokers/link_rules.py":
            attributes = (each for each in ast.walk(source.tree) if isinstance(each, ast.Attribute))
            sent |= {each.attr for each in attributes}
        else:
            sent |= {
                argument.attr
                for call in ast.walk(source.tree)
                if isinstance(call, ast.Call)
                for argument in call.args
                if isinstance(argument, ast.Attribute)
            }
    problems += [f"{row.name} is never sent" for row in LINK_MESSAGES if row.name not in sent]
    assert not problems, report(sorted(problems))


def test_the_generated_pages_are_those_of_the_code():
    checked = subprocess.run(
        [sys.executable, "scripts/docs_generate.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
