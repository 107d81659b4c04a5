"""What a node that stays writes to disk of its own and its workers' output, bounded.

What    OutputLog appends workers' lines to ``workers.log``; bound_log() does the same for a file
        that somebody else holds open for appending, such as this process's stderr.
Caller  brokers/node.py.
Never   keeps more than two files of LOG_BYTES_MAX each.
"""

from __future__ import annotations

import os
import shutil
import time

from zray.protocol.limits import LOG_BYTES_MAX


class OutputLog:
    """The file ``workers.log`` of a node's directory.

    Args:
        directory: the node's directory.
        max_bytes: size at which the file is moved to ``workers.log.1``.
    """

    def __init__(self, directory: str, max_bytes: int = LOG_BYTES_MAX) -> None:
        self._path = os.path.join(directory, "workers.log")
        self._max_bytes = max_bytes
        self._file = open(self._path, "ab")  # noqa: SIM115

    def write(self, lines: list[tuple[str, bool, str]]) -> None:
        """Append lines as (label, is_stderr, text), with the time and the label in front.

        A disk that is full costs the lines, not the node.
        """
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S")
        text = "".join(f"{stamp} ({label}) {line}\n" for label, _is_stderr, line in lines)
        try:
            self._file.write(text.encode(errors="replace"))
            self._file.flush()
            if self._file.tell() > self._max_bytes:
                self._rotate()
        except OSError as error:
            print(f"workers.log: {len(lines)} lines lost: {error}", flush=True)

    def _rotate(self) -> None:
        self._file.close()
        os.replace(self._path, self._path + ".1")
        self._file = open(self._path, "ab")  # noqa: SIM115

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def bound_log(path: str, max_bytes: int = LOG_BYTES_MAX) -> None:
    """Move what a log holds to ``path.1`` once it is larger than ``max_bytes``.

    Whoever holds it open for appending goes on at its new beginning.
    """
    try:
        if os.stat(path).st_size <= max_bytes:
            return
        shutil.copyfile(path, path + ".1")
        os.truncate(path, 0)
    except OSError as error:
        print(f"{path} could not be bounded: {error}", flush=True)
