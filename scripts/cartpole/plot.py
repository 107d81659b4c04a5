"""The learning curve: what is known about each generation, as a csv file and as a picture.

What    One `Generation` per line of curve.csv, and the same numbers drawn as learning-curve.png.
Caller  train.py, once, when training ends, whether the policy solved the task or not.
Never   writes a time or a host name: the same seed writes the same curve.csv, byte for byte.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

CSV_NAME = "curve.csv"
PICTURE_NAME = "learning-curve.png"


class Generation(NamedTuple):
    """One policy and how it did: one line of curve.csv."""

    generation: int
    steps: int
    """Environment steps in the training episodes."""
    return_mean: float
    """Mean total reward of the training episodes, then their extremes."""
    return_min: float
    return_max: float
    evaluation_mean: float
    """Mean total reward of the evaluation episodes, on seeds that are used once."""
    policy: str
    """Digest of the weights that played all of these episodes."""


def write_csv(curve: Sequence[Generation], directory: Path) -> Path:
    """Write `curve` to curve.csv in `directory` and return its path."""
    path = directory / CSV_NAME
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Generation._fields)
        # A float is written by repr, which is exact: two equal files are two equal curves.
        writer.writerows(curve)
    return path


def draw(curve: Sequence[Generation], directory: Path, *, target: float, title: str) -> Path:
    """Draw `curve` to learning-curve.png in `directory` and return its path.

    Args:
        curve: at least one generation.
        directory: an existing directory.
        target: the mean return that counts as solved, drawn as a line.
        title: one line above the picture.
    """
    # Imported here: matplotlib costs half a second, and a run that is interrupted needs none.
    # Figure without pyplot draws with Agg, with no display and no state left behind.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    numbers = [row.generation for row in curve]
    figure = Figure(figsize=(8.0, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.fill_between(
        numbers,
        [row.return_min for row in curve],
        [row.return_max for row in curve],
        alpha=0.15,
        linewidth=0,
        color="tab:blue",
        label="shortest to longest rollout",
    )
    axes.plot(
        numbers, [row.return_mean for row in curve], color="tab:blue", label="mean of the rollouts"
    )
    axes.plot(
        numbers,
        [row.evaluation_mean for row in curve],
        color="tab:orange",
        marker="o",
        markersize=3.5,
        label="mean of the evaluation",
    )
    axes.axhline(target, color="tab:green", linestyle="--", label=f"target, {target:g}")
    axes.set_xlabel("generation")
    axes.set_ylabel("return (steps upright)")
    axes.set_ylim(0.0, 515.0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(title)
    axes.grid(alpha=0.25)
    # Below the target line, where a curve that is still rising has nothing to hide.
    axes.legend(loc="upper left", bbox_to_anchor=(0.0, 0.9), fontsize="small")
    path = directory / PICTURE_NAME
    figure.savefig(path, dpi=150)
    return path
