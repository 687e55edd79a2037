"""What holds for all tests."""

import signal
from collections.abc import Iterator

import pytest

from tests.simulation.seeds import run_seed

# A shell that starts the tests in the background has them ignore Ctrl-C, and so would every server and command that
# they start. Tests that press it would wait for nothing.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

RANDOM_FOLDERS = ("crash", "model", "simulation")
"""Their tests take their seeds from the run's."""


def pytest_report_header() -> str:
    """Print the seed of this run."""
    return f"CADENZA_SEED={run_seed()}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Add the seed and the one command that repeats it to the report of a random test that failed."""
    report: pytest.TestReport = yield  # type: ignore[assignment]
    drawn = item.path.parent.name in RANDOM_FOLDERS or hasattr(getattr(item, "obj", None), "hypothesis")
    if report.when == "call" and report.failed and drawn:
        again = f"CADENZA_SEED={run_seed()} python -m pytest '{item.nodeid}'"
        report.sections.append(("replay", f"CADENZA_SEED={run_seed()}\nReplay it with: {again}"))
    return report  # type: ignore[return-value]
