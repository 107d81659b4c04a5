"""Start a node process: ``python -m zray.brokers node --dir DIR --ready-fd N --settings JSON``.

What    Reads the arguments and runs the node.
Caller  zray/launch.py.
Never   is run by hand: users run zray-node.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import signal
import sys


def main() -> int:
    """Run the process that the arguments name; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m zray.brokers")
    parser.add_argument("what", choices=["node"])
    parser.add_argument("--dir", required=True)
    parser.add_argument("--ready-fd", type=int, required=True)
    parser.add_argument("--settings", type=json.loads, default={})
    arguments = parser.parse_args()
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    from .node import serve
    return serve(arguments.dir, arguments.settings, arguments.ready_fd)


if __name__ == "__main__":
    sys.exit(main())
