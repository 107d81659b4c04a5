"""What the holder of a key may do: the names that keys, links and the GCS share.

What    Role, a value of each key of a cluster.
Caller  zray/net/curve.py, which looks it up; the rules that ask for it.
Never   holds a key.
"""

import enum


class Role(enum.StrEnum):
    """What the holder of a key may do."""

    NODE = "node"
    CLIENT = "client"
    GATEWAY = "gateway"
