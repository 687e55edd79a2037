"""`cadenza reserve`, `reservations` and `unreserve`."""

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final

import typer

from cadenza_server.cli import output
from cadenza_server.cli.connection import calls_server, check_path_option
from cadenza_server.cli.failure import fail
from cadenza_server.cli.times import check_length, parse_moment

if TYPE_CHECKING:
    from cadenza import Client
    from cadenza.v1.reservation_pb2 import Reservation
    from rich.console import RenderableType

JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object a line, for programs.")]


class State(StrEnum):
    """States of reservations."""

    SCHEDULED = "scheduled"
    ACTIVE = "active"
    ENDED = "ended"
    DELETED = "deleted"


STATES_HELP: Final = "Only " + ", ".join(State) + "; may be repeated. Default: those that are not over."


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(
        rich_help_panel="Devices",
        epilog="Examples:\ncadenza reservations\ncadenza reservations --device aer --state ended",
    )(reservations)
    app.command(
        rich_help_panel="For operators",
        epilog="Examples:\ncadenza reserve aer --holder lab/alice --start +10m --for 2h\n"
        "cadenza reserve aer --holder lab --start '2026-03-01 09:00' --end '2026-03-01 17:00'",
    )(reserve)
    app.command(rich_help_panel="For operators", epilog="Example:\ncadenza unreserve RESERVATION")(unreserve)


@calls_server
def reserve(
    client: "Client",
    device: Annotated[str, typer.Argument(help="The device.")],
    holder: Annotated[str, typer.Option(metavar="PATH", help="The account or user who has it then.")],
    start: Annotated[str, typer.Option(metavar="TIME", help="Local: '2026-03-01 09:00', 09:00, or +2h from now.")],
    end: Annotated[str | None, typer.Option(metavar="TIME", help="When it ends, as --start.")] = None,
    length: Annotated[str | None, typer.Option("--for", metavar="LENGTH", help="How long, instead of --end.")] = None,
    description: Annotated[str, typer.Option(metavar="TEXT", help="A note for people.")] = "",
    reservation_id: Annotated[
        str, typer.Option("--id", metavar="RESERVATION", help="Its id. Default: the server makes one.")
    ] = "",
    json: JsonOption = False,
) -> None:
    """Reserve a device for an account or user. Only they get it by fair share inside the window."""
    if (end is None) == (length is None):
        fail("say when it ends: either --end TIME or --for LENGTH", 2)
    check_path_option("--holder", holder)
    now = datetime.now(UTC)
    begins = parse_moment("--start", start, now)
    seconds = check_length("--for", length)
    ends = parse_moment("--end", end or "", now) if seconds is None else begins + timedelta(seconds=seconds)
    made = client.create_reservation(
        device, holder, begins, ends, description=description, reservation_id=reservation_id
    )
    if json:
        output.print_json(made)
        return
    first, last = (output.format_time(moment, now) for moment in (made.start_time, made.end_time))
    typer.echo(f"{made.reservation_id}: {made.device} is reserved for {made.holder} from {first} to {last}.")
    if not _is_known(client, made.holder):
        typer.echo(f"Nobody of the name {made.holder} has submitted anything yet: `cadenza shares` lists who has.")


def _is_known(client: "Client", path: str) -> bool:
    """Whether a path is in the share tree: it has shares, or somebody below it has submitted something."""
    from cadenza import NotFoundError

    try:
        client.get_shares(path)
    except NotFoundError:
        return False
    return True


@calls_server
def reservations(
    client: "Client",
    device: Annotated[str, typer.Option(metavar="DEVICE", help="Only of this device.")] = "",
    holder: Annotated[str, typer.Option(metavar="PATH", help="Only of this holder.")] = "",
    state: Annotated[list[State] | None, typer.Option(metavar="STATE", help=STATES_HELP)] = None,
    json: JsonOption = False,
) -> None:
    """List reservations by their start."""
    found = client.list_reservations(device=device, holder=holder, states=[each.value for each in state or ()])
    if json:
        for each in found:
            output.print_json(each)
    elif found:
        output.make_console().print(_table(found))
    else:
        typer.echo("No reservations.")


@calls_server
def unreserve(
    client: "Client",
    reservation_id: Annotated[str, typer.Argument(metavar="RESERVATION", help="The reservation's id.")],
    json: JsonOption = False,
) -> None:
    """Delete a reservation that has not started, or end one that has, now."""
    deleted = client.delete_reservation(reservation_id)
    if json:
        output.print_json(deleted)
    else:
        typer.echo(f"{deleted.reservation_id} is {output.enum_word(deleted, 'state')}.")


def _table(found: "list[Reservation]") -> "RenderableType":
    now = datetime.now(UTC)
    rows = [
        (
            each.reservation_id,
            each.device,
            each.holder,
            output.enum_word(each, "state"),
            output.time_or_absent(each, "start_time", now),
            output.time_or_absent(each, "end_time", now),
            output.or_absent(each.description),
        )
        for each in found
    ]
    return output.make_table(("RESERVATION", "DEVICE", "HOLDER", "STATE", "START", "END", "DESCRIPTION"), rows)
