"""The main job, as a person runs it."""

import os
import subprocess
import sys
from pathlib import Path


def test_the_demo_keeps_every_promise_and_draws_the_timeline(tmp_path: Path) -> None:
    picture = tmp_path / "timeline.svg"
    done = subprocess.run(
        [sys.executable, "-m", "cadenza_server", "demo", "--picture", str(picture)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        # what a person has set for the lab's server is not for the demo's own
        env={**os.environ, "CADENZA_USER": "lab/eve", "CADENZA_TOKEN": "secret", "CADENZA_TLS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("kept   ") == 4
    assert "BROKEN" not in done.stdout
    assert picture.read_text().count("ada") > 0
