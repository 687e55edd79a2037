"""The main job, end to end: a private server, four people, one simulated device, and every promise checked."""

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cadenza import CadenzaService, Client, EstimatorV2, Session
from cadenza.v1 import device_pb2, job_pb2, share_pb2
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from cadenza_server.demo.crowd import Crowd
from cadenza_server.demo.findings import Run, longest_run, runs_between, shares_got
from cadenza_server.demo.hydrogen import CHEMICAL_ACCURACY, Minimum, ansatz, energy, exact_energy, find_minimum
from cadenza_server.timeline import CALIBRATION, Bar, Shade, draw_timeline

DEVICE: Final = "aer"
NOISY_DEVICE: Final = "aer_noisy"
SHARES: Final = {"bob": 2.0, "cyd": 1.0}
CALIBRATION_SECONDS: Final = 2.0
CALIBRATION_AFTER: Final = 30
"""Evaluations of ada's session after which the operator submits the calibration."""


@dataclass(frozen=True, slots=True)
class Check:
    """A promise, whether it was kept, and the figures that say so."""

    promise: str
    kept: bool
    figures: str


@dataclass(frozen=True, slots=True)
class Record:
    """All that happened, as the server recorded it; seconds since the first submission."""

    runs: list[Run]
    session: str
    session_start: float
    session_end: float
    in_session: Minimum
    on_its_own: Minimum
    noisy_energy: float
    noisy_device: str


class Board:
    """What is shown while it goes on: the phase, what runs now, who waits."""

    def __init__(self, client: Client, console: Console) -> None:
        self._client = client
        self._console = console
        self._phase = ""
        self._note = ""
        self._device: device_pb2.Device | None = None
        self._nodes: Sequence[share_pb2.ShareNode] = ()
        self._stopping = threading.Event()

    def enter(self, phase: str) -> None:
        """A new phase begins."""
        self._phase, self._note = phase, ""
        if not self._console.is_terminal:
            self._console.print(f"- {phase}")

    def note(self, note: str) -> None:
        """Something to say about the phase."""
        self._note = note

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Keep the board on the screen and up to date."""
        watcher = threading.Thread(target=self._look, name="board", daemon=True)
        watcher.start()
        try:
            if self._console.is_terminal:
                with Live(console=self._console, get_renderable=self._render, refresh_per_second=8, transient=True):
                    yield
            else:
                yield
        finally:
            self._stopping.set()
            watcher.join()

    def _look(self) -> None:
        with contextlib.suppress(Exception):  # the board is a courtesy: what breaks the demo shows elsewhere
            while not self._stopping.wait(0.15):
                self._device = self._client.get_device(DEVICE)
                self._nodes = self._client.list_shares(device=DEVICE)

    def _render(self) -> RenderableType:
        device = self._device
        lines: list[RenderableType] = [Spinner("dots", text=Text(f"{self._phase}  {self._note}"))]
        if device is not None:
            state = device_pb2.DeviceState.Name(device.state).removeprefix("DEVICE_STATE_").lower()
            owner = f", active session of {device.active_user}" if device.active_session_id else ""
            running = f" a job of {device.running_user or 'the operator'}" if device.running_job_id else ""
            lines.append(Text(f"  {DEVICE}: {state}{running}{owner}; calibration epoch {device.epoch}"))
            lines.extend(
                Text(
                    f"  {node.path:<10} {'waiting ' + str(node.queued_job_count):<12} shares {node.shares:g}, "
                    f"used {node.charged_s:6.2f} s"
                )
                for node in self._nodes
            )
        return Group(*lines)


def run_demo(picture: Path, console: Console) -> int:
    """Play the demo, print the record and the checks, draw `picture`; 0 if every promise was kept, else 1."""
    began = time.monotonic()
    console.print("Starting a private server with the devices [bold]aer[/] and [bold]aer_noisy[/] ...")
    with CadenzaService.local() as service:
        record = play(service, console)
    checks = judge(record)
    print_runs(record, console)
    draw(record, picture)
    print_summary(record, checks, picture, console)
    console.print(f"{time.monotonic() - began:.0f} s in all.")
    return 0 if all(check.kept for check in checks) else 1


def play(service: CadenzaService, console: Console) -> Record:
    """Let ada, bob, cyd and the operator do their work, and collect the record."""
    target = service.target
    # The server is private: whatever the caller's environment says of another one is not for it.
    with (
        Client(target, user=service.client.user, token="", tls=False) as operator,
        CadenzaService(target, user="ada", token="", tls=False) as ada,
    ):
        operator.set_shares(SHARES)
        board = Board(operator, console)
        crowd = Crowd(target, DEVICE, list(SHARES))
        backend = ada.backend(DEVICE)
        with board.shown():
            crowd.start()
            try:
                board.enter("bob and cyd keep the device busy")
                crowd.wait_for_jobs(8)

                board.enter("ada runs a VQE in a session")

                def after_each(count: int, value: float) -> None:
                    board.note(f"evaluation {count}: {value:.5f} Ha")
                    if count == CALIBRATION_AFTER:
                        operator.submit_calibration(DEVICE, duration=CALIBRATION_SECONDS)

                with Session(backend) as session:
                    in_session = find_minimum(EstimatorV2(mode=session), after_each=after_each)

                board.enter("ada's session is closed: bob and cyd again")
                crowd.wait_for_jobs(16)

                board.enter("ada runs the same VQE without a session")
                on_its_own = find_minimum(
                    EstimatorV2(mode=backend),
                    after_each=lambda count, value: board.note(f"evaluation {count}: {value:.5f} Ha"),
                )
            finally:
                crowd.stop()
            board.enter("the energy that was found, on the noisy device")
            noisy = energy(EstimatorV2(mode=ada.backend(NOISY_DEVICE)), ansatz(), in_session.parameters)
        return collect(operator, str(session.session_id), in_session, on_its_own, noisy)


def collect(operator: Client, session_id: str, in_session: Minimum, on_its_own: Minimum, noisy: float) -> Record:
    """Read what happened from the server."""
    found = [run for run in operator.list_runs(device=DEVICE) if run.HasField("end_time")]
    zero = min(run.create_time.ToNanoseconds() for run in found)

    def seconds(nanoseconds: int) -> float:
        return (nanoseconds - zero) / 1e9

    runs = [
        Run(
            job=run.job_id,
            user=run.user,
            session=run.session_id,
            rule=job_pb2.RunRule.Name(run.rule).removeprefix("RUN_RULE_"),
            created=seconds(run.create_time.ToNanoseconds()),
            start=seconds(run.start_time.ToNanoseconds()),
            end=seconds(run.end_time.ToNanoseconds()),
        )
        for run in found
    ]
    session = operator.get_session(session_id)
    return Record(
        runs=sorted(runs, key=lambda run: run.start),
        session=session_id,
        session_start=seconds(session.start_time.ToNanoseconds()),
        session_end=seconds(session.close_time.ToNanoseconds()),
        in_session=in_session,
        on_its_own=on_its_own,
        noisy_energy=noisy,
        noisy_device=NOISY_DEVICE,
    )


def judge(record: Record) -> list[Check]:
    """Every promise that the demo makes."""
    error = abs(record.in_session.energy - exact_energy())
    own = [run for run in record.runs if run.session == record.session]
    between = runs_between(record.runs, own)
    foreign = [run for run in between if run.rule != "CALIBRATION"]
    calibrations = [run for run in between if run.rule == "CALIBRATION"]
    shares = shares_got(record.runs, SHARES)
    longest = longest_run(record.runs, SHARES)
    apart = max(abs(share.got - share.due) for share in shares)
    return [
        Check(
            f"ada's energy is within {CHEMICAL_ACCURACY * 1e3:g} mHa of the exact one",
            error <= CHEMICAL_ACCURACY,
            f"{record.in_session.energy:.6f} Ha, exact {exact_energy():.6f} Ha: {error * 1e3:.4f} mHa apart",
        ),
        Check(
            "nobody but calibration came between the jobs of ada's session",
            len(own) == record.in_session.evaluations and not foreign,
            f"{len(own)} jobs of ada, {len(foreign)} of others in between",
        ),
        Check(
            "the calibration went first, then ada's session, then bob and cyd",
            len(calibrations) == 1 and calibrations[0].length >= CALIBRATION_SECONDS,
            f"{len(calibrations)} inside the session"
            + "".join(
                f", of {run.length:.2f} s, {run.waited * 1e3:.0f} ms after it was submitted" for run in calibrations
            ),
        ),
        Check(
            "bob and cyd got what their shares are due, to within one longest job",
            longest > 0 and apart <= longest,
            ", ".join(f"{s.user} {s.got:.2f} s of {s.due:.2f} s due" for s in shares) + f" (longest job {longest:.2f})",
        ),
    ]


def on_its_own_runs(record: Record) -> list[Run]:
    """The runs of ada's second VQE, the one without a session."""
    return [run for run in record.runs if run.user == "ada" and not run.session]


def print_runs(record: Record, console: Console) -> None:
    """Every run in order, with its rule and its waiting time."""
    table = Table(title=f"Every run on {DEVICE}, in order (seconds)", title_justify="left", box=None, pad_edge=False)
    for name in ("run", "start", "length", "waited"):
        table.add_column(name, justify="right")
    for name in ("who", "rule"):
        table.add_column(name, no_wrap=True)
    for number, run in enumerate(record.runs, 1):
        who = "operator" if run.rule == "CALIBRATION" else run.user
        rule = {"ACTIVE_SESSION": "session", "FAIR_SHARE": "fair share", "CALIBRATION": "calibration"}[run.rule]
        style = {"calibration": "red", "session": "blue"}.get(rule)
        if run.session and rule == "fair share":
            rule = "fair share (the session becomes active)"
        times = (f"{seconds:.3f}" for seconds in (run.start, run.length, run.waited))
        table.add_row(str(number), *times, who, rule, style=style)
    console.print(table)


def print_summary(record: Record, checks: Sequence[Check], picture: Path, console: Console) -> None:
    """The checks and the comparison, last, so that they stay on the screen."""
    console.print()
    for check in checks:
        mark = "[green]kept  [/]" if check.kept else "[red]BROKEN[/]"
        console.print(f"{mark} {check.promise}", highlight=False)
        console.print(f"       {check.figures}", style="dim", highlight=False)
    own = [run for run in record.runs if run.session == record.session]
    alone = on_its_own_runs(record)
    calibrated = sum(run.length for run in runs_between(record.runs, own) if run.rule == "CALIBRATION")
    took = max(run.end for run in own) - min(run.start for run in own)
    took_alone = max(run.end for run in alone) - min(run.start for run in alone)
    foreign = [run for run in runs_between(record.runs, alone) if run.rule != "CALIBRATION"]
    for line in (
        "",
        f"The same VQE: {took - calibrated:.1f} s in a session (and {calibrated:.1f} s of calibration), "
        f"{took_alone:.1f} s without one:",
        f"{took_alone / (took - calibrated):.0f} times as long, with {len(foreign)} jobs of others between "
        f"its {len(alone)} jobs.",
        f"On {record.noisy_device} its parameters give {record.noisy_energy:.4f} Ha: noise costs "
        f"{(record.noisy_energy - record.in_session.energy) * 1e3:.1f} mHa (not judged).",
    ):
        console.print(line, highlight=False)
    console.print(f"The device's timeline is drawn in {picture}.", highlight=False)


def draw(record: Record, picture: Path) -> None:
    """One row a user, the session's hold shaded."""
    rows = ["operator", "ada", *SHARES]
    words = {"ACTIVE_SESSION": "session job", "FAIR_SHARE": "fair-share job", "CALIBRATION": "calibration"}
    bars = [
        Bar(
            "operator" if run.rule == "CALIBRATION" else run.user,
            run.start,
            run.end,
            "session job" if run.session else words[run.rule],
        )
        for run in record.runs
    ]
    alone = on_its_own_runs(record)
    draw_timeline(
        picture,
        title=f"Who had the device {DEVICE!r}",
        rows=rows,
        bars=bars,
        shades=[
            Shade(record.session_start, record.session_end, "ada's session has the device"),
            Shade(min(r.start for r in alone), max(r.end for r in alone), "ada's same VQE without a session"),
        ],
        colours={"session job": "#1f4fd8", "fair-share job": "#9aa5b8", "calibration": CALIBRATION},
    )
