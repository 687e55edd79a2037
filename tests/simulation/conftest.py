"""Every test of this folder is random: its seed is printed, and a failure says how to repeat it."""

from collections.abc import Iterator

import pytest

from tests.simulation.seeds import run_seed


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Add the seed and the one command that repeats a failure to its report."""
    report: pytest.TestReport = yield  # type: ignore[assignment]
    if report.when == "call" and report.failed:
        again = f"CADENZA_SEED={run_seed()} python -m pytest '{item.nodeid}'"
        report.sections.append(("replay", f"CADENZA_SEED={run_seed()}\nReplay it with: {again}"))
    return report  # type: ignore[return-value]
