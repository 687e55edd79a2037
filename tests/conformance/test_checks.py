"""The list of checks is whole, and what plays it can see that something is wrong."""

import re
from pathlib import Path
from typing import Any

import cadenza_server
import pytest
from cadenza.v1 import errors_pb2

from tests.conformance.interpreter import SERVICES, CheckError, fill, find, find_difference
from tests.conformance.servers import read_checks


def steps() -> list[dict[str, Any]]:
    return [step for check in read_checks()["checks"] for step in check["steps"]]


def test_every_rpc_of_the_contract_is_called() -> None:
    called = {step["call"] for step in steps() if "call" in step}
    assert called == {f"{name}/{method.name}" for name, (service, _) in SERVICES.items() for method in service.methods}


def test_every_reason_is_provoked_or_excused() -> None:
    provoked = {step["refused"]["reason"] for step in steps() if "refused" in step} - {None}
    excused = set(read_checks()["not_checked"])
    reasons = {value.name.removeprefix("ERROR_REASON_") for value in errors_pb2.ErrorReason.DESCRIPTOR.values}
    assert provoked | excused == reasons
    assert not provoked & excused


def test_checks_have_names_of_their_own_and_known_keys() -> None:
    checks = read_checks()["checks"]
    assert len({check["name"] for check in checks}) == len(checks) >= 40
    known = {
        "call",
        "user",
        "metadata",
        "tls",
        "request",
        "requests",
        "timeout_s",
        "expect",
        "refused",
        "save",
        "server",
    }
    known |= {"until", "stream", "assemble", "read", "cancel"}
    for step in steps():
        assert set(step) <= known, step
        assert len({"call", "read", "cancel"} & set(step)) == 1, step


def test_the_table_in_the_documentation_has_every_check() -> None:
    document = Path(cadenza_server.__file__).with_name("docs") / "clients.md"
    rows = [line.split("|")[1].strip() for line in document.read_text().splitlines() if line.startswith("| ")]
    first = rows.index("check") + 1
    names = [check["name"] for check in read_checks()["checks"]]
    assert rows[first : first + len(names)] == names, "run `python -m tests.conformance.run` and put its table there"


def test_variables_are_set_before_they_are_used() -> None:
    plan = read_checks()
    given = {*plan["variables"], "run", "start", "end", "token"}
    for check in plan["checks"]:
        known = set(given)
        for step in check["steps"]:
            used = set(re.findall(r"\$\{(\w+)\}", str({key: value for key, value in step.items() if key != "save"})))
            assert used <= known, (check["name"], used - known)
            known |= set(step.get("save", {}))


@pytest.mark.parametrize(
    ("expected", "actual", "place"),
    [
        ({"a": 1}, {"a": 2}, "answer.a"),
        ({"a": {"b": None}}, {"a": {"b": "x"}}, "answer.a.b"),
        ({"a": ["1"]}, {"a": ["1", "2"]}, "answer.a"),
        ({"a": ["1", "2"]}, {"a": ["1", "3"]}, "answer.a.1"),
        ({"a": {"b": 1}}, {}, "answer.a"),
        (True, 1, "answer"),
        ({"$present": True}, None, "answer"),
        ({"$length": 2}, ["a"], "answer"),
        ({"$min": 3}, "2", "answer"),
        ({"$in": [1, 2]}, 3, "answer"),
        ({"$first": {"a": 1}}, [{"a": 2}, {"a": 1}], "answer"),
        ({"$last": {"a": 1}}, [{"a": 1}, {"a": 2}], "answer"),
        ({"$contains": {"a": 1}}, [{"a": 2}], "answer"),
        ({"$bytes": 1, "$bytes_in": [0]}, "AAA=", "answer"),
        ({"$bytes_in": [0, 3]}, "AQ==", "answer"),
        ({"$float64s": [1.0]}, "AAAAAAAAAAA=", "answer"),
    ],
)
def test_what_differs_is_named(expected: Any, actual: Any, place: str) -> None:
    assert (find_difference(expected, actual) or "").startswith(f"{place}: ")


def test_what_is_like_it_is_expected_passes() -> None:
    actual = {"a": "5", "b": [{"c": 1.0}, {"c": 2}], "d": "AAAAAAAA8D8=", "more": True}
    expected = {
        "a": {"$min": 5},
        "b": {"$first": {"c": 1}, "$last": {"c": 2}, "$length": 2, "$contains": {"c": 2}},
        "d": {"$float64s": [1], "$bytes": 8},
        "e": None,
    }
    assert find_difference(expected, actual) is None


def test_variables_keep_their_type_when_they_stand_alone() -> None:
    assert fill({"a": "${x}", "b": ["${x}-${y}"], "c": {"$repeat": ["ab", 2]}}, {"x": 1, "y": "z"}) == {
        "a": 1,
        "b": ["1-z"],
        "c": "abab",
    }


def test_saving_what_is_not_there_is_a_problem() -> None:
    assert find("messages.-1.a", {"messages": [{"a": 1}, {"a": 2}]}) == 2
    with pytest.raises(CheckError):
        find("messages.-1.b", {"messages": [{"a": 1}]})
