"""Production's device over simulated worker processes: each has a pipe that delivers in pieces and late, and it starts
slowly or not at all, dies, hangs, and is killed. What a pipe holds when its process dies may arrive or not."""

import asyncio
import random
from collections.abc import Callable
from typing import Any, Final

from cadenza.v1 import device_pb2, program_pb2
from cadenza_server.execution.device import Device, _Complaints, _Worker
from cadenza_server.execution.protocol import Frame, FrameReader, Kind, encode_frame
from cadenza_server.execution.runs import Assignment, RunReport
from cadenza_server.execution.spec import DeviceSpec
from cadenza_server.model.settings import SECOND
from cadenza_server.model.words import RunOutcome

from tests.crash.virtual_loop import VirtualLoop
from tests.crash.workers import check_circuits, deed_of, result_of

SPEC: Final = DeviceSpec(num_qubits=5)
KILLED: Final = -9


class DeviceOfProcesses(Device):
    """Production's, but for how it starts a process. `strikes`: whether a fault happens now."""

    def __init__(
        self,
        name: str,
        loop: VirtualLoop,
        source: random.Random,
        strikes: Callable[[str], bool],
        report: Callable[[RunReport], None],
        ready: Callable[[str, bool], None],
    ) -> None:
        super().__init__(name, SPEC, report=report, ready=ready)
        self.loop = loop
        self.source = source
        self.strikes = strikes
        self.jobs: dict[bytes, str] = {}
        """Whose program each is: a worker is not told."""

    def run(self, assignment: Assignment) -> None:
        """See `Device`."""
        self.loop.step()
        check_circuits(program_pb2.Program.FromString(assignment.program), assignment.circuits)
        self.jobs[assignment.program] = assignment.job
        super().run(assignment)

    async def _launch(self) -> None:
        worker = _SimulatedWorker(self)
        self._workers.add(worker)
        worker.watch()
        worker.begin()


class _SimulatedWorker(_Worker):
    """The loop's end of a simulated process."""

    def __init__(self, device: DeviceOfProcesses) -> None:
        super().__init__(device, device.loop, _Silence())
        self._far = _Process(device, self)

    def begin(self) -> None:
        """Tell the process what it is."""
        self.connection_made(self._far)
        self.write(encode_frame(Kind.SETUP, b"", b""))

    async def _wait(self) -> None:
        code = await self._far.ended
        if self._patience is not None:
            self._patience.cancel()
        if self._transport is not None:
            self._transport.abort()
        self._device._disconnected(self)
        self._device._died(self, code)
        self.ended.set()

    def end_soon(self) -> None:
        """See `_Worker`: these end by themselves."""
        if self._patience is not None:
            self._patience.cancel()

    def _end(self, fate: str) -> None:
        self._fate = self._fate or fate
        self._far.kill()


class _Silence(_Complaints):
    """It says nothing."""

    def __init__(self) -> None:
        self.lacked_memory = False


class _Process(asyncio.Transport):
    """A worker's process, and the pipe to it and back: each way keeps its order."""

    def __init__(self, device: DeviceOfProcesses, worker: _SimulatedWorker) -> None:
        super().__init__()
        self._device = device
        self._loop = device.loop
        self._source = device.source
        self._worker = worker
        self._reader = FrameReader()
        self._free = [0.0, 0.0]
        """When each way, to it and back, has delivered all."""
        self._busy: tuple[bytes, bytes, bytes] | None = None
        """Attempt and program of its run."""
        self._dead = False
        self._closed = False
        self.ended: asyncio.Future[int] = self._loop.create_future()

    # --- the pipe ---------------------------------------------------------------------------------------------------
    def write(self, data: Any) -> None:
        """To the process."""
        self._carry(0, self._hear, bytes(data))

    def abort(self) -> None:
        """The server closes its end."""
        if not self._closed:
            self._closed = True
            self._loop.call_soon(self._worker.connection_lost, None)

    def _carry(self, way: int, take: Callable[..., None], *what: object) -> None:
        late = self._source.uniform(0, 3) if self._device.strikes("report is late") else 0.0
        when = max(self._free[way], self._loop.time() + late + self._source.uniform(0, 0.001))
        self._free[way] = when + 1e-6  # what is due at one time may change places
        self._loop.call_at(when, take, *what)

    def _say(self, kind: Kind, *parts: bytes) -> None:
        data = encode_frame(kind, *parts)
        middle = self._source.randrange(len(data))
        for piece in (data[:middle], data[middle:]):
            self._carry(1, self._arrive, piece)

    def _arrive(self, data: bytes) -> None:
        if not self._closed:
            self._worker.data_received(data)

    # --- the process ------------------------------------------------------------------------------------------------
    def kill(self) -> None:
        """From outside; it may have said its last word just before."""
        if self._busy is not None and not self._dead and self._device.strikes("late result"):
            self._finish(*self._busy, RunOutcome.SUCCEEDED)
        self.die()

    def die(self) -> None:
        """Now. That its pipe has closed and that it has ended is noticed in any order; what is in the pipe comes first,
        if the pipe is noticed first."""
        if self._dead:
            return
        self._dead = True
        self._carry(1, self.abort)
        self._loop.call_later(self._source.uniform(0, 0.1), self._end)

    def _end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(KILLED)

    def _hear(self, data: bytes) -> None:
        if self._dead:
            return
        for frame in self._reader.feed(data):
            if frame.kind == Kind.SETUP:
                self._begin()
            else:
                self._run(frame)

    def _begin(self) -> None:
        strikes = self._device.strikes
        delay = self._source.uniform(0, 10) if strikes("slow start") else self._source.uniform(0, 0.5)
        self._loop.call_later(delay, self.die if strikes("worker dies") else self._be_ready)

    def _be_ready(self) -> None:
        if not self._dead:
            self._say(Kind.READY, device_pb2.Device(name=self._device.name).SerializeToString(), b"")

    def _run(self, frame: Frame) -> None:
        number, attempt, _, _, _, _, data, *_ = frame.parts
        self._busy = number, attempt, data
        deed = deed_of(program_pb2.Program.FromString(data))
        length = deed.length_ns / SECOND
        if deed.outcome is RunOutcome.WORKER_LOST or self._device.strikes("worker dies"):
            self._loop.call_later(self._source.random() * length, self.die)
        elif not self._device.strikes("report is lost"):
            self._loop.call_later(length, self._finish, number, attempt, data, deed.outcome)

    def _finish(self, run: bytes, attempt: bytes, data: bytes, outcome: RunOutcome) -> None:
        if self._dead:
            return
        self._busy = None
        self._device.loop.step()
        succeeded = outcome is RunOutcome.SUCCEEDED
        number = int.from_bytes(attempt, "little")
        result = result_of(self._device.jobs[data], number) if succeeded else b""
        leaves = b"full" if self._device.strikes("worker dies") else b""
        for _ in range(2 if self._device.strikes("worker stutters") else 1):
            self._say(Kind.DONE, run, outcome.encode(), b"" if succeeded else b"it was so", result, b"", leaves)
        if leaves:
            self.die()
