"""What a run may lose: the other side of the promise that nothing referenced is ever freed.

What    Losses knows which nodes have died, which have lost each other, who made each object and
        what contained it. May an object be gone? Only where a node that it depended on is dead
        or was lost by another one: what befalls two nodes takes nothing from a third.
Caller  tests/sim/member.py tells; tests/sim/process.py asks at each error.
Never   looks into the books of the nodes: it is what they are compared with.
"""

from __future__ import annotations

from zray.protocol.ids import node_of, owner_of

LOST_KINDS = ("ObjectLostError", "OwnerDiedError")


class Losses:
    """Who is gone, and what went with it."""

    def __init__(self) -> None:
        self.touched: set[bytes] = set()
        """Nodes that are dead, or have lost or been lost by another one."""
        self.dead: set[bytes] = set()
        """Processes and nodes."""
        self.left: set[bytes] = set()
        """Nodes that have left in order: what others keep there, they have taken home before."""
        self.exposed: set[bytes] = set()
        """Nodes that a fault may have hit: others may lose them."""
        self._makers: dict[bytes, set[bytes]] = {}
        self._containers: dict[bytes, set[bytes]] = {}
        """By object: with which others it is gone."""
        self._orphaned: set[bytes] = set()

    def lost(self, node: bytes, other: bytes) -> None:
        """A node has lost another one."""
        assert node in self.exposed or other in self.exposed, (
            f"{node.hex()} loses {other.hex()}, and nothing has happened to either"
        )
        if other not in self.left:
            self.touched.update((node, other))

    def made(self, node: bytes, identity: bytes, contained: list[bytes]) -> None:
        """An object, or what its value contains, is kept at a node."""
        self._makers.setdefault(identity, set()).add(node)
        for inner in contained:
            self._containers.setdefault(inner, set()).add(identity)

    def depends(self, identity: bytes, arguments: list[bytes]) -> None:
        """What a task returns is its argument's error, where that is gone."""
        for argument in arguments:
            self._containers.setdefault(identity, set()).add(argument)

    def orphaned(self, identity: bytes) -> None:
        """Who passed this reference on does not know the receiver any more."""
        self._orphaned.add(identity)

    def excuse(self, identity: bytes) -> bool:
        """Return whether an object may be gone although somebody refers to it."""
        seen: set[bytes] = set()
        looked_at = [identity]
        while looked_at:
            each = looked_at.pop()
            if each in seen:
                continue
            seen.add(each)
            nodes = self._makers.get(each, set()) | {node_of(each)}
            if each in self._orphaned or nodes & self.touched or owner_of(each) in self.dead:
                return True
            looked_at += self._containers.get(each, ())
        return False
