"""How old a calibration is when a run starts: what the engine tells devices that drift."""

from dataclasses import replace
from pathlib import Path

from cadenza_server.model.settings import RUNTIME_2023, SECOND
from cadenza_server.model.words import JobClass

from tests.integration.test_engine import OPERATOR, Home, quiet, settle


async def run_one(home: Home, **arguments: object) -> tuple[int, int]:
    """Run a job; (the epoch, its age in ns) that the device was told."""
    await home.submit(OPERATOR, **arguments)
    await settle(lambda: home.device.running is not None)
    run = home.device.running
    assert run is not None
    home.device.end(properties=b"measured" if arguments else None)
    await quiet(home)
    return run.epoch, run.age_ns


async def test_a_run_is_told_how_long_its_epoch_lasts_also_after_a_restart(tmp_path: Path) -> None:
    home = Home(tmp_path)
    settings = replace(RUNTIME_2023)
    await home.open(settings=settings)
    # before the first calibration time counts from the first run
    home.clock.advance(5 * SECOND)
    assert await run_one(home) == (0, 0)
    home.clock.advance(7 * SECOND)
    assert await run_one(home) == (0, 7 * SECOND)
    assert await run_one(home, job_class=JobClass.CALIBRATION) == (0, 7 * SECOND)
    home.clock.advance(2 * SECOND)
    assert await run_one(home) == (1, 2 * SECOND)
    await home.crash()
    home.clock.advance(3 * SECOND)
    await home.open(settings=settings)
    assert await run_one(home) == (1, 5 * SECOND)
    await home.engine.stop(0)
