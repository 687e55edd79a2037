"""The conformance suite: every scenario file of this folder, over the compiled queue and over its reference."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
from cadenza_server.simulation import differences, read_scenario, run_files, simulate

import _fastqueue
from _fastqueue import reference

FILES = sorted(Path(__file__).parent.glob("*.yaml"))
QUEUES = {
    "compiled": _fastqueue.Queue,
    "reference": cast("Callable[[int], _fastqueue.Queue]", reference.Queue),
}


@pytest.mark.parametrize("queue", QUEUES)
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_scenario_comes_out_as_expected(file: Path, queue: str) -> None:
    scenario = read_scenario(file)
    assert scenario.expect is not None, "a conformance scenario says what it expects"
    assert differences(simulate(scenario, _queue=QUEUES[queue]), scenario.expect) == []


def test_every_scenario_of_the_suite_is_here() -> None:
    assert len(FILES) >= 36


def test_run_files_prints_one_line_of_json_a_file_in_the_order_given() -> None:
    out, err = io.StringIO(), io.StringIO()
    assert run_files(FILES, True, out, err) == 0
    assert err.getvalue() == ""
    outputs = [json.loads(line) for line in out.getvalue().splitlines()]
    assert len(outputs) == len(FILES)
    for output, file in zip(outputs, FILES, strict=True):
        assert output == simulate(read_scenario(file)).as_output()
