"""Celery's side of the work: what its worker loads."""

import os
from typing import Any

from celery import Celery

from tests.benchmarks.peers.work import FUNCTIONS

app = Celery("peers", broker=os.environ["PEERS_REDIS"], backend=os.environ["PEERS_REDIS"])
app.conf.update(
    task_acks_late=True,
    worker_hijack_root_logger=False,
)

TASKS: dict[str, Any] = {kind: app.task(name=kind)(function) for kind, function in FUNCTIONS.items()}
