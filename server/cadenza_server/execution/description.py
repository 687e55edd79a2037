"""What a device publishes of itself before its model is built. Imports no Qiskit."""

from cadenza.v1.device_pb2 import Device

from cadenza_server.execution.spec import METHODS, DeviceSpec


def describe_spec(name: str, spec: DeviceSpec) -> Device:
    """What is known of a device before its model is built."""
    noisy = spec.kind == "generic" and spec.noise
    return Device(
        name=name,
        description=(
            f"Qiskit Aer, {'with modelled noise' if noisy else 'noiseless'}, {spec.num_qubits} qubits"
            + (f", coupling {spec.coupling}" if spec.kind == "generic" and isinstance(spec.coupling, str) else "")
        ),
        kind=spec.kind,
        simulator=True,
        num_qubits=spec.num_qubits,
        noisy=noisy,
        methods=METHODS,
        accelerator="cpu",
        default_shots=spec.default_shots,
        default_precision=spec.default_precision,
        default_transpile_level=spec.transpile_level,
    )
