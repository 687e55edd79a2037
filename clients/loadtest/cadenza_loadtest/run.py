"""One test from start to report: several processes drive, this one watches the server."""

import asyncio
import contextlib
import multiprocessing
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final, TypeVar

from cadenza_loadtest.connection import Connection
from cadenza_loadtest.driver import Part, Stop, accept_stop, drive, prepare
from cadenza_loadtest.measurement import Measurement, Packed
from cadenza_loadtest.observer import Observer
from cadenza_loadtest.plan import Operation, make_plan
from cadenza_loadtest.report import Report, make_report
from cadenza_loadtest.scenario import Scenario, ScenarioError

T = TypeVar("T")

LEAD_S: Final = 2.0
"""From the start of the processes to the start of the clock: they load what they need meanwhile."""


@dataclass(frozen=True, slots=True)
class Setup:
    """How a test is driven."""

    connection: Connection
    server: str
    """For the report."""
    processes: int = 1
    connections: int = 2
    """Of each process."""
    cleanup: bool = True
    """Whether jobs and sessions of the test that are left are cancelled."""


def run_test(scenario: Scenario, setup: Setup, say: Callable[[str], None], factor: float = 1.0) -> Report:
    """Run the test; Ctrl-C ends it early, with a report of what was measured. `say` is told of its progress.

    Raises `ScenarioError`, and `grpc.RpcError` if the server cannot be reached.
    """
    return asyncio.run(_run(scenario, setup, say, lambda test: test(factor), with_record=True))


def run_tests(
    scenario: Scenario, setup: Setup, say: Callable[[str], None], use: Callable[[Callable[[float], Report]], T]
) -> T:
    """Prepare the server once, and let `use` run as many tests as it likes, each at a multiple of the rates.

    Gives what `use` gives. The reports have nothing from the server's record of the jobs. Raises as `run_test`.
    """
    return asyncio.run(_run(scenario, setup, say, use, with_record=False))


async def _run(
    scenario: Scenario,
    setup: Setup,
    say: Callable[[str], None],
    use: Callable[[Callable[[float], Report]], T],
    *,
    with_record: bool,
) -> T:
    part = Part(
        scenario=scenario,
        connection=setup.connection,
        operations=(),
        devices=await _choose_devices(scenario, setup.connection),
        tag=f"loadtest-{time.time_ns():x}",
        start=0.0,
        connections=setup.connections,
        cleanup=setup.cleanup,
    )
    loop = asyncio.get_running_loop()
    async with prepare(part, say) as prepared:

        def test(factor: float) -> Report:
            return asyncio.run_coroutine_threadsafe(
                _test(part, setup, prepared, say, factor, with_record), loop
            ).result()

        # this loop goes on reading the watches meanwhile
        return await asyncio.to_thread(use, test)


async def _test(
    part: Part, setup: Setup, prepared: Measurement, say: Callable[[str], None], factor: float, with_record: bool
) -> Report:
    scenario = part.scenario
    plan = make_plan(scenario, factor)
    if not plan:
        sentence = f"no operation falls into {scenario.duration_s:g} s: raise a rate or duration_s"
        raise ScenarioError(f"{scenario.name}: {sentence}")
    stop = multiprocessing.get_context("spawn").Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, stop.set)
    measured = Measurement()
    try:
        # processes come up beside each other; the clock starts when all are there
        part = replace(part, start=time.time() + LEAD_S)
        observer = Observer(setup.connection, part.start)
        watching = asyncio.create_task(observer.watch())
        say(f"{len(plan)} operations in {scenario.duration_s:g} s")
        for packed in await _drive_all(part, plan, setup.processes, stop, say):
            measured.add(packed)
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
        say("reading the server's record")
        seen = await observer.finish(part.tag if with_record else None)
        measured.add(prepared.pack())
    finally:
        loop.remove_signal_handler(signal.SIGINT)
    report = make_report(
        scenario,
        measured,
        seen,
        time=datetime.fromtimestamp(part.start, UTC).isoformat(timespec="seconds"),
        server=setup.server,
        factor=factor,
        processes=setup.processes,
    )
    if stop.is_set():
        report.remarks.append("the test was stopped before its end: rates a second count the whole length")
    return report


async def _choose_devices(scenario: Scenario, connection: Connection) -> tuple[str, ...]:
    known = [device.name for device in await Observer(connection, 0.0).list_devices()]
    if unknown := [name for name in scenario.devices if name not in known]:
        raise ScenarioError(f"{scenario.name}: the server has no device {unknown[0]!r}; it has: {', '.join(known)}")
    if not known:
        raise ScenarioError("the server has no devices")
    return scenario.devices or (known[0],)


async def _drive_all(
    part: Part, plan: Sequence[Operation], processes: int, stop: Stop, say: Callable[[str], None]
) -> list[Packed]:
    loop = asyncio.get_running_loop()
    with ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), initializer=accept_stop, initargs=(stop,)
    ) as pool:
        shares = [replace(part, operations=plan[number::processes]) for number in range(processes)]
        pending = [loop.run_in_executor(pool, drive, share) for share in shares]
        done = asyncio.gather(*pending)
        while not done.done():
            await asyncio.wait([done], timeout=1.0)
            at = time.time() - part.start
            say(f"{max(0.0, min(at, part.scenario.duration_s)):.0f} of {part.scenario.duration_s:g} s")
        return await done
