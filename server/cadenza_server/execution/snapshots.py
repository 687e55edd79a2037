"""The published backends of qiskit-ibm-runtime: which there are, found without importing it.

Each is a class in a folder of `qiskit_ibm_runtime/fake_provider/backends`, with a JSON file of its configuration.
"""

import difflib
import json
import re
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final

INSTALL: Final = "pip install 'cadenza[snapshots]'"

_CLASS: Final = re.compile(r"^class (\w+)\((?:fake_backend\.)?FakeBackendV2\):", re.MULTILINE)
_FILE: Final = re.compile(r"""^    conf_filename(?:: str)? = ["'](.+?)["']""", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A published backend."""

    name: str
    """Of its class in `qiskit_ibm_runtime.fake_provider`."""
    num_qubits: int


def find_snapshot(name: str) -> Snapshot:
    """The snapshot called `name`. Raises `ValueError` with what to do if there is none."""
    if not name:
        raise ValueError("snapshot is missing: name a backend of qiskit-ibm-runtime, such as FakeSherbrooke")
    files = _find_files()
    if not files:
        raise ValueError(f"snapshot {name!r} is one of qiskit-ibm-runtime's, which is not installed: {INSTALL}")
    if name not in files:
        close = difflib.get_close_matches(name, files, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(sorted(files))}"
        raise ValueError(f"snapshot is {name!r}: qiskit-ibm-runtime has no such backend; {hint}")
    return Snapshot(name, int(json.loads(files[name].read_text())["n_qubits"]))


@cache
def _find_files() -> dict[str, Path]:
    """The file of the configuration of each snapshot, by the name of its class; none: it is not installed."""
    package = find_spec("qiskit_ibm_runtime")
    if package is None or not package.submodule_search_locations:
        return {}
    backends = Path(package.submodule_search_locations[0]) / "fake_provider" / "backends"
    files = {}
    for module in backends.glob("*/fake_*.py"):
        text = module.read_text()
        for name, file in zip(_CLASS.findall(text), _FILE.findall(text), strict=False):
            files[name] = module.parent / file
    return files
