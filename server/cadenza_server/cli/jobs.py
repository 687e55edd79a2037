"""`cadenza jobs`, `job`, `cancel` and `priority`."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final

import typer

from cadenza_server.cli import job_view, output
from cadenza_server.cli.connection import calls_server, check_path_option
from cadenza_server.cli.failure import fail
from cadenza_server.cli.waiting import Waiting, explain

if TYPE_CHECKING:
    from cadenza import Client
    from cadenza.v1.job_pb2 import Job
    from rich.console import RenderableType

JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object a line, for programs.")]

LIMIT_DEFAULT: Final = 50


class State(StrEnum):
    """States of jobs."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


STATES_HELP: Final = "Only " + ", ".join(State) + "; may be repeated."


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(
        rich_help_panel="Jobs",
        epilog="Examples:\ncadenza jobs\ncadenza jobs --state queued --state running --device aer\n"
        "cadenza jobs --tag vqe --limit 1000 --json | jq -r .job_id",
    )(jobs)
    app.command(
        rich_help_panel="Jobs",
        epilog="Examples:\ncadenza job JOB\ncadenza job JOB --watch\n"
        "cadenza job JOB --json | jq '.result.pubs[0].fields'",
    )(job)
    app.command(
        rich_help_panel="Jobs",
        epilog="Examples:\ncadenza cancel JOB\n"
        "cadenza jobs --state queued --json | jq -r .job_id | xargs -r cadenza cancel",
    )(cancel)
    app.command(
        rich_help_panel="Jobs",
        epilog="Examples:\ncadenza priority JOB 10\ncadenza priority JOB -5",
        context_settings={"ignore_unknown_options": True},
    )(priority)


@calls_server
def jobs(
    client: "Client",
    state: Annotated[list[State] | None, typer.Option(metavar="STATE", help=STATES_HELP)] = None,
    device: Annotated[str, typer.Option(metavar="DEVICE", help="Only jobs for this device.")] = "",
    session: Annotated[str, typer.Option(metavar="SESSION", help="Only jobs submitted to this session.")] = "",
    owner: Annotated[
        str | None, typer.Option(metavar="PATH", help="Jobs of this user or account, for operators. Default: your own.")
    ] = None,
    everybody: Annotated[bool, typer.Option("--all", help="Everybody's jobs, for operators.")] = False,
    tag: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="Only with this tag; may be repeated.")] = None,
    oldest_first: Annotated[bool, typer.Option("--oldest-first", help="The oldest first, not the newest.")] = False,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="How many at most.")] = LIMIT_DEFAULT,
    json: JsonOption = False,
) -> None:
    """List jobs, the newest first: your own, unless you ask for others'.

    WAITS FOR says what keeps a queued job from running; `cadenza job JOB` tells all of it.
    """
    whose = choose_owner(client, owner, everybody)
    found = client.list_jobs(
        states=[each.value for each in state or ()],
        device=device,
        session_id=session,
        user=whose,
        tags=tag or (),
        oldest_first=oldest_first,
        limit=limit + 1,
    )
    if json:
        for each in found[:limit]:
            output.print_json(each)
        return
    if not found:
        typer.echo("No jobs." if everybody else f"No jobs of {whose} found.")
        return
    now = datetime.now(UTC)
    waiting = Waiting(client, now)
    reasons = {each.job_id: waiting.find_causes(each) for each in found[:limit]}
    with_user = everybody or owner is not None
    output.make_console().print(_jobs_table(found[:limit], reasons, now, with_user=with_user))
    if len(found) > limit:
        typer.echo(f"There are more than {limit}: --limit shows more.")


@calls_server
def job(
    client: "Client",
    job_id: Annotated[str, typer.Argument(metavar="JOB", help="The job's id.")],
    watch: Annotated[bool, typer.Option("--watch", help="Print each change until the job is final, then all.")] = False,
    events: Annotated[bool, typer.Option("--events", help="With its history.")] = False,
    json: JsonOption = False,
) -> None:
    """Show one job: its runs, the rules that chose them, what was charged, and its result.

    With --json one object: `job` and `runs` as in the contract, and `result`, with counts of bit strings and
    expectation values as plain lists; null if there is none. With --watch too, one line an event comes before it.
    """
    if watch:
        follow(client, job_id, json)
    found = client.get_job(job_id)
    if json:
        output.print_json(job_view.read_document(client, found, with_events=events))
    else:
        job_view.print_job(client, found, output.make_console(), with_events=events)


@calls_server
def cancel(
    client: "Client",
    job_ids: Annotated[list[str], typer.Argument(metavar="JOB", help="Jobs, queued or running.")],
    json: JsonOption = False,
) -> None:
    """Cancel jobs at once. A running one is stopped, and charged for what it used.

    The others are cancelled, too, if one cannot be; the exit code is 1 then.
    """
    from cadenza import CadenzaError, UnavailableError

    refused = 0
    for job_id in job_ids:
        try:
            cancelled = client.cancel_job(job_id)
        except UnavailableError:
            raise
        except CadenzaError as error:
            typer.echo(f"cadenza: {error}", err=True)
            refused += 1
            continue
        if json:
            output.print_json(cancelled)
        else:
            typer.echo(f"{job_view.job_sentence(cancelled)}.")
    if refused:
        raise typer.Exit(1)


@calls_server
def priority(
    client: "Client",
    job_id: Annotated[str, typer.Argument(metavar="JOB", help="A queued job.")],
    value: Annotated[int, typer.Argument(metavar="N", min=-100, max=100, help="-100 to 100; higher goes first.")],
    json: JsonOption = False,
) -> None:
    """Change the priority of a queued job. It orders its owner's own jobs and nobody else's."""
    changed = client.update_job_priority(job_id, value)
    if json:
        output.print_json(changed)
    else:
        typer.echo(f"{job_id} has priority {changed.priority}.")


def choose_owner(client: "Client", owner: str | None, everybody: bool) -> str:
    """Whose jobs or sessions a list shall show; empty: everybody's. Who may not see them all is told so, on stderr."""
    if everybody and owner is not None:
        fail("--owner and --all exclude each other: give one", 2)
    whose = "" if everybody else None if owner is None else check_path_option("--owner", owner)
    caller = client.get_server_info().caller
    if whose is None:
        return caller.user
    if not caller.operator and whose != caller.user:
        typer.echo(f"cadenza: you are {caller.user} and no operator, so only what is yours is listed", err=True)
    return whose


def follow(client: "Client", job_id: str, json: bool) -> None:
    """Print each change of a job until its final state."""
    with client.watch_job(job_id) as changes:
        for event in changes:
            if json:
                output.print_json(event)
                continue
            typer.echo(job_view.event_line(event, datetime.now(UTC)))
            if event.HasField("job_snapshot") and (why := explain(client, event.job_snapshot.job)):
                typer.echo(f"          it waits: {output.clean(why)}")


def _jobs_table(
    found: "list[Job]", reasons: "Mapping[str, Sequence[str]]", now: datetime, *, with_user: bool
) -> "RenderableType":
    rows = [
        (
            each.job_id,
            *((each.user,) if with_user else ()),
            job_view.job_reason(each),
            each.device,
            output.enum_word(each, "job_class"),
            output.or_absent(each.session_id),
            each.priority,
            output.time_or_absent(each, "create_time", now),
            output.length_between(each, "create_time", "start_time"),
            output.length_or_absent(each, "charged"),
            " ".join(each.tags) or output.ABSENT,
            next(iter(reasons[each.job_id]), output.ABSENT),
        )
        for each in found
    ]
    owner = ("USER",) if with_user else ()
    times = ("SUBMITTED", "WAITED", "CHARGED")
    header = ("JOB", *owner, "STATE", "DEVICE", "CLASS", "SESSION", "PRIORITY", *times, "TAGS", "WAITS FOR")
    usual = {"SESSION": output.ABSENT, "PRIORITY": 0, "TAGS": output.ABSENT, "WAITS FOR": output.ABSENT}
    return output.make_table(header, rows, right=("PRIORITY", "WAITED", "CHARGED"), optional=usual)
