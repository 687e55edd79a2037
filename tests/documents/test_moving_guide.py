"""The guide for programs of qiskit_ibm_runtime: its code runs, and its tables name every member and tell the truth."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import cadenza
import pytest
from cadenza import CadenzaService
from cadenza._local import private_server
from cadenza._options import EnvironmentOptions, EstimatorOptions, SamplerOptions, SimulatorOptions

GUIDE = Path(__file__).parents[2] / "server" / "cadenza_server" / "docs" / "moving-from-qiskit-ibm-runtime.md"
TEXT = GUIDE.read_text(encoding="utf-8")
CODE = re.findall(r"^```python\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


def table(heading: str) -> dict[str, str]:
    """The members below a heading: name -> same, differs or absent."""
    section = TEXT.split(f"\n### {heading}", 1)[1].split("\n### ", 1)[0]
    return dict(re.findall(r"^\| `(\w+)` \| (same|differs|absent) \|", section, re.MULTILINE))


def public(*kinds: Any) -> set[str]:
    names = {name for kind in kinds for name in dir(kind) if not name.startswith("_")}
    fields = {field.name for kind in kinds if dataclasses.is_dataclass(kind) for field in dataclasses.fields(kind)}
    return names | {name for name in fields if not name.startswith("_")}


def test_the_code_of_the_guide_runs_as_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(CODE) >= 7
    names: dict[str, Any] = {}
    with private_server() as target:
        monkeypatch.setenv("CADENZA_TARGET", target)
        for number, code in enumerate(CODE):
            exec(compile(code, f"{GUIDE.name}, block {number + 1}", "exec"), names)
        names["service"].close()
    assert names["position"] is None or names["position"] >= 0
    assert names["energy"].shape == (1,)
    assert [len(result) for result in names["results"]] == [1, 1, 1]
    assert names["recent"]


OURS = {
    "QiskitRuntimeService": lambda: public(CadenzaService),
    "IBMBackend": lambda: public(cadenza.CadenzaBackend),
    "BackendStatus": lambda: public(cadenza.BackendStatus),
    "BackendProperties": lambda: public(cadenza.BackendProperties),
    "Session and Batch": lambda: public(cadenza.Session) & public(cadenza.Batch),
    "RuntimeJobV2": lambda: public(cadenza.Job),
    "SamplerV2 and EstimatorV2": lambda: public(cadenza.SamplerV2) & public(cadenza.EstimatorV2),
    "Options": lambda: public(SamplerOptions, EstimatorOptions, EnvironmentOptions, SimulatorOptions),
}


@pytest.mark.parametrize("heading", OURS)
def test_what_the_guide_says_is_here_is_here_and_what_is_absent_is_not(heading: str) -> None:
    said = table(heading)
    here = OURS[heading]()
    assert {name for name, how in said.items() if how != "absent"} - here == set()
    assert {name for name, how in said.items() if how == "absent"} & here == set()


@pytest.mark.filterwarnings("ignore")
def test_the_guide_names_every_public_member_of_that_client() -> None:
    runtime = pytest.importorskip("qiskit_ibm_runtime", minversion="0.51")
    options, models = runtime.options, pytest.importorskip("qiskit_ibm_runtime.models")
    backend = {name for name in vars(runtime.IBMBackend) if not name.startswith("_")}
    job_parts = {"job_id"}
    theirs = {
        "QiskitRuntimeService": public(runtime.QiskitRuntimeService),
        "IBMBackend": backend,
        "BackendStatus": public(models.BackendStatus),
        "BackendProperties": public(models.BackendProperties),
        "Session and Batch": public(runtime.Session, runtime.Batch),
        "RuntimeJobV2": public(runtime.RuntimeJobV2) | job_parts,
        "SamplerV2 and EstimatorV2": public(runtime.SamplerV2, runtime.EstimatorV2),
        "Options": public(
            options.SamplerOptions, options.EstimatorOptions, options.EnvironmentOptions, options.SimulatorOptions
        ),
    }
    assert theirs.keys() == OURS.keys()
    for heading, names in theirs.items():
        assert names - table(heading).keys() == set(), heading
