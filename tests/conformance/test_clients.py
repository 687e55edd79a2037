"""The clients that are cheap enough play the checks against live servers, and run their example; the others by `python
-m tests.conformance.run`. Each is skipped by name if its toolchain is not here, or its registry cannot be reached."""

from pathlib import Path

import pytest

from tests.conformance.run import CLIENTS, FetchError, build, judge, play_example

CHEAP = ("python", "python-asyncio", "go", "node")


@pytest.mark.parametrize("client", [client for client in CLIENTS if client.name in CHEAP], ids=lambda it: it.name)
def test_the_client_passes_every_check(client: object, places: dict[str, str], tmp_path: Path) -> None:
    found = next(one for one in CLIENTS if one is client)
    if missing := found.missing_tools():
        pytest.skip(f"the client {found.name} is not run: {', '.join(missing)} not found")
    try:
        build(found)
    except FetchError as error:
        pytest.skip(f"the client {found.name} is not run: {error}")
    problems, unseen = judge(found, tmp_path, places)
    assert {check: problem for check, problem in problems.items() if problem} == {}
    assert unseen == [], "mistakes that were not seen"
    assert play_example(found, places) == ""
