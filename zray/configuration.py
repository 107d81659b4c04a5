"""Where a node is and how it is set up: arguments, ZRAY_* and files.

What    Resolves an address, checks the settings of a node, refuses what is not honoured.
Caller  zray/api.py, zray/cli.py.
Never   starts anything.
"""

from __future__ import annotations

import difflib
import json
import os
import tempfile
from typing import Any

from zray import errors

_UNSUPPORTED = {
    "runtime_env": "set env_vars per task or actor: options(runtime_env={'env_vars': ...})",
    "labels": "labels come with several nodes", "include_dashboard": "there is no dashboard",
    "local_mode": "use the function itself: f.__wrapped__(...)",
}
_IGNORABLE = {"include_dashboard": (False, None), "logging_level": None, "local_mode": (False,),
              "configure_logging": None}


def refuse_unsupported(options: dict[str, Any]) -> None:
    """Raise OptionError for options that init() does not honour."""
    known = ["address", "num_cpus", "num_gpus", "memory", "resources", "object_store_memory",
             "namespace", "ignore_reinit_error", "log_to_driver", "spill_directory"]
    for name, value in options.items():
        if name == "include_dashboard" and not value:
            continue  # Asking for no dashboard is honoured: there is none.
        if name == "local_mode" and not value:
            continue
        why = _UNSUPPORTED.get(name)
        if why is None:
            close = difflib.get_close_matches(name, known, 1)
            why = f"did you mean {close[0]}?" if close else f"init() takes {', '.join(known)}"
        raise errors.OptionError(f"zray.init() does not honour {name}={value!r}: {why}",
                                 option=name)


def check_settings(settings: dict[str, Any]) -> None:
    """Raise OptionError where a node could not be set up like this."""
    for name in ("num_cpus", "num_gpus", "memory", "object_store_memory"):
        value = settings.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))
                                  or value < 0):
            raise errors.OptionError(f"{name}={value!r} is not an amount", option=name)
    store = settings.get("object_store_memory")
    if store is not None and store < 1 << 20:
        raise errors.OptionError(f"object_store_memory={store} is less than 1 MiB",
                                 option="object_store_memory")
    for name, value in settings["resources"].items():
        if name in ("CPU", "GPU", "memory"):
            raise errors.OptionError(f"resources={{{name!r}: ...}}: use num_cpus, num_gpus or"
                                     " memory", option="resources")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
            raise errors.OptionError(f"resources={{{name!r}: {value!r}}} is not an amount",
                                     option="resources")


def context_path() -> str:
    """Return the file that remembers this user's last started node."""
    base = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    return os.path.join(base, f"zray-node-{os.getuid()}.json")


def resolve_address(address: str | None) -> str | None:
    """Return the directory of the node to connect to, None for an embedded one."""
    if address is None:
        address = os.environ.get("ZRAY_ADDRESS") or None
    if address is None or address == "local":
        return None
    if address == "auto":
        return _last_started()
    if "://" in address:
        raise errors.OptionError(
            f"address {address!r}: this release connects to nodes on this machine only, by the"
            " directory that `zray-node start` prints", option="address")
    if not os.path.exists(os.path.join(address, "node.sock")):
        raise errors.NodeStartError(f"there is no node at {address}: start one with"
                                    " `zray-node start`")
    return address


def _last_started() -> str:
    path = context_path()
    try:
        with open(path) as file:
            directory: str = json.load(file)["directory"]
    except (OSError, ValueError, KeyError):
        raise errors.NodeStartError("address 'auto': no node was started by this user: run"
                                    " `zray-node start`") from None
    if not os.path.exists(os.path.join(directory, "node.sock")):
        raise errors.NodeStartError(f"address 'auto': the last node, at {directory}, is gone: run"
                                    " `zray-node start`")
    return directory
