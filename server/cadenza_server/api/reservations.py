"""`ReservationService`: reserves devices. Everybody sees reservations; operators make and delete them."""

from cadenza.v1 import reservation_service_pb2, reservation_service_pb2_grpc

from cadenza_server.api.callers import Context, current_caller
from cadenza_server.api.conversion import RESERVATION_STATES, to_reservation
from cadenza_server.api.fields import (
    DESCRIPTION_LENGTH_MAX,
    check_id,
    check_new_id,
    check_page_size,
    check_time,
    check_user,
    find_words,
    invalid,
    make_key,
)
from cadenza_server.api.scope import Scope
from cadenza_server.engine import ReservationFilter, ReservationState
from cadenza_server.model.commands import CreateReservation, DeleteReservation
from cadenza_server.model.events import ReservationCreated


class ReservationServicer(reservation_service_pb2_grpc.ReservationServiceServicer):
    """Reservations."""

    def __init__(self, scope: Scope) -> None:
        self._engine = scope.engine

    async def CreateReservation(
        self, request: reservation_service_pb2.CreateReservationRequest, context: Context
    ) -> reservation_service_pb2.CreateReservationResponse:
        """A new window."""
        caller = current_caller()
        if not request.device:
            raise invalid("device", "it is missing: name the device")
        for field in ("start_time", "end_time"):
            if not request.HasField(field):
                raise invalid(field, "it is missing: say when the window starts and ends")
        if len(request.description) > DESCRIPTION_LENGTH_MAX:
            raise invalid(
                "description",
                f"it has {len(request.description)} characters: {DESCRIPTION_LENGTH_MAX} are allowed",
            )
        command = CreateReservation(
            reservation=check_new_id(request.reservation_id, "reservation_id"),
            caller=caller,
            device=request.device,
            holder=check_user(request.holder, "holder"),
            start=check_time(request.start_time, "start_time"),
            end=check_time(request.end_time, "end_time"),
        )
        key = make_key(caller, "CreateReservation", request.request_id, request)
        events = await self._engine.execute(command, request=key, description=request.description)
        # A repeated call gets the events of the first, so the name is taken from them.
        name = next(event.reservation for event in events if isinstance(event, ReservationCreated))
        return reservation_service_pb2.CreateReservationResponse(
            reservation=to_reservation(await self._engine.get_reservation(name))
        )

    async def GetReservation(
        self, request: reservation_service_pb2.GetReservationRequest, context: Context
    ) -> reservation_service_pb2.GetReservationResponse:
        """One reservation."""
        view = await self._engine.get_reservation(check_id(request.reservation_id, "reservation_id"))
        return reservation_service_pb2.GetReservationResponse(reservation=to_reservation(view))

    async def ListReservations(
        self, request: reservation_service_pb2.ListReservationsRequest, context: Context
    ) -> reservation_service_pb2.ListReservationsResponse:
        """Reservations by start."""
        states = find_words(request.states, RESERVATION_STATES, "states")
        where = ReservationFilter(
            device=request.device or None,
            covering=check_user(request.holder, "holder") if request.holder else None,
            states=states or frozenset({ReservationState.SCHEDULED, ReservationState.ACTIVE}),
        )
        page = await self._engine.list_reservations(
            where, page_size=check_page_size(request.page_size), page_token=request.page_token
        )
        return reservation_service_pb2.ListReservationsResponse(
            reservations=[to_reservation(view) for view in page.items], next_page_token=page.next_page_token
        )

    async def DeleteReservation(
        self, request: reservation_service_pb2.DeleteReservationRequest, context: Context
    ) -> reservation_service_pb2.DeleteReservationResponse:
        """Removed, or ended now."""
        caller = current_caller()
        name = check_id(request.reservation_id, "reservation_id")
        key = make_key(caller, "DeleteReservation", request.request_id, request)
        await self._engine.execute(DeleteReservation(reservation=name, caller=caller), request=key)
        return reservation_service_pb2.DeleteReservationResponse(
            reservation=to_reservation(await self._engine.get_reservation(name))
        )
