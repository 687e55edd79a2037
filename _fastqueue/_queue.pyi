"""The typed surface of the compiled queue (and of `reference.py`, its oracle).

Handles are small non-negative integers that are recycled after they are freed. Times and lengths are integer
nanoseconds. Nothing here reads a clock, allocates an id at random or knows a name. Not thread-safe: one owner.
Bad arguments (an unknown or freed handle, a length that is not positive, shares that are not positive and finite)
raise `ValueError` and change nothing.

Law: semantics 3 (dispatch), 5.3 (order inside a session), 6 (fair share), 8 (windows).
"""

from typing import Final, Self, final

NEVER: Final[int]  # 2**63 - 1: no deadline, no window ahead
ROOT: Final[int]  # 0: the root of the share tree
__pyx_capi__: Final[dict[str, object]]  # the functions of `_queue.pxd`, for C callers
# What `pick` answers when no job is to run.
NOTHING: Final[int]  # -1: no candidate; the device stays free
HELD: Final[int]  # -2: the active dedicated session holds the device
BATCH_FITS_NOTHING: Final[int]  # -3: the active batch has queued jobs and none fits before its `fit_deadline` (5.3)
BATCH_MAY_NOT_START: Final[int]  # -4: jobs of the active batch fit, but none may start before the next window (8)

@final
class Queue:
    def __init__(self, half_life_ns: int) -> None: ...
    def copy(self) -> Self:
        """A queue of its own that holds the same under the same handles. Takes the time and the memory that it takes to
        copy `memory_bytes`."""

    # --- the share tree (6) -------------------------------------------------------------------------------------
    def add_node(self, parent: int, shares: float = 1.0) -> int:
        """Add a child of `parent` (an account or a user) and return its handle. Nodes are never removed."""

    def set_shares(self, node: int, shares: float) -> None: ...
    def shares(self, node: int) -> float: ...
    def usage(self, node: int, now: int) -> tuple[float, float]:
        """(settled, in flight), decayed to `now`, in device seconds: u / g(now)."""

    def raw_usage(self, node: int) -> tuple[float, float, int]:
        """(settled, in flight, exponent): the doubles themselves; their value is x * 2**exponent. For the store."""

    def restore_usage(self, node: int, settled: float, exponent: int) -> None:
        """Set one node's settled usage from what `raw_usage` gave before a restart (not its ancestors')."""

    def normalised_usage(self, node: int) -> float:
        """(settled + in flight) / w, as compared; only good for comparing nodes of the same queue."""

    def charge(self, user: int, start: int, duration: int) -> None:
        """settled += cost(start, duration) on the user and every account above (a held piece, 6)."""

    # --- devices ------------------------------------------------------------------------------------------------
    def add_device(self, calibration_outside_dedicated: bool = False) -> int: ...
    def set_window(self, device: int, inside: int, next_start: int, next_holder: int) -> None:
        """What reservations restrict now (8). `inside`: the holder's node of the window that is open, or -1.
        `next_start`: the start of the next window or NEVER; `next_holder`: its holder's node, or -1."""

    # --- sessions -----------------------------------------------------------------------------------------------
    def add_session(self, device: int, user: int, batch: bool) -> int: ...
    def remove_session(self, session: int) -> None:
        """Forget a session without queued jobs (deactivates it first if it is active)."""

    def set_standing(self, session: int, standing: bool) -> None:
        """Whether the session, while it has queued jobs and is not active, stands in its owner's queue as a candidate
        of rule 3. False at first."""

    def set_fit_deadline(self, session: int, deadline: int) -> None:
        """A batch's jobs fit if now + estimate <= deadline (5.3). NEVER at first (it has not started)."""

    def activate(self, session: int) -> None:
        """Make it the active session of its device (there must be none)."""

    def deactivate(self, device: int) -> None: ...
    def active_session(self, device: int) -> int:
        """The handle, or -1."""

    def release_jobs(self, session: int) -> int:
        """Its queued jobs become fair-share jobs of the owner; handle, seq, priority and estimate stay. How many."""

    def drop_jobs(self, session: int) -> list[int]:
        """Take all queued jobs of the session off the queue; their (now freed) handles."""

    def session_size(self, session: int) -> int: ...

    # --- jobs ---------------------------------------------------------------------------------------------------
    def push(self, device: int, user: int, seq: int, priority: int, estimate: int) -> int:
        """Queue a fair-share job. seq < 2**48, unique; priority -100..100; estimate > 0. Returns its handle."""

    def push_session(self, session: int, seq: int, priority: int, estimate: int, first: bool = False) -> int:
        """Queue a job of a session; `first`: it is the session's first job (5.3)."""

    def push_calibration(self, device: int, seq: int) -> int: ...
    def remove(self, job: int) -> None:
        """Take a queued job of any class off the queue; its handle is freed."""

    def set_priority(self, job: int, priority: int) -> None:
        """Of a queued fair-share or session job."""

    # --- dispatch (3) -------------------------------------------------------------------------------------------
    def pick(self, device: int, now: int) -> int:
        """The handle of the job that the free device is to run now, or one of the negative answers above. Changes
        nothing that can be seen. ValueError if the device runs a job."""

    def runner_up(self, job: int, now: int) -> tuple[int, int, int] | None:
        """For a queued job that rule 3 picks now on its device: what the root would pick if this job's user had no
        candidate there. (node, passed, user): the siblings that were compared, the winner's side first, and the user
        below `passed` whose candidate came second. None if there is no other candidate."""

    def start(self, job: int, now: int) -> None:
        """The job leaves the queue and runs on its device: in flight += cost(now, estimate), but for calibration.
        Its handle is freed; the device remembers user, start and charge."""

    def double_estimate(self, device: int) -> int:
        """The run's estimate doubles and so its in-flight charge, cost(start, 2 * estimate); the new estimate."""

    def finish(self, device: int, now: int) -> None:
        """The run ended: its in-flight charge goes, settled += cost(start, now - start) (nothing for calibration)."""

    def lose(self, device: int) -> None:
        """The run's worker was lost: its in-flight charge goes, nothing is settled."""

    # --- figures ------------------------------------------------------------------------------------------------
    def __len__(self) -> int:
        """All queued jobs."""

    def counts(self, device: int) -> tuple[int, int, int]:
        """Queued calibration, session and fair-share jobs of the device."""

    def memory_bytes(self) -> int:
        """Bytes held in C memory now, all arrays and tables included."""

    def renormalise(self, exponents: int) -> None:
        """Scale all stored usage by 2**-exponents, exactly; no comparison changes. Done by itself as time goes on."""
