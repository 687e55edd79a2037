"""Compare the scheduler with the law on random scenarios, for as long as you like.

    python -m tests.model.comparison --seeds 1000000            # seeds 0, 1, 2, ...
    python -m tests.model.comparison --minutes 60 --first 5000
    python -m tests.model.comparison --replay 1234              # one seed, with the scenario and both outcomes
    python -m tests.model.comparison --file FILE.yaml ...       # scenario files

The first disagreement of a seed is shown with the smallest scenario that still shows it; the exit code is 1 then.
"""

import argparse
import copy
import json
import sys
import time
import traceback
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml
from cadenza_server.simulation import parse_scenario, simulate

from tests.model.direct import drive
from tests.model.law import Law, play
from tests.model.random_scenarios import make_scenario, to_yaml

COMPARED: Final = ("runs", "jobs", "sessions", "charged", "rejected", "usage")


@dataclass
class Disagreement:
    """What differs first between the law (the model) and the scheduler, for one scenario."""

    scenario: dict[str, Any]
    what: str

    def __str__(self) -> str:
        return f"{self.what}\n\n{to_yaml(self.scenario)}"


@dataclass
class Tally:
    """What a number of scenarios covered."""

    scenarios: int = 0
    rules: Counter[str] = field(default_factory=Counter)
    """How often each rule of the law applied."""


BEYOND_FILES: Final = {"set_priority", "set_shares", "delete_reservation", "resume"}


def schedule(scenario: Mapping[str, Any]) -> dict[str, Any]:
    """The outcome by the scheduler that the server runs: from the text of a file through the simulator, if a file can
    say it, and the settled usage by the scheduler's own events."""
    driven = drive(scenario)
    if any(BEYOND_FILES & event.keys() for event in scenario["events"]):
        return driven
    simulated: dict[str, Any] = json.loads(simulate(parse_scenario(to_yaml(scenario))).as_json())
    return {**simulated, "usage": driven["usage"]}


def compare(scenario: Mapping[str, Any], rules: Counter[str] | None = None) -> str | None:
    """The first difference between the law's outcome and the scheduler's, in words; None if they agree."""
    model = Law(scenario)
    law = model.play()
    compared: Collection[str] = COMPARED
    if any(event.get("restore") for event in scenario["events"]):
        # After a restart the scheduler does not know the names of what had ended (the server's store does): ask it for
        # nothing that is refused.
        scenario = {**scenario, "events": [event for event in scenario["events"] if event not in model.refused]}
        law = play(scenario)
        compared = set(COMPARED) - {"rejected"}
    if rules is not None:
        rules.update(law["counts"])
    try:
        scheduler = schedule(scenario)
    except Exception:
        return "the scheduler failed:\n" + traceback.format_exc()
    for key in compared:
        if key in scheduler and law[key] != scheduler[key]:
            return first_difference(key, law[key], scheduler[key])
    return None


def first_difference(where: str, law: Any, scheduler: Any) -> str:
    """Name the first place at which two JSON values differ."""
    if isinstance(law, dict) and isinstance(scheduler, dict):
        for key in [*law, *(key for key in scheduler if key not in law)]:
            if key not in law or key not in scheduler or law[key] != scheduler[key]:
                return first_difference(f"{where}.{key}", law.get(key, "nothing"), scheduler.get(key, "nothing"))
    if isinstance(law, list) and isinstance(scheduler, list):
        for i in range(max(len(law), len(scheduler))):
            one = law[i] if i < len(law) else "nothing"
            other = scheduler[i] if i < len(scheduler) else "nothing"
            if one != other:
                return first_difference(f"{where}[{i}]", one, other)
    return f"{where}\n  law:       {law}\n  scheduler: {scheduler}"


def minimise(scenario: Mapping[str, Any]) -> dict[str, Any]:
    """Drop events, settings and details, one by one, while the two still disagree."""
    smallest = copy.deepcopy(dict(scenario))
    shrunk = True
    while shrunk:
        shrunk = False
        for candidate in smaller(smallest):
            if disagrees(candidate):
                smallest, shrunk = candidate, True
                break
    return smallest


def disagrees(scenario: Mapping[str, Any]) -> bool:
    """Whether it is still a scenario, and shows a difference. (One that the file's rules refuse is not.)"""
    try:
        play(scenario)
    except Exception:
        return False
    return compare(scenario) is not None


def smaller(scenario: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All scenarios with one thing less."""
    events = scenario["events"]
    for size in (8, 4, 2, 1):
        for i in range(0, len(events), size):
            if size < len(events) or size == 1:
                yield {**scenario, "events": events[:i] + events[i + size :]}
    named = {event.get("device") for event in events}
    for name, settings in scenario["devices"].items():
        rest = {other: value for other, value in scenario["devices"].items() if other != name}
        if rest and name not in named and (len(rest) > 1 or None not in named):
            yield {**scenario, "devices": rest}
        for key in settings or {}:
            left = {other: value for other, value in settings.items() if other != key}
            yield {**scenario, "devices": {**scenario["devices"], name: left}}
    for key in ("shares", "half_life", "profile"):
        if key in scenario:
            yield {other: value for other, value in scenario.items() if other != key}
    automatic = any("calibration_interval" in (settings or {}) for settings in scenario["devices"].values())
    if "until" in scenario and not automatic:
        yield {key: value for key, value in scenario.items() if key != "until"}
    for path in scenario.get("shares", {}):
        yield {**scenario, "shares": {other: w for other, w in scenario["shares"].items() if other != path}}
    for i, event in enumerate(events):
        for key in ("estimate", "limit", "priority", "fails", "worker_lost", "max_time", "interactive_ttl", "pending"):
            if key in event:
                less = {other: value for other, value in event.items() if other != key}
                yield {**scenario, "events": [*events[:i], less, *events[i + 1 :]]}


def check_seed(seed: int) -> tuple[str | None, Counter[str]]:
    """Compare the scenario of a seed (negative: beyond what files can say): what to print or None, and the rules."""
    rules: Counter[str] = Counter()
    scenario = make_scenario(abs(seed), beyond_files=seed < 0)
    what = compare(scenario, rules)
    if what is None:
        return None, rules
    least = minimise(scenario)
    again = f"python -m tests.model.comparison --replay {seed}"
    return f"seed {seed}: {Disagreement(least, compare(least) or what)}\nReplay it with: {again}\n", rules


def compare_many(seeds: Iterator[int], processes: int, until: float | None, findings_max: int) -> int:
    """Compare scenario after scenario; returns the exit code."""
    tally, findings, started = Tally(), 0, time.monotonic()

    def results() -> Iterator[tuple[str | None, Counter[str]]]:
        if processes == 1:
            yield from map(check_seed, seeds)
            return
        with ProcessPoolExecutor(processes) as pool:
            while chunk := [seed for _, seed in zip(range(1000), seeds, strict=False)]:
                yield from pool.map(check_seed, chunk, chunksize=20)

    for report, rules in results():
        tally.scenarios += 1
        tally.rules += rules
        if report is not None:
            findings += 1
            print(report, flush=True)
        if tally.scenarios % 10_000 == 0:
            print(f"{tally.scenarios} scenarios, {findings} disagreements", flush=True)
        if findings >= findings_max or (until is not None and time.monotonic() >= until):
            break
    for rule, count in sorted(tally.rules.items()):
        print(f"{count:10}  {rule}")
    seconds = time.monotonic() - started
    print(f"{tally.scenarios} scenarios, {findings} disagreements, {seconds:.0f} s")
    return 1 if findings else 0


def main(arguments: list[str] | None = None) -> int:
    """The command; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, help="how many")
    parser.add_argument("--minutes", type=float, help="how long at most")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--findings", type=int, default=5, help="stop after so many disagreements")
    parser.add_argument("--beyond-files", action="store_true", help="also restarts and what else no file can say")
    parser.add_argument("--replay", type=int, help="one seed, in full")
    parser.add_argument("--file", type=Path, nargs="+", help="scenario files")
    given = parser.parse_args(arguments)
    if given.replay is not None:
        scenario = make_scenario(abs(given.replay), beyond_files=given.replay < 0)
        print(to_yaml(scenario))
        report, _ = check_seed(given.replay)
        print(report or "law and scheduler agree")
        return 1 if report else 0
    if given.file:
        wrong = 0
        for path in given.file:
            what = compare(yaml.safe_load(path.read_text(encoding="utf-8")))
            print(f"{path}: {what or 'law and scheduler agree'}")
            wrong += what is not None
        return 1 if wrong else 0
    last = sys.maxsize if given.seeds is None else given.first + given.seeds
    until = None if given.minutes is None else time.monotonic() + 60 * given.minutes
    seeds = (-seed if given.beyond_files else seed for seed in range(given.first, last))
    return compare_many(seeds, given.processes, until, given.findings)


if __name__ == "__main__":
    raise SystemExit(main())
