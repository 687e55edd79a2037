"""`JobService`: submits jobs, follows them, and reads what came of them."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Final

from cadenza.v1 import (
    errors_pb2,
    job_pb2,
    job_service_pb2,
    job_service_pb2_grpc,
    program_pb2,
    result_pb2,
    session_service_pb2,
)

from cadenza_server.api.callers import Context, current_caller
from cadenza_server.api.conversion import (
    JOB_CLASSES,
    JOB_STATES,
    PROGRAM_KINDS,
    to_event,
    to_job,
    to_job_ended,
    to_run,
)
from cadenza_server.api.errors import ErrorMapper, RefusalWithState
from cadenza_server.api.fields import (
    check_id,
    check_length,
    check_new_id,
    check_page_size,
    check_priority,
    check_request_id,
    check_tags,
    check_time,
    check_user,
    find_word,
    find_words,
    invalid,
    make_key,
    moved,
)
from cadenza_server.api.programs import ProgramChecker
from cadenza_server.api.scope import Scope, owner_shown
from cadenza_server.config import Limits
from cadenza_server.engine import (
    JobContent,
    JobEnded,
    JobFilter,
    JobView,
    ProgramKind,
    RequestKey,
    ResultPiece,
    RunFilter,
)
from cadenza_server.model.commands import Caller, CancelJob, SetPriority, SubmitJob
from cadenza_server.model.errors import Code, Refusal
from cadenza_server.model.words import JobClass, RunOutcome

PIECE_BYTES: Final = 1024 * 1024
"""Of a streamed result: well below the 4 MiB that gRPC clients take unless told otherwise."""

CHECKED_AT_ONCE: Final = 100
"""So many jobs of a call are checked before others have their turn, some 2 ms."""

CALIBRATION_PREFIX: Final = "calibration-"
"""Names of the devices' own calibrations begin so."""

_OUTCOMES: Final[Mapping[int, frozenset[RunOutcome]]] = {
    job_pb2.RUN_OUTCOME_SUCCEEDED: frozenset({RunOutcome.SUCCEEDED}),
    job_pb2.RUN_OUTCOME_FAILED: frozenset({RunOutcome.EXECUTION_ERROR}),
    job_pb2.RUN_OUTCOME_CANCELLED: frozenset({RunOutcome.CANCELLED, RunOutcome.RAN_TOO_LONG}),
    job_pb2.RUN_OUTCOME_WORKER_LOST: frozenset({RunOutcome.WORKER_LOST}),
    job_pb2.RUN_OUTCOME_PUT_BACK: frozenset({RunOutcome.PUT_BACK}),
}


class JobSubmitter:
    """Turns `JobSpec`s into commands and hands them to the engine; calibrations go the same way."""

    def __init__(self, scope: Scope, checker: ProgramChecker) -> None:
        self._scope = scope
        self._checker = checker
        self._turn = asyncio.Lock()
        """Held by the large call that is being checked: one piece in a turn of the event loop, not one of each call."""

    async def prepare(self, spec: job_pb2.JobSpec, caller: Caller) -> tuple[SubmitJob, JobContent]:
        """Check one job. Raises `Refusal`, the field relative to the spec."""
        home = await self._scope.find_device(spec.session_id, "session_id", caller) if spec.session_id else None
        return self._check(spec, caller, home)

    async def prepare_all(
        self, specs: Sequence[job_pb2.JobSpec], caller: Caller, digest: Callable[[bytes], None] | None
    ) -> tuple[list[SubmitJob], list[JobContent]]:
        """Check the jobs of one call; `digest` is given all that they consist of. Raises `Refusal`, the field relative
        to the call."""
        if len(specs) <= CHECKED_AT_ONCE:
            return await self._prepare_all(specs, caller, digest)
        async with self._turn:
            return await self._prepare_all(specs, caller, digest)

    async def _prepare_all(
        self, specs: Sequence[job_pb2.JobSpec], caller: Caller, digest: Callable[[bytes], None] | None
    ) -> tuple[list[SubmitJob], list[JobContent]]:
        commands, contents = [], []
        homes: dict[str, str | None] = {"": None}
        last: job_pb2.JobSpec | None = None
        for index, spec in enumerate(specs):
            if index % CHECKED_AT_ONCE == CHECKED_AT_ONCE - 1:
                await asyncio.sleep(0)  # a call of a thousand jobs shall not keep others waiting
            if digest is not None:
                data = spec.SerializeToString(deterministic=True)
                digest(len(data).to_bytes(4))
                digest(data)
            # The same circuits many times is what a device characterisation submits: checked once.
            if last is None or spec != last or spec.job_id:
                try:
                    session = spec.session_id
                    if session not in homes:
                        homes[session] = await self._scope.find_device(session, "session_id", caller)
                    command, content = self._check(spec, caller, homes[session])
                except Refusal as refusal:
                    raise moved(refusal, f"jobs[{index}]") from None
                last = spec
            commands.append(command)
            contents.append(content)
        return commands, contents

    def _check(self, spec: job_pb2.JobSpec, caller: Caller, home: str | None) -> tuple[SubmitJob, JobContent]:
        """`home`: the device of the job's session, if it names one."""
        name = check_new_id(spec.job_id, "job_id")
        if name.startswith(CALIBRATION_PREFIX):
            raise invalid("job_id", f"ids that begin with {CALIBRATION_PREFIX!r} are the devices' own: take another")
        device = spec.device
        if home is not None:
            if device and device != home:
                self._scope.facts(device, "device")
                raise invalid("device", f"the session is on {home!r}, not {device!r}: leave it out", "DEVICE_MISMATCH")
            device = home
        elif not device:
            raise invalid("device", "it is missing: name a device or a session")
        facts = self._scope.facts(device, "device")
        tags = check_tags(spec.tags, "tags")
        hint = check_length(spec.estimate_hint, "estimate_hint") if spec.HasField("estimate_hint") else None
        program = spec.program
        try:
            content = self._checker.check(
                program,
                facts,
                owner=caller.path,
                in_session=home is not None,
                tags=tags,
                estimate_hint_ns=hint,
            )
        except Refusal as refusal:
            raise moved(refusal, "program") from None
        job_class = JobClass.FAIR_SHARE if home is None else JobClass.SESSION
        if content.program_kind is ProgramKind.CALIBRATION:
            if not caller.operator:
                raise Refusal(
                    Code.PERMISSION_DENIED, "NOT_OPERATOR", "only operators calibrate: ask one", "program.calibration"
                )
            if home is not None:
                raise invalid("session_id", "a calibration belongs to no session: leave it out")
            job_class = JobClass.CALIBRATION
        limit = spec.HasField("max_execution_time")
        command = SubmitJob(
            job=name,
            caller=caller,
            job_class=job_class,
            device=device,
            session=spec.session_id or None,
            priority=check_priority(spec.priority, "priority"),
            limit=check_length(spec.max_execution_time, "max_execution_time") if limit else None,
        )
        return command, content


class JobServicer(job_service_pb2_grpc.JobServiceServicer):
    """Jobs. A user sees and changes the user's own, an operator everybody's; the engine refuses the rest."""

    def __init__(self, scope: Scope, submitter: JobSubmitter, limits: Limits, errors: ErrorMapper) -> None:
        self._scope = scope
        self._engine = scope.engine
        self._submitter = submitter
        self._limits = limits
        self._errors = errors
        self._streams: set[asyncio.Task[object]] = set()
        """Of submissions, while they are open."""

    # --- submitting -----------------------------------------------------------------------------------------------

    async def SubmitJob(
        self, request: job_service_pb2.SubmitJobRequest, context: Context
    ) -> job_service_pb2.SubmitJobResponse:
        """One job; it is on disk when this answers."""
        accepted = await self._submit(request, include_end=False)
        assert isinstance(accepted, JobView)
        return job_service_pb2.SubmitJobResponse(job=to_job(accepted))

    async def _submit(
        self,
        request: job_service_pb2.SubmitJobRequest | job_service_pb2.SubmitJobStreamRequest,
        *,
        include_end: bool,
    ) -> JobView | JobEnded:
        """Both messages have the same bytes for the same job (without `include_end`), and so the same key."""
        caller = current_caller()
        key = make_key(caller, "SubmitJob", request.request_id, request) if request.request_id else None
        try:
            command, content = await self._submitter.prepare(request.job, caller)
            if include_end:
                return await self._engine.submit_one(command, content, key)
            (view,) = await self._engine.submit((command,), (content,), key)
        except Refusal as refusal:
            if refusal.field is None or refusal.field == "request_id":
                raise
            raise moved(refusal, "job") from None
        return view

    async def SubmitJobStream(
        self, requests: AsyncIterator[job_service_pb2.SubmitJobStreamRequest], context: Context
    ) -> AsyncIterator[job_service_pb2.SubmitJobStreamResponse]:
        """Jobs one after the other."""
        task = asyncio.current_task()
        assert task is not None
        self._streams.add(task)
        try:
            async for request in requests:
                include_end = request.include_end
                request.ClearField("include_end")  # a repetition need not ask for it
                try:
                    found = await self._submit(request, include_end=include_end)
                    if isinstance(found, JobEnded):
                        answer = job_service_pb2.SubmitJobStreamResponse(ended=to_job_ended(found))
                    else:
                        answer = job_service_pb2.SubmitJobStreamResponse(job=to_job(found))
                except Exception as error:
                    status = self._errors.explain("SubmitJobStream", error)
                    refusal = errors_pb2.Refusal.FromString(status.SerializeToString())
                    answer = job_service_pb2.SubmitJobStreamResponse(refusal=refusal)
                answer.request_id = request.request_id
                yield answer
        except asyncio.CancelledError:
            if task in self._streams:
                raise
        finally:
            self._streams.discard(task)

    def end_streams(self) -> None:
        """The server stops: end what only waits for more to come."""
        tasks, self._streams = self._streams, set()
        for task in tasks:
            task.cancel()

    async def SubmitJobs(
        self, request: job_service_pb2.SubmitJobsRequest, context: Context
    ) -> job_service_pb2.SubmitJobsResponse:
        """Many jobs, all or none."""
        caller = current_caller()
        count, most = len(request.jobs), self._limits.jobs_per_call_max
        if not 0 < count <= most:
            raise invalid("jobs", f"there are {count} jobs: a call takes 1 to {most}")
        name = request.request_id
        check_request_id(name)
        digest = hashlib.sha256(b"SubmitJobs")
        # Not `make_key`: for many jobs that takes several milliseconds, in which the event loop would do nothing else.
        commands, contents = await self._submitter.prepare_all(request.jobs, caller, digest.update if name else None)
        key = RequestKey(caller=caller.path, request_id=name, digest=digest.digest()) if name else None
        try:
            accepted = await self._engine.submit_many(commands, contents, key)
        except Refusal as refusal:
            if refusal.field not in (None, "request_id") and not refusal.field.startswith("jobs["):
                raise moved(refusal, "jobs[0]") from None
            raise
        return job_service_pb2.SubmitJobsResponse(
            jobs=[job_service_pb2.SubmittedJob(job_id=name, seq=seq) for name, seq in accepted]
        )

    # --- reading ----------------------------------------------------------------------------------------------------

    async def GetJob(self, request: job_service_pb2.GetJobRequest, context: Context) -> job_service_pb2.GetJobResponse:
        """One job."""
        view = await self._engine.get_job(check_id(request.job_id, "job_id"), caller=current_caller())
        return job_service_pb2.GetJobResponse(job=to_job(view))

    async def ListJobs(
        self, request: job_service_pb2.ListJobsRequest, context: Context
    ) -> job_service_pb2.ListJobsResponse:
        """Jobs by filter."""
        where = JobFilter(
            states=find_words(request.states, JOB_STATES, "states"),
            device=request.device or None,
            session=request.session_id or None,
            user=check_user(request.user, "user") if request.user else None,
            owner=owner_shown(current_caller()),
            tags=frozenset(check_tags(request.tags, "tags")),
            job_class=find_word(request.job_class, JOB_CLASSES, "job_class"),
            program_kind=find_word(request.program_kind, PROGRAM_KINDS, "program_kind"),
            created_from=_time_of(request, "created_from"),
            created_before=_time_of(request, "created_before"),
            skip=_check_skip(request.skip),
            oldest_first=request.oldest_first,
        )
        size = check_page_size(request.page_size)
        page = await self._engine.list_jobs(where, page_size=size, page_token=request.page_token)
        return job_service_pb2.ListJobsResponse(
            jobs=[to_job(view) for view in page.items], next_page_token=page.next_page_token
        )

    async def GetJobPayload(
        self, request: job_service_pb2.GetJobPayloadRequest, context: Context
    ) -> job_service_pb2.GetJobPayloadResponse:
        """What a job executes."""
        data = await self._engine.get_program(check_id(request.job_id, "job_id"), caller=current_caller())
        return job_service_pb2.GetJobPayloadResponse(program=program_pb2.Program.FromString(data))

    async def ListJobEvents(
        self, request: job_service_pb2.ListJobEventsRequest, context: Context
    ) -> job_service_pb2.ListJobEventsResponse:
        """The history of a job."""
        page = await self._engine.list_job_events(
            check_id(request.job_id, "job_id"),
            page_size=check_page_size(request.page_size),
            page_token=request.page_token,
            caller=current_caller(),
        )
        return job_service_pb2.ListJobEventsResponse(
            events=[to_event(notice, self._scope.settings) for notice in page.items],
            next_page_token=page.next_page_token,
        )

    async def ListRuns(
        self, request: job_service_pb2.ListRunsRequest, context: Context
    ) -> job_service_pb2.ListRunsResponse:
        """Runs by filter."""
        outcomes, running = _find_outcomes(request.outcomes)
        where = RunFilter(
            job=request.job_id or None,
            device=request.device or None,
            session=request.session_id or None,
            user=check_user(request.user, "user") if request.user else None,
            owner=owner_shown(current_caller()),
            started_from=_time_of(request, "started_from"),
            started_before=_time_of(request, "started_before"),
            outcomes=outcomes,
            running=running,
        )
        size = check_page_size(request.page_size)
        page = await self._engine.list_runs(where, page_size=size, page_token=request.page_token)
        return job_service_pb2.ListRunsResponse(
            runs=[to_run(view) for view in page.items], next_page_token=page.next_page_token
        )

    # --- changing ---------------------------------------------------------------------------------------------------

    async def UpdateJobPriority(
        self, request: job_service_pb2.UpdateJobPriorityRequest, context: Context
    ) -> job_service_pb2.UpdateJobPriorityResponse:
        """Another place among the owner's own jobs."""
        caller = current_caller()
        job = check_id(request.job_id, "job_id")
        command = SetPriority(job=job, caller=caller, priority=check_priority(request.priority, "priority"))
        key = make_key(caller, "UpdateJobPriority", request.request_id, request)
        await self._engine.execute(command, request=key)
        return job_service_pb2.UpdateJobPriorityResponse(job=to_job(await self._engine.get_job(job)))

    async def CancelJob(
        self, request: job_service_pb2.CancelJobRequest, context: Context
    ) -> job_service_pb2.CancelJobResponse:
        """End a job now."""
        caller = current_caller()
        job = check_id(request.job_id, "job_id")
        key = make_key(caller, "CancelJob", request.request_id, request)
        await self._engine.execute(CancelJob(job=job, caller=caller), request=key)
        return job_service_pb2.CancelJobResponse(job=to_job(await self._engine.get_job(job)))

    # --- following --------------------------------------------------------------------------------------------------

    async def WatchJob(
        self, request: job_service_pb2.WatchJobRequest, context: Context
    ) -> AsyncIterator[job_service_pb2.WatchJobResponse]:
        """Every change of a job, until its final state."""
        job = check_id(request.job_id, "job_id")
        after = check_resume(request)
        notices = self._engine.watch_job(
            job,
            after=after,
            include_results=request.include_results,
            caller=current_caller(),
        )
        try:
            async for notice in self._scope.watches.follow(notices, context, after):
                yield job_service_pb2.WatchJobResponse(event=to_event(notice, self._scope.settings))
        except Refusal as refusal:
            if refusal.code is not Code.OUT_OF_RANGE:
                raise
            raise RefusalWithState(refusal, to_job(await self._engine.get_job(job))) from None

    async def GetJobResult(
        self, request: job_service_pb2.GetJobResultRequest, context: Context
    ) -> job_service_pb2.GetJobResultResponse:
        """A result in one message."""
        data = await self._engine.get_result(check_id(request.job_id, "job_id"), caller=current_caller())
        if len(data) + _ENVELOPE_BYTES > self._limits.message_bytes_max:
            raise Refusal(
                Code.FAILED_PRECONDITION,
                "RESULT_TOO_LARGE",
                f"the result has {len(data)} bytes, a message {self._limits.message_bytes_max} at most: use "
                "StreamJobResult",
            )
        return job_service_pb2.GetJobResultResponse(result=result_pb2.JobResult.FromString(data))

    async def StreamJobResult(  # type: ignore[override]  # the messages are serialised already
        self, request: job_service_pb2.StreamJobResultRequest, context: Context
    ) -> AsyncIterator[bytes]:
        """A result in pieces. An empty rest is one empty piece."""
        job, offset = check_id(request.job_id, "job_id"), request.offset
        if offset < 0:
            raise invalid("offset", f"{offset} is negative")
        async with aclosing(self._engine.stream_result(job, offset, PIECE_BYTES, caller=current_caller())) as pieces:
            async for piece in pieces:
                yield encode_piece(piece)


def encode_piece(piece: ResultPiece) -> bytes:
    """A serialised `StreamJobResultResponse`. Its bytes are copied once: through a message they would be twice, and
    what that costs in fresh memory is several times as much as all else."""
    head = job_service_pb2.StreamJobResultResponse(offset=piece.offset, total_bytes=piece.total).SerializeToString()
    length, left = bytearray(), len(piece.data)
    while left > 0x7F:
        length.append(left & 0x7F | 0x80)
        left >>= 7
    length.append(left)
    return b"".join((head, _DATA_TAG, length, piece.data))


_DATA_TAG: Final = bytes([job_service_pb2.StreamJobResultResponse.DATA_FIELD_NUMBER << 3 | 2])
"""What stands before the length of the bytes: their field, and that a length follows
(protobuf.dev/programming-guides/encoding)."""

_ENVELOPE_BYTES: Final = 16
"""What a message adds to the result that it carries: a tag and a length."""


def check_resume(request: job_service_pb2.WatchJobRequest | session_service_pb2.WatchSessionRequest) -> int | None:
    """The resume token of a watch, if there is one."""
    if not request.HasField("resume_after"):
        return None
    if request.resume_after < 0:
        raise invalid("resume_after", f"{request.resume_after} is negative: pass the number of the last event seen")
    return request.resume_after


def _check_skip(skip: int) -> int:
    if skip < 0:
        raise invalid("skip", f"{skip} is negative")
    return skip


def _time_of(request: job_service_pb2.ListJobsRequest | job_service_pb2.ListRunsRequest, field: str) -> int | None:
    return check_time(getattr(request, field), field) if request.HasField(field) else None  # type: ignore[arg-type]


def _find_outcomes(values: Sequence[int]) -> tuple[frozenset[RunOutcome], bool]:
    """The outcomes to list, and whether runs that have not ended are to be listed, too."""
    found: frozenset[RunOutcome] = frozenset()
    for index, value in enumerate(values):
        if value != job_pb2.RUN_OUTCOME_RUNNING:
            if value not in _OUTCOMES:
                raise invalid(f"outcomes[{index}]", f"{value} is no outcome: leave the list empty for any")
            found |= _OUTCOMES[value]
    return found, job_pb2.RUN_OUTCOME_RUNNING in values
