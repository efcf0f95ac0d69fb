"""The script of docs/cluster.md on a Slurm of its own, on this machine: `make test-slurm`."""

import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ranks import OPEN_MPI, ROOT, rank_environment
from tests.test_hosts import PATH, wait_until
from tests.test_resume import RUNS, assert_equal, cwd_of, launch

pytestmark = [pytest.mark.cluster, pytest.mark.mpi]

FLAGS = ("--num-timesteps", "60000")  # longer than Slurm takes to pre-empt a job
SLURM_CONF = """
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
FirstJobId={first}   # a new one each time: MPICH names its shared memory by the job
AuthInfo=socket={folder}/munge.socket,cred_expire=5   # a requeued job waits for as long
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=pmi2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides   # two CPUs, whatever there is
NodeName=localhost NodeAddr=127.0.0.1 CPUs=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_interval=1
PartitionName=low Nodes=localhost PriorityTier=1 Default=YES
PartitionName=high Nodes=localhost PriorityTier=2
"""
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue")


def skip_unless_possible():
    if OPEN_MPI:
        pytest.skip("Slurm's pmi2 is for MPICH")
    if os.geteuid() != 0:
        pytest.skip("a Slurm of its own needs root")
    for program in PROGRAMS:
        if shutil.which(program, path=PATH) is None:
            pytest.skip(f"there is no {program}: apt-get install slurm-wlm munge")


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Slurm:
    """Munge, controller and node, in a folder; `run` gives commands to them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = rank_environment(PATH=PATH, SLURM_CONF=str(folder / "slurm.conf"))
        self.daemons: list[subprocess.Popen] = []

    def begin(self) -> None:
        """Start the daemons and wait for them."""
        folder = self.folder
        for name in ("state", "spool"):
            (folder / name).mkdir()
        ports = free_port(), free_port()
        (folder / "slurm.conf").write_text(
            SLURM_CONF.format(folder=folder, ports=ports, first=1 + secrets.randbelow(60_000_000))
        )
        (folder / "munge.key").write_bytes(os.urandom(1024))
        (folder / "munge.key").chmod(0o400)
        munge = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
        self.start("munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *munge)
        wait_until((folder / "munge.socket").exists)
        self.start("slurmctld", "-D")
        self.start("slurmd", "-D", "-N", "localhost")
        wait_until(lambda: "idle" in self.run("sinfo", "--noheader"))

    def start(self, *command: str) -> None:
        with open(self.folder / f"{command[0]}.out", "w") as out:
            daemon = subprocess.Popen(command, env=self.environment, stdout=out, stderr=out)
        self.daemons.append(daemon)

    def run(self, *command: str, **options) -> str:
        """Return what a command writes."""
        done = subprocess.run(
            command, env=self.environment, text=True, stdout=subprocess.PIPE, **options
        )
        return done.stdout

    def stop(self) -> None:
        """End all jobs and the daemons."""
        self.run("scancel", "--user=root")
        wait_until(lambda: not self.run("squeue", "--noheader"), seconds=60)
        for daemon in reversed(self.daemons):
            daemon.terminate()
            daemon.wait(timeout=30)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """Return a Slurm that runs jobs on this machine."""
    skip_unless_possible()
    slurm = Slurm(tmp_path_factory.mktemp("slurm"))
    try:
        slurm.begin()
        yield slurm
    finally:
        slurm.stop()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return the folder of a run on two ranks that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    launch(2, "hopper", *FLAGS, "--log-path", "run", folder=folder)
    return folder / "run"


class Job:
    """The job of docs/cluster.md with another number of ranks, another time, and other flags."""

    def __init__(self, slurm: Slurm, folder: Path, *, save_interval: int) -> None:
        self.slurm, self.folder = slurm, folder
        document = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
        (script,) = re.findall(r"```bash\n(#!/bin/bash.*?)```", document, re.DOTALL)
        for pattern, value in {
            r"--ntasks=\d+": "--ntasks=2",
            r"--save-interval \d+": f"--save-interval {save_interval}",
            r"--env Humanoid-v4 --preset humanoid --seed 0": " ".join(
                [*RUNS["hopper"][1:], *FLAGS]
            ),
        }.items():
            script, count = re.subn(pattern, value, script)
            assert count == 1
        (folder / "train.sbatch").write_text(script)
        (folder / "run_mujoco.py").symlink_to(ROOT / "run_mujoco.py")
        (folder / ".venv" / "bin").mkdir(parents=True)
        (folder / ".venv" / "bin" / "activate").write_text(
            f'PATH="{os.path.dirname(sys.executable)}:$PATH"\n'
        )
        submit = ["sbatch", "--parsable", "train.sbatch"]
        self.id = slurm.run(*submit, cwd=folder).strip()
        self.run = folder / "runs" / f"humanoid-{self.id}"

    def output(self) -> str:
        """Return what the job has written, over all its starts."""
        path = self.folder / f"slurm-{self.id}.out"
        return path.read_text() if path.exists() else ""

    def iterations(self) -> int:
        """Return how many iterations have begun, those begun again included."""
        return self.output().count("** Iteration ")

    def wait_for_iterations(self, count: int) -> None:
        """Wait for so many more iterations to begin."""
        count += self.iterations()
        wait_until(lambda: self.iterations() >= count, seconds=240)

    def wait_until_ended(self) -> str:
        """Return the state in which the job ends."""
        wait_until(lambda: self.state() not in ("RUNNING", "PENDING", "COMPLETING"), seconds=240)
        return self.state()

    def state(self) -> str:
        """Return the job's state, such as RUNNING."""
        shown = self.slurm.run("scontrol", "show", "job", self.id)
        return re.search(r"JobState=(\w+)", shown)[1]

    def ranks(self) -> list[int]:
        """Return the process ids of the job's ranks."""
        return [
            int(path.parent.name)
            for path in Path("/proc").glob("[0-9]*/cwd")
            if cwd_of(path) == self.folder and "python" in os.readlink(path.with_name("exe"))
        ]


def requeue(slurm, job):
    slurm.run("scontrol", "requeue", job.id)


def pre_empt(slurm, job):
    slurm.run("sbatch", "--partition=high", "--ntasks=2", "--wrap=true", "--output=/dev/null")


def end_time(slurm, job):
    """Send what Slurm sends at the time of --signal."""
    slurm.run("scancel", "--signal=USR1", job.id)


@pytest.mark.parametrize("events", [(requeue, requeue), (pre_empt, end_time)])
def test_a_job_that_is_taken_away_goes_on_by_itself(events, slurm, whole, tmp_path):
    job = Job(slurm, tmp_path, save_interval=0)
    for count, iterations, event in zip((1, 2), (3, 5), events, strict=True):
        job.wait_for_iterations(iterations)
        event(slurm, job)
        wait_until(lambda: job.output().count(", and saved; go on with") == count, seconds=60)  # noqa: B023
    assert job.wait_until_ended() == "COMPLETED", job.output()
    assert job.output().count(", and saved; go on with") == 2, job.output()
    assert job.output().count(", exactly") == 2
    assert_equal(job.run, whole)
    rows = len((job.run / "progress.csv").read_text().splitlines()) - 1
    assert job.iterations() == rows  # so none had to be done again


def test_a_killed_rank_ends_the_job_which_can_be_requeued(slurm, whole, tmp_path):
    job = Job(slurm, tmp_path, save_interval=3)
    job.wait_for_iterations(8)
    os.kill(job.ranks()[0], 9)
    took = wait_until(lambda: job.state() == "FAILED", seconds=40)
    print(f"the job ended after {took:.1f} s")
    assert took < 10 + 5  # srun --wait, and some
    assert not job.ranks()
    requeue(slurm, job)
    assert job.wait_until_ended() == "COMPLETED", job.output()
    assert_equal(job.run, whole)
    rows = len((job.run / "progress.csv").read_text().splitlines()) - 1
    assert job.iterations() - rows <= 3
