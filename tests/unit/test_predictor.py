"""What the history of a device says of the jobs that come."""

import hashlib
import tracemalloc
from collections.abc import Sequence

import pytest
from cadenza_server.engine.predictor import ERRORS_MAX, KEYS_MAX, Predictor, make_workload, measure_error
from cadenza_server.model.settings import SECOND
from hypothesis import given
from hypothesis import strategies as st

MS = SECOND // 1000
lengths = st.integers(1, 3600 * SECOND)


def workload(name: str = "ghz", *, work: int = 1000, qubits: int | None = 4, size: int = 700) -> bytes:
    digests = tuple(hashlib.sha256(part.encode()).digest() for part in name.split())
    return make_workload("SAMPLER", digests, qubits=qubits, size=size, work=work)


def learnt(*runs: int, predictor: Predictor | None = None, user: str = "ada", **known: object) -> Predictor:
    predictor = predictor or Predictor(["aer", "aer_noisy"])
    for length in runs:
        predictor.learn("aer", user, workload(**known), None, SECOND, length)  # type: ignore[arg-type]
    return predictor


def test_without_history_nothing_is_known_but_a_limit_that_was_asked_for() -> None:
    predictor = Predictor(["aer"])
    assert predictor.estimate("aer", "ada", workload()) is None
    assert predictor.estimate("aer", "ada", workload(), limit=5 * SECOND) == 5 * SECOND
    assert predictor.estimate("aer", "ada", workload(), hint=3 * SECOND, limit=5 * SECOND) == 5 * SECOND
    assert predictor.estimate("aer", "ada", None, limit=5 * SECOND) == 5 * SECOND


def test_a_device_that_is_not_there_knows_nothing_and_learns_nothing() -> None:
    predictor = Predictor(["aer"])
    predictor.learn("gone", "ada", workload(), None, SECOND, MS)
    assert predictor.estimate("gone", "ada", workload(), limit=SECOND) == SECOND
    assert predictor.estimate(None, "ada", workload()) is None


def test_a_circuit_is_expected_to_take_what_it_took() -> None:
    assert learnt(7 * MS).estimate("aer", "ada", workload(), limit=5 * SECOND) == 7 * MS


def test_each_device_has_its_own_history() -> None:
    assert learnt(7 * MS).estimate("aer_noisy", "ada", workload()) is None


def test_one_slow_run_among_five_does_not_count() -> None:
    assert learnt(600 * MS, 2 * MS, 3 * MS).estimate("aer", "ada", workload()) == 3 * MS
    assert learnt(600 * MS, 2 * MS).estimate("aer", "ada", workload()) == 600 * MS


def test_old_runs_are_forgotten() -> None:
    assert learnt(*[SECOND] * 50, *[MS] * 3).estimate("aer", "ada", workload()) == MS


def test_more_work_than_ever_takes_longer_in_proportion_and_less_no_shorter() -> None:
    predictor = learnt(10 * MS, work=1000)
    assert predictor.estimate("aer", "ada", workload(work=100_000)) == 1000 * MS
    assert predictor.estimate("aer", "ada", workload(work=10)) == 10 * MS
    learnt(30 * MS, predictor=predictor, work=100_000)
    assert predictor.estimate("aer", "ada", workload(work=100_000)) == 30 * MS


def test_a_thousand_shots_and_1024_are_the_same_work() -> None:
    predictor = learnt(10 * MS, work=1000)
    assert predictor.estimate("aer", "ada", workload(work=1024)) == 10 * MS


def test_an_unknown_circuit_takes_what_others_of_its_shape_took() -> None:
    predictor = learnt(10 * MS)
    assert predictor.estimate("aer", "ada", workload("other", size=800)) == 10 * MS
    assert predictor.estimate("aer", "bob", workload("other")) == 10 * MS
    for other in (workload("other", qubits=5), workload("other", size=5000), workload("other", work=9000)):
        assert predictor.estimate("aer", "ada", other) is None


def test_what_others_ran_is_not_told_apart() -> None:
    predictor = learnt(10 * MS, user="ada")
    learnt(70 * MS, 70 * MS, predictor=predictor, user="ada", name="other")
    same, new = (predictor.estimate("aer", "bob", workload(name)) for name in ("ghz", "new"))
    assert same == new == 70 * MS


def test_several_circuits_are_known_together_and_in_their_order() -> None:
    assert workload("a b") != workload("b a")
    assert learnt(9 * MS, name="a b").estimate("aer", "ada", workload("a b")) == 9 * MS


def test_a_hint_counts_as_far_as_earlier_ones_of_the_user_were_right() -> None:
    predictor = Predictor(["aer"])
    predictor.learn("aer", "ada", workload("a"), 100 * MS, SECOND, 10 * MS)
    new = workload("b", qubits=9)
    assert predictor.estimate("aer", "ada", new, hint=50 * MS, limit=SECOND) == 5 * MS
    assert predictor.estimate("aer", "ada", new, limit=SECOND) == SECOND
    assert predictor.estimate("aer", "bob", new, hint=50 * MS, limit=SECOND) == SECOND


@given(st.lists(lengths, min_size=1, max_size=20))
def test_an_estimate_lies_among_the_latest_runs(runs: list[int]) -> None:
    found = learnt(*runs).estimate("aer", "ada", workload())
    assert found in runs[-5:]


@given(st.lists(lengths, min_size=1, max_size=8), st.integers(0, 2**70), st.integers(0, 2**70))
def test_an_estimate_of_other_work_is_never_less_than_the_shortest_run(runs: list[int], known: int, asked: int) -> None:
    found = learnt(*runs, work=known).estimate("aer", "ada", workload(work=asked))
    assert found is not None
    assert found >= min(runs)


def test_the_memory_of_a_device_is_bounded() -> None:
    predictor = Predictor(["aer"])
    tracemalloc.start()
    try:
        for number in range(2 * KEYS_MAX):
            predictor.learn("aer", "ada", workload(str(number)), None, SECOND, MS)
        used = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert used < 10_000_000
    assert predictor.estimate("aer", "ada", workload("0", qubits=5)) is None
    assert predictor.estimate("aer", "ada", workload(str(2 * KEYS_MAX - 1), qubits=5)) == MS


def test_the_digests_of_jobs_of_many_circuits_are_not_kept() -> None:
    def make(job: int) -> None:
        make_workload("SAMPLER", tuple(b"%8d%24d" % (job, pub) for pub in range(1_000)), qubits=4, size=700, work=job)

    make(0)
    tracemalloc.start()
    for job in range(1, 50):
        make(job)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 100_000  # 49,000 digests of 65 bytes are 3 MB


def test_what_runs_is_remembered_longest() -> None:
    predictor = Predictor(["aer"], keys_max=7)
    for number in range(20):
        learnt(5 * MS, predictor=predictor, name="kept")
        assert predictor.estimate("aer", "ada", workload("kept")) == 5 * MS
        learnt(MS, predictor=predictor, name=str(number))


# --- errors -----------------------------------------------------------------------------------------------------------
def test_without_runs_there_is_no_error() -> None:
    assert Predictor(["aer"]).error("aer") is None


def test_the_error_tells_factors_and_differences() -> None:
    error = measure_error([(10, 10)] * 5 + [(10, 20)] * 4 + [(10, 1)])
    assert error is not None
    assert (error.run_count, error.factor_p50, error.factor_p90) == (10, 1.0, 2.0)
    assert (error.difference_p50_ns, error.difference_p90_ns) == (0, 10)


def test_the_error_is_of_the_latest_runs_of_one_device() -> None:
    predictor = learnt(*[SECOND] * ERRORS_MAX, *[2 * SECOND] * 2)
    error = predictor.error("aer")
    assert error is not None
    assert (error.run_count, error.factor_p50, error.difference_p90_ns) == (ERRORS_MAX, 1.0, 0)
    assert predictor.error("aer_noisy") is None


@given(st.lists(st.tuples(lengths, lengths), min_size=1, max_size=50))
def test_errors_are_ordered_and_do_not_care_which_side_is_longer(runs: Sequence[tuple[int, int]]) -> None:
    error = measure_error(runs)
    assert error is not None
    assert 1.0 <= error.factor_p50 <= error.factor_p90
    assert 0 <= error.difference_p50_ns <= error.difference_p90_ns
    assert error == measure_error([(length, estimate) for estimate, length in runs])
    within = sum(max(pair) / min(pair) <= error.factor_p90 for pair in runs)
    assert within >= 0.9 * len(runs)


@pytest.mark.parametrize("work", [0, 1, 2**63, 2**80])
def test_any_amount_of_work_can_be_written_down(work: int) -> None:
    assert len(workload(work=work)) == 24
