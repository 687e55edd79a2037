"""`cadenza shares`: who may use how much, and who did."""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from cadenza_server.cli import output
from cadenza_server.cli.connection import calls_server, check_path_option
from cadenza_server.cli.failure import fail

if TYPE_CHECKING:
    from cadenza import Client
    from cadenza.v1.share_pb2 import ShareNode
    from rich.console import RenderableType

JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object a line, for programs.")]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        rich_help_panel="Devices",
        epilog="Examples:\ncadenza shares\ncadenza shares lab\ncadenza shares --set lab=3 --set lab/alice=2",
    )(shares)


@calls_server
def shares(
    client: "Client",
    path: Annotated[str | None, typer.Argument(help="Only this account or user, and what is below.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=SHARES", help="From now on, for operators. May be repeated; all or none."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Show the share tree: shares, and usage in device seconds, decayed, of all devices together.

    Where several wait, the one with the least usage over shares goes first, at each level of the tree.

    SHARES: the weight among those with the same parent, and DUE the part of the parent's time that it stands for if all
    of them want some. USAGE S: device seconds, decayed, with those that running jobs are expected to take. USAGE/SHARES
    decides. EVER CHARGED S: device seconds since the beginning, not decayed. WAITING and RUNNING: jobs.
    """
    if settings:
        if path is not None:
            fail("PATH and --set exclude each other: --set says the paths", 2)
        nodes = client.set_shares(parse_settings(settings))
    else:
        nodes = client.list_shares(parent="" if path is None else check_path_option("PATH", path))
    if json:
        for node in nodes:
            output.print_json(node)
    elif nodes:
        output.make_console().print(_table(nodes, whole=path is None and not settings))
    else:
        typer.echo("The share tree is empty: nobody has submitted anything, and no shares are set.")


def parse_settings(given: Sequence[str]) -> dict[str, float]:
    """Shares by path from `PATH=SHARES`. What cannot be read ends the command with exit code 2."""
    found: dict[str, float] = {}
    for each in given:
        path, _, number = each.rpartition("=")
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not path or not (math.isfinite(weight) and weight > 0):
            fail(f"--set: {each!r} is not PATH=SHARES with shares above 0, such as lab/alice=2", 2)
        if check_path_option("--set", path) in found:
            fail(f"--set: {path!r} is given twice", 2)
        found[path] = weight
    return found


def _table(nodes: "Sequence[ShareNode]", *, whole: bool) -> "RenderableType":
    """`whole`: the tree from its root, so that what a node is due among its siblings is known."""
    sums: dict[str, float] = defaultdict(float)
    for node in nodes:
        sums[_parent(node.path)] += node.shares
    rows = [
        (
            ("  " * node.path.count("/") + node.path.rpartition("/")[2]) if whole else node.path,
            output.enum_word(node, "kind"),
            f"{node.shares:g}",
            *((f"{node.shares / sums[_parent(node.path)]:.1%}",) if whole else ()),
            output.format_usage(node.settled_usage_s + node.in_flight_usage_s),
            output.format_usage(node.normalised_usage_s),
            output.format_usage(node.charged_s),
            node.queued_job_count,
            node.running_job_count,
        )
        for node in nodes
    ]
    due = ("DUE",) if whole else ()
    numbers = ("SHARES", *due, "USAGE S", "USAGE/SHARES", "EVER CHARGED S", "WAITING", "RUNNING")
    return output.make_table(("PATH", "KIND", *numbers), rows, right=numbers)


def _parent(path: str) -> str:
    return path.rpartition("/")[0]
