"""Scaling: do tasks a second grow with the nodes, and placement delay not, one to a thousand?

What    Runs tests/sim/cluster.py, which is the real scheduler on a virtual clock, for three ways to
        place: bottom-up, at random, one central scheduler. What a decision takes is measured here
        and now. As a question it stops at 100 nodes; by itself it goes on to a thousand, and
        --report writes docs/explanation/scaling.md.
Caller  run.py; python -m scripts.bench.scaling.
Never   starts a node: a thousand of them are one process.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from scripts.bench.bench_node import Bench
from scripts.bench.curve import Curve, Row
from scripts.bench.report import machine
from tests.sim.cluster import BOTTOM_UP, CENTRAL, RANDOM, Cluster, Costs, Load
from zray.brokers.load import LoadTable, NodeLoad
from zray.brokers.placement import Request, choose
from zray.brokers.resources import ResourceSet
from zray.brokers.scheduler import Scheduler
from zray.protocol import frames, link_messages
from zray.protocol.units import CPU, RESOURCE_UNITS

TITLE = "Scaling"
ABOUT = """Every node of the simulation runs the scheduler, the load table, borrowing, lending and
offering of a live node; clock, network and workers are virtual. What counts is that a node does as
many tasks among a hundred others as among ten, and that a task does not wait longer for its place.
The page [scaling](scaling.md) has the same for a thousand nodes, and what is simulated."""
NODES = (1, 2, 10, 30, 100, 300, 1000)
QUICK_NODES = (1, 2, 10, 30)
CPUS = 4
LOAD = Load(
    task_us=(100, 1_000, 10_000, 100_000), batch_us=20_000, per_slot=0.8, hot=1.0, seconds=0.5
)
WAYS = {BOTTOM_UP: "zray (bottom-up)", RANDOM: "random node", CENTRAL: "one central scheduler"}
COLOURS = {BOTTOM_UP: "#0072b2", RANDOM: "#e69f00", CENTRAL: "#d55e00"}


@dataclass
class Point:
    """One simulation: the row of the table."""

    way: str
    nodes: int
    offered_per_s: int
    tasks_per_s: int
    p50_ms: float
    p99_ms: float
    moved: float
    decision_us: float
    """Of a batch at the central scheduler, of a task elsewhere."""


def central_us(nodes: int) -> float:
    """Return the microseconds that placing one batch on so many nodes takes on this machine."""
    amounts = {CPU: RESOURCE_UNITS}
    table = LoadTable(bytes(8))
    table.published(
        NodeLoad(number.to_bytes(8, "big"), 1, 1, {CPU: CPUS * RESOURCE_UNITS}, amounts)
        for number in range(1, nodes + 1)
    )
    request = Request(amounts)
    decisions = 2_000
    begin = time.process_time()
    for seed in range(decisions):
        node = choose(request, table, seed=seed, now=seed * 1e-6)
        assert node is not None
        table.sent(node, 1_000.0, seed * 1e-6)
    return (time.process_time() - begin) / decisions * 1e6


def loaded(nodes: int) -> Scheduler:
    """Return the scheduler of a node whose queue is long, among so many that are busy."""
    cpus = {CPU: CPUS * RESOURCE_UNITS}
    scheduler = Scheduler(ResourceSet(cpus), pool_size=0, node=(1).to_bytes(8, "big"))
    for number in range(2, nodes + 1):
        busy = NodeLoad(number.to_bytes(8, "big"), 1, 1, cpus, {}, {}, 9, 15_000)
        scheduler.borrowing.heard(busy)
    spec = [b"f", "f", {CPU: RESOURCE_UNITS}, 1, 3, None, 0, {}, 0]
    scheduler.declare(b"client", 0, spec)
    scheduler.submit(b"client", [[0, 1, 2_000, 0, 2_000, 0, 3]], [b""])
    return scheduler


def look_us(nodes: int) -> float:
    """Return the microseconds that a loaded node's look for room at so many nodes takes here."""
    scheduler = loaded(nodes)
    scheduler.resources.acquire(scheduler.resources.total)
    scheduler.borrowing.seek(0.0)
    looks = 300
    begin = time.process_time()
    for step in range(looks):
        scheduler.borrowing.seek(1.0 + step * 1e-3)
    return (time.process_time() - begin) / looks * 1e6


def loan_us() -> float:
    """Return the microseconds that answering a request for a worker takes here: half are no."""
    cpus = {CPU: RESOURCE_UNITS}
    scheduler = Scheduler(ResourceSet(cpus), pool_size=1, node=(1).to_bytes(8, "big"))
    worker, other, number = b"worker00", (2).to_bytes(8, "big"), 0
    scheduler.worker_forked(worker, ())
    scheduler.worker_ready(worker)
    loans = 2_000
    begin = time.process_time()
    for number in range(loans):
        for request in (2 * number, 2 * number + 1):
            scheduler.lending.borrow(
                other, request, cpus, cpus, (), for_actor=False, patient=False, now=0.0
            )
        scheduler.lending.given_back(other, worker, spent=False)
        scheduler.commands.clear()
    return (time.process_time() - begin) / loans / 2 * 1e6


def message_us() -> float:
    """Return the microseconds that a node needs here to pack a message and to unpack it."""
    messages = 5_000
    begin = time.process_time()
    for number in range(messages):
        packed = frames.pack(link_messages.BORROW, number, {CPU: 1}, {CPU: 1}, [], False, False)
        frames.unpack(packed)
    return (time.process_time() - begin) / messages * 1e6


def costs_of(nodes: int, per_task_us: float) -> Costs:
    """Return what deciding takes on this machine, among so many nodes."""
    return Costs(central_us(nodes), per_task_us, look_us(nodes), loan_us(), message_us())


def local_us() -> float:
    """Return the microseconds a task that a node's own scheduler takes on this machine."""
    load = dataclasses.replace(LOAD, seconds=0.0)
    cluster = Cluster(1, BOTTOM_UP, load, cpus=CPUS)
    for _ in range(400):
        cluster.submit(cluster.nodes[0])
    begin = time.process_time()
    outcome = cluster.run()
    # The workers and the clock of the simulation are in it: rather too much than too little.
    return (time.process_time() - begin) / outcome.done * 1e6


def simulate(way: str, nodes: int, costs: Costs, load: Load) -> Point:
    """Run one simulation."""
    cluster = Cluster(nodes, way, load, cpus=CPUS, costs=costs)
    outcome = cluster.run()
    cluster.check()
    return Point(
        way,
        nodes,
        round(outcome.submitted / load.seconds),
        round(outcome.done_in_time / load.seconds),
        round(outcome.delay_ms(0.5), 2),
        round(outcome.delay_ms(0.99), 2),
        round(outcome.moved / outcome.submitted, 2),
        round(costs.central_us if way == CENTRAL else costs.local_us, 1),
    )


def other_seeds(costs: Costs) -> str:
    """Return what p99 at 30 nodes is with six other seeds, in words for the page."""
    found = []
    for way, label in WAYS.items():
        delays = [
            Cluster(30, way, LOAD, cpus=CPUS, costs=costs, seed=seed).run().delay_ms(0.99)
            for seed in range(2, 8)
        ]
        found.append(f"{min(delays):.0f} to {max(delays):.0f} ms ({label})")
    return ", ".join(found)


def measure(bench: Bench) -> list[Curve]:
    """Answer the question."""
    rate = Curve(
        "throughput",
        "Tasks a second of each node, simulated",
        size="nodes",
        group="placed",
        per_unit=("µs of a node per task",),
        plotted=("tasks per s and node", "raw tasks per s and node"),
        unit="tasks per s and node",
        note="Raw: what is submitted, 80 % of what the CPUs can do. Ratio: done of it in time.",
    )
    delay = Curve(
        "delay",
        "How long a task waits for its place, simulated",
        size="nodes",
        group="placed",
        plotted=("p99 ms",),
        unit="ms",
        note="From submission to the worker. Moved: tasks that run on another node than their "
        "driver's.",
    )
    per_task_us = local_us()
    for nodes in bench.sizes(1, 2, 10, 30, 100, quick=10):
        costs = costs_of(nodes, per_task_us)
        for way, label in WAYS.items():
            found = simulate(way, nodes, costs, LOAD)
            key: Row = {"placed": label, "nodes": nodes}
            rate.add(
                key,
                {
                    "tasks per s and node": found.tasks_per_s / nodes,
                    "raw tasks per s and node": found.offered_per_s / nodes,
                    "ratio": found.tasks_per_s / found.offered_per_s,
                    "µs of a node per task": 1e6 * nodes / found.tasks_per_s,
                },
            )
            delay.add(key, {"p50 ms": found.p50_ms, "p99 ms": found.p99_ms, "moved": found.moved})
    return [rate, delay]


def draw(points: list[Point], path: Path) -> None:
    """Draw both curves."""
    # Imported here: matplotlib costs half a second, and comes with the extra "demo".
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.2, 3.6), layout="constrained")
    rate, delay = figure.subplots(1, 2)
    ideal = [point for point in points if point.way == BOTTOM_UP]
    rate.plot(
        [point.nodes for point in ideal],
        [point.offered_per_s for point in ideal],
        color="#555555",
        linestyle="--",
        linewidth=1.2,
        label="submitted",
    )
    for way, label in WAYS.items():
        mine = [point for point in points if point.way == way]
        nodes = [point.nodes for point in mine]
        style = {"color": COLOURS[way], "marker": "o", "markersize": 3.5, "linewidth": 1.5}
        rate.plot(nodes, [point.tasks_per_s for point in mine], label=label, **style)
        delay.plot(nodes, [point.p99_ms for point in mine], label=label, **style)
    for axes, title, unit in (
        (rate, "Throughput", "tasks/s"),
        (delay, "p99 placement delay", "ms"),
    ):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("nodes", fontsize=9)
        axes.set_ylabel(unit, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90, metadata={"Software": None})


def write_csv(points: list[Point], path: Path) -> None:
    """Write one row for each simulation."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([each.name for each in dataclasses.fields(Point)])
        writer.writerows(dataclasses.astuple(point) for point in points)


PAGE = """# Scaling

<!-- Made by scripts/bench/scaling.py; edit the program, not this page. -->

How many tasks a second a cluster places, and how long a task waits for its place, from one node to
a thousand. No machine here has a thousand nodes, so the clock, the network and the workers are
simulated; **the schedulers are the real ones**: every node of the simulation runs the `Scheduler`
of `brokers/` with its load table, borrowing, lending and offering, the classes of a live node.

![Throughput and p99 placement delay over the number of nodes](plots/scaling.png)

Made with

```sh
python -m pip install -e '.[demo]'
python -m scripts.bench.scaling --plots docs/explanation/plots --report docs/explanation/scaling.md
```

on {machine}, in {seconds:.0f} s. `--quick` stops at 30 nodes and takes seconds.

## What is simulated

- Nodes of {cpus} CPUs. Drivers on every node submit batches at random moments, {share:.0%} of what
  the CPUs can do: tasks of 0.1, 1, 10 and 100 ms, {mean:.1f} ms on average.
- A message between nodes takes 0.1 to 0.5 ms, and stays behind the one before it. The GCS publishes
  the load of all nodes as often as a live one would (10 ms for ten nodes, 3 s for a thousand),
  and everybody gets the table then. A new worker process takes 3 ms.
- **zray (bottom-up)**: a batch queues where it was submitted. What has waited 5 ms makes its node
  borrow workers where the table shows room; who had none to spare tells when it has, and a node
  without work offers its workers to one that waits.
- **random node**: every batch goes to a node drawn at random.
- **one central scheduler**: every batch goes through one process, which takes the node it has sent
  least to. It hears nothing of what has ended, and nothing is moved afterwards.
- Decisions take their time, measured on this machine: {local:.1f} µs a task for a node's books;
  {look:.0f} µs (the most of all sizes) each time a node with work that waits looks for room,
  {loan:.0f} µs for the answer to a request, {message:.0f} µs for each message at either end; for
  the central scheduler {local:.1f} µs a task and, a batch, one `choose()`, measured anew for each
  size: {cheap:.0f} to {dear:.0f} µs (beyond 64 nodes the differences are the machine's). What a
  node is busy with delays what it takes in, but not the refilling of its own workers.

What is better than life: every node knows from the start how long each function takes; no
message is lost and no bandwidth is short; sockets and the GCS cost nothing, in all three ways.
Every row is one run of {window:g} virtual seconds with one seed; with other seeds p99 at 30 nodes
is {seeds}.

## Result

| nodes | submitted /s | way | tasks/s | p50 ms | p99 ms | moved |
| --: | --: | :-- | --: | --: | --: | --: |
{rows}

- Bottom-up does {ratio:.0%} of what is submitted at {largest:,} nodes, with a p99 of {p99:.1f} ms.
- At random some nodes get more than they can do while others idle.
- One scheduler is busy all the time from some number of nodes on (here at most {limit:,} tasks
  a second, a number of this machine and of batches of this size), and what comes faster waits.

A single node has nobody to borrow from: its delays are those of its own queue.
"""


def page(points: list[Point], measured: list[Costs], seeds: str, seconds: float) -> str:
    """Return docs/explanation/scaling.md."""
    rows = "\n".join(
        f"| {point.nodes:,} | {point.offered_per_s:,} | {WAYS[point.way]} | {point.tasks_per_s:,} "
        f"| {point.p50_ms:,.1f} | {point.p99_ms:,.1f} | {point.moved:.2f} |"
        for point in sorted(points, key=lambda each: each.nodes)
    )
    last = [point for point in points if point.way == BOTTOM_UP][-1]
    central = [point.decision_us for point in points if point.way == CENTRAL]
    return PAGE.format(
        machine=machine(),
        seconds=seconds,
        cpus=CPUS,
        share=LOAD.per_slot,
        mean=LOAD.mean_task_us() / 1e3,
        local=points[0].decision_us,
        look=max(costs.look_us for costs in measured),
        loan=max(costs.loan_us for costs in measured),
        message=max(costs.message_us for costs in measured),
        cheap=min(central),
        dear=max(central),
        limit=max(point.tasks_per_s for point in points if point.way == CENTRAL),
        rows=rows,
        window=LOAD.seconds,
        seeds=seeds,
        ratio=last.tasks_per_s / last.offered_per_s,
        largest=last.nodes,
        p99=last.p99_ms,
    )


def main(arguments: list[str]) -> int:
    """Simulate, print, draw; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench.scaling",
        description="Simulate clusters of growing size with the real scheduler.",
    )
    parser.add_argument("--quick", action="store_true", help="at most 30 nodes, a few seconds")
    parser.add_argument("--nodes", type=int, nargs="+", help="sizes; by default 1 to 1000")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="write scaling.png and .csv")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the page of the docs")
    given = parser.parse_args(arguments)
    sizes = given.nodes or (QUICK_NODES if given.quick else NODES)
    begin = time.perf_counter()
    per_task_us = local_us()
    points = []
    measured: list[Costs] = []
    for nodes in sizes:
        costs = costs_of(nodes, per_task_us)
        measured.append(costs)
        for way in WAYS:
            points.append(simulate(way, nodes, costs, LOAD))
            print(*dataclasses.astuple(points[-1]), sep="\t", flush=True)
    if given.plots is not None:
        write_csv(points, given.plots / "scaling.csv")
        draw(points, given.plots / "scaling.png")
    if given.report is not None:
        seconds = time.perf_counter() - begin
        text = page(points, measured, other_seeds(measured[0]), seconds)
        given.report.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
