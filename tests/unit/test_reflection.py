"""Reflection finds what tools ask for."""

import pytest
from cadenza.v1 import job_service_pb2
from cadenza_server.api.reflection import ReflectionPool


@pytest.mark.parametrize("symbol", ["JobService", "JobService.SubmitJob", "SubmitJobRequest"])
def test_the_file_of_a_symbol_is_found(symbol: str) -> None:
    found = ReflectionPool().FindFileContainingSymbol(f"cadenza.v1.{symbol}")
    assert found.name == job_service_pb2.DESCRIPTOR.name


@pytest.mark.parametrize("symbol", ["cadenza.v1.JobService.Nothing", "cadenza.v1.Nothing", "Nothing", ""])
def test_symbols_that_are_not_there_are_not_found(symbol: str) -> None:
    with pytest.raises(KeyError):
        ReflectionPool().FindFileContainingSymbol(symbol)
