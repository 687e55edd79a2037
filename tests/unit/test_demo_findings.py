from cadenza_server.demo.findings import Run, longest_run, runs_between, shares_got


def run(job: str, user: str, start: float, end: float, session: str = "") -> Run:
    return Run(job, user, session, "FAIR_SHARE", 0.0, start, end)


def test_runs_between_finds_only_what_started_strictly_inside() -> None:
    own = [run("a1", "ada", 1, 2, "s"), run("a2", "ada", 4, 5, "s")]
    foreign = [run("b0", "bob", 0, 1), run("b1", "bob", 3, 4), run("b2", "bob", 5, 6)]
    assert [r.job for r in runs_between([*foreign, *own], own)] == ["b1"]


def test_runs_between_of_nothing_is_nothing() -> None:
    assert runs_between([run("b1", "bob", 3, 4)], []) == []


def test_shares_are_due_by_weight_of_what_these_users_got_together() -> None:
    runs = [run("b1", "bob", 0, 3), run("c1", "cyd", 3, 6), run("a1", "ada", 6, 99)]
    bob, cyd = shares_got(runs, {"bob": 2, "cyd": 1})
    assert (bob.got, bob.due) == (3, 4)
    assert (cyd.got, cyd.due) == (3, 2)
    assert longest_run(runs, {"bob": 2, "cyd": 1}) == 3


def test_without_runs_nothing_is_due() -> None:
    assert [s.due for s in shares_got([], {"bob": 2, "cyd": 1})] == [0, 0]
    assert longest_run([], {}) == 0
