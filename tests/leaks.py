"""What a test must give back: descriptors, threads, child processes, shared memory, files.

What    Snapshot.take() before, .assert_returned() after: what is new and stays fails the test.
Caller  the fixture no_leaks of tests/conftest.py; chaos tests, once a round.
Never   looks outside this process, its children and the folders given: other runs share /dev/shm.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.waiting import wait_until

SHM = Path("/dev/shm")
RETURN_TIMEOUT_S = 10.0


def open_descriptors(pid: int | None = None) -> Counter[str]:
    """Return how often each target is open; numbers are reused, so targets are what counts.

    Args:
        pid: of the process that has them open; None: this one.
    """
    folder = Path(f"/proc/{pid or 'self'}/fd")
    if not folder.is_dir():  # macOS: only the number of descriptors is known
        return Counter({"descriptor": psutil.Process(pid).num_fds()})
    targets: Counter[str] = Counter()
    for link in folder.iterdir():
        try:
            target = os.readlink(link)
        except OSError:
            continue  # the descriptor of this very listing
        # Sockets and pipes carry an inode of their own: the kind is what comes and goes.
        targets[target.split(":[", 1)[0]] += 1
    return targets


def children() -> dict[int, str]:
    """Return pid -> command of every living descendant; zombies count, nobody reaped them."""
    found: dict[int, str] = {}
    for child in psutil.Process().children(recursive=True):
        try:
            found[child.pid] = f"{child.status()} {' '.join(child.cmdline())[:120]}"
        except psutil.NoSuchProcess:
            continue
    return found


def files_of_zray(folders: tuple[Path, ...]) -> set[str]:
    """Return the paths that zray made in /dev/shm and in ``folders``."""
    names = {str(path) for path in SHM.glob("*zray*")} if SHM.is_dir() else set()
    return names.union(str(path) for folder in folders for path in folder.glob("*zray*"))


@dataclass
class Snapshot:
    """What this process held at one moment."""

    folders: tuple[Path, ...] = ()
    descriptors: Counter[str] = field(default_factory=Counter)
    threads: set[threading.Thread] = field(default_factory=set)
    processes: dict[int, str] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)

    @classmethod
    def take(cls, *folders: Path) -> Snapshot:
        """Look now. ``folders`` are those where sessions keep their files."""
        return cls(
            folders,
            open_descriptors(),
            set(threading.enumerate()),
            children(),
            files_of_zray(folders),
        )

    def leaked(self) -> list[str]:
        """Return a line for everything that is here now and was not then."""
        now = Snapshot.take(*self.folders)
        lines = [
            f"{count} more open: {target}"
            for target, count in sorted((now.descriptors - self.descriptors).items())
        ]
        lines += [f"thread {thread.name} is alive" for thread in now.threads - self.threads]
        lines += [
            f"process {pid} is there: {what}"
            for pid, what in sorted(now.processes.items())
            if pid not in self.processes
        ]
        lines += [f"file {path} is there" for path in sorted(now.files - self.files)]
        return lines

    def assert_returned(self, timeout_s: float = RETURN_TIMEOUT_S) -> None:
        """Fail with the list of leaks, if any is left after ``timeout_s`` of patience."""
        try:
            wait_until(lambda: not self.leaked(), timeout_s)
        except AssertionError:
            leaks = self.leaked()
            if leaks:
                raise AssertionError("left behind:\n  " + "\n  ".join(leaks)) from None
