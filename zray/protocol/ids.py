"""Identities: processes, tasks, objects and actors.

What    A process has 8 bytes: the 4 random ones of its node, and 4 of its own. Whatever it
        creates is named by these 8 bytes and a 64-bit number it counts up itself, so a name
        needs no round trip, can't collide, and says which node is its home.
        object number = return index (24 bits) << 40 | task number (40 bits): the first
        return of a task has the task's own number, and a batch of n tasks is a range.
Caller  every package.
Never   draws the random bytes itself: the shell that starts a process passes them in.
Spec    docs/reference/protocol.md, "Identities".
"""

PROCESS_ID_BYTES = 8
NODE_PREFIX_BYTES = 4
OBJECT_ID_BYTES = 16
GROUP_ID_BYTES = 16
TASK_NUMBER_BITS = 40
TASK_NUMBER_MAX = (1 << TASK_NUMBER_BITS) - 1

ProcessId = bytes
ObjectId = bytes
ActorId = bytes
NodeId = bytes


def node_id(prefix: bytes) -> NodeId:
    """Return the id of the node whose processes' ids begin with this prefix."""
    return prefix + bytes(PROCESS_ID_BYTES - NODE_PREFIX_BYTES)


def node_of(identity: bytes) -> NodeId:
    """Return the home node of a process, object or actor (of a node: itself)."""
    return identity[:NODE_PREFIX_BYTES] + bytes(PROCESS_ID_BYTES - NODE_PREFIX_BYTES)


def process_id(node: NodeId, own: bytes) -> ProcessId:
    """Return the id of a process of a node.

    Args:
        node: the node's id.
        own: 4 bytes, not all zero, that no other process of the node has.
    """
    return node[:NODE_PREFIX_BYTES] + own


def worker_id(node: NodeId, count: int) -> ProcessId:
    """Return the id of the ``count``-th worker of a node, from 1 on.

    Of random numbers this short two would be equal among a hundred thousand workers.
    """
    return process_id(node, count.to_bytes(PROCESS_ID_BYTES - NODE_PREFIX_BYTES, "big"))


def guest_id(node: NodeId, random: bytes) -> ProcessId:
    """Return the id of a process that connects to a node by itself; no worker's is equal.

    Args:
        node: the node's id.
        random: 4 bytes.
    """
    return process_id(node, bytes((random[0] | 0x80, *random[1:])))


def is_guest(identity: ProcessId) -> bool:
    """Return whether this is the id of a process that connected by itself: a driver, no worker."""
    return bool(identity[NODE_PREFIX_BYTES] & 0x80)


def object_id(process: ProcessId, number: int) -> ObjectId:
    """Join the owner's 8 bytes and the object's number into the 16-byte id."""
    return process + number.to_bytes(8, "big")


def owner_of(identity: ObjectId) -> ProcessId:
    """Return the 8 bytes of the process that created this object or actor."""
    return identity[:PROCESS_ID_BYTES]


def number_of(identity: ObjectId) -> int:
    """Return the number that the owner counts this object or actor by."""
    return int.from_bytes(identity[PROCESS_ID_BYTES:], "big")


def return_number(task_number: int, index: int) -> int:
    """Return the object number of return ``index`` (0 is the first) of a task."""
    return index << TASK_NUMBER_BITS | task_number


def task_number_of(number: int) -> int:
    """Return the number of the task that produces object ``number``."""
    return number & TASK_NUMBER_MAX
