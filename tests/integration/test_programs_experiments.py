"""Experiments of qiskit-experiments, as published, against a noisy device of a real server."""

import math
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
from cadenza import CadenzaBackend, CadenzaService, SamplerV2, Session

with warnings.catch_warnings():
    # What a published package still calls is not this project's to mend.
    warnings.simplefilter("ignore")
    pytest.importorskip("qiskit_experiments")
    from qiskit_experiments.library import T1, LocalReadoutError

pytestmark = pytest.mark.filterwarnings("default")

CONFIG = """
[devices.line]
kind = "generic"
num_qubits = 5
coupling = "line"
"""


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CadenzaBackend]:
    config = tmp_path_factory.mktemp("config") / "cadenza.toml"
    config.write_text(CONFIG)
    with CadenzaService.local(config) as service:
        yield service.backend("line")


def test_a_t1_experiment_measures_the_relaxation_time_that_the_device_states(line: CadenzaBackend) -> None:
    properties = line.properties()
    assert properties is not None
    stated = properties.t1(1)
    assert stated is not None
    delays = np.linspace(0.02 * stated, 3 * stated, 12)
    experiment = T1(physical_qubits=(1,), delays=delays, backend=line)
    with Session(line) as session:
        sampler = SamplerV2(mode=session, options={"default_shots": 2_000, "simulator": {"seed_simulator": 5}})
        data = experiment.run(line, sampler=sampler).block_for_results()
    (found,) = (row for row in data.analysis_results(dataframe=True).itertuples() if row.name == "T1")
    value = found.value
    assert value.n == pytest.approx(stated, rel=0.1)
    assert abs(value.n - stated) < 5 * value.s


def test_a_readout_experiment_measures_the_errors_that_the_device_states(line: CadenzaBackend) -> None:
    properties = line.properties()
    assert properties is not None
    sampler = SamplerV2(mode=line, options={"default_shots": 20_000, "simulator": {"seed_simulator": 5}})
    data = LocalReadoutError((0, 1, 2), backend=line).run(line, sampler=sampler).block_for_results()
    (row,) = data.analysis_results(dataframe=True).itertuples()
    matrices = [row.value.assignment_matrix([qubit]) for qubit in range(3)]
    for qubit, matrix in enumerate(matrices):
        stated = properties.readout_error(qubit)
        assert stated is not None
        measured = (matrix[0, 1] + matrix[1, 0]) / 2
        # Five standard deviations of the mean of two proportions, and what the X gate adds.
        assert abs(measured - stated) < 5 * math.sqrt(stated / 40_000) + 2e-3
