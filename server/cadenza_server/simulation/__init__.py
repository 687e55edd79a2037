"""Scenario files on a virtual clock, through the scheduler that the server runs.

`read_scenario` reads one strictly, `simulate` runs it, `differences` compares what came of it with its `expect`, and
`run_files` and `compare_files` do all of it for the command line.
"""

from cadenza_server.simulation.files import compare_files, run_files
from cadenza_server.simulation.outcome import Ran, Rejected, SessionStep, SimulationOutcome, differences
from cadenza_server.simulation.runner import simulate
from cadenza_server.simulation.scenario import Scenario, parse_scenario, read_scenario
from cadenza_server.simulation.step import Behaviour, Step
from cadenza_server.simulation.tree import ScenarioError

__all__ = [
    "Behaviour",
    "Ran",
    "Rejected",
    "Scenario",
    "ScenarioError",
    "SessionStep",
    "SimulationOutcome",
    "Step",
    "compare_files",
    "differences",
    "parse_scenario",
    "read_scenario",
    "run_files",
    "simulate",
]
