"""What Prometheus is told. `docs/metrics.md` describes each metric, and a test compares it with this file.

What happens is counted as it happens; what is so now is asked for when somebody asks, on the event loop, in a time that
goes with the number of devices and accounts and not with that of jobs or users. Nothing here is global.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Final
from wsgiref.simple_server import WSGIRequestHandler

from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cadenza_server.engine import Figures, Observer
from cadenza_server.model.events import Event, HoldEnded, JobEnded, JobQueued, RunFinished, RunStarted, SessionJobsEnded
from cadenza_server.model.settings import SECOND
from cadenza_server.model.words import JobClass
from cadenza_server.store.batch import Batch

ACCOUNTS_MAX: Final = 200
"""Accounts whose usage is told; each is two series."""
LAG_INTERVAL_SECONDS: Final = 0.05
"""How often it is measured how late the event loop is."""
REQUEST_SECONDS_MAX: Final = 10.0
"""How long a connection may say nothing, or not read: it has a thread."""

ANSWER_SECONDS_MAX: Final = 5.0
"""How long who asks waits for the event loop."""

_LONG: Final = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60, 300, 900, 3_600, 14_400, 43_200, 86_400)
_SHORT: Final = (0.000_01, 0.000_03, 0.000_1, 0.000_3, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3)
_LAGS: Final = (0.001, 0.003, 0.01, 0.02, 0.03, 0.05, 0.1, 0.3, 1, 3)
_COUNTS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000)


class Metrics(Observer):
    """Counts, and serves what it counted. One for one server."""

    def __init__(self, devices: Sequence[str]) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        own = self.registry
        self._accepted = Counter(
            "cadenza_jobs_accepted", "Jobs that were queued.", ("device", "job_class"), registry=own
        )
        self._ended = Counter(
            "cadenza_jobs_ended",
            "Jobs that came to a final state; the reason is empty for SUCCEEDED.",
            ("device", "state", "reason"),
            registry=own,
        )
        self._runs_started = Counter("cadenza_runs_started", "Runs that started.", ("device", "rule"), registry=own)
        self._runs_ended = Counter("cadenza_runs_ended", "Runs that ended.", ("device", "outcome"), registry=own)
        self._waits = Histogram(
            "cadenza_job_waiting_seconds",
            "From a job's submission to its first start.",
            ("device", "job_class"),
            buckets=_LONG,
            registry=own,
        )
        self._runs = Histogram("cadenza_run_seconds", "Lengths of runs.", ("device",), buckets=_LONG, registry=own)
        self._decisions = Histogram(
            "cadenza_decision_seconds", "What the scheduler took for one instant.", buckets=_SHORT, registry=own
        )
        self._commits = Histogram(
            "cadenza_commit_seconds", "What the store took for one commit.", buckets=_SHORT, registry=own
        )
        self._commit_rows = Histogram("cadenza_commit_rows", "Rows in one commit.", buckets=_COUNTS, registry=own)
        self._commit_calls = Histogram(
            "cadenza_commit_calls", "Calls that one commit answered.", buckets=(0, *_COUNTS), registry=own
        )
        self._lag = Histogram(
            "cadenza_event_loop_lag_seconds", "How late the event loop was.", buckets=_LAGS, registry=own
        )
        self._slow = Counter(
            "cadenza_watches_ended_slow", "Watches that were ended as they were read too slowly.", registry=own
        )
        self._refused = Counter("cadenza_calls_refused", "Calls that were refused.", ("reason",), registry=own)
        # Series that are there from the beginning, so that a rate over them is right from the first event on.
        for device in devices:
            self._runs.labels(device)
            for job_class in JobClass:
                self._waits.labels(device, job_class.value)
                self._accepted.labels(device, job_class.value)
        self._busy = dict.fromkeys(devices, 0)
        self._held = dict.fromkeys(devices, 0)

    # --- what happens -----------------------------------------------------------------------------------------------
    def stamp(self) -> float:
        """See `Observer`."""
        return time.perf_counter()

    def decided(self, began: float, events: Sequence[Event]) -> None:
        """See `Observer`."""
        self._decisions.observe(time.perf_counter() - began)
        accepted: dict[tuple[str, str], int] = {}  # a call may queue a thousand of a kind
        for event in events:
            match event:
                case JobQueued():
                    key = (event.device, event.job_class.value)
                    accepted[key] = accepted.get(key, 0) + 1
                case RunStarted():
                    self._runs_started.labels(event.device, event.rule.value).inc()
                case RunFinished():
                    self._runs_ended.labels(event.device, event.outcome.value).inc()
                    self._runs.labels(event.device).observe((event.end - event.start) / SECOND)
                    self._busy[event.device] += event.end - event.start
                case JobEnded() | SessionJobsEnded():
                    count = event.count if isinstance(event, SessionJobsEnded) else 1
                    reason = event.reason.value if event.reason is not None else ""
                    self._ended.labels(event.device, event.state.value, reason).inc(count)
                case HoldEnded():
                    self._held[event.device] += event.end - event.start
        for labels, count in accepted.items():
            self._accepted.labels(*labels).inc(count)

    def started(self, event: RunStarted, waited: int) -> None:
        """See `Observer`."""
        if event.attempt == 1:
            self._waits.labels(event.device, event.job_class.value).observe(max(waited, 0) / SECOND)

    def committed(self, began: float, batch: Batch, calls: int) -> None:
        """See `Observer`."""
        self._commits.observe(time.perf_counter() - began)
        self._commit_rows.observe(sum(len(rows) for _, rows in batch.groups()))
        self._commit_calls.observe(calls)

    def watch_ended(self) -> None:
        """See `Observer`."""
        self._slow.inc()

    def refused(self, reason: str) -> None:
        """A call was refused; `reason` is one of `ErrorReason`."""
        self._refused.labels(reason).inc()

    async def measure_lag(self) -> None:
        """Measure the event loop until cancelled."""
        while True:
            due = time.perf_counter() + LAG_INTERVAL_SECONDS
            await asyncio.sleep(LAG_INTERVAL_SECONDS)
            self._lag.observe(max(0.0, time.perf_counter() - due))

    # --- what is so now ---------------------------------------------------------------------------------------------
    def describe(self, figures: Figures, lost: Callable[[str], int], version: str) -> Iterator[Metric]:
        """The metrics that are asked for. `lost`: how many workers a device has lost."""
        build = GaugeMetricFamily("cadenza_build_info", "Always 1; the version of the server.", labels=("version",))
        build.add_metric((version,), 1)
        yield build
        queued = GaugeMetricFamily("cadenza_queued_jobs", "Jobs that wait.", labels=("device", "job_class"))
        running = GaugeMetricFamily("cadenza_device_running", "1 while the device runs a job.", labels=("device",))
        ready = GaugeMetricFamily("cadenza_device_ready", "1 if a worker of it is warm.", labels=("device",))
        busy = CounterMetricFamily("cadenza_device_busy_seconds", "Time for which it ran jobs.", labels=("device",))
        held = CounterMetricFamily(
            "cadenza_device_held_seconds", "Time for which a session held it idle.", labels=("device",)
        )
        epoch = GaugeMetricFamily("cadenza_device_epoch", "Its calibration epoch.", labels=("device",))
        losses = CounterMetricFamily("cadenza_workers_lost", "Workers that died.", labels=("device",))
        now = figures.now
        for device in figures.devices:
            label = (device.device,)
            for job_class, count in (
                (JobClass.CALIBRATION, device.queued_calibration),
                (JobClass.SESSION, device.queued_session),
                (JobClass.FAIR_SHARE, device.queued_fair_share),
            ):
                queued.add_metric((device.device, job_class.value), count)
            running.add_metric(label, device.running is not None)
            ready.add_metric(label, device.ready)
            ran = 0 if device.running_since is None else now - device.running_since
            busy.add_metric(label, (self._busy[device.device] + ran) / SECOND)
            waited = 0 if device.held_since is None else max(0, now - device.held_since)
            held.add_metric(label, (self._held[device.device] + waited) / SECOND)
            epoch.add_metric(label, device.epoch)
            losses.add_metric(label, lost(device.device))
        yield from (queued, running, ready, busy, held, epoch, losses)
        usage = GaugeMetricFamily(
            "cadenza_account_usage_seconds", "Decayed usage, in device seconds.", labels=("account",)
        )
        shares = GaugeMetricFamily("cadenza_account_shares", "Its weight among its siblings.", labels=("account",))
        for account in figures.accounts:
            usage.add_metric((account.path,), account.settled + account.in_flight)
            shares.add_metric((account.path,), account.shares)
        yield from (usage, shares)
        yield GaugeMetricFamily("cadenza_open_sessions", "Sessions that are not CLOSED.", figures.sessions)
        yield GaugeMetricFamily("cadenza_watches", "Watches that are open.", figures.watches)
        if figures.result_bytes is not None:
            yield GaugeMetricFamily("cadenza_result_bytes", "Bytes of the results that are kept.", figures.result_bytes)


class _Scrape(Collector):
    """Asks on the event loop, for a thread of the HTTP server."""

    def __init__(self, loop: asyncio.AbstractEventLoop, describe: Callable[[], list[Metric]]) -> None:
        self._loop = loop
        self._describe = describe

    async def _ask(self) -> list[Metric]:
        return self._describe()

    def collect(self) -> Iterator[Metric]:
        """What is so now; nothing of it if the event loop does not answer."""
        asked = asyncio.run_coroutine_threadsafe(self._ask(), self._loop)
        try:
            yield from asked.result(ANSWER_SECONDS_MAX)
        except FutureTimeoutError:
            asked.cancel()


class _Handler(WSGIRequestHandler):
    """One connection, with one request."""

    timeout = REQUEST_SECONDS_MAX

    def handle(self) -> None:
        """Answer; without a word if the connection says nothing, or is gone."""
        with contextlib.suppress(OSError):
            super().handle()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: requests are not logged."""


class MetricsServer:
    """Serves the metrics over HTTP, from a thread of its own. To be made on the event loop of the engine."""

    def __init__(
        self,
        metrics: Metrics,
        figures: Callable[[int], Figures],
        lost: Callable[[str], int],
        version: str,
        host: str,
        port: int,
    ) -> None:
        """Raises `OSError` if it cannot listen there."""
        loop = asyncio.get_running_loop()
        self._server, self._thread = start_http_server(port, host, registry=metrics.registry)
        self._server.RequestHandlerClass = _Handler
        self.port: int = self._server.server_port
        metrics.registry.register(_Scrape(loop, lambda: list(metrics.describe(figures(ACCOUNTS_MAX), lost, version))))
        self._lag = loop.create_task(metrics.measure_lag())

    async def stop(self) -> None:
        """Serve no more."""
        self._lag.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._lag
        await asyncio.to_thread(self._server.shutdown)
        self._server.server_close()
        await asyncio.to_thread(self._thread.join)
