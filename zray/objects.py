"""Values of this process: inline bytes, or extents of the node's shared memory.

What    put() keeps small values as bytes; larger ones are written once into an extent leased
        from the node, and stay private to this process (no message at all) until their
        reference escapes or the node asks. Extents of dropped private objects are kept warm
        for the next put: first touch of memory costs 1 GB/s, reuse 13 GB/s.
Caller  zray/client.py, zray/api.py, actors/executor.py.
Never   allocates memory itself: the node's allocator is the only one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from zray import errors
from zray.protocol import messages, outcome
from zray.protocol.ids import ObjectId, ProcessId, node_of
from zray.protocol.limits import INLINE_BYTES_MAX
from zray.serialization import blob
from zray.serialization.exceptions import decode_exception

if TYPE_CHECKING:
    from zray.client import Client
    from zray.session.references import Key
    from zray.store.segment import Segment

_PAGE_BYTES = 4096
_CACHE_SHARE = 4
"""At most a quarter of the store lies idle in one process's cache."""


class Objects:
    """The values that this process made or reads."""

    def __init__(self, client: Client, descriptors: tuple[int, int], capacity_bytes: int) -> None:
        self.client = client
        self.capacity_bytes = capacity_bytes
        self._descriptors = descriptors
        self._segment: Segment | None = None
        self._segment_lock = threading.Lock()
        self._cache: dict[int, list[int]] = {}
        self._cached_bytes = 0
        self._private: dict[int, tuple[int, int]] = {}
        self.await_key: Callable[[Key], None] = _nobody_waits
        """Set by the runtime: wait until the node has said where an object lies."""
        references = client.session.references
        references.free_private = self._free_private
        references.register_private = self._register_private

    @property
    def segment(self) -> Segment:
        """The node's segment, mapped at first use: most workers never need it (nor numpy)."""
        if self._segment is None:
            with self._segment_lock:
                if self._segment is None:
                    from zray.store.segment import Segment

                    self._segment = Segment.attach(*self._descriptors, self.capacity_bytes)
        return self._segment

    # -- making ------------------------------------------------------------------------------

    def put(self, value: Any) -> int:
        """Keep a value as a new private object; returns its number."""
        client = self.client
        session = client.session
        encoded = blob.encode(value)
        if encoded.refs:
            with client.lock:
                for ref in encoded.refs:
                    session.references.share(ref.key)
        if encoded.nbytes <= INLINE_BYTES_MAX:
            found = blob.to_bytes(encoded)
            with client.lock:
                number = session.tasks.take_numbers()
                session.results[number] = found
        else:
            offset, extent_bytes = self.write(encoded)
            with client.lock:
                number = session.tasks.take_numbers()
                self.adopt(number, offset, extent_bytes, encoded.nbytes)
        if encoded.refs:
            session.references.contained[number] = list(encoded.refs)
        if session.references.garbage:
            with client.lock:
                session.references.collect()
        return number

    def adopt(self, number: int, offset: int, extent_bytes: int, nbytes: int) -> None:
        """Name what write() wrote: a private object of this process from now on."""
        self.client.session.results[number] = outcome.stored(offset, nbytes)
        self._private[number] = (offset, extent_bytes)

    def write(self, encoded: blob.Encoded) -> tuple[int, int]:
        """Write a value into an extent of ours: (offset, bytes of the extent).

        Raises ObjectStoreFullError where neither spilling nor waiting made room.
        """
        offset, extent_bytes, fresh = self._allocate(encoded.nbytes)
        try:
            if fresh:
                self.segment.commit(offset, extent_bytes)
            blob.write_into(encoded, self.segment.writable(offset, encoded.nbytes))
        except BaseException:
            self.client.call(messages.FREE, [offset])
            raise
        return offset, extent_bytes

    def _allocate(self, nbytes: int) -> tuple[int, int, bool]:
        wanted = (nbytes + _PAGE_BYTES - 1) // _PAGE_BYTES * _PAGE_BYTES
        client = self.client
        with client.lock:
            if client.session.references.garbage:
                client.session.references.collect()
            offsets = self._cache.get(wanted)
            if offsets:
                self._cached_bytes -= wanted
                return offsets.pop(), wanted, False
        if wanted > self.capacity_bytes:
            raise errors.ObjectStoreFullError(
                f"an object of {nbytes} bytes does not fit into a store of"
                f" {self.capacity_bytes} bytes: start the node with a larger object_store_memory,"
                " or split the object"
            )
        offset, extent_bytes, fresh, spares = client.request(messages.ALLOCATE, wanted)
        if spares:
            with client.lock:
                self._cache.setdefault(extent_bytes, []).extend(spares)
                self._cached_bytes += extent_bytes * len(spares)
        return offset, extent_bytes, fresh

    def write_result(
        self, encoded: blob.Encoded, identity: ObjectId, holder: ProcessId, held: list[ObjectId]
    ) -> bytes:
        """Write a result for another process and register it; returns its outcome."""
        offset, _extent_bytes = self.write(encoded)
        self.client.call(messages.REGISTER, identity, offset, encoded.nbytes, held, holder)
        if node_of(holder) != self.client.node:
            return outcome.ELSEWHERE_OUTCOME  # Its node will know where.
        return outcome.stored(offset, encoded.nbytes)

    # -- reading -----------------------------------------------------------------------------

    def value(self, key: Key, found: bytes, *, writable: bool = False) -> Any:
        """Return the value of an outcome; raises it where it is an error."""
        tag = found[0]
        if tag == outcome.PICKLE or tag == outcome.BLOB:
            return blob.decode(found, writable=writable)
        if tag == outcome.ERROR:
            raise self.error(key, found)
        if tag == outcome.STORED or tag == outcome.ELSEWHERE:
            return self._read(key, found, writable)
        if tag == outcome.HOLDING:
            return self.value(key, outcome.held(found)[1], writable=writable)
        raise errors.InternalError(f"an outcome of kind {tag} reached a reader")

    def _read(self, key: Key, found: bytes, writable: bool) -> Any:
        client = self.client
        results = client.session.results
        while True:
            with client.lock:
                # Memory is short: the node may have asked for the extent since it was looked up.
                # From view_opened() on it is not given away any more.
                found = results.get(key, found)
                if found[0] == outcome.STORED:
                    gone = client.session.references.view_opened(key)
                    break
            if found[0] != outcome.ELSEWHERE:
                return self.value(key, found, writable=writable)
            self.await_key(key)
        offset, nbytes = outcome.stored_location(found)
        view = self.segment.readable(offset, nbytes, gone)
        return blob.decode(view, writable=writable)

    def error(self, key: Key, found: bytes) -> BaseException:
        """Return what an outcome that is an error raises."""
        error = decode_exception(found[1:])
        if isinstance(error, errors.ObjectStoreFullError):
            # There was no room to bring it back from disk; it is still there, for the next get.
            client = self.client
            with client.lock:
                results = client.session.results
                if client.session.references.is_shared(key) and results.get(key) is found:
                    results[key] = outcome.ELSEWHERE_OUTCOME
        return error

    # -- giving back ---------------------------------------------------------------------------

    def _free_private(self, number: int) -> None:
        place = self._private.pop(number, None)
        if place is None:
            return
        offset, extent_bytes = place
        if self._cached_bytes + extent_bytes > self.capacity_bytes // _CACHE_SHARE:
            self.client.session.outbox.call(messages.FREE, [offset])
            return
        self._cache.setdefault(extent_bytes, []).append(offset)
        self._cached_bytes += extent_bytes

    def _register_private(self, number: int, held: list[ObjectId]) -> None:
        offset, _extent_bytes = self._private.pop(number)
        session = self.client.session
        _offset, nbytes = outcome.stored_location(session.results[number])
        session.outbox.call(
            messages.REGISTER,
            session.references.id_of(number),
            offset,
            nbytes,
            held,
            self.client.process,
        )

    def give_back(self) -> None:
        """Memory is short at the node: free idle extents, hand over private objects."""
        client = self.client
        with client.lock:
            references = client.session.references
            references.collect()
            offsets = [offset for group in self._cache.values() for offset in group]
            self._cache.clear()
            self._cached_bytes = 0
            if offsets:
                client.session.outbox.call(messages.FREE, offsets)
            for number in list(self._private):
                references.share(number)
            # An empty FREE tells the node that this process has nothing more to give.
            client.session.outbox.call(messages.FREE, [])
        client.flush()

    def close(self) -> None:
        """Unmap; views that are alive keep their memory."""
        if self._segment is not None:
            self._segment.close()
        else:
            import os

            for descriptor in self._descriptors:
                os.close(descriptor)
        self._descriptors = (-1, -1)


def _nobody_waits(_key: Key) -> None:
    raise errors.InternalError("an object was read before the runtime could wait for it")
