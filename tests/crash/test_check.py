"""`cadenza check` and `cadenza backup`: sound stores pass, and each way to damage one is found by its promise."""

import asyncio
import json
import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from cadenza_server.cli import build_app
from cadenza_server.engine import JobFilter
from cadenza_server.model.commands import Caller, CancelJob, CancelSession
from cadenza_server.model.settings import SECOND
from cadenza_server.model.words import RunOutcome
from cadenza_server.store.backup import back_up
from cadenza_server.store.check import PROMISES, SHOWN_MAX, check
from cadenza_server.store.store import FILE_NAME
from typer.testing import CliRunner, Result  # type: ignore[attr-defined, unused-ignore]

from tests.integration.test_engine import ALICE, BOB, OPERATOR, Home, play
from tests.simulation.seeds import seed_of


async def _make(folder: Path) -> Path:
    """A store in which much has happened, and which some runs were lost in."""
    home = Home(folder)
    await home.open()
    source = random.Random(7)  # always the same: what is damaged below must be in it
    session = await home.session()
    for _ in range(3):
        await home.submit(session=session, device=None)
    for outcome in (RunOutcome.WORKER_LOST, *[RunOutcome.SUCCEEDED] * 2):
        home.clock.advance(SECOND)
        home.device.end(outcome)
        home.clock.advance(SECOND)
    home.device.end(RunOutcome.EXECUTION_ERROR)
    await home.engine.execute(CancelJob(job=await home.submit(BOB), caller=BOB))
    await home.submit(session=session, device=None)
    for _ in range(300):
        await play(home, source, [ALICE, BOB, Caller("solo")])
    for name in list(home.engine._writer.recorder.sessions):
        await home.engine.execute(CancelSession(session=name, caller=OPERATOR))
    if home.device.running is not None:
        home.device.end()
    await home.session("last")
    await home.submit(session="last", device=None)
    await home.submit(BOB)
    home.clock.advance(500 * SECOND)
    await home.engine._writer.catch_up()
    await home.crash()
    return folder / FILE_NAME


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return asyncio.run(_make(tmp_path_factory.mktemp("sound")))


@pytest.fixture
def store(sound: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copy(sound, tmp_path / FILE_NAME))


def damage(store: Path, *statements: str) -> None:
    with closing(sqlite3.connect(store)) as connection:
        changed = connection.total_changes
        for statement in statements:
            connection.execute(statement)
        connection.commit()
        assert connection.total_changes > changed, "there is nothing to damage"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(build_app(), [str(each) for each in arguments])


def test_a_store_in_which_much_has_happened_is_sound(sound: Path) -> None:
    report = check(sound)
    assert report.findings == []
    assert report.counts["jobs"] > 20
    assert report.counts["events"] > 100
    assert run("check", "--data-dir", sound.parent).exit_code == 0


ONE_SUCCEEDED = "(SELECT job FROM jobs WHERE state = 'SUCCEEDED' AND job_class != 'CALIBRATION' LIMIT 1)"
DAMAGE = {
    "a second final state": (
        "final-states",
        "INSERT INTO events SELECT (SELECT max(event_number) + 1 FROM events), time, job, session, kind, body "
        "FROM events WHERE kind = 'job_ended' LIMIT 1",
    ),
    "a final state that was taken back": (
        "final-states",
        f"UPDATE jobs SET state = 'QUEUED' WHERE job = {ONE_SUCCEEDED}",
    ),
    "a reason that is none": ("final-states", "UPDATE jobs SET reason = 'BORED' WHERE state = 'FAILED'"),
    "no reason": ("final-states", "UPDATE jobs SET reason = NULL WHERE state = 'CANCELLED'"),
    "a state that is none": ("final-states", "UPDATE jobs SET state = 'LIMBO' WHERE state = 'QUEUED'"),
    "an end without its event": (
        "final-states",
        f"DELETE FROM events WHERE kind = 'job_ended' AND job = {ONE_SUCCEEDED}",
    ),
    "a change after the end": (
        "final-states",
        "INSERT INTO events SELECT (SELECT max(event_number) + 1 FROM events), time, job, session, 'job_started', body "
        f"FROM events WHERE kind = 'job_started' AND job = {ONE_SUCCEEDED} LIMIT 1",
    ),
    "an attempt that is missing": (
        "attempts",
        "DELETE FROM runs WHERE attempt = 1 AND job IN (SELECT job FROM runs WHERE attempt = 2)",
    ),
    "an attempt after the one that decided": (
        "attempts",
        "UPDATE runs SET outcome = 'SUCCEEDED' WHERE attempt = 1 AND outcome = 'WORKER_LOST'",
    ),
    "a run of a job that waits": (
        "attempts",
        "UPDATE jobs SET state = 'QUEUED' WHERE state = 'RUNNING'",
    ),
    "a running job without a run": ("attempts", "DELETE FROM runs WHERE end_time IS NULL"),
    "a result of a lost run": (
        "attempts",
        f"UPDATE runs SET outcome = 'WORKER_LOST', charged_ns = 0 WHERE job = {ONE_SUCCEEDED}",
    ),
    "a number used twice": (
        "numbers",
        "UPDATE jobs SET accept_event = (SELECT min(accept_event) FROM jobs) WHERE seq = (SELECT max(seq) FROM jobs)",
    ),
    "a wrong order": ("numbers", "UPDATE jobs SET accept_event = 1000000 WHERE seq = 1"),
    "a run charged too much": ("charges", f"UPDATE runs SET charged_ns = charged_ns + 1 WHERE job = {ONE_SUCCEEDED}"),
    "usage that nobody ran": ("charges", "UPDATE usage SET charged_ns = charged_ns + 1 WHERE path = 'lab/alice'"),
    "an account without its children's": ("charges", "UPDATE usage SET charged_ns = charged_ns - 1 WHERE path = 'lab'"),
    "decayed usage lost": ("charges", "UPDATE usage SET settled = settled * 0.999 WHERE path = 'lab/alice'"),
    "held time that nobody paid": ("charges", "UPDATE sessions SET held_time_ns = held_time_ns + 5"),
    "a session's runs lost": ("charges", "UPDATE sessions SET run_time_ns = run_time_ns + 5"),
    "two runs on a device": (
        "devices",
        "INSERT INTO runs SELECT run + 100000, job, attempt + 1, device, user, session, job_class, rule, create_time, "
        "start_time, end_time, outcome, estimate_ns, limit_ns, epoch, charged_ns, chosen_node, chosen_usage, "
        "runner_up, runner_up_usage, runner_up_user FROM runs WHERE end_time IS NULL",
    ),
    "runs that overlap": ("devices", "UPDATE runs SET start_time = start_time - 1 WHERE start_time > 0"),
    "two active sessions": ("devices", "UPDATE sessions SET active = 1"),
    "a result lost": ("results", f"DELETE FROM results WHERE job = {ONE_SUCCEEDED}"),
    "a result cut": ("results", f"UPDATE results SET result = x'00' WHERE job = {ONE_SUCCEEDED}"),
    "a result of what did not succeed": (
        "results",
        "INSERT INTO results SELECT job, x'00' FROM jobs WHERE state != 'SUCCEEDED' LIMIT 1",
    ),
    "a success without a result": ("results", f"UPDATE jobs SET result_bytes = NULL WHERE job = {ONE_SUCCEEDED}"),
    "a session closed without a reason": ("sessions", "UPDATE sessions SET close_reason = NULL WHERE state = 'CLOSED'"),
    "a session that is over too early": ("sessions", "UPDATE sessions SET clocks = NULL WHERE state != 'CLOSED'"),
    "a job lost": (
        "references",
        f"DELETE FROM jobs WHERE job = {ONE_SUCCEEDED}",
    ),
    "a session lost": ("references", "DELETE FROM sessions WHERE number = 1"),
    "a program lost": ("references", "UPDATE jobs SET program = NULL WHERE end_time IS NULL"),
    "an answer of jobs that are not there": (
        "references",
        "INSERT INTO requests VALUES ('ann', 'r', x'00', 0, 1000000, 2, NULL)",
    ),
    "an event that cannot be read": ("references", "UPDATE events SET body = '{' WHERE event_number % 7 = 0"),
    "windows that overlap": (
        "reservations",
        "INSERT INTO reservations VALUES (9001, 'a', 'aer', 'lab', 10, 20, 'ENDED', '', 0), "
        "(9002, 'b', 'aer', 'lab', 19, 30, 'ENDED', '', 0)",
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_found(what: str, store: Path) -> None:
    promise, statement = DAMAGE[what]
    damage(store, statement)
    assert promise in check(store).broken
    answer = run("check", "--data-dir", store.parent)
    assert answer.exit_code == 1
    assert f"BROKEN  {promise}" in answer.output


def test_every_promise_has_a_way_to_break_it() -> None:
    assert {promise for promise, _ in DAMAGE.values()} == {promise.name for promise in PROMISES}


def test_findings_are_counted_and_some_of_them_shown(store: Path) -> None:
    damage(store, "UPDATE events SET body = '{'")
    report = check(store)
    assert report.broken["references"] == report.counts["events"] > SHOWN_MAX
    assert len(report.findings) == SHOWN_MAX
    assert f"and {report.counts['events'] - SHOWN_MAX:,} more" in run("check", "--data-dir", store.parent).output
    document = json.loads(run("check", "--data-dir", store.parent, "--json").output)
    assert (document["sound"], document["broken"]) == (False, report.broken)


@pytest.mark.parametrize("place", [0.3, 0.6])
def test_a_file_with_a_torn_page_is_broken_and_not_a_traceback(place: float, store: Path) -> None:
    data = bytearray(store.read_bytes())
    begin = int(len(data) * place) // 4096 * 4096
    data[begin : begin + 4096] = random.Random(seed_of(1)).randbytes(4096)
    store.write_bytes(data)
    answer = run("check", "--data-dir", store.parent)
    assert answer.exit_code == 1
    assert "BROKEN  file" in answer.output
    assert "Traceback" not in answer.output


def test_what_is_no_store_is_a_sentence(tmp_path: Path, store: Path) -> None:
    missing = run("check", "--data-dir", tmp_path / "nowhere")
    assert (missing.exit_code, "there is no store at" in missing.output) == (2, True)
    damage(store, "UPDATE alembic_version SET version_num = '9999'")
    newer = run("check", "--data-dir", store.parent)
    assert (newer.exit_code, "of a newer server" in newer.output) == (2, True)
    store.write_bytes(b"text")
    none = run("check", "--data-dir", store.parent)
    assert (none.exit_code, "cannot be read as a store" in none.output) == (2, True)


def test_a_check_changes_nothing(store: Path) -> None:
    before = store.read_bytes()
    check(store)
    assert store.read_bytes() == before
    assert [each.name for each in store.parent.iterdir()] == [FILE_NAME]


# --- backup -----------------------------------------------------------------------------------------------------------
def test_a_backup_of_a_store_that_is_written_is_one_moment_of_it(tmp_path: Path) -> None:
    async def live() -> None:
        home = Home(tmp_path / "data")
        await home.open()
        for _ in range(3):
            await home.submit()
        copied = asyncio.create_task(asyncio.to_thread(back_up, home.store.path, tmp_path / "copy.db"))
        while not copied.done():
            await home.submit()
        known = (await copied).counts["jobs"]
        assert 3 <= known <= (await home.engine.list_jobs(JobFilter(), page_size=1000)).items[0].seq
        await home.engine.stop(0)
        (tmp_path / "restored").mkdir()
        shutil.copy(tmp_path / "copy.db", tmp_path / "restored" / FILE_NAME)
        again = Home(tmp_path / "restored")
        await again.open()
        assert len((await again.engine.list_jobs(JobFilter(), page_size=1000)).items) == known
        await again.engine.stop(0)

    asyncio.run(live())
    assert (tmp_path / "copy.db").stat().st_mode & 0o077 == 0
    assert check(tmp_path / "restored" / FILE_NAME).is_sound


def test_a_backup_never_replaces_a_file_and_leaves_no_part(store: Path, tmp_path: Path) -> None:
    target = tmp_path / "monday.db"
    assert "verified" in run("backup", target, "--data-dir", store.parent).output
    kept = target.read_bytes()
    again = run("backup", target, "--data-dir", store.parent)
    assert (again.exit_code, "exists" in again.output) == (2, True)
    assert target.read_bytes() == kept
    nowhere = run("backup", tmp_path / "no" / "folder.db", "--data-dir", store.parent)
    assert (nowhere.exit_code, "cannot copy" in nowhere.output) == (2, True)
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted([FILE_NAME, target.name])


def test_a_backup_of_a_damaged_store_is_none(store: Path, tmp_path: Path) -> None:
    damage(store, "DELETE FROM results")
    answer = run("backup", tmp_path / "monday.db", "--data-dir", store.parent)
    assert (answer.exit_code, "BROKEN  results" in answer.output) == (1, True)
    assert [each.name for each in tmp_path.iterdir()] == [FILE_NAME]
