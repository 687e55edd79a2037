"""Disks that are full, read-only, damaged or hang, under real servers: it is said at once, reads go on where they can,
and nothing that was acknowledged is lost or damaged."""

import errno
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time

# ruff: noqa: PT017  (a refusal is an answer that is looked at, not what a test waits for)
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from cadenza.v1 import circuit_pb2, job_pb2, job_service_pb2, job_service_pb2_grpc, program_pb2
from cadenza_server.store.check import check
from cadenza_server.store.store import FILE_NAME

from tests.crash.kills import BELL, FINAL, PLUGINS, find_writer
from tests.running_server import RunningServer, command, running

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc, and limits them")

CONFIG = '[devices.sim]\nkind = "noop"\nnum_qubits = 2\nlimit = "3s"\n'
SLOW_CONFIG = CONFIG + "options = { seconds = 60.0 }\n"
CALL_SECONDS_MAX = 20.0
PADDING = "// " + "x" * 20_000 + "\n"
"""So that a disk is full soon, and a page is one of a payload."""


class Client:
    """One user's calls; each job is sent with its name as request_id."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address)
        self._stub: Any = job_service_pb2_grpc.JobServiceStub(self._channel)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def call(self, name: str, request: Any, seconds: float = CALL_SECONDS_MAX) -> Any:
        return getattr(self._stub, name)(request, metadata=(("cadenza-user", "ann"),), timeout=seconds)

    def submit(self, name: str, seconds: float = CALL_SECONDS_MAX) -> job_pb2.Job:
        circuit = circuit_pb2.Circuit(openqasm2=BELL + PADDING + f"// {name}\n")
        sampler = program_pb2.SamplerJob(pubs=[program_pb2.SamplerPub(circuit=circuit, shots=10)])
        spec = job_pb2.JobSpec(job_id=name, device="sim", program=program_pb2.Program(sampler=sampler))
        request = job_service_pb2.SubmitJobRequest(job=spec, request_id=name)
        job: job_pb2.Job = self.call("SubmitJob", request, seconds).job
        return job

    def submit_at_last(self, name: str) -> job_pb2.Job:
        """Repeat it until it is answered."""
        end = time.monotonic() + 60
        while True:
            try:
                return self.submit(name)
            except grpc.RpcError as error:
                assert error.code() is grpc.StatusCode.UNAVAILABLE, error
                assert time.monotonic() < end, "the server does not come back"
            time.sleep(0.1)

    def get(self, name: str) -> job_pb2.Job:
        job: job_pb2.Job = self.call("GetJob", job_service_pb2.GetJobRequest(job_id=name)).job
        return job

    def wait(self, name: str) -> job_pb2.Job:
        end = time.monotonic() + 60
        while (job := self.get(name)).state not in FINAL:
            assert time.monotonic() < end, f"{name} does not end"
            time.sleep(0.02)
        return job

    def result(self, name: str) -> bytes:
        found = self.call("GetJobResult", job_service_pb2.GetJobResultRequest(job_id=name))
        return bytes(found.SerializeToString(deterministic=True))

    def names(self) -> set[str]:
        listed = self.call("ListJobs", job_service_pb2.ListJobsRequest(page_size=1000)).jobs
        return {job.job_id for job in listed}


@contextmanager
def serving(folder: Path, config: str = CONFIG, prefix: tuple[str, ...] = ()) -> Iterator[tuple[RunningServer, Client]]:
    environment = {"PYTHONPATH": f"{PLUGINS}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    with (
        running(folder, config, environment=environment, prefix=prefix) as server,
        Client(server.address) as client,
    ):
        yield server, client


def refused(call: Callable[[], object]) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error: Any = caught.value
    code: grpc.StatusCode = error.code()
    return code


def submit_until_it_is_full(client: Client) -> tuple[list[str], str]:
    """The names of what was accepted, and of the first that was not."""
    accepted: list[str] = []
    for number in range(2_000):
        name = f"full-{number}"
        try:
            client.submit(name)
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.UNAVAILABLE, error
            assert "the store cannot commit now" in (error.details() or "")
            return accepted, name
        accepted.append(name)
    pytest.fail("the disk is never full")


def account(client: Client, names: list[str]) -> None:
    """Everything that was acknowledged is there and runs to its end."""
    for name in names:
        assert client.wait(name).state == job_pb2.JOB_STATE_SUCCEEDED, name
    assert client.names() == set(names)


@contextmanager
def full_by_limit(server: RunningServer) -> Iterator[None]:
    """The process that writes may not make its files longer."""
    writer = find_writer(server.process.pid)
    assert writer is not None
    soft, hard = resource.prlimit(writer, resource.RLIMIT_FSIZE)
    resource.prlimit(writer, resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            resource.prlimit(writer, resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def full_by_file(server: RunningServer, folder: Path) -> Iterator[None]:
    """There is no room left on the file system that the server sees at `folder`."""
    filler = Path(f"/proc/{server.process.pid}/root{folder}/filler")
    with filler.open("wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(1 << 12))
            except OSError as error:
                assert error.errno == errno.ENOSPC
                break
    try:
        yield
    finally:
        filler.unlink()


def small_disk(folder: Path) -> tuple[str, ...]:
    """A command that gives the one behind it a file system of its own, of some megabytes, at `folder`."""
    return _with_mounts(f'mount -t tmpfs -o size=16m tmpfs "{folder}"', folder)


def read_only(folder: Path) -> tuple[str, ...]:
    """A command that lets the one behind it read `folder`, and not write it."""
    return _with_mounts(f'mount --bind "{folder}" "{folder}" && mount -o remount,ro,bind "{folder}" "{folder}"', folder)


def _with_mounts(mount: str, folder: Path) -> tuple[str, ...]:
    folder.mkdir(exist_ok=True)
    prefix = ("unshare", "--map-root-user", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh")
    if (
        shutil.which("unshare") is None
        or subprocess.run([*prefix, "true"], check=False, capture_output=True).returncode
    ):
        pytest.skip("nothing can be mounted here")
    return prefix


def copy_store(server: RunningServer, folder: Path) -> Path:
    """The store and its log as the server sees them at one moment, where SQLite finds them, too."""
    writer = find_writer(server.process.pid)
    assert writer is not None
    copy = folder / "copy"
    copy.mkdir()
    os.kill(writer, signal.SIGSTOP)
    try:
        for suffix in ("", "-wal"):
            name = f"{FILE_NAME}{suffix}"
            shutil.copy(Path(f"/proc/{server.process.pid}/root{folder}/data") / name, copy / name)
    finally:
        os.kill(writer, signal.SIGCONT)
    return copy / FILE_NAME


@pytest.mark.parametrize("how", ["limit", "file system"])
def test_a_full_disk_is_said_and_reads_go_on_and_when_there_is_room_again_so_do_commits(
    tmp_path: Path, how: str
) -> None:
    prefix = small_disk(tmp_path / "data") if how == "file system" else ()
    with serving(tmp_path, prefix=prefix) as (server, client):
        before = [client.submit(f"before-{number}").job_id for number in range(5)]
        results = {name: client.result(name) for name in before if client.wait(name)}
        with full_by_file(server, tmp_path / "data") if prefix else full_by_limit(server):
            accepted, first = submit_until_it_is_full(client)
            assert {name: client.result(name) for name in before} == results
            assert client.names() >= {*before, *accepted}
            assert server.process.poll() is None
            assert "no more commands are taken: cannot write" in server.output
        after = client.submit_at_last(first)
        assert client.submit(first) == after
        account(client, [*before, *accepted, first])
        assert {name: client.result(name) for name in before} == results
        assert check(copy_store(server, tmp_path)).findings == []
        assert server.stop() == 0


def test_a_server_that_stops_while_its_disk_is_full_loses_nothing(tmp_path: Path) -> None:
    with serving(tmp_path, SLOW_CONFIG) as (server, client):
        names = [client.submit(f"job-{number}").job_id for number in range(3)]
        with full_by_limit(server):
            accepted, _ = submit_until_it_is_full(client)
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(30) in (0, 1)
    assert "Traceback" not in server.output
    assert check(tmp_path / "data" / FILE_NAME).findings == []
    with serving(tmp_path) as (server, client):
        account(client, [*names, *accepted])


NAMES = [f"job-{number}" for number in range(20)]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which the jobs `NAMES` have ended, and a server's configuration for it."""
    folder = tmp_path_factory.mktemp("sound")
    with serving(folder) as (server, client):
        for name in NAMES:
            client.submit(name)
        account(client, NAMES)
        assert server.stop() == 0
    return folder


@pytest.fixture
def ended(sound: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(sound, tmp_path / "ended"))


def start(folder: Path, prefix: tuple[str, ...] = ()) -> "subprocess.CompletedProcess[str]":
    """`cadenza serve` of a store that it cannot serve."""
    environment = {**os.environ, "PYTHONPATH": f"{PLUGINS}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    serve = command("serve", "--listen", "127.0.0.1:0", "--data-dir", str(folder / "data"))
    serve += ["--config", str(folder / "cadenza.toml")]
    return subprocess.run([*prefix, *serve], capture_output=True, text=True, timeout=60, check=False, env=environment)


def check_is_a_sentence(done: "subprocess.CompletedProcess[str]", said: str) -> None:
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert said in done.stderr
    assert done.stdout == ""


def test_a_server_whose_disk_takes_nothing_says_so_at_its_start(ended: Path) -> None:
    before = (ended / "data" / FILE_NAME).read_bytes()
    if shutil.which("prlimit") is not None:
        check_is_a_sentence(start(ended, ("prlimit", "--fsize=0:0")), str(ended / "data"))
    check_is_a_sentence(start(ended, read_only(ended / "data")), "Read-only file system")
    assert (ended / "data" / FILE_NAME).read_bytes() == before


def test_a_read_only_store_can_be_checked(ended: Path) -> None:
    done = subprocess.run(
        [*read_only(ended / "data"), *command("check", "--data-dir", str(ended / "data"))],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_file_whose_beginning_is_damaged_is_refused_at_the_start(ended: Path) -> None:
    store = ended / "data" / FILE_NAME
    data = bytearray(store.read_bytes())
    data[:200] = bytes(200)
    store.write_bytes(data)
    check_is_a_sentence(start(ended), "restore")
    assert store.read_bytes() == data


def test_what_is_damaged_cannot_be_read_and_everything_else_can(ended: Path) -> None:
    """The first page of the results is lost: it is said when it is touched, and found by the check."""
    store = ended / "data" / FILE_NAME
    with closing(sqlite3.connect(store)) as connection:
        ((root,),) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'results'")
        ((size,),) = connection.execute("PRAGMA page_size")
    with store.open("r+b") as file:
        file.seek((root - 1) * size)
        file.write(b"\xff" * size)
    assert not check(store).is_sound
    with serving(ended) as (server, client):
        assert refused(lambda: client.result(NAMES[0])) is grpc.StatusCode.UNAVAILABLE
        assert {client.get(name).state for name in NAMES} == {job_pb2.JOB_STATE_SUCCEEDED}
        assert "the file is damaged; see `cadenza check`, stop the server and restore a backup" in server.output


@pytest.mark.parametrize("tail", ["torn", "garbage"])
def test_a_log_whose_end_is_torn_keeps_everything_before(tmp_path: Path, tail: str) -> None:
    """The end of a log is what no commit had been told of; what was told is before it."""
    with serving(tmp_path, SLOW_CONFIG) as (server, client):
        names = [client.submit(f"job-{number}").job_id for number in range(10)]
        writer = find_writer(server.process.pid)
        assert writer is not None
        server.process.kill()
        server.process.wait()
        while Path(f"/proc/{writer}").exists():
            time.sleep(0.01)  # it finishes what it was sent
    # As if it had died in the middle: the file is as it was at the last checkpoint, and what followed is in the log.
    source, copy = tmp_path / "data", tmp_path / "torn"
    copy.mkdir()
    with closing(sqlite3.connect(source / FILE_NAME)) as connection:
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute("UPDATE meta SET value = value")
        connection.commit()
        length = (source / f"{FILE_NAME}-wal").stat().st_size
        connection.execute("INSERT INTO meta VALUES ('never told', 1)")
        connection.commit()
        for suffix in ("", "-wal"):
            shutil.copy(source / f"{FILE_NAME}{suffix}", copy / f"{FILE_NAME}{suffix}")
    log = copy / f"{FILE_NAME}-wal"
    with log.open("r+b") as file:
        if tail == "torn":
            file.truncate((length + log.stat().st_size) // 2)
        else:
            file.seek(length)
            file.write(os.urandom(log.stat().st_size - length))
    shutil.rmtree(source)
    copy.rename(source)
    assert check(source / FILE_NAME).findings == []
    with serving(tmp_path) as (server, client):
        account(client, names)
        assert server.stop() == 0
    with closing(sqlite3.connect(source / FILE_NAME)) as connection:
        assert connection.execute("SELECT count(*) FROM meta WHERE key = 'never told'").fetchone() == (0,)


def test_a_process_that_writes_and_is_stopped_keeps_answers_waiting_and_reads_go_on(tmp_path: Path) -> None:
    with serving(tmp_path) as (server, client):
        kept = client.wait(client.submit("before").job_id)
        writer = find_writer(server.process.pid)
        assert writer is not None
        os.kill(writer, signal.SIGSTOP)
        try:
            assert refused(lambda: client.submit("waiting", seconds=1)) is grpc.StatusCode.DEADLINE_EXCEEDED
            began = time.monotonic()
            assert client.get("before") == kept
            assert time.monotonic() - began < 1
        finally:
            os.kill(writer, signal.SIGCONT)
        job = client.submit_at_last("waiting")
        assert job.seq == kept.seq + 1
        account(client, ["before", "waiting"])
        assert server.stop() == 0


def test_a_worker_that_is_stopped_reaches_its_limit_and_the_next_job_has_another(tmp_path: Path) -> None:
    with serving(tmp_path, SLOW_CONFIG) as (server, client):
        client.submit("stuck")
        end = time.monotonic() + 30
        while client.get("stuck").state != job_pb2.JOB_STATE_RUNNING:
            assert time.monotonic() < end
            time.sleep(0.02)
        for worker in find_workers(server.process.pid):
            os.kill(worker, signal.SIGSTOP)
        job = client.wait("stuck")
        assert (job.state, job.reason) == (job_pb2.JOB_STATE_CANCELLED, job_pb2.JOB_REASON_RAN_TOO_LONG)
        client.submit("next")
        while client.get("next").state != job_pb2.JOB_STATE_RUNNING:
            assert time.monotonic() < end + 30
            time.sleep(0.02)


def find_workers(server: int) -> list[int]:
    """The processes of a server's devices."""
    tasks = Path(f"/proc/{server}/task").glob("*/children")
    children = " ".join(each.read_text() for each in tasks).split()
    found = [int(child) for child in children if b"execution.worker" in Path(f"/proc/{child}/cmdline").read_bytes()]
    assert found
    return found
