"""The live servers, once for all tests of this folder."""

from collections.abc import Iterator

import pytest

from tests.conformance.servers import served


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Where they are: see `served`."""
    pytest.importorskip("cryptography")
    with served(tmp_path_factory.mktemp("servers")) as found:
        yield found
