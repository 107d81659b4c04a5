"""TCP addresses of a node: what it binds, and what it tells others to dial.

What    Loopback or not, IPv4 and IPv6, a free port, the address behind a NAT or a service name.
Caller  zray/net/link_inbox.py, the bulk port, `zray-node`.
Never   lets a port without keys be reached from another machine.
"""

from __future__ import annotations

import ipaddress
import socket as sockets

from zray.errors import SecurityError
from zray.net.curve import ClusterKeys


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches ``host``; a name other than localhost is not."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def check_binding(host: str, keys: ClusterKeys | None) -> None:
    """Raise SecurityError where binding ``host`` without keys would let strangers in."""
    if keys is None and not is_loopback(host):
        raise SecurityError(
            f"{host} can be reached from other machines, and there are no cluster keys: whoever"
            " connects could run code here. Make keys with `zray-node keygen`, or bind 127.0.0.1"
        )


def endpoint(host: str, port: int) -> str:
    """Return "tcp://HOST:PORT", with IPv6 addresses in brackets."""
    bare = host.strip("[]")
    return f"tcp://[{bare}]:{port}" if ":" in bare else f"tcp://{bare}:{port}"


def dials_ipv6(address: str, *, by_name: bool) -> bool:
    """Return whether a socket of libzmq must be told to use IPv6 to reach "tcp://HOST:PORT".

    Args:
        address: a name in it may stand for addresses of both kinds, and libzmq takes one.
        by_name: what names are taken for: whether who dials is bound to IPv6 itself.
    """
    host = address.removeprefix("tcp://").rpartition(":")[0]
    if host.startswith("["):
        return True
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        return by_name
    return False


def numeric(host: str) -> str:
    """Return the IP address to bind for a host; libzmq takes a name for that of an interface.

    Raises OSError where it has none.
    """
    bare = host.strip("[]")
    if bare == "localhost":
        return "127.0.0.1"  # Some machines call ::1 so, too, and others could not know.
    found = sockets.getaddrinfo(bare, None, type=sockets.SOCK_STREAM, flags=sockets.AI_PASSIVE)
    return str(found[0][4][0])


def advertised(host: str, port: int, advertise: str | None) -> str:
    """Return the endpoint that others are told.

    Raises ValueError where ``advertise`` has a port that is no number.
    """
    if advertise:
        name, colon, given = advertise.rpartition(":")
        if not colon or advertise.endswith("]") or (":" in name and not name.endswith("]")):
            return endpoint(advertise, port)  # No port in it, or a bare IPv6 address.
        return endpoint(name, int(given))
    bare = host.strip("[]")
    if bare in ("0.0.0.0", "::", "*"):
        return endpoint(_outward_address(bare), port)
    return endpoint(bare, port)


def address_towards(address: str) -> str:
    """Return the address of this machine that the host of "tcp://HOST:PORT" can reach.

    Raises OSError where the host has no address, or there is no way to it.
    """
    host = address.removeprefix("tcp://").rpartition(":")[0].strip("[]")
    found = sockets.getaddrinfo(host, 9, type=sockets.SOCK_DGRAM)
    return _address_on_the_way(found[0][0], str(found[0][4][0]))


def _outward_address(wildcard: str) -> str:
    """Return this machine's address on the way out; its loopback where there is no way out."""
    family, target, loopback = sockets.AF_INET, "192.0.2.1", "127.0.0.1"
    if wildcard == "::":
        family, target, loopback = sockets.AF_INET6, "2001:db8::1", "::1"
    try:
        return _address_on_the_way(family, target)
    except OSError:
        return loopback


def _address_on_the_way(family: sockets.AddressFamily, target: str) -> str:
    with sockets.socket(family, sockets.SOCK_DGRAM) as probe:
        probe.connect((target, 9))  # Chooses a route, sends nothing.
        return str(probe.getsockname()[0])


def is_free(host: str, port: int) -> bool:
    """Return whether a TCP port of this machine could be bound just now."""
    family, kind, _protocol, _name, address = sockets.getaddrinfo(
        numeric(host), port, type=sockets.SOCK_STREAM
    )[0]
    with sockets.socket(family, kind) as probe:
        probe.setsockopt(sockets.SOL_SOCKET, sockets.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError:
            return False
    return True
