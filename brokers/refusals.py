"""Who does not let this node in, whom this node does not let in, and why.

What    Refusals keeps the reasons for people. Who greets us in a role that is not its key's, or in
        another version of the protocol, is told so by a LINK_HELLO that says nothing else: it
        would wait for an answer for ever. Who sends what nobody may, or what is another's to say,
        is cut off, and comes in no more.
Caller  brokers/cluster.py, brokers/link_rules.py.
Never   dials who has shown no key of a member.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from zray.net.link_inbox import Sender
from zray.protocol import frames, link_messages, messages
from zray.protocol.frames import other_version
from zray.protocol.limits import PROTOCOL_VERSION
from zray.protocol.roles import Role, may_claim

from .gateway_calls import GatewayCalls
from .link_roles import RoleError, refused_calls
from .node_outcomes import error_outcome

if TYPE_CHECKING:
    from .cluster import Cluster

_TELL_S = 2.0
_TELLING_MAX = 16
"""Peers that are being told; beyond them they find out by their own patience."""
_SHUT_OUT_MAX = 1000


class Refusals:
    """What one node knows of refusals.

    Args:
        cluster: whose links and inbox these are.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.by_address: dict[str, str] = {}
        """Addresses that we dial, who is there has refused us last, and why."""
        self.silent: set[str] = set()
        """Addresses where the handshake was fine, and no greeting has come yet."""
        self.count = 0
        """Messages of clients and gateways that were not for their role."""
        self._shut_out: OrderedDict[tuple[bytes, bytes], str] = OrderedDict()
        """By name and key: nobody shuts another out by taking its name."""
        self._telling: dict[bytes, float] = {}
        self.gateways = GatewayCalls(self.refuse_calls)

    # -- who refuses us --------------------------------------------------------------------------

    def refused_us(self, link: bytes, reason: str) -> None:
        """A handshake has failed, or a greeting was answered by a refusal."""
        cluster = self._cluster
        if link in self._telling:
            return
        if link in cluster.joining:
            self.by_address[cluster.joining[link]] = reason
        print(f"the link to {link.hex()} was refused: {reason}", flush=True)

    def let_us_in(self, link: bytes) -> None:
        """Whom we dial knows our key."""
        address = self._cluster.joining[link]
        self.by_address.pop(address, None)
        self.silent.add(address)

    # -- whom we refuse --------------------------------------------------------------------------

    def check_role(self, sender: Sender, details: dict[str, Any]) -> Role:
        """Return the role that a LINK_HELLO claims.

        Raises RoleError, and tells the sender, where its key does not give it that one.
        """
        claimed = Role(details["role"])
        why = self._shut_out.get((sender.peer, sender.key), "")
        if not why and not may_claim(sender.role, claimed):
            why = f"its key is that of a {sender.role}, and it comes as a {claimed}"
        known = self._cluster.members.get(details["node"])
        if not why and known is not None and known.role is not claimed:
            why = f"its name is that of a {known.role}"
        if not why and claimed is not Role.NODE and self._cluster.role is not Role.NODE:
            why = "clients and gateways know nodes only"
        if why:
            self._tell(sender, details, why)
            raise RoleError(f"{sender.peer.hex()} is refused: {why}")
        return claimed

    def read_other_version(self, sender: Sender, header: bytes) -> bool:
        """Take a LINK_HELLO of another version of the protocol; False: it is none."""
        found = other_version(header)
        if found is None or found[1] != link_messages.LINK_HELLO:
            return False
        version, _kind, details = found
        if "refused" in details:
            self.heard(details)
        else:
            self._tell(
                sender,
                details,
                f"it speaks version {PROTOCOL_VERSION} of the protocol, and this is version"
                f" {version}: let both run the same release of zray",
            )
        return True

    def heard(self, details: dict[str, Any]) -> None:
        """A LINK_HELLO that is a refusal."""
        self.refused_us(str(details["answers"]).encode(), str(details["refused"])[:500])

    def _tell(self, sender: Sender, details: dict[str, Any], why: str) -> None:
        cluster = self._cluster
        address = str(details["address"])
        link = b"refusal of " + address.encode()
        if link in self._telling or len(self._telling) >= _TELLING_MAX:
            return
        self._telling[link] = cluster.node.now + _TELL_S
        cluster.links.connect(link, address, [sender.key] if sender.key else [])
        answer = {"refused": why, "answers": str(details["to"])}
        cluster.links.send(link, frames.pack(link_messages.LINK_HELLO, answer))

    def sweep(self) -> None:
        """A few times a second."""
        now = self._cluster.node.now
        for link in [each for each, until in self._telling.items() if now > until]:
            del self._telling[link]
            self._cluster.links.drop(link)

    # -- who lies --------------------------------------------------------------------------------

    def shut_out(self, sender: Sender, reason: str) -> None:
        """Cut off who has sent what is not for it to send: no program of this release does."""
        cluster = self._cluster
        self.count += 1
        who = sender.peer, sender.key
        if who not in self._shut_out:
            print(f"{sender.peer.hex()} at {sender.address} is shut out: {reason}", flush=True)
        self._shut_out[who] = reason
        while len(self._shut_out) > _SHUT_OUT_MAX:
            self._shut_out.popitem(last=False)
        cluster.lost(sender.peer, f"it was shut out: {reason}")
        cluster.inbox.refuse(sender, "shut out")

    def is_shut_out(self, node: bytes) -> bool:
        """Return whether somebody of this name is not let in any more: then it is not dialled."""
        return any(name == node for name, _key in self._shut_out)

    def rows(self) -> list[dict[str, str]]:
        """Return who is not let in any more, and why, for people."""
        return [
            {"node": name.hex(), "key": key.decode(), "reason": reason}
            for (name, key), reason in self._shut_out.items()
        ]

    # -- calls of gateways -----------------------------------------------------------------------

    def refuse_calls(self, destination: bytes, source: bytes, payloads: list[bytes]) -> bool:
        """Answer calls of a gateway's process that are not data; False: they may go on.

        Raises RoleError for what is no call.
        """
        from zray.errors import SecurityError

        refused = refused_calls(payloads)
        if refused is None:
            return False
        self.count += 1
        error = SecurityError(
            f"the node has refused calls of a gateway: {refused.reason}. A gateway calls methods of"
            " actors with numbers, strings, bytes, lists, dicts and numpy arrays"
        )
        outcomes = [error_outcome(error)] * len(refused.numbers)
        replies = frames.pack(messages.REPLIES, refused.numbers, outcomes, True)
        self._cluster.relays.say(source, [replies], destination)
        return True
