"""RQ's worker, with what jobs need imported before it forks, as its documentation advises: `rq_worker.py URL`."""

import sys

import qiskit.qpy
import redis
from rq import Queue, Worker

from tests.benchmarks.peers.work import simulator

assert qiskit.qpy
simulator()
connection = redis.Redis.from_url(sys.argv[1], socket_timeout=None)
Worker([Queue("jobs", connection=connection)], connection=connection).work(logging_level="ERROR")
