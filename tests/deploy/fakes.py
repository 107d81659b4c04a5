"""Commands of other machines, played on this one: what a launcher calls, and what it finds there.

What    A folder of small scripts for PATH, a log that each writes its command line to, and a check
        of `zray-node` command lines against the real options.
Caller  tests/deploy.
Never   starts a node, or reaches another machine.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import typer.main

from tests.house.sources import ROOT
from zray import cli

DEPLOY = ROOT / "scripts" / "deploy"
RUN_TIMEOUT_S = 30

# What stands for zray-node notes "HOST zray-node WORD…", plays a node as a file while it runs, and
# knows a cluster by the number of these files.
NODE = r"""
me=${HOST:-here}
printf '%s zray-node %s\n' "$me" "$*" >>"$PLAY/log"
case "$1" in
  keygen)
    while [ "$1" != --dir ]; do shift; done
    umask 077
    mkdir -p "$2"
    echo '{"secret": "of the cluster"}' >"$2/keys.json" ;;
  start)
    case " $* " in *" --fails "*) echo "the port is taken" >&2; exit 1 ;; esac
    : >"$PLAY/nodes/$me"
    case " $* " in *" --block "*) while [ -e "$PLAY/nodes/$me" ]; do sleep 0.02; done ;; esac ;;
  status)
    [ -e "$PLAY/nodes/$me" ] || exit 3
    printf '{"nodes": ['
    ls "$PLAY/nodes" | sed 's/.*/{}/' | paste -s -d, | tr -d '\n'
    echo ']}' ;;
  stop) rm -f "$PLAY/nodes/$me" ;;
  run)
    while [ $# -gt 0 ] && [ "$1" != program.py ]; do shift; done
    eval "$PROGRAM" ;;
esac
"""


@dataclass
class Play:
    """A folder with fake commands, and what was run of them."""

    folder: Path

    def command(self, name: str, body: str) -> None:
        """Add a command to PATH, in bash."""
        path = self.folder / "bin" / name
        path.write_text(f"#!/usr/bin/env bash\nset -eu\n{body}", encoding="utf-8")
        path.chmod(0o755)

    def environment(self, **more: str) -> dict[str, str]:
        """Return the variables of a process that finds these commands first."""
        return {
            "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(self.folder / "home"),
            "TMPDIR": str(self.folder / "tmp"),
            "PLAY": str(self.folder),
            "PROGRAM": "echo done",
            **more,
        }

    def run(self, *command: object, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, whatever its exit code."""
        return subprocess.run(
            [str(word) for word in command],
            env=self.environment(**more),
            cwd=self.folder / "home",
            capture_output=True,
            text=True,
            timeout=RUN_TIMEOUT_S,
            check=False,
        )

    @property
    def log(self) -> list[str]:
        """Return the lines that the commands have written, in their order."""
        path = self.folder / "log"
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []

    def told(self, word: str) -> list[str]:
        """Return the lines "HOST zray-node WORD…" with this command; of all, where it is ""."""
        return [line for line in self.log if line.partition(" ")[2].startswith(f"zray-node {word}")]

    @property
    def nodes(self) -> list[str]:
        """Return the hosts on which a node runs."""
        return sorted(path.name for path in (self.folder / "nodes").iterdir())


def new_play(folder: Path) -> Play:
    """Make the folder of a play, with zray-node in it."""
    for name in ("bin", "home", "tmp", "nodes"):
        (folder / name).mkdir(parents=True)
    play = Play(folder)
    play.command("zray-node", NODE)
    return play


def check_command_line(words: list[str]) -> None:
    """Raise click's UsageError where the real zray-node has no such command or option."""
    assert words[0] == "zray-node"
    group = typer.main.get_command(cli.app)
    command = group.commands[words[1]]  # type: ignore[attr-defined]
    command.make_context(f"zray-node {words[1]}", list(words[2:]))


def check_shell(script: Path) -> None:
    """Judge a script without running it: bash's own reading, and shellcheck where there is one."""
    said = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    if shutil.which("shellcheck"):
        judged = ["shellcheck", "--severity=warning", str(script)]
        said = subprocess.run(judged, capture_output=True, text=True, check=False)
        assert said.returncode == 0, said.stdout
