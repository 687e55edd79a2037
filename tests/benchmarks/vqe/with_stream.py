"""A Cadenza server with one more service, a bare stream of bytes: what gRPC alone delivers from the same server.

`python with_stream.py DATA_DIR` prints {"cadenza": ADDRESS}, and serves until its stdin closes.
"""

import asyncio
import dataclasses
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import grpc
from cadenza_server.api import callers
from cadenza_server.app import Server, tune_process
from cadenza_server.config import parse_config
from cadenza_server.execution.device import Device

PIECE_BYTES = 1 << 20
CONFIG = """
[server]
listen = "127.0.0.1:0"
operators = ["bench"]
[devices.aer]
[devices.manila]
kind = "snapshot"
snapshot = "FakeManilaV2"
"""


async def stream(request: bytes, _context: Any) -> AsyncIterator[bytes]:
    """As many bytes as the request says, in pieces."""
    left, piece = int(request), bytes(PIECE_BYTES)
    while left > 0:
        yield piece[:left]
        left -= PIECE_BYTES


class ServerWithStream(Server):
    """Cadenza's own gRPC server; its gate lets calls of the stream pass as it does those of health and reflection."""

    def _build(self) -> grpc.aio.Server:
        server = super()._build()
        handler: Any = grpc.unary_stream_rpc_method_handler(stream)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Stream", {"Stream": handler}),))
        return server


async def main(data_dir: Path) -> None:
    callers._OPEN_SERVICES += ("/bench.Stream/",)  # type: ignore[misc, assignment]
    server = ServerWithStream(dataclasses.replace(parse_config(CONFIG, data_dir), data_dir=data_dir))
    address = await server.start()
    tune_process()
    # A spare worker that is still importing Qiskit would be measured along with whatever is measured first.
    while not all(cast(Device, server.engine.device(name)).has_spare for name in ("aer", "manila")):  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    print(json.dumps({"cadenza": str(address)}), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.stop(0)


asyncio.run(main(Path(sys.argv[1])))
