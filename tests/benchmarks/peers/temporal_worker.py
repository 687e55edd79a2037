"""Temporal's worker: one activity at a time, imports done before: `temporal_worker.py TARGET`."""

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import qiskit.qpy
from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.worker import Worker

from tests.benchmarks.peers.work import FUNCTIONS, simulator

assert qiskit.qpy


@activity.defn(name="work")  # type: ignore[untyped-decorator]
def work(kind: str, payload: bytes) -> int:
    """What a job does."""
    return FUNCTIONS[kind](payload)


@workflow.defn(name="Job", sandboxed=False)
class Job:
    """A job: one activity."""

    @workflow.run  # type: ignore[untyped-decorator]
    async def run(self, kind: str, payload: bytes) -> int:
        """When the activity began, in ns since 1970."""
        began: int = await workflow.execute_activity(
            "work", args=[kind, payload], start_to_close_timeout=timedelta(seconds=60)
        )
        return began


async def main(target: str) -> None:
    """Work until it is ended."""
    client = await Client.connect(target)
    with ThreadPoolExecutor(1) as threads:
        worker = Worker(
            client,
            task_queue="jobs",
            workflows=[Job],
            activities=[work],
            activity_executor=threads,
            max_concurrent_activities=1,
        )
        await worker.run()


if __name__ == "__main__":
    simulator()
    asyncio.run(main(sys.argv[1]))
