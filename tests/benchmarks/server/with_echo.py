"""A Cadenza server with one more service, a bare echo that nothing checks: what gRPC alone costs on the same server.

`python with_echo.py DATA_DIR` prints {"cadenza": ADDRESS, "idle": FILE, "process": ID}, and serves until its stdin
closes. FILE gets how long the workers stood idle before each of their runs (see timed_worker.py).
"""

import asyncio
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any, cast

import grpc
from cadenza_server.api import callers
from cadenza_server.app import Server, tune_process
from cadenza_server.config import parse_config
from cadenza_server.execution import device

CONFIG = """
[server]
listen = "127.0.0.1:0"
operators = ["bench"]
[limits]
queued_jobs_max = 10000000
queued_jobs_per_user_max = 10000000
[devices.sim]
[devices.held]
num_qubits = 4
"""


async def echo(request: bytes, _context: Any) -> bytes:
    return request


class ServerWithEcho(Server):
    """Cadenza's own gRPC server; its gate lets calls of the echo pass as it does those of health and reflection."""

    def _build(self) -> grpc.aio.Server:
        server = super()._build()
        handler: Any = grpc.unary_unary_rpc_method_handler(echo)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Echo", {"Echo": handler}),))
        return server


async def main(data_dir: Path) -> None:
    idle = data_dir.with_name("idle")
    os.environ["CADENZA_BENCH_IDLE"] = str(idle)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(Path(__file__).parent), os.getenv("PYTHONPATH"))))
    callers._OPEN_SERVICES += ("/bench.Echo/",)  # type: ignore[misc, assignment]
    device.WORKER_MODULE = "timed_worker"  # type: ignore[misc]
    server = ServerWithEcho(dataclasses.replace(parse_config(CONFIG, data_dir), data_dir=data_dir))
    address = await server.start()
    tune_process()
    # A spare worker that is still importing Qiskit would be measured along with whatever is measured first.
    while not all(cast(device.Device, server.engine.device(name)).has_spare for name in ("sim", "held")):  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    print(json.dumps({"cadenza": str(address), "idle": str(idle), "process": str(os.getpid())}), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.stop(0)


asyncio.run(main(Path(sys.argv[1])))
