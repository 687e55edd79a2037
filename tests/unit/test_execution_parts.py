"""The parts of execution that need neither Aer nor a process."""

import subprocess
import sys
from typing import Any

import pytest
from cadenza_server.execution.cache import LatestUsed
from cadenza_server.execution.protocol import (
    PARTS_MAX,
    Frame,
    FrameError,
    FrameReader,
    Kind,
    decode_integer,
    encode_frame,
    encode_integer,
)
from cadenza_server.execution.spec import DeviceSpec
from hypothesis import given
from hypothesis import strategies as st

FRAMES = st.lists(st.tuples(st.sampled_from(Kind), st.lists(st.binary(max_size=40), max_size=5)), max_size=6)


@given(frames=FRAMES, cuts=st.lists(st.integers(1, 60), min_size=1))
def test_frames_arrive_whole_however_the_stream_is_cut(frames: list[tuple[Kind, list[bytes]]], cuts: list[int]) -> None:
    stream = b"".join(encode_frame(kind, *parts) for kind, parts in frames)
    reader, start = FrameReader(), 0
    got: list[Frame] = []
    while start < len(stream):
        length = cuts[len(got) % len(cuts)]
        got += reader.feed(stream[start : start + length])
        start += length
    assert got == [Frame(kind, tuple(parts)) for kind, parts in frames]


@pytest.mark.parametrize(
    "garbage",
    [
        b"HTTP/1.1 200 OK\r\n",
        bytes([99]) + bytes(4),
        bytes([Kind.RUN]) + (PARTS_MAX + 1).to_bytes(4, "little"),
        bytes([Kind.RUN]) + (1).to_bytes(4, "little") + b"\xff" * 8,
    ],
)
def test_what_is_no_frame_is_refused_at_once(garbage: bytes) -> None:
    with pytest.raises(FrameError):
        FrameReader().feed(garbage)


@given(st.integers(-(2**63), 2**63 - 1))
def test_integers_come_back(value: int) -> None:
    assert decode_integer(encode_integer(value)) == value


def test_the_cache_drops_what_was_not_used_for_longest() -> None:
    made: list[str] = []

    def make(name: str) -> str:
        made.append(name)
        return name.upper()

    cache = LatestUsed[str, str](2)
    for name in ("a", "b", "a", "c", "a", "b"):
        assert cache.get_or_make(name, lambda name=name: make(name)) == name.upper()  # type: ignore[misc]
    assert made == ["a", "b", "c", "b"]
    assert len(cache) == 2


def test_the_cache_does_not_remember_failures() -> None:
    cache = LatestUsed[str, int](2)
    with pytest.raises(ZeroDivisionError):
        cache.get_or_make("a", lambda: 1 // 0)
    assert cache.get_or_make("a", lambda: 3) == 3


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"kind": "magic"}, "kind is 'magic': it must be one of aer, generic, snapshot"),
        ({"method": "unitary"}, "method is 'unitary'"),
        ({"num_qubits": 0}, "num_qubits is 0: it must be an integer from 1"),
        ({"num_qubits": True}, "num_qubits is True"),
        ({"threads": 0}, "threads is 0"),
        ({"transpile_level": 4}, "transpile_level is 4: it must be an integer from 0 to 3"),
        ({"default_shots": 0}, "default_shots is 0"),
        ({"default_precision": -0.1}, "default_precision is -0.1"),
        ({"default_precision": float("nan")}, "default_precision is nan"),
        ({"kind": "generic", "num_qubits": 5}, "coupling 'heavy-hex' is a map of 27 qubits"),
        ({"kind": "generic", "coupling": "star"}, "coupling is 'star'"),
        ({"kind": "generic", "coupling": ((0, 27),)}, r"coupling has \[0, 27\]: a pair is two different qubits"),
        ({"kind": "generic", "coupling": ((3, 3),)}, r"coupling has \[3, 3\]"),
        ({"kind": "generic", "basis_gates": ()}, "basis_gates must name at least one gate"),
    ],
)
def test_wrong_settings_are_named_with_what_is_allowed(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}"):
        DeviceSpec(**settings)


@pytest.mark.parametrize(
    "spec",
    [
        DeviceSpec(),
        DeviceSpec(kind="generic", num_qubits=3, coupling=((0, 1), (1, 2)), basis_gates=("cz", "rz", "sx", "x")),
    ],
)
def test_a_spec_reaches_the_worker_as_it_is(spec: DeviceSpec) -> None:
    assert DeviceSpec.from_json(spec.to_json()) == spec


def test_the_servers_side_loads_no_qiskit() -> None:
    code = "import sys, cadenza_server.execution, cadenza_server.model.qpy; print('qiskit' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert out == "False\n"
