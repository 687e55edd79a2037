"""Programs as people write them, against a real private server."""

import asyncio
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cadenza import (
    AsyncClient,
    Batch,
    CadenzaBackend,
    CadenzaService,
    Client,
    EstimatorV2,
    InvalidRequestError,
    JobCancelledError,
    JobFailedError,
    NotFoundError,
    PermissionDeniedError,
    PreconditionError,
    SamplerV2,
    ServerStartError,
    Session,
    sampler_program,
)
from cadenza._local import private_server
from cadenza.v1 import job_pb2
from qiskit import ClassicalRegister, QuantumCircuit, QuantumRegister
from qiskit.circuit.library import efficient_su2
from qiskit.primitives import BasePrimitiveJob, BitArray, StatevectorEstimator, StatevectorSampler
from qiskit.quantum_info import SparsePauliOp
from qiskit.transpiler import generate_preset_pass_manager

PATIENCE_S = 30.0

CONFIG = """
[devices.sim]
kind = "aer"
num_qubits = 20
[devices.line]
kind = "generic"
num_qubits = 5
coupling = "line"
"""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CadenzaService]:
    config = tmp_path_factory.mktemp("config") / "cadenza.toml"
    config.write_text(CONFIG)
    with CadenzaService.local(config) as made:
        yield made


@pytest.fixture
def sim(service: CadenzaService) -> CadenzaBackend:
    return service.backend("sim")


def ghz(qubits: int = 2) -> QuantumCircuit:
    circuit = QuantumCircuit(qubits)
    circuit.h(0)
    for qubit in range(1, qubits):
        circuit.cx(0, qubit)
    circuit.measure_all()
    return circuit


# --- results ----------------------------------------------------------------------------------------------------------


def test_a_session_gives_the_counts_of_a_ghz_state(sim: CadenzaBackend) -> None:
    with Session(sim, max_time="1h") as session:
        sampler = SamplerV2(mode=session, options={"simulator": {"seed_simulator": 7}})
        job = sampler.run([ghz()], shots=1000)
        counts = job.result(PATIENCE_S)[0].data.meas.get_counts()
        assert isinstance(job, BasePrimitiveJob)
        assert set(counts) == {"00", "11"}
        assert sum(counts.values()) == 1000
        again = sampler.run([ghz()], shots=1000).result(PATIENCE_S)[0].data.meas.get_counts()
        assert again == counts
        assert job.session_id == session.session_id
        assert job.metrics()["usage"]["status"] == "final"
        assert job.usage() > 0


def test_sampler_results_have_the_shapes_that_qiskit_s_own_sampler_gives(sim: CadenzaBackend) -> None:
    qubits, first, second = QuantumRegister(3), ClassicalRegister(2, "first"), ClassicalRegister(9, "second")
    circuit = QuantumCircuit(qubits, first, second)
    ansatz = efficient_su2(3, reps=1, su2_gates=["ry"])
    circuit.compose(ansatz, inplace=True)
    circuit.measure([0, 1], first)
    circuit.measure(2, second[8])
    values = np.random.default_rng(1).normal(size=(4, 2, ansatz.num_parameters))
    pubs = [(circuit, values, 30), ghz(), (circuit, values[0, 0])]
    ours = SamplerV2(mode=sim).run(pubs, shots=50).result(PATIENCE_S)
    theirs = StatevectorSampler().run(pubs, shots=50).result()
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.data.shape == other.data.shape
        assert list(mine.data) == list(other.data)
        for name in other.data:
            assert isinstance(mine.data[name], BitArray)
            assert mine.data[name].array.shape == other.data[name].array.shape
            assert mine.data[name].num_bits == other.data[name].num_bits


def test_estimator_results_are_exact_where_that_was_asked_for(sim: CadenzaBackend) -> None:
    ansatz = efficient_su2(3, reps=2)
    values = np.random.default_rng(2).normal(size=(4, 1, ansatz.num_parameters))
    observables = [SparsePauliOp(["XXI", "ZIZ"], [0.5, -2.0]), "IYZ", {"ZZZ": 1.5, "III": 0.25}]
    pubs = [
        (ansatz, observables, values),
        (ansatz, "ZII", values[0, 0]),
        (ghz().remove_final_measurements(False), "ZZ"),
    ]
    ours = EstimatorV2(mode=sim).run(pubs, precision=0.0).result(PATIENCE_S)
    theirs = StatevectorEstimator().run(pubs).result()
    assert [pub.data.evs.shape for pub in ours] == [(4, 3), (), ()]
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine.data.evs, other.data.evs, atol=1e-9)
        assert mine.data.stds.shape == other.data.evs.shape


def test_measurements_in_the_middle_steer_what_follows(sim: CadenzaBackend) -> None:
    circuit = QuantumCircuit(QuantumRegister(2), ClassicalRegister(1, "mid"), ClassicalRegister(1, "end"))
    circuit.h(0)
    circuit.measure(0, 0)
    with circuit.if_test((circuit.clbits[0], 1)):
        circuit.x(1)
    circuit.measure(1, 1)
    data = SamplerV2(mode=sim).run([circuit], shots=200).result(PATIENCE_S)[0].data
    np.testing.assert_array_equal(data.mid.array, data.end.array)
    assert 0 < data.mid.get_int_counts().get(1, 0) < 200


def test_a_backend_tells_how_far_its_estimates_were_off(sim: CadenzaBackend) -> None:
    SamplerV2(mode=sim).run([ghz()]).result(PATIENCE_S)
    error = sim.estimate_error()
    assert error is not None
    assert error["run_count"] >= 1
    assert 1 <= error["factor_p50"] <= error["factor_p90"]
    assert 0 <= error["seconds_p50"] <= error["seconds_p90"]


def test_a_circuit_made_for_the_target_runs_as_it_is_on_the_noisy_device(service: CadenzaService) -> None:
    line = service.backend("line")
    assert (line.num_qubits, line.target.num_qubits) == (5, 5)
    assert set(line.coupling_map.get_edges()) >= {(0, 1), (1, 2), (2, 3), (3, 4)}
    properties = line.properties()
    assert properties is not None
    assert 0 < (properties.readout_error(0) or 0) < 0.5
    assert properties.qubit_property(0, "T1") == (properties.t1(0), properties.last_update_date)
    assert {"T1", "T2", "frequency", "readout_error", "readout_length"} <= properties.qubit_property(4).keys()
    assert properties.gate_property("cx", (0, 1), "gate_error")[0] == properties.gate_error("cx", (0, 1))
    assert properties.gate_property("sx")[2,] == properties.gate_property("sx", 2)
    assert (properties.is_gate_operational("cx"), properties.is_gate_operational("cy")) == (True, False)
    for unknown in (("sx", None, "gate_error"), ("sx", 2, "colour"), ("sx", 5, None), ("cy", None, None)):
        with pytest.raises(NotFoundError, match="do not say"):
            properties.gate_property(*unknown)
    with pytest.raises(NotFoundError, match="colour of qubit 0"):
        properties.qubit_property(0, "colour")
    circuit = generate_preset_pass_manager(1, target=line.target, seed_transpiler=1).run(ghz(3))
    sampler = SamplerV2(mode=line, options={"strict_isa": True, "default_shots": 500})
    counts = sampler.run([circuit]).result(PATIENCE_S)[0].data.meas.get_counts()
    assert sum(counts.values()) == 500
    assert counts["000"] + counts["111"] > 350
    loose = QuantumCircuit(5, 1)
    loose.ccx(0, 2, 4)
    loose.measure(4, 0)
    job = sampler.run([loose])
    with pytest.raises(JobFailedError) as caught:
        job.result(PATIENCE_S)
    assert caught.value.reason == "EXECUTION_ERROR"
    assert job.status() == "ERROR"


def test_arguments_of_the_other_client_that_mean_nothing_may_be_given_as_nothing(service: CadenzaService) -> None:
    everything = service.backends(instance=None, calibration_id=None, include_mocks=False, use_fractional_gates=False)
    assert [backend.name for backend in everything] == [backend.name for backend in service.backends()]
    assert service.backend("line").properties(datetime=None) is not None
    assert service.jobs(limit=0, include_mocks=False) == []
    with Session(service.backend("line")) as session:
        again = Session.from_id(session.session_id, service, use_fractional_gates=False, calibration_id=None)
    assert again.session_id == session.session_id
    wrong: Any = "2026"
    for call in (
        lambda: service.backends(calibration_id=wrong),
        lambda: service.backend("line").properties(datetime=wrong),
        lambda: Session.from_id(session.session_id, service, calibration_id=wrong),
    ):
        with pytest.raises(InvalidRequestError, match="means nothing here"):
            call()


# --- sessions ---------------------------------------------------------------------------------------------------------


def test_an_iterative_program_sends_its_circuit_once(service: CadenzaService, sim: CadenzaBackend) -> None:
    ansatz = efficient_su2(2, reps=1, su2_gates=["ry"])
    jobs = []
    with Session(sim) as session:
        estimator = EstimatorV2(mode=session, options={"default_precision": 0.0})
        for step in range(3):
            jobs.append(estimator.run([(ansatz, "ZZ", np.full(4, 0.1 * step))]))
            assert jobs[-1].result(PATIENCE_S)[0].data.evs.shape == ()
        attached = Session.from_id(session.session_id, service)
        jobs.append(EstimatorV2(mode=attached).run([(ansatz, "ZZ", np.zeros(4))], precision=0.0))
        assert jobs[-1].result(PATIENCE_S)[0].data.evs == pytest.approx(1.0)
    kinds = [
        service.client.get_job_payload(job.job_id()).estimator.pubs[0].circuit.WhichOneof("source") for job in jobs
    ]
    assert kinds == ["qpy", "digest", "digest", "qpy"]


def test_what_is_queued_in_a_batch_still_runs_after_its_block(sim: CadenzaBackend) -> None:
    with Batch(sim) as batch:
        jobs = [SamplerV2().run([ghz(size)], shots=10) for size in (2, 3, 4)]
    assert [job.result(PATIENCE_S)[0].data.meas.num_bits for job in jobs] == [2, 3, 4]
    assert batch.status() == "Closed"
    details = batch.details()
    assert (details["mode"], details["state"], details["accepting_jobs"]) == ("batch", "closed", False)
    assert details["jobs"]["succeeded"] == 3
    assert details["timestamps"][0]["status"] == "open"
    with pytest.raises(PreconditionError) as caught:
        SamplerV2(mode=batch).run([ghz()])
    assert caught.value.reason == "SESSION_NOT_ACCEPTING"


def test_jobs_outside_of_an_active_session_wait_and_can_be_cancelled(
    service: CadenzaService, sim: CadenzaBackend
) -> None:
    with Session(sim) as session:
        assert session.status() == "Pending"
        SamplerV2().run([ghz()]).result(PATIENCE_S)
        assert session.status() == "In progress, accepting new jobs"
        other = Session(sim)
        waiting = SamplerV2(mode=other).run([ghz()])
        alone = _outside(service, sim)
        assert (waiting.status(), alone.status()) == ("QUEUED", "QUEUED")
        assert sim.status().pending_jobs >= 2
        assert alone.job_id() in {job.job_id() for job in service.jobs(pending=True)}
        updates = []
        for update in alone.watch(timeout=PATIENCE_S):
            updates.append((update.change, update.status))
            if update.change == "job_snapshot":
                alone.cancel()
        assert updates == [("job_snapshot", "QUEUED"), ("job_ended", "CANCELLED")]
        with pytest.raises(JobCancelledError) as caught:
            alone.result(PATIENCE_S)
        assert caught.value.reason == "CANCELLED_BY_USER"
        with pytest.raises(PreconditionError) as refused:
            alone.cancel()
        assert refused.value.reason == "JOB_FINAL"
        other.close(pending="fail")
        with pytest.raises(JobFailedError) as failed:
            waiting.result(PATIENCE_S)
        assert failed.value.reason == "SESSION_CLOSED"
        assert other.status() == "Closed"


def _outside(service: CadenzaService, backend: CadenzaBackend):  # type: ignore[no-untyped-def]
    """A job on its own, although a session surrounds the caller."""
    job = service.client.submit_job(sampler_program("OPENQASM 3;\nqubit q; bit c; c = measure q;"), device=backend.name)
    return service.job(job.job_id)


def test_a_cancelled_session_cancels_what_it_has_queued(sim: CadenzaBackend) -> None:
    with Session(sim) as holder:
        SamplerV2(mode=holder).run([ghz()]).result(PATIENCE_S)
        other = Session(sim)
        job = SamplerV2(mode=other).run([ghz()])
        other.cancel()
        with pytest.raises(JobCancelledError) as caught:
            job.result(PATIENCE_S)
        assert caught.value.reason == "SESSION_CANCELLED"


# --- jobs -------------------------------------------------------------------------------------------------------------


def test_a_job_is_found_again_by_id_and_by_tag_from_another_connection(
    service: CadenzaService, sim: CadenzaBackend
) -> None:
    before = datetime.now() - timedelta(seconds=1)
    job = SamplerV2(mode=sim, options={"environment": {"job_tags": ["bell", "mine"]}}).run([ghz()], shots=10)
    with CadenzaService(service.target) as other:
        again = other.job(job.job_id())
        assert again.result(PATIENCE_S)[0].data.meas.num_shots == 10
        assert [found.job_id() for found in other.jobs(job_tags=["bell"], created_after=before)] == [job.job_id()]
        assert other.jobs(job_tags=["bell"], created_before=before) == []
        assert (again.tags, again.primitive_id, again.backend().name) == (["bell", "mine"], "sampler", "sim")
        assert before.astimezone() < again.creation_date
    job.result(PATIENCE_S)
    changes = [(update.change, update.status) for update in job.watch()]
    assert changes == [("job_snapshot", "DONE")]
    assert job.logs().splitlines()[-1].endswith("job_ended DONE")


def test_a_job_that_runs_into_its_limit_is_an_error_that_says_so(sim: CadenzaBackend) -> None:
    heavy = QuantumCircuit(20)
    for layer in range(200):
        for qubit in range(20):
            heavy.u(0.1 * layer, 0.2, 0.3, qubit)
            heavy.cx(qubit, (qubit + 1 + layer % 7) % 20)
    heavy.measure_all()
    job = SamplerV2(mode=sim, options={"max_execution_time": 0.2, "simulator": {"method": "statevector"}}).run([heavy])
    with pytest.raises(JobFailedError) as caught:
        job.result(PATIENCE_S)
    assert caught.value.reason == "RAN_TOO_LONG"
    assert job.status() == "ERROR"
    assert not job.cancelled()


def test_another_user_s_job_is_not_shown(service: CadenzaService, sim: CadenzaBackend) -> None:
    job = SamplerV2(mode=sim).run([ghz()])
    with CadenzaService(service.target, user="lab/eve") as eve:
        assert eve.user == "lab/eve"
        with pytest.raises(PermissionDeniedError) as caught:
            eve.job(job.job_id())
        assert caught.value.reason == "NOT_OWNER"
        assert eve.jobs() == []
    job.result(PATIENCE_S)


def test_what_the_server_refuses_is_told_with_its_reason_and_field(
    service: CadenzaService, sim: CadenzaBackend
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        SamplerV2(mode=sim).run([ghz(30)])
    assert caught.value.reason == "TOO_MANY_QUBITS"
    assert "pubs[0]" in caught.value.field
    for missing in (lambda: service.job("job-none"), lambda: service.session("none"), lambda: service.backend("none")):
        with pytest.raises(NotFoundError):
            missing()


# --- without Qiskit ---------------------------------------------------------------------------------------------------

QASM = 'OPENQASM 2.0;\ninclude "qelib1.inc";\nqreg q[2];\ncreg c[2];\nh q[0];\ncx q[0],q[1];\nmeasure q -> c;'


def test_the_asyncio_client_runs_and_watches_a_job(service: CadenzaService) -> None:
    async def use() -> None:
        async with AsyncClient(service.target) as client:
            job = await client.submit_job(sampler_program(QASM, shots=100, seed=1), device="sim")
            states = []
            async for event in client.watch_job(job.job_id, include_results=True):
                states.append(event.WhichOneof("change"))
                last = event
            assert states[0] == "job_snapshot"
            result = last.job_ended.result if states[-1] == "job_ended" else last.job_snapshot.result
            assert list(result.pubs[0].fields[0].bits.shape) == [100]
            assert result == await client.get_job_result(job.job_id)

    asyncio.run(asyncio.wait_for(use(), PATIENCE_S))


def test_the_plain_client_reaches_every_area(service: CadenzaService) -> None:
    with Client(service.target) as client:
        assert client.get_server_info().caller.operator
        assert [device.name for device in client.list_devices()] == ["line", "sim"]
        assert client.set_shares({"lab/ada": 3.0})[0].shares == 3.0
        assert client.get_shares("lab/ada").shares == 3.0
        assert "lab/ada" in {node.path for node in client.list_shares()}
        calibration = client.submit_calibration("line", duration=0.2)
        *_, ended = client.watch_job(calibration.job_id)
        job = ended.job_ended.job if ended.HasField("job_ended") else ended.job_snapshot.job
        assert (job.state, job.detail) == (job_pb2.JOB_STATE_SUCCEEDED, "")
        assert client.get_device("line").epoch == 1
        (run,) = client.list_runs(job_id=calibration.job_id)
        assert run.rule == job_pb2.RUN_RULE_CALIBRATION
        session = client.create_session("sim", mode="batch", session_id="my-batch", max_time=60)
        assert client.list_sessions(states=["open"], mode="batch")[0].session_id == session.session_id == "my-batch"
        assert client.list_session_events("my-batch")
        client.cancel_session("my-batch")


def test_a_reservation_is_made_listed_and_deleted(service: CadenzaService) -> None:
    start = datetime.now().astimezone() + timedelta(hours=1)
    made = service.reserve("line", start, duration="30m", holder="lab/ada", description="lecture")
    assert (made.state, made.holder, made.end_time - made.start_time) == ("scheduled", "lab/ada", timedelta(minutes=30))
    assert service.reservations() == [made]
    assert service.reservations(holder="lab/bob") == []
    with pytest.raises(PreconditionError) as caught:
        service.reserve("line", start, start + timedelta(minutes=1))
    assert caught.value.reason == "RESERVATION_OVERLAP"
    with pytest.raises(InvalidRequestError, match="either"):
        service.reserve("line", start)
    assert service.delete_reservation(made).state == "deleted"
    assert service.reservations() == []


# --- the private server -----------------------------------------------------------------------------------------------


def test_a_private_server_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    config = tmp_path / "cadenza.toml"
    config.write_text('[devices.one]\nkind = "aer"\nnum_qubits = 2\n')
    with private_server(config) as address:
        host, port = address.rsplit(":", 1)
        with socket.create_connection((host, int(port)), timeout=PATIENCE_S):
            assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(OSError, match=r"refused|reset"):
        socket.create_connection((host, int(port)), timeout=1).close()
    assert list(tmp_path.iterdir()) == [config]


def test_a_private_server_that_does_not_come_up_says_why(tmp_path: Path) -> None:
    config = tmp_path / "cadenza.toml"
    config.write_text("[server]\nlisten_on = 3\n")
    start = time.monotonic()
    with pytest.raises(ServerStartError, match="listen_on"), CadenzaService.local(config):
        raise AssertionError("it came up")
    assert time.monotonic() - start < PATIENCE_S


def test_a_private_server_is_what_is_installed_whatever_the_current_folder_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "_fastqueue"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('this is the source in a clone, not what is installed')\n")
    monkeypatch.chdir(tmp_path)
    with private_server() as address, Client(address) as client:
        assert client.get_server_info().caller.operator


def test_a_private_server_ends_with_the_program_that_started_it_however_it_ends() -> None:
    program = """import sys, cadenza
with cadenza.CadenzaService.local() as service:
    print(service.target, flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        host, _, port = process.stdout.readline().decode().strip().rpartition(":")
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            process.kill()
            while connection.recv(4096):
                pass  # what an HTTP/2 server says first; then the end of the connection, for the server has ended
