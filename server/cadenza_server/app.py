"""Wiring: builds every part of a server and nothing else; starts it, and stops it so that nothing is lost."""

import asyncio
import contextlib
import gc
import json
import logging
import os
import random
import secrets
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import Final, cast

import grpc
from cadenza.v1 import (
    device_pb2,
    device_service_pb2,
    device_service_pb2_grpc,
    job_service_pb2,
    job_service_pb2_grpc,
    reservation_service_pb2,
    reservation_service_pb2_grpc,
    server_service_pb2,
    server_service_pb2_grpc,
    session_service_pb2,
    session_service_pb2_grpc,
    share_service_pb2,
    share_service_pb2_grpc,
)
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from cadenza_server.api.callers import Callers, Gate
from cadenza_server.api.devices import DeviceServicer
from cadenza_server.api.errors import ErrorMapper
from cadenza_server.api.jobs import JobServicer, JobSubmitter
from cadenza_server.api.programs import DeviceFacts, ProgramChecker
from cadenza_server.api.reflection import ReflectionPool
from cadenza_server.api.reservations import ReservationServicer
from cadenza_server.api.scope import Scope
from cadenza_server.api.server import ServerServicer
from cadenza_server.api.sessions import SessionServicer
from cadenza_server.api.shares import ShareServicer
from cadenza_server.api.watching import WatchCounter
from cadenza_server.clock import Clock, SystemClock
from cadenza_server.config import Address, Config, DeviceConfig, check_exposure
from cadenza_server.engine import DevicePlan, Engine, Ids, Quotas, Retention, TimeOrderedIds
from cadenza_server.execution.accelerators import AcceleratorError, AerOffer, ask_aer, settle_accelerators
from cadenza_server.execution.device import Device
from cadenza_server.execution.runs import RunReport
from cadenza_server.execution.spec import KINDS, METHODS
from cadenza_server.metrics import Metrics, MetricsServer
from cadenza_server.model.settings import SECOND
from cadenza_server.ports import explain_bind
from cadenza_server.store.errors import StoreError
from cadenza_server.store.store import Store
from cadenza_server.tokens import TokenBook

CALLS_PER_CONNECTION_MAX: Final = 1_000
"""Calls of one connection at a time, beside its watches."""

_GATHERING_SECONDS: Final = 0.1
"""For calls that are on their way to be taken up, before the server closes; and for it to close."""

_CLOSING_SECONDS: Final = 1.0
"""For calls that are being answered when everything else has stopped."""

SWITCH_INTERVAL_SECONDS: Final = 0.0005
"""How long threads that read may keep Python from the event loop; CPython's own 5 ms are many calls."""

GARBAGE_THRESHOLDS: Final = (5_000, 4, 500)
"""How many more objects there must be before the collector looks through the new ones, how many such looks there are
before one at all that these left, and how many of those before one at everything. It takes 0.3 us an object, and the
event loop does nothing else meanwhile: 2 ms, 7 ms, and longer only once in ten million objects."""

_OVERSIZE_FACTOR: Final = 2
"""Messages up to so many times the limit are refused in our own words; larger ones by gRPC, before they are read."""

_SERVICES: Final = tuple(
    module.DESCRIPTOR.services_by_name[name].full_name
    for module, name in (
        (server_service_pb2, "ServerService"),
        (session_service_pb2, "SessionService"),
        (job_service_pb2, "JobService"),
        (device_service_pb2, "DeviceService"),
        (reservation_service_pb2, "ReservationService"),
        (share_service_pb2, "ShareService"),
    )
)
_log = logging.getLogger(__name__)


class ServeError(Exception):
    """The server cannot start; the message says why and what to do."""


class Server:
    """A whole server in this process. `address` is known once it has started, also with port 0. `ask`: what Aer offers.

    Raises `ServeError` if a device must have a GPU and cannot.
    """

    def __init__(
        self,
        config: Config,
        *,
        clock: Clock | None = None,
        ids: Ids | None = None,
        ask: Callable[[], AerOffer] = ask_aer,
    ) -> None:
        config = _settle(config, ask)
        self._config = config
        self._clock = clock or SystemClock()
        self._grpc: grpc.aio.Server | None = None
        self._health = health.aio.HealthServicer()
        self.address = config.listen
        self.metrics_address = config.metrics
        """Known once it has started, also with port 0."""
        self._metrics = Metrics(tuple(config.devices)) if config.metrics is not None else None
        self._metrics_server: MetricsServer | None = None
        self._store = Store(config.data_dir)
        self.engine = Engine(
            store=self._store,
            devices={name: _plan(name, device) for name, device in config.devices.items()},
            clock=self._clock,
            ids=ids or TimeOrderedIds(self._clock, random.Random(secrets.randbits(256))),
            shares=dict(config.shares),
            half_life=config.half_life,
            quotas=Quotas(
                queued_jobs_max=config.limits.queued_jobs_max,
                queued_jobs_per_user_max=config.limits.queued_jobs_per_user_max,
                sessions_per_user_max=config.limits.sessions_per_user_max,
                watch_backlog_max=config.limits.watch_backlog_max,
            ),
            observer=self._metrics,
            retention=Retention(
                age_max=config.limits.result_age_max,
                bytes_max=config.limits.result_bytes_max,
                age_min=config.limits.result_age_min,
            ),
        )

    async def start(self, *, wait_for_devices: bool = True) -> Address:
        """Bind, open the store, start the devices, serve. Without `wait_for_devices` it returns as soon as calls are
        answered: jobs are accepted and wait for the devices' workers, and so does whoever asks what a device is.
        Raises `ServeError` or `ConfigError`, with nothing left."""
        check_exposure(self._config)
        server = self._build()
        self.address = self._bind(server)
        self._store.address = str(self.address)
        try:
            self._serve_metrics()
            await self.engine.start(wait_for_devices=wait_for_devices)
        except BaseException as error:
            await self._stop_metrics()
            await server.stop(None)
            if isinstance(error, StoreError):
                raise ServeError(str(error)) from error
            raise
        self._grpc = server
        await server.start()
        for name in ("", *_SERVICES):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        _log.info(
            "listening",
            extra={
                "address": str(self.address),
                "devices": list(self._config.devices),
                "data_dir": str(self._config.data_dir),
                **({} if self.metrics_address is None else {"metrics": str(self.metrics_address)}),
            },
        )
        return self.address

    async def stop(self, grace_seconds: float | None = None) -> None:
        """Take no more work, let runs end in the grace (None: the configured one) or put them back, tell watchers,
        close. Twice does nothing."""
        server, self._grpc = self._grpc, None
        if server is None:
            return
        await self._health.enter_graceful_shutdown()
        # While the engine stops, the server still answers: callers hear STOPPING, watchers the end of their streams.
        failed: StoreError | None = None
        try:
            await self.engine.stop(self._config.stop_grace / SECOND if grace_seconds is None else grace_seconds)
        except StoreError as error:  # nothing acknowledged is lost; whoever started the server is told at the end
            failed = error
        self._jobs.end_streams()
        self._gate.hold()
        await asyncio.sleep(_GATHERING_SECONDS)
        closing = asyncio.create_task(server.stop(_CLOSING_SECONDS))
        await asyncio.sleep(_GATHERING_SECONDS)
        self._gate.release()
        await closing
        await self._stop_metrics()
        kept = self.engine.count_unfinished()
        if kept:
            _log.info("stopped; what has not ended goes on at the next start", extra={"jobs": kept})
        else:
            _log.info("stopped")
        if failed is not None:
            raise ServeError(f"stopped, but not in good order: {failed}") from failed

    def _serve_metrics(self) -> None:
        if self._metrics is None or self._config.metrics is None:
            return
        host, port = self._config.metrics.host, self._config.metrics.port

        def count_lost(name: str) -> int:
            return cast(Device, self.engine.device(name)).workers_lost

        try:
            self._metrics_server = MetricsServer(
                self._metrics, self.engine.figures, count_lost, find_version(), host, port
            )
        except OSError as error:
            raise ServeError(
                f"cannot serve metrics on {self._config.metrics} ({error.strerror}): take another --metrics HOST:PORT"
            ) from error
        self.metrics_address = Address(host, self._metrics_server.port)

    async def _stop_metrics(self) -> None:
        server, self._metrics_server = self._metrics_server, None
        if server is not None:
            await server.stop()

    def _build(self) -> grpc.aio.Server:
        config = self._config
        refused = self._metrics.refused if self._metrics is not None else None
        errors = ErrorMapper(lambda: secrets.token_hex(6), refused)
        callers = Callers(TokenBook(config.tokens), config.operators)
        self._gate = Gate(callers, errors, config.limits)
        server = grpc.aio.server(
            interceptors=(self._gate,),
            options=(
                ("grpc.max_receive_message_length", config.limits.message_bytes_max * _OVERSIZE_FACTOR),
                ("grpc.max_send_message_length", -1),
                # Otherwise two servers would share a port and each get some of the calls.
                ("grpc.so_reuseport", 0),
                ("grpc.max_allowed_incoming_connections", config.limits.connections_max),
                # Beyond these a client's own calls wait for each other.
                ("grpc.max_concurrent_streams", config.limits.watches_per_connection_max + CALLS_PER_CONNECTION_MAX),
                # A client may ask every 10 seconds whether the connection of its watch still stands.
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
                ("grpc.keepalive_permit_without_calls", 1),
                # A client that is gone without a word, or stopped, gives back what waits for it.
                ("grpc.keepalive_time_ms", 300_000),
                ("grpc.keepalive_timeout_ms", 20_000),
            ),
        )
        scope = Scope(
            self.engine,
            {name: _facts(name, device) for name, device in config.devices.items()},
            {name: device.settings for name, device in config.devices.items()},
            WatchCounter(config.limits),
        )
        submitter = JobSubmitter(scope, ProgramChecker(config.limits))
        about = ServerServicer(
            self.engine,
            config.limits,
            version=find_version(),
            start_time=self._clock.now(),
            half_life=config.half_life,
        )
        server_service_pb2_grpc.add_ServerServiceServicer_to_server(about, server)
        session_service_pb2_grpc.add_SessionServiceServicer_to_server(SessionServicer(scope), server)
        self._jobs = JobServicer(scope, submitter, config.limits, errors)
        job_service_pb2_grpc.add_JobServiceServicer_to_server(self._jobs, server)
        device_service_pb2_grpc.add_DeviceServiceServicer_to_server(
            DeviceServicer(scope, submitter, self._describe), server
        )
        reservation_service_pb2_grpc.add_ReservationServiceServicer_to_server(ReservationServicer(scope), server)
        share_service_pb2_grpc.add_ShareServiceServicer_to_server(ShareServicer(scope, config.half_life), server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        shown = (*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(shown, server, pool=ReflectionPool())
        return server

    async def _describe(self, name: str) -> device_pb2.Device:
        """Right after the start it waits for the device's first worker, which alone knows its model."""
        device = cast(Device, self.engine.device(name))
        await device.wait_for_first()
        return device.description

    def _bind(self, server: grpc.aio.Server) -> Address:
        listen = self._config.listen
        try:
            tls = self._config.tls
            if tls is None:
                port = server.add_insecure_port(str(listen))
            else:
                chain, key = tls.certificate.read_bytes(), tls.key.read_bytes()
                client_ca = tls.client_ca.read_bytes() if tls.client_ca else None
                credentials = grpc.ssl_server_credentials([(key, chain)], client_ca, client_ca is not None)
                port = server.add_secure_port(str(listen), credentials)
        except OSError as error:
            raise ServeError(f"[tls]: cannot read {error.filename}: {error.strerror}") from error
        except RuntimeError as error:
            why = explain_bind(listen.host, listen.port)
            if why is None and self._config.tls is not None:
                raise ServeError(
                    "[tls]: gRPC takes neither certificate and key as they are: check that they are PEM files, and "
                    "belong together"
                ) from error
            raise ServeError(f"cannot listen on {listen}: {why or error}") from error
        return Address(listen.host, port)


def _settle(config: Config, ask: Callable[[], AerOffer]) -> Config:
    """The configuration with what each device computes with."""
    try:
        specs = settle_accelerators({name: device.spec for name, device in config.devices.items()}, ask)
    except AcceleratorError as error:
        raise ServeError(str(error)) from error
    devices = {name: replace(device, spec=specs[name]) for name, device in config.devices.items()}
    return replace(config, devices=MappingProxyType(devices))


def _plan(name: str, device: DeviceConfig) -> DevicePlan:
    def build(report: Callable[[RunReport], None], ready: Callable[[str, bool], None]) -> Device:
        return Device(name, device.spec, report=report, ready=ready)

    return DevicePlan(settings=device.settings, profile=device.profile, build=build)


def _facts(name: str, device: DeviceConfig) -> DeviceFacts:
    return DeviceFacts(
        name=name,
        num_qubits=device.spec.num_qubits,
        methods=METHODS if device.spec.kind in KINDS else (),
        noisy=device.spec.is_noisy,
        default_shots=device.spec.default_shots,
        calibration_duration=device.settings.calibration_duration,
    )


def find_version() -> str:
    """The version of the installed package; `0+unknown` in a bare source tree."""
    try:
        return version("cadenza")
    except PackageNotFoundError:
        return "0+unknown"


def tune_process() -> None:
    """Make this process one that serves: for a whole process only, as it is the whole process that it changes."""
    sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
    # What is loaded by now stays: the collector need not look through it again and again. And a call of many jobs
    # makes thousands of objects that live as long as the jobs wait: with CPython's own 700 it looks at them for ever.
    gc.freeze()
    gc.set_threshold(*GARBAGE_THRESHOLDS)
    gc.enable()


async def serve(config: Config, *, ready_file: Path | None = None, until_stdin_closes: bool = False) -> None:
    """Run a server until SIGINT or SIGTERM. A second signal ends the process at once (nothing acknowledged is lost).

    `until_stdin_closes`: stop, too, when standard input ends, as it does when whoever started the server dies. When it
    serves it prints `listening on HOST:PORT` and writes {"address": "HOST:PORT"} to `ready_file`. Raises
    `ServeError` or `ConfigError` if it cannot start.
    """
    server = Server(config)
    asked = asyncio.Event()

    def ask(number: int) -> None:
        if asked.is_set():
            _log.warning("stopped at once", extra={"signal": signal.Signals(number).name})
            sys.stderr.flush()
            os._exit(128 + number)
        _log.info("stopping; once more stops at once", extra={"signal": signal.Signals(number).name})
        asked.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ask, number)
    if until_stdin_closes:
        _call_at_end_of_stdin(loop, asked.set)
    gc.disable()  # until `tune_process`: the collector would look again and again through what the start takes up
    starting = asyncio.create_task(server.start(wait_for_devices=False))
    told = asyncio.create_task(asked.wait())
    try:
        await asyncio.wait((starting, told), return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():  # it may wait for a disk that hangs
            starting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await starting
            _log.info("stopped before it served")
            return
        address = await starting
        tune_process()
        if ready_file is not None:
            _write_ready(ready_file, address)
        print(f"listening on {address}", flush=True)
        await told
    finally:
        told.cancel()
        await server.stop()
        if ready_file is not None:
            _remove(ready_file)


def _call_at_end_of_stdin(loop: asyncio.AbstractEventLoop, ended: Callable[[], None]) -> None:
    descriptor = sys.stdin.fileno()

    def read() -> None:
        if not os.read(descriptor, 4096):
            loop.remove_reader(descriptor)
            ended()

    loop.add_reader(descriptor, read)


def _write_ready(path: Path, address: Address) -> None:
    """At once and whole, so that who waits for the file never reads half of it."""
    half = path.with_name(path.name + ".part")
    try:
        half.write_text(json.dumps({"address": str(address)}) + "\n")
        half.replace(path)
    except OSError as error:
        raise ServeError(f"cannot write the ready file {path}: {error.strerror}") from error


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
