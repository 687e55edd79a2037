"""A server comes up, serves whole stories, and goes away cleanly."""

import asyncio
import gc
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from cadenza.v1 import (
    device_pb2,
    device_service_pb2,
    job_pb2,
    job_service_pb2,
    result_pb2,
    server_service_pb2,
    session_pb2,
    session_service_pb2,
)
from cadenza_server.app import serve
from cadenza_server.config import parse_config
from cadenza_server.store import Store
from cadenza_server.store.lock import Lock
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

PLUGINS = Path(__file__).parents[1] / "plugins"
SMALL = "[devices.sim]\nnum_qubits = 20\n"


def run(kit: Any, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(kit.command(*arguments), capture_output=True, text=True, timeout=60, check=False)


# --- coming and going -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_cleanly(tmp_path: Path, kit: Any, number: int) -> None:
    with kit.running(tmp_path, SMALL, "--ready-file", str(tmp_path / "ready")) as server:
        assert json.loads((tmp_path / "ready").read_text()) == {"address": server.address}
        assert server.stop(number) == 0
        assert not (tmp_path / "ready").exists()
        assert "Traceback" not in server.output


def test_it_serves_while_its_workers_still_load(tmp_path: Path, kit: Any, connect: Any) -> None:
    gate = tmp_path / "gate"
    plugins = str(PLUGINS) + os.pathsep + os.environ.get("PYTHONPATH", "")
    environment = {"PYTHONPATH": plugins, "UNRULY_GATE": str(gate)}
    configuration = '[devices.late]\nkind = "unruly"\n'
    get = device_service_pb2.GetDeviceRequest(name="late")
    with kit.running(tmp_path, configuration, environment=environment) as server:
        ann = connect("ann", address=server.address)
        with grpc.insecure_channel(server.address) as channel:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        job = ann.submit(kit.sampler_job(device="late"))
        assert (
            ann.jobs("GetJob", job_service_pb2.GetJobRequest(job_id=job.job_id)).job.state == job_pb2.JOB_STATE_QUEUED
        )
        with ThreadPoolExecutor(1) as thread:
            found = thread.submit(ann.devices, "GetDevice", get)
            # it is asked before this is, and not answered
            ann.jobs("GetJob", job_service_pb2.GetJobRequest(job_id=job.job_id))
            assert not found.done()
            gate.touch()
            assert found.result(30).device.state != device_pb2.DEVICE_STATE_OFFLINE
        assert ann.wait(job.job_id).state == job_pb2.JOB_STATE_SUCCEEDED
        assert server.stop() == 0
    gate.unlink()
    with kit.running(tmp_path, configuration, environment=environment) as server:
        assert server.stop() == 0
        assert "Traceback" not in server.output


def test_a_signal_puts_a_running_job_back_and_tells_its_watcher(tmp_path: Path, kit: Any, connect: Any) -> None:
    with kit.running(tmp_path, SMALL) as server:
        ann = connect("ann", address=server.address)
        long = ann.submit(kit.sampler_job(device="sim", circuit=kit.slow(20, 400), shots=100_000))
        ann.wait_until(long.job_id, job_pb2.JOB_STATE_RUNNING)
        watch = ann.jobs("WatchJob", job_service_pb2.WatchJobRequest(job_id=long.job_id))
        next(watch)
        server.process.send_signal(signal.SIGTERM)
        with kit.refusal() as refused:
            list(watch)
        assert (refused().code, refused().reason) == (grpc.StatusCode.UNAVAILABLE, "STOPPING")
        assert server.process.wait(15) == 0
        assert "stopped; what has not ended goes on at the next start jobs=1" in server.output
    with kit.running(tmp_path, SMALL) as server:
        ann = connect("ann", address=server.address)
        ann.wait_until(long.job_id, job_pb2.JOB_STATE_RUNNING)
        runs = ann.jobs("ListRuns", job_service_pb2.ListRunsRequest(job_id=long.job_id)).runs
        assert runs[0].outcome == job_pb2.RUN_OUTCOME_PUT_BACK
        cancelled = ann.jobs("CancelJob", job_service_pb2.CancelJobRequest(job_id=long.job_id)).job
        assert cancelled.reason == job_pb2.JOB_REASON_CANCELLED_BY_USER
        assert server.stop() == 0


def test_a_second_signal_stops_it_at_once(tmp_path: Path, kit: Any, connect: Any) -> None:
    with kit.running(tmp_path, SMALL) as server:
        ann = connect("ann", address=server.address)
        long = ann.submit(kit.sampler_job(device="sim", circuit=kit.slow(20, 400), shots=100_000))
        ann.wait_until(long.job_id, job_pb2.JOB_STATE_RUNNING)
        server.process.send_signal(signal.SIGINT)
        kit.wait_for(lambda: "once more stops at once" in server.output, "the first signal")
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(2) == 128 + signal.SIGINT


async def test_a_signal_ends_a_start_that_waits_for_its_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = asyncio.Event()

    async def hang(*_: object) -> None:
        waits.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(Store, "commit", hang)
    config = parse_config(SMALL + '[server]\nlisten = "127.0.0.1:0"\ndata_dir = "data"\n', tmp_path)
    try:
        async with asyncio.timeout(30):
            serving = asyncio.create_task(serve(config))
            await waits.wait()
            os.kill(os.getpid(), signal.SIGTERM)
            await serving
        lock = Lock(tmp_path / "data", 0)  # nobody has it any more
        lock.release()
    finally:
        gc.enable()  # as a process of its own need not


def test_a_port_in_use_is_a_sentence(tmp_path: Path, kit: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run(kit, "serve", "--listen", listen, "--data-dir", str(tmp_path))
    assert done.returncode == 1
    sentence = "another program listens there: stop it, or take another port with --listen HOST:PORT"
    assert done.stderr == f"cadenza: cannot listen on {listen}: {sentence}\n"


def test_an_address_of_another_machine_is_a_sentence(tmp_path: Path, kit: Any) -> None:
    config = tmp_path / "c.toml"
    config.write_text('[[tokens]]\npath = "ann"\nhash = "sha256:' + "0" * 64 + '"\n[server]\ninsecure = true\n')
    done = run(kit, "serve", "--listen", "192.0.2.1:0", "--data-dir", str(tmp_path), "--config", str(config))
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("cadenza: cannot listen on 192.0.2.1:0: this machine has no such address")
    assert done.stderr.count("\n") == 1


def test_a_certificate_that_is_none_is_a_sentence(tmp_path: Path, kit: Any) -> None:
    (tmp_path / "x.pem").write_text("no certificate\n")
    (tmp_path / "c.toml").write_text('[tls]\ncertificate = "x.pem"\nkey = "x.pem"\n')
    config = str(tmp_path / "c.toml")
    done = run(kit, "serve", "--listen", "127.0.0.1:0", "--data-dir", str(tmp_path / "d"), "--config", config)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("cadenza: [tls]: ")
    assert done.stderr.count("\n") == 1


def test_a_data_directory_that_cannot_be_used_is_a_sentence(tmp_path: Path, kit: Any) -> None:
    file = tmp_path / "file"
    file.write_text("")
    done = run(kit, "serve", "--listen", "127.0.0.1:0", "--data-dir", str(file / "below"))
    assert done.returncode == 1
    assert "cadenza: " in done.stderr
    assert str(file) in done.stderr
    assert "Traceback" not in done.stderr


def test_a_data_directory_in_use_says_by_whom(tmp_path: Path, kit: Any) -> None:
    with kit.running(tmp_path, SMALL) as server:
        done = run(kit, "serve", "--listen", "127.0.0.1:0", "--data-dir", str(tmp_path / "data"))
        assert done.returncode == 1
        assert f"process {server.process.pid} on " in done.stderr
        assert f"which serves {server.address}, since 20" in done.stderr
        assert "stop that server, or give another --data-dir" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--listen", "0.0.0.0:0"], "listens on loopback only"),
        (["--listen", "nowhere"], "is no address"),
        (["--config", "/nonexistent.toml"], "cannot be read"),
        (["--log-level", "loud"], "--log-level: 'loud' is not one of"),
        (["--log-format", "xml"], "'xml' is not one of"),
    ],
)
def test_what_it_is_told_wrongly_is_a_sentence(tmp_path: Path, kit: Any, arguments: list[str], said: str) -> None:
    done = run(kit, "serve", "--data-dir", str(tmp_path), *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_logs_are_json_if_asked(tmp_path: Path, kit: Any) -> None:
    with kit.running(tmp_path, SMALL, "--log-format", "json") as server:
        assert server.stop() == 0
        entries = [json.loads(line) for line in server.output.splitlines()]
    listening = next(entry for entry in entries if entry["message"] == "listening")
    assert listening["address"] == server.address
    assert {"time", "level", "logger"} <= listening.keys()


# --- the command line -----------------------------------------------------------------------------------------------


def test_the_configuration_that_is_printed_is_one_to_serve(tmp_path: Path, kit: Any) -> None:
    printed = run(kit, "config")
    assert printed.returncode == 0
    file = tmp_path / "cadenza.toml"
    file.write_text(printed.stdout)
    again = run(kit, "config", "--config", str(file))
    assert again.stdout == printed.stdout
    file.write_text("[server]\nlissten = 1\n")
    wrong = run(kit, "config", "--config", str(file))
    assert wrong.returncode == 2
    assert "did you mean 'listen'?" in wrong.stderr


def test_a_token_that_is_made_opens_the_server(tmp_path: Path, kit: Any, connect: Any) -> None:
    made = run(kit, "token", "--user", "lab/ann", "--role", "operator", "--name", "ann's")
    assert made.returncode == 0
    token = next(word for word in made.stdout.split() if word.startswith("cdz_"))
    assert tomllib.loads(made.stdout)["tokens"][0]["path"] == "lab/ann"
    assert tomllib.loads(made.stdout)["tokens"][0]["hash"] not in token
    with kit.running(tmp_path, SMALL + made.stdout) as server:
        ann = connect(address=server.address, token=token)
        caller = ann.server("GetServerInfo", server_service_pb2.GetServerInfoRequest()).caller
        assert (caller.user, caller.operator) == ("lab/ann", True)
    for wrong in (["--user", "a b"], ["--user", "a", "--role", "king"]):
        assert run(kit, "token", *wrong).returncode == 2


# --- what is on without a token -------------------------------------------------------------------------------------


def test_health_and_reflection_are_open(connect: Any) -> None:
    nobody = connect()
    stub = health_pb2_grpc.HealthStub(nobody.channel)
    for service in ("", "cadenza.v1.JobService"):
        answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    answers = reflection_pb2_grpc.ServerReflectionStub(nobody.channel).ServerReflectionInfo(iter([request]), timeout=10)
    names = {service.name for service in next(answers).list_services_response.service}
    for name in ("Session", "Job", "Device", "Reservation", "Share", "Server"):
        assert f"cadenza.v1.{name}Service" in names


def test_the_server_says_what_it_is(connect: Any) -> None:
    info = connect("rani").server("GetServerInfo", server_service_pb2.GetServerInfoRequest())
    assert (info.caller.user, info.caller.operator) == ("rani", True)
    assert info.server.qpy_version_min <= 13 <= info.server.qpy_version_max
    assert info.server.limits.message_bytes_max == 16 * 1024 * 1024
    assert info.server.limits.inline_result_bytes_max > 0
    assert info.server.half_life.seconds == 7 * 86_400
    assert info.server.now.ToNanoseconds() > info.server.start_time.ToNanoseconds()


def test_a_device_that_cannot_start_is_offline_and_others_serve(tmp_path: Path, connect: Any, kit: Any) -> None:
    config = '[devices.good]\nkind = "aer"\n[devices.wrong]\nkind = "generic"\nbasis_gates = ["nothing"]\n'
    with kit.running(tmp_path / "server", config) as started:
        calls = connect("ann", address=started.address)
        good, wrong = calls.devices("ListDevices", device_service_pb2.ListDevicesRequest()).devices
        assert (good.state, wrong.state) == (device_pb2.DEVICE_STATE_FREE, device_pb2.DEVICE_STATE_OFFLINE)
        assert "the server's log has the cause" in wrong.detail


def test_devices_are_described(connect: Any) -> None:
    ann = connect("look/ann")
    devices = ann.devices("ListDevices", device_service_pb2.ListDevicesRequest()).devices
    assert [device.name for device in devices] == ["line", "sim", "spare"]
    assert not any(device.HasField("properties") for device in devices)
    line = ann.devices("GetDevice", device_service_pb2.GetDeviceRequest(name="line")).device
    assert line.num_qubits == 5
    assert line.noisy
    assert "cx" in line.basis_gates
    assert {(pair.first, pair.second) for pair in line.coupling_map} >= {(0, 1), (1, 2), (2, 3), (3, 4)}
    assert line.state in (device_pb2.DEVICE_STATE_FREE, device_pb2.DEVICE_STATE_RUNNING)
    assert line.settings.profile == "runtime-2023"
    assert len(line.properties.qubits) == 5
    first = ann.devices("ListDevices", device_service_pb2.ListDevicesRequest(page_size=2))
    assert [device.name for device in first.devices] == ["line", "sim"]
    token = first.next_page_token
    rest = ann.devices("ListDevices", device_service_pb2.ListDevicesRequest(page_size=2, page_token=token))
    assert [device.name for device in rest.devices] == ["spare"]
    assert not rest.next_page_token


def test_page_tokens_that_are_none_are_refused(connect: Any, kit: Any) -> None:
    ann = connect("look/ann")
    for token in ("nonsense", "%%%", "AAAA"):
        for client, name, request in (
            (ann.devices, "ListDevices", device_service_pb2.ListDevicesRequest(page_token=token)),
            (ann.jobs, "ListJobs", job_service_pb2.ListJobsRequest(page_token=token)),
            (ann.jobs, "ListRuns", job_service_pb2.ListRunsRequest(page_token=token)),
            (ann.sessions, "ListSessions", session_service_pb2.ListSessionsRequest(page_token=token)),
        ):
            with kit.refusal() as refused:
                client(name, request)
            assert (refused().code, refused().reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_PAGE_TOKEN"), name


# --- whole stories --------------------------------------------------------------------------------------------------


def counts(result: result_pb2.JobResult) -> dict[int, int]:
    """How often each value was measured, of the first register."""
    bits = result.pubs[0].fields[0].bits
    size = (bits.num_bits + 7) // 8
    values = [int.from_bytes(bits.data[i : i + size], "big") for i in range(0, len(bits.data), size)]
    return {value: values.count(value) for value in set(values)}


@pytest.mark.parametrize("device", ["sim", "line"])
def test_a_job_runs_and_its_result_is_read_in_every_way(connect: Any, kit: Any, device: str) -> None:
    ann = connect("story/ann")
    spec = kit.sampler_job(device=device, shots=500, tags=["ghz"], priority=5)
    job = ann.submit(spec)
    assert (job.state, job.user, job.tags) == (job_pb2.JOB_STATE_QUEUED, "story/ann", ["ghz"])
    events = list(ann.jobs("WatchJob", job_service_pb2.WatchJobRequest(job_id=job.job_id, include_results=True)))
    final = events[-1].event
    shown = final.job_ended if final.HasField("job_ended") else final.job_snapshot
    assert shown.job.state == job_pb2.JOB_STATE_SUCCEEDED
    result = ann.jobs("GetJobResult", job_service_pb2.GetJobResultRequest(job_id=job.job_id)).result
    assert shown.result == result
    found = counts(result)
    assert sum(found.values()) == 500
    assert found[0] + found[3] > 400
    pieces = list(ann.jobs("StreamJobResult", job_service_pb2.StreamJobResultRequest(job_id=job.job_id)))
    data = b"".join(piece.data for piece in pieces)
    assert len(data) == pieces[0].total_bytes
    assert result_pb2.JobResult.FromString(data) == result
    rest = ann.jobs("StreamJobResult", job_service_pb2.StreamJobResultRequest(job_id=job.job_id, offset=10))
    assert b"".join(piece.data for piece in rest) == data[10:]
    with kit.refusal() as refused:
        list(ann.jobs("StreamJobResult", job_service_pb2.StreamJobResultRequest(job_id=job.job_id, offset=10**6)))
    assert (refused().code, refused().reason) == (grpc.StatusCode.OUT_OF_RANGE, "OFFSET_TOO_LARGE")
    history = ann.jobs("ListJobEvents", job_service_pb2.ListJobEventsRequest(job_id=job.job_id)).events
    kinds = [event.WhichOneof("change") for event in history]
    assert kinds == ["job_accepted", "job_started", "job_ended"]
    numbers = [event.event_number for event in history]
    assert numbers == sorted(set(numbers))
    program = ann.jobs("GetJobPayload", job_service_pb2.GetJobPayloadRequest(job_id=job.job_id)).program
    assert program == spec.program
    resumed = ann.jobs("WatchJob", job_service_pb2.WatchJobRequest(job_id=job.job_id, resume_after=numbers[0]))
    assert [one.event.WhichOneof("change") for one in resumed] == ["job_started", "job_ended"]


def test_a_result_that_is_not_there_yet_or_never_says_so(connect: Any, kit: Any) -> None:
    ann = connect("story/ann")
    long = ann.submit(kit.sampler_job(device="sim", circuit=kit.slow(20, 400), shots=100_000))
    ann.wait_until(long.job_id, job_pb2.JOB_STATE_RUNNING)
    request = job_service_pb2.GetJobResultRequest(job_id=long.job_id)
    with kit.refusal() as refused:
        ann.jobs("GetJobResult", request)
    assert refused().reason == "RESULT_NOT_READY"
    with kit.refusal() as refused:
        update = job_service_pb2.UpdateJobPriorityRequest(job_id=long.job_id, priority=1)
        ann.jobs("UpdateJobPriority", update)
    assert refused().reason == "JOB_NOT_QUEUED"
    waiting = ann.submit(kit.sampler_job(device="sim"))
    update = job_service_pb2.UpdateJobPriorityRequest(job_id=waiting.job_id, priority=7)
    assert ann.jobs("UpdateJobPriority", update).job.priority == 7
    ann.jobs("CancelJob", job_service_pb2.CancelJobRequest(job_id=long.job_id))
    with kit.refusal() as refused:
        ann.jobs("GetJobResult", request)
    assert refused().reason == "NO_RESULT"
    assert ann.wait(waiting.job_id).state == job_pb2.JOB_STATE_SUCCEEDED


def test_a_session_is_watched_from_its_creation_to_its_close(connect: Any, kit: Any) -> None:
    ann = connect("story/eva")
    request = session_service_pb2.CreateSessionRequest(device="spare", mode=session_pb2.SESSION_MODE_DEDICATED)
    request.max_time.seconds = 600
    session = ann.sessions("CreateSession", request).session
    assert session.state == session_pb2.SESSION_STATE_OPEN
    assert session.settings.max_time.seconds == 600
    assert session.settings.unused_ttl.seconds == 1800
    watch = ann.sessions(
        "WatchSession",
        session_service_pb2.WatchSessionRequest(session_id=session.session_id, include_results=True),
    )
    assert next(watch).event.session_snapshot.session.session_id == session.session_id
    job = ann.submit(kit.sampler_job(session=session.session_id))
    kinds, closing = [], False
    for answer in watch:
        event = answer.event
        kinds.append(event.WhichOneof("change"))
        if event.HasField("job_ended"):
            assert event.job_ended.job.job_id == job.job_id
            assert sum(counts(event.job_ended.result).values()) == 100
            if not closing:
                closing = True
                close = session_service_pb2.CloseSessionRequest(session_id=session.session_id)
                closed = ann.sessions("CloseSession", close).session
                assert closed.close_reason == session_pb2.SESSION_CLOSE_REASON_CLOSED_BY_USER
    assert kinds[-1] == "session_changed"
    assert {"job_accepted", "job_started", "job_ended"} <= set(kinds)
    history = ann.sessions(
        "ListSessionEvents", session_service_pb2.ListSessionEventsRequest(session_id=session.session_id)
    ).events
    states = [event.session_changed.session.state for event in history]
    assert states[0] == session_pb2.SESSION_STATE_OPEN
    assert states[-1] == session_pb2.SESSION_STATE_CLOSED
    assert session_pb2.SESSION_STATE_ACTIVE in states


def same(first: Message, second: Message) -> bool:
    return first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)


def test_a_call_that_is_repeated_with_its_request_id_gets_the_first_answer(connect: Any, kit: Any) -> None:
    ann = connect("story/ida")
    spec = kit.sampler_job(device="spare")
    first = ann.submit(spec, "id-1")
    assert same(ann.submit(spec, "id-1"), first)
    assert ann.job_ids() == [first.job_id]
    spec.priority = 3
    with kit.refusal() as refused:
        ann.submit(spec, "id-1")
    assert (refused().code, refused().reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_ID_REUSED")
    request = session_service_pb2.CreateSessionRequest(device="spare", request_id="id-2")
    session = ann.sessions("CreateSession", request).session
    assert ann.sessions("CreateSession", request).session.session_id == session.session_id
    ann.sessions("CancelSession", session_service_pb2.CancelSessionRequest(session_id=session.session_id))


def test_many_jobs_are_submitted_in_one_call(connect: Any, kit: Any) -> None:
    ann = connect("story/max")
    specs = [kit.sampler_job(device="spare") for _ in range(20)]
    answer = ann.jobs("SubmitJobs", job_service_pb2.SubmitJobsRequest(jobs=specs))
    seqs = [job.seq for job in answer.jobs]
    assert seqs == list(range(seqs[0], seqs[0] + 20))
    page = ann.jobs("ListJobs", job_service_pb2.ListJobsRequest(page_size=7, oldest_first=True))
    found = list(page.jobs)
    while page.next_page_token:
        request = job_service_pb2.ListJobsRequest(page_size=7, oldest_first=True, page_token=page.next_page_token)
        page = ann.jobs("ListJobs", request)
        found += page.jobs
    assert [job.job_id for job in found] == [job.job_id for job in answer.jobs]
    assert ann.wait(answer.jobs[-1].job_id).state == job_pb2.JOB_STATE_SUCCEEDED
    for wrong in ([], specs * 51):
        with kit.refusal() as refused:
            ann.jobs("SubmitJobs", job_service_pb2.SubmitJobsRequest(jobs=wrong))
        assert refused().metadata["field"] == "jobs"


def test_a_name_that_the_client_chose_is_taken_once(connect: Any, kit: Any) -> None:
    ann = connect("story/ned")
    assert ann.submit(kit.sampler_job(device="spare", job_id="my-job.1")).job_id == "my-job.1"
    with kit.refusal() as refused:
        ann.submit(kit.sampler_job(device="spare", job_id="my-job.1"))
    assert (refused().code, refused().reason) == (grpc.StatusCode.ALREADY_EXISTS, "NAME_TAKEN")
    assert refused().metadata["job_id"] == "my-job.1"
    with kit.refusal() as refused:
        ann.submit(kit.sampler_job(device="spare", job_id="no/slash"))
    assert refused().metadata["field"] == "job.job_id"


def test_the_servers_process_never_loads_qiskit(tmp_path: Path) -> None:
    """A job is run through a server in a process of its own, which then looks at what it has imported."""
    program = f"""
import asyncio, sys, io
from pathlib import Path
from cadenza.v1 import job_service_pb2, job_service_pb2_grpc
from cadenza_server.app import Server
from cadenza_server.config import parse_config
import grpc

async def main():
    config = parse_config('[server]\\nlisten = "127.0.0.1:0"\\n[devices.sim]\\n', Path({str(tmp_path)!r}))
    import dataclasses
    server = Server(dataclasses.replace(config, data_dir=Path({str(tmp_path / "data")!r})))
    address = await server.start()
    async with grpc.aio.insecure_channel(str(address)) as channel:
        stub = job_service_pb2_grpc.JobServiceStub(channel)
        request = job_service_pb2.SubmitJobRequest()
        request.job.device = "sim"
        text = 'OPENQASM 3.0; include "stdgates.inc"; qubit[1] q; bit[1] c; x q; c = measure q;'
        request.job.program.sampler.pubs.add(shots=3).circuit.openqasm3 = text
        metadata = (("cadenza-user", "ann"),)
        job = (await stub.SubmitJob(request, metadata=metadata)).job
        watch = stub.WatchJob(job_service_pb2.WatchJobRequest(job_id=job.job_id), metadata=metadata)
        [answer async for answer in watch]
        get = job_service_pb2.GetJobRequest(job_id=job.job_id)
        state = (await stub.GetJob(get, metadata=metadata)).job.state
    await server.stop()
    print("state", state)
    print("loaded", sorted(name for name in sys.modules if name.split(".")[0] in ("qiskit", "qiskit_aer", "numpy")))

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert "loaded []" in done.stdout, done.stdout + done.stderr
    assert f"state {job_pb2.JOB_STATE_SUCCEEDED}" in done.stdout


def test_tls_is_spoken_with_the_certificate_that_is_configured(tmp_path: Path, kit: Any) -> None:
    x509 = pytest.importorskip("cryptography.x509")
    certificate, key = make_certificate(x509)
    (tmp_path / "cert.pem").write_bytes(certificate)
    (tmp_path / "key.pem").write_bytes(key)
    config = SMALL + '[tls]\ncertificate = "cert.pem"\nkey = "key.pem"\n'
    with kit.running(tmp_path, config) as server:
        port = server.address.rpartition(":")[2]
        credentials = grpc.ssl_channel_credentials(certificate)
        with grpc.secure_channel(f"localhost:{port}", credentials) as channel:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError):
            health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert server.stop() == 0
    missing = run(kit, "serve", "--listen", "127.0.0.1:0", "--config", str(write(tmp_path, config, "nokey.pem")))
    assert missing.returncode == 1
    assert "nokey.pem" in missing.stderr


def write(folder: Path, config: str, key: str) -> Path:
    file = folder / "broken.toml"
    file.write_text(config.replace("key.pem", key) + f'[server]\ndata_dir = "{folder / "other"}"\n')
    return file


def make_certificate(x509: Any) -> tuple[bytes, bytes]:
    """A self-signed certificate for localhost, and its key, in PEM."""
    from datetime import UTC, datetime, timedelta

    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = io.BytesIO()
    pem.write(certificate.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return pem.getvalue(), private
