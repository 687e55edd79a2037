"""Over a limit: refused with what it takes to do better, and nothing else is harmed. Real servers, real sockets."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from cadenza.v1 import (
    device_service_pb2,
    job_pb2,
    job_service_pb2,
    job_service_pb2_grpc,
    program_pb2,
    server_service_pb2,
    session_pb2,
    session_service_pb2,
    session_service_pb2_grpc,
)
from google.rpc.error_details_pb2 import ErrorInfo, QuotaFailure, RetryInfo

CONFIG = """
[server]
operators = ["rani"]
[limits]
queued_jobs_max = 12
queued_jobs_per_user_max = 5
sessions_per_user_max = 2
watches_per_connection_max = 3
watches_per_user_max = 4
circuits_per_job_max = 2
[devices.sim]
kind = "aer"
num_qubits = 4
"""


def find(refused: Any, kind: Any) -> Any:
    for detail in refused.details:
        message = kind()
        if detail.Unpack(message):
            return message
    return None


def check_quota(refused: Any, reason: str, limit: str) -> None:
    """What a refusal over a limit always has."""
    assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert refused.reason == reason
    assert refused.metadata["limit"] == limit
    assert find(refused, ErrorInfo).reason == reason
    assert find(refused, QuotaFailure).violations[0].subject == limit
    assert find(refused, RetryInfo).retry_delay.seconds > 0


def keep_busy(connect: Any, address: str) -> str:
    """A calibration that keeps the device, so that what is submitted waits."""
    rani = connect("rani", address=address)
    request = device_service_pb2.SubmitCalibrationRequest(device="sim", calibration=program_pb2.CalibrationJob())
    request.calibration.pubs.add(shots=1).circuit.openqasm3 = "OPENQASM 3.0; qubit[1] q; bit[1] c; c = measure q;"
    request.calibration.duration.FromSeconds(600)
    job = rani.devices("SubmitCalibration", request).job
    rani.wait_until(job.job_id, job_pb2.JOB_STATE_RUNNING)
    return str(job.job_id)


@pytest.fixture(scope="module")
def tight(tmp_path_factory: pytest.TempPathFactory, kit: Any) -> Iterator[Any]:
    """A server with small limits, whose device is busy."""
    with kit.running(tmp_path_factory.mktemp("tight"), CONFIG) as started:
        yield started
        assert started.process.poll() is None, started.output


@pytest.fixture
def busy(tight: Any, connect: Any) -> Iterator[Any]:
    """The same server, with nothing queued before and after."""
    job = keep_busy(connect, tight.address)
    yield tight
    rani = connect("rani", address=tight.address)
    listed = job_service_pb2.ListJobsRequest(page_size=1000, states=[job_pb2.JOB_STATE_QUEUED])
    for queued in rani.jobs("ListJobs", listed).jobs:
        rani.jobs("CancelJob", job_service_pb2.CancelJobRequest(job_id=queued.job_id))
    rani.jobs("CancelJob", job_service_pb2.CancelJobRequest(job_id=job))
    sessions = session_service_pb2.ListSessionsRequest(states=[session_pb2.SESSION_STATE_OPEN], page_size=1000)
    for session in rani.sessions("ListSessions", sessions).sessions:
        rani.sessions("CancelSession", session_service_pb2.CancelSessionRequest(session_id=session.session_id))


def test_a_user_has_so_many_queued_jobs_and_others_are_not_harmed(busy: Any, connect: Any, kit: Any) -> None:
    ann, bob = connect("lab/ann", address=busy.address), connect("lab/bob", address=busy.address)
    spec = kit.sampler_job(device="sim")
    jobs = [ann.submit(spec, f"mine-{index}").job_id for index in range(5)]
    with kit.refusal() as refused:
        ann.submit(spec)
    check_quota(refused(), "QUOTA_USER_JOBS", "queued_jobs_per_user_max")
    assert ann.submit(spec, "mine-3").job_id == jobs[3]  # a repeated call gets its first answer, limit or not
    assert bob.submit(spec).state == job_pb2.JOB_STATE_QUEUED
    ann.jobs("CancelJob", job_service_pb2.CancelJobRequest(job_id=jobs[0]))
    assert ann.submit(spec).state == job_pb2.JOB_STATE_QUEUED


def test_many_jobs_over_a_limit_are_refused_all_together(busy: Any, connect: Any, kit: Any) -> None:
    ann = connect("lab/carl", address=busy.address)
    spec = kit.sampler_job(device="sim")
    ann.submit(spec)
    with kit.refusal() as refused:
        ann.jobs("SubmitJobs", job_service_pb2.SubmitJobsRequest(jobs=[spec] * 5))
    check_quota(refused(), "QUOTA_USER_JOBS", "queued_jobs_per_user_max")
    assert len(ann.job_ids()) == 1
    assert len(ann.jobs("SubmitJobs", job_service_pb2.SubmitJobsRequest(jobs=[spec] * 4)).jobs) == 4


def test_calls_that_come_together_do_not_pass_a_limit_together(busy: Any, connect: Any, kit: Any) -> None:
    dora = connect("lab/dora", address=busy.address)
    request = job_service_pb2.SubmitJobRequest(job=kit.sampler_job(device="sim"))
    call = dora.channel.unary_unary(
        "/cadenza.v1.JobService/SubmitJob",
        job_service_pb2.SubmitJobRequest.SerializeToString,
        job_service_pb2.SubmitJobResponse.FromString,
    )
    answers = [call.future(request, metadata=dora.metadata, timeout=30) for _ in range(20)]
    codes = [answer.code() for answer in answers]
    assert codes.count(grpc.StatusCode.OK) == 5
    assert codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) == 15
    assert len(dora.job_ids()) == 5


def test_the_server_has_so_many_queued_jobs_and_calibrates_all_the_same(busy: Any, connect: Any, kit: Any) -> None:
    spec = kit.sampler_job(device="sim")
    for user in ("a", "b", "c"):
        client = connect(f"all/{user}", address=busy.address)
        for _ in range(4):
            client.submit(spec)
    with kit.refusal() as refused:
        connect("all/d", address=busy.address).submit(spec)
    check_quota(refused(), "QUOTA_SERVER_JOBS", "queued_jobs_max")
    request = device_service_pb2.SubmitCalibrationRequest(device="sim", calibration=program_pb2.CalibrationJob())
    job = connect("rani", address=busy.address).devices("SubmitCalibration", request).job
    assert job.state == job_pb2.JOB_STATE_QUEUED


def test_a_user_has_so_many_sessions_that_are_not_closed(busy: Any, connect: Any, kit: Any) -> None:
    eve = connect("lab/eve", address=busy.address)
    create = session_service_pb2.CreateSessionRequest(device="sim")
    first = eve.sessions("CreateSession", create).session.session_id
    eve.sessions("CreateSession", create)
    with kit.refusal() as refused:
        eve.sessions("CreateSession", create)
    check_quota(refused(), "QUOTA_USER_SESSIONS", "sessions_per_user_max")
    eve.sessions("CloseSession", session_service_pb2.CloseSessionRequest(session_id=first))
    assert eve.sessions("CreateSession", create).session.session_id


def test_what_is_queued_and_open_counts_on_after_a_restart(tmp_path: Path, connect: Any, kit: Any) -> None:
    spec = kit.sampler_job(device="sim")
    create = session_service_pb2.CreateSessionRequest(device="sim")
    with kit.running(tmp_path, CONFIG) as started:
        keep_busy(connect, started.address)
        ann = connect("lab/ann", address=started.address)
        for _ in range(5):
            ann.submit(spec)
        for _ in range(2):
            ann.sessions("CreateSession", create)
        assert started.stop() == 0
    with kit.running(tmp_path, CONFIG) as started:
        ann = connect("lab/ann", address=started.address)
        with kit.refusal() as refused:
            ann.submit(spec)
        check_quota(refused(), "QUOTA_USER_JOBS", "queued_jobs_per_user_max")
        with kit.refusal() as refused:
            ann.sessions("CreateSession", create)
        check_quota(refused(), "QUOTA_USER_SESSIONS", "sessions_per_user_max")


def test_a_connection_and_a_user_have_so_many_watches(busy: Any, connect: Any, kit: Any) -> None:
    fay = connect("lab/fay", address=busy.address)
    job = fay.submit(kit.sampler_job(device="sim")).job_id
    request = job_service_pb2.WatchJobRequest(job_id=job)

    def watch(client: Any) -> Any:
        stream = client.jobs("WatchJob", request)
        next(stream)
        return stream

    streams = [watch(fay) for _ in range(3)]
    with kit.refusal() as refused:
        watch(fay)
    check_quota(refused(), "QUOTA_WATCHES", "watches_per_connection_max")
    other = connect("lab/fay", address=busy.address)
    # A channel of its own: gRPC would share the connection of the other one.
    other.channel.close()
    other.channel = grpc.insecure_channel(busy.address, options=(("grpc.use_local_subchannel_pool", 1),))
    call = other.channel.unary_stream(
        "/cadenza.v1.JobService/WatchJob",
        job_service_pb2.WatchJobRequest.SerializeToString,
        job_service_pb2.WatchJobResponse.FromString,
    )
    fourth = call(request, metadata=other.metadata, timeout=30)
    next(fourth)
    with kit.refusal() as refused:
        next(call(request, metadata=other.metadata, timeout=30))
    check_quota(refused(), "QUOTA_WATCHES", "watches_per_user_max")
    for stream in streams:
        stream.cancel()

    def is_free() -> bool:
        try:
            watch(fay).cancel()
        except grpc.RpcError:
            return False
        return True

    kit.wait_for(is_free, "a place for another watch")


def test_a_job_has_so_many_different_circuits(busy: Any, connect: Any, kit: Any) -> None:
    client = connect("lab/gus", address=busy.address)
    one, two = kit.ghz(1), kit.ghz(2)
    spec = kit.sampler_job(device="sim", circuit=one)
    for circuit in (two, one, two, one):
        spec.program.sampler.pubs.add(shots=1).circuit.qpy = circuit
    client.submit(spec)
    spec.program.sampler.pubs.add(shots=1).circuit.qpy = kit.ghz(3)
    with kit.refusal() as refused:
        client.submit(spec)
    assert (refused().code, refused().reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_JOB_SIZE")
    assert refused().metadata["limit"] == "circuits_per_job_max"


def test_the_server_says_its_limits(tight: Any, connect: Any) -> None:
    client = connect("lab/ann", address=tight.address)
    limits = client.server("GetServerInfo", server_service_pb2.GetServerInfoRequest()).server.limits
    assert limits.queued_jobs_max == 12
    assert limits.queued_jobs_per_user_max == 5
    assert limits.sessions_per_user_max == 2
    assert limits.watches_per_connection_max == 3
    assert limits.watches_per_user_max == 4
    assert limits.circuits_per_job_max == 2
    assert limits.result_bytes_max > 0
    assert limits.result_age_min.seconds > 0
    assert not limits.HasField("result_age_max")


# --- stopping under load, and clients that mean no good ---------------------------------------------------------------


def test_a_stop_in_a_burst_of_calls_tells_every_one_of_them_why(tmp_path: Path, connect: Any, kit: Any) -> None:
    request = job_service_pb2.SubmitJobRequest(job=kit.sampler_job(device="sim"))
    told: Counter[str] = Counter()
    # The limit of one user is out of the way: what is looked at is how calls end.
    with kit.running(tmp_path, CONFIG.replace("queued_jobs_max = 12", "").replace("= 5", "= 100000")) as started:

        def call_until_it_is_gone(number: int) -> None:
            client = connect(f"burst/u{number}", address=started.address)
            while True:
                try:
                    client.jobs("SubmitJob", request)
                    told["accepted"] += 1
                except grpc.RpcError as caught:
                    error: Any = caught
                    rich = "grpc-status-details-bin" in dict(tuple(error.trailing_metadata() or ()))
                    told[f"{error.code().name}, {'with' if rich else 'without'} a reason"] += 1
                    if not rich:
                        return

        with ThreadPoolExecutor(16) as pool:
            ended = [pool.submit(call_until_it_is_gone, number) for number in range(16)]
            kit.wait_for(lambda: told["accepted"] > 200, "calls that are answered")
            assert started.stop() == 0
            for each in ended:
                each.result(30)
    # Without a reason are only those that found nobody any more: whom they never reached cannot tell them.
    assert told.keys() == {"accepted", "UNAVAILABLE, with a reason", "UNAVAILABLE, without a reason"}, told
    assert told["UNAVAILABLE, without a reason"] == 16


def test_garbage_on_a_connection_harms_only_itself(tight: Any, connect: Any) -> None:
    host, port = tight.address.rsplit(":", 1)
    good = connect("lab/ann", address=tight.address)
    rng = random.Random(20)
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    for index in range(60):
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            noise = rng.randbytes(rng.randrange(1, 3_000))
            # Bare noise, noise behind a good beginning, and frames of any type that say they are longer than they are.
            head = (b"", preface, preface + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]) + bytes([0, 255, 255, index % 12]))[
                index % 3
            ]
            with contextlib.suppress(ConnectionError):
                connection.sendall(head + noise)
        assert good.server("GetServerInfo", server_service_pb2.GetServerInfoRequest()).caller.user == "lab/ann"


def test_a_thousand_connections_that_say_nothing_harm_nobody(tight: Any, connect: Any) -> None:
    host, port = tight.address.rsplit(":", 1)
    good = connect("lab/ann", address=tight.address)
    before = memory(tight)
    with contextlib.ExitStack() as stack:
        for _ in range(1_000):
            stack.enter_context(socket.create_connection((host, int(port)), timeout=10))
        began = time.monotonic()
        assert good.server("GetServerInfo", server_service_pb2.GetServerInfoRequest()).caller.user == "lab/ann"
        assert time.monotonic() - began < 5
        assert memory(tight) - before < 300 * 2**20
    assert good.server("GetServerInfo", server_service_pb2.GetServerInfoRequest()).caller.user == "lab/ann"


def memory(server: Any) -> int:
    """Bytes of its process."""
    (line,) = [
        line
        for line in Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
        if line.startswith("VmRSS:")
    ]
    return int(line.split()[1]) * 1024


def test_a_watch_that_is_never_read_is_ended_and_slows_nobody(tmp_path: Path, connect: Any, kit: Any) -> None:
    """The watch of a session in which more happens than a watcher may be behind, and which resumes afterwards."""
    config = CONFIG.replace("queued_jobs_max = 12", "").replace(
        "queued_jobs_per_user_max = 5", "watch_backlog_max = 300"
    )
    spec = kit.sampler_job(device="", circuit="OPENQASM 3.0; qubit[1] q; bit[1] c; c = measure q;")
    with kit.running(tmp_path, config, "--metrics", ":0", "--log-format", "json") as started:
        keep_busy(connect, started.address)
        ann = connect("lab/ann", address=started.address)
        created = ann.sessions("CreateSession", session_service_pb2.CreateSessionRequest(device="sim"))
        name = spec.session_id = created.session.session_id
        slow, quick = connect("lab/ann", address=started.address), connect("lab/ann", address=started.address)
        request = session_service_pb2.WatchSessionRequest(session_id=name)
        # A client that lets no more than some kilobytes be sent ahead, so that little has to happen here.
        options = (("grpc.http2.lookahead_bytes", 4096), ("grpc.http2.bdp_probe", 0))
        channel = grpc.insecure_channel(started.address, options=(*options, ("grpc.use_local_subchannel_pool", 1)))
        watch = session_service_pb2_grpc.SessionServiceStub(channel).WatchSession
        unread = watch(request, metadata=slow.metadata, timeout=60)
        next(unread)
        seen: list[int] = []

        def read() -> None:
            for answer in quick.sessions("WatchSession", request):
                seen.append(answer.event.event_number)
                if len(seen) > 2_000:
                    return

        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(read)
            kit.wait_for(lambda: bool(seen), "the quick watch")
            for count in range(200, 2_001, 200):
                ann.jobs("SubmitJobs", job_service_pb2.SubmitJobsRequest(jobs=[spec] * 200))
                kit.wait_for(lambda count=count: len(seen) > count, "the quick watch to have read all")
            reading.result(60)
        assert seen == sorted(set(seen))
        last = 0
        with kit.refusal() as refused:
            for answer in unread:
                last = answer.event.event_number
        assert (refused().code, refused().reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "WATCH_TOO_SLOW")
        assert refused().metadata == {"resume_after": str(last), "limit": "watch_backlog_max"}
        assert last < seen[-1]
        assert find(refused(), RetryInfo) is not None
        resumed = session_service_pb2.WatchSessionRequest(session_id=name, resume_after=last)
        again = slow.sessions("WatchSession", resumed)
        following = [next(again).event.event_number for _ in range(2_001 - seen.index(last) - 1)]
        assert following == seen[seen.index(last) + 1 :]
        again.cancel()
        channel.close()


STOPPED_READER = """
import asyncio, os, signal, sys
import grpc
from cadenza.v1 import job_service_pb2, job_service_pb2_grpc

async def read(address, user, job, calls):
    channel = grpc.aio.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)])
    request = job_service_pb2.GetJobPayloadRequest(job_id=job)
    get = job_service_pb2_grpc.JobServiceStub(channel).GetJobPayload
    under_way = [asyncio.ensure_future(get(request, metadata=[("cadenza-user", user)])) for _ in range(calls)]
    await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
    os.kill(os.getpid(), signal.SIGSTOP)
    answers = await asyncio.gather(*under_way)
    print({len(answer.SerializeToString()) for answer in answers}, len(answers))

asyncio.run(read(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
"""
"""Asks for what a job executes many times at once, and is stopped in the middle of the answers."""


def test_answers_that_are_never_read_do_not_fill_the_memory_and_come_when_they_are(
    tmp_path: Path, connect: Any, kit: Any
) -> None:
    spec = kit.sampler_job(device="sim", circuit="OPENQASM 3.0; qubit[1] q; bit[1] c; c = measure q; //" + "x" * 2**22)
    with kit.running(tmp_path, CONFIG) as started:
        keep_busy(connect, started.address)
        ann, bob = connect("lab/ann", address=started.address), connect("lab/bob", address=started.address)
        job = ann.submit(spec).job_id
        whole = ann.jobs("GetJobPayload", job_service_pb2.GetJobPayloadRequest(job_id=job)).ByteSize()
        before = memory(started)
        arguments = (started.address, "lab/ann", job, "200")
        with subprocess.Popen([sys.executable, "-c", STOPPED_READER, *arguments], stdout=subprocess.PIPE) as reader:
            try:
                _, status = os.waitpid(reader.pid, os.WUNTRACED)
                assert os.WIFSTOPPED(status)
                for client in (ann, bob) * 3:
                    asked = job if client is ann else bob.submit(spec).job_id
                    answer = client.jobs("GetJobPayload", job_service_pb2.GetJobPayloadRequest(job_id=asked))
                    assert answer.ByteSize() == whole
                assert memory(started) - before < 200 * 2**20  # two hundred answers would be 800 MiB at least
                reader.send_signal(signal.SIGCONT)
                assert reader.stdout is not None
                assert reader.stdout.read().decode().split() == [f"{{{whole}}}", "200"]
            finally:
                reader.kill()


def test_results_that_are_streamed_and_not_read_give_their_place_back_when_they_are_cancelled(
    tmp_path: Path, connect: Any, kit: Any
) -> None:
    config = CONFIG.replace("[limits]", "[limits]\nanswers_per_connection_max = 1")
    measured = 'OPENQASM 3.0; include "stdgates.inc"; qubit[4] q; bit[4] c; h q; c = measure q;'
    with kit.running(tmp_path, config) as started:
        ann = connect("lab/ann", address=started.address)
        job = ann.submit(kit.sampler_job(device="sim", circuit=measured, shots=4_000_000)).job_id
        assert ann.wait(job).state == job_pb2.JOB_STATE_SUCCEEDED
        options = (("grpc.http2.lookahead_bytes", 4096), ("grpc.http2.bdp_probe", 0))
        with grpc.insecure_channel(started.address, options=options) as channel:
            call = job_service_pb2_grpc.JobServiceStub(channel).StreamJobResult
            request = job_service_pb2.StreamJobResultRequest(job_id=job)
            # A piece takes the room of a sixteenth of an answer. The first is read, the next one waits to be.
            unread = [call(request, metadata=ann.metadata, timeout=60) for _ in range(16)]
            total = {next(stream).total_bytes for stream in unread}.pop()
            with kit.refusal() as refused:
                next(call(request, metadata=ann.metadata, timeout=0.5))
            assert refused().code is grpc.StatusCode.DEADLINE_EXCEEDED
            unread[7].cancel()
            last = list(call(request, metadata=ann.metadata, timeout=30))
            assert sum(len(piece.data) for piece in last) == total > 2 * 2**20
            for stream in unread:
                stream.cancel()
