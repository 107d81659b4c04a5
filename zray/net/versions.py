"""Which releases a node runs on: what two nodes have to agree about.

What    installed(): zray, Python, and the packages whose bytes go from one node to another.
Caller  brokers/state_rows.py, `zray-node doctor`.
Never   imports a package to learn its version.
"""

from __future__ import annotations

import platform
from functools import cache

import zmq

from zray.protocol.release import VERSION

_PACKAGES = ("cloudpickle", "msgpack", "numpy")


@cache
def installed() -> dict[str, str]:
    """Return versions by name; "" of what is not installed."""
    from importlib import metadata  # It costs a node that nobody asks a hundredth of a second.

    found = {
        "zray": VERSION,
        "python": platform.python_version(),
        "pyzmq": zmq.__version__,
        "libzmq": zmq.zmq_version(),
    }
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = ""
    return found
