"""Data: what goes through comes back the same, and no bytes make a reader call anything."""

from __future__ import annotations

import enum
import pickle
import struct
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zray.errors import SerializationError
from zray.protocol.outcome import is_data
from zray.serialization import blob
from zray.serialization.data import encode_data


class Canary:
    """Whoever unpickles it sings."""

    sang = False

    def __reduce__(self) -> tuple[Any, ...]:
        return _sing, ()


def _sing() -> None:
    Canary.sang = True


ATOMS = (
    st.none() | st.booleans() | st.integers(-(1 << 100), 1 << 100) | st.text() | st.binary()
) | st.floats(allow_nan=False)
VALUES = st.recursive(
    ATOMS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text() | st.integers(0, 9), inner, max_size=4)
        | st.sets(st.integers() | st.text(), max_size=4)
        | st.frozensets(st.integers(), max_size=4)
        | st.complex_numbers(allow_nan=False)
    ),
    max_leaves=20,
)


@given(VALUES)
def test_values_come_back_with_their_types(value: Any) -> None:
    encoded = encode_data(value)
    assert is_data(encoded)
    found = blob.decode(encoded)
    assert found == value
    assert repr(type(found)) == repr(type(value))


@pytest.mark.parametrize("dtype", ["i1", "<u8", ">f4", "?", "c16", "S3", "U5", "M8[s]", "m8[ns]"])
@pytest.mark.parametrize("shape", [(), (0,), (3, 2), (2, 1, 2)])
def test_arrays_come_back_beside_what_holds_them(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.ones(shape, "i8").astype(dtype)
    found = blob.decode(encode_data({"a": (array, array.T)}))["a"]
    assert found[0].dtype == array.dtype
    np.testing.assert_array_equal(found[0], array)
    np.testing.assert_array_equal(found[1], array.T)
    assert not found[0].flags.writeable
    assert blob.decode(encode_data([array]), writable=True)[0].flags.writeable


def test_a_scalar_of_numpy_stays_one() -> None:
    found = blob.decode(encode_data(np.float32(1.5)))
    assert type(found) is np.float32
    assert found == 1.5


class Level(enum.IntEnum):
    """A subclass of what is data."""

    LOW = 1


@pytest.mark.parametrize(
    "value",
    [
        object(),
        [Canary()],
        {"a": {1: Level.LOW}},
        len,
        np.array([None]),
        np.zeros(2, [("x", "i4")]),
        ({Level.LOW},),
    ],
    ids=repr,
)
def test_what_is_no_data_is_refused_by_its_name(value: Any) -> None:
    with pytest.raises(SerializationError, match="a gateway sends data only"):
        encode_data(value)


def test_a_bytearray_comes_as_bytes() -> None:
    assert blob.decode(encode_data([bytearray(b"ab")])) == [b"ab"]


def test_what_refers_to_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(SerializationError):
        encode_data(endless)


def _blob(inband: bytes, *buffers: bytes) -> bytes:
    head = struct.pack("<BBBxIQ", 1, 1, 4, len(buffers), len(inband)) + inband
    head += struct.pack(f"<{len(buffers)}Q", *map(len, buffers))
    for buffer in buffers:
        head += bytes(-len(head) % 64) + buffer
    return head


def _array(*fields: Any) -> bytes:
    packed: bytes = msgpack.packb(msgpack.ExtType(5, msgpack.packb(fields)))
    return packed


@pytest.mark.parametrize(
    "malicious",
    [
        _blob(pickle.dumps(Canary())),
        _blob(msgpack.packb(msgpack.ExtType(99, pickle.dumps(Canary())))),
        _blob(_array("O", [1], 0), bytes(8)),
        _blob(_array("|O8", [1], 0), bytes(8)),
        _blob(_array("i4,O", [1], 0), bytes(64)),
        _blob(_array("f8", [1 << 40], 0), bytes(8)),
        _blob(_array("f8", [-1], 0), bytes(8)),
        _blob(_array("f8", [1], 1), bytes(8)),
        _blob(_array("f8", [1], -1), bytes(8)),
        _blob(_array("f8", ["a"], 0), bytes(8)),
        _blob(_array("f8"), bytes(8)),
        _blob(msgpack.packb(msgpack.ExtType(2, b"short"))),
        _blob(msgpack.packb(msgpack.ExtType(3, msgpack.packb([[1]])))),
        _blob(b"\x91" * 100_000),
        _blob(b""),
        _blob(b"\xdd\xff\xff\xff\xff"),
    ],
)
def test_no_bytes_of_data_make_a_reader_unpickle_or_crash(malicious: bytes) -> None:
    assert is_data(malicious)
    with pytest.raises(SerializationError):
        blob.decode(malicious)
    with pytest.raises(SerializationError):
        blob.decode(malicious, writable=True)
    assert not Canary.sang


def test_tuples_in_tuples_without_end_are_refused() -> None:
    nested = msgpack.packb(None)
    for _ in range(3000):
        nested = msgpack.packb(msgpack.ExtType(0, nested))
    with pytest.raises(SerializationError):
        blob.decode(_blob(nested))


@given(st.binary(max_size=200))
def test_random_bytes_are_a_value_or_an_error(inband: bytes) -> None:
    try:
        blob.decode(_blob(inband, bytes(64)))
    except SerializationError:
        return


@pytest.mark.parametrize(
    "value", [Canary(), 5, [1], b"x" * (1 << 17), bytearray(1 << 17), np.zeros(1 << 15), "text"]
)
def test_no_blob_of_the_other_codecs_looks_like_data(value: Any) -> None:
    assert not is_data(blob.to_bytes(blob.encode(value)))
