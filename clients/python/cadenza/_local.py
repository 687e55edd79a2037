"""A private server for the length of a program: a process of its own, on a free port, with data that is thrown away."""

import queue
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from cadenza._errors import ServerStartError

START_S: Final = 60.0
"""How long the server may take to listen: it starts its devices' workers first."""

STOP_S: Final = 20.0
"""How long it may take to stop before it is killed."""

_LISTENING: Final = re.compile(r"listening on (\S+:\d+)")


@contextmanager
def private_server(config: Path | str | None = None, arguments: Sequence[str] = ()) -> Iterator[str]:
    """Start `python -P -m cadenza_server serve` on a free port; gives its address, and stops it at the end.

    `config`: a TOML file; None: the defaults. `arguments`: more of the command line. Raises `ServerStartError` with
    what the server wrote to stderr if it does not come up.
    """
    with tempfile.TemporaryDirectory(prefix="cadenza-", ignore_cleanup_errors=True) as folder:
        log = Path(folder) / "stderr.txt"
        # What is installed runs, not what the current folder happens to hold under the same names: a clone, say.
        command = [sys.executable, "-P", "-m", "cadenza_server", "serve", "--listen", "127.0.0.1:0"]
        # Its standard input closes when this process ends, however it ends.
        command += ["--until-stdin-closes"]
        command += ["--data-dir", str(Path(folder) / "data")]
        command += [] if config is None else ["--config", str(config)]
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                [*command, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                encoding="utf-8",
                errors="replace",
                # Ctrl-C at a terminal interrupts the program, which may go on; it must not reach its server.
                start_new_session=True,
            )
        try:
            yield _await_address(process, log)
        finally:
            _stop(process)


def _await_address(process: "subprocess.Popen[str]", log: Path) -> str:
    assert process.stdout is not None
    addresses: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    reader = threading.Thread(target=_read_addresses, args=(process.stdout, addresses), daemon=True)
    reader.start()
    try:
        address = addresses.get(timeout=START_S)
    except queue.Empty:
        raise _start_error(f"did not listen within {START_S:.0f} s", log) from None
    if address is None:
        raise _start_error(f"ended with exit code {process.wait()}", log)
    return address


def _read_addresses(stdout: IO[str], addresses: "queue.SimpleQueue[str | None]") -> None:
    """Read to the end, so that the server never waits for a reader of its output."""
    with stdout:
        for line in stdout:
            if (found := _LISTENING.search(line)) is not None:
                addresses.put(found[1])
    addresses.put(None)


def _start_error(what: str, log: Path) -> ServerStartError:
    written = log.read_text(encoding="utf-8", errors="replace")[-4_000:].strip()
    return ServerStartError(f"the private server {what}; it wrote: {written or 'nothing'}", code="UNAVAILABLE")


def _stop(process: "subprocess.Popen[str]") -> None:
    process.terminate()
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
