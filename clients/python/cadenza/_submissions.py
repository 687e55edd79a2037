"""One stream of submissions: what a program that submits, waits and submits again saves is the setting up of calls.

It is never needed: whoever gets no answer here makes a unary call with the same request id, which is safe to repeat.
"""

import queue
import threading
import time
from typing import Any, Final

import grpc
from google.rpc.status_pb2 import Status

from cadenza._errors import CadenzaError, UnavailableError, map_error, map_status
from cadenza._transport import Transport
from cadenza.v1.event_pb2 import JobEnded
from cadenza.v1.job_pb2 import Job, JobSpec
from cadenza.v1.job_service_pb2 import SubmitJobStreamRequest, SubmitJobStreamResponse

_NEVER: Final = frozenset({"UNIMPLEMENTED", "UNKNOWN"})
"""What a server without this RPC, or one that cannot answer it, ends the stream with."""


class Submissions:
    """Submits jobs over one stream, one at a time. Safe to use from several threads: one that comes while another is
    waiting gets no answer, and makes its own call.

    A stream is opened when a second job comes soon after another, and is as old as two timeouts at most: so each answer
    comes within two, or not at all.
    """

    def __init__(self, transport: Transport, method: Any, timeout_s: float | None) -> None:
        self._transport = transport
        self._method = method
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._offered = True
        self._last = -float("inf")
        self._opened = 0.0
        self._requests: queue.SimpleQueue[SubmitJobStreamRequest | None] = queue.SimpleQueue()
        self._answers: Any = None

    def submit(self, request_id: str, spec: JobSpec, *, include_end: bool) -> Job | JobEnded | None:
        """The job as it was accepted; None: no answer, make a unary call. `include_end`: or its end, if it has ended
        by the time at which it is on disk.

        Raises `CadenzaError` if the server refuses the job, or does not answer in time.
        """
        if not self._offered or not self._lock.acquire(blocking=False):
            return None
        try:
            answer = self._ask(SubmitJobStreamRequest(request_id=request_id, job=spec, include_end=include_end))
        finally:
            self._lock.release()
        if answer is None:
            return None
        outcome = answer.WhichOneof("outcome")
        if outcome == "ended":
            return answer.ended
        if outcome == "job":
            return answer.job
        error = map_status(Status.FromString(answer.refusal.SerializeToString()), self._transport.endpoint.target)
        if isinstance(error, UnavailableError):
            return None
        raise error

    def close(self) -> None:
        """End the stream."""
        if self._answers is not None:
            self._requests.put(None)
            self._answers.cancel()
            self._answers = None

    def _ask(self, request: SubmitJobStreamRequest) -> SubmitJobStreamResponse | None:
        now = time.monotonic()
        patience = self._timeout_s or float("inf")
        if self._answers is not None and now - self._opened > patience:
            self.close()
        if self._answers is None:
            last, self._last = self._last, now
            if now - last > patience:
                return None
            self._open(now)
        try:
            self._requests.put(request)
            answer: SubmitJobStreamResponse = next(self._answers)
        except StopIteration:
            self.close()
            return None
        except grpc.RpcError as raised:
            self.close()
            error: CadenzaError = map_error(raised, self._transport.endpoint.target)
            self._offered = error.code not in _NEVER
            if error.code == "DEADLINE_EXCEEDED":
                raise error from None
            return None
        except BaseException:
            # Ctrl-C: the answer that is still to come belongs to nobody.
            self.close()
            raise
        self._last = now
        if answer.request_id != request.request_id:
            self.close()
            return None
        return answer

    def _open(self, now: float) -> None:
        self._requests = queue.SimpleQueue()
        requests = iter(self._requests.get, None)
        timeout_s = None if self._timeout_s is None else 2 * self._timeout_s
        self._answers = self._transport.open(self._method, requests, timeout_s)
        self._opened = now
