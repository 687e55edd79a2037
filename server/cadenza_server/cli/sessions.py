"""`cadenza sessions` and `cadenza session create | show | close | cancel | watch`."""

from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final

import typer

from cadenza_server.cli import job_view, output
from cadenza_server.cli.connection import calls_server
from cadenza_server.cli.jobs import LIMIT_DEFAULT, choose_owner
from cadenza_server.cli.times import check_length

if TYPE_CHECKING:
    from cadenza import Client
    from cadenza.v1.session_pb2 import Session
    from rich.console import RenderableType

JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object a line, for programs.")]
SessionArgument = Annotated[str, typer.Argument(metavar="SESSION", help="The session's id.")]


class Mode(StrEnum):
    """How a session's jobs are run."""

    DEDICATED = "dedicated"
    BATCH = "batch"


class State(StrEnum):
    """States of sessions."""

    OPEN = "open"
    ACTIVE = "active"
    INACTIVE = "inactive"
    DRAINING = "draining"
    CLOSED = "closed"


STATES_HELP: Final = "Only " + ", ".join(State) + "; may be repeated."


class Pending(StrEnum):
    """What a close does with queued jobs."""

    DRAIN = "drain"
    FAIL = "fail"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(
        rich_help_panel="Sessions",
        epilog="Examples:\ncadenza sessions\ncadenza sessions --state active --all",
    )(sessions)
    one = typer.Typer(
        no_args_is_help=True,
        help="Create, show, watch and end one session: the device is yours while it is active.",
        epilog="Examples:\ncadenza session create --device aer\n"
        "cadenza submit bell.qasm --session SESSION\ncadenza session close SESSION --pending drain",
    )
    one.command(
        epilog="Examples:\ncadenza session create --device aer\n"
        "cadenza session create --device aer --mode batch --max-time 2h --json | jq -r .session_id"
    )(create)
    one.command(epilog="Example:\ncadenza session show SESSION")(show)
    one.command(epilog="Example:\ncadenza session watch SESSION --json")(watch)
    one.command(epilog="Examples:\ncadenza session close SESSION\ncadenza session close SESSION --pending fail")(close)
    one.command(epilog="Example:\ncadenza session cancel SESSION")(cancel)
    app.add_typer(one, name="session", rich_help_panel="Sessions")


@calls_server
def sessions(
    client: "Client",
    state: Annotated[list[State] | None, typer.Option(metavar="STATE", help=STATES_HELP)] = None,
    device: Annotated[str, typer.Option(metavar="DEVICE", help="Only sessions on this device.")] = "",
    owner: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Sessions of this user or account, for operators. Default: your own."),
    ] = None,
    everybody: Annotated[bool, typer.Option("--all", help="Everybody's sessions, for operators.")] = False,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="How many at most.")] = LIMIT_DEFAULT,
    json: JsonOption = False,
) -> None:
    """List sessions, the newest first: your own, unless you ask for others'."""
    whose = choose_owner(client, owner, everybody)
    found = client.list_sessions(
        states=[each.value for each in state or ()], device=device, user=whose, limit=limit + 1
    )
    if json:
        for each in found[:limit]:
            output.print_json(each)
        return
    if not found:
        typer.echo("No sessions." if everybody else f"No sessions of {whose} found.")
        return
    output.make_console().print(_sessions_table(found[:limit], with_user=everybody or owner is not None))
    if len(found) > limit:
        typer.echo(f"There are more than {limit}: --limit shows more.")


@calls_server
def create(
    client: "Client",
    device: Annotated[str, typer.Option(metavar="DEVICE", help="Its device.")],
    mode: Annotated[
        Mode,
        typer.Option(
            metavar="MODE", help="dedicated: the device waits for your next job. batch: many independent jobs."
        ),
    ] = Mode.DEDICATED,
    max_time: Annotated[
        str | None, typer.Option(metavar="LENGTH", help="How long it lasts from its first job, such as 2h.")
    ] = None,
    interactive_ttl: Annotated[
        str | None, typer.Option(metavar="LENGTH", help="How long it may be idle before it lets go of the device.")
    ] = None,
    reservation: Annotated[
        str, typer.Option(metavar="RESERVATION", help="Bind it to this reservation: it runs only in its window.")
    ] = "",
    session_id: Annotated[
        str, typer.Option("--id", metavar="SESSION", help="The session's id. Default: the server makes one.")
    ] = "",
    json: JsonOption = False,
) -> None:
    """Create a session. It starts when its first job is picked."""
    asked = {
        "max_time": check_length("--max-time", max_time),
        "interactive_ttl": check_length("--interactive-ttl", interactive_ttl),
    }
    made = client.create_session(
        device,
        mode=mode.value,
        **asked,
        reservation_id=reservation,
        session_id=session_id,
    )
    if json:
        output.print_json(made)
    else:
        typer.echo(
            f"{made.session_id} is open on {made.device}. `cadenza submit FILE --session {made.session_id}` uses it, "
            f"`cadenza session close {made.session_id}` ends it."
        )
        for name, seconds in asked.items():
            given_ns = output.duration_ns(getattr(made.settings, name))
            if seconds is not None and given_ns < round(seconds * 1e9):
                typer.echo(f"Its {name} is {output.format_length(given_ns)}: {made.device} gives no more.")


@calls_server
def show(client: "Client", session_id: SessionArgument, json: JsonOption = False) -> None:
    """Show a session: its state, clocks, jobs, and what it was charged."""
    found = client.get_session(session_id)
    if json:
        output.print_json(found)
    else:
        output.make_console().print(output.make_facts(_session_facts(found, datetime.now(UTC))))


@calls_server
def watch(
    client: "Client",
    session_id: SessionArgument,
    jobs: Annotated[bool, typer.Option("--jobs/--no-jobs", help="Also the changes of its jobs.")] = True,
    json: JsonOption = False,
) -> None:
    """Print each change of a session and its jobs until it is closed and done. With --json one event a line."""
    with client.watch_session(session_id, exclude_jobs=not jobs) as changes:
        for event in changes:
            if json:
                output.print_json(event)
            else:
                typer.echo(job_view.event_line(event, datetime.now(UTC)))


@calls_server
def close(
    client: "Client",
    session_id: SessionArgument,
    pending: Annotated[
        Pending | None,
        typer.Option(
            metavar="drain|fail", help="Queued jobs still run (drain) or fail. Default: as the device's profile says."
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Close a session: it takes no more jobs; a running job runs on."""
    before = client.get_session(session_id)
    _tell(before, client.close_session(session_id, None if pending is None else pending.value), json)


@calls_server
def cancel(client: "Client", session_id: SessionArgument, json: JsonOption = False) -> None:
    """Cancel a session and its queued jobs; a running job runs on."""
    _tell(client.get_session(session_id), client.cancel_session(session_id), json)


def _tell(before: "Session", session: "Session", json: bool) -> None:
    """Say what has become of a session, and of the jobs that were queued."""
    if json:
        output.print_json(session)
        return
    counts, old = session.job_counts, before.job_counts
    left = f": {counts.running} running, {counts.queued} queued" if counts.running or counts.queued else ""
    typer.echo(f"{session.session_id} is {job_view.session_state(session)}{left}.")
    gone = old.queued - counts.queued
    failed, cancelled = min(gone, counts.failed - old.failed), min(gone, counts.cancelled - old.cancelled)
    if failed > 0:
        typer.echo(f"Queued jobs that have failed with it: {failed}. With `--pending drain` they run.")
    if cancelled > 0:
        typer.echo(f"Queued jobs that were cancelled with it: {cancelled}.")


def _sessions_table(found: "list[Session]", *, with_user: bool) -> "RenderableType":
    now = datetime.now(UTC)
    rows = [
        (
            each.session_id,
            *((each.user,) if with_user else ()),
            job_view.session_state(each),
            output.enum_word(each, "mode"),
            each.device,
            each.job_counts.queued,
            each.job_counts.running,
            each.job_counts.succeeded + each.job_counts.failed + each.job_counts.cancelled,
            output.time_or_absent(each, "create_time", now),
            output.time_or_absent(each, "expire_time", now),
        )
        for each in found
    ]
    owner = ("USER",) if with_user else ()
    counts = ("QUEUED", "RUNNING", "ENDED")
    header = ("SESSION", *owner, "STATE", "MODE", "DEVICE", *counts, "CREATED", "EXPIRES")
    return output.make_table(header, rows, right=counts)


def _session_facts(session: "Session", now: datetime) -> list[tuple[str, object]]:
    counts = session.job_counts
    epochs = output.ABSENT
    if session.HasField("first_epoch") and session.HasField("last_epoch"):
        same = session.first_epoch == session.last_epoch
        epochs = f"{session.first_epoch}" if same else f"{session.first_epoch} to {session.last_epoch}"
    settings = session.settings
    facts: list[tuple[str, object]] = [
        ("session", session.session_id),
        ("state", job_view.session_state(session)),
        ("has the device", "yes" if session.active else "no"),
        ("accepts jobs", "yes" if session.accepting_jobs else "no"),
        ("user", session.user),
        ("device", session.device),
        ("mode", output.enum_word(session, "mode")),
        ("reservation", output.or_absent(session.reservation_id)),
        (
            "jobs",
            f"{counts.queued} queued, {counts.running} running, {counts.succeeded} succeeded, {counts.failed} failed, "
            f"{counts.cancelled} cancelled",
        ),
        ("first job", output.or_absent(session.first_job_id)),
        ("created", output.time_or_absent(session, "create_time", now)),
        ("started", output.time_or_absent(session, "start_time", now)),
        ("last activated", output.time_or_absent(session, "activate_time", now)),
        ("expires", output.time_or_absent(session, "expire_time", now)),
        ("lets go if idle", output.time_or_absent(session, "idle_expire_time", now)),
        ("closes if unused", output.time_or_absent(session, "unused_expire_time", now)),
        ("cache kept until", output.time_or_absent(session, "cache_expire_time", now)),
        ("closed", output.time_or_absent(session, "close_time", now)),
        ("charged for jobs", output.length_or_absent(session, "run_time")),
        ("charged for holding", output.length_or_absent(session, "held_time")),
        ("epochs", epochs),
        ("max time", output.length_or_absent(settings, "max_time")),
        ("interactive ttl", output.length_or_absent(settings, "interactive_ttl")),
        ("on close", output.enum_reason(settings, "on_close") or output.ABSENT),
        ("on expiry", output.enum_reason(settings, "on_expiry") or output.ABSENT),
    ]
    return facts
