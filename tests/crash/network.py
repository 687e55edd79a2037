"""What is between callers and servers: requests and answers that are late, lost, come twice and in another order.

A caller that has no answer in time knows nothing, and asks again with the same bytes. What is still under way when a
server dies may reach the next one. `Skin` is where requests arrive: production's services behind production's gate,
from the bytes of a request to the bytes of its answer; only gRPC's own transport is not there.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar, cast

import grpc
from cadenza.v1 import (
    job_service_pb2,
    job_service_pb2_grpc,
    reservation_service_pb2_grpc,
    session_service_pb2_grpc,
    share_service_pb2_grpc,
)
from cadenza_server.api.callers import USER_KEY, Callers, Gate
from cadenza_server.api.errors import ErrorMapper
from cadenza_server.api.jobs import JobServicer, JobSubmitter
from cadenza_server.api.programs import DeviceFacts, ProgramChecker
from cadenza_server.api.reservations import ReservationServicer
from cadenza_server.api.scope import Scope
from cadenza_server.api.sessions import SessionServicer
from cadenza_server.api.shares import ShareServicer
from cadenza_server.api.watching import WatchCounter
from cadenza_server.config import Limits
from cadenza_server.engine import Engine
from cadenza_server.model.errors import Code, Refusal
from cadenza_server.model.settings import HALF_LIFE_DEFAULT, DeviceSettings
from cadenza_server.tokens import TokenBook
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

T = TypeVar("T")
PATIENCE_SECONDS: Final = 3.0
"""How long a caller waits for an answer."""


class UnansweredError(Exception):
    """No answer came in time: the call took effect, or takes effect later, or never."""


@dataclass(frozen=True, slots=True)
class Request:
    """One call as it travels. `essence`: what of its answer never changes (of a thing's current state not all)."""

    user: str
    method: str
    request_id: str
    data: bytes
    essence: Callable[[bytes], object] = field(compare=False)


class _Errors(ErrorMapper):
    """What nobody foresaw is not answered here, but fails."""

    def explain(self, method: str, error: BaseException) -> Status:
        """See `ErrorMapper`."""
        if not isinstance(error, Refusal):
            raise error
        return super().explain(method, error)


class _Context:
    """What a service sees of its call's transport."""

    def __init__(self, user: str) -> None:
        self._user = user
        self.refusal: Refusal | None = None

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        """Who calls."""
        return ((USER_KEY, self._user),)

    def peer(self) -> str:
        """Its connection: one for each user."""
        return self._user

    async def abort(self, code: grpc.StatusCode, message: str, trailing: tuple[tuple[str, bytes], ...]) -> None:
        """End the call with an error."""
        ((_, data),) = trailing
        info = ErrorInfo()
        assert any(detail.Unpack(info) for detail in Status.FromString(data).details)
        self.refusal = Refusal(Code[code.name], info.reason, message)
        raise grpc.aio.AbortError


class Skin:
    """The services of one server, as bytes reach them."""

    def __init__(self, engine: Engine, devices: Mapping[str, DeviceSettings], operators: tuple[str, ...]) -> None:
        self.engine = engine
        limits = Limits()
        facts = {
            name: DeviceFacts(
                name=name,
                num_qubits=5,
                methods=(),
                noisy=False,
                default_shots=1,
                calibration_duration=settings.calibration_duration,
            )
            for name, settings in devices.items()
        }
        scope = Scope(engine, facts, devices, WatchCounter(limits))
        errors = _Errors(lambda: "none")
        self._gate = Gate(Callers(TokenBook(()), operators), errors, limits)
        self._handlers: dict[str, Any] = {}
        server = cast(grpc.aio.Server, self)
        jobs = JobServicer(scope, JobSubmitter(scope, ProgramChecker(limits)), limits, errors)
        job_service_pb2_grpc.add_JobServiceServicer_to_server(jobs, server)
        session_service_pb2_grpc.add_SessionServiceServicer_to_server(SessionServicer(scope), server)
        reservation_service_pb2_grpc.add_ReservationServiceServicer_to_server(ReservationServicer(scope), server)
        share_service_pb2_grpc.add_ShareServiceServicer_to_server(ShareServicer(scope, HALF_LIFE_DEFAULT), server)

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """As `grpc.Server` has it: the same are registered by name."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """As `grpc.Server` has it."""
        del service  # methods have other names in each
        self._handlers.update(handlers)

    async def answer(self, request: Request) -> bytes:
        """Raises `Refusal`."""

        async def find(_: object) -> Any:
            return self._handlers[request.method]

        details = cast(grpc.HandlerCallDetails, _Details(request.method))
        handler = await self._gate.intercept_service(find, details)
        context = _Context(request.user)
        try:
            answer: Message
            if handler.unary_unary is not None:
                answer = await handler.unary_unary(request.data, context)
            else:
                (answer,) = [message async for message in handler.unary_stream(request.data, context)]
        except grpc.aio.AbortError:
            assert context.refusal is not None
            raise context.refusal from None
        return cast(bytes, handler.response_serializer(answer))


@dataclass(frozen=True, slots=True)
class _Details:
    method: str


@dataclass(eq=False, slots=True)
class _Letter:
    """A request that is under way. `answer`: where its caller waits, if anybody does; `handling`: the server's part."""

    request: Request
    answer: "asyncio.Future[bytes] | None"
    handling: "asyncio.Task[None] | None" = None


class Network:
    """It outlives every server. `strikes`: whether a fault happens now."""

    def __init__(self, source: random.Random, strikes: Callable[[str], bool]) -> None:
        self._source = source
        self._strikes = strikes
        self._under_way: dict[_Letter, None] = {}
        self._skin: Skin | None = None
        self._answered: dict[tuple[str, str], object] = {}
        """What of each request's first answer never changes, whether anybody was told or not."""
        self.unanswered = 0
        self.strays = 0
        """Requests that arrived when the same one had been answered."""

    @property
    def skin(self) -> Skin:
        """Of the server that lives now."""
        assert self._skin is not None
        return self._skin

    def connect(self, skin: Skin) -> None:
        """A server is there: what was under way to the last one may reach it. Nobody waits for its answers any more."""
        self._skin = skin
        letters, self._under_way = self._under_way, {}
        for letter in letters:
            if self._source.random() < 0.5:
                self._send(_Letter(letter.request, None))

    async def call(self, request: Request) -> bytes:
        """The answer. Raises `Refusal` (as the server says it) and `UnansweredError`."""
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        letters = [_Letter(request, answer) for _ in range(2 if self._strikes("request comes twice") else 1)]
        for letter in letters:
            if not self._strikes("request is lost"):
                self._send(letter)
        try:
            return await asyncio.wait_for(answer, PATIENCE_SECONDS)
        except TimeoutError:
            self.unanswered += 1
            if self._source.random() < 0.5:  # the server is told that nobody waits any more
                for letter in letters:
                    if letter.handling is not None:
                        letter.handling.cancel()
            raise UnansweredError from None

    async def fetch(self, read: Callable[[], Awaitable[T]]) -> T:
        """What changes nothing: not told apart by a request_id. Raises `Refusal` and `UnansweredError`."""
        await asyncio.sleep(self._delay())
        if self._strikes("request is lost"):
            raise UnansweredError
        found = await read()
        await asyncio.sleep(self._delay())
        if self._strikes("answer is lost"):
            raise UnansweredError
        return found

    def _delay(self) -> float:
        return self._source.uniform(0, 8) if self._strikes("message is late") else self._source.uniform(0, 0.005)

    def _send(self, letter: _Letter) -> None:
        self._under_way[letter] = None
        asyncio.get_running_loop().call_later(self._delay(), self._arrive, letter)

    def _arrive(self, letter: _Letter) -> None:
        del self._under_way[letter]
        letter.handling = asyncio.get_running_loop().create_task(self._handle(letter))
        letter.handling.add_done_callback(_raise)

    async def _handle(self, letter: _Letter) -> None:
        request = letter.request
        key = (request.user, request.request_id)
        self.strays += key in self._answered
        try:
            data = await self.skin.answer(request)
        except Refusal as refusal:
            if key in self._answered and refusal.code is not Code.UNAVAILABLE:
                first = self._answered[key]
                raise AssertionError(f"{request.request_id} was answered with {first}, and is refused now") from refusal
            self._reply(letter, refusal)
            return
        found = request.essence(data)
        first = self._answered.setdefault(key, found)
        assert first == found, f"{request.request_id} was answered with {first}, and now with {found}"
        self._reply(letter, data)

    def _reply(self, letter: _Letter, found: bytes | Refusal) -> None:
        if letter.answer is not None and not self._strikes("answer is lost"):
            asyncio.get_running_loop().call_later(self._delay(), _tell, letter.answer, found)


def _tell(answer: "asyncio.Future[bytes]", found: bytes | Refusal) -> None:
    if answer.done():
        return  # another copy was answered before, or nobody waits
    if isinstance(found, Refusal):
        answer.set_exception(found)
    else:
        answer.set_result(found)


def _raise(task: "asyncio.Task[None]") -> None:
    """What is found wrong ends the seed: the loop keeps what a callback raises."""
    if not task.cancelled():
        task.result()


def other_content(request: Request) -> Request:
    """Another call under the same request_id."""
    other = job_service_pb2.CancelJobRequest(request_id=request.request_id, job_id="another")
    return Request(request.user, "CancelJob", request.request_id, other.SerializeToString(), bytes)
