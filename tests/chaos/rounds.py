"""Rounds of random death: a node that stays, a driver under load, kill -9 at a random moment.

What    Each round runs one driver (tests/chaos/load.py), kills workers, and in every third round
        the driver itself; then the node must be as it was: no process, descriptor, file, object,
        byte of shared memory or queued task is left, and the driver must have ended well.
Caller  tests/chaos/test_rounds.py; ``python -m tests.chaos.rounds --rounds 200 --seed 1``.
Never   looks at processes of other nodes.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from tests.leaks import open_descriptors
from tests.waiting import wait_until
from zray.launch import launch_node
from zray.observer import Observer

ROOT = Path(__file__).parents[2]
SETTINGS: dict[str, Any] = {"num_cpus": 2, "object_store_memory": 128 << 20, "resources": {}}
FILES_OF_A_WORKER = 2
DESCRIPTORS_OF_A_WORKER = 8
LOAD_S = 0.8
DRIVER_TIMEOUT_S = 60.0
SETTLE_TIMEOUT_S = 10.0


class Chaos:
    """One node and the rounds run against it."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.folder = tempfile.TemporaryDirectory(prefix="zrc")
        self.directory = os.path.join(self.folder.name, "node")
        os.mkdir(self.directory, 0o700)
        self.node = launch_node(self.directory, dict(SETTINGS))
        self.process = psutil.Process(self.node.pid)
        self.kills = 0
        # The first driver warms everything up, so that what is left later is a leak.
        self._drive(0, kill=0, kill_driver=False)
        try:
            wait_until(self._settled, SETTLE_TIMEOUT_S)
        except AssertionError:
            raise AssertionError(f"the first driver left {self._traces()}") from None
        self.baseline = self._traces()
        self.descriptors = open_descriptors(self.node.pid)

    def close(self) -> None:
        """End the node and remove its folder."""
        self.node.terminate()
        self.node.wait(10)
        self.folder.cleanup()

    # -- one round -------------------------------------------------------------------------------

    def round(self, number: int) -> str:
        """Run one round; returns a line about it. Raises AssertionError where something is off."""
        kill_driver = number % 3 == 2
        report = self._drive(
            self.random.randrange(1 << 30),
            kill=self.random.randrange(1, 4),
            kill_driver=kill_driver,
        )
        assert self.node.poll() is None, f"the node ended: {self._log()}"
        try:
            wait_until(self._returned, SETTLE_TIMEOUT_S)
        except AssertionError:
            raise AssertionError(
                f"round {number} ({report}) left traces: {self._difference()} of"
                f" {self._traces()}; {self._rows()}; {self._log()}"
            ) from None
        return f"round {number}: {report}"

    def _drive(self, seed: int, *, kill: int, kill_driver: bool) -> str:
        environment = {**os.environ, "ZRAY_ADDRESS": self.directory, "PYTHONPATH": str(ROOT)}
        driver = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.load", str(seed), str(LOAD_S)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert driver.stdout is not None
        with driver:
            if driver.stdout.readline() != "ready\n":
                raise AssertionError(f"the driver did not start: {driver.communicate()[1]}")
            began = time.monotonic()
            moments = sorted(self.random.uniform(0.0, LOAD_S) for _ in range(kill))
            for moment in moments:
                self._pause(began + moment)
                self._kill_worker()
            if kill_driver:
                self._pause(began + self.random.uniform(0.0, LOAD_S))
                driver.kill()
            try:
                out, err = driver.communicate(timeout=DRIVER_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    driver.send_signal(signal.SIGUSR1)
                driver.kill()
                raise AssertionError(
                    f"the driver of seed {seed} hangs: {driver.communicate()}; {self._log()}"
                ) from None
        if not kill_driver:
            assert driver.returncode == 0, f"seed {seed}: {out}{err[-3000:]}; {self._log()}"
        return f"seed {seed}, driver {driver.returncode}, {out.strip()}"

    def _pause(self, until: float) -> None:
        time.sleep(max(0.0, until - time.monotonic()))

    def _kill_worker(self) -> None:
        workers = self._workers()
        if workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.random.choice(workers), signal.SIGKILL)
                self.kills += 1

    def _workers(self) -> list[int]:
        with contextlib.suppress(psutil.NoSuchProcess):
            for zygote in self.process.children():
                return [child.pid for child in zygote.children()]
        return []

    # -- what is left ----------------------------------------------------------------------------

    def _status(self) -> dict[str, Any]:
        with Observer(self.directory) as observer:
            status: dict[str, Any] = observer.ask("status")
            return status

    def _rows(self) -> list[Any]:
        with Observer(self.directory) as observer:
            return [*observer.ask("workers"), *observer.ask("objects")[:10]]

    def _traces(self) -> dict[str, Any]:
        status = self._status()
        scheduler = status["scheduler"]
        return {
            "workers": scheduler["workers"],
            "queued": scheduler["queued_tasks"],
            "running": scheduler["running_tasks"],
            "pending_actors": scheduler["pending_actors"],
            "actors": status["actor_counts"],
            "objects": status["object_counts"]["objects"],
            "used_bytes": status["store"]["used_bytes"],
            "drivers": status["drivers"],
            "ledgers": status["gcs"]["ledgers"],
            "spill_bytes": status["store"]["spill_bytes"],
            "waiting": status["store"]["waiting_allocations"],
            "available": status["resources"]["available"],
            "files": len(os.listdir(self.directory)),
            "malformed": status["malformed_messages"],
            "descriptors": self.process.num_fds(),
            "processes": len(self._workers()),
        }

    def _settled(self) -> bool:
        traces = self._traces()
        workers = traces["workers"]
        return bool(
            workers.keys() <= {"idle"}
            and workers.get("idle", 0) == traces["processes"]
            and traces["processes"] <= SETTINGS["num_cpus"]
            and traces["drivers"] == 0
        )

    def _difference(self) -> dict[str, Any]:
        """Return what differs from the beginning; a worker more or less has its own share."""
        before, now = self.baseline, self._traces()
        more = now["processes"] - before["processes"]
        allowed = {"files": FILES_OF_A_WORKER, "descriptors": DESCRIPTORS_OF_A_WORKER}
        found: dict[str, Any] = {
            name: (before[name], value)
            for name, value in now.items()
            if name not in ("workers", "processes", *allowed) and value != before[name]
        }
        for name, share in allowed.items():
            if now[name] > before[name] + share * max(0, more):
                found[name] = (before[name], now[name])
        if "descriptors" in found:
            found["more descriptors"] = dict(open_descriptors(self.node.pid) - self.descriptors)
        return found

    def _returned(self) -> bool:
        return self._settled() and not self._difference()

    def _log(self) -> str:
        with open(os.path.join(self.directory, "node.log"), errors="replace") as log:
            return "node.log: " + log.read()[-3000:]


def main() -> int:
    """Run rounds and print a line for each."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.rounds")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    chaos = Chaos(arguments.seed)
    began = time.monotonic()
    try:
        for number in range(arguments.rounds):
            print(chaos.round(number), flush=True)
    finally:
        chaos.close()
    print(
        f"{arguments.rounds} rounds, {chaos.kills} workers killed, {time.monotonic() - began:.0f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
