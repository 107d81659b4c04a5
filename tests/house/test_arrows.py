"""Imports go one way: the layers of docs/explanation/architecture.md, checked.

What    Reads every import of zray, brokers and actors from the syntax tree: layers, the two
        halves that meet only in messages, the libraries only one place may touch, purity.
Caller  scripts/test, scripts/check, the pre-commit hook.
Never   imports what it judges.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache

from tests.house.sources import PACKAGES, Source, python_files, report

# From the floor up. A module imports its own row and the rows above it in this list; patterns
# because a shell that grew was split: zray.client_io is as much the client as zray.client.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("zray.errors",),
    ("zray.protocol*", "zray.exceptions"),
    (
        *("zray.session*", "zray.option*", "zray.serialization*", "zray.store*"),
        "zray.util.scheduling_strategies",  # Values of an option, under Ray's name for them.
    ),
    ("zray.detect*", "zray.configuration*", "zray.net*", "zray.node_*"),
    ("zray.observer", "zray.client*", "zray.objects*", "zray.refs*", "zray.logs*", "zray.turns"),
    ("zray.launch*",),
    (
        *("zray.api*", "zray.remote*", "zray.runtime*", "zray.signatures*", "zray.actor"),
        *("zray.context", "zray.gateway", "zray.state", "zray.trace", "zray.waits", "zray.why"),
    ),
    ("zray.util*", "zray.testing*", "zray.pytest*", "zray.cli*", "zray"),
)
# What the two halves may see of zray: never each other, and a broker neither the client nor
# anything that unpickles. The layout of the shared segment is one for both its sides.
BROKERS_MAY = (
    *("zray.brokers", "zray.protocol", "zray.net", "zray.errors"),
    "zray.serialization.exceptions",  # To encode errors of the node itself; it decodes none.
    *("zray.store", "zray.detect", "zray.node_directory"),
)
ACTORS_MAY_NOT = ("zray.brokers", "zray.cli", "zray.launch", "zray.testing")

PURE = (
    "zray.errors",
    "zray.option*",
    "zray.session*",
    "zray.protocol*",
    "zray.cli_doctor_verdicts",
    "zray.util.scheduling_strategies",
    "zray.brokers.allocator",
    "zray.brokers.borrowing",
    "zray.brokers.bundles",
    "zray.brokers.director*",
    "zray.brokers.dispatch*",
    "zray.brokers.field_checks",
    "zray.brokers.gathering",
    "zray.brokers.gcs_frames",
    "zray.brokers.evacuation",
    "zray.brokers.group*",
    "zray.brokers.hold_fence",
    "zray.brokers.lending",
    "zray.brokers.lineage_copying",
    "zray.brokers.link_roles",
    "zray.brokers.link_validation",
    "zray.brokers.load",
    "zray.brokers.actor_fences",
    "zray.brokers.host_leases",
    "zray.brokers.locality",
    "zray.brokers.membership",
    "zray.brokers.offering",
    "zray.brokers.placement",
    "zray.brokers.rebalancing",
    "zray.brokers.reservations",
    "zray.brokers.resources",
    "zray.brokers.row_filters",
    "zray.brokers.schedul*",
    "zray.brokers.sharing",
    "zray.brokers.task_queues",
    "zray.brokers.unreached_pulls",
    "zray.brokers.transfer*",
    "zray.brokers.leases",
    "zray.brokers.why_walk",
    "zray.brokers.gcs.actor_table",
    "zray.brokers.gcs.client*",
    "zray.brokers.gcs.commands",
    "zray.brokers.gcs.history",
    "zray.brokers.gcs.loads",
    "zray.brokers.gcs.machine",
    "zray.brokers.gcs.permissions",
    "zray.brokers.gcs.records",
    "zray.brokers.gcs.relayed",
    "zray.brokers.gcs.replica",
    "zray.brokers.gcs.rules",
    "zray.brokers.gcs.store",
    "zray.brokers.gcs.tables",
    "zray.brokers.gcs.watchers",
    "zray.brokers.gcs.wire",
)
IMPURE_LIBRARIES = {
    *("asyncio", "datetime", "fcntl", "lmdb", "mmap", "multiprocessing", "os", "pathlib"),
    *("random", "secrets", "select", "selectors", "shutil", "signal", "socket", "subprocess"),
    *("tempfile", "threading", "time", "uuid", "zmq"),
}
# Paths only: a remote traceback leaves out the frames of zray, which it knows by their folder.
ALLOWED = {("zray.errors", "os")}
# The one place for each: everything else would be a second owner of sockets or of tables.
ONLY_IN = {"zmq": "zray.net", "lmdb": "zray.brokers.gcs"}


@dataclass(frozen=True)
class Import:
    """One import of one module."""

    source: Source
    target: str
    line: int
    is_for_types: bool

    def __str__(self) -> str:
        return f"{self.source.name}:{self.line}: {self.source.module} imports {self.target}"


@cache
def modules() -> frozenset[str]:
    """Return the dotted names of all modules of zray."""
    return frozenset(source.module for source in python_files(*PACKAGES))


def is_in(module: str, package: str) -> bool:
    """Return whether ``module`` is ``package`` or lies in it."""
    return module == package or module.startswith(package + ".")


def _absolute(source: Source, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = source.module.split(".")
    # A package's own __init__ counts itself as the first level.
    cut = node.level - (source.path.name == "__init__.py")
    return ".".join([*parts[: len(parts) - cut], *([node.module] if node.module else [])])


def _lines_for_types(source: Source) -> set[int]:
    """Return the lines under `if TYPE_CHECKING`: they name types and load nothing."""
    return {
        number
        for node in ast.walk(source.tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for line in node.body
        for number in range(line.lineno, (line.end_lineno or line.lineno) + 1)
    }


@cache
def imports() -> tuple[Import, ...]:
    """Return every import of every module, those inside functions too."""
    found = []
    for source in python_files(*PACKAGES):
        types = _lines_for_types(source)
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Import):
                found += [
                    Import(source, alias.name, node.lineno, node.lineno in types)
                    for alias in node.names
                ]
            elif isinstance(node, ast.ImportFrom):
                base = _absolute(source, node)
                for alias in node.names:
                    full = f"{base}.{alias.name}"
                    target = full if full in modules() else base
                    found.append(Import(source, target, node.lineno, node.lineno in types))
    return tuple(found)


def layer_of(module: str) -> int | None:
    """Return the number of a module's row in LAYERS, None where it has none."""
    for number, row in enumerate(LAYERS):
        if any(fnmatch(module, pattern) for pattern in row):
            return number
    return None


def test_every_module_has_a_place_in_the_layers():
    problems = [
        f"{module}: give it a row in LAYERS of {__file__.rpartition('/')[2]}"
        for module in sorted(modules())
        if not is_in(module, "zray.brokers")
        and not is_in(module, "zray.actors")
        and layer_of(module) is None
    ]
    assert not problems, report(problems)


def test_imports_point_to_the_same_layer_or_a_lower_one():
    problems = []
    for found in imports():
        here, there = layer_of(found.source.module), layer_of(found.target)
        if found.is_for_types or here is None or there is None:
            continue
        if there > here:
            problems.append(f"{found}, which is above it")
    assert not problems, report(problems)


def test_brokers_see_only_the_protocol_and_the_sockets():
    problems = [
        str(found)
        for found in imports()
        if is_in(found.source.module, "zray.brokers")
        and is_in(found.target, "zray")
        and not any(is_in(found.target, allowed) for allowed in BROKERS_MAY)
    ]
    assert not problems, report(problems)


def test_actors_never_import_brokers_or_what_starts_them():
    problems = [
        str(found)
        for found in imports()
        if is_in(found.source.module, "zray.actors")
        and any(is_in(found.target, forbidden) for forbidden in ACTORS_MAY_NOT)
    ]
    assert not problems, report(problems)


def test_nothing_imports_the_two_halves_but_themselves():
    """They are started by module name; user code that imported them would share their state."""
    problems = [
        str(found)
        for found in imports()
        for half in ("zray.brokers", "zray.actors")
        if is_in(found.target, half)
        and not is_in(found.source.module, half)
        and not is_in(found.source.module, "zray.testing")
    ]
    assert not problems, report(problems)


def test_the_two_halves_are_imported_by_their_name_in_zray():
    """Under its folder's name the same file would be a second module with classes of its own."""
    problems = [str(found) for found in imports() if found.target.split(".")[0] in PACKAGES[1:]]
    assert not problems, report(problems)


def test_one_package_owns_each_library_with_a_lifetime():
    problems = [
        f"{found}; only {owner} may"
        for found in imports()
        for library, owner in ONLY_IN.items()
        if is_in(found.target, library) and not is_in(found.source.module, owner)
    ]
    assert not problems, report(problems)


def _is_pure(module: str) -> bool:
    return any(fnmatch(module, pattern) for pattern in PURE)


def test_machines_have_no_clock_no_socket_no_dice():
    problems = [
        str(found)
        for found in imports()
        if _is_pure(found.source.module)
        and found.target.split(".")[0] in IMPURE_LIBRARIES
        and (found.source.module, found.target) not in ALLOWED
    ]
    assert not problems, report(problems)


def test_machines_import_machines_only():
    problems = [
        f"{found}, a shell"
        for found in imports()
        if _is_pure(found.source.module)
        and is_in(found.target, "zray")
        and found.target not in ("zray", "zray.brokers")
        and not _is_pure(found.target)
    ]
    assert not problems, report(problems)


def test_the_walk_sees_the_tree_it_judges():
    """A wrong root would make every other test of this file pass on nothing."""
    assert {"zray.errors", "zray.brokers", "zray.actors"} <= modules()
    assert any(found.target == "zmq" for found in imports())
