"""What a device computes with: what Aer offers is asked in a process of its own, and a choice made of it.

    python -m cadenza_server.execution.accelerators      prints what Aer offers here, as JSON

qiskit-aer and qiskit-aer-gpu put their files into the same place, so whichever was installed last is what runs,
whatever pip lists. What runs is asked; what is listed says how to mend it.
"""

import ctypes
import dataclasses
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from cadenza_server.execution.spec import KINDS, DeviceSpec

ASK_SECONDS_MAX: Final = 60.0
GPU_PACKAGES: Final = ("qiskit-aer-gpu", "qiskit-aer-gpu-cu11")

_log = logging.getLogger(__name__)


class AcceleratorError(Exception):
    """A device cannot have the GPU that it asks for; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class AerOffer:
    """What Aer says of itself, and what is installed."""

    devices: tuple[str, ...] = ()
    """`CPU`, `GPU`."""
    gpu_count: int = 0
    """GPUs that the driver shows."""
    packages: Mapping[str, str] = field(default_factory=dict)
    """Versions of qiskit-aer and its kin, by name."""
    problem: str = ""
    """Why Aer could not be asked."""

    @property
    def has_gpu(self) -> bool:
        """Whether circuits can run on a GPU."""
        return "GPU" in self.devices and self.gpu_count > 0

    def explain(self) -> str:
        """Why there is no GPU, and what to do."""
        if self.problem:
            return f"Aer cannot be asked: {self.problem}"
        gpu = next((name for name in GPU_PACKAGES if name in self.packages), None)
        plain = self.packages.get("qiskit-aer")
        if "GPU" not in self.devices:
            if gpu is None:
                wanted = f"{GPU_PACKAGES[0]}=={plain}" if plain else GPU_PACKAGES[0]
                return f"the Aer that is installed has no GPU in it: pip install --no-deps --force-reinstall {wanted}"
            wanted = f"{gpu}=={self.packages[gpu]}"
            if plain is not None:
                return (
                    f"qiskit-aer {plain} and {gpu} {self.packages[gpu]} are installed over each other, and the one "
                    f"without a GPU came last: pip install --no-deps --force-reinstall {wanted}"
                )
            return f"{gpu} is installed, and offers no GPU: pip install --no-deps --force-reinstall {wanted}"
        if self.gpu_count == 0:
            return "Aer can use a GPU, and the driver shows none: look at nvidia-smi, and at CUDA_VISIBLE_DEVICES"
        return ""

    def warn(self) -> str:
        """What is wrong with what is installed although it works; empty: nothing."""
        gpu = next((name for name in GPU_PACKAGES if name in self.packages), None)
        plain = self.packages.get("qiskit-aer")
        if gpu is None or plain is None or plain == self.packages[gpu]:
            return ""
        return (
            f"qiskit-aer {plain} and {gpu} {self.packages[gpu]} are installed over each other, files of both may be in "
            f"use: pip install --no-deps --force-reinstall {gpu}=={self.packages[gpu]}"
        )


def ask_aer() -> AerOffer:
    """Ask Aer in a process of its own: loading it here would keep its libraries, and a GPU, for ever."""
    command = [sys.executable, "-P", "-m", __name__]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=ASK_SECONDS_MAX, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return AerOffer(problem=str(error))
    if asked.returncode != 0:
        said = asked.stderr.strip().splitlines()
        return AerOffer(problem=said[-1] if said else f"its process ended with code {asked.returncode}")
    values = json.loads(asked.stdout.splitlines()[-1])
    return AerOffer(tuple(values["devices"]), values["gpu_count"], values["packages"], values["problem"])


def try_gpu() -> str:
    """Run a small circuit on the GPU, in a process of its own. Returns what went wrong; empty: nothing."""
    code = (
        "from qiskit import QuantumCircuit; from qiskit_aer import AerSimulator\n"
        "circuit = QuantumCircuit(2); circuit.h(0); circuit.cx(0, 1); circuit.measure_all()\n"
        "result = AerSimulator(method='statevector', device='GPU').run(circuit, shots=100).result()\n"
        "assert result.success, result.status\n"
        "assert set(result.get_counts()) <= {'00', '11'}, result.get_counts()\n"
    )
    try:
        tried = subprocess.run(
            [sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=ASK_SECONDS_MAX, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    said = tried.stderr.strip().splitlines() or [f"its process ended with code {tried.returncode}"]
    return "" if tried.returncode == 0 else f"a circuit did not run on the GPU: {said[-1]}"


def settle_accelerators(
    specs: Mapping[str, DeviceSpec], ask: Callable[[], AerOffer] = ask_aer
) -> dict[str, DeviceSpec]:
    """The specs with `accelerator` either `cpu` or `gpu`, and with the GPUs named. Aer is asked only if it matters.

    Raises `AcceleratorError` for a device that must have a GPU and cannot.
    """
    settled = dict(specs)
    wanting = {name: spec for name, spec in specs.items() if spec.kind in KINDS and spec.accelerator != "cpu"}
    if not wanting:
        return settled
    offer = ask()
    if problem := offer.warn():
        _log.warning("%s", problem)
    for name, spec in wanting.items():
        missing = [gpu for gpu in spec.gpus if gpu >= offer.gpu_count]
        if offer.has_gpu and not missing:
            gpus = spec.gpus or tuple(range(offer.gpu_count))
            settled[name] = dataclasses.replace(spec, accelerator="gpu", gpus=gpus)
            _log.info("device %s: computes on GPU %s", name, ", ".join(map(str, gpus)))
            continue
        why = offer.explain() or f"there is no GPU {missing[0]}: the driver shows {offer.gpu_count}, numbered from 0"
        if spec.accelerator == "gpu":
            raise AcceleratorError(f'[devices.{name}] accelerator is "gpu": {why}')
        settled[name] = dataclasses.replace(spec, accelerator="cpu", gpus=())
        _log.info("device %s: computes on the CPU: %s", name, why)
    return settled


def find_offer() -> AerOffer:
    """What Aer offers, asked in this process."""
    packages = {}
    for name in ("qiskit-aer", *GPU_PACKAGES):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    try:
        from qiskit_aer import AerSimulator

        devices = tuple(AerSimulator().available_devices())
    except Exception as error:  # a broken installation fails in many ways
        return AerOffer(packages=packages, problem=f"{type(error).__name__}: {error}")
    return AerOffer(devices, _count_gpus(), packages)


def _count_gpus() -> int:
    """GPUs that NVIDIA's driver shows; 0 without a driver. CUDA_VISIBLE_DEVICES counts."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int()
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)):
        return 0
    return count.value


if __name__ == "__main__":
    print(json.dumps(asdict(find_offer())))
