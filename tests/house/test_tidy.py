"""The style of the house, as far as a machine can judge it.

What    Sizes, names, docstrings and marks of unfinished work (docs/explanation/style.md).
Caller  scripts/test, scripts/check, the pre-commit hook.
Never   judges what ruff judges already.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.house.sources import PACKAGES, ROOT, Source, python_files, report, walk

FILE_LINES_MAX = 700
FUNCTION_LINES_MAX = 70
COLUMNS_MAX = 100
PUBLIC_NAMES_MAX = 12

VAGUE_NAMES = {
    *("base", "common", "core", "helper", "helpers", "lib", "manager", "misc", "stuff"),
    *("tool", "tools", "util", "utility", "utils"),
}
# Programs written for Ray import this name, so the choice was not ours.
GIVEN = Path("zray/util")
# These modules are tables, a machine's events and commands, or the API as Ray has it: as long as
# the list of what exists.
TABLES = {
    *(*("brokers/scheduling.py", "brokers/sharing.py"), "brokers/sharing.py"),
    *("zray/api.py", "zray/errors.py", "zray/protocol/messages.py", "zray/protocol/outcome.py"),
}
UNFINISHED = re.compile(r"\b(?:TO" r"DO|FIX" r"ME|X" r"XX|HA" r"CK)\b|NotImpl" r"ementedError\b")
PLACES = re.compile(r"/wo" r"rk/|/ro" r"ot/|/ho" r"me/\w")
FIELDS = ("What", "Caller", "Never")


def functions(source: Source) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield every function and method of a file, nested ones too."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_no_file_is_longer_than_700_lines():
    problems = [
        f"{source.name}: {count} lines; which noun is hiding in it?"
        for source in python_files()
        if (count := source.text.count("\n")) > FILE_LINES_MAX
    ]
    assert not problems, report(problems)


def test_no_function_is_longer_than_70_lines():
    problems = [
        f"{source.name}:{node.lineno}: {node.name} has {count} lines"
        for source in python_files()
        for node in functions(source)
        if (count := (node.end_lineno or node.lineno) - node.lineno + 1) > FUNCTION_LINES_MAX
    ]
    assert not problems, report(problems)


def test_no_line_is_wider_than_100_columns():
    problems = [
        f"{source.name}:{number}: {len(line)} columns"
        for source in python_files()
        for number, line in enumerate(source.text.splitlines(), 1)
        if len(line) > COLUMNS_MAX
    ]
    assert not problems, report(problems)


def test_file_names_say_what_is_inside():
    paths = [path.relative_to(ROOT) for folder in PACKAGES for path in walk(ROOT / folder)]
    problems = [
        f"{path}: the name {part!r} fits anything"
        for path in paths
        for part in path.with_suffix("").parts[path.is_relative_to(GIVEN) * len(GIVEN.parts) :]
        if part.lower() in VAGUE_NAMES
    ]
    assert not problems, report(problems)


def test_every_module_says_what_it_is_who_calls_it_and_what_it_never_does():
    problems = []
    for source in python_files(*PACKAGES):
        lines = source.docstring.splitlines()
        first = lines[0].strip() if lines else ""
        missing = [
            name
            for name in FIELDS
            if not any(re.match(rf"{name} {{2,}}\S", line) for line in lines)
        ]
        if not first.endswith((".", "?")):
            problems.append(f"{source.name}: begins without a sentence on what it is")
        if missing:
            problems.append(f"{source.name}: docstring without {', '.join(missing)}")
    problems += [
        f"{source.name}: no docstring"
        for source in python_files("tests", "scripts")
        if not source.docstring
    ]
    assert not problems, report(problems)


def test_a_package_has_a_map_of_all_its_files():
    problems = []
    for source in python_files(*PACKAGES):
        if source.path.name != "__init__.py":
            continue
        siblings = {
            path.name
            for path in source.path.parent.iterdir()
            if (path.suffix == ".py" and path.name != "__init__.py")
            or (path.is_dir() and (path / "__init__.py").exists())
        }
        # A map may name a module with or without its suffix; links have a map of their own.
        unnamed = [
            name
            for name in sorted(siblings)
            if not re.search(rf"\b{re.escape(name.removesuffix('.py'))}\b", source.docstring)
        ]
        if unnamed:
            problems.append(f"{source.name}: the map lacks {', '.join(unnamed)}")
    assert not problems, report(problems)


def test_no_module_has_more_than_12_public_names():
    problems = []
    for source in python_files(*PACKAGES):
        names = [
            node.name
            for node in source.tree.body
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            and not node.name.startswith("_")
        ]
        if len(names) > PUBLIC_NAMES_MAX and source.name not in TABLES:
            problems.append(f"{source.name}: {len(names)} public names: {', '.join(names)}")
    assert not problems, report(problems)


def test_nothing_is_marked_as_unfinished():
    problems = [
        f"{source.name}:{number}: {line.strip()}"
        for source in python_files()
        for number, line in enumerate(source.text.splitlines(), 1)
        if UNFINISHED.search(line)
    ]
    assert not problems, report(problems)


def test_no_error_is_swallowed():
    """A handler of everything that does nothing hides bugs, zray's first of all."""
    problems = []
    for source in python_files(*PACKAGES, "scripts"):
        for node in ast.walk(source.tree):
            if isinstance(node, ast.ExceptHandler):
                idle = all(isinstance(line, ast.Pass | ast.Continue) for line in node.body)
                if idle and _catches_all(node.type):
                    problems.append(f"{source.name}:{node.lineno}: except … : pass")
            elif (
                isinstance(node, ast.Call)
                and _is_call_of(node, "suppress")
                and any(_catches_all(argument) for argument in node.args)
            ):
                problems.append(f"{source.name}:{node.lineno}: suppress(Exception)")
    assert not problems, report(problems)


def _catches_all(node: ast.expr | None) -> bool:
    if isinstance(node, ast.Tuple):
        return any(_catches_all(part) for part in node.elts)
    return node is None or (
        isinstance(node, ast.Name) and node.id in ("Exception", "BaseException")
    )


def _is_call_of(node: ast.Call, name: str) -> bool:
    called = node.func
    return (isinstance(called, ast.Attribute) and called.attr == name) or (
        isinstance(called, ast.Name) and called.id == name
    )


def test_no_test_sleeps_for_a_fixed_time():
    """wait_until is quicker where the machine is quick and still right where it is slow."""
    problems = [
        f"{source.name}:{node.lineno}: a fixed sleep; tests.waiting.wait_until polls a condition"
        for source in python_files("tests")
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call)
        and _is_call_of(node, "sleep")
        and node.args
        and isinstance(node.args[0], ast.Constant)
        and node.args[0].value != 0
    ]
    assert not problems, report(problems)


def test_no_file_names_a_place_on_somebodys_machine():
    texts = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
    texts += [path for path in walk(ROOT / "docs") if path.suffix in (".md", ".svg")]
    texts += [source.path for source in python_files()]
    texts += [path for path in walk(ROOT / "scripts") if path.suffix in ("", ".sh")]
    problems = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
        for path in texts
        if path.exists()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if PLACES.search(line)
    ]
    assert not problems, report(problems)
