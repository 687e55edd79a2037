"""The live servers that the checks are played against, and the file that the clients are given."""

import ipaddress
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml
from cadenza import Client
from cadenza.v1 import job_pb2

from tests.running_server import RunningServer, running

CHECKS = Path(__file__).with_name("checks.yaml")
MISTAKES = Path(__file__).with_name("mistakes.yaml")

_DEVICES = """
[devices.sim]
kind = "aer"
num_qubits = 20
[devices.line]
kind = "generic"
num_qubits = 5
coupling = "line"
"""

# `parked` cannot start, and is OFFLINE therefore: what is submitted to it stays queued.
_TRUSTING = (
    '[server]\noperators = ["rani"]\n[limits]\nmessage_bytes_max = 1048576\n'
    + _DEVICES
    + '[devices.parked]\nkind = "generic"\nnum_qubits = 1\ncoupling = "full"\nbasis_gates = ["nothing"]\n'
)

_TLS = '[tls]\ncertificate = "certificate.pem"\nkey = "key.pem"\n[devices.sim]\nkind = "noop"\n'

# Every limit is met after a few calls; results are too old as soon as they are there. The device does what jobs say.
_TIGHT = """
[limits]
queued_jobs_per_user_max = 10
queued_jobs_max = 14
sessions_per_user_max = 1
watches_per_user_max = 2
watches_per_connection_max = 3
watch_backlog_max = 5
result_age_max = "1ms"
result_age_min = "0s"
[devices.held]
kind = "unruly"
"""

_STOPPING = '[server]\nstop_grace = "3600s"\n[devices.held]\nkind = "unruly"\n'

_BROKEN = '[devices.sim]\nkind = "noop"\n'

_PLUGINS = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1] / "plugins"), os.getenv("PYTHONPATH", "")])}
HOLDER = "lab/holder"


def read_checks() -> dict[str, Any]:
    """`variables`, `checks` and `not_checked`, as `checks.yaml` has them."""
    plan: dict[str, Any] = yaml.safe_load(CHECKS.read_text())
    for check in plan["checks"]:
        if server := check.pop("server", None):
            for step in check["steps"]:
                if "call" in step:
                    step["server"] = server
    return plan


def read_mistakes() -> list[dict[str, Any]]:
    """The checks that every client must find wrong."""
    checks: list[dict[str, Any]] = yaml.safe_load(MISTAKES.read_text())["checks"]
    return checks


@contextmanager
def served(folder: Path) -> Iterator[dict[str, str]]:
    """Start the servers below `folder`; the variables that say where they are."""
    made = subprocess.run(
        [sys.executable, "-m", "cadenza_server", "token", "--user", "lab/tess", "--role", "operator"],
        capture_output=True,
        text=True,
        check=True,
    )
    token = next(word for word in made.stdout.split() if word.startswith("cdz_"))
    with ExitStack() as stack:
        trusting, guarded = folder / "trusting", folder / "guarded"
        guarded.mkdir(parents=True)
        certificate, key = _make_certificate()
        (guarded / "certificate.pem").write_bytes(certificate)
        (guarded / "key.pem").write_bytes(key)
        target = stack.enter_context(running(trusting, _TRUSTING)).address

        def start(name: str, config: str) -> RunningServer:
            return stack.enter_context(running(folder / name, config, environment=_PLUGINS))

        tls_target = start("guarded", _TLS + made.stdout).address
        yield {
            "target": target,
            "tls_target": "localhost:" + tls_target.rpartition(":")[2],
            "tight_target": _start_tight(start, folder).address,
            "stopping_target": _start_stopping(start).address,
            "broken_target": _start_broken(start).address,
            "tls_ca": str(guarded / "certificate.pem"),
            "token": token,
        }


def _start_tight(start: Callable[[str, str], RunningServer], folder: Path) -> RunningServer:
    """A server whose device is busy for hours. The result of the job `deleted` was too old when it started."""
    with running(folder / "tight", _TIGHT, environment=_PLUGINS) as before:
        _occupy(before.address, "deleted", "limits RLIMIT_NOFILE", job_pb2.JOB_STATE_SUCCEEDED)
        before.stop()
    server = start("tight", _TIGHT)
    _occupy(server.address, "busy", "sleep 10000", job_pb2.JOB_STATE_RUNNING)
    return server


def _start_stopping(start: Callable[[str, str], RunningServer]) -> RunningServer:
    """A server that was told to stop and waits for a job of hours."""
    server = start("stopping", _STOPPING)
    _occupy(server.address, "busy", "sleep 10000", job_pb2.JOB_STATE_RUNNING)
    server.process.send_signal(signal.SIGTERM)
    _wait(lambda: "once more stops at once" in server.output, "the server to stop")
    return server


def _start_broken(start: Callable[[str, str], RunningServer]) -> RunningServer:
    """A server whose disk takes nothing: the process that writes may write no byte to any file."""
    server = start("broken", _BROKEN)
    tasks = Path(f"/proc/{server.process.pid}/task").iterdir()
    children = [child for task in tasks for child in (task / "children").read_text().split()]
    (writer,) = [child for child in children if b"commit_process" in Path(f"/proc/{child}/cmdline").read_bytes()]
    resource.prlimit(int(writer), resource.RLIMIT_FSIZE, (0, 0))
    return server


def _occupy(target: str, job: str, request: str, state: "job_pb2.JobState.ValueType") -> None:
    """Submit a job by which the device does what `request` says (see tests/plugins), and wait until it is `state`."""
    spec = job_pb2.JobSpec(job_id=job, device="held")
    spec.program.sampler.pubs.add().circuit.openqasm3 = f"OPENQASM 3.0; // {request}"
    with Client(target, user=HOLDER, token="", tls=False) as client:
        client.submit_job_spec(spec)
        _wait(lambda: client.get_job(job).state == state, f"the job {job}")


def _wait(check: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 30
    while not check():
        if time.monotonic() > end:
            raise TimeoutError(f"waited in vain for {what}")
        time.sleep(0.02)


def write_plan(
    file: Path, run: str, places: dict[str, str], now: datetime, checks: list[dict[str, Any]] | None = None
) -> Path:
    """Write what a client is given to `file`: the checks, with the variables of this run. `run`: begins its ids.

    `checks`: those of `checks.yaml`, if none are given.
    """
    plan = read_checks()
    start = now.astimezone(UTC).replace(microsecond=0) + timedelta(days=1)
    times = {"start": start, "end": start + timedelta(hours=1)}
    stamps = {name: time.strftime("%Y-%m-%dT%H:%M:%SZ") for name, time in times.items()}
    variables = {**plan["variables"], **places, **stamps, "run": run}
    file.write_text(json.dumps({"variables": variables, "checks": plan["checks"] if checks is None else checks}))
    return file


def _make_certificate() -> tuple[bytes, bytes]:
    """A self-signed certificate for localhost, and its key, in PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "localhost")])
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(serialization.Encoding.PEM), private
