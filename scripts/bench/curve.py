"""What a question answers with: a table over a growing size, and how its cost grew.

What    Answer, its Curves and their rows, and the verdict: what one unit of work costs at the
        largest size, next to the least it cost at any.
Caller  every question makes Curves; run.py, report.py, summary.py and plots.py show them.
Never   measures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

Cell = float | int | str | None
Row = dict[str, Cell]

GROWTH_MAX = 1.5
"""A unit of work may cost this much more at the largest size than at its cheapest."""


@dataclass(frozen=True, slots=True)
class Growth:
    """How the cost of one unit of work changed over the sizes."""

    column: str
    group: str
    cheapest_at: float
    largest: float
    factor: float
    """Cost of a unit at the largest size over the least cost of a unit at any size."""

    @property
    def is_flat(self) -> bool:
        """Return whether cost grew no faster than the work."""
        return self.factor <= GROWTH_MAX

    def __str__(self) -> str:
        where = f"{self.group}, " if self.group else ""
        return (
            f"{where}{self.column}: ×{self.factor:.2f} at {self.largest:,.0f}, "
            f"cheapest at {self.cheapest_at:,.0f}"
        )


@dataclass(slots=True)
class Curve:
    """One table.

    Args:
        name: unique within its question.
        title: what was measured, as a heading.
        size: the column that grows; "" in a table without one.
        group: the column whose values are different lines over the same sizes; "" for one line.
        per_unit: columns that give what one unit of work costs: flat where cost grows as the work.
        plotted: columns drawn over the size; those that begin with "raw" are dashed.
        unit: label of the plot's y axis.
        is_log: sizes are drawn by their magnitude.
        note: how to read it, one or two sentences.
    """

    name: str
    title: str
    size: str = ""
    group: str = ""
    per_unit: tuple[str, ...] = ()
    plotted: tuple[str, ...] = ()
    unit: str = ""
    is_log: bool = True
    note: str = ""
    rows: list[Row] = field(default_factory=list)

    def add(self, *parts: Mapping[str, Cell]) -> None:
        """Append a row, given in one or more parts: column to cell."""
        self.rows.append({name: cell for part in parts for name, cell in part.items()})

    @property
    def columns(self) -> list[str]:
        """Return the names of all columns, in the order in which rows brought them."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def lines(self) -> Iterator[tuple[str, list[Row]]]:
        """Yield (group, rows ordered by size); one line named "" where there is no group."""
        names = dict.fromkeys(str(row[self.group]) if self.group else "" for row in self.rows)
        for name in names:
            rows = [row for row in self.rows if not self.group or str(row[self.group]) == name]
            yield name, sorted(rows, key=lambda row: number(row[self.size]) if self.size else 0.0)

    def growth(self) -> list[Growth]:
        """Return how each per-unit column grew, where there are two sizes to compare."""
        found = []
        for column in self.per_unit:
            for group, rows in self.lines():
                costs = [
                    (number(row[self.size]), number(row[column]))
                    for row in rows
                    if row.get(column) is not None
                ]
                if len(costs) < 2:
                    continue
                cheapest_at, least = min(costs, key=lambda cost: cost[1])
                largest, last = costs[-1]
                factor = last / least if least > 0 else float("inf") if last > 0 else 1.0
                found.append(Growth(column, group, cheapest_at, largest, factor))
        return found

    def to_json(self) -> dict[str, Any]:
        """Return plain types, with the verdicts."""
        growth = [asdict(each) | {"is_flat": each.is_flat} for each in self.growth()]
        return asdict(self) | {"growth": growth}

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Self:
        """Return the curve that to_json() made plain."""
        given = {name: value for name, value in plain.items() if name != "growth"}
        given["per_unit"], given["plotted"] = tuple(given["per_unit"]), tuple(given["plotted"])
        return cls(**given)


@dataclass
class Answer:
    """What came of one question.

    Args:
        name: of the question.
        title: its heading.
        about: what is measured, and what the limit is.
        curves: what was found.
        seconds: how long it took.
        failure: why there are no curves; "" where there are.
    """

    name: str
    title: str
    about: str
    curves: list[Curve]
    seconds: float
    failure: str = ""


def number(cell: Cell) -> float:
    """Return a cell as a number; raises TypeError where it is text or empty."""
    if isinstance(cell, int | float):
        return float(cell)
    raise TypeError(f"{cell!r} is no number")


def shown(cell: Cell) -> str:
    """Return a cell as people read it: three digits, thousands apart."""
    if cell is None:
        return "–"
    if isinstance(cell, str):
        return cell
    if cell == 0 or abs(cell) >= 100 or (isinstance(cell, int) and abs(cell) < 1_000_000):
        return f"{cell:,.0f}"
    return (
        f"{cell:.1f}" if abs(cell) >= 10 else f"{cell:.2f}" if abs(cell) >= 0.1 else f"{cell:.2g}"
    )
