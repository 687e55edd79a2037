"""The seed of this run of the tests: CADENZA_SEED, else the commit's hash."""

import os
import subprocess
from pathlib import Path


def run_seed() -> int:
    """Return the seed of this run."""
    if given := os.environ.get("CADENZA_SEED"):
        return int(given)
    git = ["git", "rev-parse", "--short=8", "HEAD"]
    try:
        found = subprocess.run(git, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return 0  # not a clone: an unpacked sdist
    return int(found.stdout.strip()[:8], 16)


def seed_of(piece: int) -> int:
    """Return the seed of the `piece`-th random case (below 1,000) of a test; it is another one in every test run."""
    return run_seed() * 1000 + piece
