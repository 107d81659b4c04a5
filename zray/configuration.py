"""Settings of a driver and a node: arguments, ZRAY_* variables and files, in this order.

What    One table of settings. resolve() fills what the code and the command line leave open from
        the environment, then from zray.toml or [tool.zray] of pyproject.toml, and checks all.
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
from typing import Any, NoReturn

from zray import errors
from zray.option_checks import WrongValueError, amount, boolean, custom_resources, text

OBJECT_STORE_BYTES_MIN = 1 << 20
_BYTES = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([kmgt])(i?)b?|b)?", re.IGNORECASE)
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


@dataclass(frozen=True, slots=True)
class Setting:
    """One row: how a value is checked, whether it belongs to a node, what it says."""

    check: Callable[[str, Any], Any]
    of_node: bool
    text: str


SETTINGS: dict[str, Setting] = {
    "address": Setting(text, False, "node to connect to: local, auto, or its directory"),
    "namespace": Setting(text, False, "where a driver's named actors live"),
    "log_to_driver": Setting(_boolean, False, "print what workers print"),
    "num_cpus": Setting(_amount, True, "CPUs the node offers"),
    "num_gpus": Setting(_amount, True, "GPUs the node offers"),
    "memory": Setting(byte_count, True, "bytes offered as resource memory"),
    "resources": Setting(_resources, True, "custom resources, name to amount"),
    "object_store_memory": Setting(_store_bytes, True, "bytes of shared memory for objects"),
    "spill_directory": Setting(text, True, "where objects go when the store is full"),
}
NODE_SETTINGS = tuple(name for name, row in SETTINGS.items() if row.of_node)


@dataclass(frozen=True, slots=True)
class Resolved:
    """The settings that are set, and where each comes from."""

    values: dict[str, Any]
    origins: dict[str, str]

    def node(self) -> dict[str, Any]:
        """Return those of a node, with the names a node knows."""
        return {name: self.values[name] for name in NODE_SETTINGS if name in self.values}


def resolve(
    given: Mapping[str, Any],
    *,
    environ: Mapping[str, str] | None = None,
    folder: str | None = None,
    called: str = "zray.init()",
) -> Resolved:
    """Return every setting by precedence: given, ZRAY_* variables, file.

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
    ]
    for origin, settings in sources:
        for name, value in settings.items():
            checked = _checked(name, value, origin)  # Also where a stronger one hides it.
            if name not in values:
                values[name], origins[name] = checked, origin
    return Resolved(values, origins)


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
    "labels": "labels come with several nodes",
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
            known = [*SETTINGS, "ignore_reinit_error", "runtime_env", "logging_level", "_temp_dir"]
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
                " settings already: give this one to `zray-node start`, or leave out the address"
                " to start a node of your own",
                option=name,
            )
