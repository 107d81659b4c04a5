"""The ledger: how many task specs a second does it take, and what does it add to a task?

What    Records of one spec each, appended as a node does it; and tasks on one node with the ledger
        and without it (lineage_bytes=0), by turns: seconds and CPU time of all processes.
Caller  run.py.
Never   waits for the disk: what is written survives the death of the node, as in a node.
"""

from __future__ import annotations

import os
import time
import zlib
from pathlib import Path

import psutil

import zray
from scripts.bench import measuring
from scripts.bench.bench_node import NUM_CPUS, Bench, idle_workers
from scripts.bench.curve import Curve
from scripts.bench.driver import echo
from zray.brokers.gcs.ledger import Ledger

TITLE = "The ledger"
ABOUT = """A node keeps what was submitted to it, so that lost results can be made again: batches go
into a queue and a few times a second to disk, in blobs with a checksum. The limit is a file that
the same bytes are appended to, with the same checksum, and nothing else."""
SPEC_BYTES = (100, 200, 1000)
APPEND_LEN = 100
"""Specs of one message, about."""
FLUSH_LEN = 20_000
"""Specs between two flushes: what a node has queued in a tenth of a second."""
BURST = 5000


def measure(bench: Bench) -> list[Curve]:
    """Answer the question."""
    return [_appended(bench), _of_a_task(bench)]


# -- by itself -------------------------------------------------------------------------------------


def _appended(bench: Bench) -> Curve:
    curve = Curve(
        "append",
        "Task specs appended and written",
        note="One record a spec; a node writes one a batch, which is less. Ratio: to a file.",
    )
    for nbytes in SPEC_BYTES:
        ours = _rate(bench, nbytes)
        raw = _raw_rate(bench.folder / "raw", nbytes, bench.seconds(2.0))
        curve.add({"spec B": nbytes, "per s": ours, "raw per s": raw, "ratio": ours / raw})
    return curve


def _specs(nbytes: int) -> list[bytes]:
    return [os.urandom(nbytes) for _ in range(APPEND_LEN)]


def _rate(bench: Bench, nbytes: int) -> float:
    """Return specs a second, in a ledger that has reached its cap for most of the time."""
    specs, count = _specs(nbytes), 0
    with Ledger(bench.folder / f"ledger-{nbytes}", max_bytes=64 << 20) as ledger:
        started = time.perf_counter()
        while time.perf_counter() - started < bench.seconds(3.0):
            for _ in range(FLUSH_LEN // APPEND_LEN):
                ledger.append(specs)
            ledger.flush()
            count += FLUSH_LEN
        return count / (time.perf_counter() - started)


def _raw_rate(path: Path, nbytes: int, seconds: float) -> float:
    specs, count = _specs(nbytes), 0
    # Rewritten from its beginning now and then: a cap, as cheap as one can be.
    with open(path, "wb", buffering=0) as file:
        started = time.perf_counter()
        while time.perf_counter() - started < seconds:
            for _ in range(FLUSH_LEN // APPEND_LEN):
                blob = b"".join(specs)
                file.write(zlib.crc32(blob).to_bytes(4, "big") + blob)
            count += FLUSH_LEN
            if file.tell() > 64 << 20:
                file.seek(0)
        return count / (time.perf_counter() - started)


# -- in a node -------------------------------------------------------------------------------------


def _of_a_task(bench: Bench) -> Curve:
    curve = Curve(
        "task",
        "A task on one node, with the ledger and without",
        note="Medians of turns, each a node of its own. CPU: of driver, node and workers, user and "
        "system. Ratio: CPU time to that without the ledger.",
    )
    found: dict[str, list[tuple[float, float]]] = {"without": [], "with": []}
    for turn in range(3 if bench.quick else 10):
        # Each is first as often as the other: what a machine does in the course of a minute falls
        # on both.
        for name in list(found)[:: -1 if turn % 2 else 1]:
            found[name].append(_cost(bench, "1GiB" if name == "with" else "0"))
    without_us = measuring.median(cpu for _wall, cpu in found["without"])
    for name, samples in found.items():
        cpu_us = measuring.median(cpu for _wall, cpu in samples)
        curve.add(
            {
                "ledger": name,
                "µs per task": measuring.median(wall for wall, _cpu in samples),
                "CPU µs per task": cpu_us,
                "ratio": cpu_us / without_us,
            }
        )
    return curve


def _cost(bench: Bench, lineage_bytes: str) -> tuple[float, float]:
    """Return microseconds and CPU microseconds of a task."""
    os.environ["ZRAY_LINEAGE_BYTES"] = lineage_bytes
    with zray.init("local", num_cpus=NUM_CPUS, log_to_driver=False):
        measuring.wait_until(lambda: idle_workers() >= NUM_CPUS, "the first workers")
        for _ in range(4):  # Caches and rings fill.
            _burst()
        processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
        bursts, before = 10 if bench.quick else 40, _cpu_s(processes)
        started = time.perf_counter()
        for _ in range(bursts):
            _burst()
        taken_s = time.perf_counter() - started
        cpu_s = _cpu_s(processes) - before
        return taken_s / bursts / BURST * 1e6, cpu_s / bursts / BURST * 1e6


def _burst() -> None:
    zray.get([echo.remote(item) for item in range(BURST)])


def _cpu_s(processes: list[psutil.Process]) -> float:
    times = [each.cpu_times() for each in processes]
    return sum(each.user + each.system for each in times)
