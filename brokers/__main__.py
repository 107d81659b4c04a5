"""Start a node process: ``python -m zray.brokers node --dir DIR --ready-fd N --settings JSON``.

What    Reads the arguments, takes the directory for this process, and runs the node; or the GCS of
        a cluster: ``python -m zray.brokers gcs --dir DIR --ready-fd N --bind ENDPOINT``.
Caller  zray/launch.py.
Never   is run by hand: users run zray-node.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import signal
import sys

from zray import errors, node_directory

from .log_stream import LogStream
from .next_life import begin, let_signals_in


def main() -> int:
    """Run the process that the arguments name; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m zray.brokers")
    parser.add_argument("what", choices=["node", "gcs"])
    parser.add_argument("--dir", required=True)
    parser.add_argument("--ready-fd", type=int, required=True)
    parser.add_argument("--settings", type=json.loads, default={})
    parser.add_argument("--bind", default="")
    parser.add_argument("--durability", choices=["process", "disk"], default="disk")
    parser.add_argument("--life-fd", type=int)
    parser.add_argument("--lock-fd", type=int)
    arguments = parser.parse_args()
    sys.stdout, sys.stderr = LogStream(1), LogStream(2)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    if arguments.what == "gcs":
        from .gcs.server import serve as serve_gcs

        return serve_gcs(
            arguments.dir,
            arguments.bind,
            arguments.ready_fd,
            durability=arguments.durability,
            life_fd=arguments.life_fd,
        )
    let_signals_in()
    try:
        lock = _hold(arguments.dir, arguments.lock_fd)
    except errors.NodeStartError as error:
        os.write(arguments.ready_fd, json.dumps({"error": str(error)}).encode() + b"\n")
        return 1
    for path in node_directory.dead_files(arguments.dir):
        os.unlink(path)  # Of a node that was killed here.
    from .workers import NoZygote, Zygote

    cluster = arguments.settings.get("cluster") or {}
    runs_work = cluster.get("role", "node") == "node"
    # First: it imports for 0.2 s, and so does the node.
    zygote = Zygote(arguments.dir) if runs_work else NoZygote()
    from .node_process import serve

    status, next_life = serve(arguments.dir, arguments.settings, arguments.ready_fd, zygote)
    sys.stdout.flush()
    sys.stderr.flush()
    if next_life is not None:
        begin(arguments.dir, next_life, lock)
    os.close(lock)  # The last act: who waits for the lock finds all else done.
    # Freeing ten thousand records one by one would keep whoever waits for our end: 0.15 s.
    os._exit(status)


def _hold(directory: str, lock: int | None) -> int:
    """Take the directory, unless a former life of this process has it."""
    if lock is None:
        return node_directory.hold(directory)
    os.set_inheritable(lock, False)
    return lock


if __name__ == "__main__":
    sys.exit(main())
