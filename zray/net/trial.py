"""Would they let us in? What can be learnt of ports without joining a cluster.

What    binding_trouble(): whether a port of this machine is free; troubles(): whether nodes are
        reached at their ports, and they and we know each other's keys; echo_trouble(): whether
        what is sent to an address arrives at a port of ours.
Caller  `zray-node doctor`.
Never   says a word of zray's own protocol: for a node it is a member that came and went, and where
        it is none a handshake that was refused.
Spec    RFC 37 (ZMTP 3.1), the greeting.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence

import zmq

from zray.net.addresses import numeric
from zray.net.curve import ClusterKeys, Role
from zray.net.links import Links, LinkState
from zray.net.poller import READABLE, new_poller

_NAME_BYTES = 8
_TOKEN_BYTES = 16
_SIGNATURE_BYTES = 10
_SOMEBODY_ELSE = "somebody else is there: what is sent to it does not arrive here"


def troubles(
    addresses: Sequence[str], keys: ClusterKeys | None, role: Role, timeout_s: float
) -> dict[str, str]:
    """Return why nodes' ports do not let us in, by address; those that do are not in it.

    Blocks for up to ``timeout_s`` where somebody does not answer, and as long again to find out
    why, for each of those.

    Args:
        addresses: "tcp://HOST:PORT" of both kinds of ports.
        keys: whose key to show; None: without.
        role: which of them.
        timeout_s: seconds to wait.

    Raises SecurityError where there is no key to show.
    """
    context = zmq.Context()
    by_name = any("[" in each for each in addresses)
    links = Links(context, os.urandom(_NAME_BYTES), keys, role, ipv6_names=by_name)
    poller = new_poller()
    poller.register(links.descriptor, READABLE)
    silent, refused = dict.fromkeys(addresses), dict[str, str]()
    try:
        for each in silent:
            links.connect(each.encode(), each)
        deadline = time.monotonic() + timeout_s
        while silent and (left_s := deadline - time.monotonic()) > 0:
            poller.poll(left_s)
            for event in links.events():
                address = event.peer.decode()
                if event.state is LinkState.REFUSED:
                    refused[address] = event.reason
                if event.state is not LinkState.DISCONNECTED:
                    silent.pop(address, None)
    finally:
        poller.close()
        links.close(0)
        context.destroy(0)
    # Not before the handshakes: a node counts who hangs up in one among those it has refused.
    for each in silent:
        refused[each] = _greeting_trouble(each, timeout_s) or "the handshake does not end"
    return refused


def _greeting_trouble(address: str, timeout_s: float) -> str:
    try:
        with _connected(address, timeout_s) as stream:
            signature = stream.recv(_SIGNATURE_BYTES, socket.MSG_WAITALL)
    except OSError as error:
        return _reason(error, timeout_s)
    # Whoever binds a port of libzmq speaks first: 0xFF, eight bytes of padding, 0x7F.
    if len(signature) < _SIGNATURE_BYTES or (signature[0], signature[-1]) != (0xFF, 0x7F):
        return "something else than zray listens there"
    return ""


def echo_trouble(host: str, port: int, advertised: str, timeout_s: float) -> str:
    """Return why what is sent to ``advertised`` does not arrive at a port of ours, "" if it does.

    Listens there for the time: nobody else may.

    Args:
        host: to bind, port: 0: any.
        advertised: "tcp://HOST:PORT"; port 0: the one that is bound.
        timeout_s: seconds to wait.
    """
    token, bound = os.urandom(_TOKEN_BYTES), numeric(host)
    family = socket.AF_INET6 if ":" in bound else socket.AF_INET
    name, _, at = advertised.removeprefix("tcp://").rpartition(":")
    try:
        with socket.create_server((bound, port), family=family) as server:
            own = int(server.getsockname()[1])
            # The kernel takes connections in before anybody accepts them: one thread is enough.
            with _connected(f"{name}:{int(at) or own}", timeout_s) as stream:
                stream.sendall(token)
                return "" if _arrives(server, token, timeout_s) else _SOMEBODY_ELSE
    except OSError as error:
        return _reason(error, timeout_s)


def binding_trouble(host: str, port: int) -> str:
    """Return why a port of this machine cannot be bound, "" where it can just now.

    Args:
        host: an address of this machine, or a name of one.
        port: 0: any.
    """
    try:
        bound = numeric(host)
        family = socket.AF_INET6 if ":" in bound else socket.AF_INET
        socket.create_server((bound, port), family=family).close()
    except OSError as error:
        return _reason(error, 0.0)
    return ""


def _arrives(server: socket.socket, token: bytes, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while (left_s := deadline - time.monotonic()) > 0:
        server.settimeout(left_s)
        try:
            stream, _address = server.accept()
        except TimeoutError:
            return False
        with stream:
            stream.settimeout(left_s)
            try:
                if stream.recv(len(token), socket.MSG_WAITALL) == token:
                    return True
            except OSError:
                continue  # Somebody else's connection.
    return False


def _connected(address: str, timeout_s: float) -> socket.socket:
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)), timeout_s)


def _reason(error: OSError, timeout_s: float) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {timeout_s:g} s"
    if isinstance(error, socket.gaierror):
        return "no such host"
    return (error.strerror or str(error)).lower()
