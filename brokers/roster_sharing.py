"""Which keys count, told from the authority to all: changes reach every node without a stop.

What    The node whose folder the list of keys is changed in sends it to whoever is linked to it, at
        once when it has changed and to each that joins; who gets a newer one keeps it. Who dials
        a node learns here which key that node was last seen with.
Caller  brokers/cluster.py, brokers/link_rules.py.
Never   changes the list; takes one from who is not the authority.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zray import errors
from zray.net.curve import ClusterKeys
from zray.net.link_inbox import Sender
from zray.protocol import link_messages
from zray.protocol.roles import Role

from .link_validation import BreachError

if TYPE_CHECKING:
    from .cluster import Cluster, Member

_ADDRESSES_MAX = 10_000


class RosterSharing:
    """The list of keys as one node tells and hears of it.

    Args:
        cluster: whose links carry it.
        keys: this node's; None: the cluster has none, and nothing is told.
    """

    def __init__(self, cluster: Cluster, keys: ClusterKeys | None) -> None:
        self._cluster = cluster
        self._keys = keys
        self._told = 0 if keys is None else keys.roster.version
        self._shown: dict[str, bytes] = {}
        self.trouble = ""
        """Why keys can't be read now; nobody new is let in while they can't."""

    # -- telling ---------------------------------------------------------------------------------

    def serve(self) -> None:
        """Tell all, where the list is another one than they were told; free of cost otherwise.

        Whoever has just joined with a new key is about to dial them.
        """
        keys = self._keys
        if keys is None or keys.roster.version == self._told:
            return
        self._told = keys.roster.version
        for member in list(self._cluster.members.values()):
            self.joined(member)

    def joined(self, member: Member) -> None:
        """Tell somebody who has joined; a driver with the head's folder shows another key."""
        keys = self._keys
        if keys is None or not keys.is_authority or self._cluster.key_role is not Role.NODE:
            return
        roster = keys.roster
        if member.role is not Role.NODE:
            roster = roster.of_nodes_and(keys.member_of(member.key))
        self._cluster.send(member.node, link_messages.ROSTER, roster.plain())

    def heard(self, sender: Sender, plain: Any) -> None:
        """ROSTER: take it where it is newer.

        Raises BreachError where it is not the sender's to change, SecurityError where it is no list
        of this cluster.
        """
        keys = self._keys
        if keys is None or keys.member_of(sender.key) != keys.roster.authority:
            raise BreachError("ROSTER of who may not change the list of keys")
        if keys.adopt(plain, sender.key):
            print(f"version {keys.roster.version} of the list of keys is in force", flush=True)

    # -- some times a second ---------------------------------------------------------------------

    def sweep(self) -> None:
        """Read changed keys, and end what is open by right of keys that were revoked."""
        try:
            self._cluster.inbox.sweep()
        except errors.SecurityError as error:
            if str(error) != self.trouble:
                print(f"nobody new is let in: {error}", flush=True)
            self.trouble = str(error)
        else:
            self.trouble = ""
        self._cluster.links.sweep()

    # -- which key to expect ---------------------------------------------------------------------

    def shows(self, address: str, key: bytes) -> None:
        """A node at this address was seen with this key, or has said that it shows it."""
        if self._keys is not None and key:
            self._shown.pop(address, None)
            self._shown[address] = key
            if len(self._shown) > _ADDRESSES_MAX:
                del self._shown[next(iter(self._shown))]

    def expected_at(self, address: str) -> list[bytes]:
        """Return by which key a node at this address is known; none: it may be any node."""
        key = self._shown.get(address)
        return [] if key is None else [key]
