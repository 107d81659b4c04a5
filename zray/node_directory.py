"""The directory of a node: whose it is, who runs in it, what the dead have left there.

What    A node holds ``node.lock`` for as long as it lives, so whoever looks knows whether it does.
Caller  zray/node_address.py, zray/launch.py, zray/cli*.py, brokers/.
Never   starts a node, or lets one into a directory that other users can write to.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
import tempfile
from typing import Any

from zray import errors
from zray.protocol.ids import NODE_PREFIX_BYTES, guest_id
from zray.protocol.limits import IPC_PATH_BYTES_MAX

_LOCK = "node.lock"
_LONGEST_NAME_BYTES = len("/0123456789abcdef.e")
"""Of a mailbox in the directory: a process id in hex, and its edges' suffix."""


def report(directory: str) -> dict[str, Any]:
    """Return what the node in ``directory`` has told of itself: its id, address, role.

    Raises NodeStartError where none has.
    """
    try:
        with open(os.path.join(directory, "node.json")) as file:
            found: dict[str, Any] = json.load(file)
            bytes.fromhex(found["node"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise errors.NodeStartError(
            f"no node answers at {directory} ({error}): start one with `zray-node start --dir"
            f" {directory}`"
        ) from None
    return found


def new_process(directory: str) -> bytes:
    """Return an id for a process that is to connect to the node in ``directory``.

    Raises NodeStartError where no node has told of itself there.
    """
    node = bytes.fromhex(report(directory)["node"])
    return guest_id(node, os.urandom(NODE_PREFIX_BYTES))


def temporary_base() -> str:
    """Return where the directories of embedded nodes are made."""
    return os.environ.get("ZRAY_TMPDIR") or tempfile.gettempdir()


def default_directory() -> str:
    """Return the directory of ``zray-node start`` where none is given: one a user."""
    return os.path.join(temporary_base(), f"zray-node-{os.getuid()}")


def prepare(directory: str) -> str:
    """Make the directory of a node that stays, or check the one that is there.

    Returns its absolute path.

    Raises NodeStartError where it cannot be used: not ours, open to others, or its path too long.
    """
    path = os.path.abspath(directory)
    if len(os.fsencode(path)) + _LONGEST_NAME_BYTES > IPC_PATH_BYTES_MAX:
        raise errors.NodeStartError(
            f"{path} is too long for the sockets in it: the kernel allows {IPC_PATH_BYTES_MAX}"
            f" bytes in all. Choose a directory of at most"
            f" {IPC_PATH_BYTES_MAX - _LONGEST_NAME_BYTES} bytes (--dir)"
        )
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
    except OSError as error:
        raise errors.NodeStartError(
            f"{path} cannot be made ({error.strerror}): choose another directory (--dir)"
        ) from None
    check_private(path)
    return path


def check_private(path: str) -> None:
    """Raise NodeStartError where others than this user could have put sockets into ``path``."""
    status = os.stat(path)
    if not stat.S_ISDIR(status.st_mode):
        raise errors.NodeStartError(f"{path} is not a directory")
    if status.st_uid not in (os.getuid(), 0):
        raise errors.NodeStartError(
            f"{path} belongs to user {status.st_uid}: a node's directory must be your own"
        )
    if status.st_mode & 0o022:
        raise errors.NodeStartError(
            f"{path} can be written to by others: chmod 700 it, or choose another directory"
        )


# -- who runs in it ----------------------------------------------------------------------------


def hold(directory: str) -> int:
    """Take the directory for this process until it ends; returns the descriptor to keep open.

    Raises NodeStartError, naming the pid, where another node has it.
    """
    descriptor = os.open(
        os.path.join(directory, _LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
    )
    try:
        # flock and not a POSIX lock: it ends with the holder, whoever else opens and closes it.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        pid = os.read(descriptor, 32).decode(errors="replace").strip()
        os.close(descriptor)
        raise errors.NodeStartError(
            f"a node runs in {directory} already, with pid {pid}: connect to it, stop it with"
            f" `zray-node stop --dir {directory}`, or choose another --dir"
        ) from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, b"%d\n" % os.getpid())
    return descriptor


def holder_pid(directory: str) -> int | None:
    """Return the pid of the node that runs in ``directory``, None where there is none."""
    try:
        descriptor = os.open(os.path.join(directory, _LOCK), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return int(os.read(descriptor, 32) or b"0")
    else:
        return None
    finally:
        os.close(descriptor)


def was_a_node(directory: str) -> bool:
    """Return whether a node has ever run in ``directory``."""
    return os.path.exists(os.path.join(directory, _LOCK))


def last_words(directory: str) -> str:
    """Return the end of the node's log where it ended with a traceback, as part of a reason."""
    try:
        with open(os.path.join(directory, "node.log"), errors="replace") as log:
            text = log.read()[-4000:]
    except OSError:
        return ""
    at = text.rfind("Traceback (most recent call last)")
    return f"; its log ends with\n{text[at:].strip()}" if at >= 0 else ""


def dead_files(directory: str) -> list[str]:
    """Return the sockets in ``directory`` and its node's report: of use to the living only."""
    return [
        entry.path
        for entry in os.scandir(directory)
        if entry.name == "node.json" or stat.S_ISSOCK(entry.stat(follow_symlinks=False).st_mode)
    ]


def remove_mailbox(directory: str, process: bytes) -> None:
    """Remove the sockets of a process that is gone: one that was killed could not."""
    for suffix in ("", ".e"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(directory, process.hex() + suffix))
