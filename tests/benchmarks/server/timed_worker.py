"""A worker that writes down how long it stood idle: `cadenza_server.execution.worker` with a clock at its socket.

For each run a line of nanoseconds goes to the file that CADENZA_BENCH_IDLE names: from the moment at which the worker
had the outcome of its run before in its hands, to send it, to the moment at which it had the next one to work on.
Nothing of the server's can hide from it: the way to the server, the decision, the way back, and the waking of both
processes are all in it. It is written after the run, so that the writing is not.
"""

import os
import sys
import time

from cadenza_server.execution import worker
from cadenza_server.execution.protocol import Frame, FrameSocket, Kind


class TimedSocket(FrameSocket):
    """Notes when an outcome is sent and when the next run is there."""

    done_ns = 0
    idle_ns = 0

    def send(self, kind: Kind, *parts: bytes) -> None:
        if self.idle_ns:
            os.write(OUTPUT, f"{self.idle_ns}\n".encode())
        self.done_ns = time.perf_counter_ns() if kind == Kind.DONE else 0
        super().send(kind, *parts)

    def receive(self) -> Frame | None:
        frame = super().receive()
        self.idle_ns = time.perf_counter_ns() - self.done_ns if self.done_ns else 0
        return frame


if __name__ == "__main__":
    OUTPUT = os.open(os.environ["CADENZA_BENCH_IDLE"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    vars(worker)["FrameSocket"] = TimedSocket
    worker.main(int(sys.argv[1]))
