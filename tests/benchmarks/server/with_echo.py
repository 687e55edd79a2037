"""A Cadenza server, and beside it in the same process and on the same event loop a bare echo: what gRPC alone costs.

`python with_echo.py DATA_DIR` prints {"cadenza": ADDRESS, "echo": ADDRESS, "idle": FILE}, and serves until its stdin
closes. FILE gets how long the workers stood idle before each of their runs (see timed_worker.py).
"""

import asyncio
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import grpc
from cadenza_server.app import Server, tune_process
from cadenza_server.config import parse_config
from cadenza_server.execution import device

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
    idle = data_dir.with_name("idle")
    os.environ["CADENZA_BENCH_IDLE"] = str(idle)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(Path(__file__).parent), os.getenv("PYTHONPATH"))))
    device.WORKER_MODULE = "timed_worker"  # type: ignore[misc]
    server = Server(dataclasses.replace(parse_config(CONFIG, data_dir), data_dir=data_dir))
    address = await server.start()
    bare = grpc.aio.server()
    handler: Any = grpc.unary_unary_rpc_method_handler(echo)
    bare.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Echo", {"Echo": handler}),))
    port = bare.add_insecure_port("127.0.0.1:0")
    await bare.start()
    tune_process()
    print(json.dumps({"cadenza": str(address), "echo": f"127.0.0.1:{port}", "idle": str(idle)}), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await bare.stop(None)
    await server.stop(0)


asyncio.run(main(Path(sys.argv[1])))
