"""A test's time limit, with the stacks of every thread and what every child process is doing.

What    pytest-timeout fails the test from a signal and prints this process's threads. Two things
        it cannot do are here: just before, say what the child processes do; and well after,
        end a run whose main thread is in C code that no signal interrupts.
Caller  tests/conftest.py, round every test.
Never   sends a signal to a process that would die of it, or to one that is not our child.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import psutil

BEFORE_LIMIT_S = 1.0
AFTER_LIMIT_S = 20.0


def catches(pid: int, number: signal.Signals) -> bool:
    """Return whether process ``pid`` has a handler for the signal: to others it is deadly."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    masks = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")]
    return bool(masks and int(masks[0], 16) >> (number - 1) & 1)


def describe_children(out: TextIO) -> None:
    """Write a line on each descendant, and ask those that can to print their stacks."""
    for child in psutil.Process().children(recursive=True):
        try:
            line = f"{child.pid} {child.status()} {' '.join(child.cmdline())[:200]}"
            waits = Path(f"/proc/{child.pid}/wchan")
            where = waits.read_text() if waits.exists() else "?"
            asked = catches(child.pid, signal.SIGUSR1)
            if asked:
                # zray's processes answer with faulthandler, on their stderr.
                os.kill(child.pid, signal.SIGUSR1)
        except (psutil.NoSuchProcess, ProcessLookupError, PermissionError):
            continue
        out.write(f"  child {line}; waits in {where or '0'}; stacks asked for: {asked}\n")
    out.flush()


@contextmanager
def time_limit(name: str, limit_s: float, last_words: TextIO) -> Iterator[None]:
    """Watch over one test that pytest-timeout ends after ``limit_s`` seconds.

    Args:
        name: the test, for the report.
        limit_s: its limit in seconds.
        last_words: a file that pytest does not capture: what is captured dies with the run.
    """
    out = sys.__stderr__ or sys.stderr

    def report() -> None:
        out.write(f"\n{name} is about to pass its limit of {limit_s:g} s. Child processes:\n")
        describe_children(out)

    timer = threading.Timer(max(limit_s - BEFORE_LIMIT_S, limit_s / 2), report)
    timer.daemon = True
    timer.name = "test-watchdog"
    timer.start()
    faulthandler.dump_traceback_later(limit_s + AFTER_LIMIT_S, exit=True, file=last_words)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        timer.cancel()
        timer.join()
