"""`cadenza check` and `cadenza backup`: sound stores pass, and each way to damage one is found by its promise."""

import asyncio
import json
import random
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from cadenza_server.cli import build_app
from cadenza_server.engine import JobFilter
from cadenza_server.model.commands import Caller, CancelJob, CancelSession
from cadenza_server.model.settings import SECOND
from cadenza_server.model.words import RunOutcome
from cadenza_server.store import check as checking
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
ONE_QUEUED = (
    "(SELECT job FROM jobs WHERE state = 'QUEUED' AND attempts = 0 AND session IS NULL AND NOT EXISTS "
    "(SELECT 1 FROM events WHERE events.job = jobs.job) AND seq < (SELECT max(seq) FROM jobs) ORDER BY seq LIMIT 1)"
)
FAR = "(SELECT max(event_number) + 1000000 FROM events)"
START_ONE = (
    f"UPDATE jobs SET device = '{{job}}', state = 'RUNNING', attempts = 1, detail = 'begun' WHERE job = {ONE_QUEUED}",
    "INSERT INTO runs (job, attempt, device, user, job_class, rule, create_time, start_time, estimate_ns, limit_ns, "
    "epoch, charged_ns) SELECT job, 1, '{run}', user, job_class, job_class, create_time, 1000000000000000, 1, 1, 0, 0 "
    "FROM jobs WHERE detail = 'begun'",
)
"""A second job that runs."""

DAMAGE = {
    "a second final state": (
        "final-states",
        "INSERT INTO events SELECT 0, time, job, session, kind, body FROM events WHERE kind = 'job_ended' LIMIT 1",
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
    "an end that its session tells otherwise": (
        "final-states",
        "UPDATE events SET body = json_set(body, '$.state', 'SUCCEEDED') WHERE kind = 'session_jobs_ended'",
    ),
    "a change after the end": (
        "final-states",
        f"INSERT INTO events SELECT {FAR}, time, job, session, 'job_started', body "
        f"FROM events WHERE kind = 'job_started' AND job = {ONE_SUCCEEDED} LIMIT 1",
    ),
    "an attempt that is missing": (
        "attempts",
        "DELETE FROM runs WHERE attempt = 1 AND job IN (SELECT job FROM runs WHERE attempt = 2)",
        "UPDATE jobs SET attempts_lost = 0",
    ),
    "an attempt after the one that decided": (
        "attempts",
        "UPDATE runs SET outcome = 'EXECUTION_ERROR', end_time = start_time "
        "WHERE attempt = 1 AND outcome = 'WORKER_LOST' AND job IN (SELECT job FROM runs WHERE attempt = 2)",
        "UPDATE jobs SET attempts_lost = 0",
    ),
    "a run of a job that waits": (
        "attempts",
        "UPDATE jobs SET state = 'QUEUED' WHERE state = 'RUNNING'",
    ),
    "a running job without a run": (
        "attempts",
        "UPDATE runs SET end_time = start_time, outcome = 'PUT_BACK' WHERE end_time IS NULL",
    ),
    "a run from before its job": (
        "attempts",
        "UPDATE runs SET create_time = start_time + 1 WHERE run = 1",
    ),
    "another end than the last run's": (
        "attempts",
        "UPDATE jobs SET reason = 'WORKER_LOST' WHERE reason = 'EXECUTION_ERROR'",
    ),
    "a run too long that never was": (
        "attempts",
        "UPDATE jobs SET reason = 'RAN_TOO_LONG' WHERE reason = 'CANCELLED_BY_USER' AND attempts = 0",
    ),
    "lost workers that nobody lost": ("attempts", f"UPDATE jobs SET attempts_lost = 2 WHERE job = {ONE_QUEUED}"),
    "a result of a lost run": (
        "attempts",
        f"UPDATE runs SET outcome = 'WORKER_LOST', charged_ns = 0 WHERE job = {ONE_SUCCEEDED}",
    ),
    "a number that is none": ("numbers", "UPDATE jobs SET seq = seq - 1"),
    "a job lost without a trace": ("numbers", f"DELETE FROM jobs WHERE job = {ONE_QUEUED}"),
    "a number used twice": (
        "numbers",
        "UPDATE jobs SET accept_event = (SELECT accept_event FROM jobs WHERE seq = 1) WHERE seq = 2",
    ),
    "a number of a job and an event": (
        "numbers",
        "INSERT INTO events SELECT accept_event, create_time, NULL, (SELECT max(session) FROM sessions), "
        "'session_changed', '{}' FROM jobs WHERE seq = 1",
    ),
    "a wrong order": ("numbers", "UPDATE jobs SET accept_event = 1000000 WHERE seq = 1"),
    "a run charged too much": (
        "charges",
        f"UPDATE runs SET end_time = end_time - 1 WHERE outcome = 'SUCCEEDED' AND job = {ONE_SUCCEEDED}",
    ),
    "a job charged too much": ("charges", f"UPDATE jobs SET charged_ns = charged_ns + 1 WHERE job = {ONE_SUCCEEDED}"),
    "usage that nobody ran": ("charges", "UPDATE usage SET charged_ns = charged_ns + 1 WHERE path = 'lab/alice'"),
    "an account without its children's": ("charges", "UPDATE usage SET charged_ns = charged_ns - 1 WHERE path = 'lab'"),
    "decayed usage lost": ("charges", "UPDATE usage SET settled = settled * 0.999 WHERE path = 'lab/alice'"),
    "held time that nobody paid": ("charges", "UPDATE sessions SET held_time_ns = held_time_ns + 5"),
    "a session's runs lost": ("charges", "UPDATE sessions SET run_time_ns = run_time_ns + 5"),
    "two jobs that run on a device": ("devices", *(each.format(job="aer", run="other") for each in START_ONE)),
    "two runs on a device": ("devices", *(each.format(job="other", run="aer") for each in START_ONE)),
    "runs that overlap": ("devices", "UPDATE runs SET run = 100000 WHERE run = 1"),
    "two active sessions": (
        "devices",
        "UPDATE sessions SET state = 'ACTIVE', active = 1 WHERE state = 'OPEN'",
        "CREATE TEMP TABLE another AS SELECT * FROM sessions WHERE state = 'ACTIVE'",
        "UPDATE another SET number = number + 1, session = 'another'",
        "INSERT INTO sessions SELECT * FROM another",
    ),
    "a result lost": ("results", f"DELETE FROM results WHERE job = {ONE_SUCCEEDED}"),
    "a result cut": ("results", f"UPDATE results SET result = x'00' WHERE job = {ONE_SUCCEEDED}"),
    "a result of what did not succeed": (
        "results",
        "INSERT INTO results SELECT job, x'00' FROM jobs WHERE state != 'SUCCEEDED' LIMIT 1",
    ),
    "a success without a result": (
        "results",
        f"UPDATE jobs SET result_bytes = NULL WHERE job = {ONE_SUCCEEDED}",
        f"DELETE FROM results WHERE job = {ONE_SUCCEEDED}",
    ),
    "a session closed without a reason": ("sessions", "UPDATE sessions SET close_reason = NULL WHERE state = 'CLOSED'"),
    "a session that is over too early": ("sessions", "UPDATE sessions SET clocks = NULL WHERE state != 'CLOSED'"),
    "a job that waits in a session that is over": (
        "sessions",
        f"UPDATE jobs SET session = (SELECT session FROM sessions WHERE clocks IS NULL) WHERE job = {ONE_QUEUED}",
    ),
    "a job lost": (
        "references",
        f"DELETE FROM jobs WHERE job = {ONE_SUCCEEDED}",
    ),
    "a session lost": ("references", "DELETE FROM sessions WHERE number = 1"),
    "an event of no job": (
        "references",
        f"INSERT INTO events VALUES ({FAR}, 0, 'nobody', NULL, 'job_started', '{{}}')",
    ),
    "an event of no session": (
        "references",
        f"INSERT INTO events VALUES ({FAR}, 0, NULL, 'nobody', 'session_changed', '{{}}')",
    ),
    "an event of nothing": ("references", f"INSERT INTO events VALUES ({FAR}, 0, NULL, NULL, 'job_started', '{{}}')"),
    "an event that cannot be read": ("references", "UPDATE events SET body = '{' WHERE event_number % 7 = 0"),
    "a run of no job": (
        "references",
        "INSERT INTO runs (job, attempt, device, user, job_class, rule, create_time, start_time, end_time, outcome, "
        "estimate_ns, limit_ns, epoch, charged_ns) "
        "VALUES ('nobody', 1, 'other', 'solo', 'FAIR_SHARE', 'FAIR_SHARE', 0, 0, 0, 'PUT_BACK', 1, 1, 0, 0)",
    ),
    "a result of no job": ("references", "INSERT INTO results VALUES ('nobody', x'00')"),
    "a program of no job": ("references", "INSERT INTO programs VALUES (1000000, x'00')"),
    "a program lost": ("references", "UPDATE jobs SET program = NULL WHERE end_time IS NULL"),
    "a job of no session": ("references", f"UPDATE jobs SET session = 'nobody' WHERE job = {ONE_QUEUED}"),
    "a session of no reservation": ("references", "UPDATE sessions SET reservation = 'nobody' WHERE number = 1"),
    "an answer of jobs that are not there": (
        "references",
        "INSERT INTO requests VALUES ('ann', 'r', x'00', 0, 1000000, 2, NULL)",
    ),
    "windows that overlap": (
        "reservations",
        "INSERT INTO reservations VALUES (9001, 'a', 'aer', 'lab', 10, 20, 'ENDED', '', 0), "
        "(9002, 'b', 'aer', 'lab', 19, 30, 'ENDED', '', 0)",
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_found(what: str, store: Path) -> None:
    promise, *statements = DAMAGE[what]
    damage(store, *statements)
    assert promise in check(store).broken
    answer = run("check", "--data-dir", store.parent)
    assert answer.exit_code == 1
    assert f"BROKEN  {promise}" in answer.output


def test_each_query_alone_finds_some_damage(sound: Path, tmp_path: Path) -> None:
    alone = set()
    for number, (_, *statements) in enumerate(DAMAGE.values()):
        store = Path(shutil.copy(sound, tmp_path / f"{number}.db"))
        damage(store, *statements)
        with closing(sqlite3.connect(store)) as connection:
            found = [query for each in PROMISES for query in each.queries if connection.execute(query).fetchone()]
        if len(found) == 1:
            alone.add(found[0])
    assert [query for each in PROMISES for query in each.queries if query not in alone] == []


def test_every_promise_has_a_way_to_break_it() -> None:
    assert {promise for promise, *_ in DAMAGE.values()} == {promise.name for promise in PROMISES}


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


def test_what_cannot_be_checked_in_a_damaged_file_is_not_said_to_be_kept(store: Path) -> None:
    with closing(sqlite3.connect(store)) as connection:
        ((page,),) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'jobs'")
    data = bytearray(store.read_bytes())
    data[(page - 1) * 4096 : page * 4096] = b"\xff" * 4096
    store.write_bytes(data)
    answer = run("check", "--data-dir", store.parent)
    assert answer.exit_code == 1
    assert "BROKEN  file" in answer.output
    assert "?       attempts: could not be checked: database disk image is malformed" in answer.output
    assert "ok      reservations" in answer.output  # what lies on other pages is checked all the same
    document = json.loads(run("check", "--data-dir", store.parent, "--json").output)
    assert document["unchecked"]["attempts"]


def test_a_promise_that_could_not_be_looked_at_for_another_reason_is_neither_kept_nor_broken(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unreadable = replace(PROMISES[0], queries=("SELECT abs(-9223372036854775808)",))
    monkeypatch.setattr(checking, "PROMISES", (unreadable, *PROMISES[1:]))
    answer = run("check", "--data-dir", store.parent)
    assert f"?       {unreadable.name}: could not be checked: integer overflow" in answer.output
    assert (answer.exit_code, "BROKEN" in answer.output) == (2, False)


def test_a_copy_is_checked_by_its_name(store: Path, tmp_path: Path) -> None:
    copy = shutil.copy(store, tmp_path / "monday.db")
    assert run("check", copy).exit_code == 0
    damage(Path(copy), "DELETE FROM results")
    answer = run("check", copy)
    assert (answer.exit_code, "BROKEN  results" in answer.output) == (1, True)
    both = run("check", copy, "--data-dir", store.parent)
    assert (both.exit_code, "not both" in both.output) == (2, True)


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
