"""What the server itself says: its queue and devices while the test runs, and its record of every job after it."""

import asyncio
import time
from dataclasses import dataclass, field

import grpc
from cadenza.v1 import (
    device_pb2,
    device_service_pb2,
    device_service_pb2_grpc,
    job_pb2,
    job_service_pb2,
    job_service_pb2_grpc,
    share_pb2,
    share_service_pb2,
    share_service_pb2_grpc,
)
from google.protobuf.timestamp_pb2 import Timestamp

from cadenza_loadtest.connection import Connection

RECORDS_MAX = 200_000
"""Jobs that are read back at most: the oldest of the test."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The state of all devices at a moment."""

    at_s: float
    queued: dict[str, int]
    """By class."""
    running: int


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A job as the server recorded it. Times in seconds since the start of the test; None: not yet."""

    user: str
    device: str
    job_class: str
    state: str
    trouble: str
    """Of a failed job: its reason, and the server's sentence."""
    create_s: float
    start_s: float | None
    end_s: float | None


@dataclass(slots=True)
class Observation:
    """All that was seen."""

    samples: list[Sample] = field(default_factory=list)
    jobs: list[JobRecord] = field(default_factory=list)
    jobs_cut: bool = False
    """Whether there are more jobs than were read."""
    accounts: dict[str, tuple[float, float]] = field(default_factory=dict)
    """By account of the test: its shares, and what it was charged meanwhile in device seconds."""
    trouble: str = ""
    """Why something is missing."""


class Observer:
    """Looks at the server once a second, as the caller of the command: an operator sees everybody's jobs."""

    def __init__(self, connection: Connection, start: float) -> None:
        self._connection = connection
        self._start = start
        self._channel = connection.open()
        self._metadata = connection.metadata(None)
        self._before: dict[str, float] = {}
        self.seen = Observation()

    async def list_devices(self) -> list[device_pb2.Device]:
        """The server's devices."""
        stub = device_service_pb2_grpc.DeviceServiceStub(self._channel)
        answer = await stub.ListDevices(device_service_pb2.ListDevicesRequest(), metadata=self._metadata)
        return list(answer.devices)

    async def watch(self) -> None:
        """Take samples until cancelled."""
        self._before = {node.path: node.charged_s for node in await self._list_accounts()}
        while True:
            try:
                devices = await self.list_devices()
            except grpc.RpcError:
                # a server under load may be late; the next sample says so by its time
                await asyncio.sleep(1)
                continue
            counts = [device.queue_counts for device in devices]
            queued = {
                "calibration": sum(each.calibration for each in counts),
                "session": sum(each.session for each in counts),
                "fair share": sum(each.fair_share for each in counts),
            }
            running = sum(1 for device in devices if device.running_job_id)
            self.seen.samples.append(Sample(time.time() - self._start, queued, running))
            await asyncio.sleep(1)

    async def finish(self, tag: str | None) -> Observation:
        """Read the record of all jobs that carry `tag`, and what the accounts were charged; None: of none."""
        if tag is None:
            self.seen.trouble = "the server's record was not read"
            await self._channel.close()
            return self.seen
        try:
            for node in await self._list_accounts():
                self.seen.accounts[node.path] = (node.shares, node.charged_s - self._before.get(node.path, 0.0))
            await self._read_jobs(tag)
        except grpc.RpcError as error:
            self.seen.trouble = f"the server's record could not be read: {error.details()}"
        else:
            if not self.seen.jobs:
                self.seen.trouble = "the server shows none of the jobs to this caller: run as an operator to see them"
        await self._channel.close()
        return self.seen

    async def _list_accounts(self) -> list[share_pb2.ShareNode]:
        stub = share_service_pb2_grpc.ShareServiceStub(self._channel)
        request = share_service_pb2.ListSharesRequest(parent="load", page_size=1_000)
        try:
            answer = await stub.ListShares(request, metadata=self._metadata)
        except grpc.RpcError:
            return []  # no user of the test has ever called
        # a page is enough: accounts come before what is below them, or the comparison of shares goes without
        return [
            node
            for node in answer.nodes
            if node.kind == share_pb2.SHARE_NODE_KIND_ACCOUNT and node.path.count("/") == 1
        ]

    async def _read_jobs(self, tag: str) -> None:
        stub = job_service_pb2_grpc.JobServiceStub(self._channel)
        request = job_service_pb2.ListJobsRequest(page_size=1_000, oldest_first=True, tags=[tag])
        while True:
            answer = await stub.ListJobs(request, metadata=self._metadata)
            self.seen.jobs.extend(self._record(job) for job in answer.jobs)
            request.page_token = answer.next_page_token
            if not request.page_token:
                return
            if len(self.seen.jobs) >= RECORDS_MAX:
                self.seen.jobs_cut = True
                return

    def _record(self, job: job_pb2.Job) -> JobRecord:
        return JobRecord(
            user=job.user,
            device=job.device,
            job_class=job_pb2.JobClass.Name(job.job_class).removeprefix("JOB_CLASS_").lower(),
            state=job_pb2.JobState.Name(job.state).removeprefix("JOB_STATE_").lower(),
            trouble=_describe(job),
            create_s=self._seconds(job.create_time),
            start_s=self._seconds(job.start_time) if job.HasField("start_time") else None,
            end_s=self._seconds(job.end_time) if job.HasField("end_time") else None,
        )

    def _seconds(self, moment: Timestamp) -> float:
        return moment.seconds + moment.nanos / 1e9 - self._start


def _describe(job: job_pb2.Job) -> str:
    if job.state != job_pb2.JOB_STATE_FAILED:
        return ""
    return f"{job_pb2.JobReason.Name(job.reason).removeprefix('JOB_REASON_')}: {job.detail}"[:200]
