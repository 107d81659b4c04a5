"""Unix sockets of a node take its own user alone, by the kernel's word.

What    Another user who has got at the socket in spite of the folder's mode is closed out before a
        byte of it is read: at streams and edges, and at ZeroMQ's mailboxes. The folder itself.
Caller  pytest.
Never   needs more than root for a second user; without root a stand-in for the kernel's word.
"""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import zray
from tests.waiting import wait_until
from zray import api
from zray.net import channel, mailbox

NOBODY = 65534
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can be a second user")
CONNECT = """
import os, socket, sys
os.setuid(int(sys.argv[2]))
stream = socket.socket(socket.AF_UNIX)
stream.settimeout(20)
stream.connect(sys.argv[1])
try:
    stream.sendall(b"let me in")
    print(stream.recv(100) or b"closed")
except (BrokenPipeError, ConnectionResetError):
    print(b"closed")
"""
SEND = """
import os, sys, zmq
os.setuid(int(sys.argv[2]))
context = zmq.Context()
socket = context.socket(zmq.DEALER)
socket.setsockopt(zmq.LINGER, 500)
socket.connect("ipc://" + sys.argv[1])
socket.send(sys.argv[2].encode())
socket.close()
context.term()
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder that others may enter, as no node's is."""
    made = Path(tempfile.mkdtemp(dir="/tmp"))
    made.chmod(0o711)
    yield made
    shutil.rmtree(made)


@as_root
def test_a_stream_of_another_user_is_closed_before_it_is_read(folder: Path) -> None:
    listener = channel.Listener(str(folder / "s"))
    try:
        (folder / "s").chmod(0o777)
        process = subprocess.Popen(
            [sys.executable, "-c", CONNECT, str(folder / "s"), str(NOBODY)],
            stdout=subprocess.PIPE,
            text=True,
        )

        def closed() -> bool:
            assert listener.accept() is None
            return process.poll() is not None

        wait_until(closed, 30)
        assert process.stdout is not None
        with process.stdout as said:
            assert said.read().strip() == "b'closed'"
        assert process.returncode == 0
    finally:
        listener.close()


def test_the_kernel_s_word_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = socket.socketpair()
    with one, other:
        assert channel.same_user(one)
        for uid, taken in ((os.getuid(), True), (0, True), (os.getuid() + 1, False)):
            monkeypatch.setattr(channel, "_credentials_of", lambda _sock, uid=uid: (1, uid, 1))
            assert channel.same_user(one) is taken


@as_root
def test_a_mailbox_takes_nothing_of_another_user(folder: Path) -> None:
    context = mailbox.new_context()
    inbox = mailbox.Inbox(context, f"ipc://{folder}/m")
    try:
        (folder / "m").chmod(0o777)
        for uid in (NOBODY, 0):
            command = [sys.executable, "-c", SEND, str(folder / "m"), str(uid)]
            subprocess.run(command, timeout=60, check=True)
        received = wait_until(inbox.receive)
        assert received is not None
        assert received[1] == b"0"
        assert inbox.receive() is None
    finally:
        inbox.close()
        context.destroy(0)


def test_a_node_s_sockets_lie_in_a_folder_of_its_user_alone() -> None:
    with zray.init(num_cpus=1):
        directory = Path(api.runtime().directory)
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        sockets = [each for each in directory.rglob("*") if stat.S_ISSOCK(each.lstat().st_mode)]
        assert sockets
        for each in sockets:
            for folder in each.parents:
                if directory in (folder, *folder.parents):
                    assert not folder.stat().st_mode & 0o077
