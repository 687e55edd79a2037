"""What is installed is what was meant: the wheel, built from the sdist, tried from outside the tree."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*command: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel that was built from it; made from a copy, so that nothing is left here."""
    folder = tmp_path_factory.mktemp("packaging")
    files = run("git", "ls-files", "-z", cwd=ROOT).split("\0")
    for name in filter(None, files):
        if (ROOT / name).exists():
            (folder / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "tree" / name).write_bytes((ROOT / name).read_bytes())
    run(sys.executable, "-m", "build", "--outdir", str(folder / "dist"), str(folder / "tree"), cwd=folder)
    return folder / "dist"


def test_the_sdist_holds_the_source_of_the_queue_and_not_what_was_made_of_it(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"_fastqueue/_queue.pyx", "_fastqueue/_queue.pxd", "_fastqueue/_queue.pyi", "LICENSE"} <= names
    assert not any(name.endswith((".so", "_queue.c")) for name in names)


def test_the_wheel_works_from_outside_the_tree(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
        names = set(archive.namelist())
    assert {"cadenza/py.typed", "cadenza_server/py.typed", "_fastqueue/py.typed"} <= names
    assert not any(name.startswith(("tests/", "proto/")) for name in names)
    program = """
import _fastqueue, asyncio, cadenza, cadenza_server, pathlib, sys
from cadenza.v1 import job_service_pb2_grpc
from cadenza_server.store.store import Store
here = pathlib.Path(sys.argv[1])
for module in (_fastqueue, cadenza, cadenza_server):
    assert pathlib.Path(module.__file__).is_relative_to(here), module.__file__
assert _fastqueue.Queue.__module__ == "_fastqueue._queue"
async def use_store():
    store = Store(here / "data")
    await store.open(0)  # the migrations are files of the package
    await store.close()
asyncio.run(use_store())
"""
    run(sys.executable, "-c", program, str(tmp_path), cwd=tmp_path, PYTHONPATH=str(tmp_path))
