"""Settings of a driver and a node: arguments, ZRAY_* variables and files, in this order.

What    One table of settings. resolve() fills what the code and the command line leave open from
        the environment, then from zray.toml or [tool.zray] of pyproject.toml, then from the user's
        own file, and checks all.
Caller  zray/api.py, zray/cli.py.
Never   starts anything, or passes over a name it does not know.
Spec    docs/how-to/configure.md.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from zray import errors
from zray.option_checks import (
    WrongValueError,
    amount,
    boolean,
    custom_resources,
    integer_from,
    text,
)

OBJECT_STORE_BYTES_MIN = 1 << 20
LINEAGE_BYTES_MIN = 1 << 20
_BYTES = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([kmgt])(i?)b?|b)?", re.IGNORECASE)
_ADDRESS = re.compile(r"(?:(?:tcp|zray)://)?(\[[0-9a-fA-F:.%]+\]|[^\s:/\[\]]+):(\d{1,5})")
_ADVERTISED = re.compile(
    r"[0-9a-fA-F:.]+:[0-9a-fA-F:.]*:[0-9a-fA-F:.]*"  # IPv6 without brackets, and so without port.
    r"|(?:\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+)(?::(?P<port>\d{1,5}))?"
)
_FILES = ("zray.toml", "pyproject.toml")
_OTHER_VARIABLES = {"ZRAY_CONFIG", "ZRAY_TMPDIR", "ZRAY_JOB_ID", "ZRAY_PYTHON"}
"""The file to read instead; where embedded nodes live; set in workers; read by scripts/."""


def byte_count(_name: str, value: Any) -> int:
    """A number of bytes, or a string such as "4GiB" or "500 MB"."""
    if isinstance(value, str):
        found = _BYTES.fullmatch(value.strip())
        if found is None:
            raise WrongValueError('it must be a number of bytes, such as 1000000000 or "4GiB"')
        number, unit, binary = found.groups()
        step = 1024 if binary else 1000
        return int(float(number) * step ** (" kmgt".index(unit.lower()) if unit else 0))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise WrongValueError(f"it must be a number of bytes, not {type(value).__name__}")
    if value < 0:
        raise WrongValueError("it must be 0 or more")
    return int(value)


def _store_bytes(name: str, value: Any) -> int:
    count = byte_count(name, value)
    if count < OBJECT_STORE_BYTES_MIN:
        raise WrongValueError("it must be 1 MiB or more")
    return count


def _lineage_bytes(name: str, value: Any) -> int:
    count = byte_count(name, value)
    if 0 < count < LINEAGE_BYTES_MIN:
        raise WrongValueError("it must be 1 MiB or more, or 0")
    return count


def _copies(name: str, value: Any) -> int:
    if isinstance(value, str) and value.isdigit():
        value = int(value)
    return int(integer_from(0)(name, value))


def _resources(name: str, value: Any) -> dict[str, float]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise WrongValueError('it must be JSON, such as {"license": 1}') from None
    return custom_resources(name, value)


def _amount(name: str, value: Any) -> float:
    if isinstance(value, str):
        try:
            value = float(value) if "." in value or "e" in value else int(value)
        except ValueError:
            raise WrongValueError(f"it must be a number, not {value!r}") from None
    return amount(name, value)


def _boolean(name: str, value: Any) -> bool:
    words = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    return boolean(name, value)


def _labels(_name: str, value: Any) -> dict[str, str]:
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = json.loads(value)
        except ValueError:
            raise WrongValueError('it must be zone=a,disk=ssd, or JSON: {"zone": "a"}') from None
    elif isinstance(value, str):
        pairs = [pair.partition("=") for pair in value.split(",")]
        if not all(key.strip() and equals for key, equals, _ in pairs):
            raise WrongValueError("it must be names and values, such as zone=a,disk=ssd")
        value = {key.strip(): word.strip() for key, _, word in pairs}
    if not isinstance(value, Mapping) or not all(
        isinstance(word, str) for pair in value.items() for word in pair
    ):
        raise WrongValueError('it must be strings by name, such as {"zone": "a"}')
    return dict(value)


def _port(name: str, value: Any) -> int:
    if isinstance(value, str):
        try:
            value = int(value)
        except ValueError:
            raise WrongValueError(f"it must be a number, not {value!r}") from None
    port: int = integer_from(0)(name, value)
    if port > 65535:
        raise WrongValueError("it must be 65535 or less; 0 takes one that is free")
    return port


def _advertised(name: str, value: Any) -> str:
    given: str = text(name, value)
    parts = _ADVERTISED.fullmatch(given)
    if parts is None or not 0 < int(parts["port"] or 1) < 65536:
        raise WrongValueError(f"{given!r} must be HOST or HOST:PORT, such as [fd00::1]:6380")
    return given


def _addresses(_name: str, value: Any) -> list[str]:
    given = value.split(",") if isinstance(value, str) else value
    if not isinstance(given, list | tuple) or not given:
        raise WrongValueError("it must be HOST:PORT, or several with commas between them")
    found = []
    for each in given:
        parts = _ADDRESS.fullmatch(each.strip()) if isinstance(each, str) else None
        if parts is None or not 0 < int(parts[2]) < 65536:
            raise WrongValueError(
                f"{each!r} must be HOST:PORT, such as 10.0.0.7:6380 or [::1]:6380"
            )
        found.append(f"tcp://{parts[1]}:{parts[2]}")
    return found


@dataclass(frozen=True, slots=True)
class Setting:
    """One row: how a value is checked, whom it belongs to, what it says."""

    check: Callable[[str, Any], Any]
    of: Literal["driver", "node", "cluster"]
    """A node's settings are those of every node; a cluster's of one that others may join."""
    text: str


SETTINGS: dict[str, Setting] = {
    "address": Setting(
        text, "driver", "where to connect: local, auto, zray://HOST:PORT, or a node's directory"
    ),
    "namespace": Setting(text, "driver", "where a driver's named actors live"),
    "log_to_driver": Setting(_boolean, "driver", "print what workers print"),
    "driver_host": Setting(
        text, "driver", "IP address at which the nodes reach a driver elsewhere"
    ),
    "driver_port": Setting(_port, "driver", "TCP port of such a driver; 0: any"),
    "driver_bulk_port": Setting(_port, "driver", "TCP port that objects are sent to; 0: any"),
    "driver_advertise": Setting(
        _advertised, "driver", "HOST or HOST:PORT to tell the nodes, where it differs"
    ),
    "num_cpus": Setting(_amount, "node", "CPUs the node offers"),
    "num_gpus": Setting(_amount, "node", "GPUs the node offers"),
    "memory": Setting(byte_count, "node", "bytes offered as resource memory"),
    "resources": Setting(_resources, "node", "custom resources, name to amount"),
    "object_store_memory": Setting(_store_bytes, "node", "bytes of shared memory for objects"),
    "spill_directory": Setting(text, "node", "where objects go when the store is full"),
    "lineage_bytes": Setting(
        _lineage_bytes, "node", "bytes of lineage to keep for each job; 0: none"
    ),
    "lineage_copies": Setting(_copies, "node", "other nodes that keep a copy of it"),
    "labels": Setting(_labels, "node", "what the node is called by: zone=a,disk=ssd"),
    "head": Setting(_boolean, "cluster", "be the first node of a cluster"),
    "join": Setting(_addresses, "cluster", "join the cluster of the node at HOST:PORT"),
    "host": Setting(text, "cluster", "IP address at which other nodes reach this one"),
    "port": Setting(_port, "cluster", "TCP port at which other nodes reach this one; 0: any"),
    "bulk_port": Setting(_port, "cluster", "TCP port that objects are sent to; 0: any"),
    "advertise": Setting(
        _advertised, "cluster", "HOST or HOST:PORT to tell others, where it differs"
    ),
    "bulk_advertise": Setting(_advertised, "cluster", "the same for bulk_port"),
    "keys": Setting(text, "cluster", "folder of the cluster's keys, or none"),
}
OF_DRIVER_ELSEWHERE = ("driver_host", "driver_port", "driver_bulk_port", "driver_advertise")
NODE_SETTINGS = tuple(name for name, row in SETTINGS.items() if row.of == "node")
CLUSTER_SETTINGS = tuple(name for name, row in SETTINGS.items() if row.of == "cluster")


@dataclass(frozen=True, slots=True)
class Resolved:
    """The settings that are set, and where each comes from."""

    values: dict[str, Any]
    origins: dict[str, str]
    sources: tuple[str, ...] = ()
    """All of them, the strongest first."""

    def node(self) -> dict[str, Any]:
        """Return those of a node, with the names a node knows."""
        return {name: self.values[name] for name in NODE_SETTINGS if name in self.values}

    def is_typed(self, name: str) -> bool:
        """Return whether a setting comes from the code or the command line."""
        return name in self.values and self._rank(name) == 0

    def cluster(self) -> dict[str, Any] | None:
        """Return those of a node among others; None for a node that stays alone.

        Raises OptionError where they contradict each other.
        """
        found = {name: self.values[name] for name in CLUSTER_SETTINGS if name in self.values}
        head, join = found.pop("head", False), found.get("join", [])
        if head and join:
            ranks = [self._rank("head"), self._rank("join")]
            if ranks[0] == ranks[1]:
                raise errors.OptionError(
                    f"{self.origins['join']}: a node is the head of a cluster or joins one: leave"
                    " out head or join",
                    option="join",
                )
            if ranks[0] < ranks[1]:
                del found["join"]
        if head or join:
            return found
        for name in found:
            # A file may serve all commands; what somebody typed must not be passed over.
            if self._rank(name) == 0:
                raise errors.OptionError(
                    f"{self.origins[name]}: {name} is of a node among others: say head or join too",
                    option=name,
                )
        return None

    def _rank(self, name: str) -> int:
        """Return how strong the source of a setting is, 0 the strongest."""
        return list(self.sources).index(self.origins[name])


def resolve(
    given: Mapping[str, Any],
    *,
    environ: Mapping[str, str] | None = None,
    folder: str | None = None,
    called: str = "zray.init()",
) -> Resolved:
    """Return every setting by precedence: given, ZRAY_* variables, project's file, user's file.

    Args:
        given: what code or command line say; None stands for nothing.
        environ: environment variables; None: this process's.
        folder: where the search for a file begins, upwards; None: the current directory.
        called: what ``given`` was given to, for errors.

    Raises OptionError for an unknown name (with the closest known one) or a wrong value.
    """
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    sources: list[tuple[str, Mapping[str, Any]]] = [
        (called, {name: value for name, value in given.items() if value is not None}),
        ("environment", _variables(environ)),
        _file_settings(environ, folder),
        _user_settings(environ),
    ]
    for origin, settings in sources:
        for name, value in settings.items():
            checked = _checked(name, value, origin)  # Also where a stronger one hides it.
            if name not in values:
                values[name], origins[name] = checked, origin
    return Resolved(values, origins, tuple(origin for origin, _settings in sources))


def _checked(name: str, value: Any, origin: str) -> Any:
    row = SETTINGS.get(name)
    if row is None:
        _unknown(name, origin)
    try:
        return row.check(name, value)
    except WrongValueError as error:
        shown = f"ZRAY_{name.upper()}" if origin == "environment" else name
        raise errors.OptionError(f"{shown}={value!r} ({origin}): {error}", option=name) from None


def _unknown(name: str, origin: str) -> NoReturn:
    close = difflib.get_close_matches(name, SETTINGS, 1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(SETTINGS)}"
    raise errors.OptionError(f"{origin}: unknown setting {name!r}: {hint}", option=name)


def _variables(environ: Mapping[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for variable, value in environ.items():
        if not variable.startswith("ZRAY_") or variable in _OTHER_VARIABLES or not value:
            continue
        name = variable.removeprefix("ZRAY_").lower()
        if name not in SETTINGS:
            known = [f"ZRAY_{each.upper()}" for each in SETTINGS] + sorted(_OTHER_VARIABLES)
            close = difflib.get_close_matches(variable, known, 1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
            raise errors.OptionError(
                f"environment: unknown variable {variable}: {hint}", option=name
            )
        found[name] = value
    return found


# -- files -------------------------------------------------------------------------------------


def _file_settings(environ: Mapping[str, str], folder: str | None) -> tuple[str, dict[str, Any]]:
    named = environ.get("ZRAY_CONFIG")
    if named:
        return named, _read(named)
    at = os.path.abspath(folder or os.getcwd())
    while True:
        for name in _FILES:
            path = os.path.join(at, name)
            if os.path.isfile(path):
                found = _read(path)
                if found or name == "zray.toml":
                    return path, found
        above = os.path.dirname(at)
        if above == at or os.path.exists(os.path.join(at, ".git")):
            return "no file", {}  # A project ends at its repository's root.
        at = above


def user_file(environ: Mapping[str, str]) -> str | None:
    """Return the path of the user's own settings; None where nothing says where that would be."""
    base = environ.get("XDG_CONFIG_HOME")
    if not base and environ.get("HOME"):
        base = os.path.join(environ["HOME"], ".config")
    return os.path.join(base, "zray", "zray.toml") if base else None


def _user_settings(environ: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
    path = user_file(environ)
    if environ.get("ZRAY_CONFIG") or path is None or not os.path.isfile(path):
        return "no file of the user", {}
    return path, _read(path)


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise errors.OptionError(
            f"{path} cannot be read: {error.strerror}", option="config"
        ) from None
    in_pyproject = os.path.basename(path) == "pyproject.toml"
    if in_pyproject and b"zray" not in data:
        return {}  # Saves the 5 ms that a TOML parser costs at start.
    import tomllib

    try:
        parsed = tomllib.loads(data.decode())
    except ValueError as error:
        if in_pyproject:
            return {}  # Other tools' file: they will say so.
        raise errors.OptionError(f"{path} is not TOML: {error}", option="config") from None
    if in_pyproject:
        parsed = parsed.get("tool", {}).get("zray", {})
    if not isinstance(parsed, dict):
        raise errors.OptionError(f"{path}: [tool.zray] must be a table", option="config")
    return parsed


# -- what init() does not honour ---------------------------------------------------------------

_REFUSED = {
    **dict.fromkeys(
        (name for name in CLUSTER_SETTINGS if name != "keys"),
        "a node that others join is started by `zray-node start --head`; where the nodes reach a"
        " driver elsewhere is said by driver_host, driver_port and the like",
    ),
    "include_dashboard": "there is no dashboard",
    "dashboard_host": "there is no dashboard",
    "dashboard_port": "there is no dashboard",
    "local_mode": "use the function itself: f.__wrapped__(...)",
    "job_config": "use runtime_env and namespace",
    "logging_format": "zray does not set up the logging module",
    "configure_logging": "zray does not set up the logging module",
    "_system_config": "there is no such table",
    "_memory": "use memory",
}
_FALSE_IS_SO_ANYWAY = ("include_dashboard", "local_mode", "configure_logging")


def refuse_unsupported(options: Mapping[str, Any]) -> None:
    """Raise OptionError for options that init() does not honour; None asks for nothing."""
    for name, value in options.items():
        if name in _REFUSED and (value is None or (value is False and name in _FALSE_IS_SO_ANYWAY)):
            continue
        why = _REFUSED.get(name)
        if why is None:
            taken = [each for each in SETTINGS if each not in _REFUSED]
            known = [*taken, "ignore_reinit_error", "runtime_env", "logging_level", "_temp_dir"]
            close = difflib.get_close_matches(name, known, 1)
            why = f"did you mean {close[0]}?" if close else f"init() takes {', '.join(known)}"
        raise errors.OptionError(
            f"zray.init() does not honour {name}={value!r}: {why}", option=name
        )


def session_env(runtime_env: Any) -> dict[str, str]:
    """Return the environment that init(runtime_env=...) sets for every task and actor.

    Raises OptionError for what is not honoured of it.
    """
    if runtime_env is None:
        return {}
    from zray.option_checks import runtime_env as check

    try:
        return check("runtime_env", runtime_env).get("env_vars", {})
    except WrongValueError as error:
        raise errors.OptionError(
            f"zray.init(runtime_env={runtime_env!r}): {error}", option="runtime_env"
        ) from None


def refuse_node_settings(given: Mapping[str, Any], where: str) -> None:
    """Raise OptionError for settings of a node, where the node runs already."""
    for name, value in given.items():
        if value is not None:
            raise errors.OptionError(
                f"zray.init({name}={value!r}) connects to the node at {where}, which has its"
                " settings already: give this one to `zray-node start`, or pass address='local' to"
                " start a node of your own",
                option=name,
            )
