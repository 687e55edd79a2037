"""Reservations as the Qiskit side shows them."""

from dataclasses import dataclass
from datetime import datetime

from cadenza._times import read_time
from cadenza.v1 import reservation_pb2


@dataclass(frozen=True)
class Reservation:
    """A time window on a device for a user, or for an account and everybody below it. Times are local."""

    reservation_id: str
    backend_name: str
    holder: str
    start_time: datetime
    end_time: datetime
    state: str
    """`scheduled`, `active`, `ended` or `deleted`."""
    description: str


def read_reservation(message: reservation_pb2.Reservation) -> Reservation:
    """From the contract's form."""
    state = reservation_pb2.ReservationState.Name(message.state).removeprefix("RESERVATION_STATE_").lower()
    return Reservation(
        reservation_id=message.reservation_id,
        backend_name=message.device,
        holder=message.holder,
        start_time=read_time(message.start_time),
        end_time=read_time(message.end_time),
        state=state,
        description=message.description,
    )
