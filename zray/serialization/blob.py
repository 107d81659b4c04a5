"""The blob: the one byte layout of a value, in memory, on the wire and in a spill file.

What    A value without large buffers is its pickle (protocol 5, first byte 0x80) and nothing else.
        Any other blob is
            0x01, version, codec, 0   u32 buffer count   u64 in-band length   (16 bytes)
            in-band bytes, u64 length of each buffer, buffers
        little-endian, each buffer at a multiple of 64 bytes from the blob's start.
        Codec 0 is a pickle with its out-of-band buffers, 1 a plain C-contiguous ndarray,
        2 bytes, 3 bytearray, 4 data without any pickle (data.py).
Caller  zray/client.py, actors/executor.py.
Never   copies a large buffer on the way in (Encoded refers to the value's own memory) or on the
        way out (arrays are read-only views of the blob), unless asked to.
Spec    docs/reference/protocol.md, "Blob".
"""

from __future__ import annotations

import io
import os
import pickle
import struct
import sys
import threading
from collections.abc import Callable
from threading import get_ident
from typing import Any, NamedTuple

from zray.errors import NotInitializedError, SerializationError, ZrayError

from . import collector
from .collector import open_collectors
from .reducers import custom_reducers, dump_by_value, dump_plain, learn_reducers

ALIGNMENT_BYTES = 64
_INBAND_BUFFER_BYTES_MAX = 4096
"""Buffers below this are copied into the pickle: a buffer of its own costs 1 us on each side."""
_DIRECT_BYTES_MIN = 64 * 1024
"""bytes from this size on skip the pickle; below, the pickle is a blob without a second copy."""
_COPYTO_BYTES_MIN = 64 * 1024
"""From this size on numpy copies, because it lets go of the GIL; below, a slice is faster."""
_TWO_THREADS_BYTES_MIN = 16 << 20
"""From this size on a second thread copies half: 1.4 times as fast on two cores; below 16 MiB the
data is in the processor's cache and the thread's start eats the gain."""

_TAG = 0x01  # zray/protocol/outcome.py tells a blob by it.
_VERSION = 1
_PICKLED, _NDARRAY, _BYTES, _BYTEARRAY, _DATA = range(5)
_PICKLE_TAG = 0x80
_GLOBAL_OPCODE = 0x93
"""STACK_GLOBAL: a pickle without this byte names no class and no function. Looking for one byte
takes 30 ns, looking for "__main__" in every pickle 110 ns."""

_HEADER = struct.Struct("<BBBxIQ")
_ONE_LENGTH = struct.Struct("<Q")
_ATOMS = frozenset((int, str, float, bool, type(None)))
_dumps, _loads = pickle.dumps, pickle.loads
_tuple = tuple.__new__


class Encoded(NamedTuple):
    """A value on its way into a blob. Its buffers are the value's own memory, not copies."""

    inband: bytes
    buffers: tuple[memoryview, ...]
    refs: tuple[Any, ...]
    nbytes: int
    codec: int = _PICKLED


def encode(value: Any) -> Encoded:
    """Pickle `value`; large contiguous buffers stay where they are.

    Classes and functions go by reference, those of __main__ and those without an importable name
    by value.

    Returns:
        Encoded: in-band bytes, flat uint8 views of the buffers, the ObjectRefs contained in order,
        and the size of the blob in bytes.

    Raises:
        SerializationError: the value cannot be pickled; the message names the member at fault.
    """
    kind = type(value)
    if kind in _ATOMS:
        inband = _dumps(value, 5)
        return _tuple(Encoded, (inband, (), (), len(inband), _PICKLED))
    if kind in _DIRECT:
        direct = _DIRECT[kind](value)
        if direct is not None:
            return direct
    if open_collectors or custom_reducers or _kept:
        return _encode_carefully(value)
    try:
        inband = _dumps(value, 5, buffer_callback=_keep_for_thread)
    except Exception:
        # It has a reference, goes by value, or cannot be pickled at all.
        _kept.pop(get_ident(), None)
        return _encode_carefully(value)
    except BaseException:
        _kept.pop(get_ident(), None)
        raise
    buffers = _kept.pop(get_ident(), None) if _kept else None
    if _GLOBAL_OPCODE in inband and (_is_misfit(inband) or _learn_numpy()):
        return _encode_carefully(value)
    if buffers:
        return _assemble(inband, buffers, ())
    return _tuple(Encoded, (inband, (), (), len(inband), _PICKLED))


def to_bytes(encoded: Encoded) -> bytes:
    """Return the blob as bytes; no copy where it has no buffers."""
    if not encoded.buffers:
        return encoded.inband
    head = _head(encoded)
    parts: list[bytes | memoryview] = [head]
    end = len(head)
    for buffer in encoded.buffers:
        parts.append(bytes(-end % ALIGNMENT_BYTES))
        parts.append(buffer)
        end += -end % ALIGNMENT_BYTES + len(buffer)
    return b"".join(parts)


def write_into(encoded: Encoded, dest: memoryview) -> None:
    """Write the blob to `dest`, a writable flat view of exactly `encoded.nbytes` bytes."""
    if not encoded.buffers:
        dest[:] = encoded.inband
        return
    head = _head(encoded)
    end = len(head)
    dest[:end] = head
    for buffer in encoded.buffers:
        start = end + -end % ALIGNMENT_BYTES
        end = start + len(buffer)
        copy_into(dest[start:end], buffer)


def copy_into(dest: memoryview, source: memoryview) -> None:
    """Copy flat bytes of equal length, without the GIL where it would be held for over 2 us."""
    if len(source) < _COPYTO_BYTES_MIN:
        dest[:] = source
        return
    import numpy as np

    to, frm = np.frombuffer(dest, np.uint8), np.frombuffer(source, np.uint8)
    if len(source) < _TWO_THREADS_BYTES_MIN or len(os.sched_getaffinity(0)) < 2:
        np.copyto(to, frm)
        return
    half = len(source) // 2
    helper = threading.Thread(target=np.copyto, args=(to[:half], frm[:half]))
    helper.start()
    np.copyto(to[half:], frm[half:])
    helper.join()


def decode(view: bytes | memoryview, *, writable: bool = False) -> Any:
    """Return the value of a blob.

    Args:
        view: the whole blob. Arrays in the value refer to it and keep it alive.
        writable: copy the buffers, so that arrays can be written to; else they are read-only.

    Raises:
        SerializationError: the bytes are no blob of this version, or the value cannot be unpickled
            here (a module is missing, say). zray's own errors pass as they are.
    """
    try:
        if view[0] == _PICKLE_TAG and not writable:
            return _loads(view)
        return _decode_parts(memoryview(view).toreadonly(), writable)
    except ZrayError:
        raise
    except Exception as error:
        raise SerializationError(
            f"a value could not be rebuilt in this process: {type(error).__name__}: {error}. "
            "Its classes and modules must be importable here as they were where it was pickled"
        ) from error


# ------------------------------------------------------------------------------------- encoding


_kept: dict[int, list[memoryview]] = {}
"""Thread ident -> large buffers of the value it is pickling. One callback for all values, because
one made for each would cost 0.15 us; a value inside another's __reduce__ goes the careful way."""


def _keep_for_thread(buffer: pickle.PickleBuffer) -> bool:
    """Send small buffers in-band, and keep large ones for the thread."""
    flat = buffer.raw()
    if len(flat) < _INBAND_BUFFER_BYTES_MAX:
        return True
    _kept.setdefault(get_ident(), []).append(flat)
    return False


def _keep_large(buffers: list[memoryview]) -> Callable[[pickle.PickleBuffer], bool]:
    """Make a callback that sends small buffers in-band and appends large ones to `buffers`."""

    def keep(buffer: pickle.PickleBuffer) -> bool:
        flat = buffer.raw()
        if len(flat) < _INBAND_BUFFER_BYTES_MAX:
            return True
        buffers.append(flat)
        return False

    return keep


def _is_misfit(inband: bytes) -> bool:
    """Tell whether a plain pickle has to be made anew in the careful way."""
    if b"__main__" in inband:  # The reader's __main__ is another program.
        return True
    return learn_reducers(inband)


def _encode_carefully(value: Any) -> Encoded:
    """Encode with a collector open and buffers kept: plainly if that will do, else by value."""
    if _learn_numpy() and type(value) in _DIRECT:
        return encode(value)
    buffers: list[memoryview] = []
    hidden = collector.start()
    try:
        inband = dump_plain(value, _keep_large(buffers))
        if not _is_misfit(inband):
            return _assemble(inband, buffers, tuple(open_collectors[get_ident()]))
    except Exception:
        inband = b""  # By value it may go.
    finally:
        collector.stop(hidden)
    buffers.clear()
    hidden = collector.start()
    try:
        inband = dump_by_value(value, _keep_large(buffers))
        return _assemble(inband, buffers, tuple(open_collectors[get_ident()]))
    except NotInitializedError:
        raise  # A reference of a session that has ended: not a matter of pickling.
    except Exception as error:
        raise _refusal(value, error) from error
    finally:
        collector.stop(hidden)


def _refusal(value: Any, error: Exception) -> SerializationError:
    """Say which member of `value` cannot be pickled and what to do about it."""
    from .inspect import culprits

    if isinstance(error, RecursionError) or isinstance(error.__cause__, RecursionError):
        return SerializationError(
            f"a value of type {type(value).__qualname__} is nested more deeply than pickle can "
            "follow: make it flatter, or raise sys.setrecursionlimit on both sides"
        )
    reason = f"{type(error).__name__}: {error}"
    paths = ", ".join(culprits(value, "value")) or "value"
    return SerializationError(
        f"a value of type {type(value).__qualname__} cannot be pickled ({reason}); at fault: "
        f"{paths}. Leave it out, create it where it is used, or give its class a __reduce__ or "
        "zray.util.register_serializer"
    )


def _assemble(
    inband: bytes, buffers: list[memoryview], refs: tuple[Any, ...], codec: int = _PICKLED
) -> Encoded:
    """Work out the size of the blob."""
    if not buffers:
        return Encoded(inband, (), refs, len(inband), codec)
    end = _HEADER.size + len(inband) + 8 * len(buffers)
    for buffer in buffers:
        end += -end % ALIGNMENT_BYTES + len(buffer)
    return Encoded(inband, tuple(buffers), refs, end, codec)


def _head(encoded: Encoded) -> bytes:
    """Everything before the first buffer, without padding."""
    inband, buffers = encoded.inband, encoded.buffers
    count = len(buffers)
    lengths = struct.pack(f"<{count}Q", *map(len, buffers))
    return _HEADER.pack(_TAG, _VERSION, encoded.codec, count, len(inband)) + inband + lengths


def _learn_numpy() -> bool:
    """Register the codec of arrays once numpy is there; True when that was now."""
    numpy = sys.modules.get("numpy")
    if numpy is None or numpy.ndarray in _DIRECT:
        return False
    _DIRECT[numpy.ndarray] = _encode_ndarray
    return True


def _encode_bytes(value: bytes) -> Encoded | None:
    if len(value) < _DIRECT_BYTES_MIN:
        return None
    return _assemble(b"", [memoryview(value)], (), _BYTES)


def _encode_bytearray(value: bytearray) -> Encoded | None:
    if len(value) < _DIRECT_BYTES_MIN:
        return None
    return _assemble(b"", [memoryview(value)], (), _BYTEARRAY)


def _encode_ndarray(value: Any) -> Encoded | None:
    """Encode a plain array 4 us faster than numpy pickles it; None where its rules are needed."""
    dtype = value.dtype
    name = _DTYPE_NAMES.get(dtype)
    if name is None:
        if len(_DTYPE_NAMES) >= _DTYPE_NAMES_MAX:  # Every width of string is a dtype.
            _DTYPE_NAMES.clear()
        name = _DTYPE_NAMES[dtype] = _dtype_name(dtype)
    # Equal dtypes may differ in metadata, which only numpy's own pickle keeps.
    if not name or not value.flags.c_contiguous or not value.nbytes or dtype.metadata:
        return None
    if dtype.kind in "mM":  # numpy lends no buffer of times.
        flat = memoryview(value.reshape(-1).view("u1"))
    else:
        flat = pickle.PickleBuffer(value).raw()
    return _assemble(_dumps((name, value.shape), 5), [flat], (), _NDARRAY)


def _dtype_name(dtype: Any) -> str:
    """Name a dtype that its string says all about; "" for structured, object and foreign ones."""
    import numpy as np

    if dtype.hasobject or dtype.kind not in "biufcmMSU":
        return ""
    name: str = dtype.str
    return name if np.dtype(name) == dtype and dtype.fields is None else ""


_DTYPE_NAMES_MAX = 1000
_DTYPE_NAMES: dict[Any, str] = {}
_DIRECT: dict[type[Any], Callable[[Any], Encoded | None]] = {
    bytes: _encode_bytes,
    bytearray: _encode_bytearray,
}
"""Types with a codec of their own. numpy.ndarray joins when the first one was met, so that
numpy is not imported on behalf of programs that have no use for it."""


# ------------------------------------------------------------------------------------- decoding


def _decode_parts(view: memoryview, writable: bool) -> Any:
    """Decode a blob with buffers, or any blob into writable arrays."""
    if view[0] == _PICKLE_TAG:
        return _WritableUnpickler(io.BytesIO(view)).load()
    tag, version, codec, count, inband_len = _HEADER.unpack_from(view)
    if tag != _TAG or version != _VERSION:
        raise SerializationError(
            f"these bytes are no blob of version {_VERSION} (they begin with {bytes(view[:2])!r}): "
            "all processes of a cluster must run the same release of zray"
        )
    end = _HEADER.size + inband_len
    inband = view[_HEADER.size : end]
    lengths = _ONE_LENGTH.unpack_from(view, end) if count == 1 else _lengths(view, end, count)
    end += 8 * count
    buffers: list[memoryview] = []
    for length in lengths:
        start = end + -end % ALIGNMENT_BYTES
        end = start + length
        buffers.append(view[start:end])
    if end > len(view):
        raise SerializationError(f"a blob of {end} bytes was cut off at {len(view)}")
    if codec == _DATA:
        from .data import decode_data

        return decode_data(inband, buffers, writable=writable)
    if codec == _BYTES:
        return bytes(buffers[0])
    if codec == _BYTEARRAY:
        return bytearray(buffers[0])
    if writable:
        buffers = [_copy_of(buffer) for buffer in buffers]
    if codec == _NDARRAY:
        return _rebuild_ndarray(inband, buffers[0])
    if codec != _PICKLED:
        raise SerializationError(f"a blob with the unknown codec {codec}")
    if writable:
        return _WritableUnpickler(io.BytesIO(inband), buffers=buffers).load()
    return _loads(inband, buffers=buffers)


def _lengths(view: memoryview, start: int, count: int) -> tuple[int, ...]:
    return struct.unpack_from(f"<{count}Q", view, start)


def _rebuild_ndarray(inband: memoryview, buffer: memoryview) -> Any:
    import numpy as np

    name, shape = _loads(inband)
    return np.ndarray(shape, name, buffer)


def _copy_of(buffer: memoryview) -> memoryview:
    import numpy as np

    # numpy copies without the GIL and into huge pages: twice as fast as bytearray(buffer).
    copy: Any = np.array(np.frombuffer(buffer, np.uint8))
    return memoryview(copy)


class _WritableUnpickler(pickle.Unpickler):
    """Unpickles arrays so that they can be written to, even those that were read-only before."""

    def find_class(self, module: str, name: str, /) -> Any:
        found = super().find_class(module, name)
        if name == "_frombuffer" and module.startswith("numpy."):
            return lambda *arguments: _writable(found(*arguments))
        return found


def _writable(array: Any) -> Any:
    return array if array.flags.writeable else array.copy(order="K")
