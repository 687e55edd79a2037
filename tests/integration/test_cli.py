"""The command line against a real server: each command, for people and for programs, and what is refused."""

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cadenza import CadenzaService
from cadenza_server.cli import build_app, output
from google.protobuf.timestamp_pb2 import Timestamp
from typer.testing import CliRunner, Result  # type: ignore[attr-defined, unused-ignore]

BELL = 'OPENQASM 2.0;\ninclude "qelib1.inc";\nqreg q[2];\ncreg c[2];\nh q[0];\ncx q[0],q[1];\nmeasure q -> c;\n'
ROTATION = 'OPENQASM 3.0;\ninclude "stdgates.inc";\ninput float theta;\nqubit[2] q;\nry(theta) q[0];\ncx q[0], q[1];\n'

Run = Callable[..., Result]


@pytest.fixture
def run(server: Any) -> Run:
    """`run("jobs", user="cli/ann")`: the command's result, as that user."""

    def invoke(*arguments: str, user: str = "cli/ann", **environment: str) -> Result:
        given = {
            "CADENZA_TARGET": server.address,
            "CADENZA_USER": user,
            "CADENZA_TOKEN": "",
            "COLUMNS": "200",
            **environment,
        }
        return CliRunner().invoke(build_app(), list(arguments), env=given)

    return invoke


@pytest.fixture
def bell(tmp_path: Path) -> str:
    path = tmp_path / "bell.qasm"
    path.write_text(BELL)
    return str(path)


@pytest.fixture
def slow(tmp_path: Path, kit: Any) -> str:
    """A circuit that keeps `sim` busy for longer than any test."""
    path = tmp_path / "slow.qasm"
    path.write_text(kit.slow(20, 4000))
    return str(path)


def good(result: Result) -> str:
    assert result.exit_code == 0, result.output
    return result.stdout


def lines(result: Result) -> list[Any]:
    return [json.loads(line) for line in good(result).splitlines()]


def one(result: Result) -> Any:
    (found,) = lines(result)
    return found


def facts(shown: str) -> dict[str, str]:
    """Names and values of a view of one thing."""
    pairs = [re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in shown.splitlines()]
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}


def refused(result: Result, reason: str, code: int = 1) -> str:
    assert result.exit_code == code, result.output
    assert f"[{reason}]" in result.output
    assert "Traceback" not in result.output
    assert result.output.startswith("cadenza: ")
    return result.output


# --- devices ----------------------------------------------------------------------------------------------------------


def test_devices_are_listed(run: Run) -> None:
    table = good(run("devices"))
    assert [line.split()[0] for line in table.splitlines()] == ["DEVICE", "line", "sim", "spare"]
    found = lines(run("devices", "--json"))
    assert [(each["name"], each["num_qubits"]) for each in found] == [("line", 5), ("sim", 20), ("spare", 4)]


def test_a_device_is_shown_with_settings_and_properties(run: Run) -> None:
    shown = good(run("devices", "line"))
    assert "runtime-2023" in shown
    assert "readout error" in shown
    assert one(run("devices", "line", "--json"))["properties"]["qubits"]
    ideal = good(run("devices", "sim"))
    assert facts(ideal)["next calibration"] == "-"
    assert "readout error" not in ideal


def test_a_device_tells_how_far_its_estimates_were_off(run: Run, bell: str) -> None:
    good(run("submit", bell, "--device", "spare", "--wait"))
    error = one(run("devices", "spare", "--json"))["estimate_error"]
    assert error["factor_p90"] >= error["factor_p50"] >= 1
    told = facts(good(run("devices", "spare")))["estimates off by"]
    assert re.fullmatch(r"\S+x or .+ \(half of \d+ runs?\), \S+x or .+ \(nine in ten\)", told)
    (row,) = (line for line in good(run("devices")).splitlines() if line.startswith("spare"))
    assert re.fullmatch(r"[\d.e+]+x", row.split()[-1])


def test_an_unknown_device_is_refused_with_the_servers_sentence(run: Run) -> None:
    said = refused(run("devices", "nowhere"), "UNKNOWN_DEVICE")
    assert "nowhere" in said


# --- jobs -------------------------------------------------------------------------------------------------------------


def test_submit_and_wait_prints_the_counts(run: Run, bell: str) -> None:
    shown = good(run("submit", bell, "--device", "spare", "--shots", "500", "--seed", "1", "--wait"))
    assert "Counts of c" in shown
    rows = dict(line.split()[:2] for line in shown.partition("BITS")[2].splitlines()[1:])
    assert set(rows) == {"00", "11"}
    assert int(rows["00"]) + int(rows["11"]) == 500


def test_submit_and_wait_as_json_is_the_whole_job(run: Run, bell: str) -> None:
    found = one(
        run("submit", bell, "--device", "spare", "--shots", "100", "--wait", "--json", "--tag", "a", "--tag", "b")
    )
    assert found["job"]["state"] == "JOB_STATE_SUCCEEDED"
    assert found["job"]["tags"] == ["a", "b"]
    assert datetime.fromisoformat(found["job"]["create_time"]).tzinfo is not None
    assert [each["rule"] for each in found["runs"]] == ["RUN_RULE_FAIR_SHARE"]
    register = found["result"]["pubs"][0]["fields"]["c"]
    assert sum(register["counts"][0].values()) == 100
    again = one(run("job", found["job"]["job_id"], "--json", "--events"))
    assert again["result"] == found["result"]
    assert ["job_accepted" in each for each in again["events"]] == [True, False, False]


def test_observables_and_parameters_give_expectation_values(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "rotation.qasm"
    path.write_text(ROTATION)
    arguments = ["submit", str(path), "--device", "spare", "--parameter", "theta=0.5", "--precision", "0", "--wait"]
    arguments += ["--observable", "0.5*ZZ - 1.2*XI", "--observable", "ZI"]
    values = one(run(*arguments, "--json"))["result"]["pubs"][0]["fields"]["evs"]
    assert values == pytest.approx([0.5, 0.8775825618903728], abs=1e-12)
    shown = good(run(*arguments))
    assert "0.87758256" in shown


def test_qpy_is_recognised(run: Run, tmp_path: Path, kit: Any) -> None:
    path = tmp_path / "circuit"
    path.write_bytes(kit.ghz(3))
    found = one(run("submit", str(path), "--device", "spare", "--wait", "--json"))
    assert set(found["result"]["pubs"][0]["fields"]["meas"]["counts"][0]) == {"000", "111"}


def test_a_wrong_circuit_is_found_before_it_is_sent(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "wrong.qasm"
    path.write_text(BELL.replace("cx q[0]", "cy q[7]"))
    user = "cli/wrong"
    result = run("submit", str(path), "--device", "spare", user=user)
    assert result.exit_code == 2
    assert "OpenQASM 2" in result.output
    assert good(run("jobs", "--json", user=user)) == ""


def test_without_the_check_the_worker_finds_a_wrong_circuit(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "wrong.qasm"
    path.write_text(BELL.replace("cx q[0]", "cy q[7]"))
    result = run("submit", str(path), "--device", "spare", "--no-check", "--wait")
    assert result.exit_code == 1
    assert "failed (EXECUTION_ERROR)" in result.output


def test_too_many_qubits_are_named(run: Run, tmp_path: Path, kit: Any) -> None:
    path = tmp_path / "circuit.qpy"
    path.write_bytes(kit.ghz(5))
    result = run("submit", str(path), "--device", "spare")
    assert result.exit_code == 2
    assert "5 qubits" in result.output
    assert "spare has 4" in result.output
    refused(run("submit", str(path), "--device", "spare", "--no-check"), "TOO_MANY_QUBITS")


def test_without_a_device_the_choice_is_shown(run: Run, bell: str) -> None:
    result = run("submit", bell)
    assert result.exit_code == 2
    assert "--device line, --device sim, --device spare" in result.output


def test_jobs_are_ones_own_and_filtered(run: Run, bell: str) -> None:
    user = "cli/lister"
    ids = [
        one(run("submit", bell, "--device", "spare", "--no-check", "--tag", tag, "--json", user=user))["job_id"]
        for tag in ("one", "two", "two")
    ]
    good(run("submit", bell, "--device", "spare", "--no-check", user="cli/other"))
    for job_id in ids:
        good(run("job", job_id, "--watch", user=user))
    assert [each["job_id"] for each in lines(run("jobs", "--json", user=user))] == ids[::-1]
    assert [each["job_id"] for each in lines(run("jobs", "--tag", "one", "--json", user=user))] == ids[:1]
    assert [each["job_id"] for each in lines(run("jobs", "--oldest-first", "--json", user=user))] == ids
    assert lines(run("jobs", "--state", "queued", "--state", "running", "--json", user=user)) == []
    assert lines(run("jobs", "--device", "line", "--json", user=user)) == []
    assert len(lines(run("jobs", "--limit", "2", "--json", user=user))) == 2
    table = good(run("jobs", "--limit", "2", user=user))
    assert "There are more than 2" in table
    assert ids[2] in table
    assert ids[0] not in table
    assert "No jobs of cli/nobody" in good(run("jobs", user="cli/nobody"))


def test_operators_see_others_jobs_when_they_ask(run: Run, bell: str) -> None:
    job_id = one(run("submit", bell, "--device", "spare", "--no-check", "--json", user="cli/seen"))["job_id"]
    assert job_id not in good(run("jobs", user="rani"))
    assert job_id in good(run("jobs", "--owner", "cli/seen", user="rani"))
    shown = good(run("jobs", "--all", "--limit", "1000", user="rani"))
    assert job_id in shown
    assert "cli/seen" in shown
    for arguments in (("jobs", "--all"), ("jobs", "--owner", "cli/seen"), ("sessions", "--all")):
        asked = run(*arguments, user="cli/curious")
        assert job_id not in good(asked)
        assert "you are cli/curious and no operator, so only what is yours is listed" in asked.stderr
    assert "operator" not in run("jobs", "--all", user="rani").stderr
    assert "operator" not in run("jobs", "--owner", "cli/seen", user="cli/seen").stderr


def test_a_watched_job_prints_each_change(run: Run, bell: str) -> None:
    job_id = one(run("submit", bell, "--device", "spare", "--no-check", "--json"))["job_id"]
    *events, last = lines(run("job", job_id, "--watch", "--json"))
    assert "job_snapshot" in events[0]
    assert all("event_number" in each for each in events)
    assert last["job"]["state"] == "JOB_STATE_SUCCEEDED"
    assert f"{job_id} has succeeded" in good(run("job", job_id, "--watch"))


def test_somebody_elses_job_is_refused(run: Run, bell: str) -> None:
    job_id = one(run("submit", bell, "--device", "spare", "--no-check", "--json"))["job_id"]
    refused(run("job", job_id, user="cli/eve"), "NOT_OWNER")
    refused(run("job", "job-nowhere"), "UNKNOWN_JOB")
    refused(run("job", "job-nowhere", "--watch"), "UNKNOWN_JOB")


def test_the_queue_shows_who_has_it_and_who_waits_and_jobs_are_reordered_and_cancelled(
    run: Run, bell: str, slow: str, kit: Any
) -> None:
    user = "cli/busy"
    running = one(run("submit", slow, "--device", "sim", "--no-check", "--json", user=user))["job_id"]
    first, second = (
        one(run("submit", bell, "--device", "sim", "--no-check", "--json", user=user))["job_id"] for _ in range(2)
    )
    kit.wait_for(
        lambda: one(run("queue", "sim", "--json"))["device"]["running_job_id"] == running, "the slow job", seconds=60
    )
    try:
        shown = good(run("queue", "sim"))
        assert f"sim: runs {running} of {user}, since " in shown
        why = facts(good(run("job", first, user=user)))["it waits"]
        assert why.startswith(f"sim runs {running} of {user}, since ")
        assert "0 calibration, 0 session, 2 fair share" in shown
        busy = next(line.split() for line in shown.splitlines() if line.split()[:1] == ["busy"])
        assert busy[1:4] == ["2", "1", "1"]
        queue = one(run("queue", "sim", "--json"))
        waiting = {each["path"]: each["queued_job_count"] for each in queue["shares"]}
        assert waiting[user] == "2"
        assert queue["device"]["queue_counts"]["fair_share"] == "2"
        assert queue["device"]["running_job_class"] == "JOB_CLASS_FAIR_SHARE"
        started = one(run("job", running, "--json", user=user))["job"]["start_time"]
        assert queue["device"]["running_start_time"] == started
        assert f"{running} of {user}" in good(run("queue"))
        assert facts(good(run("devices", "sim")))["runs now"] == f"{running} of {user}"

        assert "has priority 5" in good(run("priority", second, "5", user=user))
        assert one(run("job", second, "--json", user=user))["job"]["priority"] == 5
        assert one(run("priority", first, "-5", "--json", user=user))["priority"] == -5
        refused(run("priority", running, "1", user=user), "JOB_NOT_QUEUED")
        refused(run("cancel", running, user="cli/eve"), "NOT_OWNER")

        assert good(run("cancel", first, user=user)) == f"{first} was cancelled (CANCELLED_BY_USER).\n"
        partly = run("cancel", first, second, user=user)
        assert partly.exit_code == 1
        assert "[JOB_FINAL]" in partly.output
        assert f"{second} was cancelled" in partly.output
    finally:
        cancelled = run("cancel", running, "--json", user=user)
    assert one(cancelled)["reason"] == "JOB_REASON_CANCELLED_BY_USER"
    assert "cancelled (CANCELLED_BY_USER)" in good(run("job", running, user=user))


def test_ctrl_c_ends_the_waiting_and_not_the_job(server: Any, run: Run, slow: str, kit: Any) -> None:
    user = "cli/waiter"
    arguments = ["submit", slow, "--device", "sim", "--no-check", "--wait", "--id", "job-ctrl-c"]
    process = subprocess.Popen(
        kit.command(*arguments),
        env={**os.environ, "CADENZA_TARGET": server.address, "CADENZA_USER": user, "CADENZA_TOKEN": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert "job-ctrl-c" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    try:
        assert process.returncode == 130
        assert "job-ctrl-c goes on" in said
        assert "Traceback" not in said
        state = one(run("job", "job-ctrl-c", "--json", user=user))["job"]["state"]
        assert state in ("JOB_STATE_QUEUED", "JOB_STATE_RUNNING")
    finally:
        good(run("cancel", "job-ctrl-c", user=user))


def test_a_watched_queue_goes_on_until_ctrl_c(server: Any, kit: Any) -> None:
    process = subprocess.Popen(
        kit.command("queue", "spare", "--watch", "--json"),
        env={**os.environ, "CADENZA_TARGET": server.address, "CADENZA_TOKEN": "", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        for _ in range(2):
            assert json.loads(process.stdout.readline())["device"]["name"] == "spare"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert said == ""


# --- sessions ---------------------------------------------------------------------------------------------------------


def test_a_session_is_created_used_watched_and_closed(run: Run, bell: str) -> None:
    made = one(run("session", "create", "--device", "spare", "--max-time", "10m", "--interactive-ttl", "5s", "--json"))
    session = made["session_id"]
    assert made["settings"]["max_time"] == "600s"
    assert made["settings"]["interactive_ttl"] == "5s"
    assert session in good(run("sessions", "--state", "open"))
    found = one(run("submit", bell, "--session", session, "--wait", "--json"))
    assert found["job"]["session_id"] == session
    assert found["job"]["device"] == "spare"
    shown = good(run("session", "show", session))
    assert "1 succeeded" in shown
    assert one(run("jobs", "--session", session, "--json"))["job_id"] == found["job"]["job_id"]
    closed = good(run("session", "close", session, "--pending", "drain"))
    assert f"{session} is closed (CLOSED_BY_USER)." in closed
    assert one(run("session", "show", session, "--json"))["state"] == "SESSION_STATE_CLOSED"
    refused(run("submit", bell, "--session", session, "--no-check"), "SESSION_NOT_ACCEPTING")
    watched = good(run("session", "watch", session))
    assert "closed (CLOSED_BY_USER)" in watched
    assert session in good(run("sessions", "--state", "closed"))


def read_time(text: str) -> Timestamp:
    """A time of Protobuf's JSON."""
    made = Timestamp()
    made.FromJsonString(text)
    return made


def test_everybody_sees_until_when_a_session_keeps_a_device(run: Run, bell: str, server: Any) -> None:
    target = server.address
    session = one(run("session", "create", "--device", "spare", "--interactive-ttl", "2m", "--json"))["session_id"]
    good(run("submit", bell, "--session", session, "--no-check", "--wait"))
    own = one(run("session", "show", session, "--json"))
    seen = one(run("devices", "spare", "--json", user="cli/eve"))
    assert seen["state"] == "DEVICE_STATE_HELD"
    assert seen["active_session_idle_expire_time"] == own["idle_expire_time"]
    assert seen["active_session_expire_time"] == own["expire_time"]
    until = output.format_time(read_time(own["idle_expire_time"]), datetime.now(UTC))
    held = f"{session} of cli/ann until {until} unless it submits another job"
    assert f"spare: held by {held}" in good(run("queue", "spare", user="cli/eve"))
    table = good(run("devices", user="cli/eve")).splitlines()
    assert "UNTIL" in table[0]
    # another device may be "starting" still, which makes the column wider
    assert f"held {until}" in " ".join(table[3].split())
    waiting = one(run("submit", bell, "--device", "spare", "--no-check", "--json", user="cli/eve"))["job_id"]
    why = f"{session} of cli/ann has spare until {until} unless it submits another job"
    assert facts(good(run("job", waiting, user="cli/eve")))["it waits"] == why
    jobs = good(run("jobs", user="cli/eve"))
    assert "WAITS FOR" in jobs
    assert why in jobs
    with CadenzaService(target, user="cli/eve", token="", tls=False) as service, pytest.raises(TimeoutError, match=why):
        service.job(waiting).result(timeout=0.1)
    good(run("session", "cancel", session))
    good(run("job", waiting, "--watch", user="cli/eve"))
    assert "it waits" not in facts(good(run("job", waiting, user="cli/eve")))
    assert "WAITS FOR" not in good(run("jobs", user="cli/eve"))
    assert "active_session_expire_time" not in one(run("devices", "spare", "--json", user="cli/eve"))


def test_who_ends_a_session_is_told_what_becomes_of_its_jobs(run: Run, bell: str, slow: str, kit: Any) -> None:
    def fill(*circuits: str) -> list[str]:
        """A session on `sim`, and its jobs."""
        session = one(run("session", "create", "--device", "sim", "--json"))["session_id"]
        jobs = [run("submit", each, "--session", session, "--no-check", "--json") for each in circuits]
        return [session, *(one(job)["job_id"] for job in jobs)]

    closed, running, *_ = fill(slow, bell, bell)
    try:
        kit.wait_for(
            lambda: one(run("queue", "sim", "--json"))["device"]["running_job_id"] == running,
            "the slow job",
            seconds=60,
        )
        assert good(run("session", "close", closed)).splitlines() == [
            f"{closed} is draining: 1 running, 0 queued.",
            "Queued jobs that have failed with it: 2. With `--pending drain` they run.",
        ]
        waits, *_ = fill(bell, bell)
        said = good(run("session", "close", waits, "--pending", "drain"))
        assert said == f"{waits} is draining: 0 running, 2 queued.\n"
        assert good(run("session", "cancel", waits)).splitlines() == [
            f"{waits} is closed (CANCELLED_BY_USER).",
            "Queued jobs that were cancelled with it: 2.",
        ]
    finally:
        good(run("cancel", running))


def test_sessions_are_cancelled_and_refused(run: Run) -> None:
    said = good(run("session", "create", "--device", "spare", "--mode", "batch", "--max-time", "10w"))
    session = said.split()[0]
    assert said.splitlines()[1:] == ["Its max_time is 8h 0m: spare gives no more."]
    refused(run("session", "show", session, user="cli/eve"), "NOT_OWNER")
    assert one(run("sessions", "--state", "open", "--limit", "1", "--json"))["mode"] == "SESSION_MODE_BATCH"
    assert one(run("session", "cancel", session, "--json"))["close_reason"] == "SESSION_CLOSE_REASON_CANCELLED_BY_USER"
    refused(run("session", "close", "session-nowhere"), "UNKNOWN_SESSION")
    refused(run("session", "create", "--device", "nowhere"), "UNKNOWN_DEVICE")
    *_, last = lines(run("session", "watch", session, "--no-jobs", "--json"))
    assert "session_snapshot" in last or "session_changed" in last
    assert "No sessions of cli/nobody" in good(run("sessions", user="cli/nobody"))


# --- operators --------------------------------------------------------------------------------------------------------


def test_a_device_is_reserved_and_let_go(run: Run) -> None:
    arguments = ["reserve", "line", "--holder", "cli/lab", "--start", "2031-05-01T09:00Z", "--for", "2h"]
    refused(run(*arguments), "NOT_OPERATOR")
    made = one(run(*arguments, "--description", "beam time", "--json", user="rani"))
    assert (made["start_time"], made["end_time"]) == ("2031-05-01T09:00:00Z", "2031-05-01T11:00:00Z")
    refused(run(*arguments, user="rani"), "RESERVATION_OVERLAP")
    table = good(run("reservations", "--device", "line"))
    assert "beam time" in table
    local = datetime(2031, 5, 1, 9, tzinfo=UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    assert local in table
    assert one(run("reservations", "--holder", "cli/lab", "--json"))["reservation_id"] == made["reservation_id"]
    assert "is deleted" in good(run("unreserve", made["reservation_id"], user="rani"))
    assert good(run("reservations", "--holder", "cli/lab")) == "No reservations.\n"
    assert one(run("reservations", "--holder", "cli/lab", "--state", "deleted", "--json"))["device"] == "line"
    refused(run("unreserve", "reservation-nowhere", user="rani"), "UNKNOWN_RESERVATION")


def test_a_reservation_may_end_at_a_time(run: Run) -> None:
    arguments = ["--holder", "cli/lab", "--start", "2032-05-01T09:00Z", "--end", "2032-05-01T10:30+01:00"]
    said = good(run("reserve", "line", *arguments, "--id", "reservation-cli", user="rani"))
    assert said.startswith("reservation-cli: line is reserved for cli/lab from ")
    made = one(run("reservations", "--holder", "cli/lab", "--json"))
    assert made["end_time"] == "2032-05-01T09:30:00Z"
    good(run("unreserve", "reservation-cli", user="rani"))


def test_who_reserves_for_a_name_that_nobody_has_is_told(run: Run, bell: str) -> None:
    def reserve(holder: str) -> str:
        window = ["--start", "2033-05-01T09:00Z", "--for", "1h", "--id", f"reservation-{holder.replace('/', '-')}"]
        said = good(run("reserve", "line", "--holder", holder, *window, user="rani"))
        good(run("unreserve", f"reservation-{holder.replace('/', '-')}", user="rani"))
        return said

    good(run("submit", bell, "--device", "spare", "--no-check", user="held/known"))
    told = "has submitted anything yet: `cadenza shares` lists who has"
    assert f"Nobody of the name held/unknown {told}" in reserve("held/unknown")
    assert told not in reserve("held/known")
    assert told not in reserve("held")


def test_shares_are_set_and_shown_as_a_tree(run: Run, bell: str) -> None:
    good(run("submit", bell, "--device", "spare", "--no-check", user="weigh/ann"))
    refused(run("shares", "--set", "weigh/ann=2"), "NOT_OPERATOR")
    changed = lines(run("shares", "--set", "weigh/ann=2", "--set", "weigh/bob=6", "--json", user="rani"))
    assert [(each["path"], each["shares"]) for each in changed] == [("weigh/ann", 2.0), ("weigh/bob", 6.0)]
    tree = good(run("shares")).splitlines()
    at = next(index for index, line in enumerate(tree) if line.split()[0] == "weigh")
    assert tree[at + 1].startswith("  ann")
    assert "25.0%" in tree[at + 1]
    assert "75.0%" in tree[at + 2]
    below = lines(run("shares", "weigh", "--json"))
    assert [each["path"] for each in below] == ["weigh", "weigh/ann", "weigh/bob"]
    assert "weigh/bob" in good(run("shares", "weigh"))
    refused(run("shares", "nowhere"), "UNKNOWN_PATH")
    refused(run("shares", "--set", "weigh/ann/x=1", user="rani"), "PATH_CONFLICT")


def test_operators_calibrate(run: Run) -> None:
    refused(run("calibrate", "line"), "NOT_OPERATOR")
    before = one(run("devices", "line", "--json", user="rani"))["epoch"]
    job = one(run("calibrate", "line", "--duration", "10ms", "--json", user="rani"))
    assert job["job_class"] == "JOB_CLASS_CALIBRATION"
    *_, last = lines(run("job", job["job_id"], "--watch", "--json", user="rani"))
    assert last["job"]["state"] == "JOB_STATE_SUCCEEDED"
    assert int(one(run("devices", "line", "--json"))["epoch"]) == int(before) + 1
    assert "Measured by this calibration" in good(run("job", job["job_id"], user="rani"))


# --- who calls --------------------------------------------------------------------------------------------------------


def test_tokens_say_who_calls(tmp_path: Path, kit: Any, bell: str) -> None:
    made = CliRunner().invoke(build_app(), ["token", "--user", "cli/tess"])
    token = next(line.split()[1] for line in made.output.splitlines() if line.startswith("#   "))
    entry = "\n".join(line for line in made.output.splitlines() if not line.startswith("#"))
    config = f'[devices.only]\nkind = "aer"\nnum_qubits = 4\n{entry}\n'
    with kit.running(tmp_path / "server", config) as started:

        def run(*arguments: str, token: str) -> Result:
            given = {"CADENZA_TARGET": started.address, "CADENZA_TOKEN": token, "CADENZA_USER": ""}
            return CliRunner().invoke(build_app(), list(arguments), env=given)

        job = one(run("submit", bell, "--no-check", "--json", token=token))
        assert (job["user"], job["device"]) == ("cli/tess", "only")
        assert one(run("jobs", "--json", token=token))["job_id"] == job["job_id"]
        refused(run("jobs", token="wrong"), "INVALID_TOKEN")
        refused(run("jobs", token=""), "MISSING_TOKEN")


# --- without a server -------------------------------------------------------------------------------------------------


def test_scenarios_are_simulated(tmp_path: Path) -> None:
    scenario = Path(__file__).parents[1] / "scenarios" / "close-drains.yaml"
    met = CliRunner().invoke(build_app(), ["simulate", str(scenario), "--json"])
    assert met.exit_code == 0, met.output
    assert "runs" in one(met)
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("nothing: 1\n")
    assert CliRunner().invoke(build_app(), ["simulate", str(wrong)]).exit_code == 2
