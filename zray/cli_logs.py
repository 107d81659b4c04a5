"""What `zray-node logs` does.

What    Prints the end of a node's log file, and follows it across the moment it is moved aside;
        that of another node as that one reads it out.
Caller  zray/cli.py.
Never   reads more of a file than the lines asked for, and a block.
"""

from __future__ import annotations

import os
import sys
import time
from typing import BinaryIO

from zray import node_directory
from zray.observer import Observer

_BLOCK_BYTES = 64 * 1024
_POLL_S = 0.1
_REMOTE_POLL_S = 0.5
"""Each look is a question to two nodes."""


def show(directory: str, name: str, lines: int, *, follow: bool) -> int:
    """Print the last ``lines`` of a log; returns the exit code."""
    path = os.path.join(directory, name)
    try:
        file = open(path, "rb")  # noqa: SIM115
    except FileNotFoundError:
        print(
            f"zray-node: {path} is not there: no node that stays has run in this directory",
            file=sys.stderr,
        )
        return 3
    with file:
        sys.stdout.buffer.write(last_lines(file, lines))
        sys.stdout.flush()
        if not follow:
            return 0
        try:
            _follow(file, path, directory)
        except KeyboardInterrupt:
            return 0
    return 0


def show_remote(directory: str, node: str, name: str, lines: int, *, follow: bool) -> int:
    """Print the last ``lines`` of another node's log; returns the exit code.

    Args:
        directory: of the node to ask.
        node: how the id of the other one begins.
        name: of the log.
        lines: how many, 10 000 at most.
        follow: go on as lines are added.
    """
    after: list[int] | None = None
    with Observer(directory) as observer:
        try:
            while True:
                asked = {"node": node, "name": name, "lines": lines, "after": after}
                _node, inode, end, text = observer.ask("log", **asked)
                sys.stdout.buffer.write(text)
                sys.stdout.flush()
                if not follow:
                    return 0
                after = [inode, end]
                if not text:
                    time.sleep(_REMOTE_POLL_S)
        except KeyboardInterrupt:
            return 0


def last_lines(file: BinaryIO, lines: int) -> bytes:
    """Return the last ``lines`` of a file, which is left at its end."""
    size = at = file.seek(0, os.SEEK_END)
    data = b""
    while at > 0 and data.count(b"\n") <= lines:
        step = min(_BLOCK_BYTES, at)
        at -= step
        file.seek(at)
        data = file.read(step) + data
    file.seek(size)
    kept = data.splitlines(keepends=True)
    return b"".join(kept[len(kept) - min(lines, len(kept)) :])


def _follow(file: BinaryIO, path: str, directory: str) -> None:
    """Print what is added, until the node ends."""
    while True:
        data = file.read(_BLOCK_BYTES)
        if data:
            sys.stdout.buffer.write(data)
            sys.stdout.flush()
            continue
        if _moved(file, path):
            with open(path, "rb") as fresh:
                return _follow(fresh, path, directory)
        if node_directory.holder_pid(directory) is None:
            return None
        time.sleep(_POLL_S)


def _moved(file: BinaryIO, path: str) -> bool:
    """Whether the file was emptied, or another one has its name."""
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False  # Between the move and the next line.
    return there.st_ino != os.fstat(file.fileno()).st_ino or there.st_size < file.tell()
