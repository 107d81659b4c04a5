"""The list of keys: who may join the cluster, as what, and whose key no longer counts.

What    Members by name, each with one key or, while they are changed, several. The list has a
        version that grows with each change and is written in one place, the folder of the
        *authority*; everybody else takes newer versions over.
Caller  zray/net/curve.py.
Never   holds a secret; forgets that a key was revoked before it has forgotten the key.
"""

from __future__ import annotations

import enum
import re
import struct
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any, Self

from zmq.utils import z85

from zray.errors import SecurityError
from zray.protocol.roles import Role

PUBLIC_KEY_BYTES = 40
"""Of a key as zray shows it: 32 bytes in Z85."""

KEYS_MAX = 10_000
"""Keys in one list; beyond it the oldest that count no longer are left out."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_VERSION_MAX = 1 << 53


class KeyState(enum.StrEnum):
    """Whether a key counts."""

    VALID = "valid"
    RETIRED = "retired"
    """Opens no new connection; those that it opened before live on."""
    REVOKED = "revoked"
    """Counts for nothing, and connections that it opened are cut."""


@dataclass(frozen=True, slots=True)
class ListedKey:
    """One public key.

    Args:
        public: in Z85.
        member: whose it is; a member may have several.
        role: of the member.
        since: when it was listed, in seconds since 1970.
        state: whether it counts.
    """

    public: bytes
    member: str
    role: Role
    since: int
    state: KeyState = KeyState.VALID


@dataclass(frozen=True, slots=True)
class Roster:
    """One version of the list. Immutable: another thread's ZAP handler reads it.

    Args:
        cluster: a random name, so that lists of two clusters are never mixed.
        authority: the member whose list counts.
        version: grows with each change.
        keys: in the order in which they were listed.
    """

    cluster: str
    authority: str
    version: int
    keys: tuple[ListedKey, ...]
    by_public: dict[bytes, ListedKey] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_public", {key.public: key for key in self.keys})

    # -- what it says ------------------------------------------------------------------------------

    def valid_keys(self, member: str) -> list[bytes]:
        """Return the keys a member may open connections with, the newest first."""
        found = [key for key in self.keys if key.member == member]
        return [key.public for key in reversed(found) if key.state is KeyState.VALID]

    def node_keys(self) -> list[bytes]:
        """Return the valid keys of all nodes, those of the authority first."""
        names = dict.fromkeys((self.authority, *(key.member for key in self.keys)))
        nodes = {key.member for key in self.keys if key.role is Role.NODE}
        return [key for name in names if name in nodes for key in self.valid_keys(name)]

    def role_of_member(self, member: str) -> Role | None:
        """Return what a member is, None where there is none of this name."""
        return next((key.role for key in self.keys if key.member == member), None)

    # -- changes -----------------------------------------------------------------------------------

    def with_key(self, public: bytes, member: str, role: Role, since: int) -> Self:
        """Return the next version, with one more key.

        Raises SecurityError for a name that is none or is a member of another role, and for a key
        that is none or was listed before.
        """
        check_name(member)
        check_key(public, "the key to list")
        known = self.role_of_member(member)
        if known not in (None, role):
            raise SecurityError(f"{member} is a {known} already: choose another name")
        before = self.by_public.get(public)
        if before is not None:
            raise SecurityError(f"this key is listed already: {before.state}, of {before.member}")
        return self._next((*self.keys, ListedKey(public, member, role, since)))

    def with_state(self, publics: Collection[bytes], state: KeyState) -> Self:
        """Return the next version, with another state of these keys."""
        keys = (replace(key, state=state) if key.public in publics else key for key in self.keys)
        return self._next(tuple(keys))

    def _next(self, keys: tuple[ListedKey, ...]) -> Self:
        surplus = len(keys) - KEYS_MAX
        if surplus > 0:
            over = [key for key in keys if key.state is not KeyState.VALID][:surplus]
            if len(over) < surplus:
                raise SecurityError(f"a cluster has at most {KEYS_MAX} keys: revoke some")
            keys = tuple(key for key in keys if key not in over)
        return replace(self, version=self.version + 1, keys=keys)

    def of_nodes_and(self, member: str) -> Self:
        """Return the same version with the keys of nodes and of one other member alone."""
        keys = (key for key in self.keys if key.role is Role.NODE or key.member == member)
        return replace(self, keys=tuple(keys))

    # -- plain types -------------------------------------------------------------------------------

    def plain(self) -> dict[str, Any]:
        """Return it as plain types, for a file or a message."""
        return {
            "cluster": self.cluster,
            "authority": self.authority,
            "version": self.version,
            "keys": [
                [key.public.decode(), key.member, str(key.role), key.since, str(key.state)]
                for key in self.keys
            ],
        }


def read_roster(plain: Any) -> Roster:
    """Return the list that plain() gave, every field checked.

    Raises SecurityError where it is none.
    """
    try:
        cluster, authority, version = plain["cluster"], plain["authority"], plain["version"]
        listed = plain["keys"]
        if type(cluster) is not str or not 0 < len(cluster) <= 64:
            raise ValueError("no name of a cluster")
        if type(version) is not int or not 0 < version < _VERSION_MAX:
            raise ValueError(f"version {version!r}")
        if type(listed) is not list or len(listed) > KEYS_MAX:
            raise ValueError(f"more than {KEYS_MAX} keys")
        check_name(authority)
        keys = tuple(_read_key(*row) for row in listed)
    except (ValueError, TypeError, KeyError) as error:
        raise SecurityError(f"no list of keys: {error!r}") from None
    roles: dict[str, Role] = {}
    for key in keys:
        if roles.setdefault(key.member, key.role) is not key.role:
            raise SecurityError(f"no list of keys: {key.member} has two roles")
    found = Roster(cluster, authority, version, keys)
    if len(found.by_public) != len(keys):
        raise SecurityError("no list of keys: one is in it twice")
    return found


def _read_key(public: Any, member: Any, role: Any, since: Any, state: Any) -> ListedKey:
    if type(public) is not str or type(since) is not int or not 0 <= since < _VERSION_MAX:
        raise ValueError("a key without its text or its time")
    key = public.encode()
    check_key(key, "a member's key")
    check_name(member)
    return ListedKey(key, member, Role(role), since, KeyState(state))


def check_name(member: Any) -> None:
    """Raise SecurityError where this is no name of a member."""
    if type(member) is not str or not _NAME.fullmatch(member):
        raise SecurityError(
            f"{member!r} is no name of a member: 1 to 64 letters, digits, '.', '_' and '-'"
        )


def check_key(key: bytes, what: str) -> None:
    """Raise SecurityError where these bytes are no key."""
    try:
        good = len(key) == PUBLIC_KEY_BYTES and len(z85.decode(key)) == 32
    except (KeyError, ValueError, struct.error):
        good = False
    if not good:
        raise SecurityError(f"{what} is not {PUBLIC_KEY_BYTES} characters of Z85")
