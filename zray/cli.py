"""zray-node: start, look at, use and stop a node from the command line.

What    The commands, their options and exit codes. What they do is in zray/cli_*.py.
Caller  users; the console script zray-node.
Never   imports rich, zmq or numpy before a command needs them: --help and completion stay quick.
Spec    docs/how-to/command-line.md.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from zray import cli_keys, cli_node, errors

EXIT_CODES = {
    0: "done",
    1: "it failed, and stderr says why",
    2: "wrong usage or a wrong setting",
    3: "no node runs there",
    4: "status --check: something is wrong",
    130: "interrupted",
}
_EPILOG = (
    "Exit codes: "
    + "; ".join(f"{code} {text}" for code, text in EXIT_CODES.items())
    + (
        ".\n\nNO_COLOR=1 turns colours off. `zray-node --install-completion` completes names in"
        " your shell."
    )
)

app = typer.Typer(
    name="zray-node",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    epilog=_EPILOG,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(cli_keys.app)

Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
Dir = Annotated[
    str | None,
    typer.Option(
        "--dir", metavar="DIR", help="The node's directory. Default: the last node started."
    ),
]


Head = Annotated[
    bool | None, typer.Option("--head", help="Be the first node of a cluster.", show_default=False)
]
Join = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", help="Join the cluster of the node there.")
]
Host = Annotated[
    str | None,
    typer.Option(
        metavar="IP",
        help="Where other nodes reach this one. Default: the way to who is joined; of a head, this"
        " machine only.",
    ),
]
Port = Annotated[int | None, typer.Option(help="Its TCP port. Default: one that is free.")]
BulkPort = Annotated[
    int | None,
    typer.Option(help="TCP port that objects are sent to. Default: one that is free."),
]
Advertise = Annotated[
    str | None,
    typer.Option(metavar="HOST[:PORT]", help="What to tell others where that differs (NAT)."),
]
BulkAdvertise = Annotated[
    str | None,
    typer.Option(metavar="HOST[:PORT]", help="The same of --bulk-port. Default: that host."),
]
Keys = Annotated[
    str | None,
    typer.Option(
        metavar="DIR",
        help="The cluster's keys; a head makes them. Default: ~/.zray/cluster. none: this machine"
        " only, open to all its users.",
    ),
]
Labels = Annotated[
    str | None, typer.Option(metavar="NAME=VALUE,…", help="What programs may choose it by.")
]


def _version(wanted: bool) -> None:
    if wanted:
        from zray import __version__

        typer.echo(f"zray-node {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Start, look at, use and stop a zray node on this machine."""


@app.command(
    epilog="""Examples:

    zray-node start
    zray-node start --num-cpus 4 --resources '{"license": 2}' --object-store-memory 2GiB
    zray-node start --dir ./node --block
    zray-node start --head --host 10.0.0.7 --port 6380 --labels zone=a
    zray-node start --join 10.0.0.7:6380
"""
)
def start(
    num_cpus: Annotated[float | None, typer.Option(help="CPUs to offer. Default: all.")] = None,
    num_gpus: Annotated[float | None, typer.Option(help="GPUs to offer. Default: all.")] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="BYTES", help="Memory to offer, such as 8GiB.")
    ] = None,
    resources: Annotated[
        str | None,
        typer.Option(metavar="JSON", help="""Custom resources, such as '{"license": 2}'."""),
    ] = None,
    object_store_memory: Annotated[
        str | None, typer.Option(metavar="BYTES", help="Shared memory for objects, such as 2GiB.")
    ] = None,
    spill_directory: Annotated[
        str | None, typer.Option(metavar="DIR", help="Where objects go when the store is full.")
    ] = None,
    lineage_bytes: Annotated[
        str | None,
        typer.Option(metavar="BYTES", help="Lineage to keep for each job. Default: 1GiB."),
    ] = None,
    lineage_copies: Annotated[
        int | None, typer.Option(metavar="N", help="Other nodes that keep a copy. Default: 1.")
    ] = None,
    head: Head = None,
    join: Join = None,
    host: Host = None,
    port: Port = None,
    bulk_port: BulkPort = None,
    advertise: Advertise = None,
    bulk_advertise: BulkAdvertise = None,
    keys: Keys = None,
    labels: Labels = None,
    directory: Annotated[
        str | None,
        typer.Option("--dir", metavar="DIR", help="Where it lives and keeps its tables."),
    ] = None,
    block: Annotated[
        bool, typer.Option("--block", help="Stay until the node ends; Ctrl-C stops it.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Start a node that stays, and print how to connect to it, and how others join it.

    Settings not given here come from ZRAY_* variables, then from zray.toml or [tool.zray] in
    pyproject.toml. A node started again in its directory keeps KV entries, functions and jobs.
    """
    given = {
        "num_cpus": num_cpus,
        "num_gpus": num_gpus,
        "memory": memory,
        "resources": resources,
        "object_store_memory": object_store_memory,
        "spill_directory": spill_directory,
        "lineage_bytes": lineage_bytes,
        "lineage_copies": lineage_copies,
        "head": head,
        "join": join,
        "host": host,
        "port": port,
        "bulk_port": bulk_port,
        "advertise": advertise,
        "bulk_advertise": bulk_advertise,
        "keys": keys,
        "labels": labels,
    }
    raise typer.Exit(cli_node.start(given, directory, block=block, as_json=as_json))


@app.command(
    epilog="""Examples:

    zray-node status
    zray-node status --json | jq .problems
    zray-node status --check || mail -s "zray" somebody
"""
)
def status(
    directory: Dir = None,
    check: Annotated[
        bool, typer.Option("--check", help="Exit with 4 where something is wrong.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show nodes, resources, load, workers, actors, objects, jobs, and what is wrong.

    Without --check the exit code is 0 where the node answers: a probe asks whether it lives, and
    a queue that waits for a larger node is no reason to start this one again.
    """
    from zray import cli_status

    raise typer.Exit(cli_status.status(cli_node.running(directory), as_json=as_json, check=check))


@app.command(
    epilog="""Examples:

    zray-node why 8edf55e9d7c08b5400000000000001af
    zray-node why 8edf55e9d7c0:1af
    zray-node why my-actor --json
"""
)
def why(
    identity: Annotated[
        str,
        typer.Argument(
            metavar="ID",
            help="Of a ref (ref.hex()), task, actor or process: whole, its beginning, or"
            " PROCESS:NUMBER; or a living actor's name.",
        ),
    ],
    directory: Dir = None,
    as_json: Json = False,
) -> None:
    """Say what a ref, task or actor waits for: dependency, queue, worker, since when, stack."""
    from zray import cli_why

    raise typer.Exit(cli_why.why(cli_node.running(directory), identity, as_json=as_json))


@app.command(
    epilog="""Examples:

    zray-node drain 3f9a02c1
    zray-node drain self --timeout 60 --force
"""
)
def drain(
    node: Annotated[str, typer.Argument(help="The beginning of its id, or: self.")],
    directory: Dir = None,
    timeout: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="How long it may take.")
    ] = 300.0,
    force: Annotated[
        bool, typer.Option("--force", help="End it after that, whatever is lost.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Have a node leave its cluster: work and sole copies move off, then it ends.

    It takes no more work; what it has lent comes back, actors that may restart do so elsewhere,
    objects that it keeps for others go to their homes. It waits for drivers that are connected to
    it, and for what runs there and cannot move. Exit code 0: it has left, 1: it stays.
    """
    from zray import cli_drain

    where = cli_node.running(directory)
    raise typer.Exit(cli_drain.drain(where, node, timeout_s=timeout, force=force, as_json=as_json))


@app.command(
    epilog="""Examples:

    zray-node stop
    zray-node stop --dir ./node --force
    zray-node stop --all
"""
)
def stop(
    directory: Dir = None,
    force: Annotated[
        bool, typer.Option("--force", help="Kill it: for a node that does not answer.")
    ] = False,
    every: Annotated[
        bool, typer.Option("--all", help="All nodes that you have started on this machine.")
    ] = False,
    as_json: Json = False,
) -> None:
    """End the node and all its processes, and wait until they are gone.

    A second stop finds nothing to do and succeeds too. What is in its directory stays.
    """
    if every and directory is not None:
        raise errors.OptionError("--all and --dir exclude each other", option="dir")
    if every:
        raise typer.Exit(cli_node.stop_all(force=force, as_json=as_json))
    raise typer.Exit(cli_node.stop(directory, force=force, as_json=as_json))


@app.command(
    epilog="""Examples:

    zray-node keygen
    zray-node keygen --dir ./keys
"""
)
def keygen(
    directory: Annotated[
        str | None,
        typer.Option("--dir", metavar="DIR", help="Where. Default: ~/.zray/cluster."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make the keys of a cluster, for who starts no head by hand; a head makes its own.

    Whoever has the folder can join the cluster and run code on its nodes: its files are readable
    by you alone, and must stay so where you copy them.
    """
    from zray import cli_cluster

    raise typer.Exit(cli_cluster.keygen(directory, as_json=as_json))


@app.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    epilog="""Examples:

    zray-node run train.py --epochs 3
    zray-node run --embedded train.py
    zray-node run --address zray://10.0.0.7:6380 train.py
    zray-node run -m package.module --verbose
""",
)
def run(
    program: Annotated[str, typer.Argument(help="A script, or a module with -m.")],
    arguments: Annotated[list[str] | None, typer.Argument(help="Its arguments.")] = None,
    module: Annotated[bool, typer.Option("-m", help="PROGRAM is a module.")] = False,
    embedded: Annotated[
        bool, typer.Option("--embedded", help="With a node of its own, whatever runs.")
    ] = False,
    directory: Dir = None,
    address: Annotated[
        str | None,
        typer.Option(metavar="zray://HOST:PORT", help="A node of a cluster, on any machine."),
    ] = None,
    keys: Annotated[
        str | None, typer.Option(metavar="DIR", help="That cluster's keys, or none.")
    ] = None,
) -> None:
    """Run a program against the node that was started last, or with one of its own if none runs.

    The program takes this command's place: its exit code and the signals it gets are its own.
    """
    cli_node.run(
        program,
        arguments or [],
        module=module,
        embedded=embedded,
        directory=directory,
        address=address,
        keys=keys,
    )


@app.command(
    epilog="""Examples:

    zray-node logs
    zray-node logs --node --lines 200
    zray-node logs --follow
    zray-node logs --on 8edf55e9
"""
)
def logs(
    directory: Dir = None,
    lines: Annotated[int, typer.Option(min=0, help="How many of the last lines.")] = 50,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on as lines are added; Ctrl-C ends it.")
    ] = False,
    node: Annotated[bool, typer.Option("--node", help="The node's own log instead.")] = False,
    on: Annotated[
        str | None,
        typer.Option(
            "--on", metavar="NODE", help="Of another node of the cluster: how its id begins."
        ),
    ] = None,
) -> None:
    """Show what tasks and actors have printed, or what the node has to say."""
    from zray import cli_logs

    name = "node.log" if node else "workers.log"
    if on is not None:
        where = cli_node.running(directory)
        raise typer.Exit(cli_logs.show_remote(where, on, name, lines, follow=follow))
    raise typer.Exit(cli_logs.show(cli_node.chosen(directory), name, lines, follow=follow))


@app.command(
    epilog="""Examples:

    zray-node doctor
    zray-node doctor --join 10.0.0.7:6380 --port 6380 --bulk-port 6381
    zray-node doctor --clean
"""
)
def doctor(
    head: Head = None,
    join: Join = None,
    host: Host = None,
    port: Port = None,
    bulk_port: BulkPort = None,
    advertise: Advertise = None,
    bulk_advertise: BulkAdvertise = None,
    keys: Keys = None,
    directory: Dir = None,
    clean: Annotated[
        bool, typer.Option("--clean", help="Remove what dead nodes have left.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check this machine, its ports and keys, and its cluster; say what to do where it is wrong.

    With the options of `start` it is what such a node would meet: whether its ports are free and
    lead here, whether the node to join is reached and knows our key. Where a node runs here:
    whether all of its cluster are reached, and agree in clock and versions.
    """
    from zray import cli_doctor

    given = {
        "head": head,
        "join": join,
        "host": host,
        "port": port,
        "bulk_port": bulk_port,
        "advertise": advertise,
        "bulk_advertise": bulk_advertise,
        "keys": keys,
    }
    looked_at = cli_node.running(directory) if directory else cli_node.living()
    raise typer.Exit(cli_doctor.doctor(given, looked_at, clean=clean, as_json=as_json))


@app.command(
    epilog="""Examples:

    zray-node bench --quick
    zray-node bench --json > today.json
"""
)
def bench(
    quick: Annotated[
        bool, typer.Option("--quick", help="A few seconds instead of a minute.")
    ] = False,
    num_cpus: Annotated[float | None, typer.Option(help="CPUs of the node made for it.")] = None,
    as_json: Json = False,
) -> None:
    """Measure calls, tasks and objects on a node made for it."""
    from zray import cli_bench

    raise typer.Exit(cli_bench.bench(num_cpus, quick=quick, as_json=as_json))


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; never returns."""
    given = sys.argv[1:] if arguments is None else arguments
    sys.exit(_guarded(lambda: app(given, standalone_mode=True), as_json="--json" in given))


def _guarded(command: Callable[[], Any], *, as_json: bool) -> int:
    """Run a command; zray's own errors become a line on stderr and an exit code."""
    try:
        command()
    except errors.ZrayError as error:
        if as_json:
            import json

            typer.echo(json.dumps({"error": str(error), "type": type(error).__name__}))
        else:
            typer.echo(f"zray-node: {error}", err=True)
        if isinstance(error, cli_node.NoNodeError):
            return 3
        return 2 if isinstance(error, errors.OptionError) else 1
    except BrokenPipeError:
        # Who read our output has left, as in `zray-node logs | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


if __name__ == "__main__":
    main()
