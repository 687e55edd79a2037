"""The live servers that the checks are played against, and the file that the clients are given."""

import ipaddress
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from tests.running_server import running

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

_TLS = '[tls]\ncertificate = "certificate.pem"\nkey = "key.pem"\n[devices.sim]\nkind = "aer"\nnum_qubits = 2\n'


def read_checks() -> dict[str, Any]:
    """`variables`, `checks` and `not_checked`, as `checks.yaml` has them."""
    plan: dict[str, Any] = yaml.safe_load(CHECKS.read_text())
    return plan


def read_mistakes() -> list[dict[str, Any]]:
    """The checks that every client must find wrong."""
    checks: list[dict[str, Any]] = yaml.safe_load(MISTAKES.read_text())["checks"]
    return checks


@contextmanager
def served(folder: Path) -> Iterator[dict[str, str]]:
    """Start both servers below `folder`; the variables that say where they are."""
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
        tls_target = stack.enter_context(running(guarded, _TLS + made.stdout)).address
        yield {
            "target": target,
            "tls_target": "localhost:" + tls_target.rpartition(":")[2],
            "tls_ca": str(guarded / "certificate.pem"),
            "token": token,
        }


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
