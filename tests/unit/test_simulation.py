"""Scenario files: read strictly, refused with line and reason, printed exactly."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cadenza_server.cli import build_app
from cadenza_server.model.settings import RUNTIME_2023, RUNTIME_2024, SECOND
from cadenza_server.model.words import JobReason, JobState, Pending
from cadenza_server.scheduling.jobs import JOB_TRANSITIONS, JobEvent
from cadenza_server.scheduling.sessions import SESSION_TRANSITIONS, SessionEvent
from cadenza_server.simulation import ScenarioError, compare_files, differences, parse_scenario, run_files, simulate
from typer.testing import CliRunner

SCENARIOS = Path(__file__).parents[1] / "scenarios"

GOOD = """name: good
profile: runtime-2024
half_life: 60
shares: {lab: 2, lab/alice: 0.25}
devices:
  q1: {}
  q2: {profile: runtime-2023, limit: 50, on_close: DRAIN, calibration_interval: 0.125}
events:
  - {at: 0, reserve: r1, device: q1, holder: lab, start: 100, end: 200}
  - {at: 0, create_session: s1, user: lab/alice, device: q1, mode: BATCH, max_time: 90, interactive_ttl: 0.5}
  - {at: 1.5, submit: a1, session: s1, run: 10}
  - {at: 2, submit: c1, class: CALIBRATION, device: q1, run: 2}
  - {at: 3, cancel: a1}
  - {at: 3, close_session: s1, pending: DRAIN, user: lab/alice}
  - {at: 3, cancel_session: s1}
until: 500
"""


def test_scenario_is_read_as_it_is_written() -> None:
    scenario = parse_scenario(GOOD)
    assert scenario.name == "good"
    assert scenario.half_life == 60 * SECOND
    assert scenario.shares == {"lab": 2.0, "lab/alice": 0.25}
    assert scenario.until == 500 * SECOND
    assert scenario.devices["q1"] == RUNTIME_2024
    assert scenario.devices["q2"] == replace(
        RUNTIME_2023, limit=50 * SECOND, on_close=Pending.DRAIN, calibration_interval=SECOND // 8
    )
    assert [step.at for step in scenario.steps] == [int(at * SECOND) for at in (0, 0, 1.5, 2, 3, 3, 3)]
    assert [step.name for step in scenario.steps] == ["r1", "s1", "a1", "c1", "a1", "s1", "s1"]


@pytest.mark.parametrize(
    ("old", "new", "line", "reason"),
    [
        ("name: good\n", "", 1, "needs the key 'name'"),
        ("name: good", "name: 5", 1, "a text"),
        ("name: good", "title: good", 1, "no key 'title'"),
        ("until: 500", "util: 500", 16, "no key 'util'"),
        ("until: 500", "until: -1", 16, "an instant"),
        ("until: 500\n", "", 7, "needs `until`"),
        ("until: 500", "until: 500\nuntil: 6", 17, "twice"),
        ("until: 500", "until: [", 17, "not YAML"),
        ("until: 500", "until: 500\n---\nname: x", 17, "one scenario"),
        ("until: 500", "until: *x", 16, "before"),
        ("profile: runtime-2024", "profile: runtime-2025", 2, "runtime-2023, runtime-2024"),
        ("half_life: 60", "half_life: 0", 3, "positive"),
        ("half_life: 60", "half_life: 60s", 3, "seconds"),
        ("lab: 2,", "lab: 0,", 4, "positive"),
        ("lab: 2,", "lab: .nan,", 4, "number"),
        ("lab: 2,", "lab: 1.0e+999,", 4, "positive"),
        ("lab: 2,", "lab//x: 2,", 4, "not a path"),
        ("  q1: {}", "  q1: 5", 6, "mapping"),
        ("limit: 50", "limit: 0", 7, "positive"),
        ("limit: 50", "limits: 50", 7, "no key 'limits'"),
        ("limit: 50", "max_attempts: 0", 7, "at least 1"),
        ("limit: 50", "max_attempts: 1.5", 7, "whole number"),
        ("on_close: DRAIN", "on_close: drain", 7, "DRAIN, FAIL_QUEUED"),
        ("calibration_interval: 0.125", "calibration_interval: 0.1255", 7, "three decimals"),
        ("device: q1, holder: lab", "holder: lab", 9, "needs the key 'device'"),
        ("holder: lab", "holder: null", 9, "needs the key 'holder'"),
        ("start: 100", "start: soon", 9, "seconds"),
        ("mode: BATCH", "mode: BULK", 10, "DEDICATED, BATCH"),
        ("mode: BATCH", "colour: red", 10, "no key 'colour'"),
        ("create_session: s1, user", "create_session: s1, submit: x, user", 10, "an event is a mapping with one of"),
        ("submit: a1", "submti: a1", 11, "an event is a mapping with one of"),
        ("submit: a1", "submit: calibration-q1-1", 11, "devices' own"),
        ("submit: a1", "submit: 7", 11, "a text"),
        ("session: s1, run: 10", "device: q1, run: 10", 11, "needs the key 'user'"),
        ("run: 10", "run: ten", 11, "seconds"),
        ("run: 10", "run: 10.0001", 11, "three decimals"),
        (", run: 10", "", 11, "needs the key 'run'"),
        ("run: 10", "run: 10, fails: 1", 11, "true or false"),
        ("run: 10", "run: 10, priority: 1.5", 11, "whole number"),
        ("run: 10", "run: 10, worker_lost: 1", 11, "list"),
        ("at: 2,", "at: 1,", 12, "never go back"),
        ("at: 2,", "at: -2,", 12, "an instant"),
        ("at: 2, ", "", 12, "needs the key 'at'"),
        ("class: CALIBRATION", "class: CALIBRATE", 12, "CALIBRATION"),
        ("pending: DRAIN", "pending: NONE", 14, "DRAIN, FAIL_QUEUED"),
        ("  - {at: 3, cancel: a1}", "  - cancel", 13, "mapping"),
        ("until: 500", "until: 500\nexpect: {run: []}", 17, "no key 'run'"),
        ("until: 500", "until: 500\nexpect: {runs: [[a1, 0]]}", 17, "[job, start, end]"),
        ("until: 500", "until: 500\nexpect: {jobs: {a1: {state: DONE}}}", 17, "SUCCEEDED"),
    ],
)
def test_file_that_is_no_scenario_is_refused_with_its_line(old: str, new: str, line: int, reason: str) -> None:
    assert GOOD.count(old) >= 1
    with pytest.raises(ScenarioError) as refused:
        parse_scenario(GOOD.replace(old, new, 1))
    assert refused.value.line == line
    assert reason in refused.value.reason


@pytest.mark.parametrize("text", ["", "\n# nothing\n", "5", "[]", "name: x", "{a: {b: c}", "\x00", "a: \t- b"])
def test_text_that_is_nothing_like_a_scenario_is_refused(text: str) -> None:
    with pytest.raises(ScenarioError):
        parse_scenario(text)


def test_text_that_is_empty_is_a_command_that_is_refused() -> None:
    scenario = parse_scenario("""name: x
devices: {qpu: {}}
events:
  - {at: 0, submit: '', user: b, run: 1}
  - {at: 0, submit: b1, user: '', run: 1}
  - {at: 0, reserve: r1, holder: '', start: 1, end: 2}
  - {at: 0, create_session: s1, user: b, device: ''}
  - {at: 0, submit: b1, session: '', run: 1}
""")
    codes = [each.code for each in simulate(scenario).rejected]
    assert codes == ["INVALID_ARGUMENT", "INVALID_ARGUMENT", "INVALID_ARGUMENT", "NOT_FOUND", "NOT_FOUND"]


def test_anchors_and_aliases_stand_for_what_they_name() -> None:
    scenario = parse_scenario(
        "name: x\ndevices: {q1: &settings {limit: 5}, q2: *settings}\nevents: []\n",
    )
    assert scenario.devices["q1"] == scenario.devices["q2"] == replace(RUNTIME_2023, limit=5 * SECOND)


WORKLOAD = """name: x
devices: {qpu: {}}
workload: {seed: 1, duration: 10, users: {u: {count: 1}}, generators: {g: {kind: JOBS, users: u, every: 1, run: RUN}}}
"""


def _mixes(levels: int) -> str:
    return "{mix: [[1, " * levels + "1" + "]]}" * levels


def _nested_aliases(levels: int) -> str:
    parts = ["[1, &m0 {mix: [[1, 1], [1, 2]]}]"]
    for i in range(levels):
        tens = ", ".join([f"[1, *m{i}]"] * 10)
        parts.append(f"[1, &m{i + 1} {{mix: [{tens}]}}]")
    return "{mix: [" + ", ".join(parts) + "]}"


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (_mixes(1_000), "in each other"),
        ("[" * 100_000, "in each other"),
        ("{a: " * 100_000, "in each other"),
        ("&m {mix: [[1, *m]]}", "&m cannot be a part of itself"),
        (_nested_aliases(9), "more than 100000 values"),
        ("{mix: [[1, &a " + "[" * 15 + "]" * 15 + "], [1, " + "[" * 15 + "*a" + "]" * 15 + "]]}", "levels deep"),
    ],
)
def test_file_that_would_take_for_ever_or_is_too_deep_to_read_is_refused_at_once(run: str, reason: str) -> None:
    with pytest.raises(ScenarioError) as refused:
        parse_scenario(WORKLOAD.replace("RUN", run))
    assert refused.value.line == 3
    assert reason in refused.value.reason


def test_mixes_in_mixes_and_aliases_of_them_are_read_as_far_as_anybody_goes() -> None:
    for run in (_mixes(5), _nested_aliases(2)):
        assert parse_scenario(WORKLOAD.replace("RUN", run)).workload is not None


@pytest.mark.parametrize("key", ["at", "run", "estimate", "limit", "priority"])
def test_number_of_thousands_of_digits_is_refused_with_its_line(key: str) -> None:
    event = {"at": "0", "submit": "a", "user": "u", "run": "1", key: "1" * 5_000}
    line = ", ".join(f"{name}: {value}" for name, value in event.items())
    with pytest.raises(ScenarioError) as refused:
        parse_scenario(f"name: x\ndevices: {{qpu: {{}}}}\nevents:\n  - {{{line}}}\n")
    assert refused.value.line == 4
    assert len(refused.value.reason) < 200


def test_scenario_that_goes_on_beyond_all_time_is_refused_with_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "long.yaml"
    length = 2_305_843_009
    jobs = [f"  - {{at: 0, submit: a{i}, user: u, run: {length}}}" for i in range(8)]
    file.write_text("\n".join(["name: x", f"devices: {{qpu: {{limit: {length}}}}}", "events:", *jobs, ""]))
    for run in (run_files, compare_files):
        assert run([file], True, out := io.StringIO(), err := io.StringIO()) == 2
        assert err.getvalue() == f"{file}:1: it goes on for more than 4611686018 seconds: give it an `until`\n"
        assert json.loads(out.getvalue()) == {"error": err.getvalue().strip()}
    file.write_text(file.read_text() + f"until: {length}\n")
    assert run_files([file], True, io.StringIO(), io.StringIO()) == 0


def test_outcome_is_printed_exactly(tmp_path: Path) -> None:
    file = tmp_path / "one.yaml"
    file.write_text("""name: one
devices: {qpu: {max_time: 20}}
events:
  - {at: 0, create_session: s1, user: lab/alice}
  - {at: 0, submit: a1, session: s1, run: 2.5}
  - {at: 1, submit: a2, user: lab/bob, run: 100}
  - {at: 1, submit: a2, user: lab/bob, run: 100}
  - {at: 1, submit: a3, user: lab/bob, run: 100}
  - {at: 30, cancel: a3}
until: 30
""")
    out, err = io.StringIO(), io.StringIO()
    assert run_files([file], True, out, err) == 0
    assert err.getvalue() == ""
    assert json.loads(out.getvalue()) == {
        "runs": [
            {"job": "a1", "device": "qpu", "start": 0.0, "end": 2.5, "outcome": "SUCCEEDED", "epoch": 0},
            {"job": "a2", "device": "qpu", "start": 20.0, "end": None, "outcome": "RUNNING", "epoch": 0},
        ],
        "jobs": {
            "a1": {"state": "SUCCEEDED", "reason": None},
            "a2": {"state": "RUNNING", "reason": None},
            "a3": {"state": "CANCELLED", "reason": "CANCELLED_BY_USER"},
        },
        "sessions": {
            "s1": [
                {"at": 0.0, "state": "OPEN"},
                {"at": 0.0, "state": "ACTIVE"},
                {"at": 20.0, "state": "CLOSED", "reason": "EXPIRED"},
            ]
        },
        "charged": {"lab/alice": 20.0},
        "rejected": [{"at": 1.0, "event": "a2", "code": "ALREADY_EXISTS"}],
    }
    assert out.getvalue().count("\n") == 1


def test_exit_code_says_the_worst_that_happened(tmp_path: Path) -> None:
    met, not_met, no_scenario = tmp_path / "met.yaml", tmp_path / "not.yaml", tmp_path / "no.yaml"
    head = "name: x\ndevices: {qpu: {}}\nevents: [{at: 0, submit: b1, user: b, run: 1}]\n"
    met.write_text(head + "expect: {runs: [[b1, 0, 1]]}\n")
    not_met.write_text(head + "expect: {runs: [[b1, 0, 2]]}\n")
    no_scenario.write_bytes(b"name: x\n\xff\n")
    for files, code in (
        ([met], 0),
        ([met, not_met], 1),
        ([no_scenario, not_met], 2),
        ([not_met, no_scenario, met], 2),
        ([tmp_path / "missing.yaml"], 2),
    ):
        for json_lines in (True, False):
            out, err = io.StringIO(), io.StringIO()
            assert run_files(files, json_lines, out, err) == code
            assert bool(err.getvalue()) is (code > 0)
    assert run_files([no_scenario], True, io.StringIO(), err := io.StringIO()) == 2
    assert err.getvalue() == f"{no_scenario}:2: this is no UTF-8 text\n"


def test_the_command_prints_a_line_a_file_in_the_order_given_and_says_what_a_file_should_have_been(
    tmp_path: Path,
) -> None:
    names = ("b", "a", "c")
    files = [tmp_path / f"{name}.yaml" for name in names]
    for name, file in zip(names, files, strict=True):
        file.write_text(f"name: x\ndevices: {{qpu: {{}}}}\nevents: [{{at: 0, submit: {name}1, user: u, run: 1}}]\n")
    done = CliRunner().invoke(build_app(), ["simulate", *map(str, files), "--json"])
    assert done.exit_code == 0
    assert [list(json.loads(line)["jobs"]) for line in done.stdout.splitlines()] == [["b1"], ["a1"], ["c1"]]
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("name: x\ndevices: {qpu: {}}\nevents:\n  - {at: 0, submit: a1, user: u, run: long}\n")
    done = CliRunner().invoke(build_app(), ["simulate", str(files[0]), str(wrong), "--json"])
    assert done.exit_code == 2
    first, second = map(json.loads, done.stdout.splitlines())
    assert (list(first["jobs"]), list(second)) == (["b1"], ["error"])
    assert done.stderr == f"{wrong}:4: expected a time in seconds, not 'long'\n"
    unmet = tmp_path / "unmet.yaml"
    unmet.write_text(files[0].read_text() + "expect: {runs: [[b1, 0, 2]]}\n")
    done = CliRunner().invoke(build_app(), ["simulate", str(unmet)])
    assert done.exit_code == 1
    assert done.stderr.startswith(f"{unmet}: run 1: expected ")


def test_timeline_tells_people_what_happened(tmp_path: Path) -> None:
    file = tmp_path / "one.yaml"
    file.write_text(GOOD)
    out = io.StringIO()
    assert run_files([file], False, out, io.StringIO()) == 0
    text = out.getvalue()
    for part in ("good", "session s1 is open", "job a1 is cancelled: cancelled_by_user", "lab/alice is charged 1.5 s"):
        assert part in text
    when = [line.strip() for line in text.splitlines() if " q1 " in line]
    assert when == [
        "1.5  q1 runs a1 of lab/alice until 3: cancelled",
        "3  q1 runs calibration c1 until 5: succeeded",
        "100  q1 is reserved for lab",
        "200  q1 is reserved no longer for lab",
    ]


@pytest.mark.parametrize(
    "expect",
    [
        "runs: []",
        "runs: [[b1, 0, 1], [b2, 1, 2]]",
        "runs: [{job: b1, epoch: 1}]",
        "runs: [[b1, 0, 1, FAILED]]",
        "jobs: {}",
        "jobs: {b1: {state: FAILED}}",
        "jobs: {b1: {state: SUCCEEDED, reason: WORKER_LOST}}",
        "sessions: {s1: [[0, OPEN]]}",
        "charged: {b: 1.000001}",
        "charged: {}",
        "rejected: [{at: 0, event: b1, code: NOT_FOUND}]",
    ],
)
def test_what_is_not_as_expected_is_found(expect: str) -> None:
    scenario = parse_scenario(
        f"name: x\ndevices: {{qpu: {{}}}}\nevents: [{{at: 0, submit: b1, user: b, run: 1}}]\nexpect: {{{expect}}}\n"
    )
    assert scenario.expect is not None
    assert differences(simulate(scenario), scenario.expect)


def test_outcome_does_not_hang_on_the_seed_of_hashes() -> None:
    program = (
        "import sys, pathlib; from cadenza_server.simulation import run_files;"
        "sys.exit(run_files(sorted(pathlib.Path(sys.argv[1]).glob('*.yaml')), True, sys.stdout))"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", program, str(SCENARIOS)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1]
    assert outputs[0]


def test_batches_sessions_and_jobs_go_every_way_of_the_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of the tables that the conformance suite takes: what is missing here has to have a test elsewhere."""
    seen_sessions: set[tuple[str, str]] = set()
    seen_jobs: set[tuple[str, str]] = set()

    class Watched(dict[Any, Any]):
        def __init__(self, table: Mapping[Any, Any], seen: set[tuple[str, str]]) -> None:
            super().__init__(table)
            self.seen = seen

        def __getitem__(self, key: Any) -> Any:
            self.seen.add(key)
            return super().__getitem__(key)

    monkeypatch.setattr(
        "cadenza_server.scheduling.sessions.SESSION_TRANSITIONS", Watched(SESSION_TRANSITIONS, seen_sessions)
    )
    monkeypatch.setattr("cadenza_server.scheduling.jobs.JOB_TRANSITIONS", Watched(JOB_TRANSITIONS, seen_jobs))
    assert run_files(sorted(SCENARIOS.glob("*.yaml")), True, io.StringIO(), io.StringIO()) == 0
    assert {event for _, event in seen_jobs} == set(JobEvent)
    assert {event for _, event in seen_sessions} == set(SessionEvent)
    assert seen_jobs <= JOB_TRANSITIONS.keys()
    assert seen_sessions <= SESSION_TRANSITIONS.keys()


def test_loss_of_a_worker_is_an_outcome_of_the_run_and_not_of_the_job() -> None:
    scenario = parse_scenario(
        "name: x\ndevices: {qpu: {max_attempts: 1}}\nevents: [{at: 0, submit: b1, user: b, run: 2, worker_lost: [2]}]\n"
    )
    outcome = simulate(scenario)
    assert [run.outcome for run in outcome.runs] == ["WORKER_LOST"]
    assert outcome.jobs == {"b1": (JobState.FAILED, JobReason.WORKER_LOST)}
