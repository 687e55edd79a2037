"""Simulated servers that die, by hand: `python -m tests.crash.simulation --minutes 60`; `--seed` repeats one.

Worlds are those of `tests.crash.world`, which says what is checked. A seed that fails is printed with the line that
repeats it; the exit code is then 1.
"""

import argparse
import logging
import sys
import time
import traceback
from itertools import count

from tests.crash.world import LIVES, STEPS_MAX, run_seed_to_its_end
from tests.simulation.seeds import seed_of


def replay(seed: int, lives: int, steps_max: int) -> str:
    """The line that runs one seed again."""
    return f"python -m tests.crash.simulation --seed {seed} --lives {lives} --steps-max {steps_max}"


def main() -> int:
    """Run seeds until the time is over, or as many as were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, help="only this one, with the whole traceback")
    parser.add_argument("--seeds", type=int, help="so many")
    parser.add_argument("--first", type=int, default=seed_of(0), help="the first of them (from CADENZA_SEED)")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--lives", type=int, default=LIVES, help="how many servers live and die in each")
    parser.add_argument("--steps-max", type=int, default=STEPS_MAX, help="after how many steps one dies at the latest")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    if arguments.seed is not None:
        print(run_seed_to_its_end(arguments.seed, arguments.lives, arguments.steps_max))
        return 0
    end, ran, failed, deaths, jobs, audits = time.monotonic() + 60 * arguments.minutes, 0, 0, 0, 0, 0
    for seed in count(arguments.first):
        if ran >= arguments.seeds if arguments.seeds is not None else time.monotonic() >= end:
            break
        ran += 1
        try:
            outcome = run_seed_to_its_end(seed, arguments.lives, arguments.steps_max)
        except Exception as error:
            failed += 1
            where = traceback.extract_tb(error.__traceback__)[-1]
            print(f"seed {seed}: {where.name}:{where.lineno}: {str(error)[:1000]}")
            print(f"  again: {replay(seed, arguments.lives, arguments.steps_max)}", flush=True)
            continue
        deaths += outcome.deaths
        jobs += outcome.jobs
        audits += outcome.audits
    print(f"{ran} seeds, {failed} failed; {deaths} deaths, {jobs} jobs acknowledged, {audits} times disk = memory")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
