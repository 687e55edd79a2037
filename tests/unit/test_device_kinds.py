"""Kinds of devices: what may be configured, what is said of it, and what it becomes."""

import itertools
import re
from pathlib import Path

import pytest
from cadenza.v1.program_pb2 import Program
from cadenza_server.config import Config, ConfigError, parse_config, print_config
from cadenza_server.execution import snapshots
from cadenza_server.execution.description import describe_spec
from cadenza_server.execution.executor import AerExecutor
from cadenza_server.execution.models import DeviceModel
from cadenza_server.execution.spec import DeviceSpec
from qiskit import QuantumCircuit

PLUGINS = Path(__file__).parents[1] / "plugins"
SECOND = 1_000_000_000


def read(text: str) -> Config:
    return parse_config(text, Path("/"))


def problem(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(text)
    (only,) = caught.value.problems
    return only


def test_every_setting_of_every_kind_is_read_and_printed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("qiskit_ibm_runtime")
    monkeypatch.syspath_prepend(str(PLUGINS))
    config = read(
        """
        [devices.a]
        kind = "aer"
        num_qubits = 30
        precision = "single"
        method = "statevector"
        threads = 3
        accelerator = "auto"
        gpus = [1, 0]
        batched_shots = false
        custatevec = true
        memory_bytes_max = 1073741824
        network = true
        [devices.g]
        kind = "generic"
        num_qubits = 3
        coupling = "ring"
        drift = 0.25
        drift_time = "2h"
        [devices.s]
        kind = "snapshot"
        snapshot = "FakeManilaV2"
        seed = 7
        noise = false
        [devices.n]
        kind = "noop"
        num_qubits = 7
        options = { text = "a b", list = [1, 2.5], flag = true, inner = { x = -1 } }
        """
    )
    a, g, s, n = (config.devices[name].spec for name in "agsn")
    assert (a.precision, a.accelerator, a.gpus, a.batched_shots, a.custatevec) == (
        "single",
        "auto",
        (1, 0),
        False,
        True,
    )
    assert (a.memory_bytes, a.network, a.threads) == (2**30, True, 3)
    assert (g.drift, g.drift_time_ns) == (0.25, 7_200 * SECOND)
    assert (s.num_qubits, s.snapshot, s.is_noisy) == (5, "FakeManilaV2", False)
    assert n.options["inner"] == {"x": -1}
    assert read(print_config(config)).devices == config.devices
    for device in config.devices.values():
        assert DeviceSpec.from_json(device.spec.to_json()) == device.spec


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("kind = 'snapshot'", "[devices.q]: snapshot is missing: name a backend"),
        ("kind = 'snapshot'\nsnapshot = 'FakeSherbroke'", "did you mean FakeSherbrooke"),
        ("kind = 'snapshot'\nsnapshot = 'FakeManilaV2'\nnum_qubits = 3", "num_qubits: only a device of kind"),
        ("kind = 'aer'\nsnapshot = 'FakeManilaV2'", 'snapshot: only a device of kind "snapshot" has it'),
        ("kind = 'aer'\noptions = {}", "options: only a device of kind a plugin has it"),
        ("kind = 'generic'\nnoise = false\ndrift = 0.1", "drift is set, and the device has no noise"),
        ("kind = 'generic'\ndrift = 3", "drift is 3.0: it must be a number from 0 to 2"),
        ("accelerator = 'tpu'", "accelerator: 'tpu' is not one of cpu, gpu, auto"),
        ("gpus = [0]", "gpus are named, and accelerator is 'cpu'"),
        ("accelerator = 'gpu'\ngpus = [0, 0]", "gpus is [0, 0]: it must be different numbers"),
        ("precision = 'half'", "precision: 'half' is not one of double, single"),
        ("memory_bytes_max = -1", "memory_bytes_max is -1: it must be an integer from 0"),
        ("kind = 'noop'\noptions = { when = 2026-01-01 }", "only texts, finite numbers"),
    ],
)
def test_a_wrong_setting_is_named_with_what_to_do(table: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("qiskit_ibm_runtime")
    monkeypatch.syspath_prepend(str(PLUGINS))
    assert expected in problem(f"[devices.q]\n{table}\n")


def test_snapshots_without_their_package_are_refused_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(snapshots, "find_spec", lambda name: None)
    snapshots._find_files.cache_clear()
    try:
        said = problem("[devices.q]\nkind = 'snapshot'\nsnapshot = 'FakeSherbrooke'\n")
    finally:
        snapshots._find_files.cache_clear()
    assert "qiskit-ibm-runtime's, which is not installed: pip install 'cadenza[snapshots]'" in said


def test_the_snapshots_found_without_importing_are_those_that_there_are() -> None:
    fake_provider = pytest.importorskip("qiskit_ibm_runtime.fake_provider")
    there_are = {name for name in vars(fake_provider) if re.fullmatch(r"Fake(?!Provider)\w+", name)}
    assert set(snapshots._find_files()) == there_are
    assert snapshots.find_snapshot("FakeSherbrooke").num_qubits == 127


def test_a_snapshot_is_its_real_devices_map_gates_and_errors() -> None:
    fake_provider = pytest.importorskip("qiskit_ibm_runtime.fake_provider")
    backend = fake_provider.FakeManilaV2()
    spec = DeviceSpec(kind="snapshot", snapshot="FakeManilaV2", num_qubits=5)
    device = DeviceModel(spec).describe("manila")
    assert {(pair.first, pair.second) for pair in device.coupling_map} == set(backend.coupling_map.get_edges())
    assert device.properties.qubits[3].t1_s == backend.target.qubit_properties[3].t1
    errors = {tuple(gate.qubits): gate.error for gate in device.properties.gates if gate.gate == "cx"}
    assert errors == {qubits: known.error for qubits, known in backend.target["cx"].items()}
    assert describe_spec("manila", spec).description == (
        "Qiskit Aer, with modelled noise, 5 qubits, as FakeManilaV2 of qiskit-ibm-runtime"
    )


def test_a_snapshot_runs_circuits_with_its_noise() -> None:
    pytest.importorskip("qiskit_ibm_runtime")
    spec = DeviceSpec(kind="snapshot", snapshot="FakeManilaV2", num_qubits=5)
    executor = AerExecutor("manila", spec, itertools.count(5).__next__)
    program = Program()
    program.sampler.default_shots = 4000
    program.sampler.pubs.add().circuit.openqasm3 = (
        'OPENQASM 3.0;\ninclude "stdgates.inc";\nqubit[2] q;\nbit[2] c;\nh q[0];\ncx q[0], q[1];\nc = measure q;\n'
    )
    (pub,) = executor.execute(program, {}, epoch=0, attempt=1).result.pubs
    outcomes = list(pub.fields[0].bits.data)
    wrong = sum(outcome in (1, 2) for outcome in outcomes) / 4000
    assert 0.01 < wrong < 0.15  # its readout alone errs by 2 to 4 in a hundred


def test_a_snapshot_takes_delays_of_any_length() -> None:
    pytest.importorskip("qiskit_ibm_runtime")
    model = DeviceModel(DeviceSpec(kind="snapshot", snapshot="FakeManilaV2", num_qubits=5))
    circuit = QuantumCircuit(1)
    circuit.delay(450, 0, "dt")  # no multiple of 16, in which that device counts
    assert model.fit(circuit, 1, strict=False).count_ops() == {"delay": 1}


def test_aer_is_told_what_the_device_was_told() -> None:
    model = DeviceModel(DeviceSpec(precision="single", threads=2, memory_bytes_max=2**28, method="statevector"))
    options = model.simulator.options
    assert (options.precision, options.max_parallel_threads, options.max_memory_mb) == ("single", 2, 256)
    assert options.method == "statevector"
