"""Roles of the members of a cluster, and which messages of links each of them may send.

What    A role is that of the key a member shows; whoever shows the key of one may claim a lesser
        one. A node may send all. A client is a node without resources, of a driver elsewhere: it
        uses the cluster and never lends, never runs and never speaks for others. A gateway calls
        the actors that the cluster has, and ships no code. A kind without a row is a node's.
Caller  zray/net/curve.py, brokers/link_roles.py, brokers/gcs/permissions.py.
Never   looks into a message: brokers/link_roles.py does.
Spec    docs/explanation/threat-model.md, "Roles".
"""

import enum

from zray.protocol import link_messages as link
from zray.protocol import messages


class Role(enum.StrEnum):
    """What the holder of a key may do."""

    NODE = "node"
    CLIENT = "client"
    GATEWAY = "gateway"


_RIGHTS = (Role.GATEWAY, Role.CLIENT, Role.NODE)


def may_claim(key: Role, claimed: Role) -> bool:
    """Return whether who shows a key of one role may act in another one: a lesser, or its own."""
    return _RIGHTS.index(claimed) <= _RIGHTS.index(key)


_NODES = frozenset((Role.NODE,))
_USERS = frozenset((Role.NODE, Role.CLIENT))
_ALL = frozenset(Role)

LINK_SENDERS: dict[int, frozenset[Role]] = {
    link.LINK_HELLO: _ALL,
    link.GCS_CALL: _ALL,  # brokers/gcs/permissions.py says what of it is done.
    link.GCS_ANSWER: _NODES,
    link.ROSTER: _NODES,  # Of the authority's key alone: brokers/roster_sharing.py.
    link.RELAY: _ALL,
    link.BORROW: _USERS,
    link.LENT: _NODES,
    link.GIVE_BACK: _USERS,
    link.WANTED_BACK: _NODES,
    link.TO_WORKER: _USERS,
    link.TELL_WORKER: _USERS,
    link.END_WORKER: _USERS,
    link.FROM_WORKER: _NODES,
    link.WORKER_DIED: _NODES,
    link.SUSPECTED: _USERS,
    link.STOPPED: _NODES,
    link.HOST_RENEW: _NODES,
    link.HOST_RENEWED: _USERS,  # A driver's node is the home of the actors it has made.
    link.HOSTS_ENDED: _NODES,
    link.JOB_ENDED: _ALL,
    link.OUTPUT: _NODES,
    link.CODE_WANTED: _USERS,
    link.CODE: _USERS,
    link.STORED_AT: _NODES,  # Only workers make what belongs to others.
    link.LOCATE_FOREIGN: _ALL,
    link.FOUND: _USERS,
    link.HOLDS_COUNTED: _ALL,
    link.COPY_GONE: _ALL,
    link.TAKE_OVER: _NODES,  # Of what it keeps for others: a driver's node keeps nothing.
    link.DRAIN: _NODES,
    link.LEAVING: _NODES,
    link.LINEAGE: _NODES,
    link.LINEAGE_KEPT: _NODES,
    link.LINEAGE_ENDED: _NODES,
    link.OFFER: _NODES,
    link.GROUP_ASK: _USERS,  # The group's own node asks.
    link.GROUP_SAID: _NODES,
    link.GROUP_GONE: _USERS,
    link.QUERY: _ALL,
    link.QUERY_ROWS: _ALL,  # Of what it has itself: a driver's node has the tasks that wait there.
    link.QUERY_NEXT: _ALL,
    messages.HOLD: _ALL,
    messages.RELEASE: _ALL,
    messages.WATCH_ACTOR: _ALL,
    messages.KILL_ACTOR: _USERS,
    messages.ACTOR_STATE: _USERS,
    messages.PROCESS_DIED: _USERS,
}
"""By kind: the roles whose messages are taken."""


def may_send(role: Role, kind: int) -> bool:
    """Return whether a member of this role may send a message of this kind to another."""
    return role in LINK_SENDERS.get(kind, _NODES)
