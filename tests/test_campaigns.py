"""Campaigns: whole runs that are killed or stopped at random moments, then resumed.

`make test-faults` runs them all; the slow tests have a sample.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from common.checkpoint import checkpoint_files, read_newest
from tests.ranks import OPEN_MPI, ROOT, mpirun, rank_environment
from tests.test_resume import assert_equal, cwd_of

ITERATIONS = 40
RUN = (
    str(ROOT / "run_mujoco.py"), "--env", "CartPole-v1", "--seed", "5",
    "--max-iters", str(ITERATIONS), "--schedule", "constant", "--timesteps-per-actorbatch", "256",
    "--optim-batchsize", "128", "--optim-epochs", "2", "--save-interval", "3", "--keep", "2",
)  # fmt: skip
SECONDS_TO_END = 10.0


class Moment(NamedTuple):
    """Some seconds after the launch, or after an iteration's first line."""

    iteration: int | None
    seconds: float


def campaign(count):
    """Return `count` cases to parametrize a test by: generators, of which two are a sample."""
    sample = (0, 1)
    return [
        pytest.param(random.Random(number), id=str(number),
                     marks=[pytest.mark.faults, *[pytest.mark.slow] * (number in sample)])
        for number in range(count)
    ]  # fmt: skip


def random_moment(rng, *, at_launch):
    """Return a moment from the launch on, or in the first three quarters of the iterations."""
    if at_launch:
        return Moment(None, rng.uniform(0.0, 5.0))
    return Moment(rng.randrange(ITERATIONS * 3 // 4), rng.uniform(0.0, 0.2))


def ranks_of(folder):
    """Return the process ids of the ranks that work in `folder`, in order of their start."""
    python = Path(sys.executable).resolve()
    return sorted(
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cwd")
        if cwd_of(path) == folder and Path(path.parent, "exe").resolve() == python
    )


def start(nprocs, folder, **options):
    return subprocess.Popen(
        ["mpirun", "-np", str(nprocs), sys.executable, *RUN, "--log-path", "run"],
        cwd=folder, env=rank_environment(), text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options,
    )  # fmt: skip


def wait_for(moment, process):
    if moment.iteration is not None:
        for line in process.stdout:
            if f"Iteration {moment.iteration} " in line:
                break
    time.sleep(moment.seconds)


def end(process, folder):
    """Return exit code and output of a job that must end now, and check that nothing is left."""
    begin = time.monotonic()
    out, _ = process.communicate(timeout=60)
    while any(cwd_of(path) == folder for path in Path("/proc").glob("[0-9]*/cwd")):
        assert time.monotonic() - begin < SECONDS_TO_END, "processes are left"
        time.sleep(0.1)
    assert time.monotonic() - begin < SECONDS_TO_END, out
    return process.returncode, out


def resume_and_compare(nprocs, folder, whole):
    """Check that the run, resumed, equals `whole`, and that its newest checkpoint is good."""
    checkpoints = folder / "run" / "checkpoints"
    newest = checkpoint_files(checkpoints)
    if newest:
        assert read_newest(checkpoints)[0] == newest[0]
    done = mpirun(nprocs, *RUN, "--resume", "--log-path", "run", cwd=folder, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    want = f"{int(newest[0].stem[-9:])}, exactly" if newest else "starting from the beginning"
    assert want in done.stdout
    assert_equal(folder / "run", whole)
    assert not list(checkpoints.glob(".*"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return a function: number of ranks -> folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")

    def run(nprocs):
        path = folder / str(nprocs)
        if not path.exists():
            done = mpirun(nprocs, *RUN, "--log-path", str(path), cwd=folder, timeout=180)
            assert done.returncode == 0, done.stderr
        return path

    return run


@pytest.mark.parametrize("nprocs", [2, 4])
@pytest.mark.parametrize("rng", campaign(20))
def test_a_killed_rank_ends_the_job_which_resumes(rng, nprocs, whole, tmp_path, request):
    rng = random.Random(f"{request.node.name}")
    moment = random_moment(rng, at_launch=rng.random() < 0.25)
    with start(nprocs, tmp_path) as process:
        wait_for(moment, process)
        while len(ranks := ranks_of(tmp_path)) < nprocs:  # before the launcher has started them
            assert process.poll() is None
            time.sleep(0.01)
        os.kill(rng.choice(ranks), signal.SIGKILL)
        code, out = end(process, tmp_path)
    assert code != 0, out
    resume_and_compare(nprocs, tmp_path, whole(nprocs))


# Open MPI kills a second after TERM: there the signal that stops a run is USR1.
NUMBER = signal.SIGUSR1 if OPEN_MPI else signal.SIGTERM


@pytest.mark.parametrize("rng", campaign(10))
def test_a_stopped_run_resumes_as_if_it_had_not_been(rng, whole, tmp_path, request):
    rng = random.Random(f"{request.node.name}")
    at_launch = rng.random() < 0.3
    moment = random_moment(rng, at_launch=at_launch)
    to_rank = not at_launch and rng.random() < 0.3
    with start(2, tmp_path) as process:
        wait_for(moment, process)
        os.kill(rng.choice(ranks_of(tmp_path)) if to_rank else process.pid, NUMBER)
        code, out = end(process, tmp_path)
    assert code != 0, out
    assert at_launch or f"stopped by {NUMBER.name}, and saved; go on with" in out
    resume_and_compare(2, tmp_path, whole(2))
