"""Train a CartPole policy with tasks and an actor: zray's main demonstration.

What    The driver: rollout tasks play, a learner actor improves, nested tasks evaluate, repeat.
Caller  A person, through scripts/demo, or `python scripts/cartpole/train.py --help`.
Never   lets the order in which tasks finish reach the learner: one seed gives one curve.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from learner import Learner
from plot import Generation, draw, write_csv
from policy import Array, digest
from progress import Display
from rich.console import Console
from rollout import Trajectory, evaluate, evaluation_seeds, rollout, training_seeds

import zray

EVALUATION_EPISODES = 100
EXIT_NOT_SOLVED = 1
EXIT_INTERRUPTED = 130

HELP = """Train a CartPole-v1 policy with tasks and an actor, and draw its learning curve.

A generation is one policy: every rollout is a task, 100 fresh evaluation episodes are nested
tasks, and a learner actor turns the rollouts into the next policy. The run ends when the
evaluation mean reaches the target. The same seed gives the same curve with any number of workers
and nodes.

Exit code: 0 solved, 1 not solved, 2 wrong options, 130 interrupted.
"""

EXAMPLES = """Examples:

\b
  scripts/demo                              solve it, with every CPU
  scripts/demo --seed 7 --workers 1         another curve, on one CPU
  scripts/demo --nodes 3                    over three nodes, all on this machine
  scripts/demo --target 300 --out /tmp/run  stop early, write elsewhere
  scripts/demo --generations-max 5          a short run: exit code 1, not solved
"""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to train; nothing in it depends on the machine."""

    seed: int
    target: float
    episodes: int
    generations_max: int


def play_generation(
    plan: Plan, number: int, weights: zray.ObjectRef[Array], display: Display
) -> tuple[Generation, list[zray.ObjectRef[Trajectory]]]:
    """Play generation `number` of the policy `weights`; return its results and its rollouts."""
    # The evaluation goes first: it is the longest piece of work, and the rollouts fill its gaps.
    evaluation = evaluate.remote(weights, evaluation_seeds(plan.seed, number, EVALUATION_EPISODES))
    rollouts = [
        rollout.remote(weights, seed) for seed in training_seeds(plan.seed, number, plan.episodes)
    ]
    display.begin(number, plan.episodes)
    pending: list[zray.ObjectRef[Any]] = [evaluation, *rollouts]
    while pending:
        # Short episodes finish first, and are shown first.
        ready, pending = zray.wait(pending, num_returns=1)
        for ref in ready:
            if ref == evaluation:
                display.evaluated(_mean(zray.get(evaluation)))
            else:
                display.rollout_finished(len(zray.get(ref).rewards))
    # From here on in the order of their seeds: this is what makes the curve repeatable.
    trajectories = zray.get(rollouts)
    returns = [float(trajectory.rewards.sum()) for trajectory in trajectories]
    row = Generation(
        generation=number,
        steps=sum(len(trajectory.rewards) for trajectory in trajectories),
        return_mean=_mean(returns),
        return_min=min(returns),
        return_max=max(returns),
        evaluation_mean=_mean(zray.get(evaluation)),
        policy=digest(zray.get(weights)),
    )
    return row, rollouts


def train(plan: Plan, display: Display, curve: list[Generation]) -> bool:
    """Train until solved or out of generations; append to `curve`; return whether it solved."""
    learner = Learner.remote(plan.seed)
    weights = learner.weights.remote()
    for number in range(plan.generations_max):
        row, rollouts = play_generation(plan, number, weights, display)
        curve.append(row)
        display.end(row)
        if row.evaluation_mean >= plan.target:
            return True
        # The rollouts go to the actor as refs; the driver does not wait for the new policy either:
        # the next generation's tasks do.
        weights = learner.improve.remote(*rollouts)
    return False


def main(
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same curve.")] = 0,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="CPUs to use, a worker process each, on each node.", show_default="all"
        ),
    ] = None,
    nodes: Annotated[
        int, typer.Option(min=1, help="Nodes to run on, all on this machine; they share its CPUs.")
    ] = 1,
    episodes: Annotated[int, typer.Option(min=2, help="Rollouts in a generation.")] = 64,
    target: Annotated[
        float, typer.Option(min=1, max=500, help="Evaluation mean that counts as solved.")
    ] = 475.0,
    generations_max: Annotated[int, typer.Option(min=1, help="Give up after these.")] = 200,
    out: Annotated[
        Path, typer.Option(file_okay=False, help="Directory for the picture and the numbers.")
    ] = Path("demo-out"),
) -> None:
    """Check the options, train on nodes of this process's own, and report."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise typer.BadParameter(f"cannot make {out}: {error}", param_hint="--out") from error
    plan = Plan(seed, target, episodes, generations_max)
    console = Console()
    curve: list[Generation] = []
    started_s = time.monotonic()
    try:
        with running(nodes, workers), Display(console, target=target) as display:
            solved = train(plan, display, curve)
    except KeyboardInterrupt:
        console.print(f"Interrupted after {_generations(len(curve))}; nothing is written.")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    report(plan, curve, out, console, solved=solved, elapsed_s=time.monotonic() - started_s)
    if not solved:
        raise typer.Exit(EXIT_NOT_SOLVED)


@contextlib.contextmanager
def running(nodes: int, workers: int | None) -> Generator[None]:
    """Start the nodes and connect to the first one; at the end nothing of them is left."""
    if nodes == 1:
        with zray.init(num_cpus=workers):
            yield
        return
    from zray.testing import Cluster

    # Each as many CPUs as were asked for, else an equal part of the machine's.
    num_cpus = workers or max(1, len(os.sched_getaffinity(0)) // nodes)
    with Cluster() as cluster:
        for _ in range(nodes):
            cluster.add_node(num_cpus=num_cpus)
        with zray.init(cluster.address):
            yield


def report(
    plan: Plan,
    curve: list[Generation],
    out: Path,
    console: Console,
    *,
    solved: bool,
    elapsed_s: float,
) -> None:
    """Write the csv and the picture of `curve` into `out` and say where they are."""
    outcome = "Solved in" if solved else "Not solved after"
    summary = f"{outcome} {_generations(len(curve))}"
    picture = draw(
        curve, out, target=plan.target, title=f"CartPole-v1, seed {plan.seed}: {summary.lower()}"
    )
    numbers = write_csv(curve, out)
    console.print(
        f"{summary}, {elapsed_s:.1f} s: mean return {curve[-1].evaluation_mean:.1f} "
        f"over {EVALUATION_EPISODES} evaluation episodes (target {plan.target:g}).",
        style="bold green" if solved else "bold yellow",
        highlight=False,
        soft_wrap=True,
    )
    console.print(f"Picture: {picture}", highlight=False, soft_wrap=True)
    console.print(f"Numbers: {numbers}", highlight=False, soft_wrap=True)


def _generations(count: int) -> str:
    return "1 generation" if count == 1 else f"{count} generations"


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(help=HELP, epilog=EXAMPLES)(main)
    app(prog_name="scripts/demo")
