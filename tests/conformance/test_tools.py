"""The standard tools of gRPC work with the server as they are; each is skipped by name if it is not installed."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SECONDS_MAX = 60.0


@pytest.fixture
def address(places: dict[str, str]) -> str:
    return places["target"]


def run(*names: str, arguments: tuple[str, ...], folder: Path) -> "subprocess.CompletedProcess[str]":
    """The first of the programs `names` that is on the path, or beside the interpreter, with `arguments`."""
    beside = Path(sys.executable).parent
    found = next((path for name in names if (path := shutil.which(name) or shutil.which(name, path=beside))), None)
    if found is None:
        pytest.skip(f"{names[0]} is not installed")
    return subprocess.run(
        [found, *arguments], cwd=folder, capture_output=True, text=True, timeout=SECONDS_MAX, check=False
    )


def test_grpcurl_lists_and_calls_by_reflection(address: str, tmp_path: Path) -> None:
    listed = run("grpcurl", arguments=("-plaintext", address, "list"), folder=tmp_path)
    assert "cadenza.v1.JobService" in listed.stdout.splitlines(), listed.stderr
    method = "cadenza.v1.DeviceService/GetDevice"
    arguments = ("-plaintext", "-H", "cadenza-user: alice", "-d", '{"name": "sim"}', address, method)
    called = run("grpcurl", arguments=arguments, folder=tmp_path)
    assert json.loads(called.stdout)["device"]["kind"] == "aer", called.stderr
    refused = run("grpcurl", arguments=("-plaintext", "-d", '{"name": "sim"}', address, method), folder=tmp_path)
    assert "MISSING_TOKEN" in refused.stderr


def test_grpc_health_probe_finds_it_serving(address: str, tmp_path: Path) -> None:
    for service in ("", "cadenza.v1.JobService"):
        arguments = ("-addr", address, "-service", service)
        probed = run("grpc_health_probe", "grpc-health-probe", arguments=arguments, folder=tmp_path)
        assert probed.returncode == 0, probed.stderr


def test_ghz_loads_it_by_reflection(address: str, tmp_path: Path) -> None:
    call = ("--insecure", "-m", '{"cadenza-user": "alice"}', "--call", "cadenza.v1.ServerService/GetServerInfo")
    loaded = run("ghz", arguments=(*call, "-n", "200", "-c", "10", "-O", "json", address), folder=tmp_path)
    assert loaded.returncode == 0, loaded.stdout + loaded.stderr
    assert json.loads(loaded.stdout)["statusCodeDistribution"] == {"OK": 200}


def test_buf_curl_calls_by_reflection(address: str, tmp_path: Path) -> None:
    protocol = ("curl", "--protocol", "grpc", "--http2-prior-knowledge", "-H", "cadenza-user: alice")
    url = f"http://{address}/cadenza.v1.DeviceService/GetDevice"
    called = run("buf", arguments=(*protocol, "-d", '{"name": "sim"}', url), folder=tmp_path)
    assert json.loads(called.stdout)["device"]["numQubits"] == 20, called.stderr
