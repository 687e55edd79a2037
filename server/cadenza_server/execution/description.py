"""What a device publishes of itself before its model is built. Imports no Qiskit."""

from cadenza.v1.device_pb2 import Device

from cadenza_server.execution.spec import KINDS, METHODS, DeviceSpec


def describe_spec(name: str, spec: DeviceSpec) -> Device:
    """What is known of a device before its model is built."""
    device = Device(
        name=name,
        description=_describe_kind(spec),
        kind=spec.kind,
        num_qubits=spec.num_qubits,
        noisy=spec.is_noisy,
        default_shots=spec.default_shots,
        default_precision=spec.default_precision,
        default_transpile_level=spec.transpile_level,
    )
    if spec.kind in KINDS:
        device.simulator = True
        device.methods.extend(METHODS)
        device.accelerator = "gpu" if spec.accelerator == "gpu" else "cpu"
    return device


def _describe_kind(spec: DeviceSpec) -> str:
    if spec.kind not in KINDS:
        return f"{spec.kind}, {spec.num_qubits} qubits"
    noise = "noiseless" if not spec.is_noisy else "with noise that drifts" if spec.drift else "with modelled noise"
    parts = ["Qiskit Aer", noise, f"{spec.num_qubits} qubits"]
    if spec.kind == "snapshot":
        parts.append(f"as {spec.snapshot} of qiskit-ibm-runtime")
    elif spec.kind == "generic" and isinstance(spec.coupling, str):
        parts.append(f"coupling {spec.coupling}")
    return ", ".join(parts)
