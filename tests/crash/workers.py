"""Workers that die, hang, answer late, never, twice, or in another order; and what each job does when it runs."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cadenza.v1 import program_pb2
from cadenza_server.engine.payloads import circuit_digest
from cadenza_server.execution.runs import Assignment, RunReport
from cadenza_server.model.settings import SECOND
from cadenza_server.model.words import RunOutcome

from tests.crash.virtual_loop import VirtualLoop


@dataclass(frozen=True, slots=True)
class Deed:
    """What a job does each time that it runs."""

    length_ns: int
    outcome: RunOutcome = RunOutcome.SUCCEEDED


CALIBRATION = Deed(2 * SECOND)


def deed_of(program: program_pb2.Program) -> Deed:
    """Programs say it themselves: the first circuit's text is `OPENQASM 3.0; LENGTH OUTCOME NAME`."""
    if program.WhichOneof("kind") == "calibration":
        return CALIBRATION
    for pub in program.sampler.pubs:
        if pub.circuit.openqasm3:
            _, _, length, outcome, *_ = pub.circuit.openqasm3.split()
            return Deed(int(length), RunOutcome(outcome))
    raise AssertionError("the program has no circuit of its own")


def result_of(job: str, attempt: int) -> bytes:
    """Says which attempt it is of."""
    return f"{job} {attempt}".encode()


class SimulatedDevice:
    """A device of one server. `strikes`: whether a fault happens now. `run` checks what it is given."""

    def __init__(
        self,
        name: str,
        loop: VirtualLoop,
        source: random.Random,
        strikes: Callable[[str], bool],
        report: Callable[[RunReport], None],
        ready: Callable[[str, bool], None],
    ) -> None:
        self.name = name
        self._loop = loop
        self._source = source
        self._strikes = strikes
        self._report = report
        self._ready = ready
        self._assignment: Assignment | None = None
        self._latest: dict[tuple[str, int], Assignment] = {}

    async def start(self) -> None:
        """Be ready, now or later."""
        if self._strikes("slow start"):
            self._loop.call_later(self._source.uniform(0, 10), self._ready, self.name, True)
        else:
            self._ready(self.name, True)

    def run(self, assignment: Assignment) -> None:
        """See `engine.writer.Device`."""
        self._loop.step()
        assert self._assignment is None, f"{self.name} is given {assignment.job} while it runs another job"
        self._assignment = assignment
        self._latest[assignment.job, assignment.attempt] = assignment
        program = program_pb2.Program.FromString(assignment.program)
        check_circuits(program, assignment.circuits)
        deed = deed_of(program)
        length = max(deed.length_ns, assignment.min_duration_ns if program.WhichOneof("kind") == "calibration" else 0)
        dies = deed.outcome is RunOutcome.WORKER_LOST or self._strikes("worker dies")
        death = self._source.random() * length
        if dies and death <= assignment.limit_ns:
            self._loop.call_later(death / SECOND, self._die, assignment)
        elif length > assignment.limit_ns or self._strikes("report is lost"):
            # a worker that is not heard of is killed at its run's limit
            self._loop.call_later(assignment.limit_ns / SECOND, self._end, assignment, RunOutcome.RAN_TOO_LONG)
        else:
            delay = self._source.uniform(0, 3) if self._strikes("report is late") else 0.0
            self._loop.call_later(length / SECOND + delay, self._end, assignment, deed.outcome)

    def stop_run(self, job: str, attempt: int) -> None:
        """See `engine.writer.Device`; what was on its way may still arrive."""
        self._loop.step()
        run, self._assignment = self._assignment, None
        if run is None:
            return  # its program is still being read
        assert (run.job, run.attempt) == (job, attempt), f"{run.job} runs, and {job} is stopped"
        if self._strikes("late result"):
            self._loop.call_later(self._source.uniform(0, 5), self._send, run, RunOutcome.SUCCEEDED)

    async def stop(self) -> None:
        """End the workers."""
        self._assignment = None

    def _end(self, run: Assignment, outcome: RunOutcome) -> None:
        if self._assignment is not run:
            return  # it was stopped
        self._assignment = None
        again = self._strikes("report comes twice")
        self._send(run, outcome)
        if again:
            self._loop.call_later(self._source.uniform(0, 5), self._send, run, outcome)

    def _die(self, run: Assignment) -> None:
        if self._assignment is not run:
            return
        self._assignment = None
        first = self._source.random() < 0.5  # that it is not ready, or that the run is lost
        if first:
            self._ready(self.name, False)
        self._send(run, RunOutcome.WORKER_LOST)
        if not first:
            self._ready(self.name, False)
        self._loop.call_later(self._source.uniform(0, 1), self._ready, self.name, True)
        if self._strikes("late result"):
            self._loop.call_later(self._source.uniform(0, 5), self._send, run, RunOutcome.SUCCEEDED)

    def _send(self, run: Assignment, outcome: RunOutcome) -> None:
        self._loop.step()
        if self._latest[run.job, run.attempt] is not run:
            return  # its start never reached the disk, so its number came again; a device keeps the two apart
        succeeded = outcome is RunOutcome.SUCCEEDED
        self._report(
            RunReport(
                device=self.name,
                job=run.job,
                attempt=run.attempt,
                outcome=outcome,
                detail="" if succeeded else "it was so",
                result=result_of(run.job, run.attempt) if succeeded else None,
                properties=None,
            )
        )


def check_circuits(program: program_pb2.Program, circuits: Mapping[bytes, bytes]) -> None:
    """Of those that a program names, each is in it or given with it."""
    own = {circuit_digest(pub.circuit) for pub in program.sampler.pubs}
    for pub in program.sampler.pubs:
        digest = pub.circuit.digest
        if digest and digest not in own:
            assert digest in circuits, f"the circuit {digest.hex()} is missing"
