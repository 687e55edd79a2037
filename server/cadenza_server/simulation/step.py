"""One command of a simulation, and how the runs of the job go that it may submit."""

from dataclasses import dataclass

from cadenza_server.model.commands import Command


@dataclass(slots=True)
class Behaviour:
    """How a job's runs go. `run`: nanoseconds until it is done; `fails`: its program fails then; `worker_lost`: after
    how many nanoseconds its first, second, ... attempt loses its worker."""

    run: int
    fails: bool = False
    worker_lost: tuple[int, ...] = ()


@dataclass(slots=True)
class Step:
    """A command and when it comes (nanoseconds). `name`: the job, session or reservation that it names."""

    at: int
    name: str
    command: Command
    behaviour: Behaviour | None = None
