"""Generates the Python stubs in `clients/python/cadenza/v1` from the contract in this folder.

Run it after each change of a `.proto` file: `python proto/generate.py`. It needs the package registry, because it
installs its own pinned tools into a temporary folder. They are the oldest that the project's dependency floors allow,
for generated code runs on newer versions of protobuf and grpcio and never on older ones: raise a floor and its pin here
together.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

CONTRACT = Path(__file__).resolve().parent
STUBS = CONTRACT.parent / "clients" / "python"
PACKAGE = Path("cadenza") / "v1"

TOOLS = (
    "grpcio-tools==1.71.0",  # below the floor of grpcio; holds protoc 29, whose code runs on protobuf 5.29 and newer
    "grpcio==1.71.0",
    "setuptools==80.9.0",  # grpc_tools finds its own files through it
    "mypy-protobuf==5.1.0",  # writes the .pyi files, which nothing loads at run time: it need not be old
    "types-protobuf==6.32.1.20250918",
    "protobuf==6.33.5",  # for mypy-protobuf only; protoc is a program of its own
)


def generate(destination: Path) -> None:
    """Write the stubs of the whole contract below `destination`, as `cadenza/v1/*_pb2*`.

    Only services get a `_pb2_grpc` module. Stubs of files that are gone are deleted.

    Raises:
        subprocess.CalledProcessError: a tool could not be installed, or protoc refused the contract.
    """
    files = sorted(path.relative_to(CONTRACT).as_posix() for path in (CONTRACT / PACKAGE).glob("*.proto"))
    services = [name for name in files if name.endswith("_service.proto")]
    with tempfile.TemporaryDirectory() as folder:
        tools, output = Path(folder) / "tools", Path(folder) / "output"
        output.mkdir()
        # No dependencies: all are named above, and grpcio-tools' bound on protobuf is not about protoc.
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--only-binary", ":all:", "--target", tools, *TOOLS], check=True)
        path = os.pathsep.join([str(tools / "bin"), os.environ.get("PATH", "")])
        environment = {**os.environ, "PYTHONPATH": str(tools), "PATH": path}
        protoc = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={CONTRACT}"]
        messages = [f"--python_out={output}", f"--mypy_out=quiet:{output}"]
        calls = [f"--grpc_python_out={output}", f"--mypy_grpc_out=quiet:{output}"]
        subprocess.run([*protoc, *messages, *files], check=True, env=environment)
        subprocess.run([*protoc, *calls, *services], check=True, env=environment)
        target = destination / PACKAGE
        target.mkdir(parents=True, exist_ok=True)
        for stale in target.glob("*_pb2*.py*"):
            stale.unlink()
        for stub in (output / PACKAGE).iterdir():
            shutil.copyfile(stub, target / stub.name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--destination", type=Path, default=STUBS, help="folder to write cadenza/v1 into (%(default)s)")
    generate(parser.parse_args().destination)
