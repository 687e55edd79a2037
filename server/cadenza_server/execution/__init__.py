"""Devices: worker processes that execute programs, and the asyncio side that keeps them warm. Imports no Qiskit."""

from cadenza_server.execution.description import describe_spec
from cadenza_server.execution.device import Device
from cadenza_server.execution.runs import Assignment, RunReport
from cadenza_server.execution.spec import DeviceSpec

__all__ = ["Assignment", "Device", "DeviceSpec", "RunReport", "describe_spec"]
