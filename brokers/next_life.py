"""A node that is dead to all others begins another life: the same process, everything else new.

What    settings_of() says what the next life is to know of this one: where it was reached and
        whom it knew. begin() replaces the program in this process by a fresh start of itself:
        pid, directory, log and parent stay, so that whoever watches over it sees no end; the
        node's id is another one, so that nothing of the dead life can be taken for the new one's.
Caller  brokers/node_process.py, brokers/__main__.py.
Never   carries objects, actors, drivers or connections over.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from .cluster import Cluster

ENDING_SIGNALS = (signal.SIGTERM, signal.SIGINT)
"""What a node takes for a request to end."""

_ADDRESSES_MAX = 16
"""Of former members, to be dialled by who comes back: one of them will live."""


def settings_of(cluster: Cluster, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of the life after this one.

    Args:
        cluster: of the life that ends.
        settings: which it had.
    """
    former = settings["cluster"]
    known = [] if cluster.gcs is None else [cluster.gcs.address]
    known += [member.address for member in cluster.members.values()]
    known += [row.address for row in cluster.membership.living.values()]
    join = list(dict.fromkeys((*former.get("join", ()), *known)))
    own = cluster.inbox.address
    again: dict[str, Any] = {
        **former,
        "life": int(former.get("life", 1)) + 1,
        "join": [address for address in join if address != own][:_ADDRESSES_MAX],
    }
    return {**settings, "cluster": again}


def begin(directory: str, settings: dict[str, Any], lock: int) -> NoReturn:
    """Start anew in this process. What it had open is closed by the kernel, but for its log.

    Args:
        directory: of the node.
        settings: of the next life.
        lock: by which this process holds the directory, also between the two lives.

    ENDING_SIGNALS are to be blocked: one that comes now is kept, and ends the next life as soon as
    it has called let_signals_in().
    """
    nobody = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (nobody, lock):
        os.set_inheritable(descriptor, True)
    command = [
        *(sys.executable, "-m", "zray.brokers", "node", "--dir", directory),
        *("--ready-fd", str(nobody), "--settings", json.dumps(settings)),
        *("--lock-fd", str(lock)),
    ]
    os.execv(sys.executable, command)


def let_signals_in() -> None:
    """Let what came between two lives end this one, while nothing of it is there yet."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING_SIGNALS)
