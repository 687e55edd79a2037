"""A server of its own for a test: a real process on a free port."""

import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

START_SECONDS_MAX = 60.0


@dataclass
class RunningServer:
    """A `cadenza serve` of its own. `output`: what it wrote to stderr."""

    address: str
    process: "subprocess.Popen[str]"
    log: Path

    def stop(self, number: int = signal.SIGTERM, timeout: float = 30.0) -> int:
        """Signal it and wait; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(timeout)

    @property
    def output(self) -> str:
        return self.log.read_text()


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "cadenza_server", *arguments]


@contextmanager
def running(
    folder: Path,
    config: str,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    prefix: Sequence[str] = (),
) -> Iterator[RunningServer]:
    """A server that is told `config` and is stopped at the end. `environment`: beside this process's own; `prefix`: a
    command that becomes the server's."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cadenza.toml").write_text(config)
    log = folder / "server.log"
    with log.open("a") as stderr:
        process = subprocess.Popen(
            [
                *prefix,
                *command("serve", "--listen", "127.0.0.1:0", "--data-dir", str(folder / "data")),
                *("--config", str(folder / "cadenza.toml"), *arguments),
            ],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env={**os.environ, "PYTHONWARNINGS": "default", **(environment or {})},
        )
    try:
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], START_SECONDS_MAX)
        line = process.stdout.readline() if ready else ""
        found = re.fullmatch(r"listening on (\S+)\n", line)
        assert found, f"the server said {line!r}\n{log.read_text()}"
        yield RunningServer(found[1], process, log)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if process.stdout is not None:
            process.stdout.close()
