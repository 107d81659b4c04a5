"""Which node an address means: an embedded one, the last one started, a directory, a cluster's.

What    A file of the user's remembers the nodes that ``zray-node start`` started: the last one that
        lives is address "auto". It is of this machine, as the nodes are, and not in the user's
        home, which many machines may share.
Caller  zray/launch_driver.py, zray/cli*.py.
Never   starts a node, or believes a file that another user could have written.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from typing import Any

from zray import errors, node_directory
from zray.configuration import SETTINGS
from zray.option_checks import WrongValueError

_PLACE = re.compile(r"(\[[0-9a-fA-F:.%]+\]|[A-Za-z0-9.-]+):\d{1,5}")


def context_path() -> str:
    """Return the file that remembers this user's last started node."""
    base = os.environ.get("XDG_RUNTIME_DIR") or node_directory.temporary_base()
    return os.path.join(base, f"zray-node-{os.getuid()}.json")


def remember(directory: str) -> None:
    """Make ``directory`` the node that address "auto" means."""
    _write([directory, *(each for each in remembered_all() if each != directory)])


def forget(directory: str) -> None:
    """Address "auto" no longer means ``directory``, but the one before it that still runs."""
    known = remembered_all()
    if directory not in known:
        return
    last, *earlier = [each for each in known if each != directory] or [""]
    if directory == known[0]:
        living = [each for each in known[1:] if node_directory.holder_pid(each) is not None]
        last, *earlier = living or [""]
    if last:
        _write([last, *earlier])
    else:
        os.unlink(context_path())


def _write(directories: list[str]) -> None:
    path = context_path()
    with tempfile.NamedTemporaryFile("w", dir=os.path.dirname(path), delete=False) as file:
        # Made with mode 0600.
        json.dump({"directory": directories[0], "earlier": directories[1:]}, file)
    os.replace(file.name, path)


def remembered() -> str | None:
    """Return the directory of the last node that was started, whether it runs or not."""
    return next(iter(remembered_all()), None)


def remembered_all() -> list[str]:
    """Return the directories of the nodes that were started and not stopped, the last one first."""
    try:
        with open(context_path()) as file:
            if os.fstat(file.fileno()).st_uid != os.getuid():
                return []
            found: dict[str, Any] = json.load(file)
            return [str(found["directory"]), *map(str, found.get("earlier", ()))]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def living() -> list[str]:
    """Return the directories of the remembered nodes that run, the last one started first."""
    return [each for each in remembered_all() if node_directory.holder_pid(each) is not None]


def cluster_of(address: str) -> list[str] | None:
    """Return the "tcp://HOST:PORT" of the nodes that an address names, None where it names none.

    Args:
        address: "zray://HOST:PORT", several with commas between them, IPv6 in brackets; the scheme
            may be left out.

    Raises OptionError where the address has another scheme, or no port.
    """
    scheme, separator, rest = address.partition("://")
    if not separator:
        is_place = _PLACE.fullmatch(address) is not None and not os.path.isdir(address)
        return [f"tcp://{address}"] if is_place else None
    try:
        if scheme not in ("zray", "tcp"):
            raise WrongValueError(f"there is no scheme {scheme}://")
        found: list[str] = SETTINGS["join"].check("address", rest)
    except WrongValueError as error:
        raise errors.OptionError(
            f"address {address!r}: {error}. Say zray://HOST:PORT of any node of the cluster, as"
            " `zray-node start --head` prints it",
            option="address",
        ) from None
    return found


def resolve_address(address: str | None) -> str | None:
    """Return the directory of the node to connect to, None for an embedded one.

    Args:
        address: None or "local": embedded; "auto": the last node started that runs; else a
            directory.

    Raises:
        NodeStartError: there is no node, or its directory is not to be trusted.
        OptionError: an address of another kind.
    """
    if address is None or address == "local":
        return None
    if address == "auto":
        last = remembered()
        if last is None:
            raise errors.NodeStartError(
                "address 'auto': no node was started by this user: run `zray-node start`"
            )
        for each in living():
            return each
        raise errors.NodeStartError(
            f"address 'auto': the last node, at {last}, is gone: run `zray-node start`"
        )
    directory = os.path.abspath(address)
    if node_directory.holder_pid(directory) is None:
        raise errors.NodeStartError(
            f"there is no node at {directory}: start one with `zray-node start --dir {directory}`"
        )
    node_directory.check_private(directory)
    return directory
