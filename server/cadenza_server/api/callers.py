"""The one interceptor: every call, unary or stream, gets its principal, its request and its errors here.

The principal is what the call's metadata says: with tokens `authorization: Bearer TOKEN`, without `cadenza-user: PATH`,
which is trusted. Health checks and reflection need neither: they show nothing that the contract does not, and probes
and tools have no tokens.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any, Final, NoReturn, cast

import grpc
from google.protobuf.message import DecodeError, Message

from cadenza_server.api.delivery import PIECES_OF_AN_ANSWER, Deliveries, is_read, is_read_in_pieces
from cadenza_server.api.errors import ErrorMapper
from cadenza_server.config import Limits
from cadenza_server.engine import stopping
from cadenza_server.model.commands import Caller
from cadenza_server.model.errors import Code, Refusal
from cadenza_server.model.paths import check_path
from cadenza_server.tokens import TokenBook

USER_KEY: Final = "cadenza-user"
TOKEN_KEY: Final = "authorization"

_OPEN_SERVICES: Final = ("/grpc.health.", "/grpc.reflection.")
_NAMES_REMEMBERED_MAX: Final = 10_000

Context = grpc.aio.ServicerContext[Any, Any]

_caller: ContextVar[Caller] = ContextVar("cadenza_caller")


def current_caller() -> Caller:
    """Who makes the call that is being answered."""
    return _caller.get()


class Callers:
    """Finds out who calls. `tokens` empty: names are trusted, and `operators` are operators."""

    def __init__(self, tokens: TokenBook, operators: tuple[str, ...]) -> None:
        self._tokens = tokens
        self._operators = frozenset(operators)
        self._names: dict[str, Caller] = {}

    def identify(self, metadata: Any) -> Caller:
        """The principal of a call with this metadata. Raises `Refusal` UNAUTHENTICATED."""
        wanted = TOKEN_KEY if self._tokens else USER_KEY
        values = [value for key, value in metadata or () if key == wanted]
        if len(values) > 1:
            raise Refusal(
                Code.UNAUTHENTICATED, "INVALID_TOKEN", f"the metadata {wanted!r} is there twice: send it once"
            )
        value = values[0] if values else ""
        if isinstance(value, bytes):
            value = value.decode("latin-1")
        if not self._tokens and not value and any(key == TOKEN_KEY for key, _ in metadata or ()):
            raise Refusal(
                Code.UNAUTHENTICATED,
                "MISSING_TOKEN",
                "this server has no [[tokens]] and trusts names, so a token says nothing to it: leave it out "
                "(CADENZA_TOKEN, too) and send the metadata `cadenza-user: PATH`, such as `lab/alice`",
            )
        return self._by_token(value) if self._tokens else self._by_name(value)

    def _by_token(self, value: str) -> Caller:
        scheme, _, token = value.partition(" ")
        if not token.strip():
            raise Refusal(
                Code.UNAUTHENTICATED,
                "MISSING_TOKEN",
                "this server wants a token: set CADENZA_TOKEN, or send the metadata `authorization: Bearer TOKEN`; an "
                "operator makes one with `cadenza token`",
            )
        caller = self._tokens.find(token.strip()) if scheme.lower() == "bearer" else None
        if caller is None:
            raise Refusal(
                Code.UNAUTHENTICATED,
                "INVALID_TOKEN",
                "the token is not one that this server knows: check that it is whole, or ask an operator for a new one",
            )
        return caller

    def _by_name(self, value: str) -> Caller:
        known = self._names.get(value)
        if known is not None:
            return known
        if not value:
            raise Refusal(
                Code.UNAUTHENTICATED,
                "MISSING_TOKEN",
                "the call does not say who calls: send the metadata `cadenza-user: PATH`, such as `lab/alice`",
            )
        try:
            check_path(value)
        except ValueError as error:
            raise Refusal(
                Code.UNAUTHENTICATED, "INVALID_TOKEN", f"the metadata cadenza-user is no user: {error}"
            ) from None
        if len(self._names) >= _NAMES_REMEMBERED_MAX:
            self._names.clear()
        caller = self._names[value] = Caller(value, value in self._operators)
        return caller


class Gate(grpc.aio.ServerInterceptor):
    """Lets a call in: who calls, is the message small enough, does it parse; and lets its errors out, all mapped. What
    may have a large answer waits until there is room for it."""

    def __init__(self, callers: Callers, errors: ErrorMapper, limits: Limits) -> None:
        self._callers = callers
        self._errors = errors
        self._message_bytes_max = limits.message_bytes_max
        self._answers = Deliveries(limits)
        self._pieces = Deliveries(limits, PIECES_OF_AN_ANSWER)
        self._guarded: dict[str, Any] = {}
        self._opening: asyncio.Event | None = None
        """Set while calls are held."""

    def hold(self) -> None:
        """From now on calls that come in wait, and are then told that the server is stopping. A server that closes
        drops what it has not taken up yet without a word: so that there is nothing of the kind, whoever calls is to
        have a call that was taken up, and so no other, when it closes."""
        self._opening = asyncio.Event()

    def release(self) -> None:
        """Answer those that wait."""
        if self._opening is not None:
            self._opening.set()

    async def _wait(self) -> None:
        if self._opening is not None:
            await self._opening.wait()
            raise stopping()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the handler of a method, once."""
        method = handler_call_details.method
        guarded = self._guarded.get(method)
        if guarded is None:
            handler = await continuation(handler_call_details)
            if handler is None or method.startswith(_OPEN_SERVICES):
                return handler
            guarded = self._guarded[method] = self._guard(method, handler)
        return guarded

    def _guard(self, method: str, handler: Any) -> Any:
        parse: Callable[[bytes], Message] = handler.request_deserializer
        if handler.unary_unary is not None and is_read(method):
            # On the wire a stream of one message is the same, and what makes it hears when the message has been taken.
            return grpc.unary_stream_rpc_method_handler(
                self._guard_read(method, handler.unary_unary, parse), None, handler.response_serializer
            )
        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(
                self._guard_unary(method, handler.unary_unary, parse), None, handler.response_serializer
            )
        if handler.stream_stream is not None:
            return grpc.stream_stream_rpc_method_handler(
                self._guard_conversation(method, handler.stream_stream, parse), None, handler.response_serializer
            )
        stream = self._in_pieces(handler.unary_stream) if is_read_in_pieces(method) else handler.unary_stream
        return grpc.unary_stream_rpc_method_handler(
            self._guard_stream(method, stream, parse), None, _accept_bytes(handler.response_serializer)
        )

    def _guard_unary(
        self, method: str, answer: Callable[[Any, Context], Awaitable[Message]], parse: Callable[[bytes], Message]
    ) -> Callable[[bytes, Context], Awaitable[Message]]:
        async def call(data: bytes, context: Context) -> Message:
            try:
                await self._wait()
                return await answer(self._let_in(data, context, parse), context)
            except grpc.aio.AbortError:
                raise
            except Exception as error:
                await self._refuse(context, method, error)
            finally:
                del context

        return call

    def _guard_read(
        self, method: str, answer: Callable[[Any, Context], Awaitable[Message]], parse: Callable[[bytes], Message]
    ) -> Callable[[bytes, Context], AsyncIterator[Message | bytes]]:
        async def read(request: Any, context: Context) -> AsyncIterator[Message]:
            async with self._answers.turn(context.peer(), current_caller().path):
                yield await answer(request, context)

        return self._guard_stream(method, read, parse)

    def _in_pieces(
        self, answer: Callable[[Any, Context], AsyncIterator[Message | bytes]]
    ) -> Callable[[Any, Context], AsyncIterator[Message | bytes]]:
        async def read(request: Any, context: Context) -> AsyncIterator[Message | bytes]:
            async with self._pieces.turn(context.peer(), current_caller().path):
                async for piece in answer(request, context):
                    yield piece

        return read

    def _guard_stream(
        self,
        method: str,
        answer: Callable[[Any, Context], AsyncIterator[Message | bytes]],
        parse: Callable[[bytes], Message],
    ) -> Callable[[bytes, Context], AsyncIterator[Message | bytes]]:
        async def call(data: bytes, context: Context) -> AsyncIterator[Message | bytes]:
            try:
                await self._wait()
                async for message in answer(self._let_in(data, context, parse), context):
                    yield message
            except grpc.aio.AbortError:
                raise
            except Exception as error:
                await self._refuse(context, method, error)
            finally:
                del context

        return call

    def _guard_conversation(
        self,
        method: str,
        answer: Callable[[AsyncIterator[Any], Context], AsyncIterator[Message]],
        parse: Callable[[bytes], Message],
    ) -> Callable[[AsyncIterator[bytes], Context], AsyncIterator[Message]]:
        async def read(requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[Message]:
            try:
                # gRPC's iterator holds itself until it ends: it is ended also where not all was read
                async with aclosing(cast(AsyncGenerator[bytes, None], aiter(requests))) as messages:
                    async for data in messages:
                        yield self._let_in(data, context, parse)
            finally:
                del context, requests

        async def call(requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[Message]:
            try:
                await self._wait()
                async for message in answer(read(requests, context), context):
                    yield message
            except grpc.aio.AbortError:
                raise
            except Exception as error:
                await self._refuse(context, method, error)
            finally:
                del context, requests

        return call

    async def _refuse(self, context: Context, method: str, error: Exception) -> NoReturn:
        try:
            await self._errors.abort(context, method, error)
        except grpc.aio.AbortError as aborted:
            # gRPC keeps it with the call, and it would keep the call by its frames: a ring that only the garbage
            # collector undoes, with some 50 kB of gRPC's own behind it.
            aborted.__context__ = None
            aborted.__traceback__ = None
            raise
        finally:
            del context, error

    def _let_in(self, data: bytes, context: Context, parse: Callable[[bytes], Message]) -> Message:
        _caller.set(self._callers.identify(context.invocation_metadata()))
        if len(data) > self._message_bytes_max:
            raise Refusal(
                Code.RESOURCE_EXHAUSTED,
                "MESSAGE_TOO_LARGE",
                f"the message has {len(data)} bytes, this server takes {self._message_bytes_max}: split the job, or "
                "name circuits that the session knows by their digest",
                metadata={"limit": "message_bytes_max"},
            )
        try:
            return parse(data)
        except (DecodeError, UnicodeDecodeError) as error:
            raise Refusal(
                Code.INVALID_ARGUMENT,
                "INVALID_FIELD",
                f"the request is not the message that this RPC takes ({error}): build it from cadenza.v1, with "
                "text as UTF-8",
            ) from None


def _accept_bytes(serialize: Callable[[Message], bytes]) -> Callable[[Message | bytes], bytes]:
    """Lets a stream also yield messages that are serialised already."""
    return lambda message: message if isinstance(message, bytes) else serialize(message)
