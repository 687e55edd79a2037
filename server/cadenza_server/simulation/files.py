"""Scenario files for the command line: run them, print what came of them, say whether it was expected."""

import gc
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from json import dumps as to_json
from pathlib import Path
from typing import Any, Final, TextIO

from cadenza_server.simulation.comparison import print_comparison
from cadenza_server.simulation.figures import Figures
from cadenza_server.simulation.outcome import SimulationOutcome, differences, to_seconds
from cadenza_server.simulation.picture import Picture, PictureError
from cadenza_server.simulation.runner import run_scenario, simulate
from cadenza_server.simulation.scenario import Scenario, read_scenario
from cadenza_server.simulation.tree import ScenarioError

MET: Final = 0
"""Exit code: every `expect` was met, or there was none."""
NOT_MET: Final = 1
"""Exit code: one was not."""
NO_SCENARIO: Final = 2
"""Exit code: a file is no scenario, or cannot be read, or the picture cannot be drawn."""


@contextmanager
def _collector_at_rest() -> Iterator[None]:
    """Neither files nor simulations make cycles, and looking for some in 200,000 events takes a fifth of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@_collector_at_rest()
def run_files(
    paths: Sequence[Path],
    json: bool,
    out: TextIO,
    err: TextIO | None = None,
    *,
    plot: Path | None = None,
) -> int:
    """Run scenario files in the order given and print what came of each: with `json` one line a file, else a timeline
    (of a workload: its figures). What is wrong goes to `err` (by default the standard error). `plot`: draw the last one
    to this file. Returns the exit code."""
    err = sys.stderr if err is None else err
    code = MET
    for path in paths:
        outcome = SimulationOutcome()
        try:
            scenario = _read(path)
            picture = None if plot is None else Picture(scenario)
            figures = None if json or scenario.workload is None else Figures(scenario)
            observers = [each for each in (picture, figures) if each is not None]
            if figures is not None and scenario.expect is None:
                outcome.rejected.extend(run_scenario(scenario, observers=observers))
            else:
                outcome = simulate(scenario, observers=observers)
        except ScenarioError as error:
            _refuse(f"{path}:{error.line}: {error.reason}", json, out, err)
            code = NO_SCENARIO
            continue
        if json:
            print(outcome.as_json(), file=out)
        elif figures is not None:
            print(scenario.name, file=out)
            print_comparison([path.stem], [figures.as_output(outcome.rejected)], out)
        else:
            print_timeline(scenario, outcome, out)
        found = _print_differences(path, scenario, outcome, err)
        if found:
            code = max(code, NOT_MET)
        elif scenario.expect is not None and not json:
            print("all that was expected came", file=out)
        if picture is not None and plot is not None:
            try:
                picture.draw(plot)
            except PictureError as error:
                print(error, file=err)
                code = NO_SCENARIO
            except OSError as error:
                print(f"{plot}: it cannot be written: {error.strerror}", file=err)
                code = NO_SCENARIO
    return code


@_collector_at_rest()
def compare_files(paths: Sequence[Path], json: bool, out: TextIO, err: TextIO | None = None) -> int:
    """Run scenario files and print their figures side by side, or with `json` one line a file, in the order given.
    Returns the exit code, as `run_files` does."""
    err = sys.stderr if err is None else err
    code = MET
    names: list[str] = []
    found: list[Mapping[str, Any]] = []
    for path in paths:
        try:
            scenario = _read(path)
            figures = Figures(scenario)
            if scenario.expect is None:
                rejected = run_scenario(scenario, observers=[figures])
            else:
                outcome = simulate(scenario, observers=[figures])
                rejected = outcome.rejected
                if _print_differences(path, scenario, outcome, err):
                    code = max(code, NOT_MET)
        except ScenarioError as error:
            _refuse(f"{path}:{error.line}: {error.reason}", json, out, err)
            code = NO_SCENARIO
            continue
        output = figures.as_output(rejected)
        if json:
            print(to_json({"file": str(path), "name": scenario.name, **output}), file=out)
        names.append(str(path))
        found.append(output)
    if found and not json:
        stems = [Path(name).stem for name in names]
        print_comparison(stems if len(set(stems)) == len(stems) else names, found, out)
    return code


def _read(path: Path) -> Scenario:
    """Return the scenario of a file. Raises `ScenarioError` also if the file cannot be read."""
    try:
        return read_scenario(path)
    except OSError as error:
        raise ScenarioError(1, f"it cannot be read: {error.strerror}") from None


def _refuse(reason: str, json: bool, out: TextIO, err: TextIO) -> None:
    """Say that a file is no scenario; with `json` on its line of `out`, too, so that line i is still file i."""
    print(reason, file=err)
    if json:
        print(to_json({"error": reason}), file=out)


def _print_differences(path: Path, scenario: Scenario, outcome: SimulationOutcome, err: TextIO) -> bool:
    """Tell `err` where the outcome is not as expected; return whether there is such a place."""
    found = [] if scenario.expect is None else differences(outcome, scenario.expect)
    for each in found:
        print(f"{path}: {each}", file=err)
    return bool(found)


def print_timeline(scenario: Scenario, outcome: SimulationOutcome, out: TextIO) -> None:
    """Print for people what happened, in the order of time."""
    lines: list[tuple[int, int, str]] = []
    for run in outcome.runs:
        end = "still running" if run.end is None else f"until {to_seconds(run.end):g}: {run.outcome.lower()}"
        what = f"calibration {run.job}" if run.user is None else f"{run.job} of {run.user}"
        lines.append((run.start, 1, f"{run.device} runs {what} {end}"))
    for window in outcome.windows:
        what = "is reserved for" if window.opened else "is reserved no longer for"
        lines.append((window.at, 0, f"{window.device} {what} {window.holder}"))
    for name, steps in outcome.sessions.items():
        for step in steps:
            reason = "" if step.reason is None else f" ({step.reason.lower()})"
            lines.append((step.at, 0, f"session {name} is {step.state.lower()}{reason}"))
    lines += [(each.at, 0, f"{each.event} is refused, {each.code}: {each.message}") for each in outcome.rejected]
    print(scenario.name, file=out)
    for at, _, text in sorted(lines, key=lambda line: line[:2]):
        print(f"{to_seconds(at):>12g}  {text}", file=out)
    ended = [(name, state, reason) for name, (state, reason) in outcome.jobs.items() if reason is not None]
    for name, state, reason in ended:
        print(f"{'':>12}  job {name} is {state.lower()}: {reason.lower()}", file=out)
    for user, charged in sorted(outcome.charged.items()):
        print(f"{'':>12}  {user} is charged {to_seconds(charged):g} s", file=out)
