"""HyperQueue and Slurm: schedulers of clusters, whose jobs are processes."""

import importlib.metadata
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from tests.benchmarks.peers.peer import AbsentError, Daemons, Peer, wait_until
from tests.benchmarks.peers.work import make_payload

ROOT = Path(__file__).parents[3]

STAMP = "date +%s%N"
"""A job's start is the first line of its output."""

GHZ = """
import sys
from tests.benchmarks.peers.work import count_ghz
print(count_ghz(open(sys.argv[1], "rb").read()))
"""


class AsProcesses(Peer):
    """Jobs are commands that write the time of their start into a folder."""

    def prepare(self, folder: Path) -> None:
        """Write what the jobs read."""
        self.folder = folder
        (folder / "payload").write_bytes(make_payload("ghz"))
        (folder / "ghz.py").write_text(GHZ)
        (folder / "out").mkdir(exist_ok=True)
        self.count = 0

    def command(self, kind: str) -> str:
        """What a job does."""
        if kind == "nothing":
            return STAMP
        return f"PYTHONPATH={ROOT}:$PYTHONPATH {sys.executable} {self.folder}/ghz.py {self.folder}/payload"


class HyperQueue(AsProcesses):
    name = "hyperqueue"
    how = (
        "its Python API's local cluster, one worker of one core, in memory (the journal is an option of its program, "
        "which no package here has); a job of many tasks, each a process; users are not told apart"
    )
    scale: ClassVar = {"nothing": 1.0, "ghz": 0.02, "single": 0.02}

    def version(self) -> str:
        try:
            return importlib.metadata.version("hyperqueue")
        except importlib.metadata.PackageNotFoundError:
            raise AbsentError("the Python package hyperqueue is not installed") from None

    def start(self, folder: Path) -> None:
        self.version()
        from hyperqueue.cluster import LocalCluster, WorkerConfig

        self.prepare(folder)
        self._cluster: Any = LocalCluster(str(folder / "server"), WorkerConfig(cores=1))
        self._client: Any = self._cluster.client()
        self._submitting = threading.Lock()

    def stop(self) -> None:
        self._cluster.stop()

    def submit(self, kind: str, count: int, user: str) -> Sequence[Any]:
        from hyperqueue import Job

        job: Any = Job()
        outputs = []
        for _ in range(count):
            self.count += 1
            output = self.folder / "out" / str(self.count)
            job.program(["sh", "-c", self.command(kind)], stdout=str(output), stderr=None)
            outputs.append(output)
        with self._submitting:
            submitted = self._client.submit(job)
        return [(submitted, output) for output in outputs]

    def finish(self, handles: Sequence[Any]) -> list[int]:
        if threading.current_thread() is threading.main_thread():
            self._client.wait_for_jobs([handles[0][0]], False)
        else:
            # a process has one client, and while that waits it takes no second call: look at what the jobs write
            wait_until(lambda: all(output.exists() and output.read_text() for _, output in handles), "its jobs", 600)
        return [int(output.read_text().split()[0]) for _, output in handles]


SLURM = """
ClusterName=peers
SlurmctldHost={host}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
MaxArraySize=10001
MaxJobCount=20000
SelectType=select/cons_tres
SchedulerParameters=defer_batch,sched_min_interval=10000,batch_sched_delay=0
PriorityType=priority/multifactor
PriorityWeightFairshare=1000
NodeName={host} CPUs=1 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class Slurm(AsProcesses):
    name = "slurm"
    durable = True
    how = (
        "Debian's, one node of one CPU; an array job for many; its state is saved to disk every few seconds; all jobs "
        "are root's and there is no accounting: users are not told apart"
    )
    scale: ClassVar = {"nothing": 0.02, "ghz": 0.02, "single": 0.02}
    queue_max = 10_000

    def version(self) -> str:
        if shutil.which("sbatch") is None or shutil.which("slurmctld") is None:
            raise AbsentError("sbatch and slurmctld are not installed (apt-get install slurm-wlm)")
        return subprocess.run(["slurmctld", "-V"], capture_output=True, text=True, check=True).stdout.split()[-1]

    def start(self, folder: Path) -> None:
        self.version()
        if os.geteuid() != 0:
            raise AbsentError("its daemons need root")
        self.prepare(folder)
        for part in ("state", "spool"):
            (folder / part).mkdir()
        configuration = folder / "slurm.conf"
        configuration.write_text(SLURM.format(host=socket.gethostname().partition(".")[0], folder=folder))
        self.environment = {**os.environ, "SLURM_CONF": str(configuration)}
        self._daemons = Daemons()
        if subprocess.run(["munge", "-n"], capture_output=True, check=False).returncode:
            Path("/run/munge").mkdir(exist_ok=True)
            shutil.chown("/run/munge", "munge", "munge")
            self._daemons.run(["runuser", "-u", "munge", "--", "munged", "--foreground"], folder)
            time.sleep(1)
        for daemon in ("slurmctld", "slurmd"):
            self._daemons.run([daemon, "-D", "-f", str(configuration)], folder)
        wait_until(lambda: "idle" in self._ask("sinfo", "-h", "-o", "%T"), "slurm")

    def stop(self) -> None:
        self._daemons.stop()

    def submit(self, kind: str, count: int, user: str) -> Sequence[Any]:
        self.count += 1
        output = f"{self.folder}/out/{self.count}-%a"
        array = [f"--array=0-{count - 1}"]
        text = self._ask(
            "sbatch", "--parsable", *array, f"--output={output}", "--error=/dev/null", f"--wrap={self.command(kind)}"
        )
        return [(text.strip(), Path(output.replace("%a", str(number)))) for number in range(count)]

    def finish(self, handles: Sequence[Any]) -> list[int]:
        def ended() -> bool:
            return not self._ask("squeue", "-h", "-j", handles[0][0]).strip()

        wait_until(ended, "the end of its jobs", 600)
        return [int(output.read_text().split()[0]) for _, output in handles]

    def _ask(self, *command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=self.environment)
        return done.stdout
