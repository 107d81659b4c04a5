"""The node's shared memory segment.

What    One memory file of the store's whole capacity, sparse and sealed against shrinking, made by
        the node and passed to its processes as two descriptors. Producers write through a
        writable mapping, readers see a read-only one: a write to a shared array is an error at the
        writer, never a changed value at another reader. readable() tells when the last array over
        an extent is gone.
Caller  zray/objects.py (attach), brokers/store.py (create).
Never   hands out memory: brokers/allocator.py does. Never touches a page that was not committed,
        because the lack of memory would then be a SIGBUS instead of an error.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import mmap
import os
import tempfile
import threading
import weakref
from collections.abc import Callable
from typing import Any, Protocol, cast

from zray.errors import ForkedProcessError, ObjectStoreFullError

PAGE_BYTES = 4096
_POPULATE_WRITE = 23
"""MADV_POPULATE_WRITE, which the mmap module has no name for."""
_TOUCHED_MAX = 10_000
_PREFAULT_STEP_BYTES = 4 << 20
"""One system call of the prefault thread: 1 ms, so that commits of others get their turn."""

_NO_SPACE = (errno.ENOSPC, errno.ENOMEM, errno.EDQUOT, errno.EFBIG)
_FALLOC_KEEP_SIZE_PUNCH_HOLE = 0x01 | 0x02


_CAPACITY_SHARE = 0.3
"""Of memory, as in Ray. The rest is for the heaps of workers and for the page cache of spilling."""
_CAPACITY_BYTES_MIN = 64 << 20
_CAPACITY_BYTES_MAX = 200 << 30


def default_capacity_bytes(memory_bytes: int) -> int:
    """Return the size of a store that nobody gave a size: 30 % of memory, 64 MiB to 200 GiB.

    Args:
        memory_bytes: what this node may use, as zray.detect.detect_memory_bytes tells it.
    """
    share = int(memory_bytes * _CAPACITY_SHARE)
    bounded = min(max(share, _CAPACITY_BYTES_MIN), _CAPACITY_BYTES_MAX)
    return bounded // PAGE_BYTES * PAGE_BYTES


class _Root(Protocol):
    """A numpy array of bytes over an extent."""

    nbytes: int


class _Watch(weakref.ref[_Root]):
    """A weak reference to the root of a view, with what to do when the view is gone."""

    __slots__ = ("key", "on_release")
    key: int
    on_release: Callable[[], Any]


class Segment:
    """The store's memory in this process. Use create() in the node and attach() elsewhere."""

    def __init__(self, rw_fd: int, ro_fd: int, capacity_bytes: int) -> None:
        """Keep the descriptors; nothing is mapped before it is used."""
        self.capacity_bytes = capacity_bytes
        self._rw_fd = rw_fd
        self._ro_fd = ro_fd
        self._lock = threading.Lock()
        self._writable: memoryview | None = None
        self._mapping: mmap.mmap
        """What _writable is a view of."""
        self._touched: dict[int, int] = {}
        """Extents written by this process, whose pages are in its tables: offset to bytes."""
        self._readable: mmap.mmap | None = None
        self._frombuffer: Callable[..., Any]
        # Keyed by a number: weak references to arrays cannot be hashed.
        self._watches: dict[int, _Watch] = {}
        self._keys = itertools.count()  # next() is one step under the GIL; += 1 is not.
        self._forked = False
        self._closed = False
        self._prefault_stop = threading.Event()
        self._prefault_thread: threading.Thread | None = None
        _segments.add(self)

    @classmethod
    def create(cls, capacity_bytes: int) -> Segment:
        """Make the memory file. It takes no memory until extents are committed.

        Args:
            capacity_bytes: size of the store, rounded up to whole pages.

        Raises:
            ObjectStoreFullError: the system refuses a file of this size.
        """
        capacity_bytes = -(-capacity_bytes // PAGE_BYTES) * PAGE_BYTES
        fd = memory_file()
        try:
            os.ftruncate(fd, capacity_bytes)
            _seal(fd)
            return cls(fd, reopen_read_only(fd), capacity_bytes)
        except OSError as error:
            os.close(fd)
            raise _full(error, capacity_bytes, capacity_bytes) from error

    @classmethod
    def attach(cls, rw_fd: int, ro_fd: int, capacity_bytes: int) -> Segment:
        """Use the segment of the node through the descriptors it passed; close() closes them."""
        return cls(rw_fd, ro_fd, capacity_bytes)

    def fds(self) -> tuple[int, int]:
        """Return the descriptors (writable, read-only), to be passed on and not to be closed."""
        return self._rw_fd, self._ro_fd

    # -- access ------------------------------------------------------------------------------

    def writable(self, offset: int, nbytes: int) -> memoryview:
        """Return the extent's bytes for writing.

        Raises:
            ForkedProcessError: this process was forked from the one that opened the segment.
        """
        if self._forked:
            raise ForkedProcessError(
                "the object store belongs to the process that forked this one: call zray.init in "
                "the child before it uses zray"
            )
        view = self._writable
        if view is None:
            view = self._map_writable()
        if self._touched.get(offset, 0) < nbytes:
            self._touch(offset, nbytes)
        return view[offset : offset + nbytes]

    def _touch(self, offset: int, nbytes: int) -> None:
        """Enter an extent's pages into this process's tables at once: half the cost of faults."""
        if len(self._touched) >= _TOUCHED_MAX:
            self._touched.clear()
        self._touched[offset] = nbytes
        start = offset - offset % PAGE_BYTES
        with contextlib.suppress(OSError):  # Not before Linux 5.14: the faults come one by one.
            self._mapping.madvise(_POPULATE_WRITE, start, offset + nbytes - start)

    def readable(
        self, offset: int, nbytes: int, on_release: Callable[[], Any] | None = None
    ) -> memoryview:
        """Return the extent's bytes, read-only.

        Args:
            offset: where the object begins, in bytes.
            nbytes: its length.
            on_release: called once, when the last array or view derived from the result is gone.
                It runs in whichever thread drops it, also in the midst of a garbage collection:
                it may append to a deque, and must not take a lock or call zray. In a child made
                by os.fork and at the end of the interpreter it is not called: there the end of
                the process tells the node.
        """
        mapped = self._readable
        if mapped is None:
            mapped = self._map_readable()
        if not nbytes:
            raise ValueError("an extent of no bytes has no last view: it cannot be read")
        root = self._frombuffer(mapped, "u1", nbytes, offset)
        if on_release is not None and not self._forked:
            watch = _Watch(root, self._released)
            watch.key = next(self._keys)
            watch.on_release = on_release
            self._watches[watch.key] = watch
        return memoryview(root)

    @property
    def view_count(self) -> int:
        """Views handed out by readable() with an on_release that are still alive."""
        return len(self._watches)

    def _released(self, dead: weakref.ref[_Root]) -> None:
        watch = cast(_Watch, dead)
        if self._watches.pop(watch.key, None) is not None:
            watch.on_release()

    def _map_writable(self) -> memoryview:
        with self._lock:
            if self._writable is None:
                self._require_open()
                self._mapping = mmap.mmap(self._rw_fd, self.capacity_bytes)
                self._writable = memoryview(self._mapping)
            return self._writable

    def _map_readable(self) -> mmap.mmap:
        # Imported with the first mapping: most workers never read shared memory.
        import numpy as np

        self._frombuffer = np.frombuffer
        with self._lock:
            if self._readable is None:
                self._require_open()
                self._readable = mmap.mmap(
                    self._ro_fd, self.capacity_bytes, mmap.MAP_SHARED, mmap.PROT_READ
                )
            return self._readable

    def _require_open(self) -> None:
        if self._closed:
            raise ValueError("the segment is closed")

    # -- pages -------------------------------------------------------------------------------

    def commit(self, offset: int, nbytes: int) -> None:
        """Make sure that the extent has memory behind it, before its first use.

        Takes 0.8 us a page of 4 KiB for new pages, 0.1 us for those that exist; lets go of the GIL.

        Raises:
            ObjectStoreFullError: the machine or its cgroup has no memory left.
        """
        try:
            os.posix_fallocate(self._rw_fd, offset, nbytes)
        except OSError as error:
            raise _full(error, nbytes, self.capacity_bytes) from error

    def holes(self, offset: int, nbytes: int) -> list[tuple[int, int]]:
        """Return the parts (offset, bytes) of an extent that have no memory behind them.

        They are left by a process that was killed, or found no memory, before its commit.
        """
        found: list[tuple[int, int]] = []
        at, end = offset, offset + nbytes
        try:
            while (at := os.lseek(self._rw_fd, at, os.SEEK_HOLE)) < end:
                try:
                    after = min(end, os.lseek(self._rw_fd, at, os.SEEK_DATA))
                except OSError as error:
                    if error.errno != errno.ENXIO:
                        raise
                    after = end  # Nothing but a hole up to the end of the file.
                found.append((at, after - at))
                at = after
        except (AttributeError, OSError):
            return [(offset, nbytes)]  # This system can't tell: to commit once more is cheap.
        return found

    def prefault(self, nbytes: int, on_progress: Callable[[int], Any] | None = None) -> None:
        """Commit the first `nbytes` of the segment in a thread of its own, step by step.

        New memory costs 1 GB/s, used memory 13 GB/s: a node does this when it has nothing better
        to do. Ends early, without an error, where memory runs out, or at stop_prefault().

        Args:
            nbytes: how much, from offset 0 on.
            on_progress: called in that thread after each step with the bytes committed so far.
        """
        if self._prefault_thread is not None:
            raise RuntimeError("prefault was called before; a segment is prefaulted once")
        end_bytes = min(nbytes, self.capacity_bytes)
        thread = threading.Thread(
            target=self._prefault, args=(end_bytes, on_progress), name="prefault", daemon=True
        )
        self._prefault_thread = thread
        thread.start()

    def _prefault(self, end_bytes: int, on_progress: Callable[[int], Any] | None) -> None:
        done = 0
        while done < end_bytes and not self._prefault_stop.is_set():
            step = min(_PREFAULT_STEP_BYTES, end_bytes - done)
            try:
                # posix_fallocate and not madvise(POPULATE_WRITE): it takes a third of the time
                # and spares this process the page tables of memory it never writes to.
                os.posix_fallocate(self._rw_fd, done, step)
            except OSError as error:
                if error.errno in _NO_SPACE:
                    return  # A head start, no promise: commit() reports what matters.
                raise
            done += step
            if on_progress is not None:
                on_progress(done)

    def stop_prefault(self) -> None:
        """End the prefault thread and wait for its last step, a millisecond or so."""
        self._prefault_stop.set()
        thread = self._prefault_thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def punch(self, offset: int, nbytes: int) -> None:
        """Give an extent's memory back to the system; it reads as zeros and is no longer committed.

        Raises:
            OSError: the file system cannot do it.
        """
        import ctypes

        fallocate = _libc().fallocate
        arguments = (ctypes.c_int64(offset), ctypes.c_int64(nbytes))
        if fallocate(self._rw_fd, _FALLOC_KEEP_SIZE_PUNCH_HOLE, *arguments):
            code = ctypes.get_errno()
            raise OSError(code, f"cannot punch {nbytes} bytes at {offset}: {os.strerror(code)}")

    # -- end ---------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the descriptors and forget the mappings; on_release is not called any more.

        Views that are alive keep their memory mapped and valid until they are gone.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self.stop_prefault()
        self._watches.clear()
        # Dropped and not closed: closing a mapping with live views is an error, and the last
        # view unmaps it anyway.
        self._writable = None
        self.__dict__.pop("_mapping", None)
        self._readable = None
        os.close(self._rw_fd)
        os.close(self._ro_fd)

    def _after_fork(self) -> None:
        """In a forked child: read on, but write nothing and report nothing for the parent."""
        self._forked = True
        self._watches.clear()
        self._lock = threading.Lock()
        self._prefault_thread = None


_segments: weakref.WeakSet[Segment] = weakref.WeakSet()


def _mark_forked() -> None:
    for segment in list(_segments):
        segment._after_fork()


os.register_at_fork(after_in_child=_mark_forked)


def memory_file() -> int:
    """A file in memory without a name, so that nothing is left behind by any death."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("zray-store", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with tempfile.TemporaryFile(prefix="zray-store-") as file:
        return os.dup(file.fileno())


def _seal(fd: int) -> None:
    """Forbid every process to change the size: a mapping beyond the end is a SIGBUS."""
    if hasattr(os, "memfd_create"):
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)


def reopen_read_only(fd: int) -> int:
    """A descriptor that cannot be mapped writable, where /proc can make one."""
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return os.dup(fd)  # The mapping itself is still read-only.


def _libc() -> Any:
    """The C library; ctypes lets go of the GIL around its calls."""
    import ctypes

    return ctypes.CDLL(None, use_errno=True)


def _full(error: OSError, wanted_bytes: int, capacity_bytes: int) -> Exception:
    """Turn a lack of memory into our error; leave any other as it is."""
    if error.errno not in _NO_SPACE:
        return error
    return ObjectStoreFullError(
        f"the machine or its cgroup has no {wanted_bytes} bytes of memory left for the object "
        "store: start the node with a smaller object_store_memory, or give it more memory",
        wanted_bytes=wanted_bytes,
        capacity_bytes=capacity_bytes,
    )
