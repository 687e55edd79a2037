"""The load test against a real server."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from cadenza_loadtest.report import check_objectives
from cadenza_loadtest.scenario import Objective, load


def loadtest(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "cadenza_loadtest", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_smoke_scenario_meets_its_objectives_and_a_missed_one_is_an_exit_code(tmp_path: Path) -> None:
    scenario = tmp_path / "strict.yaml"
    scenario.write_text(
        "duration_s: 2\nusers: 4\naccounts: 2\n"
        "prepare: {jobs_per_user: 2, open_sessions: 2, watches: 2}\n"
        "traffic:\n"
        "  singles: {kind: job, rate: 6, follow: 1}\n"
        "  packs: {kind: jobs, count: 1, jobs: 5}\n"
        "  batches: {kind: batch, count: 1, jobs: 3}\n"
        "  iterative: {kind: session, count: 1, jobs: 3, think_s: 0.01}\n"
        "objectives:\n"
        "  error_fraction: {at_most: 0}\n"
        "  jobs_failed: {at_most: 0}\n"
        "  singles_submit_p50_ms: {at_most: 0.001}\n"
    )
    html = tmp_path / "report.html"
    done = loadtest(str(scenario), "--processes", "2", "--json", "-", "--html", str(html))
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert {one["figure"]: one["met"] for one in report["verdicts"]} == {
        "error_fraction": True,
        "jobs_failed": True,
        "singles_submit_p50_ms": False,
    }
    figures = report["figures"]
    assert figures["singles_done"] == figures["singles_sent"] > 0
    assert figures["iterative_done"] == 1
    # 8 prepared, 5 in a pack, 3 in a batch, 3 iterations, and the single ones: the server knows them all
    assert figures["jobs_recorded"] == 19 + figures["singles_sent"]
    assert set(report["accounts"]) == {"load/account-0", "load/account-1"}
    assert html.read_text().startswith("<!doctype html>")
    # the run had all kinds of traffic: of each figure that a report has an objective may be
    check_objectives(replace(load(str(scenario)), objectives=tuple(Objective(name, 1, None) for name in figures)))


def test_what_never_ends_has_failed(tmp_path: Path) -> None:
    # the device cannot start, and what is submitted to it stays queued
    device = 'kind = "generic"\nnum_qubits = 2\ncoupling = "full"\nbasis_gates = ["nothing"]\n'
    (tmp_path / "cadenza.toml").write_text(f"[devices.parked]\n{device}")
    scenario = tmp_path / "one.yaml"
    scenario.write_text(
        "duration_s: 0.5\nsettle_s: 0.2\nusers: 2\naccounts: 1\n"
        "traffic: {followed: {count: 3, follow: 1}, single: {count: 2}}\n"
        "objectives: {error_fraction: {at_most: 0}}\n"
    )
    done = loadtest(str(scenario), "--config", str(tmp_path / "cadenza.toml"), "--json", "-")
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    figures = report["figures"]
    assert (figures["followed_unfinished"], figures["single_done"], figures["single_unfinished"]) == (3, 2, 0)
    assert figures["error_fraction"] == 0.6
    assert report["errors"]["followed: not done 0.2 s after the end"] == 3


def test_a_server_that_is_not_there_is_a_sentence_and_exit_code_2() -> None:
    done = loadtest("smoke", "--target", "127.0.0.1:1")
    assert done.returncode == 2
    assert done.stderr.startswith("cadenza-loadtest: the server at 127.0.0.1:1 does not answer")
    assert "Traceback" not in done.stderr
