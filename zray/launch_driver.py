"""Where a driver goes: to a node that runs here, or to one of its own.

What    find() reads the address: none, "local", "auto", a directory, zray://HOST:PORT. The last is
        a node of that cluster on this machine where there is one, else an embedded node without
        resources that joins it, under the best key for a driver that the folder of keys has.
Caller  zray/api.py, zray/cli_node.py.
Never   starts anything (zray/launch.py does), or waits for longer than PROBE_S an address.
Spec    docs/how-to/drivers-elsewhere.md.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from zray import errors, node_address, node_directory
from zray.configuration import Resolved, refuse_node_settings
from zray.net.curve import ClusterKeys, default_directory
from zray.protocol.roles import Role

NO_KEYS = "none"
"""Instead of a folder: everybody on this machine may join, and nobody from elsewhere."""

PROBE_S = 3.0
"""Who does not take a TCP connection for so long is not there."""

_ROLES = (Role.CLIENT, Role.GATEWAY, Role.NODE)
"""Whose key a driver shows, the first that its folder has: no more rights than it needs."""
_STORE = ("object_store_memory", "spill_directory")
"""What a driver's own node may be told of itself: it offers nothing else."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where to connect.

    Args:
        directory: of a node that runs; None: start one with ``settings``.
        settings: of the node to start.
        why: what was decided, for people.
    """

    directory: str | None
    settings: dict[str, Any] = field(default_factory=dict)
    why: str = ""


def find(settings: Resolved, given: Mapping[str, Any]) -> Place:
    """Return where a driver with these settings goes.

    Args:
        settings: all of them.
        given: those of a node that the code has given; None stands for nothing.

    Raises:
        OptionError: settings of a node were given for one that runs; an address of no known form.
        NodeStartError: there is no node at the address, or nobody answers there.
        SecurityError: there are no keys, or others can read them.
    """
    address = settings.values.get("address")
    if address is None:
        return _last_or_own(settings, given)
    if address == "local":
        return Place(None, settings.node(), "a node of its own: address='local'")
    joins = None if address == "auto" else node_address.cluster_of(address)
    if joins is None:
        directory = node_address.resolve_address(address)
        assert directory is not None
        refuse_node_settings(given, directory)
        return Place(directory, why=f"the node at {directory}: address={address!r}")
    refuse_node_settings(
        {name: value for name, value in given.items() if name not in (*_STORE, "_temp_dir")},
        address,
    )
    # Who names keys wants what they allow, and not what a node of this machine does.
    here = None if settings.is_typed("keys") else member_here(joins)
    if here is not None:
        refuse_node_settings(given, here)
        return Place(here, why=f"the node at {here}, which is of the cluster of {address}")
    return Place(None, _joining(settings, joins), f"a node of its own that joins {address}")


def _last_or_own(settings: Resolved, given: Mapping[str, Any]) -> Place:
    """No address: the last node of this user that runs, where the code asks for nothing else."""
    asked = [name for name, value in given.items() if value is not None]
    if asked:
        return Place(None, settings.node(), f"a node of its own: {asked[0]} was given")
    for directory in node_address.living():
        with contextlib.suppress(errors.NodeStartError):
            node_directory.check_private(directory)
            return Place(directory, why=f"the last node started here, at {directory}")
    gone = node_address.remembered()
    why = "no node of this user runs" + (f": that at {gone} is gone" if gone else "")
    return Place(None, settings.node(), f"a node of its own: {why}")


# -- a node of the cluster on this machine ---------------------------------------------------------


def member_here(joins: list[str]) -> str | None:
    """Return the directory of a node of this user that is one of a cluster, None if there is none.

    Args:
        joins: addresses of nodes of the cluster.
    """
    wanted = {place for address in joins for place in _places(address)}
    for directory in node_address.living():
        with contextlib.suppress(errors.ZrayError, OSError):
            node_directory.check_private(directory)
            own = node_directory.report(directory).get("address")
            if own is not None and (_places(own) & wanted or _others_of(directory) & wanted):
                return directory
    return None


def _others_of(directory: str) -> set[tuple[str, int]]:
    from zray.observer import Observer

    with Observer(directory) as observer:
        rows = observer.ask("nodes")
    return {(row["NodeManagerAddress"], row["NodeManagerPort"]) for row in rows}


def _places(address: str) -> set[tuple[str, int]]:
    """Return the addresses and ports that "tcp://HOST:PORT" stands for, by number."""
    host, _colon, port = address.removeprefix("tcp://").rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except OSError:
        return set()
    return {(str(each[4][0]), int(port)) for each in found}


# -- a node of the driver's own --------------------------------------------------------------------


def _joining(settings: Resolved, joins: list[str]) -> dict[str, Any]:
    from zray.net.addresses import address_towards, check_binding

    _probe(joins)
    keys, key_role = _credentials(settings.values.get("keys"))
    values = settings.values
    try:
        host = values.get("driver_host") or address_towards(joins[0])
    except OSError as error:
        raise errors.NodeStartError(
            f"there is no way to {_shown(joins[:1])} ({error.strerror}): check the address, or say"
            " with driver_host how the nodes reach this machine"
        ) from None
    check_binding(host, keys)
    role = Role.GATEWAY if key_role is Role.GATEWAY else Role.CLIENT
    cluster = {
        "join": joins,
        "host": host,
        "port": values.get("driver_port", 0),
        "bulk_port": values.get("driver_bulk_port", 0),
        "role": role,
        "key_role": key_role,
        "keys": None if keys is None else keys.directory,
    }
    if "driver_advertise" in values:
        cluster["advertise"] = values["driver_advertise"]
    store = {name: values[name] for name in _STORE if name in values}
    return {"num_cpus": 0, "num_gpus": 0, "memory": 0, **store, "cluster": cluster}


def _credentials(setting: str | None) -> tuple[ClusterKeys | None, Role]:
    if setting == NO_KEYS:
        return None, Role.NODE
    folder = os.path.expanduser(setting or default_directory())
    try:
        keys = ClusterKeys.load(folder)
    except errors.SecurityError as error:
        raise errors.SecurityError(
            f"a driver shows a key of its cluster: {error}. Say where they are with keys=,"
            " ZRAY_KEYS or zray-node run --keys; keys='none' where the cluster was started so"
        ) from None
    for role in _ROLES:
        with contextlib.suppress(errors.SecurityError):
            keys.pair(role)
            return keys, role
    raise errors.SecurityError(
        f"{folder} has no secret key of any role: export one for a client from a node's folder"
    )


def _probe(joins: list[str]) -> None:
    """Raise NodeStartError where nobody listens at any of the addresses."""
    reasons = []
    for address in joins:
        host, _colon, port = address.removeprefix("tcp://").rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), PROBE_S).close()
        except OSError as error:
            reasons.append(f"{_shown([address])} ({error.strerror or error})")
        else:
            return
    raise errors.NodeStartError(
        f"nobody answers at {', '.join(reasons)}: does a node run there (`zray-node status` on that"
        " machine shows its address), and may this machine connect to it?"
    )


def _shown(addresses: list[str]) -> str:
    return ", ".join(each.removeprefix("tcp://") for each in addresses)
