"""Objects of other nodes' processes, moved home from a node that is about to leave.

What    The node that leaves tells each home what it keeps for it, with the references inside
        (kept_for()). The home takes those references over, brings the value here, and only then
        gives up what is kept there: at no moment does nobody hold it (take_over(), arrived()).
Caller  brokers/directory.py, brokers/objects_elsewhere.py.
Never   moves what the leaving node's own processes own: that ends with them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zray.protocol.ids import NodeId, ObjectId, node_of

from .sharing import Entry, ReleaseAt

if TYPE_CHECKING:
    from .directory import Directory

Row = tuple[ObjectId, list[ObjectId]]
"""An object, and what its value contains."""


class Evacuation:
    """Both sides of it, for one directory."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._leaving: dict[ObjectId, set[NodeId]] = {}
        """Objects on their way here, and who keeps them until then."""

    def kept_for(self, nodes: set[NodeId]) -> dict[NodeId, list[Row]]:
        """Return what is kept here for processes of other nodes that are there, by their nodes."""
        rows: dict[NodeId, list[Row]] = {}
        for identity, entry in self._directory.entries.items():
            home = node_of(identity)
            if home in nodes and home in entry.holders and self._directory.is_foreign(identity):
                rows.setdefault(home, []).append((identity, list(entry.contained)))
        return rows

    def take_over(self, node: NodeId, rows: list[Row]) -> None:
        """TAKE_OVER: bring these home, then give up what the node keeps; again is no error."""
        directory = self._directory
        for identity, contained in rows:
            entry = directory.entries.get(identity)
            if entry is None or node not in entry.kept_at:
                continue  # We have given it up already.
            # What an earlier execution made, here or elsewhere, may have held other references.
            missing = [inner for inner in contained if inner not in entry.contained]
            directory.contain(identity, entry, missing)
            if not entry.kept_at[node] or entry.offset >= 0 or entry.file is not None:
                self._give_up(identity, entry, node)
            else:
                self._leaving.setdefault(identity, set()).add(node)
                directory.pull(identity, entry)

    def arrived(self, identity: ObjectId, entry: Entry) -> None:
        """An object is in this node's memory."""
        for node in sorted(self._leaving.pop(identity, ())):
            if node in entry.kept_at:
                self._give_up(identity, entry, node)

    def dropped(self, identity: ObjectId) -> None:
        """An object is gone, or could not be had."""
        self._leaving.pop(identity, None)

    def _give_up(self, identity: ObjectId, entry: Entry, node: NodeId) -> None:
        del entry.kept_at[node]
        entry.places.pop(node, None)
        self._directory.commands.append(ReleaseAt(node, identity))
