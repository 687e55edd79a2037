import io
import struct

import pytest
from cadenza_server.model.qpy import QPY_VERSION_MAX, QPY_VERSION_MIN, read_qpy_header
from qiskit import QuantumCircuit, qpy
from qiskit.circuit import Parameter

VERSIONS = range(max(QPY_VERSION_MIN, qpy.QPY_COMPATIBILITY_VERSION), min(QPY_VERSION_MAX, qpy.QPY_VERSION) + 1)


def written(circuit: QuantumCircuit, version: int) -> bytes:
    stream = io.BytesIO()
    qpy.dump(circuit, stream, version=version)
    return stream.getvalue()


def sample() -> QuantumCircuit:
    circuit = QuantumCircuit(3, 2, name="sample", global_phase=Parameter("x"), metadata={"a": "b"})
    circuit.h(0)
    circuit.cx(0, 2)
    circuit.measure([0, 2], [0, 1])
    return circuit


def test_every_version_that_qiskit_writes_is_known() -> None:
    assert qpy.QPY_VERSION <= QPY_VERSION_MAX


@pytest.mark.parametrize("version", VERSIONS)
def test_head_tells_the_size_of_the_circuit(version: int) -> None:
    header = read_qpy_header(written(sample(), version))
    assert (header.version, header.num_qubits, header.num_clbits, header.num_instructions) == (version, 3, 2, 4)
    assert header.symbolic_encoding == "p"


@pytest.mark.parametrize("version", VERSIONS)
def test_every_cut_is_survived_and_a_cut_to_the_half_is_noticed(version: int) -> None:
    data = written(sample(), version)
    for length in range(len(data)):
        try:
            read_qpy_header(data[:length])
        except ValueError:
            continue
        assert length > len(data) // 2


@pytest.mark.parametrize("version", VERSIONS)
def test_circuits_without_content_are_not_called_cut_off(version: int) -> None:
    for circuit in (QuantumCircuit(), QuantumCircuit(1), QuantumCircuit(0, 1)):
        assert read_qpy_header(written(circuit, version)).num_instructions == 0
    gates = QuantumCircuit(1)
    for _ in range(100):
        gates.h(0)
    assert read_qpy_header(written(gates, version)).num_instructions == 100


@pytest.mark.parametrize("data", [b"", b"\x80\x04pickle", b"OPENQASM 3;", b"QISKIX" + bytes(100)])
def test_what_is_not_qpy_is_called_so(data: bytes) -> None:
    with pytest.raises(ValueError, match="not QPY"):
        read_qpy_header(data)


@pytest.mark.parametrize("version", [0, 1, 9, 10, 12, QPY_VERSION_MAX + 1, 255])
def test_unsupported_versions_are_named_with_what_is_supported(version: int) -> None:
    data = bytearray(written(sample(), QPY_VERSION_MIN))
    data[6] = version
    with pytest.raises(ValueError, match=f"QPY version {version} is not supported.*from 13 to {QPY_VERSION_MAX}"):
        read_qpy_header(bytes(data))


def test_several_circuits_are_refused() -> None:
    stream = io.BytesIO()
    qpy.dump([sample(), sample()], stream)
    with pytest.raises(ValueError, match="holds 2 circuits"):
        read_qpy_header(stream.getvalue())


def test_what_is_no_circuit_is_refused() -> None:
    data = bytearray(written(sample(), QPY_VERSION_MIN))
    data[19:20] = b"s"
    with pytest.raises(ValueError, match="does not hold a circuit"):
        read_qpy_header(bytes(data))


@pytest.mark.skipif(qpy.QPY_VERSION < 16, reason="this Qiskit does not write the version that has the table")
def test_a_table_that_points_into_the_header_is_refused() -> None:
    data = bytearray(written(sample(), 16))
    struct.pack_into("!Q", data, 20, 3)
    with pytest.raises(ValueError, match="damaged"):
        read_qpy_header(bytes(data))
