"""The ssh launcher, with ssh and scp that run on this machine what they are given.

What    What a dry run prints is what is run, keys arrive closed to others, failures are named.
Caller  scripts/test.
Never   opens a connection.
"""

from __future__ import annotations

import shlex
import stat

import pytest

from tests.deploy.fakes import DEPLOY, Play, check_command_line

SCRIPT = DEPLOY / "ssh-launch"
# Each host has a home of its own, and a user who lets others read what is made without care.
SSH = r"""
while :; do
  case "$1" in
    -o) shift 2 ;;
    --) shift; break ;;
    -*) shift ;;
    *) break ;;
  esac
done
[ $# -eq 2 ] || { echo "ssh: $# words" >&2; exit 255; }
printf 'ssh %s %s\n' "$1" "$2" >>"$PLAY/log"
host=${1##*@}
mkdir -p "$PLAY/hosts/$host"
cd "$PLAY/hosts/$host"
umask 000
HOST=$host HOME=$PWD bash -c "$2"
"""
SCP = r"""
preserves=""
while :; do
  case "$1" in
    -p) preserves=-p; shift ;;
    -o) shift 2 ;;
    --) shift; break ;;
    -*) shift ;;
    *) break ;;
  esac
done
printf 'scp %s %s\n' "$1" "$2" >>"$PLAY/log"
host=${2%%:*}
cp $preserves -- "$1" "$PLAY/hosts/${host##*@}/${2#*:}"
"""
HOSTS = """\
# the head
alice@h1
alice@h2 --num-cpus 8 --resources {"license":2}   # with a licence

h3 --advertise 10.0.0.3
"""


@pytest.fixture
def fleet(play: Play) -> Play:
    """Return a play with three hosts."""
    play.command("ssh", SSH)
    play.command("scp", SCP)
    (play.folder / "home" / "hosts.txt").write_text(HOSTS, encoding="utf-8")
    return play


def commands(play: Play) -> list[str]:
    """Return what was run of ssh and scp, and of zray-node on this machine."""
    return [
        line.removeprefix("here ")
        for line in play.log
        if line.startswith(("ssh ", "scp ", "here zray-node"))
    ]


def test_a_dry_run_prints_what_up_will_do_and_does_nothing(fleet):
    told = fleet.run(SCRIPT, "up", "hosts.txt", "--keys", "keys", "--dry-run")
    assert told.returncode == 0, told.stderr
    start = "--host 0.0.0.0 --port 6380"
    copied = [
        line
        for host in ("alice@h1", "alice@h2", "h3")
        for line in (
            f"ssh {host} umask 077 && mkdir -p .zray/cluster && chmod 700 .zray/cluster",
            f"scp keys/keys.json {host}:.zray/cluster/keys.json.new",
            f"ssh {host} chmod 600 .zray/cluster/keys.json.new"
            " && mv .zray/cluster/keys.json.new .zray/cluster/keys.json",
        )
    ]
    assert told.stdout.splitlines() == [
        "zray-node keygen --dir keys",
        *copied,
        f"ssh alice@h1 zray-node start --head {start} --advertise h1 --keys .zray/cluster",
        f"ssh alice@h2 zray-node start --join h1:6380 {start} --advertise h2 --keys .zray/cluster"
        r" --num-cpus 8 --resources \{\"license\":2\}",
        f"ssh h3 zray-node start --join h1:6380 {start} --advertise h3 --keys .zray/cluster"
        " --advertise 10.0.0.3",
    ]
    assert fleet.log == []


@pytest.mark.parametrize("action", ["up", "status", "keys", "down"])
def test_what_is_run_is_what_the_dry_run_has_printed(fleet, action):
    options = ("--keys", "keys", "--dir", "/var/tmp/a node", "--head-address", "head.internal")
    if action != "up":
        fleet.run(SCRIPT, "up", "hosts.txt", *options)
        (fleet.folder / "log").unlink()
    told = fleet.run(SCRIPT, action, "hosts.txt", *options, "--dry-run")
    assert fleet.log == []
    done = fleet.run(SCRIPT, action, "hosts.txt", *options)
    assert done.returncode == 0, done.stderr + done.stdout
    assert sorted(commands(fleet)) == sorted(told.stdout.splitlines())
    assert commands(fleet)


def test_up_starts_the_head_before_the_others_and_down_ends_it_last(fleet):
    assert fleet.run(SCRIPT, "up", "hosts.txt").returncode == 0
    started = [line.split()[0] for line in fleet.told("start")]
    assert started[0] == "h1"
    assert fleet.nodes == sorted(started) == ["h1", "h2", "h3"]
    assert fleet.run(SCRIPT, "down", "hosts.txt").returncode == 0
    assert [line.split()[0] for line in fleet.told("stop")][-1] == "h1"
    assert fleet.nodes == []


def test_the_words_of_a_host_reach_zray_node_as_they_stand_in_the_file(fleet):
    fleet.run(SCRIPT, "up", "hosts.txt")
    (line,) = [line for line in fleet.told("start") if line.startswith("h2 ")]
    assert line.endswith(' --num-cpus 8 --resources {"license":2}')


def test_keys_arrive_closed_to_others_and_are_replaced_in_one_step(fleet):
    assert fleet.run(SCRIPT, "up", "hosts.txt", "--keys", "keys").returncode == 0
    own = fleet.folder / "home" / "keys" / "keys.json"
    own.write_text("rotated", encoding="utf-8")
    own.chmod(0o640)  # Whatever it is here.
    assert fleet.run(SCRIPT, "keys", "hosts.txt", "--keys", "keys").returncode == 0
    for host in ("h1", "h2", "h3"):
        folder = fleet.folder / "hosts" / host / ".zray" / "cluster"
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert [path.name for path in folder.iterdir()] == ["keys.json"]
        assert stat.S_IMODE((folder / "keys.json").stat().st_mode) == 0o600
        assert (folder / "keys.json").read_text(encoding="utf-8") == "rotated"
    assert len(fleet.told("keygen")) == 1


def test_keys_that_are_there_are_used(fleet):
    fleet.run("zray-node", "keygen", "--dir", "keys")
    assert fleet.run(SCRIPT, "up", "hosts.txt", "--keys", "keys").returncode == 0
    assert len(fleet.told("keygen")) == 1


def test_a_host_that_fails_is_named_and_the_others_are_up(fleet):
    path = fleet.folder / "home" / "hosts.txt"
    path.write_text("h1\nh2 --fails\nh3\n", encoding="utf-8")
    done = fleet.run(SCRIPT, "up", "hosts.txt")
    assert done.returncode == 1
    assert "up failed on: h2" in done.stderr
    assert "h2: the port is taken" in done.stdout
    assert fleet.nodes == ["h1", "h3"]


def test_nobody_joins_where_the_head_does_not_start(fleet):
    (fleet.folder / "home" / "hosts.txt").write_text("h1 --fails\nh2\n", encoding="utf-8")
    done = fleet.run(SCRIPT, "up", "hosts.txt")
    assert done.returncode == 1
    assert [line.split()[0] for line in fleet.told("start")] == ["h1"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "give a command"),
        (("up",), "give a command"),
        (("up", "nowhere.txt"), "cannot be read"),
        (("sideways", "hosts.txt"), "no command sideways"),
        (("up", "hosts.txt", "--prot", "1"), "no option --prot"),
        (("up", "hosts.txt", "--port"), "needs a value"),
        (("up", "hosts.txt", "--port", "6380; reboot"), "a port is a number"),
        (("up", "empty.txt"), "names no host"),
        (("up", "dash.txt"), "is no host"),
        (("keys", "hosts.txt", "--keys", "nowhere"), "has no keys.json"),
    ],
)
def test_wrong_usage_is_said_and_nothing_is_run(fleet, words, said):
    home = fleet.folder / "home"
    (home / "empty.txt").write_text("# nobody\n", encoding="utf-8")
    (home / "dash.txt").write_text("-oProxyCommand=reboot\n", encoding="utf-8")
    done = fleet.run(SCRIPT, *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert fleet.log == []


def test_every_command_line_is_one_that_zray_node_knows(fleet):
    for action in ("up", "status", "down"):
        fleet.run(SCRIPT, action, "hosts.txt", "--dir", "node")
    lines = fleet.told("")
    assert len(lines) == 8
    for line in lines:
        check_command_line(shlex.split(line.replace('{"license":2}', "'{}'"))[1:])
