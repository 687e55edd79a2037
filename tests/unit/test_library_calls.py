"""The Python library against a scripted server: what a real one does not do on demand.

It refuses, breaks off, answers late and in an awkward order. The stubs and the channel are the real ones.
"""

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import cadenza
import grpc
import numpy as np
import pytest
from cadenza import (
    AsyncClient,
    Batch,
    CadenzaError,
    CadenzaService,
    CadenzaTimeoutError,
    Client,
    EstimatorV2,
    ExhaustedError,
    InvalidRequestError,
    Job,
    JobCancelledError,
    JobFailedError,
    NotFoundError,
    Retry,
    SamplerV2,
    Session,
    Tls,
    UnavailableError,
)
from cadenza._follower import ENDED_AT_ONCE_MAX
from cadenza._transport import Endpoint
from cadenza.arrays import bit_array_to_message
from cadenza.v1 import (
    device_pb2,
    device_service_pb2,
    device_service_pb2_grpc,
    event_pb2,
    job_pb2,
    job_service_pb2,
    job_service_pb2_grpc,
    program_pb2,
    reservation_service_pb2_grpc,
    result_pb2,
    server_service_pb2,
    server_service_pb2_grpc,
    session_pb2,
    session_service_pb2,
    session_service_pb2_grpc,
    share_service_pb2_grpc,
)
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from qiskit import QuantumCircuit
from qiskit.circuit import Parameter
from qiskit.providers import QiskitBackendNotFoundError

Handler = Callable[[Any, grpc.ServicerContext], Any]
PATIENCE_S = 20.0
"""How long a test waits for what must come."""


class Script:
    """A servicer of every service: each RPC is what `on` says, and `calls` notes the requests."""

    def __init__(self) -> None:
        self.on: dict[str, Handler] = {"SubmitJobStream": lambda _, context: refuse(context, code_pb2.UNIMPLEMENTED)}
        self.calls: list[tuple[str, Any]] = []
        self.metadata: list[dict[str, Any]] = []

    def __getattr__(self, name: str) -> Handler:
        if not name[0].isupper():
            raise AttributeError(name)

        def answer(request: Any, context: grpc.ServicerContext) -> Any:
            self.calls.append((name, request))
            self.metadata.append(dict(context.invocation_metadata()))
            return self.on[name](request, context)

        return answer

    def requests(self, name: str) -> list[Any]:
        return [request for called, request in self.calls if called == name]


def refuse(context: grpc.ServicerContext, code: int, reason: str = "", message: str = "no", **facts: str) -> None:
    status = status_pb2.Status(code=code, message=message)
    if reason:
        info = error_details_pb2.ErrorInfo(domain="cadenza", reason=reason, metadata=facts)
        status.details.add().Pack(info)
    if "field" in facts:
        violation = error_details_pb2.BadRequest.FieldViolation(field=facts["field"], description=message)
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    context.abort_with_status(rpc_status.to_status(status))


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def target(script: Script) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(16))
    for module, service in (
        (server_service_pb2_grpc, "ServerService"),
        (device_service_pb2_grpc, "DeviceService"),
        (session_service_pb2_grpc, "SessionService"),
        (job_service_pb2_grpc, "JobService"),
        (reservation_service_pb2_grpc, "ReservationService"),
        (share_service_pb2_grpc, "ShareService"),
    ):
        getattr(module, f"add_{service}Servicer_to_server")(script, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait(PATIENCE_S)


@pytest.fixture
def slept() -> list[float]:
    return []


@pytest.fixture
def client(target: str, slept: list[float]) -> Iterator[Client]:
    ids = iter(f"id-{number}" for number in range(1000))
    retry = Retry(attempts=4, first_s=0.1, random=lambda: 1.0)
    with Client(target, user="lab/ada", retry=retry, new_id=ids.__next__, sleep=slept.append) as made:
        yield made


def failing(times: int, then: Handler, code: int = code_pb2.UNAVAILABLE, reason: str = "STOPPING") -> Handler:
    """Refuse some calls, then answer."""
    left = [times]

    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        if left[0]:
            left[0] -= 1
            refuse(context, code, reason)
        return then(request, context)

    return answer


# --- calls ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("INVALID_ARGUMENT", cadenza.InvalidRequestError),
        ("UNAUTHENTICATED", cadenza.UnauthenticatedError),
        ("PERMISSION_DENIED", cadenza.PermissionDeniedError),
        ("NOT_FOUND", cadenza.NotFoundError),
        ("ALREADY_EXISTS", cadenza.AlreadyExistsError),
        ("FAILED_PRECONDITION", cadenza.PreconditionError),
        ("OUT_OF_RANGE", cadenza.OutOfRangeError),
        ("RESOURCE_EXHAUSTED", cadenza.ExhaustedError),
        ("INTERNAL", cadenza.InternalError),
    ],
)
def test_a_refusal_becomes_a_typed_exception_with_all_that_it_said(
    script: Script, client: Client, code: str, kind: type[CadenzaError]
) -> None:
    script.on["GetJob"] = lambda _, context: refuse(
        context, code_pb2.Code.Value(code), "SOME_REASON", "do this instead", field="job_id", job_id="x"
    )
    with pytest.raises(CadenzaError) as caught:
        client.get_job("x")
    error = caught.value
    assert type(error) is kind
    assert (error.code, error.reason, error.field) == (code, "SOME_REASON", "job_id")
    assert error.metadata == {"field": "job_id", "job_id": "x"}
    assert str(error) == "do this instead [SOME_REASON]"
    assert len(script.calls) == 1


def test_a_result_that_is_not_ready_has_a_type_of_its_own(script: Script, client: Client) -> None:
    script.on["StreamJobResult"] = lambda _, context: refuse(context, code_pb2.FAILED_PRECONDITION, "RESULT_NOT_READY")
    with pytest.raises(cadenza.NotReadyError):
        client.get_job_result("x")


def test_an_unavailable_server_is_asked_again_with_the_same_request_id(
    script: Script, client: Client, slept: list[float]
) -> None:
    script.on["CancelJob"] = failing(
        3, lambda r, _: job_service_pb2.CancelJobResponse(job=job_pb2.Job(job_id=r.job_id))
    )
    assert client.cancel_job("x").job_id == "x"
    assert [request.request_id for request in script.requests("CancelJob")] == ["id-0"] * 4
    assert slept == [0.1, 0.2, 0.4]
    client.cancel_job("x")
    assert script.requests("CancelJob")[-1].request_id == "id-1"


def test_a_call_that_a_stopping_server_cancels_is_tried_again(script: Script, client: Client) -> None:
    answer = job_service_pb2.CancelJobResponse(job=job_pb2.Job(job_id="x"))
    script.on["CancelJob"] = failing(2, lambda *_: answer, code_pb2.CANCELLED, "")
    assert client.cancel_job("x").job_id == "x"
    assert len({request.request_id for request in script.requests("CancelJob")}) == 1


def test_after_all_attempts_the_failure_is_told(script: Script, client: Client, slept: list[float]) -> None:
    script.on["CancelJob"] = failing(99, lambda *_: None, reason="STORE_UNAVAILABLE")
    with pytest.raises(UnavailableError) as caught:
        client.cancel_job("x")
    assert caught.value.reason == "STORE_UNAVAILABLE"
    assert (len(script.calls), len(slept)) == (4, 3)


def test_where_no_server_is_the_error_says_how_to_start_one() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        slept: list[float] = []
        with (
            Client(f"127.0.0.1:{port}", sleep=slept.append) as client,
            pytest.raises(UnavailableError, match=rf"127\.0\.0\.1:{port}.*cadenza serve"),
        ):
            client.list_devices()
        assert len(slept) == 2


def test_a_server_that_does_not_answer_in_time_is_a_timeout(script: Script, target: str) -> None:
    release = threading.Event()

    def hang(_request: Any, _context: grpc.ServicerContext) -> job_service_pb2.GetJobResponse:
        release.wait(PATIENCE_S)
        return job_service_pb2.GetJobResponse()

    script.on["GetJob"] = hang
    with Client(target, timeout_s=0.1) as client, pytest.raises(CadenzaTimeoutError):
        client.get_job("x")
    release.set()


def test_a_closed_client_says_so(client: Client) -> None:
    client.close()
    with pytest.raises(CadenzaError, match="closed"):
        client.get_job("x")
    with pytest.raises(CadenzaError, match="closed"):
        next(client.watch_job("x"))


def test_who_calls_is_in_the_metadata(
    script: Script, target: str, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    script.on["GetJob"] = lambda *_: job_service_pb2.GetJobResponse()
    client.get_job("x")
    assert script.metadata[-1]["cadenza-user"] == "lab/ada"
    monkeypatch.setenv("CADENZA_TOKEN", "secret")
    monkeypatch.setenv("CADENZA_TARGET", target)
    with Client() as other:
        other.get_job("x")
        assert other.user is None
        assert "secret" not in repr(other._transport.endpoint)
    assert script.metadata[-1]["authorization"] == "Bearer secret"
    assert "cadenza-user" not in script.metadata[-1]


def test_the_environment_says_who_calls_and_how_it_is_encrypted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TOKEN", "TLS", "TLS_CA", "TLS_CERTIFICATE", "TLS_KEY", "TLS_SERVER_NAME"):
        monkeypatch.delenv(f"CADENZA_{name}", raising=False)
    monkeypatch.setenv("CADENZA_USER", "lab/bob")
    plain = Endpoint.make(None, None, None, None)
    assert (plain.user, plain.tls) == ("lab/bob", None)
    assert Endpoint.make(None, "lab/ada", None, None).user == "lab/ada"
    monkeypatch.setenv("CADENZA_TLS", "1")
    assert Endpoint.make(None, None, None, None).tls == Tls()
    monkeypatch.setenv("CADENZA_TLS_CA", "ca.pem")
    monkeypatch.setenv("CADENZA_TLS_SERVER_NAME", "cadenza.test")
    assert Endpoint.make(None, None, None, None).tls == Tls(ca="ca.pem", server_name="cadenza.test")
    assert Endpoint.make(None, None, None, "other.pem").tls == Tls(ca="other.pem")
    assert Endpoint.make(None, None, None, False).tls is None


@pytest.mark.parametrize(
    ("given", "field"), [({"user": "müller"}, "user"), ({"user": "lab//ada"}, "user"), ({"token": "secret\n"}, "token")]
)
def test_who_cannot_be_a_caller_is_refused_before_anything_is_sent(given: dict[str, str], field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        Client("127.0.0.1:1", **given)  # type: ignore[arg-type]
    assert caught.value.field == field
    assert "secret" not in str(caught.value)


CERTIFICATE = b"""-----BEGIN CERTIFICATE-----
MIIBSjCB8aADAgECAgEBMAoGCCqGSM49BAMCMBcxFTATBgNVBAMMDGNhZGVuemEu
dGVzdDAgFw0yMDAxMDEwMDAwMDBaGA8yMTIwMDEwMTAwMDAwMFowFzEVMBMGA1UE
AwwMY2FkZW56YS50ZXN0MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE9VnzioRG
9XwN0XYMYE6edpu5HOCrwPGhFEsXu6Y+03qs0FtSKgXqGa9da8qyKa2v65rXC0BC
IuapiKi+FIv05aMsMCowFwYDVR0RBBAwDoIMY2FkZW56YS50ZXN0MA8GA1UdEwEB
/wQFMAMBAf8wCgYIKoZIzj0EAwIDSAAwRQIgHu7pncfXNLBaP7EiS7Qt6CpzmySy
otGlj9VYbAbcw/ACIQCygUzAGSy1RLQ/IHEUWJSpuEhGLnPntAG02O98BHjAqQ==
-----END CERTIFICATE-----
"""
"""Of `cadenza.test`, signed by itself with `KEY`, until 2120; both are for this test only."""

KEY = b"""-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgCKWOUxF49oKoUJMK
WJch1QPOGqvpGle+srpGh3aDdU+hRANCAAT1WfOKhEb1fA3RdgxgTp52m7kc4KvA
8aEUSxe7pj7TeqzQW1IqBeoZr11ryrIpra/rmtcLQEIi5qmIqL4Ui/Tl
-----END PRIVATE KEY-----
"""


def test_with_tls_the_server_must_be_who_it_says(script: Script, tmp_path: Path) -> None:
    authority = tmp_path / "ca.pem"
    authority.write_bytes(CERTIFICATE)
    server = grpc.server(ThreadPoolExecutor(2))
    device_service_pb2_grpc.add_DeviceServiceServicer_to_server(cast(Any, script), server)
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(KEY, CERTIFICATE)]))
    server.start()
    script.on["ListDevices"] = lambda *_: device_service_pb2.ListDevicesResponse(devices=[device_pb2.Device(name="a")])
    target = f"127.0.0.1:{port}"
    tls = Tls(ca=authority, server_name="cadenza.test")
    with Client(target, token="secret", tls=tls) as client:
        assert [device.name for device in client.list_devices()] == ["a"]
    assert script.metadata[-1]["authorization"] == "Bearer secret"
    hint = pytest.raises(UnavailableError, match="its certificate is for another name")
    with Client(target, tls=authority, retry=Retry(attempts=1)) as client, hint:
        client.list_devices()
    hint = pytest.raises(UnavailableError, match="name the authority that signed it")
    with Client(target, tls=Tls(server_name="cadenza.test"), retry=Retry(attempts=1)) as client, hint:
        client.list_devices()
    hint = pytest.raises(UnavailableError, match="if it speaks TLS, name its certificate authority")
    with Client(target, tls=False, retry=Retry(attempts=1)) as client, hint:
        client.list_devices()
    server.stop(None).wait(PATIENCE_S)


def test_lists_are_read_to_the_end_or_to_the_limit(script: Script, client: Client) -> None:
    def page(request: Any, _context: grpc.ServicerContext) -> job_service_pb2.ListJobsResponse:
        first = int(request.page_token or 0)
        jobs = [job_pb2.Job(job_id=str(number)) for number in range(first, first + min(request.page_size, 2))]
        return job_service_pb2.ListJobsResponse(jobs=jobs, next_page_token="" if first >= 4 else str(first + 2))

    script.on["ListJobs"] = page
    assert [job.job_id for job in client.list_jobs(states=["queued"])] == ["0", "1", "2", "3", "4", "5"]
    assert script.requests("ListJobs")[0].states == [job_pb2.JOB_STATE_QUEUED]
    assert [job.job_id for job in client.list_jobs(limit=3)] == ["0", "1", "2"]
    assert [request.page_size for request in script.requests("ListJobs")] == [1000, 1000, 1000, 3, 1]


def test_a_wrong_name_of_a_state_is_refused_with_those_that_exist(client: Client) -> None:
    with pytest.raises(InvalidRequestError, match="'queued', 'running', 'succeeded'"):
        client.list_jobs(states=["done"])  # type: ignore[list-item]
    with pytest.raises(InvalidRequestError, match="'drain'"):
        client.close_session("s", "keep")  # type: ignore[arg-type]


def test_a_result_in_pieces_goes_on_where_it_broke_off(script: Script, client: Client) -> None:
    result = result_pb2.JobResult(pubs=[result_pb2.PubResult(shape=[1])] * 50)
    data = result.SerializeToString()

    def stream(request: Any, context: grpc.ServicerContext) -> Iterator[job_service_pb2.StreamJobResultResponse]:
        yield job_service_pb2.StreamJobResultResponse(data=data[request.offset : request.offset + 90])
        if request.offset < 90:
            refuse(context, code_pb2.UNAVAILABLE, "STOPPING")
        yield job_service_pb2.StreamJobResultResponse(data=data[request.offset + 90 :])

    script.on["StreamJobResult"] = stream
    assert client.get_job_result("x") == result
    assert [request.offset for request in script.requests("StreamJobResult")] == [0, 90]


def snapshots(*numbers: int) -> list[job_service_pb2.WatchJobResponse]:
    return [
        job_service_pb2.WatchJobResponse(
            event=event_pb2.Event(event_number=number, job_snapshot=event_pb2.JobSnapshot())
        )
        for number in numbers
    ]


def breaking_watch(request: Any, context: grpc.ServicerContext) -> Iterator[job_service_pb2.WatchJobResponse]:
    """Breaks after 5, is too old once, and ends after 9."""
    if not request.HasField("resume_after"):
        yield from snapshots(5 if not getattr(breaking_watch, "aged", False) else 8)
        if not getattr(breaking_watch, "aged", False):
            refuse(context, code_pb2.UNAVAILABLE, "STOPPING")
        yield from snapshots(9)
    else:
        assert request.resume_after == 5
        breaking_watch.aged = True  # type: ignore[attr-defined]
        refuse(context, code_pb2.OUT_OF_RANGE, "RESUME_TOO_OLD")


def test_a_broken_watch_resumes_and_begins_anew_when_it_is_too_old(script: Script, client: Client) -> None:
    breaking_watch.aged = False  # type: ignore[attr-defined]
    script.on["WatchJob"] = breaking_watch
    assert [event.event_number for event in client.watch_job("x")] == [5, 8, 9]
    assert [r.HasField("resume_after") for r in script.requests("WatchJob")] == [False, True, False]


def test_a_watch_that_was_too_slow_resumes(script: Script, client: Client) -> None:
    def watch(request: Any, context: grpc.ServicerContext) -> Iterator[job_service_pb2.WatchJobResponse]:
        yield from snapshots(request.resume_after + 1)
        if request.resume_after < 2:
            refuse(context, code_pb2.RESOURCE_EXHAUSTED, "WATCH_TOO_SLOW")

    script.on["WatchJob"] = watch
    assert [event.event_number for event in client.watch_job("x", after=0)] == [1, 2, 3]
    assert [r.resume_after for r in script.requests("WatchJob")] == [0, 1, 2]


def test_a_watch_is_not_tried_again_for_other_failures(script: Script, client: Client) -> None:
    script.on["WatchJob"] = lambda _, context: refuse(context, code_pb2.RESOURCE_EXHAUSTED, "QUOTA_WATCHES")
    with pytest.raises(ExhaustedError):
        next(client.watch_job("x"))
    assert len(script.calls) == 1


def test_the_asyncio_client_retries_pages_watches_and_reads_results_alike(script: Script, target: str) -> None:
    breaking_watch.aged = False  # type: ignore[attr-defined]
    data = result_pb2.JobResult(pubs=[result_pb2.PubResult()]).SerializeToString()
    script.on["CancelJob"] = failing(
        2, lambda r, _: job_service_pb2.CancelJobResponse(job=job_pb2.Job(job_id=r.job_id))
    )
    script.on["WatchJob"] = breaking_watch
    script.on["ListDevices"] = lambda *_: device_service_pb2.ListDevicesResponse(devices=[device_pb2.Device(name="a")])
    script.on["StreamJobResult"] = lambda *_: iter([job_service_pb2.StreamJobResultResponse(data=data)])
    script.on["GetJob"] = lambda _, context: refuse(context, code_pb2.NOT_FOUND, "UNKNOWN_JOB")
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async def use() -> None:
        async with AsyncClient(target, user="ada", retry=Retry(random=lambda: 1.0), sleep=sleep) as client:
            assert (await client.cancel_job("x")).job_id == "x"
            assert [event.event_number async for event in client.watch_job("x")] == [5, 8, 9]
            assert [device.name for device in await client.list_devices()] == ["a"]
            assert len((await client.get_job_result("x")).pubs) == 1
            with pytest.raises(NotFoundError):
                await client.get_job("x")
        with pytest.raises(CadenzaError, match="closed"):
            await client.get_job("x")

    asyncio.run(use())
    assert len({request.request_id for request in script.requests("CancelJob")}) == 1
    assert slept == [0.05, 0.1, 0.05]


# --- sessions and jobs ------------------------------------------------------------------------------------------------


def bell() -> QuantumCircuit:
    circuit = QuantumCircuit(2, name="bell")
    circuit.h(0)
    circuit.cx(0, 1)
    circuit.measure_all()
    return circuit


def counts_result(ones: int = 3) -> result_pb2.JobResult:
    samples = np.array([[3]] * ones + [[0]], dtype=np.uint8)
    field = result_pb2.DataField(name="meas", bits=bit_array_to_message(samples, 2))
    return result_pb2.JobResult(pubs=[result_pb2.PubResult(fields=[field])])


class Desk:
    """One device and one session, kept by hand: `submit` is called with each job that comes."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.events: list[event_pb2.Event] = []
        self.news = threading.Condition()
        self.jobs: dict[str, job_pb2.Job] = {}
        self.broken = 0
        self.closing: str | None = None
        self.submit: Callable[[job_pb2.Job], None] = lambda job: self.end(job, counts_result())
        script.on.update(
            GetServerInfo=lambda *_: server_service_pb2.GetServerInfoResponse(
                server=server_service_pb2.ServerInfo(qpy_version_min=13, qpy_version_max=18),
                caller=server_service_pb2.Caller(user="lab/ada"),
            ),
            GetDevice=self.get_device,
            CreateSession=lambda r, _: session_service_pb2.CreateSessionResponse(
                session=session_pb2.Session(session_id="s1", device=r.device, mode=r.mode)
            ),
            GetSession=lambda r, _: session_service_pb2.GetSessionResponse(session=self.session()),
            CloseSession=lambda *_: session_service_pb2.CloseSessionResponse(),
            CancelSession=lambda *_: session_service_pb2.CancelSessionResponse(),
            WatchSession=self.watch_session,
            WatchJob=self.watch_job,
            SubmitJob=self.take,
            GetJob=lambda r, _: job_service_pb2.GetJobResponse(job=self.jobs[r.job_id]),
            StreamJobResult=lambda *_: iter(
                [job_service_pb2.StreamJobResultResponse(data=counts_result().SerializeToString())]
            ),
        )

    def session(self) -> session_pb2.Session:
        return session_pb2.Session(session_id="s1", device="aer", mode=session_pb2.SESSION_MODE_BATCH)

    def get_device(self, request: Any, context: grpc.ServicerContext) -> device_service_pb2.GetDeviceResponse:
        if request.name not in ("aer", "other"):
            refuse(context, code_pb2.NOT_FOUND, "UNKNOWN_DEVICE")
        device = device_pb2.Device(name=request.name, num_qubits=4, basis_gates=["h", "cx"])
        return device_service_pb2.GetDeviceResponse(device=device)

    def take(self, request: Any, _context: grpc.ServicerContext) -> job_service_pb2.SubmitJobResponse:
        job = job_pb2.Job(
            job_id=f"job-{len(self.jobs)}",
            session_id=request.job.session_id,
            device="aer",
            state=job_pb2.JOB_STATE_QUEUED,
            program_kind=program_pb2.PROGRAM_KIND_SAMPLER,
        )
        self.jobs[job.job_id] = job
        answer = job_service_pb2.SubmitJobResponse(job=job)
        self.tell(job_accepted=event_pb2.JobAccepted(job=job))
        self.submit(job)
        return answer

    def tell(self, **change: Any) -> None:
        with self.news:
            self.events.append(event_pb2.Event(event_number=len(self.events) + 1, **change))
            self.news.notify_all()

    def end(self, job: job_pb2.Job, result: result_pb2.JobResult | None = None, **how: Any) -> None:
        ended = job_pb2.Job()
        ended.CopyFrom(job)
        ended.state = how.pop("state", job_pb2.JOB_STATE_SUCCEEDED)
        for name, value in how.items():
            setattr(ended, name, value)
        self.jobs[job.job_id] = ended
        self.tell(job_ended=event_pb2.JobEnded(job=ended, result=result))

    def watch_session(
        self, request: Any, context: grpc.ServicerContext
    ) -> Iterator[session_service_pb2.WatchSessionResponse]:
        if request.HasField("resume_after"):
            seen = request.resume_after
        else:
            seen = len(self.events)
            yield session_service_pb2.WatchSessionResponse(
                event=event_pb2.Event(event_number=seen, session_snapshot=event_pb2.SessionSnapshot())
            )
        for event in self.follow(seen, context):
            yield session_service_pb2.WatchSessionResponse(event=event)

    def watch_job(self, request: Any, context: grpc.ServicerContext) -> Iterator[job_service_pb2.WatchJobResponse]:
        job = self.jobs[request.job_id]
        shot = event_pb2.JobSnapshot(job=job)
        yield job_service_pb2.WatchJobResponse(event=event_pb2.Event(event_number=len(self.events), job_snapshot=shot))
        if job.state in (job_pb2.JOB_STATE_QUEUED, job_pb2.JOB_STATE_RUNNING):
            for event in self.follow(len(self.events), context):
                if event.job_ended.job.job_id == request.job_id:
                    yield job_service_pb2.WatchJobResponse(event=event)
                    return

    def follow(self, seen: int, context: grpc.ServicerContext) -> Iterator[event_pb2.Event]:
        context.add_callback(self.wake)
        while context.is_active():
            with self.news:
                while len(self.events) == seen and context.is_active() and not self.broken:
                    self.news.wait(PATIENCE_S)
                fresh = self.events[seen:]
                broken = self.broken
                self.broken = max(0, self.broken - 1)
            if broken:
                refuse(context, code_pb2.UNAVAILABLE, "STOPPING")
            yield from fresh
            seen += len(fresh)

    def wake(self) -> None:
        with self.news:
            self.news.notify_all()

    def break_watches(self, times: int = 1) -> None:
        with self.news:
            self.broken = times
            self.news.notify_all()


@pytest.fixture
def desk(script: Script) -> Desk:
    return Desk(script)


@pytest.fixture
def service(desk: Desk, target: str) -> Iterator[CadenzaService]:
    retry = Retry(attempts=4, first_s=0.001, random=lambda: 1.0)
    with CadenzaService(client=Client(target, user="lab/ada", retry=retry)) as made:
        yield made
    desk.wake()


@pytest.fixture
def session(service: CadenzaService) -> Session:
    return Session(service.backend("aer"), max_time="2h 30m", interactive_ttl=5)


def test_a_session_follows_all_its_jobs_over_one_watch(script: Script, session: Session) -> None:
    sampler = SamplerV2(mode=session)
    for _ in range(5):
        assert sampler.run([bell()]).result(PATIENCE_S)[0].data.meas.get_counts() == {"11": 3, "00": 1}
    names = [name for name, _ in script.calls]
    assert names.count("WatchSession") == 1
    assert names.count("SubmitJob") == 5
    assert {"WatchJob", "GetJob", "GetJobResult", "StreamJobResult"}.isdisjoint(names)
    (created,) = script.requests("CreateSession")
    assert (created.max_time.seconds, created.interactive_ttl.seconds) == (9000, 5)
    assert script.requests("WatchSession")[0].include_results


def test_a_circuit_goes_to_a_session_once_and_whole_again_when_it_is_unknown(
    script: Script, desk: Desk, session: Session
) -> None:
    circuit = bell()
    sampler = SamplerV2(mode=session, options={"environment": {"job_tags": ["a"]}, "priority": 3})
    sampler.run([circuit, circuit]).result(PATIENCE_S)
    sampler.run([circuit]).result(PATIENCE_S)
    script.on["SubmitJob"] = failing(1, desk.take, code_pb2.NOT_FOUND, "UNKNOWN_CIRCUIT")
    sampler.run([circuit]).result(PATIENCE_S)
    sent = script.requests("SubmitJob")
    kinds = [[pub.circuit.WhichOneof("source") for pub in r.job.program.sampler.pubs] for r in sent]
    assert kinds == [["qpy", "digest"], ["digest"], ["digest"], ["qpy"]]
    assert len({request.request_id for request in sent}) == 4
    assert (list(sent[0].job.tags), sent[0].job.priority, sent[0].job.session_id) == (["a"], 3, "s1")


# --- the stream of submissions ----------------------------------------------------------------------------------------


def streaming(
    desk: Desk, alter: Callable[[int, job_service_pb2.SubmitJobStreamResponse], object] = lambda *_: None
) -> Handler:
    """Answers as `SubmitJob` does; `alter` sees each answer with its number in all streams, and what it raises ends
    the stream."""
    count = iter(range(1_000))

    def answer(requests: Any, context: grpc.ServicerContext) -> Iterator[job_service_pb2.SubmitJobStreamResponse]:
        for request in requests:
            made = job_service_pb2.SubmitJobStreamResponse(request_id=request.request_id)
            made.job.CopyFrom(desk.take(request, context).job)
            alter(next(count), made)
            yield made

    return answer


def test_jobs_after_the_first_go_over_one_stream(script: Script, desk: Desk, session: Session) -> None:
    script.on["SubmitJobStream"] = streaming(desk)
    sampler = SamplerV2(mode=session)
    ids = [sampler.run([bell()]).job_id() for _ in range(4)]
    assert ids == ["job-0", "job-1", "job-2", "job-3"]
    names = [name for name, _ in script.calls]
    assert (names.count("SubmitJob"), names.count("SubmitJobStream")) == (1, 1)


def test_a_server_without_the_stream_is_asked_for_it_once(script: Script, session: Session) -> None:
    sampler = SamplerV2(mode=session)
    for _ in range(4):
        assert sampler.run([bell()]).result(PATIENCE_S)
    names = [name for name, _ in script.calls]
    assert (names.count("SubmitJob"), names.count("SubmitJobStream")) == (4, 1)


def test_an_answer_that_did_not_come_is_asked_for_again_with_the_same_request_id(
    script: Script, desk: Desk, session: Session
) -> None:
    seen: list[str] = []

    def lose(number: int, answer: job_service_pb2.SubmitJobStreamResponse) -> None:
        seen.append(answer.request_id)
        if number == 1:
            raise RuntimeError("the connection is lost after the job was taken")

    stream = streaming(desk, lose)

    def answer(requests: Any, context: grpc.ServicerContext) -> Any:
        try:
            yield from stream(requests, context)
        except RuntimeError:
            context.abort(grpc.StatusCode.CANCELLED, "the server stops")

    script.on["SubmitJobStream"] = answer
    sampler = SamplerV2(mode=session)
    for _ in range(4):
        sampler.run([bell()]).result(PATIENCE_S)
    again = script.requests("SubmitJob")[1]
    assert again.request_id == seen[1]
    assert [name for name, _ in script.calls].count("SubmitJobStream") == 2


def test_jobs_whose_ends_come_with_their_answers_need_no_watch_and_a_longer_one_is_watched_again(
    script: Script, desk: Desk, session: Session
) -> None:
    def end_at_once(number: int, answer: job_service_pb2.SubmitJobStreamResponse) -> None:
        if number < 2 * ENDED_AT_ONCE_MAX:
            ended = event_pb2.JobEnded(job=desk.jobs[answer.job.job_id], result=counts_result())
            answer.ended.CopyFrom(ended)

    script.on["SubmitJobStream"] = streaming(desk, end_at_once)
    sampler = SamplerV2(mode=session)
    for _ in range(1 + 2 * ENDED_AT_ONCE_MAX):  # the first is a call
        job = sampler.run([bell()])
        assert job.result(PATIENCE_S)[0].data.meas.get_counts() == {"11": 3, "00": 1}
    assert job.status() == "DONE"
    names = [name for name, _ in script.calls]
    assert (names.count("WatchSession"), names.count("SubmitJob"), names.count("GetJob")) == (1, 1, 0)
    assert session._follower._watch is None
    queued: list[job_pb2.Job] = []
    desk.submit = queued.append
    long = sampler.run([bell()])
    assert long.status() == "QUEUED"
    desk.end(queued[0], counts_result())
    assert long.result(PATIENCE_S)[0].data.meas.get_counts() == {"11": 3, "00": 1}
    assert [name for name, _ in script.calls].count("WatchSession") == 2


def test_a_refusal_in_the_stream_is_the_same_exception_as_that_of_a_call(
    script: Script, desk: Desk, session: Session
) -> None:
    status = status_pb2.Status(code=code_pb2.RESOURCE_EXHAUSTED, message="too many jobs")
    status.details.add().Pack(error_details_pb2.ErrorInfo(domain="cadenza", reason="QUOTA_USER_JOBS"))

    def turn(number: int, answer: job_service_pb2.SubmitJobStreamResponse) -> None:
        if number == 0:
            answer.refusal.MergeFromString(status.SerializeToString())

    script.on["SubmitJobStream"] = streaming(desk, turn)
    sampler = SamplerV2(mode=session)
    sampler.run([bell()])
    with pytest.raises(ExhaustedError, match="too many jobs") as caught:
        sampler.run([bell()])
    assert caught.value.reason == "QUOTA_USER_JOBS"
    assert sampler.run([bell()]).job_id()
    names = [name for name, _ in script.calls]
    assert (names.count("SubmitJob"), names.count("SubmitJobStream")) == (1, 1)


def test_what_the_stream_cannot_take_now_is_tried_again_by_calls(script: Script, desk: Desk, session: Session) -> None:
    status = status_pb2.Status(code=code_pb2.UNAVAILABLE, message="the disk")
    status.details.add().Pack(error_details_pb2.ErrorInfo(domain="cadenza", reason="STORE_UNAVAILABLE"))
    script.on["SubmitJobStream"] = streaming(
        desk,
        lambda _, answer: answer.refusal.MergeFrom(
            job_service_pb2.SubmitJobStreamResponse().refusal.FromString(status.SerializeToString())
        ),
    )
    script.on["SubmitJob"] = failing(2, desk.take)
    sampler = SamplerV2(mode=session)
    assert sampler.run([bell()]).result(PATIENCE_S)
    assert sampler.run([bell()]).result(PATIENCE_S)


def test_a_stream_that_does_not_answer_in_time_is_a_timeout(script: Script, desk: Desk, target: str) -> None:
    ended = threading.Event()

    def never(_requests: Any, context: grpc.ServicerContext) -> Iterator[job_service_pb2.SubmitJobStreamResponse]:
        context.add_callback(ended.set)
        ended.wait(PATIENCE_S)
        yield from ()

    script.on["SubmitJobStream"] = never
    with Client(target, user="ada", timeout_s=0.2) as client:
        program = cadenza.sampler_program("OPENQASM 3; qubit q; bit c; c = measure q;")
        assert client.submit_job(program, device="aer").job_id
        with pytest.raises(CadenzaTimeoutError):
            client.submit_job(program, device="aer")
        assert ended.wait(PATIENCE_S)


def test_several_threads_submit_at_once(script: Script, desk: Desk, target: str) -> None:
    script.on["SubmitJobStream"] = streaming(desk)
    program = cadenza.sampler_program("OPENQASM 3; qubit q; bit c; c = measure q;")
    with Client(target, user="ada") as client, ThreadPoolExecutor(4) as threads:
        jobs = list(threads.map(lambda _: client.submit_job(program, device="aer").job_id, range(40)))
    assert len(jobs) == 40
    names = [name for name, _ in script.calls]
    assert names.count("SubmitJobStream") <= 1


def test_an_unknown_circuit_that_was_sent_whole_is_told(script: Script, session: Session) -> None:
    script.on["SubmitJob"] = lambda _, context: refuse(context, code_pb2.NOT_FOUND, "UNKNOWN_CIRCUIT")
    with pytest.raises(NotFoundError):
        SamplerV2(mode=session).run([bell()])
    assert len(script.requests("SubmitJob")) == 1


def test_a_broken_watch_of_a_session_resumes_and_loses_nothing(script: Script, desk: Desk, session: Session) -> None:
    desk.submit = lambda job: None
    job = SamplerV2(mode=session).run([bell()])
    desk.break_watches()
    desk.end(desk.jobs[job.job_id()], counts_result())
    assert job.result(PATIENCE_S)[0].data.meas.num_shots == 4
    first, second = script.requests("WatchSession")
    assert not first.HasField("resume_after")
    assert second.resume_after >= 0
    assert "WatchJob" not in [name for name, _ in script.calls]


def test_when_the_watch_is_lost_for_good_the_job_is_watched_by_itself(
    script: Script, desk: Desk, session: Session
) -> None:
    desk.submit = lambda job: None
    job = SamplerV2(mode=session).run([bell()])
    lost = threading.Event()

    def refuse_watch(_request: Any, context: grpc.ServicerContext) -> None:
        if len(script.requests("WatchSession")) == 4:
            lost.set()
        refuse(context, code_pb2.UNAVAILABLE, "STOPPING")

    script.on["WatchSession"] = refuse_watch
    desk.break_watches()
    assert lost.wait(PATIENCE_S)
    desk.end(desk.jobs[job.job_id()], None)
    script.on["StreamJobResult"] = lambda *_: iter(
        [job_service_pb2.StreamJobResultResponse(data=counts_result(1).SerializeToString())]
    )
    assert job.result(PATIENCE_S)[0].data.meas.num_shots == 2
    assert job.status() == "DONE"


def test_a_session_that_cannot_be_watched_refuses_to_submit(script: Script, session: Session) -> None:
    script.on["WatchSession"] = lambda _, context: refuse(context, code_pb2.RESOURCE_EXHAUSTED, "QUOTA_WATCHES")
    with pytest.raises(ExhaustedError):
        SamplerV2(mode=session).run([bell()])
    assert not script.requests("SubmitJob")


def test_jobs_that_end_together_end_only_if_they_were_queued(desk: Desk, session: Session) -> None:
    desk.submit = lambda job: None
    sampler = SamplerV2(mode=session)
    running, queued = sampler.run([bell()]), sampler.run([bell()])
    desk.tell(job_started=event_pb2.JobStarted(run=job_pb2.Run(job_id=running.job_id(), attempt=1)))
    desk.tell(
        session_jobs_ended=event_pb2.SessionJobsEnded(
            state=job_pb2.JOB_STATE_FAILED, reason=job_pb2.JOB_REASON_SESSION_CLOSED, detail="closed by ada"
        )
    )
    with pytest.raises(JobFailedError, match="closed by ada") as caught:
        queued.result(PATIENCE_S)
    assert (caught.value.reason, caught.value.job_id) == ("SESSION_CLOSED", queued.job_id())
    assert (queued.status(), running.status()) == ("ERROR", "RUNNING")
    assert queued.error_message() == "SESSION_CLOSED: closed by ada"
    desk.end(desk.jobs[running.job_id()], counts_result())
    assert running.result(PATIENCE_S)
    assert running.error_message() is None


@pytest.mark.parametrize(
    ("state", "reason", "status", "kind"),
    [
        ("FAILED", "EXECUTION_ERROR", "ERROR", JobFailedError),
        ("CANCELLED", "CANCELLED_BY_USER", "CANCELLED", JobCancelledError),
        ("CANCELLED", "RAN_TOO_LONG", "ERROR", JobFailedError),
    ],
)
def test_a_job_without_a_result_raises_its_reason(
    desk: Desk, session: Session, state: str, reason: str, status: str, kind: type[Exception]
) -> None:
    desk.submit = lambda job: desk.end(
        job,
        state=job_pb2.JobState.Value(f"JOB_STATE_{state}"),
        reason=job_pb2.JobReason.Value(f"JOB_REASON_{reason}"),
        detail="why",
    )
    job = SamplerV2(mode=session).run([bell()])
    job.wait_for_final_state(PATIENCE_S)
    with pytest.raises(kind, match=f"why.*{reason}"):
        job.result()
    assert job.status() == status
    assert job.in_final_state()
    assert (job.done(), job.errored(), job.cancelled()) == (False, status == "ERROR", status == "CANCELLED")


def test_a_wait_that_takes_too_long_raises_and_can_be_repeated(desk: Desk, session: Session) -> None:
    desk.submit = lambda job: None
    job = SamplerV2(mode=session).run([bell()])
    alone = Job.unfollowed(session.service, desk.jobs[job.job_id()])
    for handle in (job, alone):
        with pytest.raises(CadenzaTimeoutError, match="goes on"):
            handle.result(timeout=0.05)
        assert handle.status() == "QUEUED"
    desk.end(desk.jobs[job.job_id()], counts_result())
    for handle in (job, alone):
        assert handle.result(PATIENCE_S)[0].data.meas.num_shots == 4


def test_ctrl_c_interrupts_a_wait(desk: Desk, session: Session) -> None:
    desk.submit = lambda job: None
    job = SamplerV2(mode=session).run([bell()])
    alone = Job.unfollowed(session.service, desk.jobs[job.job_id()])
    for handle in (job, alone):
        interrupt = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012  (the signal may come before the wait)
            interrupt.start()
            handle.result(PATIENCE_S)
        interrupt.join()


def test_a_job_on_its_own_is_watched_once_somebody_waits(script: Script, desk: Desk, service: CadenzaService) -> None:
    job = SamplerV2(mode=service.backend("aer")).run([bell()], shots=4)
    assert "WatchJob" not in [name for name, _ in script.calls]
    desk.script.on["StreamJobResult"] = lambda *_: iter(
        [job_service_pb2.StreamJobResultResponse(data=counts_result(9).SerializeToString())]
    )
    assert job.result(PATIENCE_S)[0].data.meas.num_shots == 10
    sent = script.requests("SubmitJob")[0].job
    assert (sent.device, sent.session_id, sent.program.sampler.pubs[0].shots) == ("aer", "", 4)
    assert job.result() is job.result()


def test_the_end_of_a_with_block_drains_the_session(script: Script, service: CadenzaService) -> None:
    with Batch(service.backend("aer")) as batch:
        assert SamplerV2().mode is batch
        assert EstimatorV2().backend().name == "aer"
    assert script.requests("CloseSession")[0].pending == session_pb2.PENDING_TREATMENT_DRAIN
    assert script.requests("CreateSession")[0].mode == session_pb2.SESSION_MODE_BATCH
    batch.close(pending="fail")
    assert script.requests("CloseSession")[1].pending == session_pb2.PENDING_TREATMENT_FAIL_QUEUED
    with pytest.raises(InvalidRequestError, match="backend or session"):
        SamplerV2()


def test_an_error_in_a_with_block_is_not_hidden_by_a_session_that_cannot_be_closed(
    script: Script, service: CadenzaService, caplog: pytest.LogCaptureFixture
) -> None:
    script.on["CloseSession"] = lambda _, context: refuse(context, code_pb2.NOT_FOUND, "UNKNOWN_SESSION")
    with pytest.raises(ZeroDivisionError), Session(service.backend("aer")):
        raise ZeroDivisionError
    assert "could not be closed" in caplog.text
    with pytest.raises(NotFoundError), Session(service.backend("aer")):
        pass


def test_a_backend_inside_a_session_means_the_session_and_another_is_refused(
    service: CadenzaService, caplog: pytest.LogCaptureFixture
) -> None:
    with Session(service.backend("aer")) as session:
        assert SamplerV2(mode=service.backend("aer")).mode is session
        assert "run inside session s1" in caplog.text
        with pytest.raises(InvalidRequestError, match="other is not the one"):
            SamplerV2(mode=service.backend("other"))
        with Session(service.backend("other")) as inner:
            assert SamplerV2().mode is inner
        assert SamplerV2().mode is session


def test_what_is_no_mode_no_backend_and_no_pub_is_refused_before_anything_is_sent(
    script: Script, service: CadenzaService
) -> None:
    for wrong in ("aer", 3):
        with pytest.raises(InvalidRequestError, match="mode must be"):
            SamplerV2(mode=wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError, match=r"service\.backend"):
        Session("aer")  # type: ignore[arg-type]
    sampler = SamplerV2(mode=service.backend("aer"))
    with pytest.raises(InvalidRequestError, match="at least one"):
        sampler.run([])
    with pytest.raises(InvalidRequestError, match="measure_all"):
        sampler.run([QuantumCircuit(1)])
    with pytest.raises(ValueError, match="positive"):
        sampler.run([bell()], shots=0)
    assert not script.requests("SubmitJob")


def test_a_session_is_attached_to_by_id_in_its_own_mode(service: CadenzaService) -> None:
    assert type(service.session("s1")) is Batch
    assert Batch.from_id("s1", service).session_id == "s1"
    with pytest.raises(InvalidRequestError, match=r"mode batch.*Batch\.from_id"):
        Session.from_id("s1", service)


def test_a_device_that_does_not_exist_is_also_qiskit_s_own_error(service: CadenzaService) -> None:
    with pytest.raises(QiskitBackendNotFoundError) as caught:
        service.backend("nope")
    assert isinstance(caught.value, NotFoundError)
    assert caught.value.reason == "UNKNOWN_DEVICE"


def test_the_least_busy_device_is_online_large_enough_and_has_the_fewest_jobs(
    script: Script, service: CadenzaService
) -> None:
    def device(name: str, qubits: int, queued: int, state: str = "FREE") -> device_pb2.Device:
        return device_pb2.Device(
            name=name,
            num_qubits=qubits,
            simulator=name != "qpu",
            state=device_pb2.DeviceState.Value(f"DEVICE_STATE_{state}"),
            queue_counts=device_pb2.QueueCounts(fair_share=queued),
        )

    devices = [device("off", 9, 0, "OFFLINE"), device("qpu", 9, 5), device("b", 9, 2), device("a", 3, 1)]
    script.on["ListDevices"] = lambda *_: device_service_pb2.ListDevicesResponse(devices=devices)
    assert service.least_busy().name == "a"
    assert service.least_busy(min_num_qubits=5).name == "b"
    assert service.least_busy(simulator=False).name == "qpu"
    assert service.least_busy(filters=lambda backend: backend.name != "a").name == "b"
    with pytest.raises(QiskitBackendNotFoundError) as caught:
        service.least_busy(min_num_qubits=10)
    there = "There are: off (9 qubits, offline), qpu (9 qubits), b (9 qubits), a (3 qubits)"
    assert f"No backend matches the criteria. {there} [UNKNOWN_DEVICE]" in str(caught.value)
    assert [backend.name for backend in service.backends(simulator=True)] == ["off", "b", "a"]
    del devices[1]
    with pytest.raises(QiskitBackendNotFoundError, match="no noisy one fits: leave out simulator=False"):
        service.least_busy(simulator=False)
    devices[1].noisy = True  # it stands in for a processor
    assert service.least_busy(simulator=False).name == "b"
    assert [backend.name for backend in service.backends(simulator=False)] == ["b"]
    with pytest.raises(QiskitBackendNotFoundError, match="no noisy one fits: leave out simulator=False"):
        service.least_busy(min_num_qubits=10, simulator=False)


@pytest.mark.parametrize("target", ["host:99999", "host:0", "[::1]:70000"])
def test_a_port_that_cannot_be_is_told_at_once(target: str) -> None:
    with pytest.raises(InvalidRequestError, match="a port from 1 to 65535"):
        Client(target, user="ann")


# --- arguments that no message can hold -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (lambda client: client.get_job("\ud800"), ValueError),
        (lambda client: client.get_job(7), TypeError),
        (lambda client: client.list_jobs(skip=2**70), ValueError),
        (lambda client: client.list_jobs(created_from="yesterday"), ValueError),
        (lambda client: client.create_session("aer", max_time=[]), TypeError),
        (lambda client: client.update_job_priority("x", 1.5), TypeError),
        (lambda client: client.set_shares({"a": "many"}), TypeError),
        (lambda client: client.submit_job("not a program", device="aer"), TypeError),
        (lambda client: client.submit_job(cadenza.sampler_program(""), tags=["\udfff"]), ValueError),
        (lambda client: client.create_reservation("aer", "ada", float("nan"), 5.0), ValueError),
    ],
)
def test_an_argument_of_a_wrong_kind_is_the_library_s_own_error(
    script: Script, client: Client, call: Callable[[Any], object], kind: type[Exception]
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        call(client)
    assert isinstance(caught.value, kind)
    assert caught.value.code == "INVALID_ARGUMENT"
    assert not script.calls


def test_the_asyncio_client_has_the_same_errors_for_wrong_arguments(target: str) -> None:
    async def use() -> None:
        async with AsyncClient(target, user="ada") as client:
            with pytest.raises(InvalidRequestError):
                await client.get_job("\ud800")
            with pytest.raises(InvalidRequestError):
                async for _ in client.watch_job("\ud800"):
                    pass

    asyncio.run(use())


@pytest.mark.parametrize(
    "pubs",
    [
        [3],
        ["h q"],
        3,
        [(bell(), [1.0])],
        [(bell(), None, -1)],
        [(bell(), None, "many")],
        bell(),
        [None],
    ],
)
def test_what_is_no_pub_is_the_library_s_own_error(script: Script, session: Session, pubs: Any) -> None:
    with pytest.raises(InvalidRequestError):
        SamplerV2(mode=session).run(pubs)
    assert not script.requests("SubmitJob")


@pytest.mark.parametrize(
    "pubs",
    [[(bell(),)], [(bell(), "XYZ")], [(bell(), ["XX"], None, -0.5)], [(bell(), "ab")], [bell()]],
)
def test_what_is_no_estimator_pub_is_the_library_s_own_error(script: Script, session: Session, pubs: Any) -> None:
    with pytest.raises(InvalidRequestError):
        EstimatorV2(mode=session).run(pubs)
    assert not script.requests("SubmitJob")


# --- what programs for qiskit_ibm_runtime ask of a service ------------------------------------------------------------


def test_what_means_nothing_here_is_refused_unless_it_is_none(service: CadenzaService) -> None:
    assert service.backend("aer", None, use_fractional_gates=True).name == "aer"
    for wrong in (
        lambda: service.backend("aer", "crn:v1"),  # type: ignore[arg-type]
        lambda: service.backends(instance="crn:v1"),  # type: ignore[arg-type]
        lambda: service.least_busy(instance="crn:v1"),  # type: ignore[arg-type]
        lambda: service.jobs(instance="crn:v1"),  # type: ignore[arg-type]
        lambda: service.jobs(job_tags="bell"),  # type: ignore[arg-type]
        lambda: service.jobs(pending="yes"),  # type: ignore[arg-type]
    ):
        with pytest.raises(InvalidRequestError):
            wrong()


def test_a_backend_s_configuration_is_attributes_of_it_too(service: CadenzaService) -> None:
    backend = service.backend("aer")
    assert backend.n_qubits == backend.configuration().n_qubits == 4
    assert backend.configuration().dt == backend.dt
    assert backend.dynamic_circuits is False
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = backend.no_such_thing
    with pytest.raises(AttributeError):
        _ = backend._no_such_thing


def test_a_job_has_no_decoders_and_keeps_the_circuits_metadata(session: Session) -> None:
    circuit = bell()
    circuit.metadata = {"angle": 3}
    job = SamplerV2(mode=session).run([circuit])
    with pytest.raises(InvalidRequestError, match="decoder"):
        job.result(decoder=object())  # type: ignore[arg-type]
    assert job.result(PATIENCE_S, poll_interval=0.1)[0].metadata["circuit_metadata"] == {"angle": 3}


def test_inputs_are_the_pubs_as_they_were_submitted(script: Script, session: Session) -> None:
    angle = Parameter("angle")
    circuit = QuantumCircuit(1, 1)
    circuit.rx(angle, 0)
    circuit.measure(0, 0)
    sampler = SamplerV2(mode=session, options={"default_shots": 9, "simulator": {"seed_simulator": 5}})
    sampler.run([bell()]).result(PATIENCE_S)
    job = sampler.run([bell(), (circuit, {"angle": [0.5, 1.5]}, 7)])
    sent = {f"job-{index}": request.job.program for index, request in enumerate(script.requests("SubmitJob"))}
    script.on["GetJobPayload"] = lambda r, _: job_service_pb2.GetJobPayloadResponse(program=sent[r.job_id])
    script.on["ListJobs"] = lambda *_: job_service_pb2.ListJobsResponse(jobs=[job_pb2.Job(job_id="job-0")])
    inputs = job.inputs
    assert inputs["options"] == {"seed": 5}
    assert inputs["default_shots"] == 9
    (first, no_values, no_shots), (second, values, shots) = inputs["pubs"]
    assert (first, second) == (bell(), circuit)
    assert sent["job-1"].sampler.pubs[0].circuit.WhichOneof("source") == "digest"
    assert (no_shots, shots) == (None, 7)
    assert no_values is None or no_values.size == 0
    np.testing.assert_array_equal(values, [[0.5], [1.5]])
