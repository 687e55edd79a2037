"""One connection to a server: who calls, how it is encrypted, what is tried again, how a broken watch goes on.

Nothing here knows what is called: the clients hand in a method of a generated stub and a request.
"""

import asyncio
import contextlib
import getpass
import os
import random
import re
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar, cast

import grpc
from grpc.experimental import ChannelOptions

from cadenza._errors import CadenzaError, InvalidRequestError, OutOfRangeError, UnavailableError, map_error
from cadenza.v1.event_pb2 import Event

Request = TypeVar("Request")
Response = TypeVar("Response")

TARGET_DEFAULT: Final = "127.0.0.1:50051"
TIMEOUT_DEFAULT: Final = 60.0
"""Seconds that a unary call may take."""

_FORBIDDEN: Final = re.compile(r"[^A-Za-z0-9._@-]")
_USER: Final = re.compile(r"[A-Za-z0-9._@-]{1,64}(/[A-Za-z0-9._@-]{1,64}){0,7}")
_TOKEN: Final = re.compile(r"[!-~]+")
_PORT: Final = re.compile(r":(\d+)$")
_OPTIONS: Final[list[tuple[str, Any]]] = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # Calls are tried again here, where the request id is known; gRPC shall not do it, too.
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]


@dataclass(frozen=True, kw_only=True)
class Tls:
    """How to encrypt. Files in PEM.

    `ca`: the certificate authority that signed the server's certificate; None: the system's own. `certificate`, `key`:
    this client's own, where the server asks for one. `server_name`: the name in the server's certificate, if it is not
    the target's.
    """

    ca: Path | str | None = None
    certificate: Path | str | None = None
    key: Path | str | None = None
    server_name: str | None = None

    @classmethod
    def from_environment(cls) -> "Tls | None":
        """What `CADENZA_TLS`, `..._CA`, `..._CERTIFICATE`, `..._KEY` and `..._SERVER_NAME` ask for; None: nothing."""
        given = {
            name: value
            for name in ("ca", "certificate", "key", "server_name")
            if (value := os.environ.get(f"CADENZA_TLS_{name.upper()}"))
        }
        wanted = os.environ.get("CADENZA_TLS", "").lower() in {"1", "true", "t", "yes", "y", "on"}
        return cls(**given) if given or wanted else None

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files. Raises `OSError` if one cannot be read."""
        ca, key, certificate = (Path(f).read_bytes() if f else None for f in (self.ca, self.key, self.certificate))
        return grpc.ssl_channel_credentials(ca, key, certificate)


@dataclass(frozen=True)
class Retry:
    """When a call that ended with UNAVAILABLE is tried again: after `first_s`, then twice as long each time.

    `random` gives numbers from 0 to 1 that spread the callers; each delay is between half of its length and all.
    """

    attempts: int = 7
    attempts_unconnected: int = 3
    """While no call has ever got through: most likely there is no server at all."""
    first_s: float = 0.05
    longest_s: float = 2.0
    random: Callable[[], float] = field(default_factory=lambda: random.Random().random)

    def delay(self, attempt: int, error: CadenzaError) -> float:
        """Seconds to wait after failed attempt number `attempt`, from 1; at least what the server asked for."""
        delay = min(self.longest_s, self.first_s * 2.0 ** (attempt - 1)) * (0.5 + self.random() / 2)
        return max(delay, min(error.retry_after_s or 0.0, self.longest_s))


def default_user() -> str:
    """The operating system's user name as a path of the share tree."""
    try:
        login = getpass.getuser()
    except (OSError, KeyError):
        login = "operator"
    return _FORBIDDEN.sub("_", login)[:64] or "operator"


@dataclass(frozen=True)
class Endpoint:
    """Where the server is and who calls."""

    target: str
    metadata: tuple[tuple[str, str], ...] = field(repr=False)
    user: str | None
    """Who the metadata says calls; None if a token says it."""
    tls: Tls | None

    @classmethod
    def make(
        cls, target: str | None, user: str | None, token: str | None, tls: Tls | bool | Path | str | None
    ) -> "Endpoint":
        """Fill in what is not given, by the variables that the command line reads, too: `CADENZA_TARGET`,
        `CADENZA_USER` (else the operating system's user name), `CADENZA_TOKEN`, `CADENZA_TLS...`.
        """
        target = target or os.environ.get("CADENZA_TARGET") or TARGET_DEFAULT
        if (port := _PORT.search(target)) and not 0 < int(port[1]) < 2**16:
            raise _refuse("target", f"{target!r} has no port that can be: HOST:PORT with a port from 1 to 65535")
        token = os.environ.get("CADENZA_TOKEN") if token is None else token
        if tls is None:
            tls = Tls.from_environment()
        elif isinstance(tls, (str, Path)):
            tls = Tls(ca=tls)
        elif isinstance(tls, bool):
            tls = Tls() if tls else None
        if token:
            if not _TOKEN.fullmatch(token):
                raise _refuse("token", "the token has characters that no token has: a line break or a blank, perhaps")
            return cls(target, (("authorization", f"Bearer {token}"),), None, tls)
        user = user or os.environ.get("CADENZA_USER") or default_user()
        if not _USER.fullmatch(user):
            raise _refuse(
                "user",
                f"{user!r} is no user: write 1 to 8 parts of letters, digits and `. _ @ -`, joined by `/`, "
                "such as lab/alice",
            )
        return cls(target, (("cadenza-user", user),), user, tls)

    def channel_options(self, *, single_threaded: bool) -> list[tuple[str, Any]]:
        """Options of the channel. `single_threaded`: streams are read on the thread that asks, without a hop."""
        options = list(_OPTIONS)
        if single_threaded:
            options.append((ChannelOptions.SingleThreadedUnaryStream, 1))
        if self.tls is not None and self.tls.server_name:
            options.append(("grpc.ssl_target_name_override", self.tls.server_name))
        return options


def _refuse(field: str, sentence: str) -> InvalidRequestError:
    return InvalidRequestError(sentence, code="INVALID_ARGUMENT", reason="INVALID_FIELD", field=field)


class EventMessage(Protocol):
    """A message of a watch."""

    @property
    def event(self) -> Event:
        """What happened."""


class _Connection:
    """What the blocking and the asyncio transport share: whether the server was ever there, and what is tried again."""

    def __init__(self, endpoint: Endpoint, retry: Retry, timeout_s: float | None) -> None:
        self.endpoint = endpoint
        self.retry = retry
        self._timeout_s = timeout_s
        self._connected = False
        self._closed = False

    def note_connected(self) -> None:
        """A message came: the server is there."""
        self._connected = True

    def may_retry(self, error: CadenzaError, attempt: int) -> bool:
        """Whether attempt number `attempt` (from 1) may be followed by another."""
        if self._closed or not isinstance(error, UnavailableError):
            return False
        if error.reason:
            self._connected = True
        return attempt < (self.retry.attempts if self._connected else self.retry.attempts_unconnected)

    def check_open(self) -> None:
        """Raise if the client was closed."""
        if self._closed:
            raise CadenzaError("this client was closed: make a new one", code="CANCELLED")


class Transport(_Connection):
    """Blocking calls over one channel. Safe to use from several threads."""

    def __init__(
        self, endpoint: Endpoint, retry: Retry, timeout_s: float | None, sleep: Callable[[float], None]
    ) -> None:
        super().__init__(endpoint, retry, timeout_s)
        options = endpoint.channel_options(single_threaded=True)
        self.channel = (
            grpc.insecure_channel(endpoint.target, options)
            if endpoint.tls is None
            else grpc.secure_channel(endpoint.target, endpoint.tls.credentials(), options)
        )
        self._sleep = sleep

    def call(self, method: Callable[..., Response], request: object) -> Response:
        """One unary call, tried again while the server is unavailable: the request must be safe to repeat."""
        self.check_open()
        attempt = 1
        while True:
            try:
                response = method(request, timeout=self._timeout_s, metadata=self.endpoint.metadata)
            except grpc.RpcError as raised:
                self.pause_or_raise(map_error(raised, self.endpoint.target), attempt)
                attempt += 1
            else:
                self._connected = True
                return response

    def stream(self, method: Callable[..., Any], request: object) -> Iterator[Any]:
        """The messages of one stream; raises `CadenzaError`."""
        stream = self.open(method, request, None)
        try:
            for message in stream:
                self._connected = True
                yield message
        except grpc.RpcError as raised:
            raise map_error(raised, self.endpoint.target) from None
        finally:
            stream.cancel()

    def pause_or_raise(self, error: CadenzaError, attempt: int) -> None:
        """Wait until a failed attempt may be followed by another, or raise its error."""
        if not self.may_retry(error, attempt):
            raise error from None
        self._sleep(self.retry.delay(attempt, error))

    def open(self, method: Callable[..., Any], request: object, timeout_s: float | None) -> Any:
        """Open a stream that the server sends."""
        self.check_open()
        return method(request, timeout=timeout_s, metadata=self.endpoint.metadata)

    def close(self) -> None:
        """Close the channel; what is under way ends."""
        self._closed = True
        self.channel.close()


class Watch(Iterator[Event]):
    """The changes of a job or a session, in order, each once, over as many connections as it takes.

    A broken stream goes on after the last event number seen. If the server no longer has what came after it, the watch
    begins again with a snapshot. Iteration ends when the server says that nothing more can come, or after `close`.
    """

    def __init__(
        self, transport: Transport, method: Callable[..., Any], request: Any, after: int | None, timeout_s: float | None
    ) -> None:
        self.last_event_number = after
        self._transport = transport
        self._method = method
        self._request = request
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._stream: Any = None
        self._closed = threading.Event()
        self._failures = 0

    def __next__(self) -> Event:
        while not self._closed.is_set():
            try:
                if self._stream is None:
                    self._stream = self._open()
                    if self._closed.is_set():
                        self._stream.cancel()
                event = cast(EventMessage, next(self._stream)).event
            except grpc.RpcError as raised:
                self._stream = None
                if self._closed.is_set():
                    break
                self._recover(map_error(raised, self._transport.endpoint.target))
            else:
                self._failures = 0
                self.last_event_number = event.event_number
                self._transport.note_connected()
                return event
        raise StopIteration

    def close(self) -> None:
        """End the watch, from any thread."""
        self._closed.set()
        stream = self._stream
        if stream is not None:
            stream.cancel()

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> Any:
        if self.last_event_number is None:
            self._request.ClearField("resume_after")
        else:
            self._request.resume_after = self.last_event_number
        timeout_s = None if self._deadline is None else max(self._deadline - time.monotonic(), 0.0)
        return self._transport.open(self._method, self._request, timeout_s)

    def _recover(self, error: CadenzaError) -> None:
        if isinstance(error, OutOfRangeError) and self.last_event_number is not None:
            self.last_event_number = None
            return
        self._failures += 1
        if error.reason == "WATCH_TOO_SLOW" and self._failures < self._transport.retry.attempts:
            return
        if not self._transport.may_retry(error, self._failures):
            raise error from None
        self._closed.wait(self._transport.retry.delay(self._failures, error))


class AsyncTransport(_Connection):
    """Calls over one asyncio channel, made when it is first used, in the loop that uses it."""

    def __init__(
        self,
        endpoint: Endpoint,
        retry: Retry,
        timeout_s: float | None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        super().__init__(endpoint, retry, timeout_s)
        self._sleep = sleep
        self._channel: grpc.aio.Channel | None = None

    @property
    def channel(self) -> grpc.aio.Channel:
        """The channel. Raises `CadenzaError` after `close`."""
        self.check_open()
        if self._channel is None:
            options = self.endpoint.channel_options(single_threaded=False)
            self._channel = (
                grpc.aio.insecure_channel(self.endpoint.target, options)
                if self.endpoint.tls is None
                else grpc.aio.secure_channel(self.endpoint.target, self.endpoint.tls.credentials(), options)
            )
        return self._channel

    async def call(self, method: Callable[..., Awaitable[Response]], request: object) -> Response:
        """One unary call, tried again while the server is unavailable: the request must be safe to repeat."""
        self.check_open()
        attempt = 1
        while True:
            try:
                response = await method(request, timeout=self._timeout_s, metadata=self.endpoint.metadata)
            except grpc.RpcError as raised:
                await self.pause_or_raise(map_error(raised, self.endpoint.target), attempt)
                attempt += 1
            else:
                self._connected = True
                return response

    async def pause_or_raise(self, error: CadenzaError, attempt: int) -> None:
        """Wait until a failed attempt may be followed by another, or raise its error."""
        if not self.may_retry(error, attempt):
            raise error from None
        await self._sleep(self.retry.delay(attempt, error))

    async def stream(self, method: Callable[..., Any], request: object) -> AsyncIterator[Any]:
        """The messages of one stream; raises `CadenzaError`."""
        self.check_open()
        stream = method(request, metadata=self.endpoint.metadata)
        try:
            async for message in stream:
                self._connected = True
                yield message
        except grpc.RpcError as raised:
            raise map_error(raised, self.endpoint.target) from None
        finally:
            stream.cancel()

    async def watch(self, method: Callable[..., Any], request: Any, after: int | None) -> AsyncIterator[Event]:
        """As `Watch`, for asyncio."""
        failures = 0
        while True:
            if after is None:
                request.ClearField("resume_after")
            else:
                request.resume_after = after
            try:
                async with contextlib.aclosing(cast(Any, self.stream(method, request))) as messages:
                    async for message in messages:
                        failures, after = 0, message.event.event_number
                        yield message.event
                return
            except OutOfRangeError:
                if after is None:
                    raise
                after = None
            except CadenzaError as error:
                failures += 1
                too_slow = error.reason == "WATCH_TOO_SLOW" and failures < self.retry.attempts
                if not too_slow:
                    await self.pause_or_raise(error, failures)

    async def close(self) -> None:
        """Close the channel; what is under way ends."""
        self._closed = True
        if self._channel is not None:
            await self._channel.close()
