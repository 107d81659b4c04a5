"""Clocks and scales: how long something takes, and how much memory a process has.

What    Percentiles, loops by count and by duration, and the memory that /proc tells of.
Caller  every question.
Never   imports zray.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

WAIT_S = 60.0
"""Whatever a benchmark waits for is there by then, or the benchmark has failed."""


class Latency(NamedTuple):
    """Percentiles of many operations, each timed, and how many there were in a second."""

    p50_us: float
    p99_us: float
    per_s: float


def percentile(samples: Iterable[float], share: float) -> float:
    """Return the sample that ``share`` of the samples are below."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def median(samples: Iterable[float]) -> float:
    """Return the middle sample."""
    return percentile(samples, 0.5)


def elapsed_s(operation: Callable[[], Any]) -> float:
    """Return the seconds that one call takes."""
    started = time.perf_counter()
    operation()
    return time.perf_counter() - started


def for_seconds(operation: Callable[[], Any], seconds: float) -> tuple[list[float], float]:
    """Call for ``seconds``; returns the seconds of each call, and of all."""
    samples: list[float] = []
    clock, append = time.perf_counter, samples.append
    started = now = clock()
    end = started + seconds
    while now < end:
        operation()
        before, now = now, clock()
        append(now - before)
    return samples, now - started


def latency(operation: Callable[[], Any], seconds: float) -> Latency:
    """Measure calls one after the other for ``seconds``, after a tenth of it to warm up."""
    for_seconds(operation, seconds / 10)
    samples, total_s = for_seconds(operation, seconds)
    return summary(samples, total_s)


def summary(samples: list[float], total_s: float) -> Latency:
    """Return the percentiles of samples in seconds, and their rate over ``total_s``."""
    return Latency(median(samples) * 1e6, percentile(samples, 0.99) * 1e6, len(samples) / total_s)


def median_s(operation: Callable[[], Any], *, budget_s: float, at_least: int = 3) -> float:
    """Return the median seconds of a call, from as many calls as the budget allows.

    Args:
        operation: what to call; the first call warms up and does not count.
        budget_s: seconds for all calls, stretched where ``at_least`` calls take longer.
        at_least: calls that count, whatever they take.
    """
    operation()
    samples: list[float] = []
    end = time.perf_counter() + budget_s
    while len(samples) < at_least or (time.perf_counter() < end and len(samples) < 10_000):
        samples.append(elapsed_s(operation))
    return median(samples)


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Poll until the condition holds; raises TimeoutError that names ``what`` after WAIT_S."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {WAIT_S:.0f} s")
        time.sleep(0.005)


def anonymous_bytes(pid: int | str = "self") -> int:
    """Return the memory that a process has allocated for itself: neither files nor shared."""
    gc.collect()
    return _kibibytes(Path(f"/proc/{pid}/status"), "RssAnon:") * 1024


def proportional_bytes(pid: int) -> int:
    """Return what a process costs: its own pages, and its share of those that others have too."""
    return _kibibytes(Path(f"/proc/{pid}/smaps_rollup"), "Pss:") * 1024


def _kibibytes(path: Path, label: str) -> int:
    for line in path.read_text().splitlines():
        if line.startswith(label):
            return int(line.split()[1])
    raise LookupError(f"{path} has no {label}")
