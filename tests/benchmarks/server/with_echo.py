"""A Cadenza server, and beside it in the same process and on the same event loop a bare echo: what gRPC alone costs.

`python with_echo.py DATA_DIR` prints {"cadenza": ADDRESS, "echo": ADDRESS}, and serves until its stdin closes.
"""

import asyncio
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import grpc
from cadenza_server.app import Server
from cadenza_server.config import parse_config

CONFIG = """
[server]
listen = "127.0.0.1:0"
operators = ["bench"]
[devices.sim]
[devices.held]
num_qubits = 4
"""


async def echo(request: bytes, _context: Any) -> bytes:
    return request


async def main(data_dir: Path) -> None:
    server = Server(dataclasses.replace(parse_config(CONFIG, data_dir), data_dir=data_dir))
    address = await server.start()
    bare = grpc.aio.server()
    handler: Any = grpc.unary_unary_rpc_method_handler(echo)
    bare.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Echo", {"Echo": handler}),))
    port = bare.add_insecure_port("127.0.0.1:0")
    await bare.start()
    print(json.dumps({"cadenza": str(address), "echo": f"127.0.0.1:{port}"}), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await bare.stop(None)
    await server.stop(0)


asyncio.run(main(Path(sys.argv[1])))
