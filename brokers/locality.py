"""Where the inputs of a task are.

What    inputs_at() asks the object directory how large a task's arguments are and which nodes have
        them: the price of running it elsewhere is the time to fetch what is missing.
Caller  brokers/node_mailbox.py, for batches whose client has said that an input is elsewhere.
Never   guesses: an object that nobody has told of yet counts for nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

from zray.protocol.ids import NodeId, ObjectId

from .directory import Directory
from .placement import Locality


def inputs_at(objects: Directory, inputs: Iterable[ObjectId], own: NodeId) -> Locality:
    """Return how many bytes of these objects there are, and how many of them each node has.

    Args:
        objects: this node's directory.
        inputs: ids; one that is named twice is fetched once.
        own: this node's id.
    """
    total, at = 0, dict[bytes, int]()
    for identity in dict.fromkeys(inputs):
        entry = objects.entries.get(identity)
        if entry is None or entry.nbytes <= 0:
            continue
        total += entry.nbytes
        nodes = set(entry.places)
        if entry.offset >= 0 or entry.file is not None:
            nodes.add(own)
        for node in nodes:
            at[node] = at.get(node, 0) + entry.nbytes
    return Locality(total, at)
