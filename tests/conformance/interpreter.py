"""Plays the steps of `checks.yaml` with Python's generated stubs, blocking or asyncio.

    python -m tests.conformance.interpreter [--asyncio] CHECKS.json

Prints one line of JSON a check. `run.py` writes the file and runs this as it runs the clients of other languages; what
a step means is said at the top of `checks.yaml`.
"""

import argparse
import asyncio
import base64
import json
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import grpc
from cadenza import CadenzaError
from cadenza._errors import map_error
from cadenza.v1 import (
    device_service_pb2,
    device_service_pb2_grpc,
    job_service_pb2,
    job_service_pb2_grpc,
    reservation_service_pb2,
    reservation_service_pb2_grpc,
    result_pb2,
    server_service_pb2,
    server_service_pb2_grpc,
    session_service_pb2,
    session_service_pb2_grpc,
    share_service_pb2,
    share_service_pb2_grpc,
)
from google.protobuf import json_format
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

CALL_SECONDS_MAX = 30.0
TOLERANCE = 1e-6

_MODULES = (
    (server_service_pb2, server_service_pb2_grpc),
    (session_service_pb2, session_service_pb2_grpc),
    (job_service_pb2, job_service_pb2_grpc),
    (device_service_pb2, device_service_pb2_grpc),
    (reservation_service_pb2, reservation_service_pb2_grpc),
    (share_service_pb2, share_service_pb2_grpc),
)

SERVICES = {
    name: (service, getattr(stubs, f"{name}Stub"))
    for messages, stubs in _MODULES
    for name, service in messages.DESCRIPTOR.services_by_name.items()
}
"""Descriptor and stub class of every service of the contract, by name."""


class CheckError(Exception):
    """A check that did not come out as it says."""


# --- comparing --------------------------------------------------------------------------------------------------------


def find_difference(expected: Any, actual: Any, place: str = "answer") -> str | None:
    """Where `actual` is not what `expected` asks for; None: it is. See `checks.yaml` for the matchers."""
    if isinstance(expected, dict):
        matchers = {key: value for key, value in expected.items() if key.startswith("$")}
        for name, argument in matchers.items():
            if not _MATCHERS[name](argument, actual):
                return f"{place}: {json.dumps(actual)[:300]} is not {name} {json.dumps(argument)}"
        if matchers:
            return None
        if not isinstance(actual, dict):
            return f"{place}: {json.dumps(actual)[:300]} is no object"
        for key, value in expected.items():
            if found := find_difference(value, actual.get(key), f"{place}.{key}"):
                return found
        return None
    if isinstance(expected, list):
        if not isinstance(actual, list) or len(actual) != len(expected):
            return f"{place}: {json.dumps(actual)[:300]} has not {len(expected)} elements"
        for index, value in enumerate(expected):
            if found := find_difference(value, actual[index], f"{place}.{index}"):
                return found
        return None
    if expected == actual and isinstance(expected, bool) == isinstance(actual, bool):
        return None
    return f"{place}: {json.dumps(actual)[:300]} is not {json.dumps(expected)}"


def _is_like(expected: Any, actual: Any) -> bool:
    return find_difference(expected, actual) is None


def _are_float64s(expected: list[float], actual: Any) -> bool:
    data = base64.b64decode(actual or "")
    values = struct.unpack(f"<{len(data) // 8}d", data)
    return len(values) == len(expected) and all(abs(a - b) < TOLERANCE for a, b in zip(values, expected, strict=True))


_MATCHERS: dict[str, Callable[[Any, Any], bool]] = {
    "$present": lambda argument, actual: (actual is not None) == argument,
    "$length": lambda argument, actual: len(actual or []) == argument,
    "$min": lambda argument, actual: actual is not None and float(actual) >= argument,
    "$in": lambda argument, actual: actual in argument,
    "$first": lambda argument, actual: bool(actual) and _is_like(argument, actual[0]),
    "$last": lambda argument, actual: bool(actual) and _is_like(argument, actual[-1]),
    "$contains": lambda argument, actual: any(_is_like(argument, item) for item in actual or []),
    "$bytes": lambda argument, actual: len(base64.b64decode(actual or "")) == argument,
    "$bytes_in": lambda argument, actual: set(base64.b64decode(actual or "")) <= set(argument),
    "$float64s": _are_float64s,
}


def find(path: str, value: Any) -> Any:
    """The value at `path`, such as `messages.-1.event.eventNumber`."""
    for part in path.split("."):
        try:
            value = value[int(part)] if isinstance(value, list) else value[part]
        except (KeyError, IndexError, TypeError, ValueError):
            raise CheckError(f"there is nothing at {path} to save: {json.dumps(value)[:300]}") from None
    return value


def fill(value: Any, variables: dict[str, Any]) -> Any:
    """`value` with `${name}` replaced; a text that is nothing else becomes the variable, whatever its type."""
    if isinstance(value, str):
        if value.startswith("${") and value.find("}") == len(value) - 1:
            return variables[value[2:-1]]
        for name, filling in variables.items():
            value = value.replace("${" + name + "}", str(filling))
        return value
    if isinstance(value, list):
        return [fill(item, variables) for item in value]
    if isinstance(value, dict):
        if "$repeat" in value:
            text, count = value["$repeat"]
            return text * count
        return {key: fill(item, variables) for key, item in value.items()}
    return value


# --- calling ----------------------------------------------------------------------------------------------------------


class Calls(Protocol):
    """Blocking and asyncio stubs behind one face. Both raise `grpc.RpcError`."""

    def unary(self, step: "Call") -> Message:
        """The answer of a unary call."""

    def open(self, step: "Call") -> tuple[Iterator[Message], Callable[[], None]]:
        """The messages of a stream, and what cancels it."""


class Call:
    """One call of a step: where, what, as whom and for how long."""

    def __init__(self, step: dict[str, Any], user: str, variables: dict[str, Any]) -> None:
        service_name, _, method_name = step["call"].partition("/")
        service, self.stub = SERVICES[service_name]
        self.method: MethodDescriptor = service.methods_by_name[method_name]
        self.request = GetMessageClass(self.method.input_type)()
        json_format.ParseDict(step.get("request", {}), self.request)
        self.requests = [json_format.ParseDict(one, type(self.request)()) for one in step.get("requests", [])]
        server = "tls" if step.get("tls") else step.get("server")
        self.target = str(variables[f"{server}_target" if server else "target"])
        self.ca = Path(variables["tls_ca"]).read_bytes() if step.get("tls") else None
        self.timeout = step.get("timeout_s", CALL_SECONDS_MAX)
        name = step.get("user", user)
        self.metadata = [("cadenza-user", name)] if name else []
        self.metadata += list(step.get("metadata", {}).items())

    def options(self) -> list[tuple[str, Any]]:
        """Results may be larger than the 4 MiB that gRPC takes unless told otherwise."""
        return [("grpc.max_receive_message_length", -1)]


class BlockingCalls:
    """Calls over `grpc.Channel`."""

    def __init__(self) -> None:
        self._channels: dict[str, grpc.Channel] = {}

    def _invoke(self, call: Call) -> Any:
        channel = self._channels.get(call.target)
        if channel is None:
            channel = (
                grpc.insecure_channel(call.target, call.options())
                if call.ca is None
                else grpc.secure_channel(call.target, grpc.ssl_channel_credentials(call.ca), call.options())
            )
            self._channels[call.target] = channel
        method = getattr(call.stub(channel), call.method.name)
        request = iter(call.requests) if call.method.client_streaming else call.request
        return method(request, timeout=call.timeout, metadata=call.metadata)

    def unary(self, step: Call) -> Message:
        answer: Message = self._invoke(step)
        return answer

    def open(self, step: Call) -> tuple[Iterator[Message], Callable[[], None]]:
        stream = self._invoke(step)
        return stream, stream.cancel


class AsyncioCalls:
    """Calls over `grpc.aio.Channel`, each step run to its end in one loop."""

    def __init__(self) -> None:
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._loop = asyncio.new_event_loop()

    async def _invoke(self, call: Call) -> Any:
        channel = self._channels.get(call.target)
        if channel is None:
            channel = (
                grpc.aio.insecure_channel(call.target, call.options())
                if call.ca is None
                else grpc.aio.secure_channel(call.target, grpc.ssl_channel_credentials(call.ca), call.options())
            )
            self._channels[call.target] = channel
        method = getattr(call.stub(channel), call.method.name)
        request = iter(call.requests) if call.method.client_streaming else call.request
        made = method(request, timeout=call.timeout, metadata=call.metadata)
        return made if call.method.server_streaming else await made

    def unary(self, step: Call) -> Message:
        answer: Message = self._loop.run_until_complete(self._invoke(step))
        return answer

    def open(self, step: Call) -> tuple[Iterator[Message], Callable[[], None]]:
        stream = self._loop.run_until_complete(self._invoke(step))

        def messages() -> Iterator[Message]:
            while (message := self._loop.run_until_complete(stream.read())) is not grpc.aio.EOF:
                yield message

        return messages(), stream.cancel


# --- playing ----------------------------------------------------------------------------------------------------------


class Check:
    """One check: its steps, one after the other, with what they saved."""

    def __init__(self, check: dict[str, Any], variables: dict[str, Any], calls: Calls) -> None:
        self._check = check
        self._variables = dict(variables)
        self._calls = calls
        self._streams: dict[str, tuple[Iterator[Message], Callable[[], None]]] = {}

    def play(self) -> None:
        """Raise `CheckError` at the first step that does not come out as it says."""
        user = fill(self._check.get("user", "${run}/ann"), self._variables)
        for number, raw in enumerate(self._check["steps"], 1):
            step = fill(raw, self._variables)
            try:
                self._play(step, user)
            except CheckError as problem:
                raise CheckError(f"step {number} ({step.get('call') or next(iter(step))}): {problem}") from None
        for _, cancel in self._streams.values():
            cancel()

    def _play(self, step: dict[str, Any], user: str) -> None:
        refused = step.get("refused")
        try:
            answer = self._perform(step, user)
        except grpc.RpcError as raised:
            error = map_error(raised, "")
            if refused is None:
                raise CheckError(f"it was refused: {error.code} {error}") from None
            if found := find_difference(refused, describe(error), "refusal"):
                raise CheckError(found) from None
            return
        if refused is not None:
            raise CheckError(f"it was not refused, but answered {json.dumps(answer)[:300]}")
        if found := find_difference(step.get("expect", {}), answer):
            raise CheckError(found)
        for name, path in step.get("save", {}).items():
            self._variables[name] = find(path, answer)

    def _perform(self, step: dict[str, Any], user: str) -> dict[str, Any]:
        if name := step.get("cancel"):
            return self._cancel(name)
        if name := step.get("read"):
            return self._read(self._streams[name][0], step)
        call = Call(step, user, self._variables)
        if step.get("assemble"):
            return self._assemble(call)
        if not call.method.server_streaming:
            return to_json(self._calls.unary(call))
        messages, cancel = self._calls.open(call)
        if name := step.get("stream"):
            self._streams[name] = messages, cancel
        answer = self._read(messages, step)
        if not name:
            cancel()
        return answer

    def _read(self, messages: Iterator[Message], step: dict[str, Any]) -> dict[str, Any]:
        """Read until a message is like `until`; without it, to the end."""
        found, until = [], step.get("until")
        for message in messages:
            found.append(to_json(message))
            if until is not None and _is_like(until, found[-1]):
                return {"messages": found}
        if until is not None:
            raise CheckError(f"the stream ended without the message to stop at, after {json.dumps(found)[:600]}")
        return {"messages": found}

    def _cancel(self, name: str) -> dict[str, Any]:
        """Cancel an open stream; it must end with CANCELLED."""
        messages, cancel = self._streams.pop(name)
        cancel()
        try:
            for _ in messages:
                pass
        except grpc.RpcError as raised:
            if (code := map_error(raised, "").code) != "CANCELLED":
                raise CheckError(f"the cancelled stream ended with {code}") from None
            return {}
        except asyncio.CancelledError:  # what the asyncio stubs raise
            return {}
        raise CheckError("the cancelled stream ended as if nothing had happened")

    def _assemble(self, call: Call) -> dict[str, Any]:
        """Read a result in two streams, the second beginning where the first was broken off after one piece."""
        messages, cancel = self._calls.open(call)
        first: Any = next(messages)
        cancel()
        data, pieces = first.data, 1
        call.request.offset = len(data)  # type: ignore[attr-defined]
        rest: Any
        for rest in self._calls.open(call)[0]:
            if rest.offset != len(data):
                raise CheckError(f"a piece begins at {rest.offset}, not at {len(data)}")
            data += rest.data
            pieces += 1
        if len(data) != first.total_bytes:
            raise CheckError(f"the pieces have {len(data)} bytes together, not {first.total_bytes}")
        return {"pieces": pieces, "result": to_json(result_pb2.JobResult.FromString(data))}


def to_json(message: Message) -> dict[str, Any]:
    """Proto3 JSON: what the checks compare."""
    answer: dict[str, Any] = json_format.MessageToDict(message)
    return answer


def describe(error: CadenzaError) -> dict[str, Any]:
    """What the checks compare of a refusal."""
    return {"code": error.code, "reason": error.reason or None, "metadata": error.metadata}


def main() -> int:
    """Play all checks of a file; the exit code is 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--asyncio", action="store_true", help="use grpc.aio")
    parser.add_argument("checks", type=Path, help="the file that run.py writes")
    arguments = parser.parse_args()
    plan = json.loads(arguments.checks.read_text())
    calls: Calls = AsyncioCalls() if arguments.asyncio else BlockingCalls()
    failed = 0
    for check in plan["checks"]:
        start = time.monotonic()
        problem = ""
        try:
            Check(check, plan["variables"], calls).play()
        except Exception as error:  # one check that breaks must not hide the others
            problem = str(error) if isinstance(error, CheckError) else f"{type(error).__name__}: {error}"
        failed += bool(problem)
        milliseconds = round((time.monotonic() - start) * 1000)
        print(json.dumps({"check": check["name"], "passed": not problem, "ms": milliseconds, "problem": problem}))
        sys.stdout.flush()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
