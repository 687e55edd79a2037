"""Drift and calibration: how rates wander, what that does to a device's noise, and that a calibration finds it."""

import itertools
from typing import Any

import numpy as np
import pytest
from cadenza.v1.device_pb2 import DeviceProperties
from cadenza.v1.program_pb2 import Program
from cadenza.v1.result_pb2 import JobResult
from cadenza_server.execution.drift import STEPS, Drift
from cadenza_server.execution.executor import AerExecutor
from cadenza_server.execution.models import DeviceModel
from cadenza_server.execution.noise import to_quantum_error
from cadenza_server.execution.spec import DeviceSpec
from qiskit.quantum_info import average_gate_fidelity

HOUR = 3_600 * 1_000_000_000
SMALL: dict[str, Any] = {"kind": "generic", "num_qubits": 3, "coupling": ((0, 1), (1, 2)), "seed": 5}


def device(**settings: Any) -> AerExecutor:
    return AerExecutor("d", DeviceSpec(**{**SMALL, **settings}), itertools.count(11).__next__)


def run_calibration(executor: AerExecutor, *, epoch: int = 0, age_ns: int = 0, seed: int = 8) -> JobResult:
    program = Program()
    program.calibration.options.seed = seed
    return executor.execute(program, {}, epoch=epoch, attempt=1, age_ns=age_ns).result


def true_errors(model: DeviceModel) -> dict[tuple[str, tuple[int, ...]], float]:
    """Average infidelity of each gate, of the noise that Aer is given now."""
    noise = model.noise_now({"errors": model.noise_errors})
    return {
        (error["operations"][0], tuple(error["gate_qubits"][0])): 1 - average_gate_fidelity(to_quantum_error(error))
        for error in noise["errors"]
        if error["type"] == "qerror"
    }


# --- the walk -------------------------------------------------------------------------------------------------------


def test_rates_are_as_calibrated_at_the_calibration_and_wander_as_the_model_says() -> None:
    drift = Drift(seed=3, size=4_000, deviation=0.3, correlation_ns=HOUR)
    assert (drift.logarithms(0, 0) == 0).all()
    for age in (HOUR // 10, HOUR, 30 * HOUR):
        walks = drift.logarithms(0, drift.step(age))
        expected = 0.3 * np.sqrt(1 - np.exp(-2 * age / HOUR))
        # 4,000 walks: the deviation of a deviation is 1 in 89
        assert abs(walks.std() / expected - 1) < 5 / 89
        assert abs(walks.mean()) < 5 * expected / np.sqrt(4_000)
    # over one correlation time the walk forgets all but 1 / e
    before, after = (drift.logarithms(0, drift.step(age)) for age in (30 * HOUR, 31 * HOUR))
    assert abs(np.corrcoef(before, after)[0, 1] - np.exp(-1)) < 5 / np.sqrt(4_000)


def test_the_same_seed_epoch_and_age_give_the_same_rates_in_any_order() -> None:
    one, other = (Drift(seed=3, size=5, deviation=0.3, correlation_ns=HOUR) for _ in range(2))
    moments = [(0, 5), (0, 700), (2, 700), (0, 1), (0, 2_600), (0, 701)]
    found = {moment: one.logarithms(*moment).tolist() for moment in moments}
    assert {moment: other.logarithms(*moment).tolist() for moment in reversed(moments)} == found
    assert len({tuple(values) for values in found.values()}) == len(moments)
    assert Drift(seed=4, size=5, deviation=0.3, correlation_ns=HOUR).logarithms(0, 5).tolist() != found[0, 5]


def test_within_a_step_nothing_changes_and_steps_are_small() -> None:
    drift = Drift(seed=3, size=1_000, deviation=0.3, correlation_ns=HOUR)
    assert drift.step(HOUR // STEPS - 1) == 0
    assert drift.step(HOUR // STEPS) == 1
    assert drift.step(-5) == 0
    # also where the memory of the walk is cut off
    for step in (500, 256, 8 * 256, 9 * 256, 20 * 256):
        moved = drift.logarithms(0, step + 1) - drift.logarithms(0, step)
        assert abs(moved.std() / (0.3 * np.sqrt(2 / STEPS)) - 1) < 0.15


# --- the noise ------------------------------------------------------------------------------------------------------


def test_without_drift_age_changes_nothing() -> None:
    model = DeviceModel(DeviceSpec(**SMALL))
    model.set_age(3, 1_000 * HOUR)
    noise = {"errors": model.noise_errors}
    assert model.noise_now(noise) is noise


def test_drifted_noise_is_that_of_a_device_made_with_the_drifted_rates() -> None:
    model = DeviceModel(DeviceSpec(**SMALL, drift=0.3))
    drift = model.drift
    assert drift is not None
    calibrated = true_errors(model)
    drift.set_factors(np.ones(drift.size) * 2.0)
    drifted = true_errors(model)
    assert drifted.keys() == calibrated.keys()
    ratios = [drifted[gate] / calibrated[gate] for gate in calibrated]
    assert np.allclose(ratios, 2.0, rtol=0.02)  # what relaxes is not quite linear
    readouts = [
        error for error in model.noise_now({"errors": model.noise_errors})["errors"] if error["type"] == "roerror"
    ]
    before = {
        error["gate_qubits"][0][0]: error["probabilities"][0][1] for error in model.noise_errors if "id" not in error
    }
    for error in readouts:
        assert np.isclose(error["probabilities"][0][1], 2 * before[error["gate_qubits"][0][0]])


def test_a_run_feels_the_drift_of_its_moment_and_a_new_epoch_begins_as_calibrated() -> None:
    executor = device(drift=1.0)
    program = Program()
    program.estimator.options.seed = 1
    pub = program.estimator.pubs.add()
    pub.circuit.openqasm3 = 'OPENQASM 3.0;\ninclude "stdgates.inc";\nqubit[2] q;\n' + "x q[0];\ncx q[0], q[1];\n" * 41
    pub.observables.observables.add().terms.add(pauli="IZ", coefficient=1.0)
    program.estimator.options.method = "density_matrix"

    def value(epoch: int, age_ns: int) -> bytes:
        executed = executor.execute(program, {}, epoch=epoch, attempt=1, age_ns=age_ns)
        assert executed.result.execution.epoch == epoch
        return bytes(executed.result.pubs[0].fields[0].tensor.data)

    calibrated, later, much_later = value(0, 0), value(0, HOUR // 50), value(0, 9 * HOUR)
    assert len({calibrated, later, much_later}) == 3
    assert value(0, HOUR // 50) == later  # the same circuit, kept ready, at the earlier moment again
    assert value(1, 0) == calibrated
    assert value(1, 9 * HOUR) not in (calibrated, much_later)


def test_delays_drift_with_the_relaxation_of_their_qubit() -> None:
    executor = device(drift=0.5)
    model = executor._workshop.model
    drift = model.drift
    assert drift is not None
    t1 = model.backend.target.qubit_properties[0].t1
    ticks = round(t1 / model.backend.target.dt)
    program = Program()
    program.estimator.options.method = "density_matrix"
    pub = program.estimator.pubs.add()
    pub.circuit.openqasm3 = f'OPENQASM 3.0;\ninclude "stdgates.inc";\nqubit[3] q;\nx q[0];\ndelay[{ticks}dt] q[0];\n'
    program.estimator.options.strict_isa = True
    pub.observables.observables.add().terms.add(pauli="II1", coefficient=1.0)
    for factor in (1.0, 2.0, 0.5):
        factors = np.ones(drift.size)
        factors[0] = factor
        drift.set_factors(factors)
        drift._moment = (0, 0)
        executed = executor.execute(program, {}, epoch=0, attempt=1)
        (left,) = np.frombuffer(executed.result.pubs[0].fields[0].tensor.data)
        assert abs(left - np.exp(-factor)) < 0.003  # the gate errs, too


# --- calibration ----------------------------------------------------------------------------------------------------


def check(found: DeviceProperties, executor: AerExecutor, *, t1_s: list[float], t2_s: list[float]) -> None:
    """Everything is found within what `calibration.py` states."""
    model = executor._workshop.model
    noise = model.noise_now({"errors": model.noise_errors})["errors"]
    readout = {
        error["gate_qubits"][0][0]: error["probabilities"][0][1] for error in noise if error["type"] == "roerror"
    }
    errors = true_errors(model)
    for qubit in found.qubits:
        assert abs(qubit.readout_error - readout[qubit.qubit]) < 0.0055
        assert abs(qubit.t1_s / t1_s[qubit.qubit] - 1) < 0.08
        assert abs(qubit.t2_s / t2_s[qubit.qubit] - 1) < 0.16
    for gate in found.gates:
        if gate.gate in ("x", "sx"):
            assert abs(gate.error - errors[gate.gate, tuple(gate.qubits)]) < 4e-4
        elif gate.gate == "cx":
            assert abs(gate.error - errors[gate.gate, tuple(gate.qubits)]) < 2.5e-3


def test_a_calibration_finds_rates_that_were_injected_and_then_those_that_it_restored() -> None:
    executor = device(drift=0.4)
    model = executor._workshop.model
    drift = model.drift
    assert drift is not None
    known = model.backend.target.qubit_properties
    rates = np.random.default_rng(2)
    factors = np.exp(rates.normal(0.0, 0.4, drift.size))
    drift.set_age(6, 0)
    drift.set_factors(factors)  # as if it had drifted so by now
    result = run_calibration(executor, epoch=6)
    t1_s, t2_s = ([getattr(qubit, name) for qubit in known] for name in ("t1", "t2"))
    assert (result.drifted.epoch, result.calibration.epoch) == (6, 7)
    check(result.calibration, executor, t1_s=t1_s, t2_s=t2_s)  # the device is restored now
    drift.set_factors(factors)
    wandered = [[time / factors[qubit] for qubit, time in enumerate(times)] for times in (t1_s, t2_s)]
    check(result.drifted, executor, t1_s=wandered[0], t2_s=wandered[1])
    # and the check can tell the two apart
    with pytest.raises(AssertionError):
        check(result.calibration, executor, t1_s=wandered[0], t2_s=wandered[1])


def test_a_device_that_does_not_drift_reports_one_set_of_properties() -> None:
    result = run_calibration(device())
    assert result.HasField("calibration")
    assert not result.HasField("drifted")
