"""Spill files: objects that have no room in shared memory, on disk.

What    One file for each object, holding exactly its blob, so that it can be mapped and decoded in
        place or sent on in ranges. The crc32 of the bytes is kept by who holds the SpilledFile and
        checked when they come back. The directory belongs to one node and one run of it: what an
        earlier run left there is removed at the start, all of it at close().
Caller  brokers/store.py, in its own thread: writing 1 GB takes half a second.
Never   holds the GIL over a copy or a checksum; leaves half a file behind.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import shutil
import tempfile
import threading
import zlib
from dataclasses import dataclass

from zray.errors import ObjectLostError, OutOfDiskError

_STEP_BYTES = 8 << 20
"""Bytes of one system call and one checksum: the second reads from the cache what the first had."""

_SUFFIX = ".blob"
_FOLDER_PREFIX = "zray-spill-"
_LOCK_NAME = "lock"
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True)
class SpilledFile:
    """One object on disk.

    Attributes:
        path: its file.
        nbytes: length of the blob and of the file.
        crc32: checksum of the blob.
        object_id: 16 bytes.
    """

    path: str
    nbytes: int
    crc32: int
    object_id: bytes


class SpillStore:
    """The spill directory of one node."""

    def __init__(
        self, directory: str, capacity_bytes: int | None = None, *, shared: bool = False
    ) -> None:
        """Take the directory over.

        Args:
            directory: made with mode 0700 if it is missing; spill files found in it are removed.
            capacity_bytes: bound for the sum of all files; None leaves the disk as the only bound.
            shared: a user named the directory, and other nodes and files may be in it: keep to a
                folder of our own in it, and remove those whose nodes are dead.

        Raises:
            OSError: the directory cannot be made or written.
        """
        self._lock_fd = -1
        if shared:
            directory, self._lock_fd = _claim_folder(directory)
        self.directory = directory
        self.capacity_bytes = capacity_bytes
        self._files: dict[bytes, SpilledFile] = {}
        self._used_bytes = 0
        self._lock = threading.Lock()  # The node deletes while its spill thread writes.
        os.makedirs(directory, mode=0o700, exist_ok=True)
        for name in os.listdir(directory):
            if name.endswith(_SUFFIX):
                os.unlink(os.path.join(directory, name))

    @property
    def used_bytes(self) -> int:
        """Sum of the lengths of all files."""
        return self._used_bytes

    def write(self, object_id: bytes, view: memoryview) -> SpilledFile:
        """Write one object; either all of it is on disk afterwards, or nothing.

        The file is not synced: it has no meaning after a crash of the node.

        Args:
            object_id: 16 bytes, not spilled at present.
            view: the blob, flat bytes.

        Raises:
            OutOfDiskError: the disk is full, or capacity_bytes would be exceeded.
            ValueError: the object is spilled already.
        """
        if object_id in self._files:
            raise ValueError(f"object {object_id.hex()} is spilled already")
        nbytes = len(view)
        if self.capacity_bytes is not None and self._used_bytes + nbytes > self.capacity_bytes:
            raise self._out_of_disk(nbytes, f"its limit of {self.capacity_bytes} bytes is reached")
        path = os.path.join(self.directory, object_id.hex() + _SUFFIX)
        try:
            crc32 = _write_file(path, view)
        except BaseException as error:
            with contextlib.suppress(FileNotFoundError):  # It may not have come to a file.
                os.unlink(path)
            if isinstance(error, OSError):
                full = error.errno in _NO_SPACE
                raise self._out_of_disk(
                    nbytes, "the disk is full" if full else str(error)
                ) from error
            raise
        file = SpilledFile(path, nbytes, crc32, object_id)
        with self._lock:
            self._files[object_id] = file
            self._used_bytes += nbytes
        return file

    def read_into(self, file: SpilledFile, dest: memoryview) -> None:
        """Read an object back.

        Args:
            file: what write() returned.
            dest: writable flat view of exactly file.nbytes bytes; garbage after an error.

        Raises:
            ObjectLostError: the file is gone, short, or not what was written.
        """
        fd = self.open_readonly(file)
        crc32 = done = 0
        try:
            while done < file.nbytes:
                step = dest[done : done + _STEP_BYTES]
                count = os.preadv(fd, [step], done)
                if not count:
                    raise _lost(file, f"it ends after {done} of {file.nbytes} bytes")
                crc32 = zlib.crc32(step[:count], crc32)
                done += count
        except OSError as error:
            raise _lost(file, str(error)) from error
        finally:
            os.close(fd)
        if crc32 != file.crc32:
            raise _lost(file, "its checksum does not match")

    def open_readonly(self, file: SpilledFile) -> int:
        """Return a descriptor of the file, for the caller to close; it survives delete().

        Raises:
            ObjectLostError: the file is gone.
        """
        try:
            return os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise _lost(file, str(error)) from error

    def map_readonly(self, file: SpilledFile, *, verify: bool = True) -> memoryview:
        """Return the blob as a view of the file's pages; it stays valid after delete().

        Args:
            file: what write() returned.
            verify: read all of it once to check its sum, at 3 GB/s.

        Raises:
            ObjectLostError: the file is gone, short, or not what was written.
        """
        fd = self.open_readonly(file)
        try:
            if os.fstat(fd).st_size < file.nbytes:
                raise _lost(file, "it is too short")
            if not file.nbytes:
                return memoryview(b"")
            view = memoryview(mmap.mmap(fd, file.nbytes, mmap.MAP_SHARED, mmap.PROT_READ))
        finally:
            os.close(fd)
        if verify and _crc32_of(view) != file.crc32:
            raise _lost(file, "its checksum does not match")
        return view

    def delete(self, file: SpilledFile) -> None:
        """Remove one file; do nothing where it was removed before."""
        with self._lock:
            if self._files.pop(file.object_id, None) is None:
                return
            self._used_bytes -= file.nbytes
        with contextlib.suppress(FileNotFoundError):  # Someone tidied up behind our back.
            os.unlink(file.path)

    def close(self) -> None:
        """Remove all files, and the directory if it is empty then; open maps stay valid."""
        for file in list(self._files.values()):
            with contextlib.suppress(OSError):  # Litter of a node that ends: the next removes it.
                self.delete(file)
        with contextlib.suppress(OSError):
            if self._lock_fd >= 0:
                os.unlink(os.path.join(self.directory, _LOCK_NAME))
                os.close(self._lock_fd)
            os.rmdir(self.directory)

    def _out_of_disk(self, wanted_bytes: int, reason: str) -> OutOfDiskError:
        return OutOfDiskError(
            f"an object of {wanted_bytes} bytes cannot be spilled to {self.directory}: {reason}. "
            "Free disk space, name another spill directory, or drop references",
            wanted_bytes=wanted_bytes,
            capacity_bytes=self.capacity_bytes or 0,
        )


def _claim_folder(parent: str) -> tuple[str, int]:
    """Make a folder that lives as long as this process; remove those that outlived theirs."""
    os.makedirs(parent, mode=0o700, exist_ok=True)
    for name in os.listdir(parent):
        if name.startswith(_FOLDER_PREFIX):
            _remove_if_dead(os.path.join(parent, name))
    folder = tempfile.mkdtemp(prefix=_FOLDER_PREFIX, dir=parent)
    lock_fd = os.open(
        os.path.join(folder, _LOCK_NAME), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600
    )
    fcntl.flock(lock_fd, fcntl.LOCK_EX)
    return folder, lock_fd


def _remove_if_dead(folder: str) -> None:
    try:
        lock_fd = os.open(os.path.join(folder, _LOCK_NAME), os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return  # Another user's, or a node is about to make its lock.
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        return
    finally:
        os.close(lock_fd)


def _write_file(path: str, view: memoryview) -> int:
    """Write a new file and return the crc32 of its bytes."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        if len(view):
            # All or nothing before the first byte: a full disk is found out at once.
            os.posix_fallocate(fd, 0, len(view))
        crc32 = done = 0
        while done < len(view):
            step = view[done : done + _STEP_BYTES]
            count = os.pwrite(fd, step, done)
            crc32 = zlib.crc32(step[:count], crc32)
            done += count
        return crc32
    finally:
        os.close(fd)


def _crc32_of(view: memoryview) -> int:
    crc32 = 0
    for start in range(0, len(view), _STEP_BYTES):
        crc32 = zlib.crc32(view[start : start + _STEP_BYTES], crc32)
    return crc32


def _lost(file: SpilledFile, reason: str) -> ObjectLostError:
    return ObjectLostError(
        f"object {file.object_id.hex()} was spilled to {file.path} and cannot be read back: "
        f"{reason}. Nothing but its node may touch the spill directory",
        object_id=file.object_id.hex(),
    )
