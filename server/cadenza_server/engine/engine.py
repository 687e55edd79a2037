"""The engine as others see it: commands with idempotency, watches, reads. It decides nothing."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import TypeVar, cast

from sqlalchemy import Connection

from cadenza_server.clock import Clock
from cadenza_server.engine import event_json, history
from cadenza_server.engine.forecasts import Forecasts
from cadenza_server.engine.ids import Ids
from cadenza_server.engine.names import Names
from cadenza_server.engine.notices import JobEnded, JobSnapshot, Notice, SessionSnapshot
from cadenza_server.engine.observer import Observer
from cadenza_server.engine.payloads import Payload
from cadenza_server.engine.quotas import Quotas
from cadenza_server.engine.recorder import INLINE_RESULT_BYTES_MAX, Published, accepted_view
from cadenza_server.engine.retention import Cleaner, Retention
from cadenza_server.engine.share_list import ShareList
from cadenza_server.engine.views import DeviceView, Figures, JobContent, RequestKey, UsageView
from cadenza_server.engine.watches import Watches
from cadenza_server.engine.writer import Answer, Device, DevicePlan, Stage, Writer, stopping, store_unavailable
from cadenza_server.model.commands import (
    Caller,
    CancelJob,
    CancelSession,
    CloseSession,
    Command,
    CreateReservation,
    CreateSession,
    DeleteReservation,
    SetPriority,
    SubmitJob,
    SubmitJobs,
)
from cadenza_server.model.errors import Code, Refusal, not_found, session_of_other_user
from cadenza_server.model.events import Event
from cadenza_server.model.settings import HALF_LIFE_DEFAULT, SECOND
from cadenza_server.model.words import JobState, SessionState
from cadenza_server.store import StoreError, reads
from cadenza_server.store.reads import JobRow, RequestRow, ResultPiece
from cadenza_server.store.store import Store
from cadenza_server.store.views import (
    JobFilter,
    JobView,
    Page,
    ProgramKind,
    ReservationFilter,
    ReservationView,
    RunFilter,
    RunView,
    SessionFilter,
    SessionView,
)

T = TypeVar("T")
_Accepted = tuple[tuple[JobView, JobEnded | None], ...]
"""Jobs as they were accepted, and their ends where these came to disk with it."""
_log = logging.getLogger(__name__)


class Engine:
    """The one writer and its readers. All methods are to be called on the event loop that `start` ran on.

    Every call may raise `Refusal` UNAVAILABLE: STOPPING, or STORE_UNAVAILABLE while the store cannot commit.
    `caller` on a read: refuse (PERMISSION_DENIED, NOT_OWNER) unless the thing is the caller's or the caller is an
    operator; None: do not check. Lengths and times are nanoseconds.
    """

    def __init__(
        self,
        *,
        store: Store,
        devices: Mapping[str, DevicePlan],
        clock: Clock,
        ids: Ids,
        shares: Mapping[str, float] | None = None,
        half_life: int = HALF_LIFE_DEFAULT,
        quotas: Quotas | None = None,
        observer: Observer | None = None,
        retention: Retention | None = None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._ids = ids
        self._plans = dict(devices)
        observer = observer or Observer()
        quotas = quotas or Quotas()
        self._watches = Watches(observer.watch_ended, quotas.watch_backlog_max)
        self._writer = Writer(
            store=store,
            devices=devices,
            clock=clock,
            shares=dict(shares or {}),
            half_life=half_life,
            watches=self._watches,
            quotas=quotas,
            observer=observer,
        )
        self._cleaner = Cleaner(retention, self._writer, store, clock) if retention is not None else None
        self._forecasts = Forecasts(clock)
        self._shares = ShareList(self._writer)
        self._requests: dict[tuple[str, str], tuple[bytes, asyncio.Task[object]]] = {}
        self._names = {kind: Names() for kind in reads.NAMED}

    async def start(self, *, wait_for_devices: bool = True) -> None:
        """Open the store, take up what it holds, start the devices. Without `wait_for_devices` it returns when it can
        be asked, and jobs wait until the devices are ready. Raises `StoreError` with a sentence."""
        await self._store.open(self._clock.now())
        try:
            await self._writer.start(wait_for_devices=wait_for_devices)
        except BaseException:
            await self._store.close()
            raise
        if self._cleaner is not None:
            self._cleaner.start()

    async def stop(self, grace_seconds: float = 5.0) -> None:
        """Take no more commands, let runs end within the grace, put the others back, end watches, close the store."""
        if self._cleaner is not None:
            await self._cleaner.stop()
        await self._writer.stop(int(grace_seconds * SECOND))
        self._watches.end_all(stopping())
        await self._store.close()

    def figures(self, accounts_max: int) -> Figures:
        """The engine in numbers, with `accounts_max` accounts at most (those that were used first)."""
        writer, now = self._writer, self.now()
        devices = (writer.scheduler.device_view(name) for name in writer.devices)
        nodes = (writer.scheduler.node_view(path, now) for path in islice(writer.recorder.accounts, accounts_max))
        return Figures(
            now=now,
            devices=tuple(view for view in devices if view is not None),
            accounts=tuple(view for view in nodes if view is not None),
            queued=writer.recorder.occupied.queued_total,
            sessions=writer.recorder.occupied.sessions_total,
            watches=len(self._watches),
            result_bytes=self._cleaner.result_bytes if self._cleaner is not None else None,
        )

    def count_unfinished(self) -> int:
        """How many jobs are queued or run."""
        return sum(queued + running for queued, running in self._writer.recorder.waiting.values())

    # --- commands -----------------------------------------------------------------------------------------------
    async def submit(
        self, jobs: Sequence[SubmitJob], contents: Sequence[JobContent], request: RequestKey | None = None
    ) -> tuple[JobView, ...]:
        """Queue jobs, all or none, in order; returns when they are on disk, with the jobs as they were accepted.

        A job whose name is "" is named here, and one without an estimate is given the predictor's. Refused beside what
        the scheduler refuses: UNKNOWN_CIRCUIT.
        """
        return tuple(view for view, _ in await self._submit_once(jobs, contents, request))

    async def submit_one(
        self, job: SubmitJob, content: JobContent, request: RequestKey | None = None
    ) -> JobView | JobEnded:
        """As `submit`, of one job; its end, if that is on disk as soon as the job is."""

        ((view, ended),) = await self._submit_once((job,), (content,), request)
        return ended or view

    async def _submit_once(
        self, jobs: Sequence[SubmitJob], contents: Sequence[JobContent], request: RequestKey | None
    ) -> _Accepted:
        """One type for both, as both may answer the same request at the same time."""

        async def submit() -> _Accepted:
            return tuple((payload.accepted, payload.ended) for payload in await self._submit(jobs, contents, request))

        return await submit() if request is None else await self._once(request, submit, _accepted_before)

    async def submit_many(
        self, jobs: Sequence[SubmitJob], contents: Sequence[JobContent], request: RequestKey | None = None
    ) -> tuple[tuple[str, int], ...]:
        """As `submit`, for large calls: returns names and numbers (`seq`) only."""

        async def submit() -> tuple[tuple[str, int], ...]:
            return tuple((payload.job, payload.seq) for payload in await self._submit(jobs, contents, request))

        return await submit() if request is None else await self._once(request, submit, _numbers_before)

    async def execute(
        self, command: Command, *, request: RequestKey | None = None, description: str = ""
    ) -> tuple[Event, ...]:
        """Enter any other command; returns what it caused, after the commit that holds it. `description` is kept with
        a new reservation. Reads that follow show its effects. A new session or reservation whose name is "" is named
        here."""
        if request is None:
            return await self._execute(command, None, description)
        return await self._once(request, partial(self._execute, command, request, description), _events_before)

    async def execute_all(self, commands: Sequence[Command], *, request: RequestKey | None = None) -> None:
        """Enter several commands, which name what they make themselves, as one: in one instant and one commit, so that
        a crash leaves all of them or none. Raises the first `Refusal` there is; the others take effect all the same."""

        async def execute() -> tuple[Event, ...]:
            self._writer.check_open()
            first, *others = commands
            answers = [self._writer.enter(first, request=request), *(self._writer.enter(each) for each in others)]
            answered = await asyncio.gather(*answers)
            return answered[0].events

        if request is None:
            await execute()
        else:
            await self._once(request, execute, _events_before)

    async def _submit(
        self, jobs: Sequence[SubmitJob], contents: Sequence[JobContent], request: RequestKey | None
    ) -> tuple[Payload, ...]:
        self._writer.check_open()
        named = []
        prepared = []
        many = len(jobs) > 1
        if many:
            await self._writer.wait_for_turn()
        make, alike, estimate = self._ids.make, None, None
        for index, (job, content) in enumerate(zip(jobs, contents, strict=True)):
            name = job.job
            if name:
                named.append((f"jobs[{index}].job_id" if many else "job_id", name))
            else:
                name = make("job")
            workload, hint = content.workload, content.estimate_hint_ns
            # What an estimate goes by (a session stands for its owner, who need not be the caller).
            known_by = (job.device, job.session, job.user, job.limit, workload, hint, job.estimate)
            if known_by != alike or not workload:  # jobs of one call are often alike
                alike = known_by
                estimate = self._predict(job, content) if job.estimate is None else job.estimate
            prepared.append(_complete(job, name, estimate))
        command = SubmitJobs(jobs=tuple(prepared)) if many else prepared[0]

        def enter() -> asyncio.Future[Answer]:
            self._check_circuits(prepared, contents)
            return self._writer.enter(command, contents=contents, request=request)

        try:
            answer = await (self._enter_named("job", named, enter) if named else enter())
        except Refusal as refusal:
            raise await self._explain(refusal, command) or refusal from None
        return answer.jobs

    async def _enter_named(
        self, kind: str, named: Sequence[tuple[str, str]], enter: Callable[[], "asyncio.Future[Answer]"]
    ) -> Answer:
        """Enter a command whose client named what it makes: pairs of a field and the name in it. Raises `Refusal`
        ALREADY_EXISTS."""
        names = [name for _, name in named]
        release = await self._names[kind].claim(names)
        try:
            taken = await self._read(partial(reads.find_names, kind=kind, names=names))
            for field, name in named:
                # A live job is refused by the scheduler, after what is wrong with the rest of the command.
                if name in taken and not (kind == "job" and self._writer.scheduler.job_view(name)):
                    raise _taken(kind, name, field)
            entered = enter()
        except BaseException:
            release()
            raise
        # Not when this ends: the caller may leave before.
        entered.add_done_callback(lambda _: release())
        return await asyncio.shield(entered)

    def _predict(self, job: SubmitJob, content: JobContent) -> int | None:
        if content.program_kind is ProgramKind.CALIBRATION and content.min_duration_ns:
            return content.min_duration_ns  # it keeps its device so long
        device, user = job.device, job.user or job.caller.path
        if job.session is not None and (session := self._writer.recorder.sessions.get(job.session)) is not None:
            device, user = session.device, session.user
        return self._writer.predictor.estimate(
            device, user, content.workload, hint=content.estimate_hint_ns, limit=job.limit
        )

    def _check_circuits(self, jobs: Sequence[SubmitJob], contents: Sequence[JobContent]) -> None:
        """Refuse a digest that neither the job's session nor a job before it in this call has brought."""
        brought: dict[str | None, set[bytes]] = {}
        for index, (job, content) in enumerate(zip(jobs, contents, strict=True)):
            if job.session is None and not content.digests:
                continue
            for digest in content.digests:
                if digest in content.new_circuits or digest in brought.get(job.session, ()):
                    continue
                if job.session is not None:
                    record = self._writer.recorder.sessions.get(job.session)
                    if record is None or (record.user != job.caller.path and not job.caller.operator):
                        continue  # the scheduler says what is wrong with the session
                    if self._writer.circuits.holds(job.session, digest):
                        continue
                where = "its session holds" if job.session is not None else "the job itself brings"
                raise Refusal(
                    Code.NOT_FOUND,
                    "UNKNOWN_CIRCUIT",
                    f"{where} no circuit with the digest {digest.hex()}: send the circuit itself",
                    field=f"jobs[{index}]" if len(jobs) > 1 else None,
                    metadata={"digest": digest.hex()},
                )
            if job.session is not None:
                brought.setdefault(job.session, set()).update(content.new_circuits)

    async def _execute(self, command: Command, request: RequestKey | None, description: str) -> tuple[Event, ...]:
        self._writer.check_open()
        kind = name = ""
        if isinstance(command, CreateSession):
            kind, name = "session", command.session
            if not name:
                command = replace(command, session=self._ids.make("session"))
        elif isinstance(command, CreateReservation):
            kind, name = "reservation", command.reservation
            if not name:
                command = replace(command, reservation=self._ids.make("reservation"))
        enter = partial(self._writer.enter, command, request=request, description=description)
        try:
            return (await (self._enter_named(kind, [(f"{kind}_id", name)], enter) if name else enter())).events
        except Refusal as refusal:
            found = await self._explain(refusal, command)
            if found is None:
                await self._writer.remember(request)
                return ()
            raise found from None

    async def _explain(self, refusal: Refusal, command: Command) -> Refusal | None:
        """What the scheduler has forgotten the store knows: say what is wrong with a thing that is over. None: nothing
        is, as it is over already."""
        if refusal.code is not Code.NOT_FOUND:
            return refusal
        match refusal.reason, command:
            case "UNKNOWN_JOB", CancelJob() | SetPriority():
                row = await self._read(partial(reads.read_job, job=command.job))
                if row is not None:
                    return _job_is_final(row.view, command)
            case "UNKNOWN_RESERVATION", DeleteReservation() | CreateSession():
                reservation = await self._read(partial(reads.read_reservation, reservation=command.reservation or ""))
                if reservation is not None:
                    return _reservation_is_over(reservation, command)
            case "UNKNOWN_SESSION", CloseSession() | CancelSession():
                closed = await self._read(partial(reads.read_session, session=command.session))
                if closed is not None:
                    try:
                        _check_owner(command.caller, closed.user, "session", closed.session)
                    except Refusal as denial:
                        return denial
                    return None
            case "UNKNOWN_SESSION", SubmitJob() | SubmitJobs():
                jobs = command.jobs if isinstance(command, SubmitJobs) else (command,)
                for index, job in enumerate(jobs):
                    if job.session is None or job.session in self._writer.recorder.sessions:
                        continue
                    session = await self._read(partial(reads.read_session, session=job.session))
                    if session is not None:
                        found = _session_is_closed(session, job)
                        found.field = f"jobs[{index}]" if len(jobs) > 1 else None
                        return found
                    break
        return refusal

    # --- idempotency --------------------------------------------------------------------------------------------
    async def _once(
        self, request: RequestKey, call: Callable[[], Awaitable[T]], replay: Callable[[Connection, RequestRow], T]
    ) -> T:
        """Run `call` if this request was never answered, else give its first answer. A call whose caller leaves goes
        on."""
        key = (request.caller, request.request_id)
        running = self._requests.get(key)
        if running is None:
            task: asyncio.Task[object] = asyncio.get_running_loop().create_task(self._first(request, call, replay))
            self._requests[key] = (request.digest, task)
            task.add_done_callback(partial(self._forget_request, key))
        else:
            digest, task = running
            if digest != request.digest:
                answered = await self._look_up(request, replay)  # what is under way may be the one that is refused
                if answered is None:
                    raise _reused(request)
                return answered[0]
        return cast(T, await asyncio.shield(task))

    async def _first(
        self, request: RequestKey, call: Callable[[], Awaitable[T]], replay: Callable[[Connection, RequestRow], T]
    ) -> T:
        answered = await self._look_up(request, replay)
        return answered[0] if answered is not None else await call()

    async def _look_up(self, request: RequestKey, replay: Callable[[Connection, RequestRow], T]) -> tuple[T] | None:
        """The first answer, if there is one on disk. Raises `Refusal` REQUEST_ID_REUSED."""
        key = (request.caller, request.request_id)
        if hash(key) not in self._writer.seen_requests:
            return None

        def look(connection: Connection) -> tuple[T] | None:
            row = reads.read_request(connection, *key)
            if row is None:
                return None
            if row.digest != request.digest:
                raise _reused(request)
            return (replay(connection, row),)

        return await self._read(look)

    def _forget_request(self, key: tuple[str, str], task: "asyncio.Task[object]") -> None:
        del self._requests[key]
        if not task.cancelled():
            task.exception()  # nobody may be left to ask for it

    # --- watches ------------------------------------------------------------------------------------------------
    async def watch_job(
        self, job: str, *, after: int | None = None, include_results: bool = False, caller: Caller | None = None
    ) -> AsyncGenerator[Notice, None]:
        """A `JobSnapshot` (without `after`), or every change after that event number; then live; ends after the
        final state. Refusals are raised by the first step: UNKNOWN_JOB, NOT_OWNER, RESUME_TOO_OLD; later ones may be
        WATCH_TOO_SLOW and STOPPING."""
        watcher = self._watches.watch_job(job)
        try:

            def begin(connection: Connection) -> tuple[JobRow, int, list[Notice], bytes | None]:
                row = _found(reads.read_job(connection, job), "job", job)
                _check_owner(caller, row.view.user, "job", job)
                last = reads.last_event_number(connection)
                if after is None:
                    small = row.view.result_bytes is not None and row.view.result_bytes <= INLINE_RESULT_BYTES_MAX
                    return row, last, [], reads.read_result(connection, job) if small and include_results else None
                _check_resumable(after, last)
                return row, last, history.job_history(connection, row, after, history.CHUNK), None

            await self._writer.catch_up()
            row, last, backlog, result = await self._read(begin)
            self._watches.set_session(watcher, row.view.session)
            seen = after if after is not None else last
            if after is None:
                view = replace(row.view, queue_position=self._queue_position(row.view))
                yield Notice(last, self.now(), JobSnapshot(job=view, result=result))
            while backlog:
                for notice in backlog:
                    seen = notice.event_number
                    yield await self._with_result(notice) if include_results else notice
                    if isinstance(notice.change, JobEnded):
                        return
                if len(backlog) < history.CHUNK:
                    break
                backlog = await self._read(partial(_job_backlog, job=job, after=seen))
            if row.view.state.is_final:
                return
            seen = max(seen, last)
            while True:
                item = await watcher.next()
                if item.event_number <= seen:
                    continue
                live = await self._job_notice(item, job, include_results=include_results)
                if live is None:
                    continue
                yield live
                if isinstance(live.change, JobEnded):
                    return
        finally:
            self._watches.remove(watcher)

    async def watch_session(
        self,
        session: str,
        *,
        after: int | None = None,
        include_results: bool = False,
        exclude_jobs: bool = False,
        skip_superseded: bool = False,
        caller: Caller | None = None,
    ) -> AsyncGenerator[Notice, None]:
        """The same for a session and its jobs; ends when it is CLOSED, none of its jobs is queued or running and no
        cache deadline is ahead."""
        watcher = self._watches.watch_session(session)
        watcher.skips_superseded = skip_superseded
        try:

            def begin(connection: Connection) -> tuple[SessionView, int, list[Notice]]:
                view = _found(reads.read_session(connection, session), "session", session)
                _check_owner(caller, view.user, "session", session)
                last = reads.last_event_number(connection)
                if after is None:
                    return view, last, []
                _check_resumable(after, last)
                notices = history.session_history(connection, view, after, history.CHUNK, with_jobs=not exclude_jobs)
                return view, last, notices

            await self._writer.catch_up()
            view, last, backlog = await self._read(begin)
            seen = after if after is not None else last
            if after is None:
                yield Notice(last, self.now(), SessionSnapshot(session=view))
            while backlog:
                for notice in backlog:
                    seen = notice.event_number
                    yield await self._with_result(notice) if include_results else notice
                if len(backlog) < history.CHUNK:
                    break
                backlog = await self._read(
                    partial(_session_backlog, session=session, after=seen, with_jobs=not exclude_jobs)
                )
            if _is_over(view, self.now()):
                return
            seen = max(seen, last)
            while True:
                item = await watcher.next()
                if item.kind == "session_over":
                    return
                if item.event_number <= seen or (exclude_jobs and item.job is not None):
                    continue
                if item.job is None:
                    if item.change is not None:
                        yield Notice(item.event_number, item.time, item.change)
                    continue
                live = await self._job_notice(item, item.job, include_results=include_results)
                if live is not None:
                    yield live
        finally:
            self._watches.remove(watcher)

    async def _job_notice(self, item: Published, job: str, *, include_results: bool) -> Notice | None:
        """A change of one job; None if it was one of its session that did not touch it."""
        change = item.change
        if item.job is None or change is None:
            read = partial(history.change_of_job, job=job, event_number=item.event_number, with_result=include_results)
            return await self._read(read)
        if isinstance(change, JobEnded) and change.result is not None and not include_results:
            change = replace(change, result=None)
        return Notice(item.event_number, item.time, change)

    async def _with_result(self, notice: Notice) -> Notice:
        if not isinstance(notice.change, JobEnded) or notice.change.job.result_bytes is None:
            return notice
        return await self._read(partial(history.add_result, notice=notice))

    # --- reads: committed state, on a reader thread -----------------------------------------------------------------
    async def _read(self, query: Callable[[Connection], T]) -> T:
        with self._reading():
            return await self._store.read(query)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """What cannot be read is refused as callers are to see it."""
        if self._writer.stage in (Stage.NEW, Stage.STOPPED):
            raise stopping()
        try:
            yield
        except StoreError as error:
            if self._writer.stage in (Stage.STOPPING, Stage.STOPPED):
                raise stopping() from None
            _log.error("%s", error)
            raise store_unavailable() from error

    async def get_job(self, job: str, *, caller: Caller | None = None) -> JobView:
        """One job. UNKNOWN_JOB."""
        view = _found(await self._read(partial(reads.read_job, job=job)), "job", job).view
        _check_owner(caller, view.user, "job", job)
        return replace(view, queue_position=self._queue_position(view))

    def _queue_position(self, view: JobView) -> int | None:
        if view.state is not JobState.QUEUED:
            return None
        return self._forecasts.position(self._writer.scheduler, view.device, view.seq, self.now())

    async def list_jobs(self, where: JobFilter, *, page_size: int = 100, page_token: str = "") -> Page[JobView]:
        """Jobs by `seq`, the newest first unless asked otherwise. INVALID_PAGE_TOKEN."""
        return await self._read(partial(reads.list_jobs, where=where, page_size=page_size, page_token=page_token))

    async def get_result(self, job: str, *, caller: Caller | None = None) -> bytes:
        """The serialised result. UNKNOWN_JOB, RESULT_NOT_READY, NO_RESULT, RESULT_DELETED."""

        def look(connection: Connection) -> tuple[JobView, bytes | None]:
            view = _found(reads.read_job(connection, job), "job", job).view
            _check_owner(caller, view.user, "job", job)
            return view, reads.read_result(connection, job)

        view, result = await self._read(look)
        if result is None:
            raise _no_result(view)
        return result

    async def stream_result(
        self, job: str, offset: int, size: int, *, caller: Caller | None = None
    ) -> AsyncGenerator[ResultPiece, None]:
        """The serialised result from `offset` on, in pieces of `size` bytes; an empty rest is one empty piece. The
        codes of `get_result`, and OFFSET_TOO_LARGE."""

        def look(connection: Connection) -> Iterator[ResultPiece]:
            view = _found(reads.read_job(connection, job), "job", job).view
            _check_owner(caller, view.user, "job", job)
            total = reads.read_result_size(connection, job)
            if total is None:
                raise _no_result(view)
            if position > total:
                message = f"offset: {offset} lies beyond the end of the result, which has {total} bytes"
                raise Refusal(Code.OUT_OF_RANGE, "OFFSET_TOO_LARGE", message, "offset")
            return reads.iterate_result(connection, job, position, size)

        position, total = offset, None
        with self._reading():
            while total is None or position < total:  # whoever reads slowly is given it in several parts
                async with aclosing(self._store.stream(look)) as pieces:
                    async for piece in pieces:
                        yield piece
                        position, total = piece.offset + len(piece.data), piece.total

    async def get_program(self, job: str, *, caller: Caller | None = None) -> bytes:
        """The serialised program as it was submitted. UNKNOWN_JOB."""

        def look(connection: Connection) -> bytes:
            view = _found(reads.read_job(connection, job), "job", job).view
            _check_owner(caller, view.user, "job", job)
            return _found(reads.read_program(connection, job), "job", job).program

        return await self._read(look)

    async def list_job_events(
        self, job: str, *, page_size: int = 100, page_token: str = "", caller: Caller | None = None
    ) -> Page[Notice]:
        """The history of a job, the oldest first, without results."""

        def look(connection: Connection) -> Page[Notice]:
            row = _found(reads.read_job(connection, job), "job", job)
            _check_owner(caller, row.view.user, "job", job)
            after = (reads.read_token("job-events", None, f"{page_token}", 1) or [0])[0]
            size = reads.clamp_page_size(page_size)
            return _notice_page("job-events", history.job_history(connection, row, after, size + 1), size)

        return await self._read(look)

    async def list_runs(self, where: RunFilter, *, page_size: int = 100, page_token: str = "") -> Page[RunView]:
        """Runs in the order of their starts."""
        return await self._read(partial(reads.list_runs, where=where, page_size=page_size, page_token=page_token))

    async def get_session(self, session: str, *, caller: Caller | None = None) -> SessionView:
        """One session. UNKNOWN_SESSION."""
        view = _found(await self._read(partial(reads.read_session, session=session)), "session", session)
        _check_owner(caller, view.user, "session", session)
        return view

    async def list_sessions(
        self, where: SessionFilter, *, page_size: int = 100, page_token: str = ""
    ) -> Page[SessionView]:
        """Sessions, the newest first."""
        return await self._read(partial(reads.list_sessions, where=where, page_size=page_size, page_token=page_token))

    async def list_session_events(
        self, session: str, *, page_size: int = 100, page_token: str = "", caller: Caller | None = None
    ) -> Page[Notice]:
        """The history of a session without that of its jobs, the oldest first."""

        def look(connection: Connection) -> Page[Notice]:
            view = _found(reads.read_session(connection, session), "session", session)
            _check_owner(caller, view.user, "session", session)
            after = (reads.read_token("session-events", None, page_token, 1) or [0])[0]
            size = reads.clamp_page_size(page_size)
            found = history.session_history(connection, view, after, size + 1, with_jobs=False)
            return _notice_page("session-events", found, size)

        return await self._read(look)

    async def get_reservation(self, reservation: str) -> ReservationView:
        """One reservation. UNKNOWN_RESERVATION."""
        found = await self._read(partial(reads.read_reservation, reservation=reservation))
        return _found(found, "reservation", reservation)

    async def list_reservations(
        self, where: ReservationFilter, *, page_size: int = 100, page_token: str = ""
    ) -> Page[ReservationView]:
        """Reservations by start, then creation; without `states`, those that are not over."""
        return await self._read(
            partial(reads.list_reservations, where=where, page_size=page_size, page_token=page_token)
        )

    # --- live views -----------------------------------------------------------------------------------------------
    def now(self) -> int:
        """The scheduler's time."""
        return self._writer.now()

    def device(self, name: str) -> Device:
        """The device itself, for its description. UNKNOWN_DEVICE."""
        return _found(self._writer.devices.get(name), "device", name)

    def device_names(self) -> tuple[str, ...]:
        """All devices, by name."""
        return tuple(self._writer.devices)

    def device_view(self, name: str) -> DeviceView:
        """A device as it is now. UNKNOWN_DEVICE."""
        live = _found(self._writer.scheduler.device_view(name), "device", name)
        record = self._writer.recorder.devices[name]
        plan = self._plans[name]
        job = self._writer.scheduler.job_view(live.running) if live.running is not None else None
        session = self._writer.recorder.sessions.get(live.active_session or "")
        clocks = self._writer.scheduler.session_view(live.active_session) if live.active_session is not None else None
        return DeviceView(
            device=name,
            settings=plan.settings,
            profile=plan.profile,
            ready=self._writer.ready[name],
            epoch=live.epoch,
            calibrate_time=record.calibrate_time,
            next_calibration_time=live.next_calibration,
            running_job=live.running,
            running_user=(job.user or None) if job is not None else None,
            running_class=job.job_class if job is not None else None,
            running_since=live.running_since,
            active_session=live.active_session,
            active_user=session.user if session is not None else None,
            active_session_idle_due=clocks.idle_due if clocks is not None else None,
            active_session_expires_at=clocks.expires_at if clocks is not None else None,
            held=live.held_since is not None,
            reservation=live.reservation,
            queued_calibration=live.queued_calibration,
            queued_session=live.queued_session,
            queued_fair_share=live.queued_fair_share,
            properties=record.properties,
            estimate_error=self._writer.predictor.error(name),
        )

    def share_paths(self, parent: str | None = None) -> Sequence[str]:
        """The share tree (below and with `parent`), in the order of paths. UNKNOWN_PATH."""
        return self._shares.paths(parent)

    def usage_views(self, paths: Iterable[str], *, device: str | None = None) -> tuple[UsageView, ...]:
        """These nodes of it. `device`: count its jobs only. UNKNOWN_PATH, UNKNOWN_DEVICE."""
        if device is not None:
            _found(self._writer.devices.get(device), "device", device)
        return self._shares.views(paths, device)

    def is_user(self, path: str) -> bool:
        """Whether a node of it is a user."""
        return self._shares.is_user(path)


def _complete(job: SubmitJob, name: str, estimate: int | None) -> SubmitJob:
    """The same job with a name and an estimate. (`dataclasses.replace` takes thrice as long, which counts in calls of
    many jobs.)"""
    return SubmitJob(
        job=name,
        caller=job.caller,
        job_class=job.job_class,
        user=job.user,
        device=job.device,
        session=job.session,
        priority=job.priority,
        estimate=estimate,
        limit=job.limit,
    )


def _jobs_before(connection: Connection, row: RequestRow) -> tuple[JobView, ...]:
    if row.first_seq is None:
        return ()
    found = reads.read_jobs_from(connection, row.first_seq, row.job_count)
    return tuple(accepted_view(job.view, job.accepted_priority, job.accepted_class) for job in found)


def _accepted_before(connection: Connection, row: RequestRow) -> _Accepted:
    return tuple((view, None) for view in _jobs_before(connection, row))


def _numbers_before(connection: Connection, row: RequestRow) -> tuple[tuple[str, int], ...]:
    return tuple((view.job, view.seq) for view in _jobs_before(connection, row))


def _events_before(_connection: Connection, row: RequestRow) -> tuple[Event, ...]:
    return event_json.decode(row.answer) if row.answer is not None else ()


def _job_backlog(connection: Connection, job: str, after: int) -> list[Notice]:
    row = _found(reads.read_job(connection, job), "job", job)
    return history.job_history(connection, row, after, history.CHUNK)


def _session_backlog(connection: Connection, session: str, after: int, *, with_jobs: bool) -> list[Notice]:
    view = _found(reads.read_session(connection, session), "session", session)
    return history.session_history(connection, view, after, history.CHUNK, with_jobs=with_jobs)


def _notice_page(kind: str, notices: list[Notice], size: int) -> Page[Notice]:
    shown = tuple(notices[:size])
    more = len(notices) > size
    return Page(shown, reads.make_token(kind, None, [shown[-1].event_number]) if more else "")


def _is_over(view: SessionView, now: int) -> bool:
    counts = view.job_counts
    waits = view.cache_deadline is not None and view.cache_deadline > now
    return view.state is SessionState.CLOSED and not (counts.queued or counts.running or waits)


def _no_result(view: JobView) -> Refusal:
    """Why there is none."""
    job, metadata = view.job, {"job_id": view.job, "state": view.state.value}
    if not view.state.is_final:
        message = f"job {job!r} is {view.state}: watch it, and read the result when it has SUCCEEDED"
        return Refusal(Code.FAILED_PRECONDITION, "RESULT_NOT_READY", message, metadata=metadata)
    if view.state is JobState.SUCCEEDED:
        message = f"the result of job {job!r} was deleted: run it again"
        return Refusal(Code.NOT_FOUND, "RESULT_DELETED", message, metadata=metadata)
    message = f"job {job!r} is {view.state} ({view.reason}) and has no result: its detail says why"
    return Refusal(Code.FAILED_PRECONDITION, "NO_RESULT", message, metadata=metadata)


def _found(thing: T | None, kind: str, name: str) -> T:
    if thing is None:
        raise not_found(kind, name)
    return thing


def _check_owner(caller: Caller | None, owner: str, kind: str, name: str) -> None:
    if caller is not None and not caller.operator and caller.path != owner:
        raise Refusal(
            Code.PERMISSION_DENIED,
            "NOT_OWNER",
            f"{kind} {name!r} is another user's: only its owner and operators may see and change it",
            metadata={f"{kind}_id": name},
        )


def _check_resumable(after: int, last: int) -> None:
    if not 0 <= after <= last:
        raise Refusal(
            Code.OUT_OF_RANGE,
            "RESUME_TOO_OLD",
            f"{after} is no event number of this store, whose last is {last}: watch again without it",
            field="resume_after",
        )


def _taken(kind: str, name: str, field: str) -> Refusal:
    message = f"there was a {kind} {name!r} before: choose another name, or none to be given one"
    return Refusal(Code.ALREADY_EXISTS, "NAME_TAKEN", message, field=field, metadata={f"{kind}_id": name})


def _reused(request: RequestKey) -> Refusal:
    return Refusal(
        Code.INVALID_ARGUMENT,
        "REQUEST_ID_REUSED",
        f"the request_id {request.request_id!r} was used before for a request with other content: use a new one",
        field="request_id",
    )


def _job_is_final(view: JobView, command: CancelJob | SetPriority) -> Refusal:
    try:
        _check_owner(command.caller, view.user, "job", view.job)
    except Refusal as refusal:
        return refusal
    metadata = {"job_id": view.job, "state": view.state.value}
    if isinstance(command, SetPriority):
        message = f"job {view.job!r} is {view.state}: only a queued job has a place that a priority can change"
        return Refusal(Code.FAILED_PRECONDITION, "JOB_NOT_QUEUED", message, metadata=metadata)
    message = f"job {view.job!r} is {view.state} already, and a final state never changes"
    return Refusal(Code.FAILED_PRECONDITION, "JOB_FINAL", message, metadata=metadata)


def _reservation_is_over(view: ReservationView, command: DeleteReservation | CreateSession) -> Refusal:
    if isinstance(command, DeleteReservation) and not command.caller.operator:
        return Refusal(Code.PERMISSION_DENIED, "NOT_OPERATOR", "only operators may delete reservations: ask one")
    if isinstance(command, CreateSession) and command.device != view.device:
        message = f"reservation {view.reservation!r} is on device {view.device!r}, not {command.device!r}"
        return Refusal(Code.INVALID_ARGUMENT, "DEVICE_MISMATCH", message, field="reservation_id")
    return Refusal(
        Code.FAILED_PRECONDITION,
        "RESERVATION_OVER",
        f"reservation {view.reservation!r} is {view.state}: make another one",
        metadata={"reservation_id": view.reservation, "state": view.state.value},
    )


def _session_is_closed(view: SessionView, job: SubmitJob) -> Refusal:
    if job.caller.path != view.user and not job.caller.operator:
        return session_of_other_user(view.session)
    metadata = {"session_id": view.session, "state": view.state.value}
    message = f"session {view.session!r} is {view.state} and accepts no jobs: open another one"
    return Refusal(Code.FAILED_PRECONDITION, "SESSION_NOT_ACCEPTING", message, metadata=metadata)
