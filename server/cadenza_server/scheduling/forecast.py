"""In what order a device would start what waits for it: the dispatch (3) played on with a copy of the queue."""

from typing import TYPE_CHECKING

from _fastqueue import NEVER
from cadenza_server.scheduling.devices import Device

if TYPE_CHECKING:
    from cadenza_server.scheduling.ledger import Ledger


def forecast_starts(ledger: "Ledger", device: Device, now: int, count_max: int) -> list[int]:
    """The `seq` of up to `count_max` queued jobs, in the order in which the device would start them if from `now` on
    nothing came or went and each run took its estimate.

    A session that has the device keeps it until nothing of it is left that may start, and no clock of its own ends it
    before; reservations stay as they are now. What could then never start is not in it. Takes the time to copy the
    queue and to start so many jobs.
    """
    queue, handle, instant = ledger.queue.copy(), device.handle, now
    if device.running is not None:
        if device.running.node is not None:
            instant = min(max(now, device.run_start + device.run_estimate), NEVER)
        queue.finish(handle, instant)
    seqs: list[int] = []
    while len(seqs) < count_max:
        answer = queue.pick(handle, instant)
        active = queue.active_session(handle)
        if answer >= 0:
            job = ledger.places[answer]
            session = job.session
            seqs.append(job.seq)
            queue.start(answer, instant)
            if session is not None and not session.released and active < 0:
                queue.activate(session.handle)
                if session.batch and session.expires_at is None:
                    queue.set_fit_deadline(session.handle, min(instant + session.max_time, NEVER))
            if job.node is not None:
                instant = min(instant + job.estimate, NEVER)
            queue.finish(handle, instant)
        elif active >= 0:
            queue.deactivate(handle)
            queue.set_standing(active, False)
        else:
            break
    return seqs
