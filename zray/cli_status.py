"""What `zray-node status` shows.

What    Asks a node its questions and prints the answers as tables, or all of them as JSON; what is
        wrong is that of all nodes, of which those that say nothing are named.
Caller  zray/cli.py.
Never   computes what the node could have said itself.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from zray.observer import Observer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

PROBLEMS_CODE = 4
_ROWS_MAX = 20
_QUESTIONS = ("status", "nodes", "workers", "actors", "tasks", "objects", "jobs")


def status(directory: str, *, as_json: bool, check: bool = False) -> int:
    """Print the state of a cluster, asked of the node in ``directory``; returns the exit code.

    Args:
        directory: of the node to ask.
        as_json: print JSON.
        check: return PROBLEMS_CODE where something is wrong.
    """
    with Observer(directory) as observer:
        found = {what: observer.ask(what) for what in _QUESTIONS}
        everywhere = observer.ask("cluster_status")
    report = {
        **found.pop("status"),
        **found,
        "problems": everywhere["problems"],
        "missing": everywhere["missing"],
        "all_nodes": everywhere["nodes"],
        "status_of": everywhere["status_of"],
    }
    if as_json:
        print(json.dumps(report, indent=2))
    else:
        _show(report)
    return PROBLEMS_CODE if check and report["problems"] else 0


def size(nbytes: float) -> str:
    """Return a number of bytes as people read it: 1.5 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if nbytes < 1024:
            return f"{nbytes:.3g} {unit}" if unit != "B" else f"{int(nbytes)} B"
        nbytes /= 1024
    return f"{nbytes:.3g} TiB"


def duration(seconds: float) -> str:
    """Return a duration as people read it: 3 h 12 min."""
    for unit, step, below in (("d", 86400, "h"), ("h", 3600, "min"), ("min", 60, "s")):
        if seconds >= step:
            rest = {"h": 3600, "min": 60, "s": 1}[below]
            return f"{int(seconds // step)} {unit} {int(seconds % step // rest)} {below}"
    return f"{seconds:.1f} s"


def _table(title: str, *columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, title_style="bold")
    for column in columns:
        table.add_column(
            column,
            overflow="fold",
            justify="right" if column in ("total", "free", "pid", "count") else "left",
        )
    return table


def _show(report: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    console.print(
        f"[bold]node {report['node']}[/] at {report['directory']}, pid {report['pid']},"
        f" up {duration(report['uptime_s'])}"
    )
    _show_problems(console, report["problems"])
    if report["cluster"] is not None:
        _show_nodes(console, report)
    _show_resources(console, report)
    _show_load(console, report)
    _show_actors(console, report["actors"])
    _show_jobs(console, report["jobs"])


def _show_problems(console: Console, problems: list[str]) -> None:
    if not problems:
        console.print("[green]nothing is wrong[/]")
    for problem in problems:
        console.print(f"[yellow]! {problem}[/]")


def _show_nodes(console: Console, report: dict[str, Any]) -> None:
    columns = ("node", "state", "address", "machine", "CPUs free", "queue", "labels")
    table = _table("Nodes", *columns)
    table.padding = (0, 1, 0, 0)  # A row of an ordinary node fits into 80 columns.
    for column in table.columns[:-1]:
        column.no_wrap = True  # Ids and addresses are copied into commands.
    # The dead last, and of those the newest: a cluster that has run for long has many.
    rows = sorted(report["all_nodes"], key=lambda row: (row["state"] == "DEAD", -_begun(row)))
    for row in rows[:_ROWS_MAX]:
        table.add_row(*_node_cells(row, report))
    _more(table, len(rows))
    console.print(table)
    whole = report["cluster"]["resources"]
    console.print(
        "  all nodes: "
        + ", ".join(
            f"{whole['available'].get(name, 0.0):g} of {amount:g} {name} free"
            for name, amount in whole["total"].items()
            if name != "memory"
        )
    )
    console.print(f"             {_sums(list(report['status_of'].values()))}")


def _sums(statuses: list[dict[str, Any]]) -> str:
    """Return what there is on all nodes together."""
    tasks = sum(each["scheduler"]["queued_tasks"] for each in statuses)
    running = sum(each["scheduler"]["running_tasks"] for each in statuses)
    actors = sum(sum(each["actor_counts"].values()) for each in statuses)
    objects = sum(each["object_counts"]["objects"] for each in statuses)
    used = sum(each["store"]["used_bytes"] for each in statuses)
    spilled = sum(each["object_counts"]["spilled_bytes"] for each in statuses)
    return (
        f"{tasks} tasks queued, {running} running; {actors} actors; {objects} objects, {size(used)}"
        f" in shared memory, {size(spilled)} on disk"
    )


def _begun(row: dict[str, Any]) -> int:
    begun: int = row["start_time_ms"]
    return begun if row["state"] == "DEAD" else 0


def _node_cells(row: dict[str, Any], report: dict[str, Any]) -> tuple[str, ...]:
    if row["state"] == "DEAD":
        return (row["node_id"], "dead", row["address"].removeprefix("tcp://"), row["node_name"])
    free = row["resources_available"].get("CPU", 0.0)
    total = row["resources_total"].get("CPU", 0.0)
    here = " (here)" if row["node_id"] == report["node"] else ""
    return (
        row["node_id"],
        "head" if row["is_head_node"] and row["state"] == "ALIVE" else row["state"].lower(),
        row["address"].removeprefix("tcp://"),
        row["node_name"] + here,
        f"{free:g} of {total:g}",
        str(row["queued_tasks"]),
        ", ".join(f"{name}={value}" for name, value in sorted(row["labels"].items())),
    )


def _show_resources(console: Console, report: dict[str, Any]) -> None:
    where = "" if report["cluster"] is None else " of this node"
    table = _table(f"Resources{where}", "resource", "free", "total")
    total, free = report["resources"]["total"], report["resources"]["available"]
    for name, amount in total.items():
        left = free.get(name, 0.0)
        if name == "memory":
            table.add_row(name, size(left), size(amount))
        else:
            table.add_row(name, f"{left:g}", f"{amount:g}")
    store = report["store"]
    table.add_row(
        "object store",
        size(store["capacity_bytes"] - store["used_bytes"]),
        size(store["capacity_bytes"]),
    )
    console.print(table)


def _show_load(console: Console, report: dict[str, Any]) -> None:
    scheduler, objects, store = report["scheduler"], report["object_counts"], report["store"]
    table = _table("Load", "what", "count", "of which")
    workers = scheduler["workers"]
    table.add_row(
        "workers",
        str(sum(workers.values())),
        ", ".join(f"{count} {state}" for state, count in sorted(workers.items())),
    )
    table.add_row("tasks queued", str(scheduler["queued_tasks"]), "")
    table.add_row("tasks running", str(scheduler["running_tasks"]), "")
    states = report["actor_counts"]
    table.add_row(
        "actors",
        str(sum(states.values())),
        ", ".join(f"{count} {state.lower()}" for state, count in sorted(states.items())),
    )
    table.add_row(
        "objects",
        str(objects["objects"]),
        f"{objects['stored_objects']} in shared memory ({size(store['used_bytes'])}),"
        f" {objects['spilled_objects']} on disk ({size(objects['spilled_bytes'])})",
    )
    table.add_row("drivers", str(report["drivers"]), "")
    console.print(table)


def _show_actors(console: Console, actors: list[dict[str, Any]]) -> None:
    living = [actor for actor in actors if actor["state"] != "DEAD"]
    if not living:
        return
    table = _table("Actors", "name", "class", "state", "namespace", "id")
    # Those with a name first: they are what somebody will look for.
    for actor in sorted(living, key=lambda row: (not row["name"], row["name"]))[:_ROWS_MAX]:
        kind = " (detached)" if actor["detached"] else ""
        table.add_row(
            actor["name"] + kind,
            actor["class_name"],
            actor["state"].lower(),
            actor["namespace"] if actor["name"] else "",
            actor["actor_id"],
        )
    _more(table, len(living))
    console.print(table)


def _show_jobs(console: Console, jobs: list[dict[str, Any]]) -> None:
    if not jobs:
        return
    table = _table("Jobs", "job", "state", "pid", "began", "took", "program")
    for job in sorted(jobs, key=lambda row: -row["started_at"])[:_ROWS_MAX]:
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job["started_at"]))
        end = job["ended_at"] or time.time()
        table.add_row(
            job["job_id"],
            job["state"],
            str(job["pid"]),
            began,
            duration(end - job["started_at"]),
            job["entrypoint"],
        )
    _more(table, len(jobs))
    console.print(table)


def _more(table: Table, count: int) -> None:
    if count > _ROWS_MAX:
        table.caption = f"and {count - _ROWS_MAX} more: see --json"
