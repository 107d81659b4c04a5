"""CURVE keys: who is a member of the cluster, on disk and at the door.

What    Key pairs, the folder that holds them with the list of members (``keys.json``), and the ZAP
        handler that libzmq asks for every handshake: the newest table answers. A key has a role:
        node, client (a driver: may ship code), gateway (may call, may not ship code).
Caller  zray/net/links.py, the bulk port, `zray-node keygen`.
Never   lets in what it cannot look up; writes a secret where others can read it, or prints one.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
import struct
from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import zmq
from zmq.utils import z85

from zray.errors import SecurityError
from zray.protocol.roles import Role as Role

ZAP_DOMAIN = b"zray"
PUBLIC_KEY_BYTES = 40
"""Of a key as zray shows it: 32 bytes in Z85."""

_FILE = "keys.json"
_FORMAT = 1
_FILE_BYTES_MAX = 16 * 1024 * 1024
_ZAP_ENDPOINT = "inproc://zeromq.zap.01"


@dataclass(frozen=True, slots=True)
class KeyPair:
    """One CURVE key pair, both halves in Z85 (40 bytes)."""

    public: bytes
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Table:
    """What one version of the file says. Immutable: another thread's ZAP handler reads it."""

    pairs: dict[Role, tuple[KeyPair, ...]]
    """The first is the one in use, further ones are known and wait."""
    valid: dict[bytes, Role]
    retired: dict[bytes, Role]
    """Not let in any more; connections that they opened before live on."""


def make_pair() -> KeyPair:
    """Return a new key pair.

    Raises SecurityError where this build of libzmq has no CURVE.
    """
    if not zmq.has("curve"):
        raise SecurityError("this libzmq was built without CURVE: install pyzmq from PyPI (>=27.3)")
    public, secret = zmq.curve_keypair()
    return KeyPair(public, secret)


def default_directory() -> str:
    """Return the folder of this user's cluster keys."""
    return os.path.join(os.path.expanduser("~"), ".zray", "cluster")


class ClusterKeys:
    """The keys in one folder. Reading is safe from any thread.

    Args:
        directory: absolute or relative path; use create() or load() rather than this.
        table: what the file says.
        seen: identity of the file that was read.
    """

    def __init__(self, directory: str, table: _Table, seen: tuple[int, ...]) -> None:
        self.directory = directory
        self.revision = 0
        """Grows by one with every change that reload() finds."""
        self._table = table
        self._seen = seen

    @classmethod
    def create(cls, directory: str | None = None) -> ClusterKeys:
        """Make the folder with one new key pair for each role.

        Raises SecurityError where keys are there already, or the folder is open to others.
        """
        path = os.path.abspath(directory or default_directory())
        os.makedirs(path, mode=0o700, exist_ok=True)
        _check_folder(path)
        pairs: dict[Role, tuple[KeyPair, ...]] = {role: (make_pair(),) for role in Role}
        members = {pairs[role][0].public: role for role in Role}
        with _locked(path):
            if os.path.lexists(os.path.join(path, _FILE)):
                raise SecurityError(f"{path} holds cluster keys already: rotate them, or use them")
            _write(path, _Table(pairs, members, {}))
        return cls.load(path)

    @classmethod
    def load(cls, directory: str | None = None) -> ClusterKeys:
        """Read the keys in a folder.

        Raises SecurityError where there are none, or others can read them.
        """
        path = os.path.abspath(directory or default_directory())
        return cls(path, *_read(path))

    @classmethod
    def ensure(cls, directory: str | None = None) -> ClusterKeys:
        """Read the keys in a folder, where there are none make them first.

        Raises SecurityError where those that are there cannot be used.
        """
        file = os.path.join(os.path.abspath(directory or default_directory()), _FILE)
        if not os.path.lexists(file):
            try:
                return cls.create(directory)
            except SecurityError:
                if not os.path.lexists(file):  # Else somebody has made them at the same time.
                    raise
        return cls.load(directory)

    def reload(self) -> bool:
        """Read the file again if it is another one by now; return whether it is.

        Raises SecurityError where the new one cannot be used; the old table stays in force.
        """
        if _identity(os.path.join(self.directory, _FILE)) == self._seen:
            return False
        self._table, self._seen = _read(self.directory)
        self.revision += 1
        return True

    def pair(self, role: Role) -> KeyPair:
        """Return the pair in use for a role.

        Raises SecurityError where this folder has no secret for it.
        """
        pairs = self._table.pairs.get(role)
        if not pairs:
            raise SecurityError(
                f"{self.directory} has no {role} key: copy the folder of a {role}, or export one"
                " on a node"
            )
        return pairs[0]

    def server_keys(self) -> list[bytes]:
        """Return the public keys a node may show, the one in use first."""
        own = [pair.public for pair in self._table.pairs.get(Role.NODE, ())]
        listed = [key for key, role in self._table.valid.items() if role is Role.NODE]
        return list(dict.fromkeys([key for key in own if key in listed] + listed))

    def role_of(self, public: bytes, *, retired: bool = False) -> Role | None:
        """Return the role of a public key (Z85), None for a stranger's.

        Args:
            public: the key.
            retired: also keys that open no new connection.
        """
        table = self._table
        return table.valid.get(public) or (table.retired.get(public) if retired else None)

    # -- changes on disk ---------------------------------------------------------------------------

    def add(self, role: Role) -> KeyPair:
        """Make a further pair for a role: first step of a rotation, then copy the folder."""
        pair = make_pair()
        with self._changing() as table:
            table.pairs[role] = (*table.pairs.get(role, ()), pair)
            table.valid[pair.public] = role
        return pair

    def activate(self, role: Role) -> KeyPair:
        """Use the newest pair of a role from now on: second step, when every folder has it."""
        with self._changing() as table:
            *others, newest = table.pairs.get(role, ()) or (self.pair(role),)
            table.pairs[role] = (newest, *others)
        return newest

    def retire(self, role: Role) -> list[bytes]:
        """Let the pairs of a role that are not in use open no new connection: the third step.

        Connections that are open stay: see revoke().
        """
        with self._changing() as table:
            first, *others = table.pairs.get(role, ()) or (self.pair(role),)
            table.pairs[role] = (first,)
            for pair in others:
                table.valid.pop(pair.public, None)
                table.retired[pair.public] = role
        return [pair.public for pair in others]

    def admit(self, public: bytes, role: Role) -> None:
        """Make a public key a member whose secret is kept elsewhere.

        Raises SecurityError where it is no key.
        """
        _check_key(public, "the key to admit")
        with self._changing() as table:
            table.valid[public] = role

    def revoke(self, public: bytes) -> None:
        """Shut a key out for good: connections that it opened are cut as well."""
        with self._changing() as table:
            table.valid.pop(public, None)
            table.retired.pop(public, None)
            for role, pairs in table.pairs.items():
                table.pairs[role] = tuple(pair for pair in pairs if pair.public != public)

    def export(self, directory: str, role: Role) -> ClusterKeys:
        """Write a folder for one role: its own secrets, and only the public keys of the nodes.

        Raises SecurityError where the folder holds keys already.
        """
        path = os.path.abspath(directory)
        os.makedirs(path, mode=0o700, exist_ok=True)
        _check_folder(path)
        self.pair(role)
        table = self._table
        known = {k: r for k, r in table.valid.items() if r is Role.NODE or role is Role.NODE}
        with _locked(path):
            if os.path.lexists(os.path.join(path, _FILE)):
                raise SecurityError(f"{path} holds cluster keys already: choose another folder")
            _write(path, _Table({role: table.pairs[role]}, known, {}))
        return type(self).load(path)

    @contextlib.contextmanager
    def _changing(self) -> Generator[_Table]:
        """Give a copy to change; write and read it while no other process does the same."""
        with _locked(self.directory):
            table, _seen = _read(self.directory)
            yield table
            _write(self.directory, table)
        self.reload()


class ZapHandler:
    """Answers libzmq's question whether a peer may come in, for all sockets of one context.

    Make it before the first bind: what libzmq asks while nobody answers, it takes as yes where
    ZAP_ENFORCE_DOMAIN is off. secure_server() sets that, so the two belong together.

    Args:
        context: one context has one handler.
        keys: the members.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], keys: ClusterKeys) -> None:
        self._keys = keys
        self._socket = context.socket(zmq.REP)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(_ZAP_ENDPOINT)
        self.descriptor = int(self._socket.get(zmq.FD))
        self.refused: Counter[str] = Counter()
        """Handshakes refused, by reason."""

    def serve(self) -> bool:
        """Answer all that has been asked; return whether anything was."""
        asked = False
        while True:
            try:
                request = self._socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return asked
            asked = True
            self._socket.send_multipart(self._answer(request))

    def _answer(self, request: list[bytes]) -> list[bytes]:
        number = request[1] if len(request) > 1 else b""
        if len(request) != 7 or request[0] != b"1.0" or request[2] != ZAP_DOMAIN:
            return self._refuse(number, "malformed")
        if request[5] != b"CURVE" or len(request[6]) != 32:
            return self._refuse(number, "mechanism")
        public = z85.encode(request[6])
        try:
            self._keys.reload()
        except SecurityError:
            # A table that cannot be read says nothing of who has been shut out since.
            return self._refuse(number, "unreadable keys")
        if self._keys.role_of(public) is None:
            return self._refuse(number, "unknown key")
        return [b"1.0", number, b"200", b"OK", public, b""]

    def _refuse(self, number: bytes, reason: str) -> list[bytes]:
        self.refused[reason] += 1
        return [b"1.0", number, b"400", b"not a member", b"", b""]

    def close(self) -> None:
        """Give the socket back; close what it guards first."""
        self._socket.close(0)


def secure_server(socket: zmq.Socket[bytes], pair: KeyPair) -> None:
    """Make a socket that is to be bound a CURVE server that fails closed."""
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    socket.setsockopt(zmq.CURVE_SECRETKEY, pair.secret)
    socket.setsockopt(zmq.ZAP_DOMAIN, ZAP_DOMAIN)
    # Without it a missing handler would let in everybody who knows our public key.
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)


def secure_client(socket: zmq.Socket[bytes], pair: KeyPair, server_key: bytes) -> None:
    """Make a socket that is to be connected speak to the holder of ``server_key`` only."""
    socket.setsockopt(zmq.CURVE_PUBLICKEY, pair.public)
    socket.setsockopt(zmq.CURVE_SECRETKEY, pair.secret)
    socket.setsockopt(zmq.CURVE_SERVERKEY, server_key)


# -- the file --------------------------------------------------------------------------------------


def _identity(path: str) -> tuple[int, ...]:
    try:
        status = os.stat(path)
    except OSError:
        return ()
    return status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_size


def _check_folder(path: str) -> None:
    _check_private(path, os.stat(path), 0o700)


def _check_private(path: str, status: os.stat_result, mode: int) -> None:
    if status.st_uid not in (os.getuid(), 0):
        raise SecurityError(f"{path} belongs to user {status.st_uid}: keys must be your own")
    if status.st_mode & 0o077:
        raise SecurityError(
            f"{path} is open to others (mode {stat.S_IMODE(status.st_mode):04o}): whoever can read"
            f" it can join the cluster. chmod {mode:04o} it, and rotate keys others may have read"
        )


@contextlib.contextmanager
def _locked(directory: str) -> Generator[None]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _read(directory: str) -> tuple[_Table, tuple[int, ...]]:
    path = os.path.join(directory, _FILE)
    seen = _identity(path)
    try:
        _check_folder(directory)
        with open(path, "rb") as file:
            # Of the descriptor: the path could name another file between a check and a read.
            _check_private(path, os.fstat(file.fileno()), 0o600)
            text = file.read(_FILE_BYTES_MAX)
    except OSError as error:
        raise SecurityError(
            f"no cluster keys in {directory} ({error.strerror}): copy the folder from a node, name"
            " another with --keys, or make keys with `zray-node keygen`"
        ) from None
    try:
        return _parse(json.loads(text)), seen
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SecurityError(f"{path} is no file of cluster keys: {error!r}") from None


def _parse(plain: dict[str, Any]) -> _Table:
    if plain["format"] != _FORMAT:
        raise ValueError(f"format {plain['format']!r}, this release reads {_FORMAT}")
    pairs: dict[Role, tuple[KeyPair, ...]] = {}
    for role, listed in plain["pairs"].items():
        pairs[Role(role)] = tuple(
            _checked(KeyPair(each["public"].encode(), each["secret"].encode())) for each in listed
        )
    valid: dict[bytes, Role] = {}
    retired: dict[bytes, Role] = {}
    for each in plain["members"]:
        public = each["public"].encode()
        _check_key(public, "a member's key")
        (retired if each["retired"] else valid)[public] = Role(each["role"])
    return _Table(pairs, valid, retired)


def _checked(pair: KeyPair) -> KeyPair:
    _check_key(pair.public, "a public key")
    _check_key(pair.secret, "a secret key")
    if zmq.curve_public(pair.secret) != pair.public:
        raise ValueError(f"the secret of {pair.public!r} belongs to another key")
    return pair


def _check_key(key: bytes, what: str) -> None:
    try:
        good = len(key) == PUBLIC_KEY_BYTES and len(z85.decode(key)) == 32
    except (KeyError, ValueError, struct.error):
        good = False
    if not good:
        raise SecurityError(f"{what} is not {PUBLIC_KEY_BYTES} characters of Z85")


def _write(directory: str, table: _Table) -> None:
    """Replace the file at once: a reader sees the old one or the new one, never a part."""
    members = [(key, role, False) for key, role in table.valid.items()]
    members += [(key, role, True) for key, role in table.retired.items()]
    plain = {
        "format": _FORMAT,
        "pairs": {
            role: [{"public": p.public.decode(), "secret": p.secret.decode()} for p in pairs]
            for role, pairs in table.pairs.items()
        },
        "members": [
            {"public": key.decode(), "role": role, "retired": retired}
            for key, role, retired in members
        ],
    }
    path = os.path.join(directory, _FILE)
    beside = f"{path}.new"
    with contextlib.suppress(FileNotFoundError):  # Of a writer that was killed: the lock is ours.
        os.unlink(beside)
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w", encoding="ascii") as file:
        json.dump(plain, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
