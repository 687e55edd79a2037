"""Why queued jobs wait, as commands tell it."""

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from cadenza_server.cli import output

if TYPE_CHECKING:
    from cadenza import Client
    from cadenza.v1.device_pb2 import Device
    from cadenza.v1.job_pb2 import Job
    from cadenza.v1.reservation_pb2 import Reservation
    from google.protobuf.timestamp_pb2 import Timestamp


class Waiting:
    """Tells of queued jobs why they wait. Devices and reservations are asked for once, when they are first needed."""

    def __init__(self, client: "Client", now: datetime) -> None:
        self._client = client
        self._now = now
        self._devices: dict[str, Device] = {}
        self._reservations: list[Reservation] | None = None

    def find_causes(self, job: "Job", *, with_session: bool = False) -> list[str]:
        """What keeps the job from running, the weightiest first; empty if nothing does, or it is not queued.

        `with_session`: ask for the job's session, too, which may be bound to a reservation.
        """
        from cadenza._waiting import find_causes

        if output.enum_word(job, "state") != "queued":
            return []
        if not self._devices:
            self._devices = {each.name: each for each in self._client.list_devices()}
        device = self._devices.get(job.device)
        if device is None:
            return ["this server does not have its device any more"]
        if self._reservations is None:
            self._reservations = self._client.list_reservations()
        found = [each for each in self._reservations if each.device == job.device]
        session = self._client.get_session(job.session_id) if with_session and job.session_id else None
        return find_causes(job, device, found, time_shower(self._now), now=self._now, session=session)

    def find_note(self, job: "Job") -> str:
        """All causes in one line; empty if there are none."""
        return "; ".join(self.find_causes(job, with_session=True))


def explain(client: "Client", job: "Job") -> str:
    """Why the job waits now, in one line; empty if nothing keeps it waiting."""
    return Waiting(client, datetime.now(UTC)).find_note(job)


def time_shower(now: datetime) -> "Callable[[Timestamp], str]":
    """Times as people are shown them."""
    return partial(output.format_time, now=now)
