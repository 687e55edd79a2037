"""The compiled queue reads no memory that it has not written. The system's allocator fills what it gives with garbage
here (`MALLOC_PERTURB_` of glibc; elsewhere this is a plain run), so that what is read too early leads anywhere."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize("garbage", ["1", "165"])
def test_no_reference_out_of_garbage_is_followed(garbage: str) -> None:
    services = ["tests/simulation/test_fair_tree.py", "-k", "charged_alike"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *services],
        env={**os.environ, "MALLOC_PERTURB_": garbage},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
