"""Blobs: every value comes back, large memory is not copied, refs are reported.

What    encode, to_bytes, write_into and decode against each other, over the types users send.
Never   starts a process.
"""

from __future__ import annotations

import pickle
import struct
import sys
import threading
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from zray.errors import SerializationError
from zray.serialization import blob, collector, reducers
from zray.serialization.reducers import deregister_serializer, register_serializer


class Ref:
    """Stands for ObjectRef: it notes itself when it is pickled."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[Any, ...]:
        collector.note(self)
        return Ref, (self.number,)


@pytest.fixture(autouse=True)
def _short_way() -> Iterator[None]:
    """Empty the table of reducers: what one test learns lengthens the way of the others."""
    yield
    reducers.custom_reducers.clear()


def through(value: Any, *, writable: bool = False) -> Any:
    """Send a value through a blob, written in both ways, which must agree."""
    encoded = blob.encode(value)
    data = blob.to_bytes(encoded)
    written = memoryview(bytearray(encoded.nbytes))
    blob.write_into(encoded, written)
    assert len(data) == encoded.nbytes
    assert _without_padding(bytes(written), encoded) == _without_padding(data, encoded)
    return blob.decode(data, writable=writable)


def _without_padding(data: bytes, encoded: blob.Encoded) -> bytes:
    """Padding is not written: it may hold anything."""
    if not encoded.buffers:
        return data
    kept = [data[: 16 + len(encoded.inband) + 8 * len(encoded.buffers)]]
    end = len(kept[0])
    for buffer in encoded.buffers:
        start = -(-end // 64) * 64
        end = start + len(buffer)
        kept.append(data[start:end])
    return b"".join(kept)


ATOMS: list[Any] = [None, True, 0, -(2**70), 1.5, "text", b"bytes", (), {}, [], 2**1000, "\udc80"]


@pytest.mark.parametrize("value", ATOMS, ids=repr)
def test_a_small_value_is_its_pickle_and_nothing_else(value: Any) -> None:
    encoded = blob.encode(value)
    assert blob.to_bytes(encoded) == pickle.dumps(value, 5)
    assert (encoded.buffers, encoded.refs) == ((), ())
    assert blob.decode(blob.to_bytes(encoded)) == value


def test_a_blob_with_buffers_has_the_layout_of_the_specification() -> None:
    first, second = np.arange(5000, dtype="<i8"), np.arange(1001, dtype="<f8")
    data = blob.to_bytes(blob.encode([first, second]))
    tag, version, codec, _pad, count, inband_len = struct.unpack_from("<BBBBIQ", data)
    assert (tag, version, codec, count) == (1, 1, 0, 2)
    lengths = struct.unpack_from("<2Q", data, 16 + inband_len)
    assert lengths == (first.nbytes, second.nbytes)
    start = -(-(16 + inband_len + 16) // 64) * 64
    assert data[start : start + first.nbytes] == first.tobytes()
    start = -(-(start + first.nbytes) // 64) * 64
    assert data[start:] == second.tobytes()


def test_the_memory_of_a_large_array_is_referred_to_and_not_copied() -> None:
    array = np.zeros(100_000)
    for value in (array, (array,), {"a": [array]}):
        encoded = blob.encode(value)
        assert [np.shares_memory(np.frombuffer(b, "u1"), array) for b in encoded.buffers] == [True]
    data = bytearray(100_000)
    assert np.shares_memory(
        np.frombuffer(blob.encode(data).buffers[0], "u1"), np.frombuffer(data, "u1")
    )


def test_a_copy_by_two_threads_is_whole() -> None:
    array = np.arange((20 << 20) + 5, dtype="u4")
    assert (through(array) == array).all()


def test_small_buffers_go_in_band() -> None:
    assert blob.encode([np.zeros(10) for _ in range(100)]).buffers == ()


def test_arrays_in_the_result_are_views_of_the_blob_and_read_only() -> None:
    for value in (np.arange(9000), [np.arange(9000)]):
        data = bytearray(blob.to_bytes(blob.encode(value)))
        back = blob.decode(memoryview(data))
        array = back if isinstance(back, np.ndarray) else back[0]
        assert not array.flags.writeable
        assert np.shares_memory(array, np.frombuffer(data, "u1"))
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_writable_copies_even_what_was_read_only_when_it_was_sent() -> None:
    locked = np.arange(9000)
    locked.flags.writeable = False
    small = np.arange(9)
    small.flags.writeable = False
    for value in ([locked, small], locked, small, {"a": np.arange(9000)}):
        data = blob.to_bytes(blob.encode(value))
        back: Any = blob.decode(data, writable=True)
        arrays = (
            [back]
            if isinstance(back, np.ndarray)
            else list(back.values() if isinstance(back, dict) else back)
        )
        for array in arrays:
            before = bytes(data)
            array[0] = 77
            assert bytes(data) == before
    fortran = np.asfortranarray(np.arange(9000).reshape(90, 100))
    fortran.flags.writeable = False
    again = through([fortran], writable=True)[0]
    assert again.flags.f_contiguous
    assert again.flags.writeable


STRUCTURED = np.zeros(700, dtype=[("a", "<i4"), ("b", "<f8")])
ARRAYS: dict[str, np.ndarray[Any, Any]] = {
    "zero dimensions": np.array(5.0),
    "empty": np.zeros((0, 7)),
    "fortran order": np.asfortranarray(np.arange(6000.0).reshape(60, 100)),
    "every second": np.arange(20_000)[::2],
    "backwards": np.arange(20_000)[::-1],
    "structured": STRUCTURED,
    "a field of structured": STRUCTURED["b"],
    "objects": np.array([1, "two", None] * 900, dtype=object),
    "times": np.arange(3000).astype("M8[ns]"),
    "durations": np.arange(3000).astype("m8[s]"),
    "big endian": np.arange(3000, dtype=">f8"),
    "text": np.array(["a", "bc"] * 3000),
    "bytes": np.array([b"a", b"bc"] * 3000),
    "half": np.arange(5000, dtype="f2"),
    "complex": np.arange(5000, dtype="c16"),
    "long double": np.arange(5000, dtype="g"),
    "bool": np.ones((100, 100), bool),
    "broadcast": np.broadcast_to(np.arange(100), (100, 100)),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_every_kind_of_array_comes_back(name: str) -> None:
    array = ARRAYS[name]
    for back in (through(array), through((array,))[0], through(array, writable=True)):
        assert back.dtype == array.dtype
        assert back.shape == array.shape
        assert (back == array).all()


def test_subclasses_and_metadata_of_arrays_survive() -> None:
    masked = np.ma.masked_less(np.arange(5000.0), 10)
    back = through(masked)
    assert isinstance(back, np.ma.MaskedArray)
    assert back.mask.sum() == 10
    assert type(through(np.arange(9000).view(np.recarray))) is np.recarray
    noted = np.zeros(9000, np.dtype("i4", metadata={"unit": "m"}))
    through(np.zeros(9000, "i4"))  # It has an equal dtype, whose name is remembered.
    assert through(noted).dtype.metadata == {"unit": "m"}


@given(hnp.arrays(dtype=hnp.scalar_dtypes(), shape=hnp.array_shapes(max_dims=4, max_side=20)))
def test_any_array_comes_back_bit_for_bit(array: np.ndarray[Any, Any]) -> None:
    back = through(array)
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()


leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(max_size=100)
    | st.sampled_from([b"x" * 70_000, bytearray(b"y" * 70_000), "z" * 99])
)
nested = st.recursive(
    leaves,
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=20,
)


@given(nested)
def test_any_nested_value_comes_back_with_its_types(value: Any) -> None:
    back = through(value)
    assert back == value
    assert repr(back) == repr(value)


@pytest.mark.parametrize("length", [0, 1, 65_535, 65_536, 200_000])
def test_bytes_stay_bytes_and_bytearrays_stay_bytearrays(length: int) -> None:
    for kind in (bytes, bytearray):
        value = kind(b"q" * length)
        assert through(value) == value
        assert type(through(value)) is kind


def test_dataframes_and_tables_come_back() -> None:
    pandas = pytest.importorskip("pandas")
    pyarrow = pytest.importorskip("pyarrow")
    frame = pandas.DataFrame({"a": np.arange(5000), "b": ["x", "y"] * 2500, "c": np.ones(5000)})
    pandas.testing.assert_frame_equal(through(frame), frame)
    table = pyarrow.table({"a": np.arange(5000), "b": ["x", None] * 2500})
    assert through(table).equals(table)
    assert blob.encode(table).buffers


def test_a_part_of_a_table_travels_without_the_rest() -> None:
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.table({"a": np.arange(300_000), "b": ["x", None, "y"] * 100_000})
    for part in (table.slice(5, 10), table.to_batches()[0].slice(5, 10)):
        assert blob.encode([part]).nbytes < 5000
        assert type(through([part])[0]) is type(part)
        assert through([part])[0].equals(part)
    assert blob.encode(table).nbytes > table.nbytes


def test_a_value_of_main_goes_by_value() -> None:
    module = types.ModuleType("__main__")
    exec("class Point:\n  def double(self): return 2 * self.x", vars(module))
    point = vars(module)["Point"]()
    point.x = 4
    main, sys.modules["__main__"] = sys.modules["__main__"], module
    try:
        data = blob.to_bytes(blob.encode([point]))
        del vars(module)["Point"]
        assert blob.decode(data)[0].double() == 8
    finally:
        sys.modules["__main__"] = main


def test_lambdas_and_closures_go_by_value() -> None:
    offset = 5
    assert through([lambda x: x + offset])[0](1) == 6


def test_refs_are_reported_in_order_wherever_they_are() -> None:
    first, second = Ref(1), Ref(2)
    assert blob.encode({"a": [first], "b": (second,)}).refs == (first, second)
    assert blob.encode([first, np.zeros(9000), lambda: 1, second]).refs == (first, second)
    assert blob.encode([1, 2]).refs == ()
    assert through([first])[0].number == 1


def test_a_value_encoded_inside_anothers_reduce_keeps_its_refs_to_itself() -> None:
    inner, outer = Ref(1), Ref(2)
    seen: list[blob.Encoded] = []

    class Puts:
        def __reduce__(self) -> tuple[Any, ...]:
            seen.append(blob.encode([inner, np.ones(9000)]))
            return int, (3,)

    encoded = blob.encode([np.zeros(9000), Puts(), outer, np.zeros(9001)])
    assert encoded.refs == (outer,)
    assert [len(buffer) for buffer in encoded.buffers] == [72_000, 72_008]
    assert seen
    assert all(one.refs == (inner,) and len(one.buffers) == 1 for one in seen)
    assert not collector.open_collectors


def test_threads_do_not_see_each_others_refs_and_buffers() -> None:
    wrong: list[object] = []

    def encode_many(number: int) -> None:
        for _ in range(200):
            ref = Ref(number)
            encoded = blob.encode([ref, np.zeros(1000 + number), np.zeros(2000 + number)])
            lengths = [len(buffer) // 8 for buffer in encoded.buffers]
            if encoded.refs != (ref,) or lengths != [1000 + number, 2000 + number]:
                wrong.append(encoded)

    threads = [threading.Thread(target=encode_many, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_what_cannot_be_pickled_is_named_by_its_path() -> None:
    with pytest.raises(SerializationError, match=r"value\['a'\]\[1\]") as caught:
        blob.encode({"a": [1, threading.Lock()]})
    assert "lock" in str(caught.value)
    assert not collector.open_collectors


def test_a_value_nested_too_deeply_is_an_error_and_not_a_crash() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(SerializationError, match="nested"):
        blob.encode(deep)
    while deep:  # Freeing it from the outside in spares the interpreter the recursion.
        deep = deep[0]


def test_an_interrupt_while_pickling_passes_and_leaves_nothing_behind() -> None:
    class Interrupts:
        def __reduce__(self) -> tuple[Any, ...]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        blob.encode([np.zeros(9000), Interrupts()])
    assert blob.encode([1]).buffers == ()
    assert not collector.open_collectors
    assert not blob._kept


def test_a_missing_module_at_the_reader_is_a_serialization_error() -> None:
    data = b"\x80\x05\x8c\x0bno_such_mod\x8c\x01x\x93."
    with pytest.raises(SerializationError, match="no_such_mod"):
        blob.decode(data)


@pytest.mark.parametrize("damage", ["tag", "version", "codec", "length", "cut"])
def test_a_damaged_blob_is_refused(damage: str) -> None:
    data = bytearray(blob.to_bytes(blob.encode(np.arange(9000))))
    if damage == "cut":
        data = data[:-1]
    else:
        data[{"tag": 0, "version": 1, "codec": 2, "length": 100}[damage]] = 99
        if damage == "length":
            data[8:16] = (2**40).to_bytes(8, "little")
    with pytest.raises(SerializationError):
        blob.decode(bytes(data))


class Socketlike:
    """Cannot be pickled unless a serializer is registered."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.lock = threading.Lock()


def test_a_registered_serializer_is_used_at_any_depth_until_it_is_deregistered() -> None:
    register_serializer(Socketlike, serializer=lambda s: s.port, deserializer=Socketlike)
    try:
        back = through({"a": [Socketlike(80)], "b": lambda: 1, "c": np.zeros(9000)})
        assert back["a"][0].port == 80
        with pytest.raises(TypeError):  # The user's own pickle knows nothing of it.
            pickle.dumps(Socketlike(80))
    finally:
        deregister_serializer(Socketlike)
    with pytest.raises(SerializationError, match="lock"):
        blob.encode(Socketlike(80))


def test_registering_nonsense_is_refused() -> None:
    with pytest.raises(TypeError, match="class"):
        register_serializer(5, serializer=str, deserializer=int)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="callable"):
        register_serializer(int, serializer=5, deserializer=int)  # type: ignore[arg-type]


def test_tensors_come_back_as_their_own_writable_copies() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.arange(10_000, dtype=torch.bfloat16)
    back = through([tensor])[0]
    assert back.dtype == tensor.dtype
    assert torch.equal(back, tensor)
    assert blob.encode([tensor]).buffers
    back[0] = 5
