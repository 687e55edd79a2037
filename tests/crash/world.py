"""One seed: servers that live and die on one disk while callers use them, and what must be true after each death.

Everything but the disk, the workers, the network, the callers and time is production code. What is checked:

- all that `cadenza check` checks, of every disk that a death leaves
- nothing that anybody was told is lost or becomes another: jobs, numbers, final states, results, answers, cancels,
  priorities, shares, what watchers saw
- the scheduler's state and the store's are the same whenever the disk has caught up, so a restart changes nothing:
  order of service, usage to the last bit, clocks, holds
- a job runs once at a time, its result is of the attempt that succeeded, and of no other
- no run goes on behind its limit, though its worker is never heard of
- jobs of a user that nothing sets apart run in the order of their numbers
- in the end every job is in its final state; one whose worker always dies was tried `max_attempts` times
- time never goes back, though the wall clock does
"""

import asyncio
import gc
import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from cadenza_server.engine import DevicePlan, Engine, RunFilter, TimeOrderedIds, restart
from cadenza_server.engine.writer import Device, Stage
from cadenza_server.execution.runs import RunReport
from cadenza_server.model.errors import Refusal
from cadenza_server.model.settings import HALF_LIFE_DEFAULT, PROFILES, SECOND, DeviceSettings
from cadenza_server.model.words import JobReason, JobState, RunOutcome
from cadenza_server.store import StoreError, reads
from sqlalchemy import Connection

from tests.crash.callers import OPERATOR, USERS, Customer, Memory, told_of, watch
from tests.crash.disk import Disk, SimulatedStore
from tests.crash.network import Network, Skin
from tests.crash.processes import DeviceOfProcesses
from tests.crash.virtual_loop import Crash, LoopClock, VirtualLoop
from tests.crash.workers import SimulatedDevice, result_of
from tests.integration.test_engine import by_name

START: Final = 1_000_000 * SECOND
DRAIN_SECONDS: Final = 20_000
LATE_NS_MAX: Final = 8 * SECOND
"""How long after its limit a run ends at the latest: what it runs is read and sent late, and its report comes late."""

LIVES: Final = 6
STEPS_MAX: Final = 1500
FAULTS: Final = {
    "slow disk": 0.05,
    "disk hangs": 0.005,
    "commit fails": 0.02,
    "read fails": 0.02,
    "slow start": 0.3,
    "worker dies": 0.05,
    "report is late": 0.1,
    "report is lost": 0.02,
    "worker stutters": 0.02,
    "late result": 0.5,
    "report comes twice": 0.2,
    "message is late": 0.05,
    "request is lost": 0.05,
    "request comes twice": 0.1,
    "answer is lost": 0.05,
}
WORKER_FAULTS: Final = (
    "slow start",
    "worker dies",
    "report is late",
    "report is lost",
    "worker stutters",
    "late result",
)
"""What may also happen while everything comes to its end: it does all the same."""

SHARES: Final = {"lab": 2.0}


@dataclass(slots=True)
class Outcome:
    """What one seed came to, for people."""

    seed: int
    lives: int = 0
    deaths: int = 0
    jobs: int = 0
    runs: int = 0
    commits: int = 0
    torn: int = 0
    answers: int = 0
    repeated: int = 0
    unanswered: int = 0
    strays: int = 0
    audits: int = 0
    seconds: float = 0.0
    """Of virtual time."""


class World:
    """See the module. `lives`: how many servers live and die; `steps_max`: after how many steps one dies at the latest.
    `run` lives a seed to its end; raises `AssertionError` with what was not kept."""

    def __init__(self, seed: int, lives: int = LIVES, steps_max: int = STEPS_MAX) -> None:
        self._source = source = random.Random(seed)
        self.audit_source = random.Random(seed)
        self.outcome = Outcome(seed)
        self._lives = lives
        self._steps_max = steps_max
        self._audited = 0
        """How many commits there had been at the last audit."""
        names = ("ada", "bea", "cleo")[: source.choice((1, 1, 2, 3))]
        self._settings = {name: _make_settings(source) for name in names}
        self._memory = Memory(names)
        self._disk = Disk(random.Random(source.random()))
        self._faults = {name: rate * source.choice((0, 1, 1, 3)) for name, rate in FAULTS.items()}
        self._workers_hang = self._faults["report is lost"] > 0
        self._device_class = source.choice((SimulatedDevice, DeviceOfProcesses))
        self._network = Network(random.Random(source.random()), self.strikes)
        self._now = START
        self._skew = 0
        self._latest = 0
        """The last time that any server wrote down."""
        self._customers = [
            Customer(self._memory, caller, random.Random(source.random())) for caller in (*USERS, USERS[0], OPERATOR)
        ]

    def run(self) -> Outcome:
        """All lives, and the end."""
        try:
            for _ in range(self._lives):
                self._live(self._source.randrange(20, self._steps_max) if self._source.random() < 0.85 else None)
                self._check_disk()
                self._now += int(self._source.choice((0, 0.01, 1, 30, 4000)) * self._source.random() * SECOND)
                self._skew = int(self._source.choice((0, 0, 0, -50, 50)) * self._source.random() * SECOND)
            workers_fail = self._source.random() < 0.5
            self._faults = {name: self._faults[name] for name in WORKER_FAULTS if workers_fail}
            self._live(None, drain=True)
            self._check_disk()
            self._check_end()
        finally:
            self._disk.close()
        self.outcome.commits = self._disk.commits
        self.outcome.torn = self._disk.torn
        self.outcome.jobs = len(self._memory.jobs)
        self.outcome.answers = self._memory.answers
        self.outcome.repeated = self._memory.repeated
        self.outcome.unanswered = self._network.unanswered
        self.outcome.strays = self._network.strays
        self.outcome.seconds = (self._now - START) / SECOND
        return self.outcome

    # --- one server -------------------------------------------------------------------------------------------------
    def _live(self, steps: int | None, *, drain: bool = False) -> None:
        """Start a server; let it die after some steps, or (None) stop in good order."""
        self.outcome.lives += 1
        loop = VirtualLoop(self._now)
        asyncio.set_event_loop(loop)
        loop.steps_left = steps
        store = SimulatedStore(self._disk, loop, self._source, self._faults)
        server = _Server(self, loop, store)
        try:
            loop.run_until_complete(server.drain() if drain else server.serve())
        except Crash:
            self.outcome.deaths += 1
            store.die()
        finally:
            self._now = loop.now_ns
            loop.bury()
        assert not loop.unhandled, loop.unhandled[0]

    def build(self, loop: VirtualLoop, store: SimulatedStore) -> Engine:
        """Production's engine on simulated parts."""
        clock = LoopClock(loop, self._skew)
        source = random.Random(self._source.random())

        def plan(name: str, settings: DeviceSettings) -> DevicePlan:
            def build(report: Callable[[RunReport], None], ready: Callable[[str, bool], None]) -> Device:
                return self._device_class(name, loop, source, self.strikes, report, ready)

            return DevicePlan(settings=settings, profile="simulated", build=build)

        return Engine(
            store=store,
            devices={name: plan(name, settings) for name, settings in self._settings.items()},
            clock=clock,
            ids=TimeOrderedIds(clock, random.Random(self._source.random())),
            shares=SHARES,
        )

    def strikes(self, fault: str) -> bool:
        """Whether a fault happens now."""
        return self._source.random() < self._faults.get(fault, 0)

    # --- what must be true ------------------------------------------------------------------------------------------
    def audit(self, engine: Engine) -> None:
        """If the disk has all that happened: what it gives back is what the scheduler is."""
        writer = engine._writer
        unit = writer._unit
        busy = writer._in_flight or writer._inputs or unit.batch or unit.answers or writer.recorder.has_touched
        assert writer.now() >= self._latest, "time went back"
        if busy or writer.stage is not Stage.RUNNING or self._disk.commits == self._audited:
            return
        self._audited = self._disk.commits
        live = writer.scheduler.state()

        def load(connection: Connection) -> restart.Loaded:
            return restart.load(connection)

        loaded = self._disk.read(load)
        stored = restart.scheduler_state(loaded, self._settings, SHARES, HALF_LIFE_DEFAULT, live.now)
        found, expected = by_name(stored), by_name(live)
        for part, value in expected.items():
            assert found[part] == value, f"a restart would change {part}: {_difference(found[part], value)}"
        self.outcome.audits += 1

    def _check_disk(self) -> None:
        report = self._disk.check()
        assert report.is_sound, "; ".join(f"{each.subject} {each.text}" for each in report.findings[:3])
        self._disk.read(self._check_told)

    def _check_told(self, connection: Connection) -> None:
        for told in self._memory.jobs.values():
            row = reads.read_job(connection, told.job)
            assert row is not None, f"{told.job} was accepted, and is lost"
            view = row.view
            kept = (view.seq, view.user, view.device, view.session)
            assert kept == (told.seq, told.user, told.device, told.session), f"{told.job} became another: {kept}"
            if told.priority is not None:
                assert view.priority == told.priority, f"{told.job} has lost its priority"
            if told.is_cancelled:
                assert view.reason is JobReason.CANCELLED_BY_USER, f"{told.job} was cancelled, and is {view.state}"
            if told.final is not None:
                assert view == told.final, f"{told.job} was told to be {told.final}, and is {view}"
            if told.result is not None:
                assert reads.read_result(connection, told.job) == told.result
            if view.state is JobState.SUCCEEDED and view.job_class.value != "CALIBRATION":
                result = reads.read_result(connection, told.job)
                assert result == result_of(told.job, view.attempts), f"{told.job} has the result of {result!r}"
        for name in self._memory.sessions:
            session = reads.read_session(connection, name)
            assert session is not None, f"session {name} was created, and is lost"
            assert not (name in self._memory.ended_sessions and session.accepting_jobs), f"session {name} is open again"
        for name in self._memory.reservations:
            assert reads.read_reservation(connection, name) is not None, f"reservation {name} is lost"
        loaded = restart.load(connection)
        stored, self._latest = loaded.usage, loaded.alive
        for path, shares in self._memory.shares.items():
            pending = any(customer.caller.operator and customer.pending for customer in self._customers)
            assert pending or stored[path].shares == shares, f"the shares of {path} are lost"

    def _check_end(self) -> None:
        for job, told in self._memory.jobs.items():
            row = self._disk.read(lambda connection, job=job: reads.read_job(connection, job))  # type: ignore[misc]
            assert row is not None
            view = row.view
            assert view.state.is_final, f"{job} never ended"
            if view.reason is JobReason.RAN_TOO_LONG and (
                told.outcome is RunOutcome.WORKER_LOST or not self._workers_hang
            ):
                assert view.limit_ns < told.length_ns + LATE_NS_MAX, f"{job} was stopped, and its worker had ended it"
            if told.outcome is RunOutcome.WORKER_LOST and view.reason is JobReason.WORKER_LOST:
                runs = self._disk.read(lambda connection, job=job: reads.read_runs(connection, job))  # type: ignore[misc]
                lost = sum(run.outcome is RunOutcome.WORKER_LOST for run in runs)
                assert lost == self._settings[told.device].max_attempts, f"{job} was tried {lost} times"
        too_long = self._disk.raw.execute(
            "SELECT job, end_time - start_time, limit_ns FROM runs WHERE outcome != 'PUT_BACK' AND "
            "end_time - start_time > limit_ns + ?",
            (LATE_NS_MAX,),
        ).fetchall()
        assert not too_long, f"these ran on behind their limits: {too_long}"
        self._check_order()

    def _check_order(self) -> None:
        """Jobs of one user on one device that no session, priority or window sets apart start by their numbers: none
        starts while one with a smaller number waits."""
        found = self._disk.raw.execute(
            """
            SELECT runs.job, other.job FROM runs JOIN jobs ON jobs.job = runs.job
            JOIN jobs AS other ON other.user = jobs.user AND other.device = jobs.device AND other.seq < jobs.seq
            WHERE runs.rule = 'FAIR_SHARE' AND jobs.session IS NULL AND other.session IS NULL
                AND jobs.job_class = 'FAIR_SHARE' AND other.job_class = 'FAIR_SHARE'
                AND NOT EXISTS (SELECT 1 FROM events WHERE kind = 'job_priority_changed'
                                AND events.job IN (jobs.job, other.job))
                AND NOT EXISTS (SELECT 1 FROM reservations WHERE reservations.device = jobs.device)
                AND other.create_time < runs.start_time AND other.end_time > runs.start_time
                AND NOT EXISTS (SELECT 1 FROM runs AS theirs WHERE theirs.job = other.job
                                AND theirs.start_time <= runs.start_time AND theirs.end_time >= runs.start_time)
            """
        ).fetchall()
        assert not found, f"{found[0][0]} ran before {found[0][1]}"


class _Server:
    """One server's life."""

    def __init__(self, world: World, loop: VirtualLoop, store: SimulatedStore) -> None:
        self._world = world
        self._loop = loop
        self._engine = world.build(loop, store)
        self._tasks: list[asyncio.Task[None]] = []

    async def _begin(self) -> None:
        while True:
            try:
                await self._engine.start()
                break
            except StoreError:  # the disk fails at this very moment: an operator starts it again
                await asyncio.sleep(1)
                self._engine = self._world.build(self._loop, self._store())
        self._world._network.connect(Skin(self._engine, self._world._settings, (OPERATOR.path,)))
        self._spawn(self._audit())

    def _store(self) -> SimulatedStore:
        store = self._engine._store
        assert isinstance(store, SimulatedStore)
        return store

    def _spawn(self, coroutine: "asyncio._CoroutineLike[None]") -> None:
        self._tasks.append(self._loop.create_task(coroutine))

    async def _audit(self) -> None:
        while True:
            await asyncio.sleep(self._world.audit_source.uniform(0, 8))
            try:
                await self._engine._writer.catch_up()
            except Refusal:
                continue
            self._world.audit(self._engine)

    async def _watch(self) -> None:
        memory, source, known = self._world._memory, random.Random(1), 0
        while True:
            for watching in memory.watches[known:]:
                if not watching.is_over:
                    self._spawn(watch(watching, self._engine, source))
            known = len(memory.watches)
            await asyncio.sleep(0.5)

    async def _until(self, seconds: float) -> None:
        """Let it live so long, or until a task of it fails."""
        end = self._loop.time() + seconds
        while self._loop.time() < end:
            done, _ = await asyncio.wait(self._tasks, timeout=0.5, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
            self._tasks = [task for task in self._tasks if not task.done()]

    async def serve(self) -> None:
        """Be used for a while, then stop in good order (if it does not die before)."""
        await self._begin()
        for customer in self._world._customers:
            self._spawn(customer.live(self._world._network))
        self._spawn(self._watch())
        await self._until(self._world._source.uniform(1, 60 * self._world._steps_max / STEPS_MAX))
        stopping = self._loop.create_task(self._engine.stop(self._world._source.choice((0, 5))))
        await asyncio.wait([stopping, *self._tasks], return_when=asyncio.FIRST_COMPLETED)
        await stopping
        for task in self._tasks:
            if task.done():
                task.result()
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def drain(self) -> None:
        """Nobody asks for anything more, and only workers fail: everything comes to its end."""
        await self._begin()
        for customer in self._world._customers:
            if customer.pending is not None:
                self._spawn(_finish(customer, self._world._network))
        self._spawn(self._watch())
        recorder = self._engine._writer.recorder
        for _ in range(DRAIN_SECONDS // 50):
            await self._until(50)
            recorder = self._engine._writer.recorder
            if not recorder.waiting and not recorder.sessions:
                break
        assert not recorder.waiting, f"these still wait: {recorder.waiting}"
        assert not recorder.sessions, f"these sessions do not end: {list(recorder.sessions)}"
        await self._engine._writer.catch_up()
        writer = self._engine._writer
        assert not len(writer.payloads), "programs of jobs that are over are kept"
        assert not writer.running
        assert not writer._reports
        assert not writer._predicted
        for view in self._engine.usage_views(self._engine.share_paths()):
            assert view.in_flight_s == 0
        await self._until(1)  # watchers have heard the last of it
        await self._compare_watches()
        self._world.outcome.runs = len((await self._engine.list_runs(RunFilter(), page_size=1000)).items)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._engine.stop(0)

    async def _compare_watches(self) -> None:
        """What watchers saw, across all servers, is what the history tells."""
        for watching in self._world._memory.watches:
            if watching.first is None or watching.job is None:
                continue
            history = []
            token = ""
            while True:
                page = await self._engine.list_job_events(watching.job, page_size=100, page_token=token)
                history += [told_of(notice) for notice in page.items if notice.event_number > watching.first]
                token = page.next_page_token
                if not token:
                    break
            assert watching.seen == history, f"a watcher of {watching.job} saw {watching.seen}, and it was {history}"


async def _finish(customer: Customer, network: Network) -> None:
    """The last call that has no answer yet."""
    assert await customer.ask(network), "a call is not answered, though nothing fails"


def _make_settings(source: random.Random) -> DeviceSettings:
    """A profile with clocks that run out while somebody looks."""
    return replace(
        PROFILES[source.choice(sorted(PROFILES))],
        interactive_ttl_dedicated=source.randrange(1, 8 * SECOND),
        max_time=source.randrange(20, 60) * SECOND,
        unused_ttl=source.randrange(5, 30) * SECOND,
        session_cache_ttl=source.randrange(0, 30) * SECOND,
        limit=source.randrange(4, 30) * SECOND,
        max_attempts=source.randint(1, 3),
        calibration_interval=source.choice((None, 40 * SECOND)),
        calibration_duration=2 * SECOND,
    )


def _difference(found: object, expected: object) -> str:
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in (*expected, *found):
            if found.get(key) != expected.get(key):
                return f"{key}: from {expected.get(key)} to {found.get(key)}"
    return f"from {expected} to {found}"


def run_seed_to_its_end(seed: int, lives: int = LIVES, steps_max: int = STEPS_MAX) -> Outcome:
    """One seed. What dies leaves no warnings behind: nobody was to hear of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        world = World(seed, lives, steps_max)
        try:
            return world.run()
        finally:
            gc.collect(0)
