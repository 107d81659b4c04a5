"""The file of a member's keys: read and written so that nobody else can.

What    One folder of mode 0700 with one file of mode 0600, ``keys.json``. A change replaces the
        file at once, under a lock of the folder: a reader sees the old one or the new one.
Caller  zray/net/curve.py.
Never   reads a file that others could read or write; follows what the umask says.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
from collections.abc import Generator
from typing import Any

from zray.errors import SecurityError

FILE = "keys.json"
_FILE_BYTES_MAX = 16 * 1024 * 1024

Identity = tuple[int, ...]
"""Which version of the file it is: another one wherever it was replaced or written to."""


def make_folder(path: str) -> None:
    """Make the folder where it is missing.

    Raises SecurityError where it is open to others, or somebody else's.
    """
    os.makedirs(path, mode=0o700, exist_ok=True)
    _check_private(path, os.stat(path), 0o700)


def has_keys(directory: str) -> bool:
    """Return whether anything has the name of the file."""
    return os.path.lexists(os.path.join(directory, FILE))


def identity(directory: str) -> Identity:
    """Return which version of the file is there, () where there is none."""
    try:
        status = os.stat(os.path.join(directory, FILE))
    except OSError:
        return ()
    return status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_size


@contextlib.contextmanager
def locked(directory: str) -> Generator[None]:
    """Keep out other processes that change the same folder."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def read(directory: str) -> tuple[Any, Identity]:
    """Return what the file says, in plain types, and which version of it that is.

    Raises SecurityError where there is none, others can read it, or it is no JSON.
    """
    path = os.path.join(directory, FILE)
    seen = identity(directory)
    try:
        _check_private(directory, os.stat(directory), 0o700)
        with open(path, "rb") as file:
            # Of the descriptor: the path could name another file between a check and a read.
            _check_private(path, os.fstat(file.fileno()), 0o600)
            text = file.read(_FILE_BYTES_MAX)
    except OSError as error:
        raise SecurityError(
            f"no cluster keys in {directory} ({error.strerror}): have them made on the head"
            " (`zray-node keys issue`), name another folder with --keys, or make those of a new"
            " cluster with `zray-node keygen`"
        ) from None
    try:
        return json.loads(text), seen
    except ValueError as error:
        raise SecurityError(f"{path} is no file of cluster keys: {error!r}") from None


def write(directory: str, plain: Any, *, replaces: Identity | None = None) -> bool:
    """Replace the file; returns False, and changes nothing, where it is another than ``replaces``.

    Call it with the folder locked. Raises OSError where the disk does not take it.
    """
    path = os.path.join(directory, FILE)
    beside = f"{path}.new"
    with contextlib.suppress(FileNotFoundError):  # Of a writer that was killed: the lock is ours.
        os.unlink(beside)
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "w", encoding="ascii") as file:
            json.dump(plain, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        # Who copies a new file here by hand knows of no lock.
        if replaces is not None and identity(directory) != replaces:
            os.unlink(beside)
            return False
        os.replace(beside, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return True


def _check_private(path: str, status: os.stat_result, mode: int) -> None:
    if status.st_uid not in (os.getuid(), 0):
        raise SecurityError(
            f"{path} belongs to user {status.st_uid}: keys must be your own. Copy them to a folder"
            " of yours, or chown it"
        )
    if status.st_mode & 0o077:
        raise SecurityError(
            f"{path} is open to others (mode {stat.S_IMODE(status.st_mode):04o}): whoever can read"
            f" it can join the cluster. chmod {mode:04o} it, and rotate keys others may have read"
        )
