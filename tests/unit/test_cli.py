"""The command line without a server: parsing, what is checked before anything is sent, and what is printed."""

import json
import math
import os
import re
import socket
import struct
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import typer
from cadenza.v1 import device_pb2, event_pb2, job_pb2, reservation_pb2, result_pb2, session_pb2, share_pb2, tensor_pb2
from cadenza_server.cli import build_app, job_view, jobs, output, reservations, sessions
from cadenza_server.cli.circuit_file import check_circuit, parse_observable, parse_parameters, read_circuit
from cadenza_server.cli.devices import by_fair_share, who_has
from cadenza_server.cli.shares import parse_settings
from cadenza_server.cli.times import check_length, parse_moment
from google.protobuf.timestamp_pb2 import Timestamp
from typer.testing import CliRunner, Result  # type: ignore[attr-defined, unused-ignore]

COMMANDS = [
    ["serve"],
    ["config"],
    ["token"],
    ["check"],
    ["backup"],
    ["demo"],
    ["simulate"],
    ["devices"],
    ["queue"],
    ["calibrate"],
    ["shares"],
    ["reserve"],
    ["reservations"],
    ["unreserve"],
    ["jobs"],
    ["job"],
    ["cancel"],
    ["priority"],
    ["submit"],
    ["sessions"],
    ["session", "create"],
    ["session", "show"],
    ["session", "watch"],
    ["session", "close"],
    ["session", "cancel"],
]
LOCAL = ("serve", "config", "token", "check", "backup", "demo", "simulate")
CLIENT_COMMANDS = [each for each in COMMANDS if each[0] not in LOCAL]

BELL_2 = 'OPENQASM 2.0;\ninclude "qelib1.inc";\nqreg q[2];\ncreg c[2];\nh q[0];\ncx q[0],q[1];\nmeasure q -> c;\n'
ROTATION_3 = (
    'OPENQASM 3.0;\ninclude "stdgates.inc";\ninput float theta;\nqubit[2] q;\nry(theta) q[0];\ncx q[0], q[1];\n'
)


def run(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(build_app(), list(arguments), env=environment)


@pytest.fixture
def unused_target() -> str:
    """An address where nothing listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{bound.getsockname()[1]}"


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_explains_itself(command: list[str]) -> None:
    result = run(*command, "--help", COLUMNS="200")
    assert result.exit_code == 0
    assert f"cadenza {' '.join(command)}" in result.output.replace("root", "cadenza")


@pytest.mark.parametrize("command", CLIENT_COMMANDS, ids=" ".join)
def test_every_client_command_has_an_example_and_the_connection_options(command: list[str]) -> None:
    shown = run(*command, "--help", COLUMNS="200").output
    assert re.search(rf"Examples?:\s+cadenza {' '.join(command)}", shown)
    for option in ("--target", "--user", "--token", "--tls", "--tls-ca", "CADENZA_TARGET", "CADENZA_USER", "--json"):
        assert option in shown, option


def test_the_version_is_that_of_the_package() -> None:
    result = run("--version")
    assert (result.exit_code, result.output) == (0, f"cadenza {version('cadenza')}\n")


def loaded_by(*arguments: str) -> set[str]:
    """The modules that a command has loaded when it ends."""
    program = (
        "import sys\nfrom cadenza_server.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print('LOADED', *sorted(sys.modules), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stderr.partition("LOADED")[2].split())


SERVER_PARTS = ("sqlalchemy", "cadenza_server.engine", "cadenza_server.scheduling", "cadenza_server.api")


_SCENARIO = """name: "\u00e9"
devices: {q: {}}
events:
  - {at: 0, submit: "\u00e9", user: u, run: 1}
"""


def _run_cadenza(*arguments: str, stdout: int, encoding: str = "utf-8") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "cadenza_server", *arguments],
        stdout=stdout,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONIOENCODING": encoding},
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("arguments", [["config"], ["--help"], ["simulate", "FILE"], ["simulate", "--json", "FILE"]])
def test_a_command_whose_output_nobody_reads_ends_quietly_as_other_tools_do(
    arguments: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "one.yaml"
    file.write_text(_SCENARIO, encoding="utf-8")
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as pipe:
        done = _run_cadenza(*(str(file) if each == "FILE" else each for each in arguments), stdout=pipe.fileno())
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
@pytest.mark.parametrize("options", [[], ["--json"], ["--compare"]])
def test_output_that_cannot_be_written_ends_with_a_sentence(options: list[str], tmp_path: Path) -> None:
    file = tmp_path / "one.yaml"
    file.write_text(_SCENARIO, encoding="utf-8")
    with open("/dev/full", "wb") as full:
        done = _run_cadenza("simulate", str(file), *options, stdout=full.fileno())
    assert done.stderr.decode() == "cadenza: the output cannot be written: No space left on device\n"
    assert done.returncode == 1


def test_names_that_the_terminal_cannot_write_are_escaped(tmp_path: Path) -> None:
    file = tmp_path / "one.yaml"
    file.write_text(_SCENARIO, encoding="utf-8")
    done = _run_cadenza("simulate", str(file), stdout=subprocess.PIPE, encoding="ascii")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.splitlines()[0] == b"\\xe9"


def test_help_of_a_client_command_loads_neither_grpc_nor_qiskit_nor_the_server() -> None:
    loaded = loaded_by("jobs", "--help")
    assert "cadenza_server.cli.jobs" in loaded
    assert not loaded.intersection(("qiskit", "grpc", "numpy", "google.protobuf", *SERVER_PARTS))


def test_a_client_command_loads_no_part_of_the_server(unused_target: str) -> None:
    loaded = loaded_by("jobs", "--target", unused_target)
    assert "cadenza._client" in loaded
    assert not loaded.intersection(("qiskit", "numpy", *SERVER_PARTS))


@pytest.mark.parametrize(
    "arguments",
    [
        ["jobs"],
        ["job", "job-x"],
        ["cancel", "job-x", "job-y"],
        ["priority", "job-x", "-5"],
        ["devices"],
        ["queue", "aer"],
        ["sessions"],
        ["session", "close", "session-x", "--pending", "drain"],
        ["shares", "--set", "lab/alice=2"],
        ["reserve", "aer", "--holder", "lab", "--start", "+1h", "--for", "1h"],
        ["reservations"],
        ["calibrate", "aer"],
    ],
    ids=" ".join,
)
def test_without_a_server_commands_say_how_to_start_one(arguments: list[str], unused_target: str) -> None:
    result = run(*arguments, CADENZA_TARGET=unused_target)
    assert result.exit_code == 1
    assert f"cannot reach a server at {unused_target}" in result.output
    assert "cadenza serve" in result.output
    assert "Traceback" not in result.output
    assert result.output.count("cannot reach") == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["jobs", "--state", "sleeping"], "sleeping"),
        (["jobs", "--limit", "0"], "--limit"),
        (["jobs", "--user", "lab//x"], "--user"),
        (["jobs", "--owner", "a b", "--user", "ann"], "--owner"),
        (["jobs", "--all", "--owner", "ann"], "--owner and --all"),
        (["jobs", "--tls-certificate", "x.pem"], "--tls-key"),
        (["jobs", "--tls-ca", "/nowhere/ca.pem"], "/nowhere/ca.pem"),
        (["priority", "job-x", "101"], "'N'"),
        (["priority", "job-x", "high"], "'N'"),
        (["cancel"], "JOB"),
        (["session", "close", "s", "--pending", "maybe"], "maybe"),
        (["session", "create", "--device", "aer", "--max-time", "soon"], "--max-time"),
        (["session", "create"], "--device"),
        (["shares", "--set", "lab"], "PATH=SHARES"),
        (["shares", "--set", "lab=0"], "above 0"),
        (["shares", "--set", "lab=nan"], "above 0"),
        (["shares", "--set", "lab=1", "--set", "lab=2"], "twice"),
        (["shares", "lab", "--set", "lab=1"], "--set"),
        (["reserve", "aer", "--holder", "lab", "--start", "+1h"], "--end"),
        (["reserve", "aer", "--holder", "lab", "--start", "+1h", "--for", "1h", "--end", "+2h"], "--end"),
        (["reserve", "aer", "--holder", "lab", "--start", "tomorrow", "--for", "1h"], "tomorrow"),
        (["calibrate", "aer", "--duration", "-3"], "--duration"),
        (["submit", "/nowhere.qasm"], "/nowhere.qasm"),
        (["demo", "--picture", "x.gif"], ".svg, .png, .pdf"),
        (["demo", "--picture", "/nowhere/x.png"], "there is no folder /nowhere"),
        (["simulate", "x.yaml", "--plot", "/nowhere/x.png"], "there is no folder /nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_ends_with_2_and_names_what_is_wrong(
    arguments: list[str], sentence: str, unused_target: str
) -> None:
    result = run(*arguments, CADENZA_TARGET=unused_target, COLUMNS="200", CADENZA_TOKEN="")
    assert result.exit_code == 2, result.output
    assert sentence in result.output
    assert "Value error" not in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_the_help_names_no_types_of_python(command: list[str]) -> None:
    shown = run(*command, "--help", COLUMNS="200").output
    options = shown[shown.index("Options") :]
    assert not re.search(r"<(bool|list|int|float|choice|text)", options)


# --- circuits from files ----------------------------------------------------------------------------------------------


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "circuit"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def refusal_of(capsys: pytest.CaptureFixture[str], call: Any) -> str:
    with pytest.raises(typer.Exit) as caught:
        call()
    assert caught.value.exit_code == 2
    return capsys.readouterr().err


def test_formats_are_recognised_by_their_content(tmp_path: Path) -> None:
    assert read_circuit(write(tmp_path, BELL_2)).openqasm2 == BELL_2
    assert read_circuit(write(tmp_path, ROTATION_3)).openqasm3 == ROTATION_3
    assert read_circuit(write(tmp_path, "// a comment\n" + BELL_2)).WhichOneof("source") == "openqasm2"
    assert read_circuit(write(tmp_path, "\N{BYTE ORDER MARK}" + BELL_2)).openqasm2 == BELL_2
    assert read_circuit(write(tmp_path, b"QISKIT\x0d rest")).qpy == b"QISKIT\x0d rest"


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n\xff", b"", b"  \n"])
def test_what_is_no_circuit_is_refused(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "give OpenQASM 2, OpenQASM 3 or QPY" in refusal_of(capsys, lambda: read_circuit(write(tmp_path, content)))


def test_a_good_circuit_passes_the_check(tmp_path: Path) -> None:
    path = write(tmp_path, BELL_2)
    assert check_circuit(path, read_circuit(path), {}, ()).num_qubits == 2
    path = write(tmp_path, ROTATION_3)
    assert check_circuit(path, read_circuit(path), {"theta": 0.5}, ("0.5*ZZ - XI",)).num_qubits == 2


@pytest.mark.parametrize(
    ("content", "parameters", "observables", "sentence"),
    [
        (BELL_2.replace("cx q[0]", "cx q[0"), {}, (), "line 6"),
        (BELL_2.replace("measure q -> c;", ""), {}, (), "measures nothing into a classical register"),
        (ROTATION_3, {}, ("ZZ",), "--parameter theta=NUMBER"),
        (
            ROTATION_3.replace("input", "input float phi;\ninput"),
            {},
            ("ZZ",),
            "--parameter phi=NUMBER --parameter theta=NUMBER",
        ),
        (ROTATION_3, {"theta": 0.1, "phi": 0.2}, ("ZZ",), "'phi' is no parameter"),
        (ROTATION_3, {"theta": 0.1}, ("ZZZ",), "one letter a qubit"),
        (BELL_2, {}, ("ZZ",), "ends with measurements, and an --observable is measured by itself: take them out"),
        (b"QISKIT\x0f", {}, (), "cut off"),
    ],
)
def test_the_check_says_what_is_wrong(
    content: str | bytes,
    parameters: dict[str, float],
    observables: tuple[str, ...],
    sentence: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write(tmp_path, content)
    message = read_circuit(path)
    said = refusal_of(capsys, lambda: check_circuit(path, message, parameters, observables))
    assert sentence in said
    assert said.startswith("cadenza: ")


def test_a_parsers_own_words_are_not_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, ROTATION_3.replace("input float theta;", "").replace("qubit[2] q;", "qubit[2] q"))
    with pytest.raises(typer.Exit):
        check_circuit(path, read_circuit(path), {}, ())
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err == (
        f"cadenza: {path}: the OpenQASM 3 text cannot be read: line 4, column 11: expected SEMICOLON\n"
    )


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("ZZ", [("ZZ", 1.0)]),
        ("-ZZ", [("ZZ", -1.0)]),
        ("0.5*ZZ - 1.2*XI", [("ZZ", 0.5), ("XI", -1.2)]),
        ("1e-3 * XY + -2*ZI", [("XY", 1e-3), ("ZI", -2.0)]),
        ("-0.5*II - -1*ZZ", [("II", -0.5), ("ZZ", 1.0)]),
        ("2*+- + 01", [("+-", 2.0), ("01", 1.0)]),
    ],
)
def test_observables_are_sums_of_terms(text: str, terms: list[tuple[str, float]]) -> None:
    assert [(each.pauli, each.coefficient) for each in parse_observable(text).terms] == terms


@pytest.mark.parametrize("text", ["", "ZQ", "0.5 ZZ", "1.2.3*ZZ", "ZZ +", "*ZZ", "0.5*"])
def test_what_is_no_observable_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is no term" in refusal_of(capsys, lambda: parse_observable(text))


def test_parameters_are_names_and_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse_parameters(["theta=0.5", "phi[0]=-1e3"]) == {"theta": 0.5, "phi[0]": -1000.0}
    for wrong in (["theta"], ["=1"], ["theta=x"], ["theta=inf"], ["a=1", "a=2"]):
        assert "--parameter" in refusal_of(capsys, lambda wrong=wrong: parse_parameters(wrong))


def test_shares_are_paths_and_numbers() -> None:
    assert parse_settings(["lab/alice=2", "bob=0.5"]) == {"lab/alice": 2.0, "bob": 0.5}


# --- times ------------------------------------------------------------------------------------------------------------

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def test_points_of_time_are_local_relative_or_with_their_zone() -> None:
    assert parse_moment("--start", "+1h 30m", NOW) == NOW + timedelta(hours=1, minutes=30)
    assert parse_moment("--start", "2026-03-02T09:00Z", NOW) == datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
    assert parse_moment("--start", "2026-03-02 09:00", NOW) == datetime(2026, 3, 2, 9, 0).astimezone()
    today = parse_moment("--start", "9:05", NOW)
    assert (today.date(), today.hour, today.minute) == (NOW.astimezone().date(), 9, 5)


@pytest.mark.parametrize("text", ["", "+", "+soon", "25:00", "yesterday", "2026-13-01"])
def test_what_is_no_point_of_time_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--start" in refusal_of(capsys, lambda: parse_moment("--start", text, NOW))


def test_a_point_of_time_before_now_is_told_that_it_lies_in_the_past(capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal_of(capsys, lambda: parse_moment("--start", "-1h", NOW))
    assert "--start: '-1h' lies in the past: write " in said
    assert "`+2h` from now" in said


def test_lengths_are_seconds() -> None:
    assert check_length("--for", None) is None
    assert check_length("--for", "1h 30m") == 5400.0
    assert check_length("--for", "2.5") == 2.5


def stamp(moment: datetime) -> Timestamp:
    made = Timestamp()
    made.FromDatetime(moment)
    return made


def test_times_are_as_short_as_today_allows() -> None:
    noon = datetime(2026, 3, 1, 12, 0, 5).astimezone()
    assert output.format_time(stamp(noon), noon) == "12:00:05"
    assert output.format_time(stamp(noon), noon + timedelta(days=1)) == "Mar 01 12:00:05"
    assert output.format_time(stamp(noon), noon + timedelta(days=400)) == "2026-03-01 12:00:05"


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0 s"),
        (830_000, "830 us"),
        (12_340_000, "12.3 ms"),
        (999_900_000, "1000 ms"),
        (2_314_000_000, "2.31 s"),
        (200 * 10**9, "3m 20s"),
        (9_000 * 10**9, "2h 30m"),
        (100 * 3600 * 10**9, "4d 4h"),
        (-5 * 10**9, "-5 s"),
    ],
)
def test_lengths_have_three_digits(nanoseconds: int, text: str) -> None:
    assert output.format_length(nanoseconds) == text


# --- what is printed --------------------------------------------------------------------------------------------------


def test_enums_are_words_without_their_prefix() -> None:
    job = job_pb2.Job(job_class=job_pb2.JOB_CLASS_FAIR_SHARE, state=job_pb2.JOB_STATE_CANCELLED)
    assert output.enum_word(job, "job_class") == "fair share"
    assert output.enum_word(job, "reason") == "-"
    job.reason = job_pb2.JOB_REASON_RAN_TOO_LONG
    assert job_view.job_reason(job) == "cancelled (RAN_TOO_LONG)"
    device = device_pb2.Device()
    device.ParseFromString(b"\x20\x63")
    assert output.enum_word(device, "state") == "99"


@pytest.mark.parametrize(
    ("choices", "enum", "prefix"),
    [
        (jobs.State, job_pb2.JobState, "JOB_STATE_"),
        (sessions.State, session_pb2.SessionState, "SESSION_STATE_"),
        (sessions.Mode, session_pb2.SessionMode, "SESSION_MODE_"),
        (reservations.State, reservation_pb2.ReservationState, "RESERVATION_STATE_"),
    ],
)
def test_choices_are_those_of_the_contract(choices: Any, enum: Any, prefix: str) -> None:
    of_contract = {name.removeprefix(prefix).lower() for name in enum.keys()} - {"unspecified"}  # noqa: SIM118
    assert {each.value for each in choices} == of_contract


def test_what_people_chose_cannot_command_the_terminal() -> None:
    assert output.clean("tag\x1b[31m\n\u202e") == "tag\N{REPLACEMENT CHARACTER}[31m" + "\N{REPLACEMENT CHARACTER}" * 2


def test_json_is_protobufs_own_with_the_contracts_names(capsys: pytest.CaptureFixture[str]) -> None:
    job = job_pb2.Job(job_id="job-1", seq=7, create_time=stamp(NOW))
    output.print_json(job)
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    found = json.loads(line)
    assert found["create_time"] == "2026-03-01T12:00:00Z"
    assert found["seq"] == "7"
    assert found["session_id"] == ""
    assert "end_time" not in found


def bits(num_bits: int, shape: list[int], data: bytes) -> result_pb2.BitArray:
    return result_pb2.BitArray(num_bits=num_bits, shape=shape, data=data)


def test_bits_are_counted_by_bit_string() -> None:
    assert list(job_view.count_bits(bits(2, [4], bytes([0, 3, 3, 1])))) == [{"00": 1, "01": 1, "11": 2}]
    example = bits(10, [2], bytes([0x02, 0x03, 0x00, 0x02]))
    assert list(job_view.count_bits(example)) == [{"0000000010": 1, "1000000011": 1}]
    two_sets = bits(1, [2, 3], bytes([0, 1, 1, 0, 0, 0]))
    assert list(job_view.count_bits(two_sets)) == [{"0": 1, "1": 2}, {"0": 3}]


def test_results_are_plain_for_programs() -> None:
    values = tensor_pb2.Tensor(dtype=tensor_pb2.DTYPE_FLOAT64, shape=[2], data=struct.pack("<2d", 0.5, math.nan))
    result = result_pb2.JobResult(
        pubs=[
            result_pb2.PubResult(fields=[result_pb2.DataField(name="c", bits=bits(1, [2], b"\x00\x01"))]),
            result_pb2.PubResult(fields=[result_pb2.DataField(name="evs", tensor=values)], shape=[2]),
        ]
    )
    found = job_view.result_to_dict(result)
    assert found["pubs"][0]["fields"] == {"c": {"num_bits": 1, "counts": [{"0": 1, "1": 1}]}}
    assert found["pubs"][1]["fields"] == {"evs": [0.5, "NaN"]}
    assert found["pubs"][1]["shape"] == [2]
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_every_kind_of_event_has_a_sentence() -> None:
    kinds = [field.name for field in event_pb2.Event.DESCRIPTOR.oneofs_by_name["change"].fields]
    for kind in kinds:
        event = event_pb2.Event()
        getattr(event, kind).SetInParent()
        assert "does not know" not in job_view.event_sentence(event), kind
    assert "does not know" in job_view.event_sentence(event_pb2.Event())


def test_a_draining_session_that_has_the_device_is_told_from_one_that_waits() -> None:
    def sentence(state: session_pb2.SessionState.ValueType, active: bool) -> str:
        session = session_pb2.Session(session_id="s", state=state, active=active)
        return job_view.event_sentence(event_pb2.Event(session_changed=event_pb2.SessionChanged(session=session)))

    assert sentence(session_pb2.SESSION_STATE_DRAINING, True) == "s is draining and has the device"
    assert sentence(session_pb2.SESSION_STATE_DRAINING, False) == "s is draining"
    assert sentence(session_pb2.SESSION_STATE_ACTIVE, True) == "s is active"


def test_who_waits_is_shown_as_a_tree_with_the_least_used_first() -> None:
    def node(path: str, usage: float) -> share_pb2.ShareNode:
        return share_pb2.ShareNode(path=path, normalised_usage_s=usage)

    tree = [node("a", 5.0), node("a/x", 3.0), node("a/y", 1.0), node("b", 2.0), node("c/z", 9.0)]
    assert [each.path for each in by_fair_share(tree)] == ["b", "a", "a/y", "a/x", "c/z"]


def test_who_has_a_device_says_why_others_wait_and_until_when() -> None:
    device = device_pb2.Device(name="aer", state=device_pb2.DEVICE_STATE_FREE)
    assert who_has(device, [], NOW) == "free"
    window = reservation_pb2.Reservation(reservation_id="r-1", device="aer", holder="lab/x")
    window.start_time.CopyFrom(stamp(NOW + timedelta(hours=1)))
    window.end_time.CopyFrom(stamp(NOW + timedelta(hours=2)))
    start, end = (output.format_time(moment, NOW) for moment in (window.start_time, window.end_time))
    assert who_has(device, [window], NOW) == f"free; next reserved for lab/x, from {start}"
    device.reservation_id = "r-1"
    assert who_has(device, [window], NOW + timedelta(hours=1)) == f"reserved for lab/x until {end}"
    device = device_pb2.Device(state=device_pb2.DEVICE_STATE_HELD, active_session_id="s", active_user="bob")
    device.active_session_idle_expire_time.CopyFrom(window.end_time)
    assert who_has(device, [], NOW) == f"held by s of bob until {end} unless it submits another job"
    device = device_pb2.Device(state=device_pb2.DEVICE_STATE_OFFLINE, detail="no worker")
    assert who_has(device, [], NOW) == "offline: no worker"
