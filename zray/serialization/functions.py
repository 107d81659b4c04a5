"""Code that travels: functions and classes, named by the hash of their bytes.

What    export() pickles a function or class by value and names it; load() makes it anew.
Caller  zray/remote_function.py and zray/actor.py (export), actors/executor.py (load).
Never   runs what it loads, or remembers it: who calls keeps one copy per id.
"""

from __future__ import annotations

import hashlib
import pickle
import warnings
from typing import Any

from zray.errors import NotInitializedError, SerializationError, ZrayError
from zray.protocol.limits import FUNCTION_BYTES_MAX, FUNCTION_BYTES_WARN

from . import collector, reducers

FUNCTION_ID_BYTES = 16


def export(code: Any) -> tuple[bytes, bytes, list[Any]]:
    """Pickle a function or class, with what it captures.

    What is importable by name everywhere goes by name; the rest (__main__, lambdas, closures) by
    value, and global variables it uses with it, as they are now.

    Returns:
        Its 16-byte id (blake2b of the bytes), the bytes, and the ObjectRefs it captures: the
        caller keeps them alive for as long as the code can be run.

    Raises:
        SerializationError: it captures something that cannot be pickled, or is over 100 MiB.
    """
    hidden = collector.start()
    try:
        data = reducers.dump_by_value(code)
    except NotInitializedError:
        raise  # It captures a reference of a session that has ended.
    except Exception as error:
        raise _refusal(code, error) from error
    finally:
        refs = collector.stop(hidden)
    _check_size(code, len(data))
    return hashlib.blake2b(data, digest_size=FUNCTION_ID_BYTES).digest(), data, refs


def load(data: bytes) -> Any:
    """Make the function or class that export() pickled.

    Raises:
        SerializationError: it needs something that this process lacks, such as a module.
    """
    try:
        return pickle.loads(data)
    except ZrayError:
        raise
    except Exception as error:
        raise SerializationError(
            f"a function or class could not be loaded in this process: {type(error).__name__}: "
            f"{error}. What it imports by name must be installed on every node"
        ) from error


def _name(code: Any) -> str:
    return getattr(code, "__qualname__", None) or repr(code)


def _refusal(code: Any, error: Exception) -> SerializationError:
    from .inspect import culprits

    paths = ", ".join(culprits(code, _name(code)))
    return SerializationError(
        f"{_name(code)} cannot be sent to workers ({type(error).__name__}: {error}); at fault: "
        f"{paths or _name(code)}. Create it inside the function, or pass it as an argument"
    )


def _check_size(code: Any, nbytes: int) -> None:
    """Refuse what is over FUNCTION_BYTES_MAX, warn of what is over FUNCTION_BYTES_WARN."""
    if nbytes <= FUNCTION_BYTES_WARN:
        return
    text = f"{_name(code)} is {nbytes / 2**20:.0f} MiB when pickled, because it captures large data"
    advice = "store the data with zray.put and pass the reference as an argument"
    if nbytes > FUNCTION_BYTES_MAX:
        raise SerializationError(f"{text}; the limit is {FUNCTION_BYTES_MAX >> 20} MiB: {advice}")
    warnings.warn(f"{text}: {advice}", stacklevel=4)
