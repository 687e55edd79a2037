"""Workloads: read strictly, the same luck from the same seed, clients that answer, figures, comparison, picture."""

import io
import json
import math
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median

import cadenza_server
import pytest
from cadenza_server.cli import build_app
from cadenza_server.model.commands import CloseSession, CreateSession, SubmitJob
from cadenza_server.model.settings import SECOND
from cadenza_server.model.words import JobClass, SessionMode
from cadenza_server.scheduling import Scheduler
from cadenza_server.simulation import (
    ScenarioError,
    SimulationOutcome,
    compare_files,
    parse_scenario,
    run_files,
    simulate,
)
from cadenza_server.simulation.distributions import MILLISECOND, draw_count, draw_length, read_distribution
from cadenza_server.simulation.figures import Figures
from cadenza_server.simulation.scenario import Scenario
from cadenza_server.simulation.step import Step
from cadenza_server.simulation.traffic import Traffic
from cadenza_server.simulation.tree import parse_tree
from cadenza_server.simulation.workload import Kind, Process
from typer.testing import CliRunner

HEAD = """name: a day
shares: {lab: 2}
devices:
  q1: {limit: 500}
  q2: {}
"""
GENERATORS = {
    "queue": "{kind: JOBS, users: heavy, every: 60, run: {lognormal: [30, 1]}, estimate_error: 0.3, fails: 0.1}",
    "script": "{kind: JOBS, process: BURSTS, users: light, every: 3000, size: {exponential: 9}, spread: 60, run: 10}",
    "vqe": "{kind: SESSIONS, users: light, every: 900, jobs: {uniform: [2, 9]}, run: 5, think: {exponential: 4}}",
    "sweep": "{kind: BATCHES, users: heavy, every: 5000, jobs: 7, run: {exponential: 20}, worker_lost: 0.1}",
    "tune": "{kind: CALIBRATIONS, process: REGULAR, every: 10000, run: 100, start: 500}",
}
USERS = "{heavy: {paths: [lab/ada, lab/bob]}, light: {count: 10, accounts: 3, skew: 1}}"


def text(generators: dict[str, str], *, head: str = HEAD, seed: int = 3, users: str = USERS, more: str = "") -> str:
    lines = [f"{head}workload:", f"  seed: {seed}", "  duration: 86400", f"  users: {users}", "  generators:"]
    lines += [f"    {name}: {each}" for name, each in generators.items()]
    return "\n".join(lines) + "\n" + more


DAY = text(GENERATORS)


def offered(scenario: Scenario) -> list[Step]:
    """What comes without any answer: the arrivals."""
    assert scenario.workload is not None
    traffic = Traffic(scenario.workload)
    steps: list[Step] = []
    while (at := traffic.next_at()) is not None:
        steps += traffic.take(at)
    return steps


def of(name: str, steps: list[Step]) -> list[Step]:
    return [step for step in steps if step.name.startswith(f"{name}.")]


# --- distributions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "mean", "middle"),
    [
        ("5", 5.0, 5.0),
        ("{exponential: 10}", 10.0, 10 * math.log(2)),
        ("{uniform: [2, 6]}", 4.0, 4.0),
        ("{lognormal: [10, 0.5]}", 10 * math.exp(0.125), 10.0),
        ("{pareto: [3, 4]}", 4.0, 3 * 2**0.25),
        ("{mix: [[3, 1], [1, {uniform: [10, 20]}]]}", 4.5, 1.0),
    ],
)
def test_distribution_has_the_mean_and_the_median_that_it_should(written: str, mean: float, middle: float) -> None:
    distribution = read_distribution(parse_tree(written))
    values = [distribution.quantile((i + 0.5) / 100_000) for i in range(100_000)]
    assert fmean(values) == pytest.approx(mean, rel=2e-3)
    assert median(values) == pytest.approx(middle, rel=2e-3)


@pytest.mark.parametrize("written", ["{lognormal: [1, 10]}", "{pareto: [1, 0.1]}", "{exponential: 1000000000}"])
@pytest.mark.parametrize("u", [0.0, 1 - 2**-53])
def test_the_ends_of_a_distribution_are_lengths_and_counts(written: str, u: float) -> None:
    distribution = read_distribution(parse_tree(written))
    assert 0 <= draw_length(distribution, u) <= 10**18
    assert draw_length(distribution, u) % MILLISECOND == 0
    assert 1 <= draw_count(distribution, u) <= 1_000_000


# --- arrivals ---------------------------------------------------------------------------------------------------------


def test_arrivals_come_as_often_as_the_file_says() -> None:
    steps = offered(parse_scenario(DAY))
    queue = of("queue", steps)
    assert len(queue) == pytest.approx(86400 / 60, abs=4 * math.sqrt(86400 / 60))
    gaps = [(b.at - a.at) / SECOND for a, b in pairwise(queue)]
    # of exponential gaps a part 1 - 1/e is shorter than the mean
    assert sum(gap < 60 for gap in gaps) / len(gaps) == pytest.approx(1 - 1 / math.e, abs=0.05)
    runs = [step.behaviour.run / SECOND for step in queue if step.behaviour is not None]
    assert median(runs) == pytest.approx(30, rel=0.12)
    fails = [step.behaviour.fails for step in queue if step.behaviour is not None]
    assert fmean(fails) == pytest.approx(0.1, abs=0.04)
    assert Counter(step.at for step in of("tune", steps)) == {(500 + 10000 * i) * SECOND: 2 for i in range(9)}, (
        "a calibration on each device"
    )


def test_a_burst_is_of_one_user_for_one_device_and_within_its_spread() -> None:
    generators = {"script": GENERATORS["script"].replace("spread: 60", "spread: {uniform: [0, 60]}")}
    steps = offered(parse_scenario(text(generators)))
    bursts: list[list[Step]] = []
    for step in steps:
        if bursts and step.at - bursts[-1][0].at <= 60 * SECOND:
            bursts[-1].append(step)
        else:
            bursts.append([step])
    alone = [
        burst
        for burst in bursts
        if len({(s.command.caller, s.command.device) for s in burst if isinstance(s.command, SubmitJob)}) == 1
    ]
    assert len(alone) >= 0.9 * len(bursts), "all but bursts that overlap"
    assert max(map(len, bursts)) >= 10
    assert [step.at for step in steps] == sorted(step.at for step in steps)


def test_the_first_users_of_a_skewed_group_come_more_often() -> None:
    vqe = {"vqe": GENERATORS["vqe"].replace("every: 900", "every: 20")}
    counts = Counter(
        step.command.caller.path
        for step in offered(parse_scenario(text(vqe)))
        if isinstance(step.command, CreateSession)
    )
    assert len(counts) == 10
    assert counts["account-1/light-1"] / counts["account-1/light-10"] == pytest.approx(10, rel=0.35)
    assert {path.partition("/")[0] for path in counts} == {"account-1", "account-2", "account-3"}


def test_an_estimate_errs_as_much_as_the_file_says() -> None:
    def errors(error: str) -> list[float]:
        generator = {"queue": GENERATORS["queue"].replace("estimate_error: 0.3", error)}
        return [
            math.log(step.command.estimate / step.behaviour.run)
            for step in offered(parse_scenario(text(generator)))
            if isinstance(step.command, SubmitJob) and step.command.estimate is not None and step.behaviour is not None
        ]

    spread = errors("estimate_error: 0.3")
    assert math.sqrt(fmean(each**2 for each in spread)) == pytest.approx(0.3, rel=0.1)
    assert set(errors("estimate_error: 0")) == {0.0}
    assert errors("limit: 100") == []


def test_a_generator_keeps_to_its_time() -> None:
    generators = {name: each.replace("every", "start: 40000, end: 60000, every") for name, each in GENERATORS.items()}
    generators["tune"] = "{kind: CALIBRATIONS, process: REGULAR, every: 3000, run: 1, start: 40000, end: 60000}"
    times = [step.at for step in offered(parse_scenario(text(generators)))]
    assert min(times) >= 40000 * SECOND
    assert max(times) < 60000 * SECOND


# --- the same luck ----------------------------------------------------------------------------------------------------


def shape(steps: list[Step]) -> list[tuple[object, ...]]:
    return [(step.at, step.name, step.command, step.behaviour) for step in steps]


def test_same_seed_gives_the_same_work_and_another_seed_another() -> None:
    assert shape(offered(parse_scenario(DAY))) == shape(offered(parse_scenario(DAY)))
    assert shape(offered(parse_scenario(DAY))) != shape(offered(parse_scenario(text(GENERATORS, seed=4))))


def test_a_generator_that_is_added_or_moved_does_not_change_the_others() -> None:
    steps = offered(parse_scenario(DAY))
    for name, each in GENERATORS.items():
        assert shape(offered(parse_scenario(text({name: each})))) == shape(of(name, steps))
    backwards = dict(reversed(GENERATORS.items()))
    assert shape(of("queue", offered(parse_scenario(text(backwards))))) == shape(of("queue", steps))


def test_one_number_that_changes_leaves_the_rest_of_the_luck_alone() -> None:
    longer = text({"queue": GENERATORS["queue"].replace("[30, 1]", "[60, 1]")})
    for one, other in zip(
        offered(parse_scenario(text({"queue": GENERATORS["queue"]}))), offered(parse_scenario(longer)), strict=True
    ):
        assert (one.at, one.command.caller) == (other.at, other.command.caller)  # type: ignore[union-attr]
        assert one.behaviour is not None
        assert other.behaviour is not None
        assert other.behaviour.run == pytest.approx(2 * one.behaviour.run, abs=2 * MILLISECOND)
        assert other.behaviour.fails is one.behaviour.fails


def test_every_policy_gets_the_same_jobs() -> None:
    """What sessions will ask for is drawn when they arrive, not when they get to it."""
    one = simulate(parse_scenario(DAY))
    other = simulate(parse_scenario(DAY.replace("name: a day", "name: a day\nprofile: runtime-2024\nhalf_life: 3600")))
    assert one.jobs.keys() == other.jobs.keys()
    assert one.runs != other.runs

    def lengths(outcome: SimulationOutcome) -> dict[str, int]:
        return {
            run.job: run.end - run.start for run in outcome.runs if run.end is not None and run.outcome == "SUCCEEDED"
        }

    assert lengths(one) == lengths(other)


def test_trace_does_not_hang_on_the_seed_of_hashes(tmp_path: Path) -> None:
    file = tmp_path / "day.yaml"
    file.write_text(DAY)
    outputs = {
        subprocess.run(
            [sys.executable, "-m", "cadenza_server", "simulate", "--json", str(file)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
    assert len(json.loads(outputs.pop())["runs"]) > 1000


# --- clients ----------------------------------------------------------------------------------------------------------


def test_a_client_thinks_after_each_result_and_closes_at_the_end() -> None:
    vqe = {"vqe": "{kind: SESSIONS, users: heavy, devices: [q1], every: 50000, jobs: 4, run: 5, think: 3, fails: 0}"}
    outcome = simulate(parse_scenario(text(vqe)))
    first = [run for run in outcome.runs if run.job.startswith("vqe.1.")]
    assert [run.job for run in first] == ["vqe.1.1", "vqe.1.2", "vqe.1.3", "vqe.1.4"]
    assert [b.start - a.end for a, b in pairwise(first) if a.end is not None] == [3 * SECOND] * 3
    last = outcome.sessions["vqe.1"][-1]
    assert (last.at, last.state, last.reason) == (first[-1].end, "CLOSED", "CLOSED_BY_USER")
    assert outcome.rejected == []


def test_a_client_whose_job_fails_closes_and_one_whose_session_expires_goes_away() -> None:
    fails = {"vqe": "{kind: SESSIONS, users: heavy, every: 5000, jobs: 4, run: 5, think: 3, fails: 1}"}
    outcome = simulate(parse_scenario(text(fails)))
    assert outcome.jobs.keys() == {f"{session}.1" for session in outcome.sessions}
    assert {steps[-1].reason for steps in outcome.sessions.values()} == {"CLOSED_BY_USER"}
    expires = {"vqe": "{kind: SESSIONS, users: heavy, every: 5000, jobs: 9, run: 5, think: 3, max_time: 20}"}
    outcome = simulate(parse_scenario(text(expires)))
    assert "EXPIRED" in {steps[-1].reason for steps in outcome.sessions.values()}
    assert outcome.rejected == []
    assert not any(job.endswith(".9") for job in outcome.jobs)


def test_a_batch_is_submitted_at_once_and_drains() -> None:
    steps = offered(parse_scenario(text({"sweep": GENERATORS["sweep"]})))
    assert isinstance(steps[0].command, CreateSession)
    assert steps[0].command.mode is SessionMode.BATCH
    assert [type(step.command) for step in steps[1:9]] == [SubmitJob] * 7 + [CloseSession]
    assert {step.at for step in steps[:9]} == {steps[0].at}
    outcome = simulate(parse_scenario(text({"sweep": GENERATORS["sweep"]})))
    assert {state for state, _ in outcome.jobs.values()} <= {"SUCCEEDED", "FAILED"}
    assert "WORKER_LOST" in {run.outcome for run in outcome.runs}


def test_the_example_of_the_documentation_is_a_workload_with_every_kind() -> None:
    document = Path(cadenza_server.__file__).parent / "docs" / "simulation.md"
    scenario = parse_scenario(document.read_text().split("```yaml\n")[1].split("```")[0])
    assert scenario.workload is not None
    assert {each.kind for each in scenario.workload.generators} == set(Kind)
    assert {each.process for each in scenario.workload.generators} == set(Process)
    assert len(simulate(replace(scenario, until=50_000 * SECOND)).runs) > 100


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "line", "reason"),
    [
        ("  seed: 3\n", "", 7, "needs the key 'seed'"),
        ("seed: 3", "seed: 3.5", 7, "whole number"),
        ("seed: 3", "sed: 3", 7, "no key 'sed'"),
        ("duration: 86400", "duration: 0", 8, "positive"),
        ("lab/bob]", "lab/ada]", 9, "already"),
        ("lab/bob]", "lab]", 9, "is a user"),
        ("lab/bob]", "lab//x]", 9, "not a path"),
        ("lab/bob]", "7]", 9, "a text"),
        ("count: 10", "count: 0", 9, "1 to 1000000"),
        ("count: 10, ", "", 9, "needs the key 'count'"),
        ("count: 10", "paths: [x], count: 10", 9, "no 'count'"),
        ("accounts: 3", "accounts: 0", 9, "1 to 1000000"),
        ("accounts: 3", "account: a/b/c/d/e/f/g/h", 9, "has 9 parts"),
        ("skew: 1}", "skew: -1}", 9, "skew is 0 to 10"),
        ("{heavy:", "{he.avy:", 9, "a name has"),
        ("queue: {", "calibration-q: {", 11, "a name has"),
        ("kind: JOBS, users: heavy", "users: heavy", 11, "needs the key 'kind'"),
        ("kind: JOBS, users: heavy", "kind: JOB, users: heavy", 11, "JOBS, SESSIONS, BATCHES, CALIBRATIONS"),
        ("kind: JOBS, users: heavy", "kind: JOBS, users: nobody", 11, "heavy, light"),
        ("kind: JOBS, users: heavy", "kind: JOBS", 11, "needs the key 'users'"),
        ("kind: JOBS, users: heavy", "kind: JOBS, users: heavy, think: 3", 11, "of JOBS has no key 'think'"),
        ("kind: JOBS, users: heavy", "kind: JOBS, users: heavy, size: 3", 11, "for process BURSTS"),
        ("kind: JOBS, users: heavy", "kind: JOBS, users: heavy, devices: [q3]", 11, "q1, q2"),
        ("kind: JOBS, users: heavy", "kind: JOBS, users: heavy, devices: [q1, q1]", 11, "twice"),
        ("kind: JOBS, users: heavy", "kind: JOBS, users: heavy, devices: []", 11, "one at least"),
        ("kind: JOBS, users: heavy", "kind: JOBS, users: heavy, priority: 101", 11, "-100 to 100"),
        ("kind: JOBS, users: heavy", "kind: JOBS, users: heavy, limit: 0", 11, "positive"),
        ("kind: JOBS, users: heavy", "kind: JOBS, users: heavy, end: 86401", 11, "no later than `duration`"),
        ("kind: JOBS, users: heavy", "kind: JOBS, users: heavy, start: 5, end: 5", 11, "starts before it ends"),
        ("every: 60", "every: 0", 11, "every is 0.001"),
        ("every: 60, ", "", 11, "needs the key 'every'"),
        ("fails: 0.1", "fails: 1.1", 11, "0 to 1"),
        ("estimate_error: 0.3", "estimate_error: -1", 11, "0 to 10"),
        ("{lognormal: [30, 1]}", "{lognormal: [30]}", 11, "list of two"),
        ("{lognormal: [30, 1]}", "{lognormal: [30, 11]}", 11, "0 to 10"),
        ("{lognormal: [30, 1]}", "{normal: [30, 1]}", 11, "'normal'"),
        ("{lognormal: [30, 1]}", "{uniform: [3, 2]}", 11, "no less than the least"),
        ("{lognormal: [30, 1]}", "{pareto: [3, 0]}", 11, "the shape"),
        ("{lognormal: [30, 1]}", "{mix: []}", 11, "list of [weight"),
        ("{lognormal: [30, 1]}", "{mix: [[0, 1]]}", 11, "positive"),
        ("{lognormal: [30, 1]}", "-1", 11, "the value"),
        ("{lognormal: [30, 1]}", ".inf", 11, "a number"),
        ("{lognormal: [30, 1]}", "[30]", 11, "a distribution is"),
        ("size: {exponential: 9}, ", "", 12, "needs the key 'size'"),
        (", think: {exponential: 4}", "", 13, "needs the key 'think'"),
        ("jobs: 7, ", "", 14, "needs the key 'jobs'"),
        ("start: 500}", "start: 500, users: light}", 15, "no key 'users'"),
        ("run: 100", "run: 100, events: []", 15, "no key 'events'"),
    ],
)
def test_workload_that_is_none_is_refused_with_its_line(old: str, new: str, line: int, reason: str) -> None:
    assert old in DAY
    with pytest.raises(ScenarioError) as refused:
        parse_scenario(DAY.replace(old, new, 1))
    assert (refused.value.line, reason in refused.value.reason) == (line, True), refused.value.reason


def test_events_and_a_workload_are_not_in_one_file() -> None:
    with pytest.raises(ScenarioError, match="not both") as refused:
        parse_scenario(DAY + "events: []\n")
    assert refused.value.line == 16
    with pytest.raises(ScenarioError, match="needs the key 'events'"):
        parse_scenario(HEAD)


# --- figures ----------------------------------------------------------------------------------------------------------

SMALL = """name: small
devices: {q1: {interactive_ttl_dedicated: 10}, q2: {}}
shares: {ada: 3}
events:
  - {at: 0, submit: a1, user: ada, device: q1, run: 10}
  - {at: 0, submit: b1, user: bob, device: q1, run: 10}
  - {at: 5, submit: b2, user: bob, device: q1, run: 20, fails: true}
  - {at: 5, submit: c1, class: CALIBRATION, device: q2, run: 15}
  - {at: 5, submit: c1, class: CALIBRATION, device: q2, run: 15}
  - {at: 30, create_session: s1, user: eve, device: q2}
  - {at: 30, submit: e1, session: s1, run: 5}
  - {at: 40, close_session: s1}
  - {at: 99, submit: b3, user: bob, device: q1, run: 5}
  - {at: 99, submit: b4, user: bob, device: q1, run: 5}
until: 100
"""


def test_figures_are_what_one_counts_by_hand() -> None:
    scenario = parse_scenario(SMALL)
    figures = Figures(scenario)
    outcome = simulate(scenario, observers=[figures])
    output = figures.as_output(outcome.rejected)
    assert output["jobs"] == {
        "submitted": 7,
        "succeeded": 4,
        "failed": 1,
        "cancelled": 0,
        "running": 1,
        "queued": 1,
    }
    assert output["reasons"] == {"EXECUTION_ERROR": 1}
    assert output["rejected"] == {"ALREADY_EXISTS": 1}
    # a1 0, b1 10, b2 15 (from 5 to 20), b3 0, c1 0, e1 0
    assert output["waiting"]["all"] == {
        "count": 6,
        "p50": 0.0,
        "p90": 15.0,
        "p99": 15.0,
        "mean": pytest.approx(25 / 6),
        "max": 15.0,
    }
    assert output["waiting"]["classes"]["FAIR_SHARE"]["count"] == 4
    assert output["waiting"]["users"]["bob"]["p50"] == 10.0
    assert output["waiting"]["users"].keys() == {"ada", "bob", "eve"}
    # b1 ends 20 after it came and ran 10; b2 ends 35 after it came and ran 20
    assert output["slowdown"]["users"]["bob"]["max"] == 2.0
    assert output["slowdown"]["users"]["bob"]["p50"] == 1.75
    assert output["devices"]["q1"]["utilisation"] == pytest.approx(0.41)
    assert output["devices"]["q2"] == {
        "utilisation": pytest.approx(0.20),
        "calibrating": pytest.approx(0.15),
        "held": pytest.approx(0.05),
        "held_seconds": 5.0,
    }
    assert output["devices"]["all"]["utilisation"] == pytest.approx(0.305)
    users = output["fairness"]["users"]
    assert users["ada"] == {"share": pytest.approx(0.6), "used": pytest.approx(0.2)}
    assert users["bob"]["used"] == pytest.approx(0.6)
    assert users["eve"]["used"] == pytest.approx(0.2), "a hold is use"


def test_worst_lag_is_the_largest_difference_between_siblings_that_both_wait() -> None:
    """One device, equal shares, jobs of 10 s, all there from the start: they take turns, so nobody is more than one job
    behind. With shares 4 to 1 the same in units of u/w."""
    events = "\n".join(
        f"  - {{at: 0, submit: {user}{i}, user: {user}, run: 10, estimate: 10}}" for user in "ab" for i in range(50)
    )
    for shares, lag in (("{}", 10.0), ("{a: 4}", 10.0)):
        scenario = parse_scenario(
            f"name: x\nhalf_life: 100000000\nshares: {shares}\ndevices: {{q: {{}}}}\nevents:\n{events}\nuntil: 600\n"
        )
        figures = Figures(scenario)
        simulate(scenario, observers=[figures])
        assert figures.as_output()["fairness"]["worst_lag"]["seconds"] == pytest.approx(lag, rel=0.01)


@pytest.mark.parametrize("last", [0, 5])
def test_siblings_are_looked_at_a_few_times_however_long_it_goes_on_after_the_last_command(last: int) -> None:
    events = [f"  - {{at: {at}, submit: {user}{at}, user: {user}, run: 10000000}}" for at in {0, last} for user in "ab"]
    scenario = parse_scenario(
        "\n".join(["name: x", "half_life: 1000000000", "devices: {q: {limit: 10000000}}", "events:", *events, ""])
    )
    figures = Figures(scenario)
    looks = 0
    look = figures.look

    def count(scheduler: Scheduler) -> None:
        nonlocal looks
        looks += 1
        look(scheduler)

    figures.look = count  # type: ignore[method-assign]
    simulate(scenario, observers=[figures])
    assert 400 < looks < 10_000
    worst = figures.as_output()["fairness"]["worst_lag"]["seconds"]
    assert (worst > 1_000_000) is bool(last), "at 0 there is one job of each: nobody waits together with another"


def test_figures_agree_with_the_outcome() -> None:
    scenario = parse_scenario(DAY + "until: 80000\n")
    figures = Figures(scenario)
    outcome = simulate(scenario, observers=[figures])
    output = figures.as_output()
    states = Counter(str(state) for state, _ in outcome.jobs.values())
    assert output["jobs"] == {
        "submitted": len(outcome.jobs),
        **{each: states[each.upper()] for each in ("succeeded", "failed", "cancelled", "running", "queued")},
    }
    assert output["reasons"] == Counter(str(reason) for _, reason in outcome.jobs.values() if reason is not None)
    busy = sum((80000 * SECOND if run.end is None else run.end) - run.start for run in outcome.runs)
    assert output["devices"]["all"]["utilisation"] == pytest.approx(busy / (2 * 80000 * SECOND))
    total = sum(outcome.charged.values())
    assert {user: each["used"] for user, each in output["fairness"]["users"].items() if each["used"]} == {
        user: pytest.approx(charged / total) for user, charged in outcome.charged.items()
    }
    assert output["waiting"]["all"]["count"] == len({run.job for run in outcome.runs})
    groups = output["waiting"]["groups"]
    assert groups["heavy"]["count"] + groups["light"]["count"] + output["waiting"]["classes"][JobClass.CALIBRATION][
        "count"
    ] == len({run.job for run in outcome.runs})


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    one, other = tmp_path / "old.yaml", tmp_path / "new.yaml"
    one.write_text(DAY)
    other.write_text(DAY.replace("name: a day", "name: the same day\nprofile: runtime-2024"))
    return one, other


def test_two_files_are_compared_side_by_side(files: tuple[Path, Path]) -> None:
    result = CliRunner().invoke(build_app(), ["simulate", "--compare", *map(str, files)])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0].split() == ["old", "new"]
    sections: dict[str, list[str]] = {}
    for line in lines[1:]:
        if line.startswith("  "):
            sections[next(reversed(sections))].append(line.split()[0])
        else:
            sections[line] = []
    # All that a policy is judged by, and by whom: classes, groups and users.
    who = {"all", "CALIBRATION", "SESSION", "FAIR_SHARE", "heavy", "light"}
    assert {"submitted", "succeeded", "failed", "cancelled", "running", "queued"} == set(sections["jobs"])
    assert "EXECUTION_ERROR" in sections["jobs that did not succeed, by reason"]
    for section in (
        "waiting time, s: p50 / p90 / p99",
        "slowdown (from submission to end, in its own length): p50 / p90 / p99",
    ):
        assert who < set(sections[section])
        assert len(set(sections[section]) - who) >= 5, "users"
    devices = sections["devices: busy / by calibrations / held idle / held idle, s"]
    assert {"all", "q1"} <= set(devices)
    assert {"heavy", "light", "users:", "worst"} <= set(sections["fairness: share / use"])
    submitted = next(line for line in lines if "submitted" in line).split()
    assert submitted[1] == submitted[2]


def test_comparison_as_json_has_one_line_a_file(files: tuple[Path, Path]) -> None:
    result = CliRunner().invoke(build_app(), ["simulate", "--compare", "--json", *map(str, files)])
    assert result.exit_code == 0, result.output
    one, other = (json.loads(line) for line in result.output.splitlines())
    assert [each["file"] for each in (one, other)] == [str(file) for file in files]
    assert [each["name"] for each in (one, other)] == ["a day", "the same day"]
    assert one["jobs"]["submitted"] == other["jobs"]["submitted"]
    assert {"waiting", "slowdown", "devices", "fairness", "reasons"} <= one.keys()


def test_comparison_has_the_exit_codes_of_a_simulation(files: tuple[Path, Path], tmp_path: Path) -> None:
    wrong, unmet = tmp_path / "wrong.yaml", tmp_path / "unmet.yaml"
    wrong.write_text(DAY.replace("seed: 3", "seed: x"))
    unmet.write_text(SMALL + "expect: {runs: []}\n")
    for given, code in (([files[0], unmet], 1), ([wrong, unmet], 2), ([tmp_path / "missing.yaml"], 2)):
        out, err = io.StringIO(), io.StringIO()
        assert compare_files(given, False, out, err) == code
        assert err.getvalue()
    assert compare_files([wrong], True, io.StringIO(), err := io.StringIO()) == 2
    assert err.getvalue() == f"{wrong}:7: expected a whole number, not 'x'\n"


def test_a_workload_is_shown_by_its_figures_and_as_json_in_full(files: tuple[Path, Path]) -> None:
    out = io.StringIO()
    assert run_files([files[0]], False, out, io.StringIO()) == 0
    assert out.getvalue().startswith("a day\n")
    assert "held idle" in out.getvalue()
    assert len(out.getvalue().splitlines()) < 100
    out = io.StringIO()
    assert run_files([files[0]], True, out, io.StringIO()) == 0
    assert json.loads(out.getvalue()) == simulate(parse_scenario(DAY)).as_output()


def test_a_workload_may_say_what_it_expects(tmp_path: Path) -> None:
    file = tmp_path / "day.yaml"
    file.write_text(DAY + "expect: {rejected: []}\n")
    out = io.StringIO()
    assert run_files([file], False, out, io.StringIO()) == 0
    assert "all that was expected came" in out.getvalue()
    file.write_text(DAY + "expect: {runs: []}\n")
    assert run_files([file], False, io.StringIO(), io.StringIO()) == 1


def test_a_scenario_is_drawn_with_its_users_holds_windows_and_calibrations(tmp_path: Path) -> None:
    file, picture = tmp_path / "small.yaml", tmp_path / "small.svg"
    file.write_text(
        SMALL.replace("events:\n", "events:\n  - {at: 0, reserve: r1, device: q1, holder: bob, start: 50, end: 60}\n")
    )
    result = CliRunner().invoke(build_app(), ["simulate", str(file), "--plot", str(picture)])
    assert result.exit_code == 0, result.output
    drawn = picture.read_text()
    for each in ("q1", "q2", "ada", "bob", "eve", "held idle", "reserved for bob", "calibration run", "small"):
        assert f"<!-- {each} -->" in drawn, each


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--plot", "x.txt"], ".svg, .png, .pdf"),
        (["--plot", "x.svg", "second.yaml"], "one file"),
        (["--plot", "x.svg", "--compare"], "no --compare"),
        (["--plot", "nowhere/x.svg"], "there is no folder nowhere"),
    ],
)
def test_a_picture_that_cannot_be_drawn_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(SMALL)
    result = CliRunner().invoke(build_app(), ["simulate", "small.yaml", *options])
    assert result.exit_code == 2
    assert sentence in " ".join(result.output.split())
    assert not list(tmp_path.glob("*.svg"))


def test_more_than_a_picture_can_show_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cadenza_server.simulation.picture.RUNS_MAX", 10)
    file = tmp_path / "much.yaml"
    events = "\n".join(f"  - {{at: 0, submit: j{i}, user: u, run: 1}}" for i in range(11))
    file.write_text(f"name: much\ndevices: {{q: {{}}}}\nevents:\n{events}\n")
    out, err = io.StringIO(), io.StringIO()
    assert run_files([file], True, out, err, plot=tmp_path / "much.svg") == 2
    assert "too many for one picture" in err.getvalue()
    assert len(json.loads(out.getvalue())["runs"]) == 11


def test_the_year_of_the_benchmark_is_a_workload_of_the_size_that_it_claims() -> None:
    path = Path(__file__).parents[1] / "benchmarks" / "simulation" / "year.yaml"
    scenario = parse_scenario(path.read_text())
    assert scenario.workload is not None
    users = [user for group in scenario.workload.groups for user in group.users]
    assert len(users) == len(set(users)) == 1000
    assert len({user.partition("/")[0] for user in users}) == 50
    assert len(scenario.devices) == 8
    week = replace(scenario, until=604_800 * SECOND)
    assert len(simulate(week).jobs) == pytest.approx(1_000_000 / 52.14, rel=0.1)
