"""The pictures of the report: cost of one unit of work over the size.

What    One png per question with a panel per curve: a flat line is a cost that grows as the work.
Caller  run.py, where --plots is given.
Never   opens a window; needs matplotlib, which the extra "demo" brings.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scripts.bench.curve import Curve, Row, number

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
STYLES = ("-", "--", ":")
PANELS_MAX = 3
PANEL_INCHES = (4.4, 3.3)


def draw(question: str, curves: list[Curve], folder: Path) -> Path | None:
    """Draw the curves that have something to plot; returns the file, None where none has."""
    # Imported here: matplotlib costs half a second, and most runs draw nothing.
    from matplotlib.figure import Figure

    drawn = [curve for curve in curves if curve.plotted and len(curve.rows) > 1][:PANELS_MAX]
    if not drawn:
        return None
    width, height = PANEL_INCHES
    figure = Figure(figsize=(width * max(len(drawn), 2), height), layout="constrained")
    for panel, curve in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn, strict=True):
        _panel(panel, curve)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{question.replace('_', '-')}.png"
    figure.savefig(path, dpi=90, metadata={"Software": None})
    return path


def _panel(axes: Any, curve: Curve) -> None:
    """Draw one line for each group and column; groups by colour, or columns where one group."""
    lines = list(curve.lines())
    grouped = len(lines) > 1
    tops = []
    raw_drawn: set[str] = set()
    for at_line, (group, rows) in enumerate(lines):
        for at_column, column in enumerate(curve.plotted):
            raw = column.startswith("raw")
            if raw and column in raw_drawn and _same_raw(lines, column):
                continue
            points = _points(curve, rows, column)
            if not points:
                continue
            raw_drawn.add(column) if raw else None
            several = sum(not name.startswith("raw") for name in curve.plotted) > 1
            label = column if raw or not grouped else f"{group}: {column}" if several else group
            axes.plot(
                [x for x, _ in points],
                [y for _, y in points],
                color="#555555" if raw else COLOURS[(at_line if grouped else at_column) % 6],
                linestyle="--" if raw else STYLES[at_column % 3] if grouped else "-",
                marker="o",
                markersize=3,
                linewidth=1.4,
                label=label,
            )
            tops += [y for _, y in points]
    if curve.is_log:
        axes.set_xscale("log")
    if min(tops) > 0 and max(tops) / min(tops) > 30:
        axes.set_yscale("log")
    else:
        axes.set_ylim(0, max(tops) * 1.15 or 1)
    axes.set_title(curve.title, fontsize=10)
    axes.set_xlabel(curve.size, fontsize=9)
    axes.set_ylabel(curve.unit, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=7)


def _points(curve: Curve, rows: list[Row], column: str) -> list[tuple[float, float]]:
    return [
        (number(row[curve.size]), number(row[column]))
        for row in rows
        if row.get(column) is not None and number(row[curve.size]) > 0
    ]


def _same_raw(lines: list[tuple[str, list[Row]]], column: str) -> bool:
    """Return whether a raw limit is the same for every group, so that one line says it."""
    first = [row.get(column) for row in lines[0][1]]
    return all([row.get(column) for row in rows] == first for _, rows in lines)
