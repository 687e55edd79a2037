"""Users who never run out of jobs, on devices that are never free: fair-share jobs only, with exact estimates.

Each user who has joined has a job waiting on every device at every decision: whenever one starts, another is submitted
before the next decision.
"""

import heapq
import random
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from cadenza_server.model.commands import Caller, CancelJob, Command, RunEnded, SubmitJob
from cadenza_server.model.events import JobEnded, RunStarted
from cadenza_server.model.settings import RUNTIME_2023
from cadenza_server.model.words import RunOutcome
from cadenza_server.scheduling import Scheduler


@dataclass
class Backlog:
    """Devices, and users with endless work. Lengths and times are nanoseconds."""

    devices: int
    half_life: int
    shares: Mapping[str, float]
    length: Callable[[random.Random], int]
    """Draws how long a job takes."""
    rng: random.Random
    now: int = 0
    joined: list[str] = field(default_factory=list)
    runs: list[tuple[int, int, str]] = field(default_factory=list)
    """Start, end and user of each."""
    alive: dict[str, dict[str, None]] = field(default_factory=lambda: defaultdict(dict))
    """By user, the jobs that wait or run."""
    made: int = 0
    ends: list[tuple[int, str, str, int]] = field(default_factory=list)
    wanted: list[Command] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.names = [f"q{i:02}" for i in range(self.devices)]
        settings = dict.fromkeys(self.names, RUNTIME_2023)
        self.scheduler = Scheduler(settings, shares=self.shares, half_life=self.half_life)

    def submit(self, user: str, device: str) -> None:
        """Ask for one more job at the next instant."""
        self.made += 1
        self.alive[user][f"j{self.made}"] = None
        estimate = self.length(self.rng)
        self.wanted.append(SubmitJob(job=f"j{self.made}", caller=Caller(user), device=device, estimate=estimate))

    def join(self, *users: str) -> None:
        """From the next instant on these users are backlogged."""
        for user in self.rng.sample(users, len(users)):
            for device in self.names:
                self.submit(user, device)
                self.submit(user, device)
        self.joined += users

    def leave(self, user: str) -> None:
        """At the next instant the user cancels everything, and submits no more."""
        self.joined.remove(user)
        self.wanted += [CancelJob(job=job, caller=Caller(user)) for job in self.alive.pop(user)]

    def step(self) -> None:
        """Handle the next instant: at least one run ends, or jobs are submitted at the start."""
        if self.ends:
            self.now = self.ends[0][0]
        commands: list[Command] = []
        while self.ends and self.ends[0][0] == self.now:
            _, device, job, attempt = heapq.heappop(self.ends)
            commands.append(RunEnded(device=device, job=job, attempt=attempt, outcome=RunOutcome.SUCCEEDED))
        self.apply(commands + self.take_wanted())

    def take_wanted(self) -> list[Command]:
        """What users ask for at the next instant."""
        wanted, self.wanted = self.wanted, []
        return wanted

    def apply(self, commands: list[Command]) -> None:
        """Handle an instant with these commands."""
        for event in self.scheduler.apply(commands, self.now).events:
            if isinstance(event, JobEnded):
                for jobs in self.alive.values():
                    jobs.pop(event.job, None)
            elif isinstance(event, RunStarted):
                heapq.heappush(self.ends, (self.now + event.estimate, event.device, event.job, event.attempt))
                self.runs.append((self.now, self.now + event.estimate, event.user))
                if event.user in self.joined:
                    self.submit(event.user, event.device)

    def usage(self) -> dict[str, tuple[float, float]]:
        """By path: usage now, with what is in flight, decayed, in device seconds; and shares."""
        return {
            node.path: (node.settled + node.in_flight, node.shares) for node in self.scheduler.shares_view(self.now)
        }
