"""The key-value table of the GCS, for small things that programs agree on.

What    put, get, delete, exists and keys; values are bytes. On a node that stays they outlive
        their driver, and a restart of the node in the same directory.
Caller  users.
Never   pickles: what is stored is what was given.
"""

from __future__ import annotations

from zray import api
from zray.protocol import messages


def _key(key: str | bytes) -> bytes:
    return key.encode() if isinstance(key, str) else key


def put(key: str | bytes, value: bytes, *, namespace: str = "", overwrite: bool = True) -> bool:
    """Store a value; returns whether the key is new.

    Args:
        key: at most 500 bytes together with the namespace.
        value: the bytes to keep, at most 64 MiB.
        namespace: keys of different namespaces never meet.
        overwrite: False keeps what is there.
    """
    if not isinstance(value, bytes):
        raise TypeError(f"a value of the key-value table is bytes, not {type(value).__name__}")
    new: bool = api.runtime().request(messages.KV, "put", [namespace, _key(key), value, overwrite])
    return new


def get(key: str | bytes, *, namespace: str = "") -> bytes | None:
    """Return the value of a key, None where there is none."""
    value: bytes | None = api.runtime().request(messages.KV, "get", [namespace, _key(key)])
    return value


def delete(key: str | bytes, *, namespace: str = "") -> bool:
    """Remove a key; returns whether it was there."""
    gone: bool = api.runtime().request(messages.KV, "delete", [namespace, _key(key)])
    return gone


def exists(key: str | bytes, *, namespace: str = "") -> bool:
    """Return whether a key has a value."""
    there: bool = api.runtime().request(messages.KV, "exists", [namespace, _key(key)])
    return there


def keys(prefix: str | bytes = b"", *, namespace: str = "") -> list[bytes]:
    """Return the keys that begin with a prefix, in order."""
    found: list[bytes] = api.runtime().request(messages.KV, "keys", [namespace, _key(prefix)])
    return found
