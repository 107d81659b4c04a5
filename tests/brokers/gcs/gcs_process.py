"""A GCS process for tests, and a way to drive sessions with it from the test's own thread."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.house.sources import ROOT
from zray.brokers.gcs.client import GcsSession
from zray.brokers.gcs.commands import Command
from zray.net.gcs_link import GcsPeer

START_S = 20.0


class GcsProcess:
    """A GCS that can be killed and started again at the same address."""

    def __init__(self, folder: Path, *, durability: str = "process") -> None:
        self.folder = folder
        self.durability = durability
        self.endpoint = f"ipc://{folder}/gcs.sock"
        self.report: dict[str, Any] = {}
        self.start()

    def start(self) -> None:
        """Start the process and wait for its report."""
        ours, its = os.pipe()
        with open(self.folder / "log", "a") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "zray.brokers", "gcs", "--dir", self.folder / "gcs"),
                    *("--bind", self.endpoint, "--ready-fd", str(its)),
                    *("--durability", self.durability),
                ],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                pass_fds=(its,),
                stdout=log,
                stderr=log,
            )
        os.close(its)
        with os.fdopen(ours, "rb", buffering=0) as pipe:
            ready, _, _ = select.select([pipe], [], [], START_S)
            assert ready, "the GCS did not report in time"
            self.report = json.loads(pipe.readline())

    def kill(self) -> None:
        """End the process as a crash would."""
        self.process.kill()
        self.process.wait(10)

    def stop(self) -> int:
        """End the process in order; returns its status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(10)

    def close(self) -> None:
        """End the process in any way."""
        if self.process.poll() is None:
            self.kill()

    def log(self) -> str:
        """Return what the process has printed."""
        return (self.folder / "log").read_text()


class Driven:
    """A session with its link, driven whenever somebody waits."""

    def __init__(self, endpoint: str, name: bytes = b"") -> None:
        self.identity = name or b"t" + os.urandom(7)
        self.link = GcsPeer(endpoint, self.identity)
        self.lost: list[Exception] = []
        self.session = GcsSession(
            send=self.link.send,
            new_id=lambda: os.urandom(16),
            now=time.monotonic(),
            client="test",
            on_lost=self.lost.append,
        )
        self.is_silent = False

    def step(self, wait_s: float = 0.02) -> None:
        """One turn of a poll loop."""
        self.session.tick(time.monotonic())
        if not self.link.has_message():
            select.select([self.link.descriptor], [], [], wait_s)
        while (frames := self.link.receive()) is not None:
            self.session.received(frames[0], time.monotonic())
        self.session.flush()

    def until(self, condition: Any, timeout_s: float = 20.0, *others: Driven) -> None:
        """Drive until the condition holds."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"still waiting; lost: {self.lost}"
            for one in (self, *others):
                one.step()

    def start(self, name: str, *fields: Any, timeout_s: float = 30.0) -> list[Any]:
        """Ask; the list that is returned gets (result, error)."""
        got: list[Any] = []
        self.session.ask(
            Command(name, fields),
            lambda result, error: got.append((result, error)),
            timeout_s=timeout_s,
        )
        return got

    def ask(self, name: str, *fields: Any, timeout_s: float = 20.0) -> Any:
        """Ask and drive until the answer is there; raises its error."""
        return self.wait(self.start(name, *fields, timeout_s=timeout_s), timeout_s + 5)

    def wait(self, got: list[Any], timeout_s: float = 20.0) -> Any:
        """Drive until a started ask is answered; raises its error."""
        self.until(lambda: got, timeout_s)
        result, error = got[0]
        if error is not None:
            raise error
        return result

    def join(self, node: bytes) -> int:
        """Join as a node; returns the incarnation."""
        got: list[Any] = []
        self.session.join(
            node,
            lambda result, error: got.append((result, error)),
            addresses={"control": "tcp://127.0.0.1:1"},
            resources={"CPU": 2},
            labels={},
        )
        return self.wait(got)

    def close(self) -> None:
        """Close the link."""
        self.link.close()
