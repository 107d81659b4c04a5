"""The GCS process of a cluster, as tests find it.

What    gcs_pid() says which one serves now; a head has another one ready beside it.
Caller  tests in tests/multinode.
Never   ends one.
"""

from __future__ import annotations

import json
from pathlib import Path

from zray.testing import TestNode


def gcs_pid(head: TestNode | str) -> int:
    """Return the pid of the GCS process that serves now.

    Args:
        head: the head node, or its directory.
    """
    directory = head if isinstance(head, str) else head.directory
    return int(json.loads(Path(directory, "cluster-gcs", "gcs.json").read_text())["pid"])
