"""Start the zygote: ``python -m zray.actors zygote --fd N --dir DIR``.

What    Reads the arguments and runs the process that forks workers.
Caller  brokers/workers.py.
Never   is run by hand.
"""

from __future__ import annotations

import argparse
import sys


def main() -> int:
    """Run the zygote; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m zray.actors")
    parser.add_argument("what", choices=["zygote"])
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--dir", required=True)
    arguments = parser.parse_args()
    from .zygote import serve

    return serve(arguments.fd, arguments.dir)


if __name__ == "__main__":
    sys.exit(main())
