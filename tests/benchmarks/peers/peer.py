"""What is asked of each peer: to start with one worker, to take jobs, and to say when each began."""

import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar


class AbsentError(Exception):
    """The peer cannot run here; the message says what is missing."""


class Peer:
    """A system that runs jobs. Handles are its own."""

    name = ""
    durable = False
    how = ""
    """Its configuration, in a line."""
    scale: ClassVar[dict[str, float]] = {"nothing": 1.0, "ghz": 1.0, "single": 1.0}
    """The part of the jobs that it is given, where all would take too long."""
    queue_max = 10**9
    """More queued jobs than this it does not take."""

    def version(self) -> str:
        """As it calls itself. Raises `AbsentError`."""
        raise NotImplementedError

    def start(self, folder: Path) -> None:
        """Start it with one worker, its data in `folder`. Raises `AbsentError`."""
        raise NotImplementedError

    def stop(self) -> None:
        """Stop all that was started."""
        raise NotImplementedError

    def submit(self, kind: str, count: int, user: str) -> Sequence[Any]:
        """Submit jobs in the way that it recommends for so many; returns when all are accepted."""
        raise NotImplementedError

    def finish(self, handles: Sequence[Any]) -> list[int]:
        """Wait until all have ended; when each began, in ns since 1970."""
        raise NotImplementedError


class Daemons:
    """Processes that a peer consists of."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []

    def run(self, command: Sequence[str], folder: Path, **more: Any) -> None:
        """Start one; it writes to a log in `folder`."""
        program = shutil.which(command[0])
        if program is None:
            raise AbsentError(f"{command[0]} is not installed")
        with (folder / f"{Path(command[0]).name}.log").open("ab") as log:
            process = subprocess.Popen(
                [program, *command[1:]], stdout=log, stderr=log, stdin=subprocess.DEVNULL, **more
            )
        self._processes.append(process)

    def stop(self) -> None:
        """End them in the opposite order."""
        while self._processes:
            process = self._processes.pop()
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_port() -> int:
    """A port that is free at the moment."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_until(check: Callable[[], object], what: str, timeout_s: float = 30.0) -> None:
    """Ask until it is true. Raises `AbsentError` if it never is."""
    end = time.monotonic() + timeout_s
    while not check():
        if time.monotonic() > end:
            raise AbsentError(f"{what} did not come up")
        time.sleep(0.05)
