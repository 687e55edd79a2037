"""The contract in `proto/`: lint, documentation, conventions, and stubs that belong to it."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet

ROOT = Path(__file__).resolve().parents[2]
CONTRACT = ROOT / "proto"
STUBS = ROOT / "clients" / "python" / "cadenza" / "v1"
RELEASED = CONTRACT / "released.binpb"

CODES = {code.name for code in grpc.StatusCode}
REASONS_OF_ALL = {
    "MISSING_TOKEN",
    "INVALID_TOKEN",
    "MESSAGE_TOO_LARGE",
    "STORE_UNAVAILABLE",
    "STOPPING",
    "INTERNAL_ERROR",
}
READING_VERBS = ("Get", "List", "Watch", "Stream")


def run_buf(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run buf, of this environment before any other, in the contract's folder."""
    buf = shutil.which("buf", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    assert buf, "buf is missing: pip install buf-bin"
    return subprocess.run([buf, *arguments], cwd=CONTRACT, capture_output=True, check=False)


def list_generated(folder: Path) -> dict[str, str]:
    """Read the generated modules of a folder: name -> text."""
    return {path.name: path.read_text() for path in folder.glob("*_pb2*.py*")}


@pytest.fixture(scope="module")
def files() -> list[FileDescriptorProto]:
    """The project's own files, compiled, with comments."""
    built = run_buf("build", "-o", "-#format=binpb")
    assert built.returncode == 0, built.stderr.decode()
    everything = FileDescriptorSet.FromString(built.stdout)
    own = [file for file in everything.file if file.package == "cadenza.v1"]
    assert len(own) == len(list(CONTRACT.glob("cadenza/v1/*.proto"))) > 0
    return own


def read_comments(file: FileDescriptorProto) -> dict[tuple[int, ...], str]:
    """Map each element's path in its file to its leading comment."""
    return {tuple(where.path): where.leading_comments.strip() for where in file.source_code_info.location}


# The numbers are those of the fields in descriptor.proto that lead to an element: a comment's path is made of them.


def walk_enum(name: str, path: tuple[int, ...], enum: EnumDescriptorProto) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield an enum and its values: full name, path."""
    yield f"{name}.{enum.name}", path
    for index, value in enumerate(enum.value):
        yield f"{name}.{enum.name}.{value.name}", (*path, 2, index)


def walk_message(name: str, path: tuple[int, ...], message: DescriptorProto) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield a message and everything in it: full name, path."""
    name = f"{name}.{message.name}"
    yield name, path
    for index, field in enumerate(message.field):
        yield f"{name}.{field.name}", (*path, 2, index)
    for index, oneof in enumerate(message.oneof_decl):
        if not oneof.name.startswith("_"):  # the compiler's own, for an `optional` field
            yield f"{name}.{oneof.name}", (*path, 8, index)
    for index, nested in enumerate(message.nested_type):
        yield from walk_message(name, (*path, 3, index), nested)
    for index, enum in enumerate(message.enum_type):
        yield from walk_enum(name, (*path, 4, index), enum)


def walk_file(file: FileDescriptorProto) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield everything in a file that must be documented: full name, path."""
    for index, message in enumerate(file.message_type):
        yield from walk_message(file.package, (4, index), message)
    for index, enum in enumerate(file.enum_type):
        yield from walk_enum(file.package, (5, index), enum)
    for index, service in enumerate(file.service):
        yield f"{file.package}.{service.name}", (6, index)
        for place, method in enumerate(service.method):
            yield f"{file.package}.{service.name}.{method.name}", (6, index, 2, place)


def read_codes(comment: str) -> dict[str, set[str]]:
    """Parse what follows `Codes:` in an RPC's comment: code -> reasons."""
    _, found, codes = " ".join(comment.split()).partition("Codes: ")
    if not found:
        return {}
    pairs = re.findall(r"\b([A-Z]+(?:_[A-Z]+)*) \(([A-Z_, ]+)", codes)
    return {code: set(re.findall(r"[A-Z_]+", reasons)) for code, reasons in pairs}


@pytest.fixture(scope="module")
def rpcs(files: list[FileDescriptorProto]) -> dict[str, dict[str, set[str]]]:
    """Every RPC with the codes and reasons that its comment names."""
    return {
        f"{service.name}.{method.name}": read_codes(read_comments(file)[6, index, 2, place])
        for file in files
        for index, service in enumerate(file.service)
        for place, method in enumerate(service.method)
    }


@pytest.fixture(scope="module")
def reasons(files: list[FileDescriptorProto]) -> dict[str, str]:
    """Every error reason with the code that its comment begins with."""
    file = next(file for file in files if file.name.endswith("errors.proto"))
    comments = read_comments(file)
    return {
        value.name.removeprefix("ERROR_REASON_"): comments[5, 0, 2, index].partition(":")[0]
        for index, value in enumerate(file.enum_type[0].value)
        if value.number
    }


def test_buf_finds_nothing_to_lint() -> None:
    result = run_buf("lint")
    assert result.returncode == 0, result.stdout.decode() + result.stderr.decode()


def test_files_are_formatted() -> None:
    result = run_buf("format", "--diff", "--exit-code")
    assert result.returncode == 0, result.stdout.decode() + result.stderr.decode()


def test_nothing_released_is_broken() -> None:
    result = run_buf("breaking", "--against", str(RELEASED))
    assert result.returncode == 0, result.stdout.decode() + result.stderr.decode()


def test_everything_is_documented(files: list[FileDescriptorProto]) -> None:
    bare = [name for file in files for name, path in walk_file(file) if not read_comments(file).get(path)]
    assert bare == []


def test_every_enum_begins_with_unspecified(files: list[FileDescriptorProto]) -> None:
    enums = [enum for file in files for enum in file.enum_type]
    enums += [enum for file in files for message in file.message_type for enum in message.enum_type]
    assert enums
    assert [enum.name for enum in enums if not enum.value[0].name.endswith("_UNSPECIFIED")] == []


def test_every_rpc_lists_its_status_codes_with_reasons(
    rpcs: dict[str, dict[str, set[str]]], reasons: dict[str, str]
) -> None:
    assert [name for name, codes in rpcs.items() if not codes] == []
    wrong = [
        f"{name}: {code} ({reason})"
        for name, codes in rpcs.items()
        for code, named in codes.items()
        for reason in named
        if reasons.get(reason) != code
    ]
    assert wrong == []


def test_every_error_reason_begins_with_its_code(reasons: dict[str, str]) -> None:
    assert {reason: code for reason, code in reasons.items() if code not in CODES} == {}


def test_every_error_reason_is_given_by_an_rpc(rpcs: dict[str, dict[str, set[str]]], reasons: dict[str, str]) -> None:
    named = {reason for codes in rpcs.values() for found in codes.values() for reason in found}
    assert reasons.keys() - named - REASONS_OF_ALL == set()


def test_every_service_names_the_codes_of_all_its_rpcs(files: list[FileDescriptorProto]) -> None:
    for file in files:
        for index, service in enumerate(file.service):
            comment = read_comments(file)[6, index]
            assert "Words." in comment, service.name
            assert {reason for reason in REASONS_OF_ALL if reason not in comment} == set(), service.name


def test_every_request_that_changes_something_has_a_request_id(files: list[FileDescriptorProto]) -> None:
    messages = {f".{file.package}.{message.name}": message for file in files for message in file.message_type}
    methods = [method for file in files for service in file.service for method in service.method]
    changing = [method for method in methods if not method.name.startswith(READING_VERBS)]
    assert len(changing) >= 10
    for method in changing:
        assert "request_id" in {field.name for field in messages[method.input_type].field}, method.name


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="the pinned grpcio-tools has no wheel for this Python")
def test_committed_stubs_are_those_of_the_contract(tmp_path: Path) -> None:
    command = [sys.executable, str(CONTRACT / "generate.py"), "--destination", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    fresh, committed = list_generated(tmp_path / "cadenza" / "v1"), list_generated(STUBS)
    assert committed.keys() == fresh.keys()
    assert [name for name, text in fresh.items() if committed[name] != text] == [], "run `python proto/generate.py`"


def test_stubs_load_without_a_warning() -> None:
    modules = sorted(path.stem for path in STUBS.glob("*_pb2*.py"))
    program = "".join(f"import cadenza.v1.{name}\n" for name in modules)
    environment = {**os.environ, "PYTHONPATH": str(STUBS.parents[1])}
    command = [sys.executable, "-W", "error", "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (result.returncode, result.stderr) == (0, "")
