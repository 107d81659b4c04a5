"""Nodes that stay and drivers in processes of their own, for tests.

What    Place runs zray-node and driver programs in one folder, and knows every process in it.
Caller  tests/cluster/test_cli.py, test_persistent_node.py, test_driver_ends.py.
Never   imports the product's command line into the test's process.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import psutil

from tests.waiting import wait_until
from zray.observer import Observer

COMMAND = [sys.executable, "-m", "zray.cli"]


class Place:
    """One folder with its own last node, temporary folder and programs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.node = folder / "node"
        self.env = {
            name: value for name, value in os.environ.items() if not name.startswith("ZRAY_")
        }
        self.env.update(
            XDG_RUNTIME_DIR=str(folder),
            ZRAY_TMPDIR=str(folder),
            COLUMNS="200",
            PYTHONUNBUFFERED="1",
        )
        self.children: list[subprocess.Popen[str]] = []

    # -- zray-node -------------------------------------------------------------------------------

    def run(
        self, *arguments: str, timeout_s: float = 30.0, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run zray-node to its end."""
        return subprocess.run(
            [*COMMAND, *arguments],
            env=self.env | (env or {}),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def start(self, *arguments: str) -> dict[str, Any]:
        """Start a node in ``self.node``; returns what it reports."""
        done = self.run(
            "start",
            "--dir",
            str(self.node),
            "--num-cpus",
            "2",
            "--object-store-memory",
            "200MiB",
            "--json",
            *arguments,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        report: dict[str, Any] = json.loads(done.stdout)
        return report

    def ask(self, what: str = "status") -> Any:
        """Ask the node."""
        with Observer(str(self.node)) as observer:
            return observer.ask(what)

    # -- programs --------------------------------------------------------------------------------

    def program(self, text: str, name: str = "driver.py", folder: str = "") -> Path:
        """Write a program; returns its path."""
        path = self.folder / folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path

    def launch(
        self,
        text: str,
        *arguments: str,
        folder: str = "",
        embedded: bool = False,
        env: dict[str, str] | None = None,
    ) -> subprocess.Popen[str]:
        """Run a driver of the node (or one with a node of its own) in a session of its own."""
        path = self.program(text, f"driver{len(self.children)}.py", folder)
        address = {"ZRAY_ADDRESS": "local" if embedded else str(self.node)}
        child = subprocess.Popen(
            [sys.executable, str(path), *arguments],
            # Unbuffered, print() writes a line and its end apart: a task's line may come between.
            env=self.env | {"PYTHONUNBUFFERED": ""} | address | (env or {}),
            cwd=path.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.children.append(child)
        return child

    def drive(
        self, text: str, *arguments: str, folder: str = "", env: dict[str, str] | None = None
    ) -> str:
        """Run a driver to its successful end; returns what it printed."""
        child = self.launch(text, *arguments, folder=folder, env=env)
        out, err = child.communicate(timeout=30)
        assert child.returncode == 0, out + err
        return out

    # -- processes -------------------------------------------------------------------------------

    def processes(self, directory: str | None = None) -> list[psutil.Process]:
        """Return the living processes of the nodes in this folder: node, zygote, workers."""
        named = str(directory or self.folder)
        found = []
        for process in psutil.process_iter():
            try:
                words = process.cmdline()
                if (
                    "--dir" in words
                    and words[words.index("--dir") + 1].startswith(named)
                    and (process.status() != psutil.STATUS_ZOMBIE)
                ):
                    found.append(process)
            except (psutil.NoSuchProcess, IndexError):
                continue
        return found

    def await_no_process(self, timeout_s: float = 10.0) -> None:
        """Wait until no node, zygote or worker of this folder is left."""
        wait_until(lambda: not self.processes(), timeout_s, what=f"the end of {self.processes()}")

    def close(self) -> None:
        """End all that is left."""
        for child in self.children:
            if child.poll() is None:
                child.kill()
            child.communicate()
        for process in self.processes():
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
        self.await_no_process()


def line_of(child: subprocess.Popen[str]) -> str:
    """Return the next line of a driver itself; fails with its stderr where it has ended."""
    assert child.stdout is not None
    assert child.stderr is not None
    while line := child.stdout.readline():
        if not line.startswith("("):  # What its tasks print begins with their name.
            return line.rstrip("\n")
    raise AssertionError(f"the driver ended: {child.stderr.read()}")
