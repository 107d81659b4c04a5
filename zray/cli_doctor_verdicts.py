"""What `zray-node doctor` makes of what it has found: ports, keys, and the nodes of a cluster.

What    Facts in, findings out: a dataclass for each thing that was looked at, and a function that
        says what of it is as it should be, what is not, and what to do.
Caller  zray/cli_doctor_network.py, which gathers; zray/cli_doctor.py, which prints.
Never   looks at anything itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

OK, WARNING, FAILURE = "ok", "warning", "failure"

CLOCK_AHEAD_S = 0.5
"""Beyond it timelines and logs of several nodes tell things in a wrong order."""

_DAY_S = 86400
_NAMES_MAX = 8
"""Nodes named in one line; of the others it tells how many."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    check: str
    level: str
    found: str
    advice: str = ""


# -- ports ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PortFacts:
    """One of the two TCP ports that a node of this configuration would open.

    Args:
        setting: port or bulk_port.
        host: to be bound.
        number: 0: any that is free.
        trouble: why it cannot be bound; "" where it can, or a node of this user has it.
        holder: directory of the node of this user that listens there; "" where none does.
        advertised: what others would be told, where that is not what is bound.
        unreached: why what is sent to that does not arrive; "" where it does or was not tried.
    """

    setting: str
    host: str
    number: int
    trouble: str = ""
    holder: str = ""
    advertised: str = ""
    unreached: str = ""


@dataclass(frozen=True, slots=True)
class JoinFacts:
    """A node that this one is to join.

    Args:
        address: "HOST:PORT".
        is_here: it is on this machine.
        trouble: why it does not let us in; "" where it would, None where there is no key to try.
    """

    address: str
    is_here: bool
    trouble: str | None


def judge_ports(ports: Sequence[PortFacts]) -> Iterator[Finding]:
    """Say of each port whether a node could open it, and be reached there."""
    for port in ports:
        where = f"{port.host}, {'any that is free' if not port.number else port.number}"
        option = f"--{port.setting.replace('_', '-')}"
        if port.trouble:
            yield Finding(
                port.setting,
                FAILURE,
                f"{where}: {port.trouble}",
                f"choose another one with {option}, or end what has it (ss -ltnp shows that);"
                " --host names an address of this machine, --advertise what others dial",
            )
        elif port.holder:
            yield Finding(port.setting, OK, f"{where}: the node in {port.holder} has it")
        elif port.unreached:
            yield Finding(
                port.setting,
                WARNING,
                f"{where}: from here nothing arrives by {port.advertised}: {port.unreached}",
                "others dial that address: let it lead here (NAT, firewall), or name another one"
                " with --advertise and --bulk-advertise; some routers lead outside ways only",
            )
        else:
            told = f", reached by {port.advertised}" if port.advertised else ""
            yield Finding(port.setting, OK, f"{where}{' is free' if port.number else ''}{told}")
    numbers = [port.number for port in ports if port.number]
    if len(numbers) > len(set(numbers)):
        yield Finding(
            "bulk_port",
            FAILURE,
            f"both ports are {numbers[0]}",
            "a node listens at two ports: give --bulk-port another number, or none",
        )


def judge_host(host: str, joins: Sequence[JoinFacts]) -> Iterator[Finding]:
    """Say where the others could not reach a node that binds loopback."""
    elsewhere = [each.address for each in joins if not each.is_here]
    if elsewhere:
        yield Finding(
            "host",
            FAILURE,
            f"{host} is this machine alone, and {elsewhere[0]} is another one",
            "leave --host out, or name the address at which the others reach this machine",
        )


def judge_joins(joins: Sequence[JoinFacts]) -> Iterator[Finding]:
    """Say whether the nodes to join are there and would let us in."""
    for join in joins:
        if join.trouble is None:
            yield Finding(
                "join",
                WARNING,
                f"{join.address} was not tried: there is no key to show",
                "have keys made on the head (`zray-node keys issue`); --keys names their folder",
            )
        elif join.trouble:
            yield Finding(
                "join",
                FAILURE,
                f"no way into the node at {join.address}: {join.trouble}",
                "compare with what `zray-node start --head` printed; see there whether it runs"
                " (`zray-node status`) and which keys count (`zray-node keys list`); let firewalls"
                " pass both of its ports",
            )
        else:
            yield Finding("join", OK, f"the node at {join.address} answers, and would let us in")


# -- keys ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OwnKey:
    """What a folder of keys has for one role.

    Args:
        role: node, client or gateway.
        member: whose it is.
        state: of the one in use, as the list of keys has it; "" where that does not have it.
        age_s: of the one in use, since it was listed.
        waiting: further ones of the folder that count and are not in use.
        elsewhere: newer ones of this member that count and whose secret is not in the folder.
        older: other ones of this member that count still.
    """

    role: str
    member: str
    state: str
    age_s: float = 0.0
    waiting: int = 0
    elsewhere: int = 0
    older: int = 0


@dataclass(frozen=True, slots=True)
class KeyFacts:
    """A folder of keys, or that there is to be none.

    Args:
        directory: "" where nodes are to do without keys.
        trouble: why it, or none, cannot be used: its mode, its owner, what is in it.
        is_missing: nothing is there.
        makes_them: a head that starts here would make keys.
        own: one for each role that it has secrets for.
        is_authority: keys are listed and revoked in it.
    """

    directory: str
    trouble: str = ""
    is_missing: bool = False
    makes_them: bool = False
    own: tuple[OwnKey, ...] = ()
    is_authority: bool = False


def judge_keys(keys: KeyFacts) -> Iterator[Finding]:
    """Say whether a folder of keys can be used, and which step of a rotation is still to come."""
    if not keys.directory and not keys.trouble:
        yield Finding("keys", OK, "none: this machine only, and open to all of its users")
    elif keys.is_missing and keys.makes_them:
        yield Finding("keys", OK, f"none in {keys.directory}: the head makes them when it starts")
    elif keys.trouble:
        yield Finding("keys", FAILURE, keys.trouble)
    else:
        for own in keys.own:
            yield _judge_own(keys, own)


def _judge_own(keys: KeyFacts, own: OwnKey) -> Finding:
    name = f"{own.role} key of {own.member} in {keys.directory}"
    check = f"{own.role} key"
    issue = f"on the head: zray-node keys issue {own.member} --role {own.role} --out NEW"
    if own.state not in ("valid", "retired"):
        state = "was revoked" if own.state else "is not in the list of keys"
        return Finding(check, FAILURE, f"the {name} {state}", f"have another one made, {issue}")
    if own.elsewhere:
        return Finding(
            check,
            FAILURE if own.state == "retired" else WARNING,
            f"the {name} is being replaced: a newer one counts, and its secret is not here",
            "bring the folder that `zray-node keys issue` has made to this machine",
        )
    if own.state == "retired":
        found = f"the {name} opens no new connection: it was retired"
        return Finding(check, FAILURE, found, f"have another one made, {issue}")
    if own.waiting:
        return Finding(
            check,
            WARNING,
            f"a rotation has begun: {own.waiting} further {name} wait to be used",
            f"zray-node keys activate --role {own.role}, then zray-node keys retire {own.member}",
        )
    if own.older and keys.is_authority:
        return Finding(
            check,
            WARNING,
            f"a rotation has not ended: {own.older} older {name} count still",
            f"zray-node keys retire {own.member}",
        )
    age = f"{own.age_s / _DAY_S:.0f} days old"
    return Finding(check, OK, f"{own.member}, {age} (keys do not expire), {keys.directory}")


# -- nodes ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """A node of the running cluster.

    Args:
        node: its id, in hex.
        machine: its host name.
        state: ALIVE, DRAINING or SILENT.
        message: why it is not ALIVE.
        is_asked: the one that was asked, on this machine.
        clock_ahead_s: its clock less that of the one asked.
        versions: by name; {} where it does not say.
        unreached: why it is not reached from here, by address; None where that was not tried.
    """

    node: str
    machine: str
    state: str = "ALIVE"
    message: str = ""
    is_asked: bool = False
    clock_ahead_s: float = 0.0
    versions: Mapping[str, str] = field(default_factory=dict)
    unreached: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class _Agreement:
    """In what two versions have to agree.

    Args:
        parts: how many of their parts; 0: all.
        level: of a difference.
        why: what comes of one.
    """

    parts: int
    level: str
    why: str


_AGREEMENTS = {
    "zray": _Agreement(0, WARNING, "let all nodes run the same release"),
    "python": _Agreement(
        2, FAILURE, "functions and classes of one minor version do not load in another"
    ),
    "cloudpickle": _Agreement(1, WARNING, "functions of one may not load in the other"),
    "numpy": _Agreement(1, WARNING, "arrays pickled by numpy 2 do not load in numpy 1"),
    "msgpack": _Agreement(1, WARNING, "messages of one may not be read by the other"),
    "pyzmq": _Agreement(1, WARNING, "install the same major version everywhere"),
    "libzmq": _Agreement(2, WARNING, "install the same pyzmq everywhere"),
}


def judge_nodes(nodes: Sequence[NodeFacts]) -> Iterator[Finding]:
    """Say whether the nodes of a cluster are there, reachable, and agree in clock and versions."""
    speaking = [each for each in nodes if each.state != "SILENT"]
    silent = [each for each in nodes if each.state == "SILENT"]
    yield Finding("nodes", OK, f"{len(speaking)} answer")
    for each in silent[:_NAMES_MAX]:
        yield Finding(
            "nodes",
            WARNING,
            f"{_name(each)} says nothing: {each.message}",
            "look at node.log on its machine, and let firewalls pass its ports",
        )
    if len(silent) > _NAMES_MAX:
        yield Finding("nodes", WARNING, f"{len(silent) - _NAMES_MAX} more say nothing")
    yield from _judge_reach(speaking)
    yield from _judge_clocks(speaking)
    yield from _judge_versions(speaking)


def _judge_reach(nodes: Sequence[NodeFacts]) -> Iterator[Finding]:
    tried = [each for each in nodes if each.unreached is not None]
    unreached = [(each, *pair) for each in tried for pair in (each.unreached or {}).items()]
    for each, address, reason in unreached[:_NAMES_MAX]:
        own = "this node's own address" if each.is_asked else f"an address of {_name(each)}"
        yield Finding(
            "addresses",
            WARNING if each.is_asked else FAILURE,
            f"{own}, {address}, is not reached from here: {reason}",
            "let firewalls pass both ports of every node; behind NAT say with --advertise and"
            " --bulk-advertise what others dial",
        )
    if len(unreached) > _NAMES_MAX:
        more = len(unreached) - _NAMES_MAX
        yield Finding("addresses", FAILURE, f"{more} more addresses are not reached from here")
    if tried and not unreached:
        yield Finding("addresses", OK, f"both ports of {len(tried)} nodes are reached from here")


def _judge_clocks(nodes: Sequence[NodeFacts]) -> Iterator[Finding]:
    off = sorted(
        (each for each in nodes if abs(each.clock_ahead_s) > CLOCK_AHEAD_S),
        key=lambda each: -abs(each.clock_ahead_s),
    )
    for each in off[:_NAMES_MAX]:
        yield Finding(
            "clocks",
            WARNING,
            f"the clock of {_name(each)} is {each.clock_ahead_s:+.1f} s from this machine's",
            "run NTP on both: times in logs and in lists tell another order than things had",
        )
    if len(off) > _NAMES_MAX:
        yield Finding("clocks", WARNING, f"{len(off) - _NAMES_MAX} more clocks are off")
    others = [abs(each.clock_ahead_s) for each in nodes if not each.is_asked]
    if others and not off:
        yield Finding("clocks", OK, f"of all nodes within {max(others) * 1e3:.0f} ms of this one's")


def _judge_versions(nodes: Sequence[NodeFacts]) -> Iterator[Finding]:
    agreed = True
    mute = [each for each in nodes if not each.versions]
    if mute:
        agreed = False
        yield Finding(
            "versions",
            WARNING,
            f"{_names(mute)} {'does' if len(mute) == 1 else 'do'} not say which release it runs",
            "let all nodes run the same release",
        )
    for name, agreement in _AGREEMENTS.items():
        groups: dict[str, list[NodeFacts]] = {}
        for each in nodes:
            if version := each.versions.get(name, ""):
                groups.setdefault(_part(version, agreement.parts), []).append(each)
        if len(groups) < 2:
            continue
        agreed = False
        told = "; ".join(f"{version} on {_names(group)}" for version, group in groups.items())
        yield Finding("versions", agreement.level, f"{name} {told}", agreement.why)
    if agreed and nodes:
        own = next((each for each in nodes if each.is_asked), nodes[0]).versions
        shown = ", ".join(f"{name} {own[name]}" for name in ("zray", "python", "libzmq"))
        yield Finding("versions", OK, f"{len(nodes)} nodes agree: {shown}")


def _part(version: str, parts: int) -> str:
    return ".".join(version.split(".")[:parts]) if parts else version


def _name(node: NodeFacts) -> str:
    return f"node {node.node} ({node.machine})" if node.machine else f"node {node.node}"


def _names(nodes: Sequence[NodeFacts]) -> str:
    shown = ", ".join(map(_name, nodes[:_NAMES_MAX]))
    more = len(nodes) - _NAMES_MAX
    return f"{shown} and {more} more" if more > 0 else shown
