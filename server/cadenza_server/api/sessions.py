"""`SessionService`: opens, follows and ends sessions."""

from collections.abc import AsyncIterator

from cadenza.v1 import session_service_pb2, session_service_pb2_grpc

from cadenza_server.api.callers import Context, current_caller
from cadenza_server.api.conversion import PENDING, SESSION_MODES, SESSION_STATES, to_event, to_session
from cadenza_server.api.errors import RefusalWithState
from cadenza_server.api.fields import (
    check_id,
    check_length,
    check_new_id,
    check_page_size,
    check_time,
    check_user,
    find_word,
    find_words,
    invalid,
    make_key,
)
from cadenza_server.api.jobs import check_resume
from cadenza_server.api.scope import Scope, owner_shown
from cadenza_server.engine import SessionFilter, SessionView
from cadenza_server.model.commands import CancelSession, CloseSession, CreateSession
from cadenza_server.model.errors import Code, Refusal
from cadenza_server.model.events import SessionCreated
from cadenza_server.model.words import SessionMode


class SessionServicer(session_service_pb2_grpc.SessionServiceServicer):
    """Sessions. A user sees and changes the user's own, an operator everybody's; the engine refuses the rest."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._engine = scope.engine

    def _convert(self, view: SessionView) -> session_service_pb2.GetSessionResponse:
        settings = self._scope.settings.get(view.device)
        return session_service_pb2.GetSessionResponse(session=to_session(view, settings))

    async def CreateSession(
        self, request: session_service_pb2.CreateSessionRequest, context: Context
    ) -> session_service_pb2.CreateSessionResponse:
        """A new session, OPEN."""
        caller = current_caller()
        if not request.device:
            raise invalid("device", "it is missing: name the device")
        max_time = check_length(request.max_time, "max_time") if request.HasField("max_time") else None
        idle = None
        if request.HasField("interactive_ttl"):
            idle = check_length(request.interactive_ttl, "interactive_ttl", zero=True)
        command = CreateSession(
            session=check_new_id(request.session_id, "session_id"),
            caller=caller,
            device=request.device,
            mode=find_word(request.mode, SESSION_MODES, "mode") or SessionMode.DEDICATED,
            max_time=max_time,
            interactive_ttl=idle,
            reservation=request.reservation_id or None,
        )
        key = make_key(caller, "CreateSession", request.request_id, request)
        events = await self._engine.execute(command, request=key)
        # A repeated call gets the events of the first, so the name is taken from them.
        name = next(event.session for event in events if isinstance(event, SessionCreated))
        view = await self._engine.get_session(name)
        self._scope.remember(view)
        return session_service_pb2.CreateSessionResponse(session=self._convert(view).session)

    async def GetSession(
        self, request: session_service_pb2.GetSessionRequest, context: Context
    ) -> session_service_pb2.GetSessionResponse:
        """One session."""
        name = check_id(request.session_id, "session_id")
        return self._convert(await self._engine.get_session(name, caller=current_caller()))

    async def ListSessions(
        self, request: session_service_pb2.ListSessionsRequest, context: Context
    ) -> session_service_pb2.ListSessionsResponse:
        """Sessions by filter."""
        user = check_user(request.user, "user") if request.user else ""
        where = SessionFilter(
            states=find_words(request.states, SESSION_STATES, "states"),
            device=request.device or None,
            user=user or None,
            owner=owner_shown(current_caller()),
            mode=find_word(request.mode, SESSION_MODES, "mode"),
            created_from=check_time(request.created_from, "created_from") if request.HasField("created_from") else None,
            created_before=check_time(request.created_before, "created_before")
            if request.HasField("created_before")
            else None,
        )
        size = check_page_size(request.page_size)
        page = await self._engine.list_sessions(where, page_size=size, page_token=request.page_token)
        return session_service_pb2.ListSessionsResponse(
            sessions=[self._convert(view).session for view in page.items], next_page_token=page.next_page_token
        )

    async def CloseSession(
        self, request: session_service_pb2.CloseSessionRequest, context: Context
    ) -> session_service_pb2.CloseSessionResponse:
        """No more jobs; what is queued runs or fails."""
        caller = current_caller()
        name = check_id(request.session_id, "session_id")
        command = CloseSession(session=name, caller=caller, pending=find_word(request.pending, PENDING, "pending"))
        await self._engine.execute(command, request=make_key(caller, "CloseSession", request.request_id, request))
        view = await self._engine.get_session(name)
        return session_service_pb2.CloseSessionResponse(session=self._convert(view).session)

    async def CancelSession(
        self, request: session_service_pb2.CancelSessionRequest, context: Context
    ) -> session_service_pb2.CancelSessionResponse:
        """No more jobs; what is queued is cancelled."""
        caller = current_caller()
        name = check_id(request.session_id, "session_id")
        key = make_key(caller, "CancelSession", request.request_id, request)
        await self._engine.execute(CancelSession(session=name, caller=caller), request=key)
        view = await self._engine.get_session(name)
        return session_service_pb2.CancelSessionResponse(session=self._convert(view).session)

    async def WatchSession(
        self, request: session_service_pb2.WatchSessionRequest, context: Context
    ) -> AsyncIterator[session_service_pb2.WatchSessionResponse]:
        """Every change of a session and its jobs, until nothing can change any more."""
        name = check_id(request.session_id, "session_id")
        after = check_resume(request)
        notices = self._engine.watch_session(
            name,
            after=after,
            include_results=request.include_results,
            exclude_jobs=request.exclude_jobs,
            skip_superseded=request.skip_superseded,
            caller=current_caller(),
        )
        try:
            async for notice in self._scope.watches.follow(notices, context, after):
                yield session_service_pb2.WatchSessionResponse(event=to_event(notice, self._scope.settings))
        except Refusal as refusal:
            if refusal.code is not Code.OUT_OF_RANGE:
                raise
            view = await self._engine.get_session(name)
            raise RefusalWithState(refusal, self._convert(view).session) from None

    async def ListSessionEvents(
        self, request: session_service_pb2.ListSessionEventsRequest, context: Context
    ) -> session_service_pb2.ListSessionEventsResponse:
        """The history of a session."""
        page = await self._engine.list_session_events(
            check_id(request.session_id, "session_id"),
            page_size=check_page_size(request.page_size),
            page_token=request.page_token,
            caller=current_caller(),
        )
        return session_service_pb2.ListSessionEventsResponse(
            events=[to_event(notice, self._scope.settings) for notice in page.items],
            next_page_token=page.next_page_token,
        )
