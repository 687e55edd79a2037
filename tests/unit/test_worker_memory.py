"""What programs leave behind in a worker does not take memory away from those that follow."""

import gc
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from cadenza.v1.device_pb2 import Device
from cadenza_server.execution import worker
from cadenza_server.execution.protocol import FrameSocket, Kind
from cadenza_server.execution.spec import DeviceSpec
from cadenza_server.model.words import RunOutcome

OWN, ROOM = 1000, 100


@dataclass
class Hoarder:
    """Keeps some bytes of each program; loses others for ever."""

    keeps: int
    loses: int
    kept: int = 0
    lost: int = 0
    forgotten: list[int] = field(default_factory=list)

    def describe(self) -> Device:
        return Device()

    def warm_up(self) -> None:
        pass

    def execute(self) -> None:
        self.kept += self.keeps
        self.lost += self.loses

    def forget(self) -> None:
        self.forgotten.append(self.kept)
        self.kept = 0


class Held:
    """The device's end of a worker that runs in a thread."""

    def __init__(self, hoarder: Hoarder, monkeypatch: pytest.MonkeyPatch) -> None:
        def run(*_: Any) -> tuple[RunOutcome, str, bytes, bytes]:
            hoarder.execute()
            return RunOutcome.SUCCEEDED, "", b"", b""

        monkeypatch.setattr(worker, "_make_executor", lambda *_: hoarder)
        monkeypatch.setattr(worker, "_run", run)
        monkeypatch.setattr(worker, "count_data_bytes", lambda: OWN + hoarder.kept + hoarder.lost)
        monkeypatch.setattr(worker, "limit_memory", lambda _: "")
        monkeypatch.setattr(worker, "limit_processor", lambda *_: None)
        monkeypatch.setattr(gc, "freeze", lambda: None)
        self.socket, self._theirs = socket.socketpair()
        self.socket.settimeout(20)
        self.frames = FrameSocket(self.socket)
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()
        spec = DeviceSpec(kind="aer", num_qubits=1, memory_bytes_max=ROOM, network=True)
        self.frames.send(Kind.SETUP, b"sim", spec.to_json().encode())
        ready = self.frames.receive()
        assert ready is not None
        assert ready.kind == Kind.READY

    def _serve(self) -> None:
        with self._theirs:
            worker.serve(FrameSocket(self._theirs))

    def run(self) -> bool:
        """Whether a run is answered."""
        try:
            self.frames.send(Kind.RUN, *[bytes(8)] * 7)
            done = self.frames.receive()
            self.leaves = done is not None and bool(done.parts[-1])
            return done is not None
        except ConnectionError:
            return False


@pytest.fixture
def hold(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    held: list[Held] = []

    def make(hoarder: Hoarder) -> Held:
        held.append(Held(hoarder, monkeypatch))
        return held[-1]

    yield make
    for each in held:
        each.socket.close()
        each.thread.join(20)
        assert not each.thread.is_alive()


def test_what_is_kept_for_later_is_given_back_when_it_is_half_of_what_there_is(hold: Any) -> None:
    hoarder = Hoarder(keeps=20, loses=0)
    held = hold(hoarder)
    assert all(held.run() for _ in range(9))
    held.socket.shutdown(socket.SHUT_WR)
    held.thread.join(20)
    assert hoarder.forgotten == [60, 60, 60]


def test_a_worker_that_cannot_give_it_back_answers_and_ends(hold: Any) -> None:
    hoarder = Hoarder(keeps=0, loses=20)
    held = hold(hoarder)
    assert [(held.run(), held.leaves) for _ in range(4)] == [(True, False), (True, False), (True, True), (False, True)]
