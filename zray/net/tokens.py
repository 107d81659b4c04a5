"""Who may speak to a process of a node: only processes that the node has welcomed.

What    The node draws a secret at its start and hands it to each process with WELCOME. A token is
        the keyed hash of a process id: READY of an edge carries it, and it is part of the routing
        id that a mailbox shows. Looked at once a connection on edges; a mailbox compares ids.
Caller  zray/net/edges.py, zray/client.py, brokers/node.py.
Never   leaves the processes of one node, or a file.
"""

from __future__ import annotations

SECRET_BYTES = 32
TOKEN_BYTES = 64
"""Of a token: 32 bytes in hex, so that any ZeroMQ socket can show it as text."""


def token(secret: bytes, process: bytes) -> bytes:
    """Return what proves that a process knows the secret of its node."""
    import hashlib  # 3 ms, which importing zray need not wait for.

    digest = hashlib.blake2b(process, key=secret, digest_size=TOKEN_BYTES // 2)
    return digest.hexdigest().encode()


def is_token(secret: bytes, process: bytes, shown: bytes) -> bool:
    """Return whether somebody who says it is this process may be believed."""
    return is_same(token(secret, process), shown)


def is_same(expected: bytes, shown: bytes) -> bool:
    """Compare in a time that tells nothing of the bytes."""
    import hmac

    return hmac.compare_digest(expected, shown)


def routing_id(secret: bytes, process: bytes) -> bytes:
    """Return the id that a process's mailbox sockets show: nobody else can claim it."""
    return process + token(secret, process)
