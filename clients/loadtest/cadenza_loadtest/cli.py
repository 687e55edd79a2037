"""`cadenza-loadtest SCENARIO`."""

import getpass
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, NoReturn, TextIO

import grpc
import typer
from cadenza import CadenzaError, CadenzaService

from cadenza_loadtest.connection import Connection
from cadenza_loadtest.knee import Step, find_knee
from cadenza_loadtest.page import make_page
from cadenza_loadtest.report import Report, check_objectives, compare_reports, format_report
from cadenza_loadtest.run import Setup, run_test, run_tests
from cadenza_loadtest.scenario import Scenario, ScenarioError, list_ready, load

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """The command."""
    app()


def fail(sentence: object, code: int = 2) -> NoReturn:
    """End with a sentence on stderr."""
    print(f"cadenza-loadtest: {sentence}", file=sys.stderr)
    raise typer.Exit(code)


@app.command()
def run(
    scenario: Annotated[
        str | None, typer.Argument(metavar="SCENARIO", help="A .yaml file, or the name of a ready one.")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--target", envvar="CADENZA_TARGET", metavar="HOST:PORT", help="The server. Default: a private one."
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE.toml", help="Configuration of the private server.")
    ] = None,
    user: Annotated[
        str | None,
        typer.Option(
            "--user",
            envvar="CADENZA_USER",
            metavar="PATH",
            help="Who reads the server's record; an operator sees all of it. Default: your name on this machine.",
        ),
    ] = None,
    token: Annotated[
        str | None, typer.Option("--token", envvar="CADENZA_TOKEN", help="Who calls; all users are one then.")
    ] = None,
    tls_ca: Annotated[
        Path | None, typer.Option("--tls-ca", metavar="FILE", help="Encrypt, and trust this authority.")
    ] = None,
    processes: Annotated[int, typer.Option("--processes", min=1, max=64, help="Processes that send.")] = 1,
    connections: Annotated[int, typer.Option("--connections", min=1, max=256, help="Connections of each process.")] = 2,
    factor: Annotated[
        float,
        typer.Option("--factor", min=0.001, help="Multiply all rates and counts; --knee begins with these."),
    ] = 1.0,
    duration: Annotated[
        float | None, typer.Option("--duration", min=0.1, metavar="SECONDS", help="Instead of the scenario's own.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Instead of the scenario's own.")] = None,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json", metavar="FILE", help="Write the report as JSON ('-': to stdout); with --knee that of the knee."
        ),
    ] = None,
    html_file: Annotated[
        Path | None,
        typer.Option(
            "--html", metavar="FILE", help="Write the report as a page with plots; with --knee that of the knee."
        ),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave what is still queued on the server in the end.")] = False,
    knee: Annotated[
        bool, typer.Option("--knee", help="Raise all rates until the p99 of submission exceeds --p99.")
    ] = False,
    p99: Annotated[
        float, typer.Option("--p99", min=0.001, metavar="MS", help="The limit that --knee looks for.")
    ] = 20.0,
    compare: Annotated[
        bool, typer.Option("--compare", help="Compare two JSON reports: --compare BEFORE AFTER.")
    ] = False,
    after: Annotated[str | None, typer.Argument(metavar="[AFTER]", help="With --compare: the second report.")] = None,
    list_them: Annotated[bool, typer.Option("--list", help="List the ready scenarios.")] = False,
) -> None:
    """Load a Cadenza server as a scenario says, and report what its users would have met.

    Operations start when they are due, however slow the answers are, and their latencies count from then.

    Exit code 0: the objectives were met, or there were none; 1: one was missed; 2: the command or a file is wrong, or
    the server cannot be reached.
    """
    if list_them:
        for name, description in list_ready().items():
            print(f"{name:<20} {description}")
        return
    if scenario is None:
        fail("name a scenario: a .yaml file, or one of those that --list shows")
    try:
        if compare:
            print(_compare(scenario, after))
            return
        if after is not None:
            fail("one scenario at a time: two files belong to --compare")
        if config is not None and target is not None:
            fail("--config is for a private server: leave out --target, or give the server that file")
        wanted = _change(load(scenario), duration, seed)
        check_objectives(wanted)
        for file in (json_file, html_file):
            _check_place(file)
        with _server(target, config) as address:
            setup = Setup(
                Connection(address, user or getpass.getuser(), token, tls_ca),
                target or "a private server",
                processes,
                connections,
                # a private server takes everything with it
                cleanup=target is not None and not keep,
            )
            if knee:
                raise typer.Exit(0 if _find_knee(wanted, setup, p99, factor, json_file, html_file) else 1)
            report = run_test(wanted, setup, _say, factor)
            _end_line()
            _write(report, json_file, html_file)
    except (ScenarioError, CadenzaError, OSError, ValueError) as error:
        _end_line()
        fail(error)
    except grpc.RpcError as error:
        _end_line()
        fail(f"the server at {target or 'its private address'} does not answer: {error.details()}")
    raise typer.Exit(0 if report.met else 1)


def _find_knee(
    scenario: Scenario, setup: Setup, p99_ms: float, start: float, json_file: Path | None, html_file: Path | None
) -> bool:
    """Search, tell each step, and write the report of the highest one that held. Whether there is one."""
    # a JSON report on stdout stays alone there
    out = sys.stderr if json_file == Path("-") else sys.stdout
    reports: dict[float, Report] = {}

    def search(test: Callable[[float], Report]) -> Step | None:
        def take(factor: float) -> Report:
            reports[factor] = test(factor)
            return reports[factor]

        names = [traffic.name for traffic in scenario.traffic]
        return find_knee(take, names, p99_ms, lambda step: _print_step(step, out), start=start)

    best = run_tests(scenario, setup, _say, search)
    _end_line()
    if best is None:
        rates = "the scenario's own rates" if start == 1 else f"rates x {start:g}"
        print(f"knee: not even {rates} hold; begin below with --factor {start / 8:g}", file=out)
        return False
    print(f"knee: {best.submits_per_s:,.1f} operations/s (rates x {best.factor:g})", file=out)
    _write(reports[best.factor], json_file, html_file, text=False)
    return True


def _check_place(file: Path | None) -> None:
    """Raises `OSError` if no report can be written there: before the test, not after it."""
    if file is None or file == Path("-"):
        return
    folder = file.absolute().parent
    if not folder.is_dir():
        raise FileNotFoundError(f"the report cannot be written to {file}: there is no folder {folder}")
    if file.is_dir() or not os.access(file if file.exists() else folder, os.W_OK):
        raise PermissionError(f"the report cannot be written to {file}: it is a folder, or you may not write there")


def _change(scenario: Scenario, duration: float | None, seed: int | None) -> Scenario:
    if duration is not None:
        scenario = replace(scenario, duration_s=duration)
    return scenario if seed is None else replace(scenario, seed=seed)


def _compare(before: str, after: str | None) -> str:
    if after is None:
        fail("--compare needs two reports: cadenza-loadtest --compare BEFORE.json AFTER.json")
    return compare_reports(Report.read(Path(before)), Report.read(Path(after)))


def _say(text: str) -> None:
    """Progress, on a terminal's one line."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def _end_line() -> None:
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


@contextmanager
def _server(target: str | None, config: Path | None) -> Iterator[str]:
    """The address of the server, or of a private one for the length of the block."""
    if target is not None:
        yield target
        return
    _say("starting a private server")
    with CadenzaService.local(config) as service:
        yield service.client.target


def _write(report: Report, json_file: Path | None, html_file: Path | None, *, text: bool = True) -> None:
    """`text`: whether the report is shown on stdout, where it does not go there as JSON."""
    if json_file == Path("-"):
        print(report.to_json())
    else:
        if text:
            print(format_report(report))
        if json_file is not None:
            json_file.write_text(report.to_json() + "\n", encoding="utf-8")
    if html_file is not None:
        html_file.write_text(make_page(report), encoding="utf-8")


def _print_step(step: Step, out: TextIO) -> None:
    _end_line()
    verdict = "held" if step.held else "did not hold"
    trouble = " (errors, or operations that were not sent or not done)" if step.errors else ""
    print(
        f"rates x {step.factor:<8g} {step.submits_per_s:>10,.1f} operations/s   "
        f"p99 {step.p99_ms:>9,.2f} ms   {verdict}{trouble}",
        file=out,
        flush=True,
    )
