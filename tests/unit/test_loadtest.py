"""The load test's plan, its arithmetic, and what it says of bad files."""

import json
import random
import statistics
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from cadenza_loadtest import cli
from cadenza_loadtest.driver import make_program
from cadenza_loadtest.knee import Step, choose_median, find_knee, judge_step
from cadenza_loadtest.measurement import Measurement
from cadenza_loadtest.observer import JobRecord, Observation, Sample
from cadenza_loadtest.page import make_page
from cadenza_loadtest.plan import draw_times, make_plan
from cadenza_loadtest.report import Report, check_objectives, compare_reports, format_report, judge, make_report
from cadenza_loadtest.scenario import JobShape, Objective, Scenario, ScenarioError, Traffic, list_ready, load
from typer.testing import CliRunner


def scenario(tmp_path: Path, text: str) -> Scenario:
    file = tmp_path / "one.yaml"
    file.write_text(text)
    return load(str(file))


BASIC = "traffic: {a: {rate: 10}}\n"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "the file must be a mapping"),
        ("traffic: {}", "traffic is empty"),
        ("traffic: {a: {rate: -1}}", "traffic.a.rate is -1: write a number from 0"),
        ("traffic: {a: {rate: .nan}}", "traffic.a.rate is nan"),
        ("traffic: {a: {}}", "traffic.a needs either a rate"),
        ("traffic: {a: {rate: 1, count: 2}}", "traffic.a needs either a rate"),
        ("traffic: {a: {rate: 1, kind: jam}}", "traffic.a.kind is 'jam': write one of job, jobs, batch, session"),
        ("traffic: {a: {rate: 1, users: [0, 10]}}", "traffic.a.users is [0, 10]: write [first, last], from 0 to 9"),
        ("traffic: {a: {rate: [[1, 5]]}}", "the points begin at 0 seconds"),
        ("traffic: {a: {rate: 1, ratte: 2}}", "traffic.a.ratte is not known here; known are: count, every_s"),
        (BASIC + "duration: 3", "duration is not known here"),
        (BASIC + "users: 2\naccounts: 3", "accounts is 3: write a whole number from 1 to 2"),
        (BASIC + "seed: true", "seed is True"),
        (BASIC + "objectives: {x: {}}", "objectives.x needs at_most or at_least"),
        (BASIC + "prepare: {watches: 5}", "prepare.watches follow queued jobs"),
        ("traffic: [", "it is not valid YAML"),
    ],
)
def test_a_wrong_file_is_refused_by_the_place_and_what_is_expected(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(ScenarioError) as error:
        scenario(tmp_path, text)
    assert sentence in str(error.value)


def test_every_ready_scenario_loads_and_says_what_it_is_for() -> None:
    ready = list_ready()
    asked = {"smoke", "steady", "burst", "greedy-user", "ten-thousand-users", "session-storm", "soak"}
    assert asked <= set(ready)
    assert all(ready.values())


def test_the_same_seed_gives_the_same_plan_and_another_traffic_moves_none_of_it(tmp_path: Path) -> None:
    one = scenario(tmp_path, "traffic: {a: {rate: 10}}")
    two = scenario(tmp_path, "traffic: {b: {rate: 7}, a: {rate: 10}}")
    assert make_plan(one) == make_plan(one)
    assert [operation.at_s for operation in make_plan(two) if operation.traffic == 1] == [
        operation.at_s for operation in make_plan(one)
    ]
    assert make_plan(replace(one, seed=2)) != make_plan(one)


def traffic(text: str, tmp_path: Path) -> Traffic:
    return scenario(tmp_path, f"traffic: {{a: {text}}}").traffic[0]


def test_arrivals_at_a_rate_are_a_poisson_process(tmp_path: Path) -> None:
    times = list(draw_times(traffic("{rate: 50}", tmp_path), 400.0, 1.0, random.Random(7)))
    gaps = [after - before for before, after in pairwise(times)]
    # 20,000 arrivals: the mean lies within 4 standard errors, and mean and deviation of exponential gaps are equal
    assert abs(len(times) - 20_000) < 4 * 20_000**0.5
    assert statistics.stdev(gaps) == pytest.approx(statistics.fmean(gaps), rel=0.05)


def test_a_ramp_has_the_rate_of_each_moment(tmp_path: Path) -> None:
    times = list(draw_times(traffic("{rate: [[0, 0], [100, 100]]}", tmp_path), 100.0, 1.0, random.Random(7)))
    early = sum(1 for at in times if at < 50)
    # the area under the first half is a quarter of the whole
    assert early / len(times) == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 5_000) ** 0.5)


def test_bursts_come_at_once_and_a_factor_multiplies_them(tmp_path: Path) -> None:
    burst = traffic("{count: 3, every_s: 10}", tmp_path)
    assert list(draw_times(burst, 25.0, 1.0, random.Random(1))) == [0.0] * 3 + [10.0] * 3 + [20.0] * 3
    assert len(list(draw_times(burst, 25.0, 2.0, random.Random(1)))) == 18


def test_measurements_of_several_processes_add_up() -> None:
    whole, parts = Measurement(), [Measurement(), Measurement()]
    for value in range(1, 1_001):
        parts[value % 2].record("x", value / 1e3, at_s=value / 100)
        parts[value % 2].counts["n"] += 1
    for part in parts:
        whole.add(part.pack())
    assert whole.counts["n"] == 1_000
    assert whole.percentile_ms("x", 50) == pytest.approx(500, rel=1e-2)
    assert whole.percentile_ms("x", 99) == pytest.approx(990, rel=1e-2)
    assert sum(len(values) for values in whole.seconds["x"].values()) == 1_000


def test_a_program_has_the_size_that_is_asked_for() -> None:
    assert len(make_program(JobShape(qubits=2, shots=1, payload_bytes=2_048))) == 2_048
    assert len(make_program(JobShape(qubits=2, shots=1, payload_bytes=0))) < 200


def job(user: int, create: float, start: float | None, end: float | None, **more: str) -> JobRecord:
    fields = {"device": "aer", "job_class": "fair_share", "state": "succeeded", "trouble": "", **more}
    return JobRecord(user=f"load/account-0/user-{user}", create_s=create, start_s=start, end_s=end, **fields)


def report(tmp_path: Path, objectives: str = "{}") -> Report:
    one = scenario(tmp_path, f"duration_s: 10\ntraffic: {{a: {{rate: 10}}}}\nobjectives: {objectives}")
    measured = Measurement()
    for number in range(100):
        measured.record("a_submit", 0.001 * (number + 1), at_s=number / 10)
    measured.counts.update({"a_sent": 100, "a_done": 99, "a_errors": 1})
    measured.errors["a: UNAVAILABLE STOPPING"] = 1
    jobs = [job(0, 0, 1, 3), job(1, 0, 3, 8), job(0, 1, 9, 12, state="failed", trouble="EXECUTION_ERROR: <b>")]
    seen = Observation(
        samples=[Sample(0.5, {"calibration": 0, "session": 1, "fair share": 4}, 1)],
        jobs=jobs,
        accounts={"load/account-0": (1.0, 6.0), "load/account-1": (2.0, 3.0)},
    )
    return make_report(one, measured, seen, time="2030-01-01T00:00:00+00:00", server="x", factor=1.0, processes=1)


def test_figures_come_of_what_clients_met_and_of_what_the_server_recorded(tmp_path: Path) -> None:
    figures = report(tmp_path).figures
    assert figures["a_submit_p50_ms"] == pytest.approx(50, rel=0.01)
    assert figures["error_fraction"] == 0.01
    assert figures["wait_fair_share_p50_s"] == 3
    assert figures["wait_fair_share_max_s"] == 8
    # 2 + 5 + 1 of 10 seconds: what ran after the end does not count
    assert figures["utilisation_aer"] == pytest.approx(0.8)
    assert figures["jobs_ended_per_s"] == pytest.approx(0.2)
    assert figures["share_gap_max"] == pytest.approx(1 / 3, abs=1e-4)
    assert figures["queue_depth_max"] == 5


def test_an_operation_that_is_never_done_has_failed(tmp_path: Path) -> None:
    one = scenario(tmp_path, f"duration_s: 10\n{BASIC}objectives: {{error_fraction: {{at_most: 0}}}}")
    measured = Measurement()
    measured.record("a_submit", 0.001, at_s=0.0)
    measured.counts.update({"a_sent": 4, "a_done": 3, "a_unfinished": 1})
    seen = Observation(samples=[], jobs=[], accounts={})
    found = make_report(one, measured, seen, time="", server="x", factor=1.0, processes=1)
    assert found.figures["error_fraction"] == 0.25
    assert found.figures["unfinished_operations"] == found.figures["a_unfinished"] == 1
    assert not found.met
    assert not judge_step(found, ["a"], 20.0, 1.0).held
    assert all(Objective("error_fraction", 0, None) in load(name).objectives for name in list_ready()), (
        "every ready scenario asks that nothing fails"
    )


def test_an_objective_is_met_missed_or_missed_for_want_of_its_figure() -> None:
    figures = {"x": 5.0}
    assert judge(Objective("x", 5, None), figures).met
    assert not judge(Objective("x", 4.9, None), figures).met
    assert judge(Objective("x", None, 5), figures).met
    assert not judge(Objective("x", None, 5.1), figures).met
    assert not judge(Objective("y", 5, None), figures).met


def test_a_report_survives_its_file_and_says_what_was_missed(tmp_path: Path) -> None:
    before = report(tmp_path, "{a_submit_p99_ms: {at_most: 50}, error_fraction: {at_most: 0.5}}")
    file = tmp_path / "report.json"
    file.write_text(before.to_json())
    after = Report.read(file)
    assert after == before
    assert not after.met
    text = format_report(after)
    assert "MISSED  a_submit_p99_ms at most 50: 99" in text
    assert "met     error_fraction at most 0.5" in text
    assert "failed job: EXECUTION_ERROR" in text
    assert "1.00" in compare_reports(before, after)


def test_what_would_only_be_found_after_the_test_is_refused_before_it(tmp_path: Path) -> None:
    file = tmp_path / "one.yaml"
    file.write_text(BASIC + "objectives: {a_submit_p98_ms: {at_most: 5}}")
    answer = CliRunner().invoke(cli.app, [str(file)])
    assert answer.exit_code == 2
    assert "objectives.a_submit_p98_ms is no figure of this scenario: do you mean a_submit_p99_ms?" in answer.output
    for place, sentence in ((tmp_path / "no" / "report.html", "there is no folder"), (tmp_path, "it is a folder")):
        answer = CliRunner().invoke(cli.app, ["smoke", "--html", str(place)])
        assert (answer.exit_code, sentence in answer.output) == (2, True), answer.output


def test_objectives_of_ready_scenarios_are_about_their_figures() -> None:
    for name in list_ready():
        check_objectives(load(name))


def test_a_file_that_is_no_report_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    for text in ("", "[]", json.dumps({"scenario": "x"})):
        file.write_text(text)
        with pytest.raises(ValueError, match="it is no report"):
            Report.read(file)


def test_the_page_stands_alone_and_escapes_what_it_shows(tmp_path: Path) -> None:
    page = make_page(report(tmp_path, "{error_fraction: {at_most: 0}}"))
    assert "EXECUTION_ERROR: &lt;b&gt;" in page
    assert page.count("<svg") >= 5
    for outside in ("src=", "<script", "<link", "@import", "url(h", 'href="http', "href='http"):
        assert outside not in page


def knee_at(limit: float, tmp_path: Path) -> Callable[[float], Report]:
    base = report(tmp_path)

    def test(factor: float) -> Report:
        slow = {"a_submit_p99_ms": 10.0 if factor <= limit else 100.0, "error_fraction": 0.0, "unsent": 0.0}
        return replace(base, figures={**base.figures, **slow, "a_done_per_s": 10 * factor})

    return test


def test_the_knee_is_found_by_doubling_and_halving(tmp_path: Path) -> None:
    steps: list[Step] = []
    best = find_knee(knee_at(5.2, tmp_path), ["a"], 20.0, steps.append)
    assert best is not None
    assert (best.factor, best.submits_per_s) == (5.0, 50.0)
    assert [step.factor for step in steps] == [1, 2, 4, 8, 6, 5, 5.5]
    assert find_knee(knee_at(0.5, tmp_path), ["a"], 20.0, steps.append) is None
    below = find_knee(knee_at(0.5, tmp_path), ["a"], 20.0, steps.append, start=0.1)
    assert below is not None
    assert below.factor == pytest.approx(0.5)


def test_of_several_searches_the_one_in_the_middle_counts() -> None:
    low, middle, high = (Step(factor, 10 * factor, 9.0, 0.0, True) for factor in (2.0, 3.5, 8.0))
    assert choose_median([high, low, middle]) == middle
    assert choose_median([high, low]) == low
    assert choose_median([high, None, low]) == low
    assert choose_median([None, high, None]) is None


def test_the_search_begins_at_the_factor_and_its_report_is_that_of_the_knee(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "one.yaml"
    file.write_text(BASIC)
    at = knee_at(5.2, tmp_path)

    def stand_in(_scenario: Scenario, _setup: object, _say: object, use: Callable[..., object]) -> object:
        return use(lambda factor: replace(at(factor), factor=factor))

    monkeypatch.setattr(cli, "run_tests", stand_in)
    words = [str(file), "--knee", "--target", "127.0.0.1:1", "--factor"]
    json_file, html_file = tmp_path / "knee.json", tmp_path / "knee.html"
    found = CliRunner().invoke(cli.app, [*words, "2.5", "--json", str(json_file), "--html", str(html_file)])
    assert found.exit_code == 0
    assert [line.split()[2] for line in found.stdout.splitlines()[:-1]] == ["2.5", "5", "10", "7.5", "6.25", "5.625"]
    assert found.stdout.splitlines()[-1] == "knee: 50.0 operations/s (rates x 5)"
    assert Report.read(json_file).factor == 5
    assert "rates x 5" in html_file.read_text()
    alone = CliRunner().invoke(cli.app, [*words, "5", "--json", "-"])
    assert json.loads(alone.stdout)["factor"] == 5
    none = CliRunner().invoke(cli.app, [*words, "8", "--json", str(tmp_path / "none.json")])
    assert none.exit_code == 1
    assert none.stdout.splitlines()[-1] == "knee: not even rates x 8 hold; begin below with --factor 1"
    assert not (tmp_path / "none.json").exists()
