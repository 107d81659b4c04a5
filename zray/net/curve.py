"""CURVE keys: who is a member of the cluster, on disk and at the door.

What    ClusterKeys: a folder with a member's own pairs and the list of all keys (roster.py), which
        changes while nodes run. The ZAP handler that libzmq asks for every handshake: the newest
        list answers. A key has a role: node, client (a driver: may ship code), gateway (may call,
        may not ship code).
Caller  zray/net/guarded_port.py, links.py, bulk_link.py, `zray-node keygen` and `keys`.
Never   lets in what it cannot look up; writes a secret where others can read it, or prints one.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from typing import Any

import zmq
from zmq.utils import z85

from zray.errors import SecurityError
from zray.protocol.roles import Role as Role

from . import key_files
from .roster import KeyState, Roster, check_key, check_name, read_roster

ZAP_DOMAIN = b"zray"

_FORMAT = 2
_ZAP_ENDPOINT = "inproc://zeromq.zap.01"
_AUTHORITY = "head"
"""The member that makes a cluster's keys."""


@dataclass(frozen=True, slots=True)
class KeyPair:
    """One CURVE key pair, both halves in Z85 (40 bytes)."""

    public: bytes
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Own:
    """What a folder has the secrets of, in one role."""

    member: str
    pairs: tuple[KeyPair, ...]
    """The first is the one in use, further ones are listed and wait."""


@dataclass(slots=True)
class _Table:
    """What one version of the file says. Replaced, never changed, once others can see it."""

    own: dict[Role, _Own]
    roster: Roster


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
        seen: which version of the file was read.
    """

    def __init__(self, directory: str, table: _Table, seen: key_files.Identity) -> None:
        self.directory = directory
        self.revision = 0
        """Grows with every change that reload() or adopt() finds."""
        self._table = table
        self._seen = seen

    @classmethod
    def create(cls, directory: str | None = None) -> ClusterKeys:
        """Make the folder of a new cluster, the authority's, with one pair for each role.

        Raises SecurityError where keys are there already, or the folder is open to others.
        """
        own: dict[Role, _Own] = {}
        roster = Roster(os.urandom(16).hex(), _AUTHORITY, 0, ())
        for role in Role:
            member = _AUTHORITY if role is Role.NODE else str(role)
            own[role] = _Own(member, (make_pair(),))
            roster = roster.with_key(own[role].pairs[0].public, member, role, int(time.time()))
        return cls._make(directory or default_directory(), _Table(own, roster))

    @classmethod
    def _make(cls, directory: str, table: _Table) -> ClusterKeys:
        path = os.path.abspath(directory)
        key_files.make_folder(path)
        with key_files.locked(path):
            if key_files.has_keys(path):
                raise SecurityError(
                    f"{path} holds cluster keys already: use them, change them with `zray-node"
                    " keys`, or choose another folder"
                )
            key_files.write(path, _plain(table))
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
        path = os.path.abspath(directory or default_directory())
        if not key_files.has_keys(path):
            try:
                return cls.create(path)
            except SecurityError:
                if not key_files.has_keys(path):  # Else somebody made them at the same time.
                    raise
        return cls.load(path)

    def reload(self) -> bool:
        """Read the file again if it is another one by now; return whether it is.

        Raises SecurityError where the new one cannot be used; the old table stays in force.
        """
        if key_files.identity(self.directory) == self._seen:
            return False
        table, seen = _read(self.directory)
        known = self._table.roster
        if known.cluster == table.roster.cluster and known.version > table.roster.version:
            # What the authority has told us since counts more than a file from before.
            table = _Table(table.own, known)
        self._table, self._seen = table, seen
        self.revision += 1
        return True

    # -- what is known -----------------------------------------------------------------------------

    @property
    def roster(self) -> Roster:
        """The list of all keys that this member knows of."""
        return self._table.roster

    @property
    def is_authority(self) -> bool:
        """Whether keys are listed and revoked in this folder."""
        own = self._table.own.get(Role.NODE)
        return own is not None and own.member == self._table.roster.authority

    def member(self, role: Role) -> str:
        """Return what this folder's holder is called in a role.

        Raises SecurityError where it has no such role.
        """
        return self._own(role).member

    def _own(self, role: Role) -> _Own:
        own = self._table.own.get(role)
        if own is None:
            raise SecurityError(
                f"{self.directory} has no {role} key: have one made on the head, `zray-node keys"
                f" issue NAME --role {role}`"
            )
        return own

    @property
    def roles(self) -> list[Role]:
        """The roles that this folder has secrets for."""
        return list(self._table.own)

    def pairs(self, role: Role) -> tuple[KeyPair, ...]:
        """Return all pairs of ours for a role, the one in use first.

        Raises SecurityError where this folder has no secret for it.
        """
        return self._own(role).pairs

    def pair(self, role: Role) -> KeyPair:
        """Return the pair in use for a role.

        Raises SecurityError where this folder has no secret for it, or it was revoked.
        """
        own = self._own(role)
        by_public = self._table.roster.by_public
        for pair in own.pairs:
            listed = by_public.get(pair.public)
            if listed is not None and listed.state is not KeyState.REVOKED:
                return pair
        raise SecurityError(
            f"{self.directory} has no {role} key that counts: those of {own.member} were revoked."
            " Have another one made on the head (`zray-node keys issue`)"
        )

    def server_keys(self, given: Iterable[bytes] = ()) -> list[bytes]:
        """Return the public keys a node may show, the likeliest first.

        Args:
            given: keys that it is known by: it may show any of the same members, and those of
                these that nobody here knows; none: it may be any node.
        """
        roster = self._table.roster
        if not given:
            return roster.node_keys()
        found: dict[bytes, None] = {}
        for key in given:
            listed = roster.by_public.get(key)
            if listed is None:
                found[key] = None
            else:
                found.update(dict.fromkeys(roster.valid_keys(listed.member)))
        return list(found)

    def role_of(self, public: bytes, *, retired: bool = False) -> Role | None:
        """Return the role of a public key (Z85), None for a stranger's.

        Args:
            public: the key.
            retired: also keys that open no new connection.
        """
        listed = self._table.roster.by_public.get(public)
        if listed is None or listed.state is KeyState.REVOKED:
            return None
        return listed.role if retired or listed.state is KeyState.VALID else None

    def is_revoked(self, public: bytes) -> bool:
        """Return whether a key that was a member's must not be believed any more."""
        listed = self._table.roster.by_public.get(public)
        return listed is not None and listed.state is KeyState.REVOKED

    def member_of(self, public: bytes) -> str:
        """Return whose key this is or was, "" for a stranger's."""
        listed = self._table.roster.by_public.get(public)
        return "" if listed is None else listed.member

    # -- changes, in the authority's folder --------------------------------------------------------

    def add(self, role: Role) -> KeyPair:
        """Make and list a further pair of our own for a role: the first step of a rotation."""
        pair = make_pair()
        with self._changing() as table:
            own = table.own[role]
            table.own[role] = _Own(own.member, (*own.pairs, pair))
            table.roster = table.roster.with_key(pair.public, own.member, role, int(time.time()))
        return pair

    def activate(self, role: Role) -> KeyPair:
        """Use our newest pair of a role from now on: the second step, when all nodes know it."""
        with self._changing() as table:
            *others, newest = self._own(role).pairs
            table.own[role] = _Own(self.member(role), (newest, *others))
        return newest

    def retire(self, who: Role | str) -> list[bytes]:
        """Let no key of a member but its newest open a new connection: the third step.

        Connections that are open stay: see revoke(). Returns the keys that were retired.

        Args:
            who: a member's name, or the role of our own pairs: the one in use stays.
        """
        with self._changing() as table:
            own = next(
                (each for role, each in table.own.items() if who in (role, each.member)), None
            )
            member = str(who) if own is None else own.member
            valid = table.roster.valid_keys(member)
            if not valid:
                raise SecurityError(f"{member} has no key that counts: see `zray-node keys list`")
            kept = valid[0] if own is None else own.pairs[0].public
            gone = [key for key in valid if key != kept]
            table.roster = table.roster.with_state(gone, KeyState.RETIRED)
            self._drop_secrets(table, gone)
        return gone

    def admit(self, public: bytes, role: Role, member: str = "") -> None:
        """List a public key whose secret is kept elsewhere.

        Raises SecurityError where it is no key, or its member has another role.
        """
        check_key(public, "the key to admit")
        with self._changing() as table:
            name = member or f"{role}-{z85.decode(public)[:4].hex()}"
            table.roster = table.roster.with_key(public, name, role, int(time.time()))

    def issue(self, member: str, role: Role, directory: str) -> ClusterKeys:
        """Make a member, or a further key of one, in a folder of its own to be copied to it.

        Raises SecurityError where the folder holds keys already, the name is none or is that of a
        member of another role.
        """
        check_name(member)
        if member in tuple(Role):
            raise SecurityError(f"{member!r} is a role: call the member something else")
        if key_files.has_keys(os.path.abspath(directory)):
            raise SecurityError(f"{directory} holds cluster keys already: choose another folder")
        pair = make_pair()
        with self._changing() as table:
            table.roster = table.roster.with_key(pair.public, member, role, int(time.time()))
        return self._hand_out(directory, role, _Own(member, (pair,)))

    def export(self, directory: str, role: Role) -> ClusterKeys:
        """Write a folder with our own pairs of one role, for who is to share them.

        Raises SecurityError where the folder holds keys already.
        """
        self.pair(role)
        return self._hand_out(directory, role, self._own(role))

    def _hand_out(self, directory: str, role: Role, own: _Own) -> ClusterKeys:
        roster = self._table.roster
        if role is not Role.NODE:
            # Who lets nobody in need not know who else is a member.
            roster = roster.of_nodes_and(own.member)
        return self._make(directory, _Table({role: own}, roster))

    def revoke(self, who: bytes | str) -> list[bytes]:
        """Shut a key, or all keys of a member, out for good; connections they opened are cut.

        Returns the keys. Raises SecurityError where there is none, or it is the one that this
        folder is obeyed for.
        """
        with self._changing() as table:
            gone = [
                key.public
                for key in table.roster.keys
                if who in (key.public, key.member) and key.state is not KeyState.REVOKED
            ]
            if not gone:
                raise SecurityError(f"{_text(who)} is no key or member that counts here")
            if table.own[Role.NODE].pairs[0].public in gone:
                raise SecurityError(
                    f"{_text(who)} is what the head shows now: activate another key of it first"
                    " (`zray-node keys add`, `activate`)"
                )
            table.roster = table.roster.with_state(gone, KeyState.REVOKED)
            self._drop_secrets(table, gone)
        return gone

    def _drop_secrets(self, table: _Table, gone: list[bytes]) -> None:
        for role, own in table.own.items():
            left = tuple(pair for pair in own.pairs if pair.public not in gone)
            table.own[role] = _Own(own.member, left)

    @contextlib.contextmanager
    def _changing(self) -> Generator[_Table]:
        """Give a copy to change; write and read it while no other process does the same."""
        with key_files.locked(self.directory):
            self.reload()
            if not self.is_authority:
                raise SecurityError(
                    f"keys are changed on the head, in the folder of {self.roster.authority}: what"
                    f" {self.directory} says, nobody else would believe"
                )
            before = self._table
            table = _Table(dict(before.own), before.roster)
            yield table
            if table.roster.version == before.roster.version:
                table.roster = table.roster.with_state((), KeyState.VALID)
            key_files.write(self.directory, _plain(table))
        self.reload()

    # -- changes, everywhere else ------------------------------------------------------------------

    def adopt(self, plain: Any, sender_key: bytes) -> bool:
        """Take over a newer list from the authority; returns whether it is one.

        It is kept in the file, and where that can't be written for as long as this process lives.

        Args:
            plain: what Roster.plain() gave.
            sender_key: the public key that its sender has proven to hold.

        Raises SecurityError where it is no list, or not from the authority of this cluster.
        """
        offered = read_roster(plain)
        known = self._table.roster
        if offered.cluster != known.cluster or offered.authority != known.authority:
            raise SecurityError("a list of keys of another cluster")
        if self.member_of(sender_key) != known.authority or self.is_revoked(sender_key):
            raise SecurityError("a list of keys from who may not change it")
        if offered.version <= known.version:
            return False
        self._table = _Table(self._table.own, offered)
        self.revision += 1
        with contextlib.suppress(OSError, SecurityError), key_files.locked(self.directory):
            table, seen = _read(self.directory)
            if table.roster.version < offered.version:
                key_files.write(self.directory, _plain(_Table(table.own, offered)), replaces=seen)
        return True


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
            known = self._keys.member_of(public)
            return self._refuse(number, "key that counts no more" if known else "unknown key")
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


def _read(directory: str) -> tuple[_Table, key_files.Identity]:
    plain, seen = key_files.read(directory)
    try:
        return _parse(plain), seen
    except (ValueError, TypeError, KeyError, AttributeError, SecurityError) as error:
        where = os.path.join(directory, key_files.FILE)
        raise SecurityError(f"{where} is no file of cluster keys: {error}") from None


def _parse(plain: Any) -> _Table:
    if plain["format"] != _FORMAT:
        raise ValueError(f"format {plain['format']!r}, this release reads {_FORMAT}")
    own: dict[Role, _Own] = {}
    for role, each in plain["own"].items():
        check_name(each["member"])
        pairs = (KeyPair(a.encode(), b.encode()) for a, b in each["pairs"])
        own[Role(role)] = _Own(each["member"], tuple(map(_checked, pairs)))
    return _Table(own, read_roster(plain["roster"]))


def _checked(pair: KeyPair) -> KeyPair:
    check_key(pair.public, "a public key")
    check_key(pair.secret, "a secret key")
    if zmq.curve_public(pair.secret) != pair.public:
        raise ValueError(f"the secret of {pair.public!r} belongs to another key")
    return pair


def _plain(table: _Table) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "own": {
            role: {
                "member": own.member,
                "pairs": [[pair.public.decode(), pair.secret.decode()] for pair in own.pairs],
            }
            for role, own in table.own.items()
        },
        "roster": table.roster.plain(),
    }


def _text(who: bytes | str) -> str:
    return who.decode(errors="replace") if isinstance(who, bytes) else who
