"""Whether a device was calibrated inside a session: its details and its results say so."""

from typing import Any

from cadenza import CadenzaService, SamplerV2, Session
from cadenza.v1 import job_pb2
from qiskit import QuantumCircuit


def execution_of(mode: Any, circuit: QuantumCircuit) -> dict[str, Any]:
    found: dict[str, Any] = SamplerV2(mode=mode).run([circuit], shots=1).result(60).metadata["execution"]
    return found


def test_a_calibration_inside_a_session_shows_in_its_details_and_results(server: Any, connect: Any, kit: Any) -> None:
    rani = connect("rani", address=server.address)
    circuit = QuantumCircuit(1)
    circuit.measure_all()
    with CadenzaService(server.address, user="epochs/ann") as service:
        backend = service.backend("spare")
        with Session(backend) as session:
            assert session.details()["epoch_changed"] is False
            first = execution_of(session, circuit)
            assert (first["session_first_epoch"], first["epoch_changed"]) == (first["epoch"], False)
            assert session.details()["epoch_changed"] is False
            spec = job_pb2.JobSpec(device="spare")
            spec.program.calibration.pubs.add(shots=1).circuit.qpy = kit.ghz()
            spec.program.calibration.duration.FromMilliseconds(1)
            assert rani.wait(rani.submit(spec).job_id).state == job_pb2.JOB_STATE_SUCCEEDED
            second = execution_of(session, circuit)
            assert second["epoch"] == first["epoch"] + 1
            assert (second["session_first_epoch"], second["epoch_changed"]) == (first["epoch"], True)
            details = session.details()
            assert (details["first_epoch"], details["last_epoch"]) == (first["epoch"], second["epoch"])
            assert details["epoch_changed"] is True
        alone = execution_of(backend, circuit)
        assert (alone["session_first_epoch"], alone["epoch_changed"]) == (None, None)
