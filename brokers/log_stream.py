"""Standard output of a node's processes: a log whose disk may be full.

What    LogStream takes what is printed and writes it at once. What the disk does not take is lost,
        counted, and told of in the log as soon as there is room: a line of a log is not worth the
        process that prints it.
Caller  brokers/__main__.py, in place of sys.stdout and sys.stderr.
Never   raises, keeps what it could not write, or closes the descriptor.
"""

from __future__ import annotations

import io
import os


class LogStream(io.TextIOBase):
    """A text stream without a buffer.

    Args:
        descriptor: of the log.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.lost = 0
        """Pieces of text that were not written since the last one that was."""

    def write(self, text: str) -> int:
        """Write text, or lose it; returns its length."""
        if self.lost:
            text = f"({self.lost} pieces of this log are lost: it could not be written)\n{text}"
        data = memoryview(text.encode(errors="backslashreplace"))
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
            self.lost = 0
        except OSError:
            self.lost += 1
        return len(text)

    def writable(self) -> bool:
        """Return True."""
        return True

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._descriptor
