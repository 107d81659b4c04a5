"""The smallest part of a failing seed that still fails, and a transcript of it that can be read.

What    smallest() leaves out faults and ends programs earlier as long as the same thing goes wrong;
        transcript() picks of the story its turning points, what has to do with whom the failure
        names, and its end.
Caller  tests/sim/test_nodes.py, tests/sim/__main__.py.
Never   takes one failure for another: what is left out must leave the same words.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

END_LINES = 60
NAMED_LINES = 60
TURNING_LINES = 50
_TURNING = re.compile(
    r"FAULT|CRASHES|loses|slow: |serves, life|sees the death|begins another|ends$| log: |kills"
)
_NAME = re.compile(r"\b[A-Z]\.[dw]\d+(?:\.[0-9a-f]+)?")
_STEPS = (1, 2, 3, 4, 6, 8, 12)


@dataclass(frozen=True, slots=True)
class Case:
    """A run: a seed, and what of it is left out.

    Args:
        seed: of everything.
        nodes: how many there are at first; 0: as many as the seed says.
        without: numbers of the faults that are left out.
        steps_max: each driver ends after so many steps at the latest.
    """

    seed: int
    nodes: int = 0
    without: tuple[int, ...] = ()
    steps_max: int = 1000


def smallest(case: Case, run: Callable[[Case], BaseException | None], faults: int) -> Case:
    """Return the smallest case found that fails as this one does.

    Args:
        case: that fails.
        run: returns what went wrong, None where nothing did.
        faults: how many there are.
    """
    failure = _words(run(case))

    def still(smaller: Case) -> bool:
        found = run(smaller)
        return found is not None and _words(found) == failure

    for number in range(faults):
        smaller = replace(case, without=(*case.without, number))
        if still(smaller):
            case = smaller
    for steps_max in _STEPS:
        smaller = replace(case, steps_max=steps_max)
        if still(smaller):
            return smaller
    return case


def _words(error: BaseException | None) -> str:
    """Return what two failures must have in common to be one: no names, no numbers."""
    words = re.findall(r"(?<![\w.])[a-z]{2,}(?![\w.])", str(error))
    return " ".join([type(error).__name__, *words[:6]])


def transcript(lines: list[str], failure: str) -> str:
    """Return what of a story is to be read first."""
    keep = set(range(max(0, len(lines) - END_LINES), len(lines)))
    named = set(_NAME.findall(failure))
    for wanted, count in (
        (lambda line: _TURNING.search(line) is not None, TURNING_LINES),
        (lambda line: not named.isdisjoint(_NAME.findall(line)), NAMED_LINES),
    ):
        keep.update([at for at, line in enumerate(lines) if wanted(line)][-count:])
    shown: list[str] = []
    before = -1
    for at in sorted(keep):
        if at != before + 1:
            shown.append(f"{'':12}… {at - before - 1} lines")
        shown.append(lines[at])
        before = at
    return "\n".join(shown)
