"""One driver process among several: connects, waits for the signal, works, tells what it did.

What    `Drivers` starts k of them against a node and lets them begin together; the program itself
        repeats one kind of work for some seconds.
Caller  calls.py.
Never   starts a node.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import zray
from scripts.bench import measuring
from scripts.bench.measuring import Latency

SAMPLES_MAX = 2000
"""A driver tells at most so many of its samples: percentiles do not need more."""
BURST = 1000
"""Calls in flight at once in the asynchronous kinds."""
SHARED_ACTOR = "bench-shared"
NAMESPACE = "bench"


@zray.remote
def echo(item: int) -> int:
    return item


@zray.remote(num_cpus=0)
class Counter(zray.Actor):
    """An actor that does as little as one can."""

    def __init__(self) -> None:
        self.count = 0

    def add(self) -> int:
        self.count += 1
        return self.count


def task_sync() -> Callable[[], int]:
    """One task at a time."""
    return lambda: len(repr(zray.get(echo.remote(1))))


def tasks() -> Callable[[], int]:
    """Tasks in bursts."""
    return lambda: len(zray.get([echo.remote(item) for item in range(BURST)]))


def actor_sync() -> Callable[[], int]:
    """One call at a time of an actor of its own."""
    own: Any = Counter.remote()
    return lambda: bool(zray.get(own.add.remote()))


def actor_calls() -> Callable[[], int]:
    """Calls in bursts of an actor of its own."""
    own: Any = Counter.remote()
    return lambda: len(zray.get([own.add.remote() for _ in range(BURST)]))


def shared_actor() -> Callable[[], int]:
    """One call at a time of the actor that all drivers call."""
    shared: Any = zray.get_actor(SHARED_ACTOR, namespace=NAMESPACE)
    return lambda: bool(zray.get(shared.add.remote()))


KINDS: dict[str, Callable[[], Callable[[], int]]] = {
    kind.__name__: kind for kind in (task_sync, tasks, actor_sync, actor_calls, shared_actor)
}


def calls_of(kind: str) -> int:
    """Return how many calls one repetition of this kind makes."""
    return BURST if kind in ("tasks", "actor_calls") else 1


class Drivers:
    """k driver processes that work at the same time. A context manager.

    Args:
        address: the node's directory.
        kind: a key of KINDS.
        count: how many drivers.
        seconds: how long each works.
    """

    def __init__(self, address: str, kind: str, count: int, seconds: float) -> None:
        command = [sys.executable, "-m", "scripts.bench.driver", address, kind, str(seconds)]
        self.kind = kind
        self.processes = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(count)
        ]

    def __enter__(self) -> Drivers:
        return self

    def __exit__(self, *_error: object) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.communicate()

    def work(self) -> tuple[Latency, float]:
        """Let all begin; returns latency over all drivers, and least over most calls of one."""
        for process in self.processes:
            self._line(process)  # Says that it is connected and warm.
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        told = [json.loads(self._line(process)) for process in self.processes]
        samples = [sample for each in told for sample in each["samples"]]
        rate = sum(each["calls"] / each["seconds"] for each in told)
        p50, p99, _ = measuring.summary(samples, 1.0)
        counts = [each["calls"] for each in told]
        return Latency(p50, p99, rate), min(counts) / max(counts)

    def _line(self, process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"a driver of kind {self.kind} ended with {process.wait()}")
        return line


def main(address: str, kind: str, seconds: float) -> None:
    """Be one driver."""
    zray.init(address=address, namespace=None, log_to_driver=False)
    operation = KINDS[kind]()
    for _ in range(3):
        operation()
    print("ready", flush=True)
    sys.stdin.readline()
    samples, total_s = measuring.for_seconds(operation, seconds)
    step = -(-len(samples) // SAMPLES_MAX)
    told = {
        "calls": len(samples) * calls_of(kind),
        "seconds": total_s,
        "samples": samples[::step],
    }
    print(json.dumps(told), flush=True)
    zray.shutdown()


if __name__ == "__main__":
    # By its real name: what is defined in __main__ would travel by value.
    from scripts.bench import driver

    driver.main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
