"""`zray-node keys`: what it makes, says and refuses.

What    The life of a cluster's keys from the command line, in text and JSON; no secret is printed.
Caller  pytest.
Never   starts a node.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from zray import cli
from zray.net.curve import ClusterKeys, Role


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ClusterKeys:
    monkeypatch.setenv("HOME", str(tmp_path))
    return ClusterKeys.create()


class Said:
    """What a command printed, and how it ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    def call(*arguments: str) -> Said:
        with pytest.raises(SystemExit) as ended:
            cli.main(["keys", *arguments])
        captured = capsys.readouterr()
        return Said(int(ended.value.code or 0), captured.out, captured.err)

    return call


def test_a_member_is_made_listed_changed_and_revoked(keys, run, tmp_path):
    said = run("issue", "worker-3", "--out", str(tmp_path / "w3"))
    assert said.code == 0
    assert f"scp -p {tmp_path}/w3/keys.json MACHINE:.zray/cluster/" in said.out
    member = ClusterKeys.load(str(tmp_path / "w3"))
    assert member.member(Role.NODE) == "worker-3"
    listed = json.loads(run("list", "--json").out)
    (row,) = (row for row in listed["keys"] if row["member"] == "worker-3")
    assert row["state"] == "valid"
    assert not row["secret_is_here"]
    assert row["since"].endswith("Z")
    assert run("issue", "worker-3", "--out", str(tmp_path / "again")).code == 0
    assert row["key"] in run("retire", "worker-3").out
    assert "has one key only" in run("retire", "worker-3").out
    assert "counts for nothing" in run("revoke", "worker-3").out
    states = [each["state"] for each in json.loads(run("list", "--json").out)["keys"]]
    assert states == ["valid"] * 3 + ["revoked"] * 2


def test_one_key_of_a_member_is_revoked_by_its_text(keys, run, tmp_path):
    first = keys.issue("one", Role.CLIENT, str(tmp_path / "one")).pair(Role.CLIENT).public.decode()
    keys.issue("one", Role.CLIENT, str(tmp_path / "two"))
    assert json.loads(run("revoke", "--json", "--", first).out) == {"revoked": [first]}
    keys.reload()
    assert len(keys.roster.valid_keys("one")) == 1


def test_the_head_changes_its_own_key_in_three_steps(keys, run):
    old = keys.pair(Role.NODE).public
    assert "zray-node keys activate --role node" in run("add").out
    assert "zray-node keys retire head" in run("activate").out
    assert old.decode() in run("retire", "head").out
    keys.reload()
    assert keys.pair(Role.NODE).public != old
    assert keys.role_of(old) is None


def test_no_secret_is_ever_printed(keys, run, tmp_path):
    said = [
        run("list").out,
        run("list", "--json").out,
        run("add").out,
        run("issue", "one", "--out", str(tmp_path / "one")).out,
        run("export", "--out", str(tmp_path / "two"), "--json").out,
    ]
    secrets = [
        pair.secret.decode()
        for folder in (keys.directory, str(tmp_path / "one"), str(tmp_path / "two"))
        for held in [ClusterKeys.load(folder)]
        for role in held.roles
        for pair in held.pairs(role)
    ]
    assert len(secrets) >= 6
    assert not [secret for secret in secrets for text in said if secret in text]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["revoke", "nobody"], 1, "no key or member that counts"),
        (["revoke", "head"], 1, "activate another key of it first"),
        (["retire", "nobody"], 1, "no key that counts"),
        (["issue", "one", "--role", "king", "--out", "x"], 2, "no role: node, client or gateway"),
        (["issue", "gateway", "--out", "x"], 1, "is a role"),
        (["list", "--dir", "nowhere"], 1, "zray-node keygen"),
    ],
)
def test_what_can_not_be_done_says_why(keys, run, arguments, code, said):
    found = run(*arguments)
    assert found.code == code
    assert said in found.err
    assert "Traceback" not in found.err


def test_keys_open_to_others_are_refused_with_the_remedy(keys, run):
    os.chmod(os.path.join(keys.directory, "keys.json"), 0o644)
    found = run("list")
    assert found.code == 1
    assert "chmod 0600" in found.err
