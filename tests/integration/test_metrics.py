"""What Prometheus is told: exactly what is documented, and true."""

import asyncio
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cadenza_server
import pytest
from cadenza.v1 import job_pb2, job_service_pb2, session_service_pb2
from cadenza_server import metrics
from cadenza_server.engine import Figures
from prometheus_client.parser import text_string_to_metric_families

DOCUMENT = Path(cadenza_server.__file__).with_name("docs") / "metrics.md"
ROW = re.compile(r"^\| `(\w+)` \| (\w+) \| (.*?) \|", re.MULTILINE)
CONFIG = """
[server]
operators = ["rani"]
[devices.sim]
kind = "aer"
num_qubits = 4
[devices.spare]
kind = "aer"
num_qubits = 4
"""


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, kit: Any) -> Iterator[Any]:
    with kit.running(tmp_path_factory.mktemp("metrics"), CONFIG, "--metrics", ":0", "--log-format", "json") as started:
        yield started
        assert started.process.poll() is None, started.output


def read(server: Any) -> dict[str, Any]:
    """The families by name, counters with their `_total`."""
    found = re.search(r'"metrics": "(\S+?)"', server.output)
    assert found, server.output
    with urllib.request.urlopen(f"http://{found[1]}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    families = list(text_string_to_metric_families(text))
    return {
        family.name + ("_total" if family.type == "counter" else ""): family
        for family in families
        if not family.name.endswith("_created")
    }


def value(server: Any, name: str, **labels: str) -> float:
    for family in read(server).values():
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return float(sample.value)
    return 0.0


def test_what_is_told_is_what_is_documented(watched: Any, connect: Any, kit: Any) -> None:
    ann = connect("lab/ann", address=watched.address)
    with kit.refusal():
        ann.submit(kit.sampler_job(device="nowhere"))
    ann.wait(ann.submit(kit.sampler_job(device="sim")).job_id)
    kit.wait_for(lambda: "cadenza_result_bytes" in read(watched), "the results to be counted")
    documented = {
        name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in ROW.findall(DOCUMENT.read_text())
    }
    told = {}
    for name, family in read(watched).items():
        labels = set().union(*(sample.labels for sample in family.samples)) - {"le"}
        told[name] = (family.type, labels)
        assert family.documentation
    silent = {name for name, (_, labels) in told.items() if not labels} & {
        name for name, (_, labels) in documented.items() if labels
    }
    # A counter of something with labels that has not happened yet has no series to show its labels by.
    assert silent <= {"cadenza_runs_ended_total"}, silent
    assert told.keys() == documented.keys()
    assert {name: told[name] for name in told.keys() - silent} == {
        name: documented[name] for name in documented.keys() - silent
    }


def test_what_happens_is_counted(watched: Any, connect: Any, kit: Any) -> None:
    ann = connect("met/ann", address=watched.address)

    def count() -> dict[str, float]:
        return {
            "accepted": value(watched, "cadenza_jobs_accepted_total", device="spare", job_class="FAIR_SHARE"),
            "started": value(watched, "cadenza_runs_started_total", device="spare", rule="FAIR_SHARE"),
            "succeeded": value(watched, "cadenza_runs_ended_total", device="spare", outcome="SUCCEEDED"),
            "failed": value(
                watched, "cadenza_jobs_ended_total", device="spare", state="FAILED", reason="EXECUTION_ERROR"
            ),
            "waits": value(watched, "cadenza_job_waiting_seconds_count", device="spare", job_class="FAIR_SHARE"),
            "refused": value(watched, "cadenza_calls_refused_total", reason="UNKNOWN_JOB"),
        }

    before = count()
    for _ in range(2):
        assert ann.wait(ann.submit(kit.sampler_job(device="spare")).job_id).state == job_pb2.JOB_STATE_SUCCEEDED
    text = 'OPENQASM 3.0;\ninclude "stdgates.inc";\nqubit[1] q;\nnothing q[0];'
    assert ann.wait(ann.submit(kit.sampler_job(device="spare", circuit=text)).job_id).state == job_pb2.JOB_STATE_FAILED
    with kit.refusal():
        ann.jobs("GetJob", job_service_pb2.GetJobRequest(job_id="nothing"))
    after = count()
    assert {name: after[name] - before[name] for name in after} == {
        "accepted": 3,
        "started": 3,
        "succeeded": 2,
        "failed": 1,
        "waits": 3,
        "refused": 1,
    }
    busy = value(watched, "cadenza_device_busy_seconds_total", device="spare")
    assert busy == pytest.approx(value(watched, "cadenza_run_seconds_sum", device="spare"), abs=1e-6)
    assert 0 < value(watched, "cadenza_account_usage_seconds", account="met") <= busy
    assert value(watched, "cadenza_account_shares", account="met") == 1
    for histogram in ("decision", "commit", "event_loop_lag"):
        assert value(watched, f"cadenza_{histogram}_seconds_count") > 0


def test_what_is_so_now_is_told(watched: Any, connect: Any, kit: Any) -> None:
    bob = connect("now/bob", address=watched.address)
    create = session_service_pb2.CreateSessionRequest(device="spare")
    name = bob.sessions("CreateSession", create).session.session_id
    open_before = value(watched, "cadenza_open_sessions")
    held = value(watched, "cadenza_device_held_seconds_total", device="spare")
    bob.wait(bob.submit(kit.sampler_job(session=name)).job_id)
    waiting = connect("now/eve", address=watched.address).submit(kit.sampler_job(device="spare")).job_id
    assert value(watched, "cadenza_queued_jobs", device="spare", job_class="FAIR_SHARE") == 1
    assert value(watched, "cadenza_device_running", device="spare") == 0
    assert value(watched, "cadenza_device_ready", device="spare") == 1
    later = value(watched, "cadenza_device_held_seconds_total", device="spare")
    assert held < later < value(watched, "cadenza_device_held_seconds_total", device="spare")
    stream = bob.sessions("WatchSession", session_service_pb2.WatchSessionRequest(session_id=name))
    next(stream)
    assert value(watched, "cadenza_watches") == 1
    bob.sessions("CloseSession", session_service_pb2.CloseSessionRequest(session_id=name))
    assert connect("now/eve", address=watched.address).wait(waiting).state == job_pb2.JOB_STATE_SUCCEEDED
    assert value(watched, "cadenza_open_sessions") == open_before - 1
    kit.wait_for(lambda: value(watched, "cadenza_watches") == 0, "the watch's end")


async def test_a_connection_that_says_nothing_is_closed(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(metrics._Handler, "timeout", 0.05)

    def figures(_: int) -> Figures:
        return Figures(now=0, devices=(), accounts=(), queued=0, sessions=0, watches=0, result_bytes=None)

    server = metrics.MetricsServer(metrics.Metrics(()), figures, lambda _: 0, "1", "127.0.0.1", 0)
    try:
        for said in (b"", b"GET /metrics HTT", b"GET /metrics HTTP/1.0\r\nAccept:"):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(said)
            async with asyncio.timeout(30):
                assert await reader.read() == b""
            writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert b"cadenza_watches 0.0" in await reader.read()
        writer.close()
    finally:
        await server.stop()
    assert capfd.readouterr().err == ""


def test_a_port_in_use_is_a_sentence(watched: Any, tmp_path: Path, kit: Any) -> None:
    found = re.search(r'"metrics": "127.0.0.1:(\d+)"', watched.output)
    assert found
    with pytest.raises(AssertionError) as caught, kit.running(tmp_path, CONFIG, "--metrics", found[1]):
        pass
    assert f"cannot serve metrics on 127.0.0.1:{found[1]}" in str(caught.value)
