"""Scenario files for the command line: run them, print what came of them, say whether it was expected."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, TextIO

from cadenza_server.simulation.outcome import SimulationOutcome, differences, to_seconds
from cadenza_server.simulation.runner import simulate
from cadenza_server.simulation.scenario import Scenario, read_scenario
from cadenza_server.simulation.tree import ScenarioError

MET: Final = 0
"""Exit code: every `expect` was met, or there was none."""
NOT_MET: Final = 1
"""Exit code: one was not."""
NO_SCENARIO: Final = 2
"""Exit code: a file is no scenario, or cannot be read."""


def run_files(paths: Sequence[Path], json: bool, out: TextIO, err: TextIO | None = None) -> int:
    """Run scenario files in the order given and print what came of each: with `json` one line a file, else a timeline.
    What is wrong goes to `err` (by default the standard error). Returns the exit code."""
    err = sys.stderr if err is None else err
    code = MET
    for path in paths:
        try:
            scenario = read_scenario(path)
        except ScenarioError as error:
            print(f"{path}:{error.line}: {error.reason}", file=err)
            code = NO_SCENARIO
            continue
        except OSError as error:
            print(f"{path}: it cannot be read: {error.strerror}", file=err)
            code = NO_SCENARIO
            continue
        outcome = simulate(scenario)
        if json:
            print(outcome.as_json(), file=out)
        else:
            print_timeline(scenario, outcome, out)
        found = [] if scenario.expect is None else differences(outcome, scenario.expect)
        for each in found:
            print(f"{path}: {each}", file=err)
        if found:
            code = max(code, NOT_MET)
        elif scenario.expect is not None and not json:
            print("all that was expected came", file=out)
    return code


def print_timeline(scenario: Scenario, outcome: SimulationOutcome, out: TextIO) -> None:
    """Print for people what happened, in the order of time."""
    lines: list[tuple[int, int, str]] = []
    for run in outcome.runs:
        end = "still running" if run.end is None else f"to {to_seconds(run.end):g}: {run.outcome.lower()}"
        lines.append((run.start, 1, f"{run.device} runs {run.job} {end}"))
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
