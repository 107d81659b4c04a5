"""Why a process asks where an object is.

What    Purpose goes with LOCATE: it says whether the value is to come to this node, and how soon.
Caller  zray/session/references.py, actors/values.py, brokers/directory.py, brokers/transferring.py.
Never   has behaviour.
"""

from enum import IntEnum


class Purpose(IntEnum):
    """The lower is the more urgent: of several that ask, the lowest counts."""

    GET = 0
    """Somebody waits for the value now."""
    ARGUMENT = 1
    """A task or call that is about to begin needs it."""
    PREFETCH = 2
    """A task that waits behind another will need it."""
    PLACE = 3
    """Nobody needs the value here: that there is one is all that is asked."""
