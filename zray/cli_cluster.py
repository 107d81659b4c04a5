"""What a node among others needs from `zray-node`: keys, an address, and how the next one joins.

What    `zray-node keygen`; the cluster's part of `zray-node start`: finds or makes the keys,
        chooses the address to bind, and says with which command other nodes join.
Caller  zray/cli.py, zray/cli_node.py.
Never   prints a secret key, or lets a node listen to other machines without keys.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from typing import Any

from zray import errors, node_directory
from zray.cli_keys import folder_option
from zray.launch_driver import NO_KEYS


def keygen(directory: str | None, *, as_json: bool) -> int:
    """Make the keys of a new cluster; returns the exit code.

    Raises SecurityError where the folder holds keys already, or is open to others.
    """
    from zray.net.curve import ClusterKeys, Role

    keys = ClusterKeys.create(directory)
    public = keys.pair(Role.NODE).public.decode()
    if as_json:
        print(json.dumps({"directory": keys.directory, "public_key": public}))
        return 0
    print(
        f"The keys of a new cluster are in {keys.directory}; its nodes show {public}.\n\n"
        "  It is the head's: whoever has it decides who is a member. Each further machine gets\n"
        f"  keys of its own: zray-node keys issue NAME --out NAME{folder_option(keys.directory)}\n"
        f"  Then: zray-node start --head{_keys_option(keys.directory)}"
    )
    return 0


def node_settings(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a node among others, with keys that are there and a host to bind.

    Args:
        found: host, port, bulk_port, advertise, bulk_advertise, keys and join, those that are
            set.

    Raises:
        SecurityError: keys are missing or unsafe, or a port would stand open to strangers.
        NodeStartError: there is no way to the host of ``join``.
    """
    from zray.net.addresses import check_binding
    from zray.net.curve import ClusterKeys

    join = list(found.get("join", ()))
    keys = None
    if found.get("keys") != NO_KEYS:
        make = ClusterKeys.load if join else ClusterKeys.ensure
        keys = make(found.get("keys"))
    host = found.get("host") or _host_for(join)
    check_binding(host, keys)
    settings = {"host": host, "port": found.get("port", 0), "join": join, "head": not join}
    if keys is not None:
        settings["keys"] = keys.directory
    for name in ("bulk_port", "advertise", "bulk_advertise"):
        if name in found:
            settings[name] = found[name]
    return settings


def _host_for(join: list[str]) -> str:
    """Return the address that a node binds where none is given: one the head can dial."""
    from zray.net.addresses import address_towards

    if not join:
        return "127.0.0.1"
    try:
        return address_towards(join[0])
    except OSError as error:
        raise errors.NodeStartError(
            f"there is no way to {join[0].removeprefix('tcp://')} ({error.strerror}): check the"
            " address, or say with --host how this node is reached"
        ) from None


def free_directory(wanted: str) -> str:
    """Return ``wanted``, or where a node runs in it ``wanted-2``, ``wanted-3`` and so on."""
    number, where = 1, wanted
    while node_directory.holder_pid(where) is not None:
        number += 1
        where = f"{wanted}-{number}"
    return where


def join_command(address: str, keys: str | None) -> str:
    """Return the command with which another node joins the one at ``address``.

    Args:
        address: "tcp://HOST:PORT".
        keys: folder of the keys; None: the cluster has none.
    """
    option = f" --keys {NO_KEYS}" if keys is None else _keys_option(keys)
    return f"zray-node start --join {address.removeprefix('tcp://')}{option}"


def driver_address(address: str) -> str:
    """Return what zray.init() takes on another machine, of a node at "tcp://HOST:PORT"."""
    return f"zray://{address.removeprefix('tcp://')}"


def _keys_option(directory: str) -> str:
    from zray.net.curve import default_directory

    if os.path.abspath(directory) == os.path.abspath(default_directory()):
        return ""
    return f" --keys {shlex.quote(directory)}"


def invitation(address: str, keys: str | None) -> str:
    """Return what `zray-node start` says to who wants to add a node."""
    from zray.net.addresses import is_loopback

    command = join_command(address, keys)
    host = address.removeprefix("tcp://").rpartition(":")[0]
    if is_loopback(host):
        who = "Further nodes on this machine join with (others: start it with --host first)"
    else:
        issue = "zray-node keys issue NAME --out NAME"
        option = "" if keys is None else folder_option(keys)
        who = f"Further nodes join with (each with keys of its own: {issue}{option})"
    return f"{who}\n\n  {command}"
