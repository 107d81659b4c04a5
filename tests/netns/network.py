"""Machines of one network that can be cut: network namespaces on a bridge, with the kernel's TCP.

What    Network makes a bridge; each Machine of it is a namespace with a cable to the bridge and an
        address of its own. A cable can be pulled, or made deaf in one direction. Programs run in
        a machine by `ip netns exec`; files and unix sockets are those of this machine, so a driver
        of any of its nodes can be the test itself.
Caller  tests/netns/conftest.py.
Never   touches an interface that it has not made, or leaves one behind.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from itertools import count

_NUMBERS = count(1)


def reason_for_none() -> str:
    """Return why no namespaces can be made here, "" where they can."""
    if shutil.which("ip") is None:
        return "there is no `ip` here: install iproute2"
    name = f"zr{os.getpid()}-probe"
    made = _ip("netns", "add", name, check=False)
    if made.returncode:
        return f"network namespaces may not be made here: {made.stderr.strip()}"
    veth = (f"{name[:11]}-a", f"{name[:11]}-b")
    linked = _ip("link", "add", veth[0], "type", "veth", "peer", "name", veth[1], check=False)
    if not linked.returncode:
        _ip("link", "del", veth[0])
    _ip("netns", "del", name)
    return f"the kernel makes no veth: {linked.stderr.strip()}" if linked.returncode else ""


def _ip(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=10, check=False)
    assert not check or done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"
    return done


class Machine:
    """One namespace. Its cable ends at the bridge as ``port``."""

    def __init__(self, network: Network, number: int) -> None:
        self.namespace = f"{network.name}-{number}"
        self.port = f"{network.name}p{number}"
        self.address = f"10.77.0.{number}"
        self.mac = f"02:77:00:00:00:{number:02x}"
        inner = f"{network.name}i{number}"
        _ip("netns", "add", self.namespace)
        _ip("link", "add", self.port, "type", "veth", "peer", "name", inner)
        _ip("link", "set", inner, "netns", self.namespace)
        _ip("link", "set", self.port, "master", network.name)
        _ip("link", "set", self.port, "up")
        self._in("link", "set", inner, "name", "eth0")
        self._in("link", "set", "eth0", "address", self.mac)
        self._in("addr", "add", f"{self.address}/24", "dev", "eth0")
        self._in("link", "set", "eth0", "up")
        self._in("link", "set", "lo", "up")

    def _in(self, *words: str) -> None:
        _ip("-n", self.namespace, *words)

    @property
    def prefix(self) -> list[str]:
        """What stands before a command that is to run here."""
        return ["ip", "netns", "exec", self.namespace]

    def pull_cable(self) -> None:
        """Nothing gets in or out, and nobody is told."""
        _ip("link", "set", self.port, "down")

    def plug_in(self) -> None:
        """As before."""
        _ip("link", "set", self.port, "up")

    def drop_towards(self, other: Machine) -> None:
        """What this machine sends to another one is lost on the way; the other way is open."""
        nowhere = "02:77:00:00:ff:ff"
        self._neighbour(other, nowhere)

    def restore_towards(self, other: Machine) -> None:
        """As before."""
        self._neighbour(other, other.mac)

    def _neighbour(self, other: Machine, mac: str) -> None:
        row = ("neigh", "replace", other.address, "lladdr", mac, "dev", "eth0", "nud", "permanent")
        self._in(*row)

    def close(self) -> None:
        _ip("link", "del", self.port, check=False)
        _ip("netns", "del", self.namespace, check=False)


class Network:
    """A bridge with machines. It has no way to the outside, so addresses meet no others."""

    def __init__(self) -> None:
        self.name = f"zr{os.getpid() % 100_000}{next(_NUMBERS)}"
        self.machines: list[Machine] = []
        _ip("link", "add", self.name, "type", "bridge", "forward_delay", "0")
        _ip("link", "set", self.name, "up")

    def add(self) -> Machine:
        """Add a machine."""
        machine = Machine(self, len(self.machines) + 1)
        self.machines.append(machine)
        return machine

    def close(self) -> None:
        """Take all of it away."""
        for machine in self.machines:
            machine.close()
        _ip("link", "del", self.name, check=False)
