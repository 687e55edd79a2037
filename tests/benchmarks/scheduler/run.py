"""How long the scheduler takes: `python tests/benchmarks/scheduler/run.py`.

One decision: the end of a run, what it settles, the next pick and all their events. One stall: everything that happens
to a session with very many queued jobs at once.
"""

from collections.abc import Iterator
from dataclasses import replace
from statistics import median, quantiles
from time import perf_counter

from cadenza_server.model.commands import Caller, CancelSession, CreateSession, RunEnded, SubmitJob
from cadenza_server.model.events import RunStarted, SessionJobsEnded, SessionJobsReleased
from cadenza_server.model.settings import RUNTIME_2023, RUNTIME_2024, SECOND, DeviceSettings
from cadenza_server.model.words import OnExpiry, RunOutcome
from cadenza_server.scheduling import Scheduler

JOBS = 100_000
DECISIONS = 20_000
OWNER = Caller("lab/owner")


def decisions(jobs: int) -> list[float]:
    """Seconds of each decision, with `jobs` queued jobs of 5,000 users in 100 accounts on one device."""
    scheduler = Scheduler({"qpu": RUNTIME_2023})
    outcome = scheduler.apply(
        [SubmitJob(job=f"j{i}", caller=Caller(f"lab{i % 100}/u{i % 5000}"), device="qpu") for i in range(jobs)], 0
    )
    run = next(event for event in outcome.events if isinstance(event, RunStarted))
    now = 0
    took = []
    for i in range(min(jobs - 1, DECISIONS)):
        now += SECOND - i
        end = RunEnded(device="qpu", job=run.job, attempt=run.attempt, outcome=RunOutcome.SUCCEEDED)
        before = perf_counter()
        outcome = scheduler.apply([end], now)
        took.append(perf_counter() - before)
        last = outcome.events[-1]
        assert isinstance(last, RunStarted)
        run = last
    return took


def stalls(settings: DeviceSettings) -> Iterator[tuple[str, float]]:
    """What happens at once to a session with JOBS queued jobs, and the seconds that it takes."""
    kinds = ["cancel", "expiry"] + ["cache deadline"] * (settings.on_expiry is OnExpiry.FAIR_SHARE)
    for what in kinds:
        scheduler = Scheduler({"qpu": replace(settings, session_cache_ttl=20 * SECOND)})
        session = CreateSession(session="s", caller=OWNER, device="qpu", max_time=10 * SECOND)
        queued = [SubmitJob(job=f"j{i}", caller=OWNER, session="s", estimate=20 * SECOND) for i in range(JOBS + 1)]
        scheduler.apply([session, *queued], 0)
        if what == "cache deadline":
            scheduler.apply([], 10 * SECOND)
        commands = [CancelSession(session="s", caller=OWNER)] if what == "cancel" else []
        now = {"cancel": 5, "expiry": 10, "cache deadline": 30}[what] * SECOND
        before = perf_counter()
        outcome = scheduler.apply(commands, now)
        yield f"{what}, on_expiry = {settings.on_expiry}", perf_counter() - before
        about = [each for each in outcome.events if isinstance(each, SessionJobsEnded | SessionJobsReleased)]
        assert [each.count for each in about] == [JOBS]


def main() -> None:
    """Print the figures."""
    for jobs in (1_000, 10_000, JOBS):
        took = decisions(jobs)
        p50, p99 = median(took) * 1e6, quantiles(took, n=100)[98] * 1e6
        print(f"one decision, {jobs:>7,} queued jobs: p50 {p50:5.1f} us, p99 {p99:5.1f} us")
    for settings in (RUNTIME_2023, RUNTIME_2024):
        for what, seconds in stalls(settings):
            print(f"session with {JOBS:,} queued jobs, {what}: {seconds * 1e3:.0f} ms")


if __name__ == "__main__":
    main()
