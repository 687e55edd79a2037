"""Every call, unary or stream: who calls, is it small enough, does it parse, and what its errors become."""

import asyncio
import gc
import logging
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from cadenza.v1 import errors_pb2, server_service_pb2, server_service_pb2_grpc, session_service_pb2
from cadenza.v1.job_pb2 import Job
from cadenza.v1.job_service_pb2 import (
    StreamJobResultResponse,
    SubmitJobStreamRequest,
    SubmitJobStreamResponse,
    WatchJobRequest,
    WatchJobResponse,
)
from cadenza_server.api.callers import Callers, Gate, current_caller
from cadenza_server.api.errors import ErrorMapper, RefusalWithState, describe
from cadenza_server.api.jobs import encode_piece
from cadenza_server.config import Limits
from cadenza_server.engine import ResultPiece
from cadenza_server.model.errors import Code, Refusal
from cadenza_server.tokens import TokenBook, TokenEntry, hash_token
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, QuotaFailure, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

INFO = "/cadenza.v1.ServerService/GetServerInfo"
TALK = "/cadenza.v1.JobService/SubmitJobStream"
WATCH = "/cadenza.v1.JobService/WatchJob"
LIMIT = 1000


class Who(server_service_pb2_grpc.ServerServiceServicer):
    """Answers who calls; or raises what it is told to."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.calls = 0

    async def GetServerInfo(  # noqa: N802
        self, _request: Any, _context: Any
    ) -> server_service_pb2.GetServerInfoResponse:
        self.calls += 1
        if self.error is not None:
            raise self.error
        caller = current_caller()
        return server_service_pb2.GetServerInfoResponse(
            caller=server_service_pb2.Caller(user=caller.path, operator=caller.operator)
        )

    async def talk(self, requests: AsyncIterator[Any], _context: Any) -> AsyncIterator[SubmitJobStreamResponse]:
        async for request in requests:
            yield SubmitJobStreamResponse(request_id=request.request_id)
            if self.error is not None:
                raise self.error

    async def watch(self, _request: Any, _context: Any) -> AsyncIterator[WatchJobResponse]:
        answer = WatchJobResponse()
        answer.event.job_snapshot.job.user = current_caller().path
        yield answer
        if self.error is not None:
            raise self.error


@asynccontextmanager
async def serving(tokens: list[TokenEntry] | None = None) -> AsyncIterator[tuple[Who, grpc.aio.Channel]]:
    who = Who()
    callers, limits = Callers(TokenBook(tokens or []), ("rani",)), Limits(message_bytes_max=LIMIT)
    gate = Gate(callers, ErrorMapper(lambda: "ref-1"), limits)
    server = grpc.aio.server(interceptors=(gate,), options=(("grpc.max_receive_message_length", 2 * LIMIT),))
    server_service_pb2_grpc.add_ServerServiceServicer_to_server(who, server)
    watch = grpc.unary_stream_rpc_method_handler(
        who.watch, WatchJobRequest.FromString, WatchJobResponse.SerializeToString
    )
    talk = grpc.stream_stream_rpc_method_handler(
        who.talk, SubmitJobStreamRequest.FromString, SubmitJobStreamResponse.SerializeToString
    )
    methods: dict[str, Any] = {"WatchJob": watch, "SubmitJobStream": talk}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("cadenza.v1.JobService", methods),))
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield who, channel
    await server.stop(None)


async def ask(channel: grpc.aio.Channel, *metadata: tuple[str, str], data: bytes = b"") -> tuple[str, bool]:
    call = channel.unary_unary(INFO, lambda raw: raw, server_service_pb2.GetServerInfoResponse.FromString)
    answer = await call(data, metadata=metadata)
    return answer.caller.user, answer.caller.operator


async def refused(channel: grpc.aio.Channel, *metadata: tuple[str, str], data: bytes = b"") -> tuple[Any, Status]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(channel, *metadata, data=data)
    return caught.value.code(), read_status(caught.value)


def read_status(error: grpc.aio.AioRpcError) -> Status:
    details = dict(tuple(error.trailing_metadata() or ())).get("grpc-status-details-bin")
    assert isinstance(details, bytes)
    status = Status.FromString(details)
    assert status.code == error.code().value[0]
    assert status.message == error.details()
    return status


def find(status: Status, kind: Callable[[], Message]) -> Any:
    message = kind()
    for detail in status.details:
        if detail.Unpack(message):
            return message
    return None


def reason(status: Status) -> str:
    info = find(status, ErrorInfo)
    assert info.domain == "cadenza"
    assert f"ERROR_REASON_{info.reason}" in set(errors_pb2.ErrorReason.keys())
    return str(info.reason)


async def test_without_tokens_the_name_in_the_metadata_is_trusted() -> None:
    async with serving() as (_, channel):
        assert await ask(channel, ("cadenza-user", "lab/ann")) == ("lab/ann", False)
        assert await ask(channel, ("cadenza-user", "rani")) == ("rani", True)
        assert await ask(channel, ("cadenza-user", "lab/ann")) == ("lab/ann", False)


async def test_a_token_that_nobody_wants_is_told_to_be_left_out() -> None:
    async with serving() as (_, channel):
        with pytest.raises(grpc.aio.AioRpcError, match="leave it out") as caught:
            await ask(channel, ("authorization", "Bearer cdz_ann"))
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ([], "MISSING_TOKEN"),
        ([("cadenza-user", "")], "MISSING_TOKEN"),
        ([("cadenza-user", "a b")], "INVALID_TOKEN"),
        ([("cadenza-user", "a/")], "INVALID_TOKEN"),
        ([("cadenza-user", "ann"), ("cadenza-user", "rani")], "INVALID_TOKEN"),
    ],
)
async def test_a_call_that_does_not_say_who_calls_is_refused(metadata: list[tuple[str, str]], expected: str) -> None:
    async with serving() as (who, channel):
        code, status = await refused(channel, *metadata)
        assert code is grpc.StatusCode.UNAUTHENTICATED
        assert reason(status) == expected
        assert who.calls == 0


TOKENS = [
    TokenEntry(path="lab/ann", operator=False, hash=hash_token("cdz_ann")),
    TokenEntry(path="rani", operator=True, hash=hash_token("cdz_rani")),
    TokenEntry(path="olga", operator=False, hash=hash_token("cdz_olga")),
]


async def test_with_tokens_the_token_says_who_calls_and_the_name_nothing() -> None:
    async with serving(TOKENS) as (_, channel):
        assert await ask(channel, ("authorization", "Bearer cdz_ann")) == ("lab/ann", False)
        assert await ask(channel, ("authorization", "bearer cdz_rani"), ("cadenza-user", "x")) == ("rani", True)
    async with serving([TOKENS[0]]) as (_, channel):
        assert await ask(channel, ("authorization", "Bearer cdz_ann"), ("cadenza-user", "rani")) == ("lab/ann", False)


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ([], "MISSING_TOKEN"),
        ([("cadenza-user", "rani")], "MISSING_TOKEN"),
        ([("authorization", "Bearer ")], "MISSING_TOKEN"),
        ([("authorization", "cdz_ann")], "MISSING_TOKEN"),
        ([("authorization", "Bearer cdz_eve")], "INVALID_TOKEN"),
        ([("authorization", "Basic cdz_ann")], "INVALID_TOKEN"),
        ([("authorization", "Bearer " + TOKENS[0].hash)], "INVALID_TOKEN"),
        ([("authorization", "Bearer cdz_ann"), ("authorization", "Bearer cdz_rani")], "INVALID_TOKEN"),
    ],
)
async def test_no_token_or_a_wrong_one_is_refused(metadata: list[tuple[str, str]], expected: str) -> None:
    async with serving(TOKENS) as (who, channel):
        code, status = await refused(channel, *metadata)
        assert code is grpc.StatusCode.UNAUTHENTICATED
        assert reason(status) == expected
        assert who.calls == 0
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await anext(aiter(watch(channel, *metadata)))
        assert reason(read_status(caught.value)) == expected


def watch(channel: grpc.aio.Channel, *metadata: tuple[str, str]) -> Any:
    call = channel.unary_stream(WATCH, WatchJobRequest.SerializeToString, WatchJobResponse.FromString)
    return call(WatchJobRequest(), metadata=metadata)


async def test_streams_have_the_same_callers_and_errors() -> None:
    async with serving(TOKENS) as (who, channel):
        metadata = ("authorization", "Bearer cdz_ann")
        users = [answer.event.job_snapshot.job.user async for answer in watch(channel, metadata)]
        assert users == ["lab/ann"]
        who.error = Refusal(Code.RESOURCE_EXHAUSTED, "WATCH_TOO_SLOW", "read faster")
        stream = aiter(watch(channel, metadata))
        await anext(stream)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await anext(stream)
        assert reason(read_status(caught.value)) == "WATCH_TOO_SLOW"


async def end(channel: Any, kind: str, data: bytes) -> grpc.StatusCode:
    caller = (("cadenza-user", "ann"),)
    try:
        if kind == "unary":
            await channel.unary_unary(INFO)(data, metadata=caller)
        elif kind == "stream":
            async for _ in channel.unary_stream(WATCH)(data, metadata=caller):
                pass
        else:
            async for _ in channel.stream_stream(TALK)(iter([data]), metadata=caller):
                pass
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


@pytest.mark.parametrize("wrong", ["the request", "the answer"])
@pytest.mark.parametrize("kind", ["unary", "stream", "conversation"])
async def test_a_refused_call_leaves_nothing_for_the_garbage_collector(kind: str, wrong: str) -> None:
    data = b"\xff" if wrong == "the request" else b""
    async with serving() as (who, channel):
        who.error = Refusal(Code.NOT_FOUND, "JOB_NOT_FOUND", "no") if wrong == "the answer" else None
        gc.collect()
        gc.disable()
        try:
            for _ in range(5):
                assert await end(channel, kind, data) in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT)
            who.error = None
            async with asyncio.timeout(10):  # a call's end reaches the caller before the server is done with it
                while any(type(found).__name__ == "_ServicerContext" for found in gc.get_objects()):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        finally:
            gc.enable()


class _Request:
    """Megabytes, perhaps."""


async def test_an_error_that_was_explained_holds_no_request_any_more() -> None:
    held: list[weakref.ref[_Request]] = []

    async def fail(request: _Request) -> None:
        held.append(weakref.ref(request))
        try:
            raise Refusal(Code.NOT_FOUND, "UNKNOWN_JOB", "first")
        except Refusal as refusal:
            raise Refusal(Code.NOT_FOUND, "UNKNOWN_JOB", "moved") if len(held) > 1 else refusal from None

    async def call() -> None:
        task = asyncio.create_task(fail(_Request()))
        await asyncio.shield(task)  # whose error holds this frame, and so itself

    gc.collect()
    gc.disable()
    try:
        for _ in range(2):
            try:
                await call()
            except Exception as error:
                ErrorMapper(lambda: "reference").explain("method", error)
            await asyncio.sleep(0)
        assert [each() for each in held] == [None, None]
    finally:
        gc.enable()


async def test_health_needs_no_token() -> None:
    async with serving(TOKENS) as (_, channel):
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_method_that_is_not_there_is_unimplemented() -> None:
    async with serving() as (_, channel):
        call = channel.unary_unary("/cadenza.v1.ServerService/Nothing", lambda raw: raw, lambda raw: raw)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_message_over_the_limit_is_refused_with_the_limit() -> None:
    async with serving() as (who, channel):
        user = ("cadenza-user", "ann")
        big = b"\x0a\xe6\x07" + b"x" * 998  # an unknown field of 998 bytes: well formed, and 1001 bytes in all
        assert len(big) == LIMIT + 1
        code, status = await refused(channel, user, data=big)
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert reason(status) == "MESSAGE_TOO_LARGE"
        assert find(status, QuotaFailure).violations[0].subject == "message_bytes_max"
        assert "1001 bytes, this server takes 1000" in status.message
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(channel, user, data=b"x" * (2 * LIMIT + 1))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert who.calls == 0
        assert await ask(channel, user) == ("ann", False)


async def test_bytes_that_are_no_message_are_refused() -> None:
    async with serving() as (who, channel):
        code, status = await refused(channel, ("cadenza-user", "ann"), data=b"\xff\xff\xff")
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert reason(status) == "INVALID_FIELD"
        assert who.calls == 0


async def test_what_nobody_foresaw_is_internal_with_a_reference_and_the_server_lives(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving() as (who, channel):
        who.error = ZeroDivisionError("secret detail")
        with caplog.at_level(logging.ERROR):
            code, status = await refused(channel, ("cadenza-user", "ann"))
        assert code is grpc.StatusCode.INTERNAL
        assert reason(status) == "INTERNAL_ERROR"
        assert "ref-1" in status.message
        assert "secret" not in status.message
        assert any("ref-1" in record.getMessage() and record.exc_info for record in caplog.records)
        who.error = None
        assert await ask(channel, ("cadenza-user", "ann")) == ("ann", False)


async def test_a_refusal_becomes_its_code_its_reason_and_its_field() -> None:
    async with serving() as (who, channel):
        who.error = Refusal(Code.INVALID_ARGUMENT, "INVALID_FIELD", "bad", "jobs[3].device", {"device": "qpu"})
        code, status = await refused(channel, ("cadenza-user", "ann"))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert find(status, BadRequest).field_violations[0].field == "jobs[3].device"
        assert dict(find(status, ErrorInfo).metadata) == {"device": "qpu", "field": "jobs[3].device", "index": "3"}


@pytest.mark.parametrize("text", ["x" * 1_000_000, "\N{GRINNING FACE}" * 20_000])
async def test_a_refusal_that_repeats_a_long_value_still_arrives_whole(text: str) -> None:
    async with serving() as (who, channel):
        who.error = Refusal(Code.INVALID_ARGUMENT, "INVALID_FIELD", f"{text} is no id: say it", "job_id", {"id": text})
        code, status = await refused(channel, ("cadenza-user", "ann"))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert reason(status) == "INVALID_FIELD"
        assert status.message.startswith(text[:100])
        assert status.message.endswith("is no id: say it")
        assert find(status, ErrorInfo).metadata["field"] == "job_id"


async def test_a_state_that_no_header_holds_is_left_out() -> None:
    job = Job(tags=["\N{GRINNING FACE}" * 128] * 32)
    async with serving() as (who, channel):
        who.error = RefusalWithState(Refusal(Code.OUT_OF_RANGE, "RESUME_TOO_OLD", "x"), job)
        code, status = await refused(channel, ("cadenza-user", "ann"))
        assert (code, reason(status)) == (grpc.StatusCode.OUT_OF_RANGE, "RESUME_TOO_OLD")
        assert find(status, Job) is None


@pytest.mark.parametrize("code", Code)
def test_every_code_has_its_grpc_code(code: Code) -> None:
    assert describe(Refusal(code, "X", "y")).code == grpc.StatusCode[code.value].value[0]


def test_what_may_be_tried_again_says_when() -> None:
    assert find(describe(Refusal(Code.UNAVAILABLE, "STOPPING", "x")), RetryInfo).retry_delay.seconds > 0
    assert find(describe(Refusal(Code.NOT_FOUND, "UNKNOWN_JOB", "x")), RetryInfo) is None


def test_a_resume_token_that_is_too_old_comes_back_with_the_present_state() -> None:
    refusal = RefusalWithState(Refusal(Code.OUT_OF_RANGE, "RESUME_TOO_OLD", "x"), Job(job_id="job-1"))
    assert find(describe(refusal), Job).job_id == "job-1"
    assert find(describe(refusal), session_service_pb2.GetSessionResponse) is None


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16_383, 16_384, 1 << 20, (1 << 21) + 5])
@pytest.mark.parametrize("offset", [0, 1 << 20, 1 << 40])
def test_a_piece_of_a_result_is_the_message_that_the_contract_has(size: int, offset: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    piece = ResultPiece(offset, data[:size], offset + size)
    message = StreamJobResultResponse(offset=offset, data=data[:size], total_bytes=offset + size)
    assert StreamJobResultResponse.FromString(encode_piece(piece)) == message
