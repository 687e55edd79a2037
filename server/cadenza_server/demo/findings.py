"""What the demo's runs say about the promises: computed from the server's own record of runs, and from nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Run:
    """One run as the server recorded it; times in seconds since the demo began."""

    job: str
    user: str
    session: str
    """Empty for a job on its own."""
    rule: str
    """CALIBRATION, ACTIVE_SESSION or FAIR_SHARE."""
    created: float
    start: float
    end: float

    @property
    def length(self) -> float:
        """Seconds on the device."""
        return self.end - self.start

    @property
    def waited(self) -> float:
        """Seconds between submission and start."""
        return self.start - self.created


@dataclass(frozen=True, slots=True)
class Share:
    """What one user got of the device against what was due; seconds."""

    user: str
    shares: float
    got: float
    due: float


def runs_between(runs: Sequence[Run], own: Sequence[Run]) -> list[Run]:
    """The runs of others that started after the first and before the last of `own` (in order of start)."""
    if not own:
        return []
    jobs = {run.job for run in own}
    first, last = min(run.start for run in own), max(run.start for run in own)
    return [run for run in runs if run.job not in jobs and first < run.start < last]


def shares_got(runs: Sequence[Run], shares: Mapping[str, float]) -> list[Share]:
    """Device seconds of each user in `shares`, and what their weights would give of the same total.

    Fair share owes users who always have jobs waiting their part to within one run: it picks who has the least usage
    for its shares, and never stops a run (semantics 6).
    """
    got = {user: sum(run.length for run in runs if run.user == user) for user in shares}
    total, weight = sum(got.values()), sum(shares.values())
    return [Share(user, w, got[user], total * w / weight) for user, w in shares.items()]


def longest_run(runs: Sequence[Run], users: Mapping[str, float]) -> float:
    """Seconds of the longest run of these users; 0 if there is none."""
    return max((run.length for run in runs if run.user in users), default=0.0)
