"""Devices that other packages bring: the documented example, installed as a user would, and the one for benchmarks."""

import os
import re
import subprocess
import sys
from pathlib import Path

import cadenza_server
import pytest
from cadenza import CadenzaService, SamplerV2
from qiskit import QuantumCircuit

from tests.running_server import running

GUIDE = Path(cadenza_server.__file__).parent / "docs" / "devices.md"
PLUGINS = Path(__file__).parents[1] / "plugins"
LINES_MAX = 50


def documented(language: str, first: str) -> str:
    """The example in the guide that begins with `first`."""
    blocks = re.findall(rf"```{language}\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    (found,) = [block for block in blocks if block.startswith(first)]
    assert len(found.splitlines()) < LINES_MAX
    return str(found)


def test_the_documented_plugin_is_installed_configured_and_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, installed = tmp_path / "source", tmp_path / "installed"
    source.mkdir()
    (source / "pyproject.toml").write_text(documented("toml", "# pyproject.toml"))
    (source / "cadenza_coins.py").write_text(documented("python", "# cadenza_coins.py"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(installed), str(source)], check=True, timeout=120)
    monkeypatch.setenv("PYTHONPATH", str(installed))
    configuration = documented("toml", "[devices.coins]")
    with running(tmp_path / "server", configuration) as server, CadenzaService(server.address, user="ada") as service:
        backend = service.backend("coins")
        assert (backend.num_qubits, backend.configuration().kind) == (100, "coins")
        circuit = QuantumCircuit(11)
        circuit.measure_all()
        job = SamplerV2(mode=backend).run([circuit], shots=2000)
        bits = job.result()[0].data.meas
    ones = bits.array.sum() and sum(value.count("1") * count for value, count in bits.get_counts().items())
    assert bits.num_shots == 2000
    assert abs(ones / (11 * 2000) - 0.3) < 0.02  # 6 standard deviations


def test_the_device_for_benchmarks_answers_at_once_with_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(PLUGINS) + os.pathsep + os.environ.get("PYTHONPATH", ""))
    configuration = '[devices.void]\nkind = "noop"\nnum_qubits = 1000\n'
    with running(tmp_path, configuration) as server, CadenzaService(server.address, user="ada") as service:
        circuit = QuantumCircuit(1)
        circuit.measure_all()
        job = SamplerV2(mode=service.backend("void")).run([circuit])
        job.wait_for_final_state()
        assert job.status() == "DONE"


def test_a_plugin_that_is_not_installed_is_named_with_those_that_are(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('[devices.q]\nkind = "coins"\n')
    command = [sys.executable, "-m", "cadenza_server", "config", "--config", str(tmp_path / "c.toml")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode != 0
    assert "'coins' is not one of aer, generic, snapshot" in run.stderr
