"""The project's own files, read and parsed once for all tests of the house.

What    ROOT, python_files(), Source with path, text, lines and syntax tree.
Caller  tests/house.
Never   follows the links zray/brokers and zray/actors: their files are seen once, where they lie.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("zray", "brokers", "actors")
FOLDERS = (*PACKAGES, "tests", "scripts")


@dataclass(frozen=True)
class Source:
    """One Python file."""

    path: Path
    text: str
    tree: ast.Module

    @property
    def name(self) -> str:
        """Return the path from the project's root, for messages."""
        return str(self.path.relative_to(ROOT))

    @property
    def module(self) -> str:
        """Return the dotted name it is imported by: zray.brokers.node for brokers/node.py."""
        parts = list(self.path.relative_to(ROOT).with_suffix("").parts)
        if parts[0] in ("brokers", "actors"):
            parts.insert(0, "zray")
        if parts[-1] == "__init__":
            parts.pop()
        return ".".join(parts)

    @property
    def docstring(self) -> str:
        """Return the module's docstring, or an empty one."""
        return ast.get_docstring(self.tree, clean=False) or ""


def walk(folder: Path) -> Iterator[Path]:
    """Yield the files under ``folder``, without links, caches and hidden folders."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith((".", "__pycache__")) and not Path(place, name).is_symlink()
        )
        yield from (Path(place, name) for name in sorted(files))


@cache
def python_files(*folders: str) -> tuple[Source, ...]:
    """Return every Python file of the named top-level folders, all of them by default."""
    found = []
    for folder in folders or FOLDERS:
        for path in walk(ROOT / folder):
            if path.suffix == ".py":
                text = path.read_text(encoding="utf-8")
                found.append(Source(path, text, ast.parse(text, str(path))))
    return tuple(found)


def report(problems: list[str]) -> str:
    """Return the problems as one message for an assertion."""
    once = list(dict.fromkeys(problems))
    return f"{len(once)} to mend:\n  " + "\n  ".join(once)
