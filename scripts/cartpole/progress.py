"""What the person at the terminal sees while the policy learns.

What    A line per generation, and on a terminal two live bars below the lines.
Caller  train.py's loop, in the order in which things finish.
Never   decides anything: the curve is the same whoever watches, and also if nobody does.
"""

from __future__ import annotations

import os
from types import TracebackType

from plot import Generation
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

HEADER = "generation   rollouts: mean (min-max)   evaluation      steps"


class Display:
    """A context manager around one training run."""

    def __init__(self, console: Console, *, target: float) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description:<24}"),
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]:<11}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not _is_live(console),
        )
        self._rollouts = self._bars.add_task("starting", total=None, note="")
        self._goal = self._bars.add_task("evaluation mean", total=round(target), note="target")
        self._longest = 0

    def __enter__(self) -> Display:
        self._console.print(HEADER, style="bold", highlight=False)
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def begin(self, generation: int, episodes: int) -> None:
        """Start the bar of a generation of `episodes` rollouts."""
        self._longest = 0
        self._bars.reset(
            self._rollouts,
            total=episodes,
            description=f"rollouts, generation {generation}",
            note="",
        )

    def rollout_finished(self, steps: int) -> None:
        """Count one more rollout, of `steps` steps, in whatever order they finish."""
        self._longest = max(self._longest, steps)
        self._bars.update(self._rollouts, advance=1, note=f"longest {self._longest}")

    def evaluated(self, mean: float) -> None:
        """Move the bar of the goal to `mean`, the generation's evaluation."""
        self._bars.update(self._goal, completed=round(mean))

    def end(self, row: Generation) -> None:
        """Print the line of a finished generation."""
        spread = f"({row.return_min:.0f}-{row.return_max:.0f})"
        self._console.print(
            f"{row.generation:>10}   {row.return_mean:>14.1f} {spread:<9}  "
            f"{row.evaluation_mean:>11.1f}   {row.steps:>8}",
            highlight=False,
        )


def _is_live(console: Console) -> bool:
    # NO_COLOR asks for plain text, and a CI log keeps every redraw of a bar as a line of its own.
    return console.is_terminal and not os.environ.get("NO_COLOR") and not os.environ.get("CI")
