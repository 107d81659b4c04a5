"""What `zray-node doctor` looks at beyond this machine: ports, keys, other nodes.

What    Gathers the facts of the ports and the keys that a node of this configuration would have,
        of the node that it is to join, and of the cluster of the node that runs here; what they
        mean is said in zray/cli_doctor_verdicts.py.
Caller  zray/cli_doctor.py.
Never   joins anything, changes a file, or waits long for who does not answer.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from zray import configuration, errors, node_directory
from zray.cli_doctor_verdicts import (
    FAILURE,
    OK,
    Finding,
    JoinFacts,
    KeyFacts,
    NodeFacts,
    OwnKey,
    PortFacts,
    judge_host,
    judge_joins,
    judge_keys,
    judge_nodes,
    judge_ports,
)
from zray.launch_driver import NO_KEYS
from zray.observer import Observer

if TYPE_CHECKING:
    from zray.net.curve import ClusterKeys, Role

_ANSWER_S = 2.0
"""Who has not answered a connection by then is not reached."""
_DIALLED_MAX = 256
"""Nodes whose addresses are tried; the others are taken at the word of their links."""


def network_findings(given: Mapping[str, Any], directory: str | None) -> Iterator[Finding]:
    """Yield what there is to say of ports, keys and the cluster.

    Args:
        given: settings of the command line, as of `zray-node start`.
        directory: of the node whose cluster is looked at; None: there is none.
    """
    status = None
    if directory is not None:
        try:
            status = _status(directory)
        except errors.ClusterError as error:
            advice = "see its node.log; `zray-node stop --force` ends a node that hangs"
            yield Finding("node", FAILURE, str(error), advice)
    try:
        settings = configuration.resolve(given, called="zray-node doctor").cluster()
    except errors.OptionError:
        return  # The check of the settings says so.
    running = None if status is None else status["cluster"]
    if settings is not None:
        yield from _own_side(settings)
    elif running is None:
        yield Finding("port", OK, "none: a node that stays alone opens no TCP port")
    for keys in _key_folders(settings, running):
        yield from judge_keys(keys)
    if directory is not None and status is not None and running is not None:
        yield from _running(directory, status["node"], running)


def _status(directory: str) -> dict[str, Any]:
    with Observer(directory) as observer:
        found: dict[str, Any] = observer.ask("status")
    return found


# -- a node that would start here ------------------------------------------------------------------


def _own_side(settings: Mapping[str, Any]) -> Iterator[Finding]:
    from zray.net.addresses import address_towards, check_binding, is_loopback

    joins = list(settings.get("join", ()))
    host = settings.get("host")
    try:
        host = host or (address_towards(joins[0]) if joins else "127.0.0.1")
    except OSError as error:
        reason = error.strerror or str(error)
        yield Finding(
            "join",
            FAILURE,
            f"there is no way to {joins[0].removeprefix('tcp://')}: {reason.lower()}",
            "check the address, or say with --host how this node is reached",
        )
        return
    without = settings.get("keys") == NO_KEYS
    if without:
        try:
            check_binding(host, None)
        except errors.SecurityError as error:
            yield from judge_keys(KeyFacts("", str(error)))
        else:
            yield from judge_keys(KeyFacts(""))
    yield from judge_ports([_port_facts(name, host, settings) for name in ("port", "bulk_port")])
    facts = _join_facts(joins, None if without else _usable_keys(settings.get("keys")), without)
    if is_loopback(host):
        yield from judge_host(host, facts)
    yield from judge_joins(facts)


def _usable_keys(folder: str | None) -> ClusterKeys | None:
    """Return the keys that a node would show; None where it has none that can be used."""
    from zray.net.curve import ClusterKeys

    try:
        return ClusterKeys.load(folder)
    except errors.SecurityError:
        return None  # The check of the keys says why.


def _join_facts(
    joins: Sequence[str], keys: ClusterKeys | None, without_keys: bool
) -> list[JoinFacts]:
    from zray.net.addresses import is_loopback

    found = None if keys is None and not without_keys else _troubles(joins, keys)
    facts = []
    for each in joins:
        shown = each.removeprefix("tcp://")
        trouble = None if found is None else found.get(each, "")
        facts.append(JoinFacts(shown, is_loopback(shown.rpartition(":")[0]), trouble))
    return facts


def _troubles(addresses: Sequence[str], keys: ClusterKeys | None) -> dict[str, str]:
    """Return which ports do not let us in, with the key that gives most rights."""
    from zray.net.curve import Role
    from zray.net.trial import troubles

    role = Role.NODE if keys is None or Role.NODE in keys.roles else keys.roles[0]
    try:
        return troubles(addresses, keys, role, _ANSWER_S)
    except errors.SecurityError as error:
        return dict.fromkeys(addresses, str(error))


def _port_facts(name: str, host: str, settings: Mapping[str, Any]) -> PortFacts:
    from zray.net.addresses import advertised
    from zray.net.trial import binding_trouble, echo_trouble

    number = int(settings.get(name) or 0)
    holder = _holders().get(number, "") if number else ""
    trouble = "" if holder else binding_trouble(host, number)
    told = settings.get("advertise")
    if name == "bulk_port":
        # The port of --advertise is that of the links alone.
        told = settings.get("bulk_advertise") or _host_alone(told)
    outside = advertised(host, number, told)
    if outside == advertised(host, number, None) and host not in ("0.0.0.0", "::", "*"):
        return PortFacts(name, host, number, trouble, holder)
    unreached = ""
    if not trouble and not holder:
        unreached = echo_trouble(host, number, outside, _ANSWER_S)
    shown = outside.removeprefix("tcp://").removesuffix(":0")
    return PortFacts(name, host, number, trouble, holder, shown, unreached)


def _host_alone(advertise: str | None) -> str | None:
    from zray.net.addresses import advertised

    if not advertise:
        return None
    return advertised("", 0, advertise).removeprefix("tcp://").rpartition(":")[0]


def _holders() -> dict[int, str]:
    """Return by TCP port which node of this user listens there."""
    import psutil

    from zray.cli_doctor import node_directories

    found = {}
    for path in node_directories():
        pid = node_directory.holder_pid(path)
        if pid is None:
            continue
        try:
            connections = psutil.Process(pid).net_connections(kind="tcp")
        except psutil.Error:
            continue  # It has ended meanwhile.
        for each in connections:
            if each.status == psutil.CONN_LISTEN:
                found[each.laddr.port] = path
    return found


# -- keys ------------------------------------------------------------------------------------------


def _key_folders(
    settings: Mapping[str, Any] | None, running: Mapping[str, Any] | None
) -> Iterator[KeyFacts]:
    """Yield the folder that a node would use, that of the one that runs, or the user's, if any."""
    from zray.net import key_files
    from zray.net.curve import default_directory

    seen = set()
    if settings is not None:
        chosen = settings.get("keys") or default_directory()
        folder = "" if chosen == NO_KEYS else os.path.abspath(chosen)
        seen.add(folder)
        if folder:
            yield _key_facts(folder, makes_them=not settings.get("join"))
    if running is not None:
        folder = os.path.abspath(running["keys"]) if running["keys"] else ""
        if folder not in seen:
            yield _key_facts(folder, makes_them=False)
    elif settings is None and key_files.has_keys(default_directory()):
        yield _key_facts(os.path.abspath(default_directory()), makes_them=False)


def _key_facts(folder: str, *, makes_them: bool) -> KeyFacts:
    from zray.net import key_files
    from zray.net.curve import ClusterKeys

    if not folder:
        return KeyFacts("")
    is_missing = not key_files.has_keys(folder)
    try:
        keys = ClusterKeys.load(folder)
    except errors.SecurityError as error:
        return KeyFacts(folder, str(error), is_missing, makes_them)
    own = tuple(_own_key(keys, role) for role in keys.roles)
    return KeyFacts(folder, own=own, is_authority=keys.is_authority)


def _own_key(keys: ClusterKeys, role: Role) -> OwnKey:
    roster, pairs, member = keys.roster, keys.pairs(role), keys.member(role)
    valid = roster.valid_keys(member)  # The newest first.
    # Of a rotation's last step on the head nothing is left; elsewhere another folder replaces this.
    in_use = pairs[0].public if pairs else b""
    listed = roster.by_public.get(in_use)
    secrets = {pair.public for pair in pairs}
    place = valid.index(in_use) if in_use in valid else len(valid)
    return OwnKey(
        str(role),
        member,
        "" if listed is None else str(listed.state),
        0.0 if listed is None else max(0.0, time.time() - listed.since),
        waiting=sum(pair.public in valid for pair in pairs[1:] if valid.index(pair.public) < place),
        elsewhere=sum(key not in secrets for key in valid[:place]),
        older=len(valid[place + 1 :]),
    )


# -- the cluster that runs -------------------------------------------------------------------------


def _running(directory: str, here: str, cluster: Mapping[str, Any]) -> Iterator[Finding]:
    if cluster["security"]["unreadable_keys"]:
        yield Finding(
            "keys",
            FAILURE,
            f"the node in {directory} lets nobody new in: {cluster['security']['unreadable_keys']}",
            "put the folder right: the node takes it up by itself",
        )
    for address, reason in cluster["refused"].items():
        yield Finding(
            "join",
            FAILURE,
            f"the node in {directory} is not let in at {address.removeprefix('tcp://')}: {reason}",
            "let both run the same release; or have keys made on the head (`zray-node keys issue`)",
        )
    with Observer(directory) as observer:
        found = observer.ask("cluster_status")
    rows = [row for row in found["nodes"] if row["state"] != "DEAD"]
    addresses = {
        row[column]: row["node_id"]
        for row in rows[:_DIALLED_MAX]
        for column in ("address", "bulk_address")
        if row["state"] != "SILENT" and row[column]
    }
    keys = _usable_keys(cluster["keys"]) if cluster["keys"] else None
    # Without a key to show nobody could be asked; what is wrong with the keys is said already.
    tried = keys is not None or not cluster["keys"]
    unreached: dict[str, dict[str, str]] = {node: {} for node in addresses.values() if tried}
    for address, trouble in _troubles(list(addresses), keys).items() if tried else ():
        unreached[addresses[address]][address.removeprefix("tcp://")] = trouble
    yield from judge_nodes([_node_facts(row, here, unreached) for row in rows])


def _node_facts(
    row: Mapping[str, Any], here: str, unreached: Mapping[str, Mapping[str, str]]
) -> NodeFacts:
    node = row["node_id"]
    return NodeFacts(
        node,
        row["node_name"],
        row["state"],
        row["state_message"],
        node == here,
        row["clock_ahead_s"],
        row["versions"],
        unreached.get(node),
    )
