"""A device on the event loop: one worker process that runs its jobs, and a warm spare that takes over when it dies.

Law of this file: `ready(True)` is called when a warm worker waits and none did before, `ready(False)` when the last
one has gone. A run is reported once, unless it was stopped. What a worker says counts only while it runs the attempt
that it speaks of.
"""

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cadenza.v1.device_pb2 import DEVICE_STATE_OFFLINE
from cadenza.v1.device_pb2 import Device as DeviceDescription
from google.protobuf.message import DecodeError

from cadenza_server.execution.description import describe_spec
from cadenza_server.execution.protocol import (
    Frame,
    FrameError,
    FrameReader,
    Kind,
    decode_integer,
    encode_frame,
    encode_integer,
)
from cadenza_server.execution.runs import Assignment, RunReport
from cadenza_server.execution.spec import KINDS, DeviceSpec
from cadenza_server.model.settings import SECOND
from cadenza_server.model.words import RunOutcome

START_SECONDS_MAX: Final = 60.0
"""A worker that is not warm by then is killed and counts as failed."""

BACK_OFF_SECONDS: Final = (0.0, 0.2, 1.0, 5.0, 15.0, 30.0)
"""How long to wait before the next start after so many failed ones in a row; the last one for all more."""

WORKER_MODULE: Final = "cadenza_server.execution.worker"
"""What a worker process runs."""

TAKE_OVER_SECONDS: Final = 0.05
"""A spare that has taken over is left alone for so long before the next one is started, which takes a processor."""

DISCONNECTED_SECONDS_MAX: Final = 1.0
"""A worker whose socket has closed is dying, and how says why; one that has not died by then is killed."""

_THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")

COMPLAINT_BYTES_MAX: Final = 4096
"""Of a line that a worker says on its stderr; what is longer is cut."""

COMPLAINTS_MAX: Final = 100
"""Lines that are heard at once; the event loop has other things to do, too."""

_LACK_OF_MEMORY: Final = ("bad_alloc", "memory allocation of", "MemoryError", "Cannot allocate memory")
"""What C++, Rust, Python and Aer say before they give up."""

_HINTS: Final = {
    "SIGKILL": "; the system may have run out of memory",
    "SIGXCPU": "; it took more processor time than its limit allows",
    "SIGABRT": "; the simulator crashed",
    "SIGSEGV": "; the simulator crashed",
    "SIGBUS": "; the simulator crashed",
    "SIGFPE": "; the simulator crashed",
    "SIGILL": "; the simulator crashed",
}

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Run:
    number: int
    """Of the device's runs; attempts have the same for different jobs."""
    assignment: Assignment
    start: float
    """On the loop's clock, seconds."""
    limit: asyncio.TimerHandle | None = None
    hold: asyncio.TimerHandle | None = None
    worker: "_Worker | None" = None
    """The one that has it."""

    def disarm(self) -> None:
        """Cancel its timers."""
        for timer in (self.limit, self.hold):
            if timer is not None:
                timer.cancel()


class Device:
    """One device. All methods are to be called on the event loop that `start` ran on."""

    def __init__(
        self,
        name: str,
        spec: DeviceSpec,
        *,
        report: Callable[[RunReport], None],
        ready: Callable[[str, bool], None],
    ) -> None:
        self.name = name
        self.spec = spec
        self.description = describe_spec(name, spec)
        """What the device publishes of itself; complete once the first worker has been ready."""
        self._report = report
        self._ready = ready
        self._loop: asyncio.AbstractEventLoop | None = None
        self._active: _Worker | None = None
        self._spare: _Worker | None = None
        self._workers: set[_Worker] = set()
        self._starting: set[asyncio.Task[None]] = set()
        self._restart: asyncio.TimerHandle | None = None
        self._run: _Run | None = None
        self._numbers = itertools.count(1)
        self._failures = 0
        self._launched = 0
        self.workers_lost = 0
        """Workers that died without having been told to, since the start."""
        self._told = ""
        """What the workers could not protect themselves from, as the log has it already."""
        self._is_ready = False
        self._called = False
        """The caller is in `stop_run`, and must not be called back before it returns."""
        self._first = asyncio.Event()
        self._stopping = False

    @property
    def has_spare(self) -> bool:
        """Whether a second warm worker stands by; one that is still to come takes seconds of a processor to start."""
        return self._spare is not None

    async def start(self) -> None:
        """Start the workers. Returns when the first is warm, or has failed to start; starting goes on behind then."""
        self._loop = asyncio.get_running_loop()
        self._start_worker()
        await self.wait_for_first()

    async def wait_for_first(self) -> None:
        """Until the first worker is warm, or has failed to start, or the device is stopped: `description` says then
        what there is to say."""
        await self._first.wait()

    def run(self, assignment: Assignment) -> None:
        """Take one run up; returns at once. Raises `RuntimeError` if another one runs."""
        if self._run is not None:
            raise RuntimeError(f"device {self.name} runs {self._run.assignment.job}: one run at a time")
        loop = self._get_loop()
        run = self._run = _Run(next(self._numbers), assignment, loop.time())
        run.limit = loop.call_later(assignment.limit_ns / SECOND, self._reach_limit, run)
        self._send()

    def stop_run(self, job: str, attempt: int) -> None:
        """Stop a run by killing its worker; the spare takes over at once. No report follows. Others are let run."""
        run = self._run
        if run is not None and (run.assignment.job, run.assignment.attempt) == (job, attempt):
            self._called = True
            self._abandon(run)
            self._called = False

    async def stop(self) -> None:
        """End the workers, and what they run, without a report."""
        self._stopping = True
        self._first.set()
        if self._run is not None:
            self._run.disarm()
            self._run = None
        if self._restart is not None:
            self._restart.cancel()
        await asyncio.gather(*self._starting, return_exceptions=True)
        workers = list(self._workers)
        for worker in workers:
            worker.kill()
        await asyncio.gather(*(worker.ended.wait() for worker in workers))
        self._active = self._spare = None

    # --- runs -------------------------------------------------------------------------------------------------------

    def _send(self) -> None:
        """Give the waiting run to the warm worker, if there are both."""
        run, worker = self._run, self._active
        if run is None or run.worker is not None or worker is None:
            return
        run.worker = worker
        assignment = run.assignment
        circuits = [part for pair in assignment.circuits.items() for part in pair]
        worker.write(
            encode_frame(
                Kind.RUN,
                encode_integer(run.number),
                encode_integer(assignment.attempt),
                encode_integer(assignment.epoch),
                encode_integer(assignment.age_ns),
                encode_integer(assignment.limit_ns),
                b"" if assignment.session_first_epoch is None else encode_integer(assignment.session_first_epoch),
                assignment.program,
                *circuits,
            )
        )

    def _done(self, worker: "_Worker", frame: Frame) -> None:
        run = self._run
        number, outcome, detail, result, properties, leaves = frame.parts
        if run is None or worker is not run.worker or run.number != decode_integer(number):
            raise FrameError("a result came that nobody waits for")
        if leaves:  # before anybody hears that the device is free
            _log.info("device %s: a worker that programs left too little memory is replaced", self.name)
            worker.kill()
            self._lose(worker)
        succeeded = outcome == RunOutcome.SUCCEEDED.encode()
        report = RunReport(
            device=self.name,
            job=run.assignment.job,
            attempt=run.assignment.attempt,
            outcome=RunOutcome.SUCCEEDED if succeeded else RunOutcome.EXECUTION_ERROR,
            detail=detail.decode(errors="replace"),
            result=result if succeeded else None,
            properties=properties or None,
        )
        if not (succeeded and self._hold(run, report)):
            self._finish(run, report)

    def _hold(self, run: _Run, report: RunReport) -> bool:
        """Keep the device until the run's least duration is over; False if it is."""
        least, limit = run.assignment.min_duration_ns, run.assignment.limit_ns
        loop = self._get_loop()
        end = run.start + least / SECOND
        if end <= loop.time():
            return False
        if least <= limit and run.limit is not None:
            run.limit.cancel()
        run.hold = loop.call_at(end, self._finish, run, report)
        return True

    def _finish(self, run: _Run, report: RunReport) -> None:
        run.disarm()
        if self._run is run:
            self._run = None
            self._report(report)

    def _reach_limit(self, run: _Run) -> None:
        """The run is over: kill its worker, unless it waits for its least duration only."""
        if self._run is not run:
            return
        assignment = run.assignment
        self._abandon(run)
        self._report(
            RunReport(
                device=self.name,
                job=assignment.job,
                attempt=assignment.attempt,
                outcome=RunOutcome.RAN_TOO_LONG,
                detail=(
                    f"the run was stopped when it reached its limit of {assignment.limit_ns / SECOND:g} s: "
                    "raise max_execution_time, or make the job smaller"
                ),
            )
        )

    def _abandon(self, run: _Run) -> None:
        """Forget the run, and kill the worker that is busy with it."""
        run.disarm()
        self._run = None
        if run.worker is not None and run.hold is None:
            run.worker.kill()
            self._lose(run.worker)

    # --- workers ----------------------------------------------------------------------------------------------------

    def _start_worker(self) -> None:
        self._restart = None
        if not self._stopping:
            task = self._get_loop().create_task(self._launch(), name=f"start a worker of {self.name}")
            self._starting.add(task)
            task.add_done_callback(self._starting.discard)

    async def _launch(self) -> None:
        """Start a process; it is told what it is, and reports by READY."""
        loop = self._get_loop()
        ours, theirs = socket.socketpair()
        heard, said = os.pipe()
        worker = _Worker(self, loop, _Complaints(heard))
        gpu = self.spec.gpus[self._launched % len(self.spec.gpus)] if self.spec.gpus else None
        self._launched += 1
        try:
            with theirs, os.fdopen(said, "wb") as stderr:
                ours.setblocking(False)
                # a session of its own: Ctrl-C in the server's terminal is the server's business
                worker.process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-P",  # what lies in the folder where the server was started is not for it to import
                    "-m",
                    WORKER_MODULE,
                    str(theirs.fileno()),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=stderr,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                    env=_environment(self.spec, gpu),
                )
        except BaseException as error:
            ours.close()
            worker.complaints.close()
            if not isinstance(error, OSError):
                raise
            _log.error("device %s: a worker cannot be started: %s", self.name, error)
            self._fail()
            return
        self._workers.add(worker)
        worker.watch()
        await loop.connect_accepted_socket(lambda: worker, ours)
        worker.write(encode_frame(Kind.SETUP, self.name.encode(), self.spec.to_json().encode()))

    def _warm(self, worker: "_Worker", frame: Frame) -> None:
        """A worker has loaded its model."""
        try:
            found = DeviceDescription.FromString(frame.parts[0])
        except DecodeError as error:
            raise FrameError("READY holds no device") from error
        if self.spec.kind in KINDS:
            self.description = found
        else:  # a plugin says what it wants to
            self.description = describe_spec(self.name, self.spec)
            self.description.MergeFrom(found)
        unprotected = frame.parts[1].decode(errors="replace")
        if unprotected != self._told:
            self._told = unprotected
            _log.warning("device %s: its workers are less confined: %s", self.name, unprotected or "no more")
        self._failures = 0
        worker.is_warm = True
        if self._active is None:
            self._promote(worker)
        elif self._spare is None:
            self._spare = worker
        else:
            worker.kill()
        self._first.set()
        self._fill_up()

    def _promote(self, worker: "_Worker") -> None:
        self._active = worker
        self._set_ready(True)
        self._send()

    def _set_ready(self, ready: bool) -> None:
        if ready is self._is_ready:
            return
        self._is_ready = ready
        if self._called:
            # what is so by then: it may change again before
            self._get_loop().call_soon(lambda: self._ready(self.name, self._is_ready))
        else:
            self._ready(self.name, ready)

    def _lose(self, worker: "_Worker") -> None:
        """A warm worker is gone: the spare takes its place, or the device is not ready. A new spare is started."""
        if worker is self._spare:
            self._spare = None
        elif worker is self._active:
            self._active, self._spare = self._spare, None
            self._set_ready(self._active is not None)
        else:
            return
        if self._active is None:
            self._fill_up()
        else:
            self._get_loop().call_later(TAKE_OVER_SECONDS, self._fill_up)

    def _fill_up(self) -> None:
        """Start what is missing of a worker and its spare and is not on its way; one at a time while starts fail."""
        coming = sum(not worker.is_warm and not worker.killed for worker in self._workers) + len(self._starting)
        there = (self._active is not None) + (self._spare is not None)
        if self._restart is not None or (self._failures and coming):
            return
        for _ in range(2 - there - coming):
            self._start_worker()

    def _died(self, worker: "_Worker", code: int) -> None:
        """A worker's process has ended."""
        self._workers.discard(worker)
        if self._stopping:
            return
        run = self._run
        if not worker.killed:
            self.workers_lost += 1
        if not worker.is_warm:
            _log.error("device %s: a worker ended before it was ready: %s", self.name, worker.describe_exit(code))
            self._fail()
        elif not worker.killed:
            _log.warning("device %s: a worker was lost: %s", self.name, worker.describe_exit(code))
        if run is not None and run.worker is worker and run.hold is None:
            self._finish(
                run,
                RunReport(
                    device=self.name,
                    job=run.assignment.job,
                    attempt=run.assignment.attempt,
                    outcome=RunOutcome.WORKER_LOST,
                    detail=f"the worker was lost: {worker.describe_exit(code)}",
                ),
            )

    def _disconnected(self, worker: "_Worker") -> None:
        """A worker's socket has closed: it will do nothing more. How it ended is known when its process has."""
        if self._stopping:
            return
        worker.end_soon()
        self._lose(worker)

    def _fail(self) -> None:
        """A worker could not be started: try again, later each time."""
        self._failures += 1
        self._first.set()
        if not self._is_ready:
            self.description.state = DEVICE_STATE_OFFLINE
            self.description.detail = (
                f"its worker did not start, {self._failures} times in a row; jobs are accepted and wait: the server's "
                "log has the cause, often a setting of the device"
            )
        if self._restart is None and not self._stopping:
            delay = BACK_OFF_SECONDS[min(self._failures, len(BACK_OFF_SECONDS) - 1)]
            _log.error("device %s: %d starts failed in a row; the next in %g s", self.name, self._failures, delay)
            self._restart = self._get_loop().call_later(delay, self._start_worker)

    def _get_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            raise RuntimeError(f"device {self.name} is not started: call start() first")
        return self._loop


class _Worker(asyncio.Protocol):
    """The loop's end of a worker: its process, and frames over its socket."""

    def __init__(self, device: Device, loop: asyncio.AbstractEventLoop, complaints: "_Complaints") -> None:
        self.process: asyncio.subprocess.Process | None = None
        self.complaints = complaints
        self.ended = asyncio.Event()
        self.is_warm = False
        self.killed = False
        self._device = device
        self._loop = loop
        self._reader = FrameReader()
        self._transport: asyncio.Transport | None = None
        self._watching: asyncio.Task[None] | None = None
        self._patience: asyncio.TimerHandle | None = None
        self._fate = ""
        """Why it was killed by us, if it was."""

    def watch(self) -> None:
        """Wait for the end of the process."""
        self._watching = self._loop.create_task(self._wait())
        self._patience = self._loop.call_later(START_SECONDS_MAX, self._lose_patience)

    async def _wait(self) -> None:
        if self.process is None:
            return
        self._loop.add_reader(self.complaints.descriptor, self._hear)
        code = await self.process.wait()
        self._loop.remove_reader(self.complaints.descriptor)
        self._hear()
        self.complaints.close()
        if self._patience is not None:
            self._patience.cancel()
        if self._transport is not None:
            self._transport.abort()
        # the device hears of the closed socket first, also if the process was noticed first
        self._device._disconnected(self)
        self._device._died(self, code)
        self.ended.set()

    def _hear(self) -> None:
        """Log what it says on its stderr."""
        for line in self.complaints.read():
            _log.warning("device %s: worker %d: %s", self._device.name, self.process.pid if self.process else 0, line)
        if self.complaints.ended:
            self._loop.remove_reader(self.complaints.descriptor)

    def _lose_patience(self) -> None:
        if not self.is_warm:
            _log.error("device %s: a worker was not ready within %g s", self._device.name, START_SECONDS_MAX)
            self._end(f"it was not ready within {START_SECONDS_MAX:g} s")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self.killed:
            return
        try:
            for frame in self._reader.feed(data):
                self._take(frame)
        except FrameError as error:
            _log.error("device %s: a worker sent garbage and is killed: %s", self._device.name, error)
            self._end(f"it sent garbage ({error})")
            if self._transport is not None:
                self._transport.abort()

    def _take(self, frame: Frame) -> None:
        if frame.kind == Kind.READY and len(frame.parts) == 2 and not self.is_warm:
            self._device._warm(self, frame)
        elif frame.kind == Kind.DONE and len(frame.parts) == 6:
            self._device._done(self, frame)
        else:
            raise FrameError(f"a frame of kind {frame.kind} with {len(frame.parts)} parts came")

    def connection_lost(self, _: Exception | None) -> None:
        self._transport = None
        self._device._disconnected(self)

    def write(self, data: bytes) -> None:
        """Send; what a dead worker does not take is lost with it."""
        if self._transport is not None:
            self._transport.write(data)

    def kill(self) -> None:
        """End the process now; nothing that it still says counts."""
        self.killed = True
        self._end("it was stopped")

    def end_soon(self) -> None:
        """End the process if it does not end by itself: its socket has closed."""
        if self._patience is not None:
            self._patience.cancel()
        if self.process is not None and self.process.returncode is None:
            self._patience = self._loop.call_later(DISCONNECTED_SECONDS_MAX, self._end, "it closed its connection")

    def _end(self, fate: str) -> None:
        if self.process is not None and self.process.returncode is None:
            self._fate = self._fate or fate
            # not process.kill(): it looks whether the process has ended, and takes its exit code from the loop
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGKILL)

    def describe_exit(self, code: int) -> str:
        """How it ended, for people."""
        if self._fate:
            return f"{self._fate}, and was killed"
        if self.complaints.lacked_memory:
            size = self._device.spec.memory_bytes / 2**30
            return (
                f"it crashed for want of memory, of which a program may take {size:.3g} GiB: use fewer "
                "qubits, shots or sets of values"
            )
        return _describe_exit(code)


class _Complaints:
    """What a worker says on its stderr: lines for the log, and whether it died for want of memory."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.lacked_memory = False
        self.ended = False
        self._part = b""
        os.set_blocking(descriptor, False)

    def read(self) -> list[str]:
        """What it has said since, in lines."""
        lines: list[bytes] = []
        try:
            while data := os.read(self.descriptor, COMPLAINT_BYTES_MAX):
                *whole, self._part = (self._part + data).split(b"\n")
                self._part = self._part[:COMPLAINT_BYTES_MAX]
                lines += whole
                if len(lines) > COMPLAINTS_MAX:
                    break
            else:
                self.ended = True
        except BlockingIOError:
            pass
        texts = [line.decode(errors="replace") for line in lines if line.strip()]
        if any(sign in text for text in texts for sign in _LACK_OF_MEMORY):
            self.lacked_memory = True
        return texts

    def close(self) -> None:
        """Listen no more."""
        os.close(self.descriptor)


def _describe_exit(code: int) -> str:
    if code >= 0:
        return f"it exited with code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = str(-code)
    hint = _HINTS.get(name, "")
    return f"it was killed by signal {name}{hint}"


def _environment(spec: DeviceSpec, gpu: int | None) -> dict[str, str]:
    """Ours, with the worker's threads and its GPU: libraries read these variables when they are loaded."""
    variables = {**os.environ, **dict.fromkeys(_THREAD_VARIABLES, str(spec.threads))}
    return variables if gpu is None else {**variables, "CUDA_VISIBLE_DEVICES": str(gpu)}
