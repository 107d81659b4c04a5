"""msgpack with types: packb for plain values, unpackb for what a peer sent.

What    The two functions of msgpack that zray uses, declared as what they are.
Caller  zray/protocol, zray/session, actors, brokers.
Never   packs anything but plain types: user values are pickled (zray/serialization).
"""

from collections.abc import Callable
from typing import Any, cast

import msgpack

packb = cast("Callable[[Any], bytes]", msgpack.packb)
unpackb = cast("Callable[..., Any]", msgpack.unpackb)
