#!/usr/bin/env python
"""Measure how fast training is, beside what the environment alone would allow.

    python benchmarks/throughput.py
    python benchmarks/throughput.py --peer sb3 --peer-python ~/sb3/bin/python
    python benchmarks/throughput.py --env Walker2d-v4 --ranks 1,2 --out walker.csv

Every number is measured in the one run that writes it: the learner is the run scripts' own, started
by mpirun, and the environment alone is measured on the same ranks between its iterations. The rows
go to a CSV, from which the tables in README.md and METHODS.md are made.
"""

import argparse
import contextlib
import importlib.metadata
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from statistics import median, quantiles
from typing import Any

# Nothing of ours but this: the file also runs in the peer's interpreter, and the process that
# starts the ranks must not be an MPI process itself.
import throughput_report as tables
from throughput_report import COLUMNS, Row

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "throughput.csv"

ENVIRONMENTS = ("HalfCheetah-v4", "Hopper-v4", "PongNoFrameskip-v4")
PEER_ENVIRONMENTS = ("HalfCheetah-v4", "PongNoFrameskip-v4")
SIZES_ENVIRONMENT = "HalfCheetah-v4"
SIZES = ((64, 3), (256, 2), (256, 3))  # units and layers, besides the preset's own
ALLREDUCE_FLOATS = (1, 11_000, 1_700_000)  # latency; about the MLP's and the CNN's gradient
ALLREDUCE_RANKS = (2, 4)
QUICK_FLAGS = ("--timesteps-per-actorbatch", "256", "--optim-epochs", "2")
WARMUP = 2  # iterations before those that count: the first compiles
PACKAGES = ("torch", "numpy", "gymnasium", "mujoco", "ale-py", "mpi4py")
CASE_SECONDS = 900  # after which a case is given up
# MPI calls that are timed; those that learning does not make cost nothing.
COLLECTIVES = (
    "Allreduce", "Allgather", "Bcast", "Barrier", "allgather", "allreduce", "bcast", "gather",
)  # fmt: skip

Span = tuple[float, float]  # begin and end, on the clock that all processes of a machine share


def arg_parser() -> argparse.ArgumentParser:
    """Return the parser of this script's flags."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    flags: dict[str, dict[str, Any]] = {
        "--env": dict(
            metavar="ID,ID",
            type=lambda text: text.split(","),
            help="only these, MuJoCo's or Atari's (default: all cases)",
        ),
        "--ranks": dict(
            metavar="N,N",
            type=positive_numbers,
            help="numbers of ranks (default: 1,2,4 for MuJoCo, 1 for Atari)",
        ),
        "--iterations": dict(
            metavar="N",
            type=positive_number,
            help="iterations that count (default: 12 for MuJoCo, 8 for Atari)",
        ),
        "--seed": dict(metavar="N", type=int, default=0, help="of every case (default: 0)"),
        "--allreduce": dict(action="store_true", help="measure Allreduce alone"),
        "--peer": dict(choices=["sb3"], help="measure Stable-Baselines3's PPO beside ours"),
        "--peer-python": dict(
            metavar="PATH",
            default=sys.executable,
            help="the interpreter that has the peer (default: this one)",
        ),
        "--quick": dict(
            action="store_true", help="few and short iterations, eager: shows only that all works"
        ),
        "--out": dict(
            metavar="CSV",
            type=Path,
            help="default: results/throughput.csv if all cases are measured, else none",
        ),
        "--tables": dict(
            action="store_true", help="measure nothing; rewrite the tables from the CSV"
        ),
        "--worker": dict(metavar="FOLDER", type=Path, help=argparse.SUPPRESS),
    }  # fmt: skip
    for name, options in flags.items():
        parser.add_argument(name, **options)
    return parser


def positive_number(text: str) -> int:
    """Return a whole number above 0 from its text."""
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"need a whole number above 0, got {text!r}")


def positive_numbers(text: str) -> list[int]:
    """Return whole numbers above 0 from a comma-separated text."""
    return [positive_number(part) for part in text.split(",")]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure as the command line `argv` says; None is the process's own."""
    argv = sys.argv[1:] if argv is None else argv
    args = arg_parser().parse_args(argv)
    if args.worker:
        work(args.worker)
        return
    everything = not (args.env or args.ranks or args.allreduce)
    # What is too little or too short for the report does not replace it.
    is_report = everything and not (args.quick or args.iterations or args.out)
    if not args.tables:
        rows = list(measure(args, argv, everything=everything))
        out = args.out or (RESULTS if is_report else None)
        if out is not None:
            tables.write_csv(out, rows)
            print(f"Wrote {out}")
    if is_report:
        texts = tables.render(tables.read_csv(RESULTS))
        tables.fill_reports(HERE, texts)
        print(f"Wrote the tables in README.md and METHODS.md of {HERE}:\n\n{texts[0]}")


def measure(args: argparse.Namespace, argv: Sequence[str], *, everything: bool) -> Iterator[Row]:
    """Yield the rows of all cases that were asked for, and print each in words."""
    common = description(args, argv)
    # A fresh cache, so that what is cold and what is warm does not depend on earlier runs
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        for figures in measure_cases(args, everything=everything):
            row = tables.six_digits({**dict.fromkeys(COLUMNS, ""), **common, **figures})
            print(tables.sentence(row), flush=True)
            yield row


def measure_cases(args: argparse.Namespace, *, everything: bool) -> Iterator[Row]:
    """Yield the figures of each case, in the order in which they are measured."""
    compiled: set[tuple[str, ...]] = set()
    if not args.allreduce:
        for env in args.env or ENVIRONMENTS:
            for ranks in args.ranks or ([1] if is_atari(env) else [1, 2, 4]):
                yield training_row(args, env, ranks, compiled=compiled)
    if everything:
        for units, layers in SIZES:
            flags = ("--hid-size", str(units), "--num-hid-layers", str(layers))
            yield training_row(args, SIZES_ENVIRONMENT, 1, flags, compiled=compiled)
    if everything or args.allreduce:
        for ranks in args.ranks or ALLREDUCE_RANKS:
            yield from allreduce_rows(ranks, blocks=3 if args.quick else 20)
    if args.peer and peer_is_there(args.peer_python):
        for env in args.env or PEER_ENVIRONMENTS:
            yield peer_row(args, env, rounds=1 if args.quick else 3)


def is_atari(env: str) -> bool:
    """Return whether run_atari.py runs this environment."""
    return "NoFrameskip" in env


def description(args: argparse.Namespace, argv: Sequence[str]) -> Row:
    """Return what all rows of a run share: machine, date and command, without anybody's paths."""
    words = " ".join(argv).replace(args.peer_python, "PYTHON")
    words = words.replace(str(args.out), "CSV") if args.out else words
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    return {
        "seed": args.seed,
        "cores": len(usable) or os.cpu_count(),
        "cpu": cpu_model(),
        "machine": f"{platform.system()} {platform.machine()}",
        "load_before": round(os.getloadavg()[0], 2),
        "versions": versions(),
        "commit": git_commit(),
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "command": f"python benchmarks/throughput.py {words}".strip(),
    }


def cpu_model() -> str:
    """Return the processor's name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def versions() -> str:
    """Return the versions of Python and of the packages that decide the speed."""
    installed = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[package] = importlib.metadata.version(package)
    return ", ".join(f"{name} {version}" for name, version in installed.items())


def git_commit() -> str:
    """Return the commit of this checkout, "unknown" outside of one."""
    command = ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--abbrev=12",
               "--exclude=*"]  # fmt: skip
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


# ---- Cases, in the process that starts the ranks -------------------------------------------------


def launch(spec: Row, *, ranks: int = 0, python: str = sys.executable) -> Row:
    """Run this file as a worker and return what its first rank reports.

    Args:
        spec: what to do; `kind` names the worker.
        ranks: under mpirun; 0 starts one process without it.
        python: the interpreter.

    Raises:
        SystemExit: with the last lines of the worker's output, if it fails.
    """
    beside = Path(sys.executable).parent / "mpirun"
    mpirun = str(beside) if beside.exists() else shutil.which("mpirun") or "mpirun"
    launcher = [mpirun, "-np", str(ranks)] if ranks else []
    environment = {"OMP_NUM_THREADS": "1", "MPIEXEC_TIMEOUT": str(CASE_SECONDS)}
    if ranks:
        environment["PYTHONPATH"] = str(HERE.parent)
    with tempfile.TemporaryDirectory() as folder:
        spec = {**spec, "launched": time.perf_counter()}
        Path(folder, "spec.json").write_text(json.dumps(spec))
        with Path(folder, "output").open("w+") as output:
            done = subprocess.run(
                [*launcher, python, __file__, "--worker", folder],
                env={**os.environ, **environment},
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=CASE_SECONDS + 30,
            )
            output.seek(0)
            last_lines = "".join(output.readlines()[-30:])
        result = Path(folder, "result.json")
        if done.returncode != 0 or not result.exists():
            sys.exit(f"{last_lines}\nworker failed with exit code {done.returncode}: {spec}")
        return json.loads(result.read_text())


def train(
    args: argparse.Namespace,
    env: str,
    ranks: int,
    flags: Sequence[str] = (),
    *,
    iterations: int,
    split_iterations: int,
) -> Row:
    """Train for some iterations and return the worker's report."""
    spec = {
        "kind": "train", "env": env, "seed": args.seed, "compile": not args.quick,
        "flags": [*flags, *QUICK_FLAGS] if args.quick else list(flags),
        "iterations": iterations, "split_iterations": split_iterations,
    }  # fmt: skip
    return launch(spec, ranks=ranks)


def training_row(
    args: argparse.Namespace,
    env: str,
    ranks: int,
    flags: Sequence[str] = (),
    *,
    compiled: set[tuple[str, ...]],
) -> Row:
    """Measure one case; adds the network to `compiled`, those in the compiler's cache."""
    iterations = 2 if args.quick else args.iterations or (8 if is_atari(env) else 12)
    split_iterations = 2 if args.quick else 4
    report = train(
        args, env, ranks, flags, iterations=iterations, split_iterations=split_iterations
    )
    facts = report["facts"]
    cache = "warm" if (env, *flags) in compiled else "cold"
    compiled.add((env, *flags))
    return {
        "kind": "train",
        "environment": env,
        "ranks": ranks,
        "iterations": iterations,
        **facts,
        "compile_cache": cache if facts["compiled"] else "",
        **training_figures(report["ranks"], facts["steps_per_iteration"]),
        "startup_s": report["startup_s"],
        "peak_mib": max(rank["peak_mib"] for rank in report["ranks"]),
        **mean_split([split for rank in report["ranks"] for split in rank["splits"]]),
    }


def training_figures(ranks: Sequence[Row], steps: int) -> Row:
    """Return steps/s of all ranks together, training and environment alone, and their ratio.

    An iteration lasts from the first rank's start to the last rank's end; so does a block of steps
    of the environment alone. Each iteration is compared with the blocks right before and after it.

    Args:
        ranks: of each rank the spans `train`, n, and `alone`, n + 1, of `steps` steps each.
        steps: a rank's in an iteration.
    """
    trained = [duration(spans) for spans in zip(*(rank["train"] for rank in ranks), strict=True)]
    alone = [duration(spans) for spans in zip(*(rank["alone"] for rank in ranks), strict=True)]
    beside = [(before + after) / 2 for before, after in zip(alone[:-1], alone[1:], strict=True)]
    all_steps = steps * len(ranks)
    rates = [all_steps / seconds for seconds in trained]
    low, _, high = quantiles(rates, n=4, method="inclusive") if len(rates) > 1 else rates * 3
    return {
        "train_steps_per_s": median(rates),
        "train_steps_per_s_q1": low,
        "train_steps_per_s_q3": high,
        "env_steps_per_s": median(all_steps / seconds for seconds in alone),
        "ratio": median(b / t for b, t in zip(beside, trained, strict=True)),
    }


def duration(spans: Iterable[Span]) -> float:
    """Return the seconds from the first beginning to the last end."""
    begins, ends = zip(*spans, strict=True)
    return max(ends) - min(begins)


def mean_split(splits: Sequence[Row]) -> Row:
    """Return the mean over ranks and iterations of each part of an iteration, in seconds."""
    return {name: math.fsum(split[name] for split in splits) / len(splits) for name in splits[0]}


def allreduce_rows(ranks: int, *, blocks: int) -> Iterator[Row]:
    """Yield a row for each length of vector."""
    report = launch({"kind": "allreduce", "blocks": blocks}, ranks=ranks)
    for floats, seconds in report["seconds"]:
        figures = {"floats": floats, "allreduce_us": seconds * 1e6}
        yield {"kind": "allreduce", "ranks": ranks, **figures, "mpi": report["mpi"]}


def peer_is_there(python: str) -> bool:
    """Return whether the interpreter has the peer; if not, say so in one line."""
    command = [python, "-c", "import stable_baselines3"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
        problem = (done.stderr.strip().splitlines() or ["?"])[-1] if done.returncode else ""
    except OSError as error:
        problem = str(error)
    if problem:
        print(f"Leaving out the peer, Stable-Baselines3: {problem}")
    return not problem


def peer_row(args: argparse.Namespace, env: str, *, rounds: int) -> Row:
    """Measure ours and the peer's in turn, on one rank with the same hyperparameters."""
    iterations = 2 if args.quick else args.iterations or 5
    ours, theirs = [], []
    for _ in range(rounds):
        report = train(args, env, 1, iterations=iterations, split_iterations=0)
        figures = training_figures(report["ranks"], report["facts"]["steps_per_iteration"])
        ours.append(figures["train_steps_per_s"])
        spec = {
            "kind": "sb3", "env": env, "seed": args.seed, "iterations": iterations,
            "hyperparameters": report["hyperparameters"],
        }  # fmt: skip
        peer = launch(spec, python=args.peer_python)
        theirs.append(median(peer["steps_per_s"]))
    speedups = [our / their for our, their in zip(ours, theirs, strict=True)]
    return {
        "kind": "peer",
        "environment": env,
        "ranks": 1,
        "iterations": iterations,
        **report["facts"],
        "train_steps_per_s": median(ours),
        "peer": peer["peer"],
        "peer_steps_per_s": median(theirs),
        "peer_versions": peer["versions"],
        "speedup": median(speedups),
        "speedup_min": min(speedups),
        "speedup_max": max(speedups),
        "rounds": rounds,
    }


# ---- Workers -------------------------------------------------------------------------------------


def work(folder: Path) -> None:
    """Do what `spec.json` in the folder says, and leave `result.json` there."""
    spec = json.loads((folder / "spec.json").read_text())
    workers = {"train": train_worker, "allreduce": allreduce_worker, "sb3": sb3_worker}
    result = workers[spec["kind"]](spec, folder)
    if result is not None:  # on the first rank
        (folder / "result.json").write_text(json.dumps(result, default=str))


class Recorder:
    """Takes the times of `learn`, of which it is the callback.

    The first iterations run undisturbed, with a block of steps of another environment of the same
    kind between each two of them. The others run without such blocks, and their parts are timed.

    Attributes:
        train, alone: spans of the undisturbed iterations, and of the blocks around them.
        splits: seconds of each part, one entry a timed iteration.
    """

    def __init__(self, comm: Any, plain: int, step_alone: Callable[[], None]) -> None:
        """Take the ranks, the number of undisturbed iterations, and a function that steps."""
        self.comm = comm
        self.plain = plain
        self.step_alone = step_alone
        self.train: list[Span] = []
        self.alone: list[Span] = []
        self.splits: list[Row] = []
        self.seconds = dict.fromkeys(("rollout", "environment", "communicating"), 0.0)
        self.started = self.handed_over = 0.0
        self.peak_mib = 0.0
        self.learner: dict[str, Any] = {}

    def __call__(self, local: dict[str, Any], _: dict[str, Any]) -> None:
        """Take the time at the top of an iteration. Collective: every rank must call it."""
        now = time.perf_counter()
        iteration = local["iters_so_far"]
        self.learner = local
        if iteration > self.plain:
            self.splits.append(self._split(now))
        elif iteration > 0:
            self.train.append((self.started, now))
        if iteration <= self.plain:
            self._gather_ranks()
            start = time.perf_counter()
            self.step_alone()
            self.alone.append((start, time.perf_counter()))
            self._gather_ranks()
        if iteration == self.plain:
            self.peak_mib = peak_mib()
            for name in COLLECTIVES:
                setattr(self.comm, name, self._timed("communicating", getattr(self.comm, name)))
        self.seconds = dict.fromkeys(self.seconds, 0.0)
        self.started = time.perf_counter()

    def segments(self, generator: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        """Return a stand-in for `traj_segment_generator` that times what comes after `plain`."""

        def segments(pi: Any, env: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
            yield from islice(generator(pi, env, *args, **kwargs), self.plain)
            timed = generator(pi, TimedEnv(env, self._timed), *args, **kwargs)
            while True:
                start = time.perf_counter()
                segment = next(timed)
                self.handed_over = time.perf_counter()
                self.seconds["rollout"] = self.handed_over - start
                yield segment

        return segments

    def _timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = function(*args, **kwargs)
            self.seconds[name] += time.perf_counter() - start
            return result

        return timed

    def _split(self, now: float) -> Row:
        # Acting is the rest of the rollout: the policy, and storing the segment. Optimising is the
        # rest of the iteration: advantages, epochs, evaluation pass and logs. Nothing else happens.
        environment, communicating = self.seconds["environment"], self.seconds["communicating"]
        return {
            "split_iteration_s": now - self.started,
            "acting_s": self.seconds["rollout"] - environment,
            "environment_s": environment,
            "optimising_s": now - self.handed_over - communicating,
            "communicating_s": communicating,
        }

    def _gather_ranks(self) -> None:
        from common.mpi_util import wait_for_all

        wait_for_all(self.comm)  # asleep, leaving the cores to those that still work
        self.comm.Barrier()  # and now to within microseconds


class TimedEnv:
    """What a rollout uses of an environment, timed."""

    def __init__(self, env: Any, timed: Callable[[str, Callable], Callable]) -> None:
        """Take the environment, and what times a function under a name."""
        self.observation_space, self.action_space = env.observation_space, env.action_space
        self.step, self.reset = timed("environment", env.step), timed("environment", env.reset)


def peak_mib() -> float:
    """Return this process's largest resident memory so far."""
    import resource

    # In bytes on macOS, in KiB elsewhere
    unit = 1024**2 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def train_worker(spec: Row, folder: Path) -> Row | None:
    """Train as the run script would, and return the times on the first rank.

    Collective: every rank must call it.
    """
    import torch

    import run_atari
    import run_mujoco
    from common import cmd_util
    from common.mpi_util import abort_job_on_error

    torch.set_num_threads(1)
    script, preset = (run_atari, "baselines") if is_atari(spec["env"]) else (run_mujoco, "mujoco")
    iterations = WARMUP + spec["iterations"] + spec["split_iterations"]
    with abort_job_on_error():
        args = cmd_util.parse_args(
            script.arg_parser(),
            script.PRESETS,
            ["--env", spec["env"], "--preset", preset, "--seed", str(spec["seed"]),
             # Such an end needs a constant stepsize, which costs what a falling one does.
             "--max-iters", str(iterations), "--schedule", "constant", *spec["flags"]],
        )  # fmt: skip
        recorder = record_training(script, args, spec, folder)
        by_rank = recorder.comm.gather(
            {
                "train": recorder.train[WARMUP:],
                "alone": recorder.alone[WARMUP:],
                "splits": recorder.splits,
                "peak_mib": recorder.peak_mib,
            }
        )
        return None if by_rank is None else training_report(recorder, args, spec, by_rank)
    return None  # where the abort of the job has yet to arrive


def record_training(script: Any, args: argparse.Namespace, spec: Row, folder: Path) -> Recorder:
    """Run `learn` and return the times of this rank. Collective: every rank must call it."""
    from mpi4py import MPI

    from common import logger
    from ppo1 import pposgd_simple
    from ppo1.hyperparameters import HYPERPARAMETERS

    class Comm(MPI.Intracomm):
        """COMM_WORLD, but with methods that can be replaced by timed ones."""

    comm = Comm(MPI.COMM_WORLD)

    def make_env(name: str) -> Any:
        logger.configure(str(folder / name), None if comm.Get_rank() else args.log_format)
        return script.make_env(args, args.seed)  # seeds this rank too

    def policy_fn(*name_and_spaces: Any) -> Any:
        pi = script.make_policy(args, *name_and_spaces)
        if hasattr(pi, "ob_rms"):
            pi.ob_rms.comm = comm  # to be timed as well
        return pi

    def step_alone() -> None:
        for action in actions:
            _, _, terminated, truncated, _ = env_alone.step(action)
            if terminated or truncated:
                env_alone.reset()

    env_alone = make_env("alone")
    actions = [env_alone.action_space.sample() for _ in range(args.timesteps_per_actorbatch)]
    env_alone.reset()
    env = make_env("run")
    recorder = Recorder(comm, WARMUP + spec["iterations"], step_alone)
    generator = pposgd_simple.traj_segment_generator
    pposgd_simple.traj_segment_generator = recorder.segments(generator)
    hyperparameters = {name: getattr(args, name) for name in HYPERPARAMETERS}
    overrides = {"compile": spec["compile"], "callback": recorder, "comm": comm}
    pposgd_simple.learn(env, policy_fn, **{**hyperparameters, **overrides})
    env.close()
    env_alone.close()
    logger.reset()
    return recorder


def training_report(
    recorder: Recorder, args: argparse.Namespace, spec: Row, by_rank: Sequence[Row]
) -> Row:
    """Return what the worker reports, on the first rank."""
    import torch

    # Until the first iteration is over, less what an iteration and the block before it take anyway
    usual = median(duration([span]) for span in recorder.train[WARMUP:])
    first_end = recorder.train[0][1] - duration([recorder.alone[0]]) - usual
    is_mlp = hasattr(args, "hid_size")
    steps = args.timesteps_per_actorbatch
    return {
        "ranks": by_rank,
        "startup_s": first_end - spec["launched"],
        "hyperparameters": vars(args),
        "facts": {
            "preset": args.preset,
            "network": f"{args.num_hid_layers} x {args.hid_size}" if is_mlp else args.kind,
            "parameters": sum(p.numel() for p in recorder.learner["pi"].get_trainable_variables()),
            "compiled": int(recorder.learner["update"].path != "eager"),
            "steps_per_iteration": steps,
            "updates_per_iteration": args.optim_epochs * (steps // args.optim_batchsize),
            "threads": torch.get_num_threads(),
            "mpi": mpi_library(),
        },
    }


def mpi_library() -> str:
    """Return name and version of the MPI that the ranks run on."""
    from mpi4py import MPI

    return " ".join(MPI.Get_library_version().split("\n")[0].split())


def allreduce_worker(spec: Row, _: Path) -> Row | None:
    """Return the seconds of a call for each length of vector, on the first rank.

    They are those of the quickest block of calls: what disturbs a block only makes it longer.

    Collective: every rank must call it.
    """
    import numpy as np
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    seconds = []
    for floats in ALLREDUCE_FLOATS:
        vector = np.zeros(floats, dtype=np.float32)
        calls = 5 if floats > 100_000 else 100
        blocks = []
        for _block in range(spec["blocks"] + 1):
            comm.Barrier()
            start = time.perf_counter()
            for _call in range(calls):
                comm.Allreduce(MPI.IN_PLACE, vector, op=MPI.SUM)
            blocks.append(comm.allreduce(time.perf_counter() - start, op=MPI.MAX) / calls)
        seconds.append((floats, min(blocks[1:])))  # the first one opens the connections
    return {"seconds": seconds, "mpi": mpi_library()} if comm.Get_rank() == 0 else None


def sb3_worker(spec: Row, _: Path) -> Row:
    """Train with Stable-Baselines3's PPO and return steps/s of each iteration.

    Its chain of Atari wrappers is its own make_atari_env's: the same preprocessing, one channel.
    MuJoCo observations are not normalized, which would be its VecNormalize's work.
    """
    import gymnasium as gym
    import stable_baselines3
    import torch
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_atari_env, make_vec_env

    torch.set_num_threads(1)
    given = spec["hyperparameters"]
    if is_atari(spec["env"]):
        import ale_py

        gym.register_envs(ale_py)
        policy, options = "CnnPolicy", None
        env = make_atari_env(spec["env"], n_envs=1, seed=spec["seed"])
    else:
        layers = [given["hid_size"]] * given["num_hid_layers"]
        options = {"net_arch": {"pi": layers, "vf": layers}, "activation_fn": torch.nn.Tanh}
        policy = "MlpPolicy"
        env = make_vec_env(spec["env"], n_envs=1, seed=spec["seed"])

    class Clock(BaseCallback):
        """Takes the time at the top of each iteration, and at the end."""

        def _init_callback(self) -> None:
            self.times: list[float] = []

        def _on_rollout_start(self) -> None:
            self.times.append(time.perf_counter())

        _on_training_end = _on_rollout_start

        def _on_step(self) -> bool:
            return True

    steps = given["timesteps_per_actorbatch"]
    clock = Clock()
    model = stable_baselines3.PPO(
        policy, env, n_steps=steps, batch_size=given["optim_batchsize"],
        n_epochs=given["optim_epochs"], learning_rate=given["optim_stepsize"],
        gamma=given["gamma"], gae_lambda=given["lam"], clip_range=given["clip_param"],
        ent_coef=given["entcoeff"], policy_kwargs=options, seed=spec["seed"], device="cpu",
    )  # fmt: skip
    model.learn(steps * (WARMUP + spec["iterations"]), callback=clock)
    spans = zip(clock.times[WARMUP:-1], clock.times[WARMUP + 1 :], strict=True)
    return {
        "peer": f"stable-baselines3 {stable_baselines3.__version__}",
        "versions": f"torch {torch.__version__}, gymnasium {gym.__version__}, "
        f"{torch.get_num_threads()} thread",
        "steps_per_s": [steps / (end - start) for start, end in spans],
    }


if __name__ == "__main__":
    main()
