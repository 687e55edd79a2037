"""What devices compute with, with a stand-in for what Aer and the driver say."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cadenza_server.app import ServeError, Server
from cadenza_server.config import parse_config
from cadenza_server.execution.accelerators import AcceleratorError, AerOffer, ask_aer, settle_accelerators
from cadenza_server.execution.description import describe_spec
from cadenza_server.execution.device import _environment
from cadenza_server.execution.models import _simulator_options
from cadenza_server.execution.spec import DeviceSpec

PLAIN = AerOffer(("CPU",), 0, {"qiskit-aer": "0.18.2"})
TWO_GPUS = AerOffer(("CPU", "GPU"), 2, {"qiskit-aer": "0.18.2", "qiskit-aer-gpu": "0.18.2"})
COVERED = AerOffer(("CPU",), 2, {"qiskit-aer": "0.18.2", "qiskit-aer-gpu": "0.18.1"})
NO_DRIVER = AerOffer(("CPU", "GPU"), 0, {"qiskit-aer-gpu": "0.18.2"})
BROKEN = AerOffer(problem="ImportError: libcudart.so.12")


def settle(offer: AerOffer, **settings: object) -> DeviceSpec:
    return settle_accelerators({"q": DeviceSpec(**settings)}, lambda: offer)["q"]  # type: ignore[arg-type]


def never() -> AerOffer:
    raise AssertionError("nobody wants to know")


def test_devices_on_the_cpu_do_not_ask() -> None:
    specs = {"q": DeviceSpec(), "n": DeviceSpec(kind="generic")}
    assert settle_accelerators(specs, never) == specs


@pytest.mark.parametrize(
    ("offer", "said"),
    [
        (PLAIN, "no GPU in it: pip install --no-deps --force-reinstall qiskit-aer-gpu==0.18.2"),
        (
            COVERED,
            "qiskit-aer 0.18.2 and qiskit-aer-gpu 0.18.1 are installed over each other, and the one without a GPU came "
            "last: pip install --no-deps --force-reinstall qiskit-aer-gpu==0.18.1",
        ),
        (NO_DRIVER, "the driver shows none: look at nvidia-smi"),
        (BROKEN, "Aer cannot be asked: ImportError: libcudart.so.12"),
    ],
)
def test_a_gpu_that_is_not_there_is_an_error_that_says_what_to_do(
    offer: AerOffer, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(AcceleratorError) as caught:
        settle(offer, accelerator="gpu")
    assert str(caught.value).startswith('[devices.q] accelerator is "gpu": ')
    assert said in str(caught.value)
    # where any will do, the CPU does, and the log says why
    caplog.set_level(logging.INFO)
    assert settle(offer, accelerator="auto").accelerator == "cpu"
    assert f"device q: computes on the CPU: {offer.explain()}" in caplog.text


def test_a_gpu_that_is_there_is_taken(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for word in ("gpu", "auto"):
        settled = settle(TWO_GPUS, accelerator=word)
        assert (settled.accelerator, settled.gpus) == ("gpu", (0, 1))
        assert describe_spec("q", settled).accelerator == "gpu"
    assert "device q: computes on GPU 0, 1" in caplog.text
    assert settle(TWO_GPUS, accelerator="gpu", gpus=(1,)).gpus == (1,)
    with pytest.raises(AcceleratorError, match="there is no GPU 2: the driver shows 2, numbered from 0"):
        settle(TWO_GPUS, accelerator="gpu", gpus=(1, 2))


def test_wheels_of_different_versions_over_each_other_are_noticed_though_they_work() -> None:
    mixed = AerOffer(("CPU", "GPU"), 1, {"qiskit-aer": "0.18.2", "qiskit-aer-gpu": "0.18.1"})
    assert "files of both may be in use: pip install --no-deps" in mixed.warn()
    assert mixed.explain() == TWO_GPUS.warn() == ""


def test_a_worker_on_a_gpu_sees_only_its_own_and_aer_is_told() -> None:
    spec = settle(TWO_GPUS, accelerator="gpu", batched_shots=False, custatevec=True)
    assert _environment(spec, 1)["CUDA_VISIBLE_DEVICES"] == "1"
    options = _simulator_options(spec)
    assert (options["device"], options["batched_shots_gpu"], options["cuStateVec_enable"]) == ("GPU", False, True)
    assert "device" not in _simulator_options(DeviceSpec())


def test_a_server_does_not_start_without_the_gpu_that_a_device_must_have(tmp_path: Path) -> None:
    config = parse_config('[server]\ndata_dir = "data"\n[devices.q]\naccelerator = "gpu"\n', tmp_path)
    with pytest.raises(ServeError, match="no GPU in it: pip install"):
        Server(config, ask=lambda: PLAIN)
    assert not (tmp_path / "data").exists()


def stand_in(folder: Path, devices: str) -> None:
    """A qiskit_aer that says what a test wants, and its two wheels' metadata."""
    (folder / "qiskit_aer").mkdir()
    (folder / "qiskit_aer" / "__init__.py").write_text(
        f"class AerSimulator:\n    def available_devices(self):\n        return {devices}\n"
    )
    for name in ("qiskit-aer", "qiskit-aer-gpu"):
        info = folder / f"{name.replace('-', '_')}-0.99.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.99\n")


def test_aer_is_asked_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, "('CPU',)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path) + os.pathsep + os.environ.get("PYTHONPATH", ""))
    offer = ask_aer()
    assert (offer.devices, offer.problem) == (("CPU",), "")
    assert offer.packages == {"qiskit-aer": "0.99", "qiskit-aer-gpu": "0.99"}
    (tmp_path / "qiskit_aer" / "__init__.py").write_text("raise ImportError('libcudart.so.12')\n")
    assert ask_aer().problem == "ImportError: libcudart.so.12"
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert ask_aer().problem == "its process ended with code 1"


def test_the_command_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, "('CPU',)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path) + os.pathsep + os.environ.get("PYTHONPATH", ""))
    command = [sys.executable, "-m", "cadenza_server", "check-gpu"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 1
    assert "qiskit-aer 0.99, qiskit-aer-gpu 0.99" in run.stdout
    assert "pip install --no-deps --force-reinstall qiskit-aer-gpu==0.99" in run.stderr
