"""zray: a distributed runtime for Python on ZeroMQ.

What    The public names, imported when first used, so that `import zray` costs little.
Caller  users.
Never   imports zmq, numpy or cloudpickle itself.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "init": "zray.api", "shutdown": "zray.api", "is_initialized": "zray.api", "get": "zray.api",
    "put": "zray.api", "wait": "zray.api", "kill": "zray.api", "get_actor": "zray.api",
    "remote": "zray.remote", "method": "zray.remote",
    "ObjectRef": "zray.refs", "ObjectRefGenerator": "zray.refs",
}

if TYPE_CHECKING:
    from zray.api import get, get_actor, init, is_initialized, kill, put, shutdown, wait
    from zray.refs import ObjectRef, ObjectRefGenerator
    from zray.remote import method, remote

__all__ = ["ObjectRef", "ObjectRefGenerator", "__version__", "get", "get_actor", "init",
           "is_initialized", "kill", "method", "put", "remote", "shutdown", "wait"]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        try:
            return importlib.import_module(f"zray.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"zray.{name}":
                raise
        raise AttributeError(f"module 'zray' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
