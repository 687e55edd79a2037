"""What Aer's devices run in a worker."""

import time
from collections.abc import Callable, Mapping

from cadenza.v1.circuit_pb2 import Circuit
from cadenza.v1.device_pb2 import Device, DeviceProperties
from cadenza.v1.program_pb2 import CalibrationJob, EstimatorJob, Program, SamplerJob
from cadenza.v1.result_pb2 import JobResult, PubResult

from cadenza_server.execution.calibration import calibrate
from cadenza_server.execution.errors import ProgramError
from cadenza_server.execution.estimator import run_estimator_pub
from cadenza_server.execution.models import DeviceModel
from cadenza_server.execution.plugins import Executed
from cadenza_server.execution.programs import Bench, Stopwatch, Workshop, set_up_bench
from cadenza_server.execution.sampler import run_sampler_pub
from cadenza_server.execution.spec import DeviceSpec


class AerExecutor:
    """Qiskit Aer, with or without noise. `draw_seed` gives the seed of a job that asks for none, below 2**63."""

    def __init__(self, name: str, spec: DeviceSpec, draw_seed: Callable[[], int]) -> None:
        self._name = name
        self._spec = spec
        self._draw_seed = draw_seed
        self._workshop = Workshop(DeviceModel(spec), draw_seed)

    def describe(self) -> Device:
        """See `Executor`."""
        return self._workshop.model.describe(self._name)

    def warm_up(self) -> None:
        """Run a small program of each kind, so that everything is imported and Aer's library is loaded."""
        text = 'OPENQASM 3.0;\ninclude "stdgates.inc";\nqubit[2] q;\nbit[2] c;\nh q[0];\ncx q[0], q[1];\n'
        sampler, estimator = Program(), Program()
        sampler.sampler.pubs.add().circuit.openqasm3 = text + "c = measure q;\n"
        pub = estimator.estimator.pubs.add()
        pub.circuit.openqasm3 = text
        pub.observables.observables.add().terms.add(pauli="ZZ", coefficient=1.0)
        for program in (sampler, estimator):
            self.execute(program, {}, epoch=0, attempt=0)
        self._workshop.model.load_pass_manager()
        self.forget()

    def forget(self) -> None:
        """Keep the model, and no circuit."""
        self._workshop = Workshop(self._workshop.model, self._draw_seed)

    def execute(
        self, program: Program, circuits: Mapping[bytes, Circuit], *, epoch: int, attempt: int, age_ns: int = 0
    ) -> Executed:
        """See `Executor`."""
        self._workshop.model.set_age(epoch, age_ns)
        kind = program.WhichOneof("kind")
        drifted = properties = None
        if kind == "sampler":
            bench, pubs, method = self._sample(program.sampler, circuits)
        elif kind == "estimator":
            bench, pubs, method = self._estimate(program.estimator, circuits)
        elif kind == "calibration":
            bench, pubs, method = self._sample(program.calibration, circuits)
            if not program.calibration.pubs:
                drifted, properties = self._calibrate(bench, epoch)
                bench.watch.execute_ns += bench.watch.lap()
        else:
            raise ProgramError("the job has no program: set sampler, estimator or calibration")
        result = JobResult(pubs=pubs, calibration=properties, drifted=drifted)
        self._describe_execution(result, bench.watch, epoch, attempt, method)
        return Executed(result, properties)

    def _calibrate(self, bench: Bench, epoch: int) -> tuple[DeviceProperties | None, DeviceProperties]:
        """What the device has drifted to, if it drifts, and what it is like once it is restored."""
        drifted = None
        if bench.model.drift is not None:
            drifted = calibrate(bench)
            drifted.epoch = epoch
            drifted.measure_time.FromNanoseconds(time.time_ns())
            bench.model.set_age(epoch + 1, 0)
        properties = calibrate(bench)
        properties.epoch = epoch + 1
        properties.measure_time.FromNanoseconds(time.time_ns())
        return drifted, properties

    def _sample(
        self, job: SamplerJob | CalibrationJob, circuits: Mapping[bytes, Circuit]
    ) -> tuple[Bench, list[PubResult], str]:
        bench = set_up_bench(self._workshop, job.options, job.pubs, circuits)
        shots = job.default_shots if job.HasField("default_shots") else self._spec.default_shots
        results, method = [], bench.method
        for index, pub in enumerate(job.pubs):
            with _PubNamed(index, len(job.pubs)):
                result, method = run_sampler_pub(bench, index, pub, shots)
            results.append(result)
        return bench, results, method

    def _estimate(self, job: EstimatorJob, circuits: Mapping[bytes, Circuit]) -> tuple[Bench, list[PubResult], str]:
        bench = set_up_bench(self._workshop, job.options, job.pubs, circuits)
        precision = job.default_precision if job.HasField("default_precision") else self._spec.default_precision
        results, method = [], bench.method
        for index, pub in enumerate(job.pubs):
            with _PubNamed(index, len(job.pubs)):
                result, method = run_estimator_pub(bench, index, pub, precision)
            results.append(result)
        return bench, results, method

    def _describe_execution(self, result: JobResult, watch: Stopwatch, epoch: int, attempt: int, method: str) -> None:
        execution = result.execution
        execution.device = self._name
        execution.epoch = epoch
        execution.attempt = attempt
        execution.method = method
        execution.parse_duration.FromNanoseconds(watch.parse_ns)
        execution.transpile_duration.FromNanoseconds(watch.transpile_ns)
        execution.execute_duration.FromNanoseconds(watch.execute_ns)


class _PubNamed:
    """Says in which PUB of several a program is wrong."""

    def __init__(self, index: int, count: int) -> None:
        self._index = index
        self._count = count

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ProgramError) and self._count > 1:
            raise ProgramError(f"PUB {self._index}: {error}") from error
