"""One LMDB directory: exclusive, guarded against fork, with typed errors.

What    What the store, the ledger and the event ring have in common: a lock file that names
        its holder, the flags LMDB is opened with, the check for files that a power loss may
        have damaged, and the translation of LMDB's errors into zray's.
Caller  engine.py, ledger.py, events.py.
Never   knows what is stored; leaves a read transaction open (an open one keeps every page
        that is replaced meanwhile from being reused, and the file grows without end).
"""

from __future__ import annotations

import errno
import fcntl
import os
import weakref
from pathlib import Path
from typing import Literal

import lmdb

from zray.errors import ForkedProcessError, GcsError, GcsUnavailableError

Durability = Literal["process", "disk"]

MAP_BYTES = 64 << 30
"""Address space, not disk or memory: large enough that a store is never resized in service."""

_LOCK_FILE_BYTES = 8192
"""Of LMDB's lock.mdb, with its 126 readers."""

_UNSYNCED = "unsynced"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

_DAMAGED = (
    lmdb.CorruptedError,
    lmdb.InvalidError,
    lmdb.PageNotFoundError,
    lmdb.VersionMismatchError,
)


def translated(error: lmdb.Error, path: Path) -> GcsError:
    """Return zray's error for one of LMDB's, saying what to do about it."""
    if isinstance(error, lmdb.MapFullError):
        return GcsUnavailableError(
            f"{path} has reached its map size; nothing of the last change was written. Delete "
            "what is not needed, or open it with more map_bytes"
        )
    if isinstance(error, _DAMAGED):
        return damaged(path, str(error))
    if isinstance(error, lmdb.PanicError):
        return GcsUnavailableError(
            f"{path} refuses everything since a write to it failed; make room on the disk and "
            "start the process that holds it again"
        )
    if isinstance(error, lmdb.ReadersFullError):
        return GcsUnavailableError(f"{path} has no free reader slot; try again")
    # LMDB reports a short write, such as that of a full disk, as a plain input/output error.
    if error.code in (errno.EIO, errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.ENOMEM):
        return GcsUnavailableError(
            f"{path} cannot be written ({error}); nothing of the last change was kept. Make room "
            "on the disk, or look for its faults in the kernel log, then try again"
        )
    return GcsError(f"{path}: {error}")


def damaged(path: Path, reason: str) -> GcsError:
    """Return the error for a directory whose content cannot be trusted."""
    return GcsError(
        f"{path} is damaged ({reason}). Move the directory away and start again without it, or "
        "put a copy of it in its place"
    )


class DirectoryLock:
    """Exclusive use of one directory by one process, until close() or its death.

    Raises:
        GcsUnavailableError: the directory cannot be made, or a process (this one included)
            holds it; the message names its pid.
    """

    def __init__(self, path: Path) -> None:
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(path / "owner.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise GcsUnavailableError(
                f"{path} cannot be used ({error.strerror}); give a directory that this user may "
                "write to, on a local disk"
            ) from error
        try:
            # flock and not fcntl locks: those would not keep this process from opening it twice.
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(fd, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(fd)
            raise GcsUnavailableError(
                f"{path} is in use by the process with pid {holder}; stop that process, or give "
                "this one a directory of its own"
            ) from error
        os.ftruncate(fd, 0)
        os.write(fd, b"%d\n" % os.getpid())
        self._fd: int | None = fd
        _open_locks.add(self)

    @property
    def inherited(self) -> bool:
        """Whether this process got the lock's object by fork and not by taking the lock."""
        return self._fd == -1

    def close(self) -> None:
        """Give the directory free."""
        if self._fd is not None and self._fd >= 0:
            os.close(self._fd)
        self._fd = None

    def abandon(self) -> None:
        """Drop the descriptor in a forked child; else the child would keep the lock alive."""
        if self._fd is not None and self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


# A hook for forked children can't be taken back, so there is one for the process, not one a lock.
_open_locks: weakref.WeakSet[DirectoryLock] = weakref.WeakSet()


def _abandon_all() -> None:
    for lock in list(_open_locks):
        lock.abandon()


os.register_at_fork(after_in_child=_abandon_all)


class LmdbEnvironment:
    """An open LMDB directory.

    Args:
        path: the directory; it is made if need be. Not on NFS.
        durability: "disk" waits for the disk at each commit. "process" does not: what was
            committed survives the death of this process at any moment, and a power loss only up
            to the last sync().
        map_bytes: bound of the file's size.
        databases_max: bound of the number of named tables.
        lock: the lock that already covers `path`; None: take one.

    Raises:
        GcsUnavailableError: another process holds the directory, or it cannot be written.
        GcsError: its files are damaged, or may be since the machine went down before a sync().
    """

    def __init__(
        self,
        path: Path,
        *,
        durability: Durability,
        map_bytes: int = MAP_BYTES,
        databases_max: int = 64,
        lock: DirectoryLock | None = None,
    ) -> None:
        self.path = path
        self._lock = lock or DirectoryLock(path)
        self._owns_lock = lock is None
        self._durability = durability
        try:
            path.mkdir(mode=0o700, exist_ok=True)
            self._refuse_after_power_loss()
            self._env = self._open(map_bytes, databases_max)
            if durability == "process":
                (path / _UNSYNCED).write_text(_boot_id())
        except BaseException as error:
            if self._owns_lock:
                self._lock.close()
            if isinstance(error, OSError):
                raise GcsUnavailableError(f"{path} cannot be used: {error}") from error
            raise
        self.closed = False

    def _refuse_after_power_loss(self) -> None:
        """Without fsync a power loss may damage LMDB in ways that it does not notice itself."""
        mark = self.path / _UNSYNCED
        if not mark.exists():
            return
        if mark.read_text() != _boot_id():
            raise damaged(
                self.path,
                "the machine went down before its last changes were on disk; state that must "
                "outlive the machine needs durability='disk'",
            )

    def _reserve_lock_file(self) -> None:
        """Make LMDB's table of readers as large as it will be, with memory or disk behind it.

        LMDB makes a hole and maps it: where the disk is full, to touch that is a SIGBUS.
        """
        descriptor = os.open(self.path / "lock.mdb", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(descriptor, 0, _LOCK_FILE_BYTES)
        finally:
            os.close(descriptor)

    def _open(self, map_bytes: int, databases_max: int) -> lmdb.Environment:
        self._reserve_lock_file()
        try:
            env = lmdb.open(
                str(self.path),
                map_size=map_bytes,
                max_dbs=databases_max,
                mode=0o600,
                sync=self._durability == "disk",
                # Format 1 on purpose: files of the newer format cannot be read by the older.
                lib_version=0,
            )
        except lmdb.Error as error:
            raise translated(error, self.path) from error
        file_bytes = (self.path / "data.mdb").stat().st_size
        if file_bytes < (env.info()["last_pgno"] + 1) * env.stat()["psize"]:
            # Reading beyond the end of the file through the map would end the process (SIGBUS).
            env.close()
            raise damaged(self.path, f"its file was cut to {file_bytes} bytes")
        env.reader_check()
        return env

    def environment(self) -> lmdb.Environment:
        """Return LMDB's handle.

        Raises:
            ForkedProcessError: this process is a forked child of the one that opened it.
            GcsUnavailableError: it is closed.
        """
        if self._lock.inherited:
            raise ForkedProcessError(
                f"{self.path} was opened by the parent of this process and is not usable in a "
                "forked child; ask the parent's node instead"
            )
        if self.closed:
            raise GcsUnavailableError(f"{self.path} is closed")
        return self._env

    @property
    def inherited(self) -> bool:
        """Whether this process is a forked child of the one that opened the directory."""
        return self._lock.inherited

    def database(self, name: str) -> lmdb._Database:
        """Return the handle of a named table, made if need be.

        Not to be called inside a write transaction: it runs one of its own.
        """
        try:
            return self.environment().open_db(name.encode())
        except lmdb.Error as error:
            raise translated(error, self.path) from error

    def find_database(self, name: str) -> lmdb._Database | None:
        """Return the handle of a named table, or None if there is no such table."""
        try:
            return self.environment().open_db(name.encode(), create=False)
        except lmdb.NotFoundError:
            return None
        except lmdb.Error as error:
            raise translated(error, self.path) from error

    def sync(self) -> None:
        """Wait until everything committed is on disk. May take long: not for a busy thread."""
        try:
            self.environment().sync(True)
        except lmdb.Error as error:
            raise translated(error, self.path) from error

    def close(self, *, sync: bool = True) -> None:
        """Close and give the directory free. Closing twice is no error.

        Args:
            sync: wait for the disk first. Without it a directory with durability="process" opens
                again only while the machine stays up.
        """
        if self.closed or self.inherited:
            return
        if sync:
            self.sync()
        self.closed = True
        self._env.close()
        if sync:
            (self.path / _UNSYNCED).unlink(missing_ok=True)
        if self._owns_lock:
            self._lock.close()


def _boot_id() -> str:
    """Return what changes with every start of the machine; the same text where none is known."""
    return _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else "unknown"
