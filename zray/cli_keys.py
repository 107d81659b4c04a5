"""`zray-node keys`: who may join the cluster, and how keys change while it runs.

What    Lists the keys, makes those of further members, and changes or takes away those that are
        there. Nodes that run see a change within a second: the head tells them.
Caller  zray/cli.py.
Never   prints a secret key; imports zmq before a command needs it.
"""

from __future__ import annotations

import json
import os
import shlex
import time
from typing import Annotated, Any

import typer

from zray import errors

app = typer.Typer(
    name="keys",
    no_args_is_help=True,
    help="Show, make, change and take away the keys of a cluster, while it runs.",
)

Folder = Annotated[
    str | None,
    typer.Option("--dir", metavar="DIR", help="The head's keys. Default: ~/.zray/cluster."),
]
RoleName = Annotated[str, typer.Option("--role", help="node, client or gateway.")]
Out = Annotated[
    str, typer.Option("--out", metavar="DIR", help="A new folder, to be copied to that machine.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


def _load(directory: str | None) -> Any:
    from zray.net.curve import ClusterKeys

    return ClusterKeys.load(directory)


def _role(name: str) -> Any:
    from zray.protocol.roles import Role

    try:
        return Role(name)
    except ValueError:
        raise errors.OptionError(
            f"{name!r} is no role: node, client or gateway", option="role"
        ) from None


def _say(report: dict[str, Any], text: str, *, as_json: bool) -> None:
    typer.echo(json.dumps(report) if as_json else text)


@app.command("list")
def list_keys(directory: Folder = None, as_json: Json = False) -> None:
    """Show all keys: whose, what for, since when, and whether they count. Works on any node."""
    keys = _load(directory)
    own = {pair.public for role in keys.roles for pair in keys.pairs(role)}
    rows = [
        {
            "member": key.member,
            "role": key.role,
            "state": key.state,
            "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(key.since)),
            "key": key.public.decode(),
            "secret_is_here": key.public in own,
        }
        for key in keys.roster.keys
    ]
    if as_json:
        version = keys.roster.version
        typer.echo(json.dumps({"directory": keys.directory, "version": version, "keys": rows}))
        return
    typer.echo(f"{'MEMBER':20} {'ROLE':8} {'STATE':8} {'SINCE':21} KEY (* its secret is here)")
    for row in rows:
        mark = "*" if row["secret_is_here"] else ""
        typer.echo(
            f"{row['member']:20} {row['role']:8} {row['state']:8} {row['since']:21}"
            f" {row['key']}{mark}"
        )


@app.command(
    epilog="""Examples:

    zray-node keys issue worker-3 --out worker-3
    zray-node keys issue laptop --role client --out laptop
"""
)
def issue(
    member: Annotated[str, typer.Argument(help="What to call it: each machine its own name.")],
    out: Out,
    role: RoleName = "node",
    directory: Folder = None,
    as_json: Json = False,
) -> None:
    """Make the keys of a further member, or another key for one that is there.

    On the head. Who has a key of its own can be shut out alone.
    """
    made = _load(directory).issue(member, _role(role), out)
    public = made.pair(_role(role)).public.decode()
    report = {"member": member, "role": role, "directory": made.directory, "public_key": public}
    copied = shlex.quote(os.path.join(out, "keys.json"))
    _say(
        report,
        f"The keys of {role} {member} are in {made.directory}. Bring them to its machine, and"
        " remove them here:\n\n"
        "  ssh MACHINE mkdir -p -m 700 .zray/cluster\n"
        f"  scp -p {copied} MACHINE:.zray/cluster/\n\n"
        "What runs there already takes a new key within a second; then: zray-node keys retire"
        f" {member}",
        as_json=as_json,
    )


@app.command()
def export(
    out: Out, role: RoleName = "client", directory: Folder = None, as_json: Json = False
) -> None:
    """Write out the head's own key of a role, for many to share: all of them are one member."""
    keys = _load(directory)
    made = keys.export(out, _role(role))
    report = {"member": keys.member(_role(role)), "role": role, "directory": made.directory}
    _say(report, f"The {role} keys of the head are in {made.directory}.", as_json=as_json)


@app.command()
def add(role: RoleName = "node", directory: Folder = None, as_json: Json = False) -> None:
    """Rotation of the head's own key, 1 of 3: make a further one, and let all nodes know it."""
    public = _load(directory).add(_role(role)).public.decode()
    _say(
        {"role": role, "public_key": public},
        f"{public} counts, and is not used yet. Every node that runs knows it within a second; when"
        f" all do: zray-node keys activate --role {role}",
        as_json=as_json,
    )


@app.command()
def activate(role: RoleName = "node", directory: Folder = None, as_json: Json = False) -> None:
    """Rotation of the head's own key, 2 of 3: show the newest one from now on."""
    keys = _load(directory)
    public = keys.activate(_role(role)).public.decode()
    _say(
        {"role": role, "public_key": public},
        f"{public} is what the head shows to who connects from now on; connections that are open"
        f" stay. Then: zray-node keys retire {keys.member(_role(role))}",
        as_json=as_json,
    )


@app.command()
def retire(
    member: Annotated[str, typer.Argument(help="Whose older keys.")],
    directory: Folder = None,
    as_json: Json = False,
) -> None:
    """Rotation, 3 of 3: let no key of a member but its newest open a connection any more."""
    gone = [key.decode() for key in _load(directory).retire(member)]
    said = "\n".join(f"{key} opens no connection any more" for key in gone)
    _say({"member": member, "retired": gone}, said or f"{member} has one key only", as_json=as_json)


@app.command(
    epilog="""Examples:

    zray-node keys revoke worker-3
    zray-node keys revoke 'rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7'
"""
)
def revoke(
    who: Annotated[str, typer.Argument(help="A member, or one key of it.")],
    directory: Folder = None,
    as_json: Json = False,
) -> None:
    """Shut a member or a key out for good: its connections are cut within a second."""
    keys = _load(directory)
    is_member = keys.roster.role_of_member(who) is not None
    gone = [key.decode() for key in keys.revoke(who if is_member else who.encode())]
    said = "\n".join(f"{key} counts for nothing any more" for key in gone)
    _say({"revoked": gone}, said, as_json=as_json)


def folder_option(directory: str) -> str:
    """Return the --dir of these commands, "" where it is the default."""
    from zray.net.curve import default_directory

    if os.path.abspath(directory) == os.path.abspath(default_directory()):
        return ""
    return f" --dir {shlex.quote(directory)}"
