"""What listens at a TCP port of a node, so that the key it shows can change.

What    libzmq keeps the key of a listening socket for its life, and ends all its connections with
        it. So a port with a new key is one more listening socket at the same address, and the
        kernel is told to give it whoever comes from now on; the older ones keep their connections.
Caller  zray/net/guarded_port.py.
Never   lets another process listen at a port that was bound here first.
Spec    socket(7): SO_REUSEPORT, SO_ATTACH_REUSEPORT_CBPF; zmq_setsockopt: ZMQ_USE_FD.
"""

from __future__ import annotations

import ctypes
import socket as sockets
import struct
import sys

import zmq

from .addresses import endpoint, numeric

_BACKLOG = 1024
_ATTACH_REUSEPORT_CBPF = 51
_BPF_RETURN_CONSTANT = 0x06
_BPF_INSTRUCTION = struct.Struct("=HBBI")
_BPF_PROGRAM = struct.Struct("HP")


class Listeners:
    """The listening sockets of one port.

    Args:
        host: IP address to bind, or "localhost".
        port: 0: one that is free.

    Raises OSError where the address is not of this machine, or taken.
    """

    def __init__(self, host: str, port: int) -> None:
        bare = numeric(host)
        self.is_ipv6 = ":" in bare
        self._family = sockets.AF_INET6 if self.is_ipv6 else sockets.AF_INET
        self._address: tuple[str | int, ...] = (bare, port)
        try:
            self._first = self._bind()
        except OSError as error:
            text = f"cannot bind {endpoint(host, port)}: {error.strerror}"
            raise OSError(error.errno, text) from None
        self._address = self._first.getsockname()
        self.port = int(self._address[1])
        self._count = 1
        self._endpoint = endpoint(str(self._address[0]), self.port)

    def _bind(self, *, reuse: bool = False) -> sockets.socket:
        made = sockets.socket(self._family, sockets.SOCK_STREAM)
        try:
            made.setsockopt(sockets.SOL_SOCKET, sockets.SO_REUSEADDR, 1)
            if reuse:
                made.setsockopt(sockets.SOL_SOCKET, sockets.SO_REUSEPORT, 1)
            if self.is_ipv6:
                made.setsockopt(sockets.IPPROTO_IPV6, sockets.IPV6_V6ONLY, 0)
            made.bind(self._address)
            made.listen(_BACKLOG)
            if reuse:
                self._choose(made)
            made.setblocking(False)
        except BaseException:
            made.close()
            raise
        return made

    def hand_over(self, socket: zmq.Socket[bytes]) -> None:
        """Let a socket of libzmq accept who comes to this port."""
        self._hand_over(socket, self._first.dup())

    def _hand_over(self, socket: zmq.Socket[bytes], listening: sockets.socket) -> None:
        if self.is_ipv6:
            socket.setsockopt(zmq.IPV6, 1)
        descriptor = listening.detach()  # libzmq closes it.
        socket.setsockopt(zmq.USE_FD, descriptor)
        try:
            socket.bind(self._endpoint)
        finally:
            socket.setsockopt(zmq.USE_FD, -1)

    def renew(self, socket: zmq.Socket[bytes]) -> bool:
        """Let connections from now on have the socket's options as they are now.

        Returns False where this system can't: then they come with the next start.
        """
        if sys.platform != "linux":
            return False
        # Not from the beginning: until then nobody else of this user can bind the port as well.
        self._first.setsockopt(sockets.SOL_SOCKET, sockets.SO_REUSEPORT, 1)
        self._hand_over(socket, self._bind(reuse=True))
        self._count += 1
        return True

    def _choose(self, listening: sockets.socket) -> None:
        """Tell the kernel to give all that come to the newest listener."""
        instruction = ctypes.create_string_buffer(
            _BPF_INSTRUCTION.pack(_BPF_RETURN_CONSTANT, 0, 0, self._count)
        )
        program = struct.pack("@HP", 1, ctypes.addressof(instruction))
        listening.setsockopt(sockets.SOL_SOCKET, _ATTACH_REUSEPORT_CBPF, program)

    def close(self) -> None:
        """Let go of the port; libzmq closes what it was given."""
        self._first.close()
