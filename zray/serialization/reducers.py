"""Picklers for types that plain pickle does badly or not at all.

What    register_serializer's table and the reducers of torch tensors and Arrow tables, kept in a
        private table: the user's own pickle and copy modules see none of it. Two picklers that
        read the table: plain (C, by reference) and by value (cloudpickle).
Caller  blob.py; zray/util.py re-exports register_serializer and deregister_serializer.
Never   imports torch or pyarrow, and numpy or cloudpickle only when a value needs them.
"""

from __future__ import annotations

import copyreg
import io
import pickle
import sys
from collections import ChainMap
from collections.abc import Callable
from functools import lru_cache
from typing import Any, ClassVar

Reducer = Callable[[Any], Any]
BufferCallback = Callable[[pickle.PickleBuffer], Any]

_PART_BYTES_MIN = 64 * 1024

custom_reducers: dict[type[Any], Reducer] = {}
"""Exact type -> reducer. While it is empty, blob.encode takes a path that is 0.8 us shorter."""


def register_serializer(
    cls: type[Any], *, serializer: Callable[[Any], Any], deserializer: Callable[[Any], Any]
) -> None:
    """Pickle instances of exactly `cls` through a pair of functions, in this process.

    The deserializer travels with each value, so readers need no registration.

    Args:
        cls: the type; instances of its subclasses are not affected.
        serializer: takes an instance, returns something that can be pickled.
        deserializer: takes what the serializer returned, returns the instance.

    Raises:
        TypeError: `cls` is no class, or one of the functions is not callable.
    """
    given: Any = cls
    if not isinstance(given, type):
        raise TypeError(f"register_serializer needs a class, not {cls!r}")
    if not all(map(callable, (serializer, deserializer))):
        raise TypeError("register_serializer needs a callable serializer and deserializer")

    def reduce(value: Any) -> tuple[Any, ...]:
        return _deserialize, (deserializer, serializer(value))

    custom_reducers[cls] = reduce


def deregister_serializer(cls: type[Any]) -> None:
    """Undo register_serializer for `cls`; do nothing where none is registered."""
    custom_reducers.pop(cls, None)


def _deserialize(deserializer: Callable[[Any], Any], payload: Any) -> Any:
    return deserializer(payload)


def dump_plain(value: Any, keep: BufferCallback) -> bytes:
    """Pickle in C, classes and functions by reference, honouring the table."""
    if not custom_reducers:
        return pickle.dumps(value, 5, buffer_callback=keep)
    file = io.BytesIO()
    pickler = pickle.Pickler(file, 5, buffer_callback=keep)
    # A merged dict, not a ChainMap: the C pickler looks an exact dict up without a call.
    pickler.dispatch_table = {**copyreg.dispatch_table, **custom_reducers}
    pickler.dump(value)
    return file.getvalue()


def dump_by_value(value: Any, keep: BufferCallback | None = None) -> bytes:
    """Pickle with cloudpickle: code of __main__, lambdas and closures travel with the value."""
    file = io.BytesIO()
    _by_value_pickler()(file, protocol=5, buffer_callback=keep).dump(value)
    return file.getvalue()


@lru_cache(maxsize=1)
def _by_value_pickler() -> Any:
    import cloudpickle

    base: Any = cloudpickle.Pickler
    table: Any = base.dispatch_table

    class ByValuePickler(base):  # type: ignore[misc]
        """cloudpickle's Pickler with our table before its own."""

        # A class attribute: the C base reads it once, when an instance is made.
        dispatch_table: ClassVar[Any] = ChainMap[Any, Any](
            custom_reducers, {type(lru_cache(len)): _reduce_cached}, table
        )

    return ByValuePickler


def _reduce_cached(function: Any) -> Any:
    """A cached function of __main__ by value, with an empty cache: its own way is by name."""
    if getattr(function, "__module__", None) != "__main__":
        return function.__reduce__()
    parameters = function.cache_parameters()
    return _rebuild_cached, (function.__wrapped__, parameters["maxsize"], parameters["typed"])


def _rebuild_cached(function: Any, maxsize: int | None, typed: bool) -> Any:
    return lru_cache(maxsize, typed)(function)


def learn_reducers(inband: bytes) -> bool:
    """Install the reducers for what this pickle contains; True where one was not there before.

    Done after the first tensor or table was met, so that programs without them pay nothing.
    """
    learned = False
    torch = sys.modules.get("torch")
    if torch is not None and b"torch._utils" in inband and torch.Tensor not in custom_reducers:
        custom_reducers[torch.Tensor] = _reduce_tensor
        learned = True
    arrow = sys.modules.get("pyarrow")
    if arrow is not None and b"pyarrow.lib" in inband and arrow.Table not in custom_reducers:
        custom_reducers[arrow.Table] = custom_reducers[arrow.RecordBatch] = _reduce_table
        learned = True
    return learned


def _reduce_table(table: Any) -> Any:
    """A part of a larger table by its own bytes: pyarrow pickles all that it was cut from."""
    whole_bytes = table.get_total_buffer_size()
    if whole_bytes <= _PART_BYTES_MIN or table.nbytes * 2 > whole_bytes:
        return table.__reduce_ex__(5)
    arrow: Any = sys.modules["pyarrow"]
    sink = arrow.BufferOutputStream()
    with arrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write(table)
    buffer = pickle.PickleBuffer(sink.getvalue())
    return _rebuild_table, (buffer, isinstance(table, arrow.RecordBatch))


def _rebuild_table(buffer: Any, is_batch: bool) -> Any:
    import pyarrow as arrow

    reader = arrow.ipc.open_stream(arrow.py_buffer(buffer))
    return reader.read_next_batch() if is_batch else reader.read_all()


def _reduce_tensor(tensor: Any) -> Any:
    """A dense CPU tensor as (dtype, shape, bytes); any other as torch itself does it."""
    torch: Any = sys.modules["torch"]
    dense = tensor.layout == torch.strided and not tensor.is_quantized
    lazy = tensor.is_conj() or tensor.is_neg()
    laden = not tensor.is_leaf or tensor.__dict__ or tensor._backward_hooks
    if tensor.device.type != "cpu" or not dense or lazy or laden:
        return tensor.__reduce_ex__(5)
    # Through uint8: numpy has no bfloat16.
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    name = str(tensor.dtype).removeprefix("torch.")
    buffer = pickle.PickleBuffer(flat)
    return _rebuild_tensor, (buffer, name, tuple(tensor.shape), tensor.requires_grad)


def _rebuild_tensor(buffer: Any, dtype: str, shape: tuple[int, ...], requires_grad: bool) -> Any:
    """Copy into a tensor of its own: torch knows no read-only tensors, and a write through to
    read-only shared memory would be a segmentation fault."""
    import numpy as np
    import torch  # type: ignore[import-not-found,unused-ignore]

    flat = torch.from_numpy(np.array(np.frombuffer(buffer, np.uint8)))
    tensor = flat.view(getattr(torch, dtype)).reshape(shape)
    return tensor.requires_grad_() if requires_grad else tensor
