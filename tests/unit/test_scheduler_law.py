"""Rules of semantics.md that the scenario files of the suite leave out: each as a small scenario, derived by hand."""

from collections.abc import Callable
from typing import cast

import pytest
from cadenza_server.simulation import differences, parse_scenario, simulate

import _fastqueue
from _fastqueue import reference

QUEUES = {
    "compiled": _fastqueue.Queue,
    "reference": cast("Callable[[int], _fastqueue.Queue]", reference.Queue),
}

LAW = {
    # --- 2: one instant ---------------------------------------------------------------------------------------------
    "expiry_comes_before_the_idle_timeout_of_the_same_instant": """
devices: {qpu: {}}
events:
  - {at: 0, create_session: s1, user: a, max_time: 15, interactive_ttl: 10}
  - {at: 0, submit: a1, session: s1, run: 5}
expect:
  sessions: {s1: [[0, OPEN], [0, ACTIVE], [15, CLOSED, EXPIRED]]}
  charged: {a: 15}
""",
    "idle_timeout_of_zero_lets_go_before_the_commands_of_the_instant": """
devices: {qpu: {}}
events:
  - {at: 0, create_session: s1, user: a, interactive_ttl: 0}
  - {at: 0, submit: a1, session: s1, run: 5}
  - {at: 1, submit: b1, user: b, run: 5}
  - {at: 5, submit: a2, session: s1, run: 2}
until: 20
expect:
  runs: [[a1, 0, 5], [b1, 5, 10], [a2, 10, 12]]
  sessions: {s1: [[0, OPEN], [0, ACTIVE], [5, INACTIVE], [10, ACTIVE], [12, INACTIVE]]}
  charged: {a: 7, b: 5}
""",
    "cache_deadline_that_an_expiry_makes_due_fires_at_once": """
devices: {qpu: {session_cache_ttl: 0}}
events:
  - {at: 0, create_session: s1, user: a, max_time: 10}
  - {at: 0, submit: a1, session: s1, run: 15}
  - {at: 0, submit: a2, session: s1, run: 1}
  - {at: 10, submit: a3, session: s1, run: 1}
expect:
  runs: [[a1, 0, 15]]
  jobs: {a1: {state: SUCCEEDED}, a2: {state: FAILED, reason: SESSION_CACHE_EXPIRED}}
  rejected: [{at: 10, event: a3, code: FAILED_PRECONDITION}]
""",
    "cache_deadline_that_a_batch_makes_due_at_rule_2_fires_before_rule_3": """
devices: {qpu: {session_cache_ttl: 0}}
events:
  - {at: 0, create_session: s1, user: a, mode: BATCH, max_time: 20}
  - {at: 0, submit: a1, session: s1, run: 10, estimate: 10}
  - {at: 0, submit: a2, session: s1, run: 11, estimate: 11}
expect:
  runs: [[a1, 0, 10]]
  jobs: {a1: {state: SUCCEEDED}, a2: {state: FAILED, reason: SESSION_CACHE_EXPIRED}}
  sessions: {s1: [[0, OPEN], [0, ACTIVE], [10, CLOSED, EXPIRED]]}
""",
    "draining_session_whose_last_job_ends_at_its_expiry_is_closed_by_its_close": """
devices: {qpu: {}}
events:
  - {at: 0, create_session: s1, user: a, max_time: 10}
  - {at: 0, submit: a1, session: s1, run: 10}
  - {at: 5, close_session: s1, pending: DRAIN}
expect:
  sessions: {s1: [[0, OPEN], [0, ACTIVE], [5, DRAINING], [10, CLOSED, CLOSED_BY_USER]]}
""",
    "window_that_starts_now_takes_the_device_before_dispatch": """
devices: {qpu: {}}
events:
  - {at: 0, reserve: r1, holder: lab, start: 0, end: 10}
  - {at: 0, submit: b1, user: b, run: 1}
expect: {runs: [[b1, 10, 11]]}
""",
    "runs_that_start_at_one_instant_do_so_by_device_name": """
devices: {q2: {}, q1: {}}
events:
  - {at: 0, submit: b2, user: b, device: q2, run: 1}
  - {at: 0, submit: b1, user: b, device: q1, run: 1}
expect:
  runs: [{job: b1, device: q1, start: 0}, {job: b2, device: q2, start: 0}]
""",
    # --- 4: jobs ----------------------------------------------------------------------------------------------------
    "run_that_ends_exactly_at_its_limit_succeeds_and_a_loss_at_its_limit_counts": """
devices: {qpu: {}}
events:
  - {at: 0, submit: b1, user: b, run: 5, limit: 5}
  - {at: 0, submit: b2, user: b, run: 10, limit: 5, worker_lost: [5]}
  - {at: 0, submit: b3, user: b, run: 5, worker_lost: [6]}
expect:
  runs: [[b1, 0, 5], [b2, 5, 10, WORKER_LOST], [b2, 10, 15, CANCELLED], [b3, 15, 20]]
  charged: {b: 15}
""",
    "lost_job_of_a_session_closed_with_fail_queued_fails_as_session_closed": """
devices: {qpu: {}}
events:
  - {at: 0, create_session: s1, user: a}
  - {at: 0, submit: a1, session: s1, run: 10, worker_lost: [6]}
  - {at: 4, close_session: s1}
expect:
  runs: [[a1, 0, 6, WORKER_LOST]]
  jobs: {a1: {state: FAILED, reason: SESSION_CLOSED}}
  sessions: {s1: [[0, OPEN], [0, ACTIVE], [4, DRAINING], [6, CLOSED, CLOSED_BY_USER]]}
  charged: {}
""",
    "lost_job_of_a_cancelled_session_is_cancelled": """
devices: {qpu: {}}
events:
  - {at: 0, create_session: s1, user: a}
  - {at: 0, submit: a1, session: s1, run: 10, worker_lost: [6]}
  - {at: 4, cancel_session: s1}
expect:
  jobs: {a1: {state: CANCELLED, reason: SESSION_CANCELLED}}
  sessions: {s1: [[0, OPEN], [0, ACTIVE], [4, DRAINING], [6, CLOSED, CANCELLED_BY_USER]]}
""",
    "lost_job_of_a_session_that_drains_is_queued_again": """
devices: {qpu: {}}
events:
  - {at: 0, create_session: s1, user: a}
  - {at: 0, submit: a1, session: s1, run: 10, worker_lost: [6]}
  - {at: 1, submit: b1, user: b, run: 1}
  - {at: 4, close_session: s1, pending: DRAIN}
expect:
  runs: [[a1, 0, 6, WORKER_LOST], [a1, 6, 16], [b1, 16, 17]]
  sessions: {s1: [[0, OPEN], [0, ACTIVE], [4, DRAINING], [16, CLOSED, CLOSED_BY_USER]]}
  charged: {a: 10, b: 1}
""",
    "lost_job_fails_as_what_happened_first_that_would_have_failed_it": """
devices: {qpu: {}}
events:
  - {at: 0, create_session: s1, user: a, max_time: 8}
  - {at: 0, submit: a1, session: s1, run: 10, worker_lost: [9]}
  - {at: 4, close_session: s1, pending: DRAIN}
  - {at: 5, close_session: s1, pending: FAIL_QUEUED}
  - {at: 6, cancel_session: s1}
expect:
  jobs: {a1: {state: FAILED, reason: SESSION_CLOSED}}
  sessions: {s1: [[0, OPEN], [0, ACTIVE], [4, DRAINING], [8, CLOSED, EXPIRED]]}
""",
    "lost_job_of_an_expired_session_is_a_fair_share_job": """
devices: {qpu: {}}
events:
  - {at: 0, submit: b1, user: b, run: 1}
  - {at: 0, create_session: s1, user: a, max_time: 5}
  - {at: 0, submit: a1, session: s1, run: 10, worker_lost: [6]}
  - {at: 0, submit: a2, user: a, run: 1, priority: 1}
  - {at: 3, submit: b2, user: b, run: 1}
expect:
  runs: [[b1, 0, 1], [a2, 1, 2], [a1, 2, 8, WORKER_LOST], [b2, 8, 9], [a1, 9, 19]]
  sessions: {s1: [[0, OPEN], [2, ACTIVE], [7, CLOSED, EXPIRED]]}
  charged: {a: 11, b: 2}
""",
    "lost_job_of_an_expired_session_fails_under_on_expiry_fail": """
devices: {qpu: {on_expiry: FAIL}}
events:
  - {at: 0, create_session: s1, user: a, max_time: 5}
  - {at: 0, submit: a1, session: s1, run: 10, worker_lost: [6]}
expect:
  jobs: {a1: {state: FAILED, reason: SESSION_EXPIRED}}
  sessions: {s1: [[0, OPEN], [0, ACTIVE], [5, CLOSED, EXPIRED]]}
""",
    "lost_job_after_the_cache_deadline_fails": """
devices: {qpu: {session_cache_ttl: 3}}
events:
  - {at: 0, create_session: s1, user: a, max_time: 5}
  - {at: 0, submit: a1, session: s1, run: 10, worker_lost: [9]}
expect:
  runs: [[a1, 0, 9, WORKER_LOST]]
  jobs: {a1: {state: FAILED, reason: SESSION_CACHE_EXPIRED}}
""",
    "lost_job_at_the_cache_deadline_fails": """
devices: {qpu: {session_cache_ttl: 3}}
events:
  - {at: 0, create_session: s1, user: a, max_time: 5}
  - {at: 0, submit: a1, session: s1, run: 10, worker_lost: [8]}
expect:
  runs: [[a1, 0, 8, WORKER_LOST]]
  jobs: {a1: {state: FAILED, reason: SESSION_CACHE_EXPIRED}}
""",
    "last_allowed_loss_is_worker_lost_whatever_became_of_the_session": """
devices: {qpu: {max_attempts: 2}}
events:
  - {at: 0, create_session: s1, user: a}
  - {at: 0, submit: a1, session: s1, run: 10, worker_lost: [1, 5]}
  - {at: 3, cancel_session: s1}
expect:
  runs: [[a1, 0, 1, WORKER_LOST], [a1, 1, 6, WORKER_LOST]]
  jobs: {a1: {state: FAILED, reason: WORKER_LOST}}
  sessions: {s1: [[0, OPEN], [0, ACTIVE], [3, DRAINING], [6, CLOSED, CANCELLED_BY_USER]]}
""",
    "lost_job_of_a_session_whose_reservation_ended_fails_so": """
devices: {qpu: {}}
events:
  - {at: 0, reserve: r1, holder: a, start: 0, end: 10}
  - {at: 0, create_session: s1, user: a, reservation: r1}
  - {at: 0, submit: a1, session: s1, run: 20, worker_lost: [12]}
expect:
  runs: [[a1, 0, 12, WORKER_LOST]]
  jobs: {a1: {state: FAILED, reason: RESERVATION_ENDED}}
""",
    "lost_calibration_goes_back_to_its_place": """
devices: {qpu: {max_attempts: 2}}
events:
  - {at: 0, submit: c1, class: CALIBRATION, run: 5, worker_lost: [2]}
  - {at: 1, submit: c2, class: CALIBRATION, run: 1, priority: 100}
expect:
  runs: [[c1, 0, 2, WORKER_LOST], [c1, 2, 7], [c2, 7, 8]]
  charged: {}
""",
    # --- 5.1 and 5.4: states, closing -------------------------------------------------------------------------------
    "stronger_close_of_a_draining_session_takes_effect_and_a_weaker_one_does_not": """
devices: {qpu: {}}
events:
  - {at: 0, create_session: s1, user: a}
  - {at: 0, submit: a1, session: s1, run: 10}
  - {at: 0, submit: a2, session: s1, run: 1}
  - {at: 1, create_session: s2, user: b}
  - {at: 1, submit: b1, session: s2, run: 1}
  - {at: 2, close_session: s1, pending: DRAIN}
  - {at: 2, close_session: s2, pending: DRAIN}
  - {at: 3, cancel_session: s1}
  - {at: 3, close_session: s2, pending: FAIL_QUEUED}
  - {at: 4, close_session: s1, pending: DRAIN}
  - {at: 11, close_session: s1, pending: FAIL_QUEUED}
expect:
  runs: [[a1, 0, 10]]
  jobs:
    a1: {state: SUCCEEDED}
    a2: {state: CANCELLED, reason: SESSION_CANCELLED}
    b1: {state: FAILED, reason: SESSION_CLOSED}
  sessions:
    s1: [[0, OPEN], [0, ACTIVE], [2, DRAINING], [10, CLOSED, CANCELLED_BY_USER]]
    s2: [[1, OPEN], [2, DRAINING], [3, CLOSED, CLOSED_BY_USER]]
  rejected: []
""",
    "close_of_an_idle_session_ends_its_hold": """
devices: {qpu: {}}
events:
  - {at: 0, create_session: s1, user: a}
  - {at: 0, submit: a1, session: s1, run: 5}
  - {at: 1, submit: b1, user: b, run: 1}
  - {at: 8, close_session: s1, pending: DRAIN}
expect:
  runs: [[a1, 0, 5], [b1, 8, 9]]
  sessions: {s1: [[0, OPEN], [0, ACTIVE], [8, CLOSED, CLOSED_BY_USER]]}
  charged: {a: 8, b: 1}
""",
    "inactive_session_with_queued_jobs_drains": """
devices: {qpu: {}}
events:
  - {at: 0, create_session: s1, user: a, interactive_ttl: 1}
  - {at: 0, submit: a1, session: s1, run: 5}
  - {at: 1, submit: b1, user: b, run: 10}
  - {at: 7, submit: a2, session: s1, run: 2}
  - {at: 8, close_session: s1, pending: DRAIN}
expect:
  runs: [[a1, 0, 5], [b1, 6, 16], [a2, 16, 18]]
  sessions: {s1: [[0, OPEN], [0, ACTIVE], [6, INACTIVE], [8, DRAINING], [18, CLOSED, CLOSED_BY_USER]]}
  charged: {a: 8, b: 10}
""",
    "draining_session_whose_last_queued_job_is_cancelled_closes": """
devices: {qpu: {first_job: INDEPENDENT}}
events:
  - {at: 0, submit: b1, user: b, run: 10}
  - {at: 1, create_session: s1, user: a}
  - {at: 1, submit: a1, session: s1, run: 1}
  - {at: 2, close_session: s1, pending: DRAIN}
  - {at: 3, cancel: a1}
expect:
  sessions: {s1: [[1, OPEN], [2, DRAINING], [3, CLOSED, CLOSED_BY_USER]]}
""",
    # --- 5.2: clocks ------------------------------------------------------------------------------------------------
    "idle_clock_whose_condition_comes_true_during_a_calibration_starts_at_its_end": """
devices: {qpu: {}}
events:
  - {at: 0, create_session: s1, user: a, interactive_ttl: 10}
  - {at: 0, submit: a1, session: s1, run: 5}
  - {at: 1, submit: c1, class: CALIBRATION, run: 10}
  - {at: 7, submit: a2, session: s1, run: 2}
  - {at: 9, cancel: a2}
until: 40
expect:
  runs: [[a1, 0, 5], [c1, 5, 15]]
  sessions: {s1: [[0, OPEN], [0, ACTIVE], [25, INACTIVE]]}
  charged: {a: 15}
""",
    "idle_clock_goes_on_after_a_calibration_that_is_cancelled": """
devices: {qpu: {}}
events:
  - {at: 0, create_session: s1, user: a, interactive_ttl: 10}
  - {at: 0, submit: a1, session: s1, run: 5}
  - {at: 8, submit: c1, class: CALIBRATION, run: 100}
  - {at: 20, cancel: c1}
until: 40
expect:
  runs: [[a1, 0, 5], [c1, 8, 20, CANCELLED]]
  sessions: {s1: [[0, OPEN], [0, ACTIVE], [27, INACTIVE]]}
  charged: {a: 15}
""",
    "cancel_of_the_last_queued_job_starts_the_idle_clock_at_once": """
devices: {qpu: {interactive_ttl_dedicated: 10}}
events:
  - {at: 0, reserve: r1, holder: b, start: 50, end: 60}
  - {at: 0, create_session: s1, user: a}
  - {at: 0, submit: a1, session: s1, run: 5}
  - {at: 0, submit: a2, session: s1, run: 100, estimate: 100}
  - {at: 20, cancel: a2}
until: 40
expect:
  runs: [[a1, 0, 5]]
  sessions: {s1: [[0, OPEN], [0, ACTIVE], [30, INACTIVE]]}
  charged: {a: 30}
""",
    "unused_clock_of_a_bound_session_starts_with_its_window": """
devices: {qpu: {unused_ttl: 50, first_job: INDEPENDENT}}
events:
  - {at: 0, reserve: r1, holder: lab, start: 100, end: 1000}
  - {at: 0, create_session: s1, user: lab/a, reservation: r1}
  - {at: 0, create_session: s2, user: lab/b, reservation: r1}
  - {at: 10, submit: b1, session: s2, run: 1}
  - {at: 20, cancel: b1}
  - {at: 120, create_session: s3, user: lab/c, reservation: r1}
expect:
  sessions:
    s1: [[0, OPEN], [150, CLOSED, UNUSED]]
    s2: [[0, OPEN], [150, CLOSED, UNUSED]]
    s3: [[120, OPEN], [170, CLOSED, UNUSED]]
""",
    # --- 5.3: order -------------------------------------------------------------------------------------------------
    "first_job_is_first_whatever_its_priority": """
devices: {qpu: {}}
events:
  - {at: 0, submit: c1, class: CALIBRATION, run: 1}
  - {at: 0, create_session: s1, user: a}
  - {at: 0, submit: a1, session: s1, run: 1, priority: -5}
  - {at: 0, submit: a2, session: s1, run: 1}
  - {at: 0, submit: a3, session: s1, run: 1, priority: 9}
until: 5
expect: {runs: [[c1, 0, 1], [a1, 1, 2], [a3, 2, 3], [a2, 3, 4]]}
""",
    "estimates_order_a_batch_by_default_and_capped_by_the_limit": """
devices: {qpu: {default_estimate: 4}}
events:
  - {at: 0, create_session: s1, user: a, mode: BATCH}
  - {at: 0, submit: a1, session: s1, run: 1}
  - {at: 0, submit: a2, session: s1, run: 1, estimate: 5}
  - {at: 0, submit: a3, session: s1, run: 1}
  - {at: 0, submit: a4, session: s1, run: 1, estimate: 9, limit: 3}
until: 5
expect: {runs: [[a1, 0, 1], [a4, 1, 2], [a3, 2, 3], [a2, 3, 4]]}
""",
    "batch_passes_over_a_first_job_that_does_not_fit_any_more": """
devices: {qpu: {}}
events:
  - {at: 0, create_session: s1, user: a, mode: BATCH, max_time: 20}
  - {at: 0, submit: a1, session: s1, run: 15, estimate: 15, worker_lost: [10]}
  - {at: 0, submit: a2, session: s1, run: 5, estimate: 5}
expect:
  runs: [[a1, 0, 10, WORKER_LOST], [a2, 10, 15], [a1, 15, 30]]
  sessions: {s1: [[0, OPEN], [0, ACTIVE], [15, CLOSED, EXPIRED]]}
""",
    "cancel_of_a_first_job_that_was_passed_over_closes_the_batch_and_the_running_job_goes_on": """
devices: {qpu: {}}
events:
  - {at: 0, create_session: s1, user: a, mode: BATCH, max_time: 20}
  - {at: 0, submit: a1, session: s1, run: 15, estimate: 15, worker_lost: [10]}
  - {at: 0, submit: a2, session: s1, run: 5, estimate: 5}
  - {at: 0, submit: a3, session: s1, run: 5, estimate: 5, worker_lost: [1]}
  - {at: 12, cancel: a1}
expect:
  runs: [[a1, 0, 10, WORKER_LOST], [a2, 10, 15]]
  jobs:
    a1: {state: CANCELLED, reason: CANCELLED_BY_USER}
    a2: {state: SUCCEEDED}
    a3: {state: FAILED, reason: FIRST_JOB_CANCELLED}
  sessions: {s1: [[0, OPEN], [0, ACTIVE], [12, CLOSED, FIRST_JOB_CANCELLED]]}
""",
    "inactive_batch_that_fits_nothing_is_no_candidate": """
devices: {qpu: {}}
events:
  - {at: 0, create_session: s1, user: a, mode: BATCH, max_time: 20}
  - {at: 0, submit: a1, session: s1, run: 5}
  - {at: 6, submit: b1, user: b, run: 12}
  - {at: 10, submit: a2, session: s1, run: 5, estimate: 5}
  - {at: 18, submit: b2, user: b, run: 1}
expect:
  runs: [[a1, 0, 5], [b1, 6, 18], [b2, 18, 19], [a2, 20, 25]]
  sessions: {s1: [[0, OPEN], [0, ACTIVE], [6, INACTIVE], [20, CLOSED, EXPIRED]]}
""",
    "every_job_of_a_batch_fits_before_it_has_started": """
devices: {qpu: {}}
events:
  - {at: 0, create_session: s1, user: a, mode: BATCH, max_time: 5}
  - {at: 0, submit: a1, session: s1, run: 10, estimate: 10}
expect:
  runs: [[a1, 0, 10]]
  sessions: {s1: [[0, OPEN], [0, ACTIVE], [5, CLOSED, EXPIRED]]}
""",
    "batch_bound_to_a_reservation_runs_only_what_ends_before_its_end": """
devices: {qpu: {on_expiry: FAIL}}
events:
  - {at: 0, reserve: r1, holder: a, start: 0, end: 20}
  - {at: 0, create_session: s1, user: a, mode: BATCH, reservation: r1}
  - {at: 0, submit: a1, session: s1, run: 10, estimate: 10}
  - {at: 0, submit: a2, session: s1, run: 10, estimate: 10}
  - {at: 0, submit: a3, session: s1, run: 11, estimate: 11}
expect:
  runs: [[a1, 0, 10], [a2, 10, 20]]
  jobs: {a1: {state: SUCCEEDED}, a2: {state: SUCCEEDED}, a3: {state: FAILED, reason: RESERVATION_ENDED}}
  sessions: {s1: [[0, OPEN], [0, ACTIVE], [20, CLOSED, RESERVATION_ENDED]]}
""",
    # --- 5.5 and 5.6: expiry, first job -----------------------------------------------------------------------------
    "job_for_an_expired_session_is_fair_share_until_the_cache_deadline": """
devices: {qpu: {session_cache_ttl: 20}}
events:
  - {at: 0, create_session: s1, user: a, max_time: 10}
  - {at: 0, submit: a1, session: s1, run: 5}
  - {at: 12, submit: b1, user: b, run: 100}
  - {at: 15, submit: a2, session: s1, run: 1}
  - {at: 16, submit: a3, session: s1, run: 1, user: b}
  - {at: 30, submit: a4, session: s1, run: 1}
expect:
  runs: [[a1, 0, 5], [b1, 12, 112]]
  jobs: {a1: {state: SUCCEEDED}, a2: {state: FAILED, reason: SESSION_CACHE_EXPIRED}, b1: {state: SUCCEEDED}}
  sessions: {s1: [[0, OPEN], [0, ACTIVE], [10, CLOSED, EXPIRED]]}
  charged: {a: 10, b: 100}
  rejected:
    - {at: 16, event: a3, code: PERMISSION_DENIED}
    - {at: 30, event: a4, code: FAILED_PRECONDITION}
""",
    "session_closed_before_it_expired_takes_no_late_jobs_but_its_queued_ones_go_on": """
devices: {qpu: {}}
events:
  - {at: 0, create_session: s1, user: a, max_time: 10}
  - {at: 0, submit: a1, session: s1, run: 12}
  - {at: 0, submit: a2, session: s1, run: 2}
  - {at: 4, close_session: s1, pending: DRAIN}
  - {at: 11, submit: a3, session: s1, run: 1}
expect:
  runs: [[a1, 0, 12], [a2, 12, 14]]
  sessions: {s1: [[0, OPEN], [0, ACTIVE], [4, DRAINING], [10, CLOSED, EXPIRED]]}
  rejected: [{at: 11, event: a3, code: FAILED_PRECONDITION}]
""",
    "expiry_of_an_inactive_session_releases_its_jobs": """
devices: {qpu: {}}
events:
  - {at: 0, create_session: s1, user: a, max_time: 10, interactive_ttl: 1}
  - {at: 0, submit: a1, session: s1, run: 1}
  - {at: 2, submit: b1, user: b, run: 10}
  - {at: 3, submit: a2, session: s1, run: 1, priority: -1}
  - {at: 4, submit: a3, user: a, run: 1}
expect:
  runs: [[a1, 0, 1], [b1, 2, 12], [a3, 12, 13], [a2, 13, 14]]
  sessions: {s1: [[0, OPEN], [0, ACTIVE], [2, INACTIVE], [10, CLOSED, EXPIRED]]}
""",
    "first_job_that_ran_too_long_does_not_close_its_session": """
devices: {qpu: {interactive_ttl_dedicated: 1}}
events:
  - {at: 0, create_session: s1, user: a}
  - {at: 0, submit: a1, session: s1, run: 10, limit: 5}
  - {at: 0, submit: a2, session: s1, run: 1}
until: 10
expect:
  runs: [[a1, 0, 5, CANCELLED], [a2, 5, 6]]
  sessions: {s1: [[0, OPEN], [0, ACTIVE], [7, INACTIVE]]}
""",
    "cancel_of_the_first_job_of_a_draining_session_closes_it_for_that": """
devices: {qpu: {}}
events:
  - {at: 0, create_session: s1, user: a}
  - {at: 0, submit: a1, session: s1, run: 10}
  - {at: 0, submit: a2, session: s1, run: 1}
  - {at: 2, close_session: s1, pending: DRAIN}
  - {at: 3, create_session: s2, user: b}
  - {at: 3, submit: b1, session: s2, run: 1}
  - {at: 4, cancel: a1}
  - {at: 4, close_session: s2, pending: DRAIN}
  - {at: 4, cancel: b1}
expect:
  jobs:
    a1: {state: CANCELLED, reason: CANCELLED_BY_USER}
    a2: {state: FAILED, reason: FIRST_JOB_CANCELLED}
    b1: {state: CANCELLED, reason: CANCELLED_BY_USER}
  sessions:
    s1: [[0, OPEN], [0, ACTIVE], [2, DRAINING], [4, CLOSED, FIRST_JOB_CANCELLED]]
    s2: [[3, OPEN], [4, DRAINING], [4, CLOSED, FIRST_JOB_CANCELLED]]
""",
    "cancel_of_a_later_job_or_of_a_released_first_job_closes_nothing_else": """
devices: {qpu: {session_cache_ttl: 100}}
events:
  - {at: 0, create_session: s1, user: a, mode: BATCH, max_time: 10}
  - {at: 0, submit: a1, session: s1, run: 9, estimate: 9, worker_lost: [4]}
  - {at: 0, submit: a2, session: s1, run: 20, estimate: 5}
  - {at: 0, submit: a3, session: s1, run: 1, estimate: 6}
  - {at: 12, cancel: a1}
expect:
  runs: [[a1, 0, 4, WORKER_LOST], [a2, 4, 24], [a3, 24, 25]]
  sessions: {s1: [[0, OPEN], [0, ACTIVE], [10, CLOSED, EXPIRED]]}
""",
    # --- 8: reservations --------------------------------------------------------------------------------------------
    "batch_of_which_nothing_may_start_before_a_window_yields": """
devices: {qpu: {}}
events:
  - {at: 0, reserve: r1, holder: lab, start: 20, end: 30}
  - {at: 0, create_session: s1, user: d, mode: BATCH}
  - {at: 0, submit: d1, session: s1, run: 10, estimate: 10}
  - {at: 0, submit: d2, session: s1, run: 11, estimate: 11}
  - {at: 1, submit: e1, user: e, run: 5, estimate: 5}
until: 50
expect:
  runs: [[d1, 0, 10], [e1, 10, 15], [d2, 30, 41]]
  sessions: {s1: [[0, OPEN], [0, ACTIVE], [10, INACTIVE], [30, ACTIVE], [42, INACTIVE]]}
  charged: {d: 21, e: 5}
""",
    "draining_batch_that_yields_stays_draining": """
devices: {qpu: {}}
events:
  - {at: 0, reserve: r1, holder: lab, start: 20, end: 30}
  - {at: 0, create_session: s1, user: d, mode: BATCH}
  - {at: 0, submit: d1, session: s1, run: 10, estimate: 10}
  - {at: 0, submit: d2, session: s1, run: 11, estimate: 11}
  - {at: 1, submit: e1, user: e, run: 5, estimate: 5}
  - {at: 2, close_session: s1, pending: DRAIN}
expect:
  runs: [[d1, 0, 10], [e1, 10, 15], [d2, 30, 41]]
  sessions: {s1: [[0, OPEN], [0, ACTIVE], [2, DRAINING], [41, CLOSED, CLOSED_BY_USER]]}
""",
    "window_of_someone_else_takes_the_device_from_a_draining_session": """
devices: {qpu: {}}
events:
  - {at: 0, reserve: r1, holder: lab, start: 10, end: 30}
  - {at: 0, create_session: s1, user: d}
  - {at: 0, submit: d1, session: s1, run: 12, estimate: 5}
  - {at: 0, submit: d2, session: s1, run: 5, estimate: 5}
  - {at: 2, close_session: s1, pending: DRAIN}
  - {at: 11, submit: a1, user: lab/a, run: 1}
  - {at: 12, submit: e1, user: e, run: 1}
expect:
  runs: [[d1, 0, 12], [a1, 12, 13], [e1, 30, 31], [d2, 31, 36]]
  sessions: {s1: [[0, OPEN], [0, ACTIVE], [2, DRAINING], [36, CLOSED, CLOSED_BY_USER]]}
""",
    "session_of_the_holder_that_is_not_bound_goes_on_past_the_end": """
devices: {qpu: {}}
events:
  - {at: 0, reserve: r1, holder: lab, start: 0, end: 10}
  - {at: 0, create_session: s1, user: lab/a, interactive_ttl: 10}
  - {at: 0, submit: a1, session: s1, run: 8}
  - {at: 1, submit: b1, user: b, run: 1}
  - {at: 12, submit: a2, session: s1, run: 1}
until: 30
expect:
  runs: [[a1, 0, 8], [a2, 12, 13], [b1, 23, 24]]
  sessions: {s1: [[0, OPEN], [0, ACTIVE], [23, INACTIVE]]}
""",
    "inside_a_window_a_job_looks_at_the_next_one": """
devices: {qpu: {}}
events:
  - {at: 0, reserve: r1, holder: lab, start: 0, end: 20}
  - {at: 0, reserve: r2, holder: uni, start: 20, end: 40}
  - {at: 5, submit: a1, user: lab/a, run: 25, estimate: 25}
  - {at: 5, submit: a2, user: lab/a, run: 10, estimate: 10}
  - {at: 6, submit: d1, user: uni/d, run: 1}
expect: {runs: [[a2, 5, 15], [d1, 20, 21], [a1, 40, 65]]}
""",
    "holder_of_the_next_window_may_start_what_does_not_fit_before_it": """
devices: {qpu: {}}
events:
  - {at: 0, reserve: r1, holder: lab, start: 10, end: 40}
  - {at: 0, submit: b1, user: b, run: 50, estimate: 50}
  - {at: 0, submit: a1, user: lab/a, run: 50, estimate: 50}
expect: {runs: [[a1, 0, 50], [b1, 50, 100]]}
""",
    "holder_who_is_known_only_later_is_the_holder": """
devices: {qpu: {}}
events:
  - {at: 0, reserve: r1, holder: lab/a, start: 10, end: 20}
  - {at: 11, submit: b1, user: lab/b, run: 1}
  - {at: 12, submit: a1, user: lab/a, run: 1}
  - {at: 30, reserve: r2, holder: uni, start: 40, end: 50}
  - {at: 30, submit: u1, user: uni/u, run: 20, estimate: 20}
expect: {runs: [[a1, 12, 13], [b1, 20, 21], [u1, 30, 50]]}
""",
    "calibration_is_not_bound_by_reservations": """
devices: {qpu: {}}
events:
  - {at: 0, reserve: r1, holder: lab, start: 5, end: 20}
  - {at: 4, submit: c1, class: CALIBRATION, run: 10}
  - {at: 6, submit: a1, user: lab/a, run: 1}
expect: {runs: [[c1, 4, 14], [a1, 14, 15]]}
""",
    "session_bound_to_a_reservation_is_refused_where_it_does_not_belong": """
devices: {q1: {}, q2: {}}
events:
  - {at: 0, reserve: r1, device: q1, holder: lab, start: 0, end: 10}
  - {at: 1, create_session: s1, device: q1, user: uni/d, reservation: r1}
  - {at: 1, create_session: s2, device: q2, user: lab/a, reservation: r1}
  - {at: 1, create_session: s3, device: q1, user: lab/a, reservation: r9}
  - {at: 10, create_session: s4, device: q1, user: lab/a, reservation: r1}
  - {at: 10, create_session: s4, device: q2, user: lab/a, reservation: r1}
expect:
  sessions: {}
  rejected:
    - {at: 1, event: s1, code: FAILED_PRECONDITION}
    - {at: 1, event: s2, code: INVALID_ARGUMENT}
    - {at: 1, event: s3, code: NOT_FOUND}
    - {at: 10, event: s4, code: FAILED_PRECONDITION}
    - {at: 10, event: s4, code: INVALID_ARGUMENT}
""",
    "reservation_in_the_past_or_without_length_is_refused": """
devices: {qpu: {}}
events:
  - {at: 5, reserve: r1, holder: lab, start: 4, end: 10}
  - {at: 5, reserve: r1, holder: lab, start: 10, end: 10}
  - {at: 5, reserve: r1, holder: lab//x, start: 5, end: 10}
  - {at: 5, reserve: r1, holder: lab, start: 5, end: 10}
  - {at: 6, reserve: r1, holder: lab, start: 10, end: 11}
  - {at: 6, reserve: r2, holder: lab, start: 9, end: 11}
  - {at: 6, reserve: r2, holder: lab, start: 10, end: 11}
expect:
  rejected:
    - {at: 5, event: r1, code: INVALID_ARGUMENT}
    - {at: 5, event: r1, code: INVALID_ARGUMENT}
    - {at: 5, event: r1, code: INVALID_ARGUMENT}
    - {at: 6, event: r1, code: ALREADY_EXISTS}
    - {at: 6, event: r2, code: FAILED_PRECONDITION}
""",
    # --- 9: calibration ---------------------------------------------------------------------------------------------
    "calibration_outside_dedicated_waits_for_a_dedicated_session_and_not_for_a_batch": """
profile: runtime-2024
devices: {qpu: {interactive_ttl_dedicated: 10, interactive_ttl_batch: 10}}
events:
  - {at: 0, create_session: s1, user: a}
  - {at: 0, submit: a1, session: s1, run: 5}
  - {at: 1, submit: c1, class: CALIBRATION, run: 1}
  - {at: 20, create_session: s2, user: b, mode: BATCH}
  - {at: 20, submit: b1, session: s2, run: 5}
  - {at: 21, submit: c2, class: CALIBRATION, run: 1}
until: 60
expect:
  runs: [[a1, 0, 5], [c1, 15, 16], [b1, 20, 25], [c2, 25, 26]]
  sessions: {s1: [[0, OPEN], [0, ACTIVE], [15, INACTIVE]], s2: [[20, OPEN], [20, ACTIVE], [36, INACTIVE]]}
  charged: {a: 15, b: 5}
""",
    "only_a_successful_calibration_starts_an_epoch_and_its_limit_counts": """
devices: {qpu: {limit: 3}}
events:
  - {at: 0, submit: c1, class: CALIBRATION, run: 5}
  - {at: 0, submit: c2, class: CALIBRATION, run: 1, fails: true}
  - {at: 0, submit: c3, class: CALIBRATION, run: 1}
  - {at: 0, submit: b1, user: b, run: 1}
expect:
  runs:
    - {job: c1, start: 0, end: 3, outcome: CANCELLED, epoch: 0}
    - {job: c2, start: 3, end: 4, outcome: FAILED, epoch: 0}
    - {job: c3, start: 4, end: 5, outcome: SUCCEEDED, epoch: 0}
    - {job: b1, start: 5, end: 6, outcome: SUCCEEDED, epoch: 1}
  jobs:
    c1: {state: CANCELLED, reason: RAN_TOO_LONG}
    c2: {state: FAILED, reason: EXECUTION_ERROR}
    c3: {state: SUCCEEDED}
    b1: {state: SUCCEEDED}
""",
    "automatic_calibration_counts_from_the_end_of_the_last_one_however_it_ended": """
devices: {qpu: {calibration_interval: 10, calibration_duration: 2}}
events:
  - {at: 5, submit: b1, user: b, run: 1}
  - {at: 5, submit: c1, class: CALIBRATION, run: 20}
  - {at: 11, cancel: c1}
  - {at: 20, submit: c2, class: CALIBRATION, run: 3}
until: 40
expect:
  runs: [[c1, 5, 11, CANCELLED], [b1, 11, 12], [c2, 20, 23], [calibration-qpu-1, 33, 35]]
""",
    # --- who may, and what is nonsense ------------------------------------------------------------------------------
    "the_first_code_that_applies_is_the_one_of_a_refusal": """
devices: {q1: {}, q2: {}}
events:
  - {at: 0, submit: a1, user: lab/a, device: q1, run: 100}
  - {at: 0, create_session: s1, user: lab/a, device: q1}
  - {at: 1, submit: x1, user: lab, device: q9, run: 0}
  - {at: 1, submit: x2, user: lab/b, session: s1, device: q2, run: 0}
  - {at: 1, submit: x3, user: lab/a, session: s1, device: q2, run: 1}
  - {at: 1, submit: a1, user: lab/b, device: q1, run: 0}
  - {at: 1, submit: a1, user: lab/b, device: q1, run: 1}
  - {at: 1, submit: x4, user: lab, device: q1, run: 1}
  - {at: 1, submit: x5, user: lab/a/c, device: q1, run: 1}
  - {at: 1, submit: x6, user: "lab//a", device: q1, run: 1}
  - {at: 1, submit: x7, user: lab/b, device: q1, run: 1, priority: 101}
  - {at: 1, submit: x8, user: lab/b, device: q1, run: 1, limit: 0}
  - {at: 1, submit: x9, user: lab/b, device: q1, run: 1, estimate: -1}
  - {at: 1, submit: x10, session: s1, class: CALIBRATION, run: 1}
  - {at: 1, submit: x11, user: lab/a, device: q1, class: CALIBRATION, run: 1}
  - {at: 1, create_session: s1, user: lab/b, device: q1}
  - {at: 1, create_session: s2, user: lab/b, device: q1, max_time: 0}
  - {at: 1, create_session: s2, user: lab/b, device: q1, interactive_ttl: -1}
  - {at: 1, create_session: s2, user: lab, device: q1}
  - {at: 1, cancel: a1, user: lab/b}
  - {at: 1, close_session: s1, user: lab/b}
  - {at: 1, cancel_session: s9}
  - {at: 1, submit: c1, device: q1, class: CALIBRATION, run: 1}
  - {at: 1, cancel: c1, user: lab/a}
  - {at: 2, submit: x1, user: lab/b, device: q2, run: 1}
until: 2
expect:
  rejected:
    - {at: 1, event: x1, code: NOT_FOUND}
    - {at: 1, event: x2, code: PERMISSION_DENIED}
    - {at: 1, event: x3, code: INVALID_ARGUMENT}
    - {at: 1, event: a1, code: INVALID_ARGUMENT}
    - {at: 1, event: a1, code: ALREADY_EXISTS}
    - {at: 1, event: x4, code: INVALID_ARGUMENT}
    - {at: 1, event: x5, code: INVALID_ARGUMENT}
    - {at: 1, event: x6, code: INVALID_ARGUMENT}
    - {at: 1, event: x7, code: INVALID_ARGUMENT}
    - {at: 1, event: x8, code: INVALID_ARGUMENT}
    - {at: 1, event: x9, code: INVALID_ARGUMENT}
    - {at: 1, event: x10, code: INVALID_ARGUMENT}
    - {at: 1, event: x11, code: PERMISSION_DENIED}
    - {at: 1, event: s1, code: ALREADY_EXISTS}
    - {at: 1, event: s2, code: INVALID_ARGUMENT}
    - {at: 1, event: s2, code: INVALID_ARGUMENT}
    - {at: 1, event: s2, code: INVALID_ARGUMENT}
    - {at: 1, event: a1, code: PERMISSION_DENIED}
    - {at: 1, event: s1, code: PERMISSION_DENIED}
    - {at: 1, event: s9, code: NOT_FOUND}
    - {at: 1, event: c1, code: PERMISSION_DENIED}
""",
    "refused_command_leaves_no_account_behind": """
devices: {qpu: {}}
events:
  - {at: 0, submit: x1, user: lab/a, run: 1, priority: 101}
  - {at: 0, submit: b1, user: lab, run: 1}
expect: {runs: [[b1, 0, 1]], rejected: [{at: 0, event: x1, code: INVALID_ARGUMENT}]}
""",
}


@pytest.mark.parametrize("queue", QUEUES)
@pytest.mark.parametrize("rule", LAW)
def test_law(rule: str, queue: str) -> None:
    scenario = parse_scenario(f"name: {rule}\n{LAW[rule]}")
    assert scenario.expect is not None
    assert differences(simulate(scenario, _queue=QUEUES[queue]), scenario.expect) == []
