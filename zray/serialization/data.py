"""Values that are data and nothing else: what may come from somebody who may not ship code.

What    A blob of codec 4: MessagePack of plain values, with numpy's arrays as raw buffers beside
        it. Reading one builds None, bool, int, float, complex, str, bytes (of a bytearray too),
        list, tuple, dict, set, frozenset, arrays and scalars of numpy's plain dtypes, whatever
        the bytes are: no class is looked up, no function is called by a name in them.
Caller  zray/gateway.py, zray/serialization/blob.py.
Never   pickles or unpickles; takes a subclass for its base.
Spec    docs/reference/protocol.md, "Blob"; MessagePack.
"""

from __future__ import annotations

import re
import struct
import sys
from collections.abc import Callable, Sequence
from typing import Any, cast

import msgpack

from zray.errors import SerializationError
from zray.protocol.outcome import DATA_HEAD

ALIGNMENT_BYTES = 64
_HEADER = struct.Struct("<3sxIQ")
_TUPLE, _INTEGER, _COMPLEX, _SET, _FROZENSET, _ARRAY, _SCALAR = range(7)
_DTYPE = re.compile(r"[<>|=]?[biufcmMSU][0-9]*(\[[0-9a-z]+\])?")
_BUFFERS_MAX = 1 << 16
_DEPTH_MAX = 32
"""Tuples and sets within each other: every level takes 40 KB of the reader's stack, and a reader
that runs out of it dies without a word."""
_PLAIN = (
    "None, bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset and"
    " numpy arrays of numbers, strings and times"
)


# -- to bytes --------------------------------------------------------------------------------------


def encode_data(value: Any) -> bytes:
    """Return a value as a blob that holds data only.

    Raises:
        SerializationError: a part of it is none of the types that are data; the message names it.
    """
    buffers: list[bytes] = []
    inband = _pack(value, buffers, 0)
    head = _HEADER.pack(DATA_HEAD, len(buffers), len(inband)) + inband
    head += struct.pack(f"<{len(buffers)}Q", *map(len, buffers))
    parts, end = [head], len(head)
    for buffer in buffers:
        parts += (bytes(-end % ALIGNMENT_BYTES), buffer)
        end += -end % ALIGNMENT_BYTES + len(buffer)
    return b"".join(parts)


def _pack(value: Any, buffers: list[bytes], depth: int) -> bytes:
    if depth > _DEPTH_MAX:
        raise SerializationError(
            f"a gateway sends data only, and tuples and sets in each other {_DEPTH_MAX} times at"
            " most: make it flatter, or use lists"
        )

    def other(part: Any) -> Any:
        return _extension(part, buffers, depth + 1)

    try:
        # Strict: a tuple is no list, and an instance of a subclass is not its base.
        packed = cast("bytes", msgpack.packb(value, default=other, strict_types=True))
    except SerializationError:
        raise
    except (ValueError, OverflowError, RecursionError, TypeError) as error:
        raise SerializationError(
            f"a gateway sends data only, and this cannot be: {error}"
        ) from None
    return packed


def _extension(part: Any, buffers: list[bytes], depth: int) -> Any:
    kind = type(part)
    if kind is tuple:
        return msgpack.ExtType(_TUPLE, _pack(list(part), buffers, depth))
    if kind is int:  # Beyond 64 bits.
        return msgpack.ExtType(
            _INTEGER, part.to_bytes(part.bit_length() // 8 + 1, "big", signed=True)
        )
    if kind is complex:
        return msgpack.ExtType(_COMPLEX, struct.pack("<dd", part.real, part.imag))
    if kind is set or kind is frozenset:
        packed = _pack(list(part), buffers, depth)
        return msgpack.ExtType(_SET if kind is set else _FROZENSET, packed)
    numpy = sys.modules.get("numpy")
    if numpy is not None and (kind is numpy.ndarray or isinstance(part, numpy.generic)):
        return _array(part, kind is numpy.ndarray, buffers)
    raise SerializationError(
        f"a gateway sends data only: {kind.__module__}.{kind.__qualname__} is none of {_PLAIN}."
        " Send what it is made of, and make the object where it is used"
    )


def _array(part: Any, is_array: bool, buffers: list[bytes]) -> Any:
    import numpy as np

    array = np.asarray(part)
    name = array.dtype.str
    if array.dtype.hasobject or array.dtype.fields is not None or not _DTYPE.fullmatch(name):
        raise SerializationError(
            f"a gateway sends data only: an array of dtype {array.dtype} has more in it than plain"
            " numbers, strings and times"
        )
    if len(buffers) >= _BUFFERS_MAX:
        raise SerializationError(f"a value with more than {_BUFFERS_MAX} arrays: stack them")
    buffers.append(array.tobytes())
    fields = [name, list(array.shape), len(buffers) - 1]
    return msgpack.ExtType(_ARRAY if is_array else _SCALAR, msgpack.packb(fields))


# -- from bytes ------------------------------------------------------------------------------------


def decode_data(inband: memoryview, buffers: Sequence[memoryview], *, writable: bool) -> Any:
    """Return the value of the parts of a blob of this codec.

    Args:
        inband: MessagePack.
        buffers: those of its arrays.
        writable: whether arrays get memory of their own.

    Raises ValueError, TypeError and what msgpack raises where the bytes are malformed.
    """

    depth = 0

    def read(packed: bytes | memoryview) -> Any:
        return msgpack.unpackb(packed, ext_hook=extension, strict_map_key=False, use_list=True)

    def extension(code: int, packed: bytes) -> Any:
        if code in (_ARRAY, _SCALAR):
            array = _rebuilt(read(packed), buffers)
            if code == _SCALAR:
                return array[()]
            return array.copy() if writable else array
        maker = _MAKERS.get(code)
        if maker is None:
            raise ValueError(f"an extension of the unknown kind {code}")
        return maker(nested(packed) if code in _NESTED else packed)

    def nested(packed: bytes) -> Any:
        nonlocal depth
        if depth >= _DEPTH_MAX:
            raise ValueError(f"tuples and sets in each other more than {_DEPTH_MAX} times")
        depth += 1
        try:
            return read(packed)
        finally:
            depth -= 1

    return read(inband)


def _rebuilt(fields: Any, buffers: Sequence[memoryview]) -> Any:
    import numpy as np

    name, shape, index = fields
    if type(name) is not str or not _DTYPE.fullmatch(name):
        raise ValueError(f"{name!r} is no dtype of plain data")
    if type(index) is not int or not 0 <= index < len(buffers):
        raise ValueError("an array without its buffer")
    if type(shape) is not list or not all(type(each) is int and each >= 0 for each in shape):
        raise ValueError("an array without a shape")
    dtype = np.dtype(name)
    if dtype.hasobject:
        raise ValueError(f"{name!r} is no dtype of plain data")
    return np.ndarray(tuple(shape), dtype, buffers[index])


def _complex(packed: bytes) -> complex:
    return complex(*struct.unpack("<dd", packed))


def _integer(packed: bytes) -> int:
    return int.from_bytes(packed, "big", signed=True)


_NESTED = frozenset((_TUPLE, _SET, _FROZENSET))
_MAKERS: dict[int, Callable[[Any], Any]] = {
    _TUPLE: tuple,
    _INTEGER: _integer,
    _COMPLEX: _complex,
    _SET: set,
    _FROZENSET: frozenset,
}
