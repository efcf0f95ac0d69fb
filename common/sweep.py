"""A sweep: one training script over environments, seeds and other flags, a few jobs at a time.

    python -m common.sweep run_mujoco.py --env Hopper-v4,Walker2d-v4 --seed 0-4 --out runs/sweep \\
        -- --num-timesteps 1e6

Flags before `--` are swept, those after it are the same for all runs. The same command goes on
where it was stopped: what is finished, and from where the rest continues, is read from the runs'
own checkpoints.
"""

import csv
import itertools
import math
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from common.checkpoint import checkpoint_files
from common.cmd_util import (
    ArgumentParser,
    describe,
    flag,
    parse_args,
    positive_whole_number,
    resolve_env_id,
)
from common.launch import LaunchError, is_launched, launch_environment, world_size
from common.misc_util import counted, usable_cores

# A run's limits, and the counters in its checkpoints that they are for.
COUNTERS = {
    "max_timesteps": "timesteps_so_far",
    "max_episodes": "episodes_so_far",
    "max_iters": "iters_so_far",
    "max_seconds": "time_elapsed",
}
DONE = ("finished", "paused")  # the latter by --stop-timesteps


@dataclass
class Job:
    """One run of a sweep."""

    folder: Path
    values: dict[str, str]  # of the swept flags
    argv: list[str]  # what the script gets
    args: Namespace = field(default_factory=Namespace)  # as the script will see them
    record: dict[str, Any] = field(default_factory=dict)  # what its newest checkpoint says
    status: str = "waiting"  # or running, finished, paused, stopped (half finished) or failed
    last_line: str = ""  # of one that failed
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        """The file of what the script prints."""
        return self.folder / "job.log"

    def row(self) -> dict[str, Any]:
        """Return the run's row of the summary."""
        known = {"env": self.args.env, "seed": self.args.seed, **self.values}
        return {**known, "folder": str(self.folder), "status": self.status, **self.record}


def sweep(
    script: str | Path,
    grid: Mapping[str, Iterable[Any]],
    *,
    out: str | Path,
    flags: Sequence[str] = (),
    jobs: int | None = None,
) -> list[dict[str, Any]]:
    """Run `script` with every combination of the grid's values; return the summary's rows.

    The runs' folders are OUT/ENV/seedN, with other swept values between the two, and
    OUT/summary.csv has a row for each, written anew whenever one ends. A run that fails does not
    stop the others. Ctrl-C has all jobs save and stop at their next iteration's start, a second
    one ends them at once; the same call then goes on. The first seed of everything runs first.

    Args:
        script: such as run_mujoco.py, with an `arg_parser()` and its PRESETS.
        grid: values by flag, such as {"env": ["Hopper-v4"], "seed": range(5)}; without a seed
            it is 0.
        out: the sweep's folder.
        flags: of the command line, the same for all.
        jobs: how many run at a time; None is as many as the cores have ranks and threads for.

    Returns:
        a dict for each run: env, seed and the other swept values, folder, status (finished,
        paused or failed), timesteps, episodes, return_mean (raw, of the last 100 episodes) and
        seconds.

    Raises:
        ValueError: for flags that the script refuses, or that differ from those of a run that is
            there, and as `check_runs`; nothing has started then.
        KeyboardInterrupt: after all jobs have stopped.
    """
    if is_launched() and world_size() > 1:
        raise LaunchError("a sweep is one process: give the ranks of a run as --num-procs")
    runs = make_jobs(script, grid, Path(out), flags)
    for job in runs:
        look(job, script)
    check_runs(runs)
    width = max((job.args.num_procs or 1) * job.args.threads for job in runs)
    jobs = jobs or max(1, usable_cores() // width)
    summary = Path(out, "summary.csv")
    to_do = [job for job in runs if job.status not in DONE]
    waiting = deque(sorted(to_do, key=lambda job: job.args.seed))
    write_summary(summary, runs)
    print(f"{counted(len(runs), 'run')}, {len(waiting)} to do, {jobs} at a time", flush=True)
    running: list[Job] = []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(waiting.popleft())
                start(running[-1], script)
                write_summary(summary, runs)
            time.sleep(0.2)
            for job in [job for job in running if has_ended(job)]:
                running.remove(job)
                note_end(job, script, runs)
                write_summary(summary, runs)
    except BaseException:  # Ctrl-C, or a disk that is full
        count = counted(len(running), "job")
        print(f"stopping: {count} to save at the next iteration's start", flush=True)
        signal_all(running, signal.SIGUSR1)  # TERM would leave them a second under Open MPI
        try:
            while not all(map(has_ended, running)):
                time.sleep(0.2)
        finally:  # a second Ctrl-C comes here at once
            signal_all(running, signal.SIGTERM)
            for job in running:
                if job.process is not None:
                    job.process.wait()
                note_end(job, script, runs, stopped=True)
        print("stopped; the same command goes on", flush=True)
        raise
    finally:
        write_summary(summary, runs)
    for job in runs:
        if job.status == "failed":
            print(f"{job.folder} failed: {job.last_line} (see {job.log})")
    print(f"Summary in {summary}", flush=True)
    return [job.row() for job in runs]


def make_jobs(
    script: str | Path, grid: Mapping[str, Iterable[Any]], out: Path, flags: Sequence[str]
) -> list[Job]:
    """Return a job for each combination of the grid's values."""
    swept = {
        name.replace("-", "_"): list(dict.fromkeys(map(str, values)))
        for name, values in {"seed": [0], **grid}.items()
    }
    seeds = swept.pop("seed")
    environments = swept.pop("env", [""])  # "": the preset's
    jobs = []
    for env, *rest, seed in itertools.product(environments, *swept.values(), seeds):
        values = dict(zip(swept, rest, strict=True))
        parts = [env, *(f"{flag(name)[2:]}{value}" for name, value in values.items())]
        folder = out.joinpath(*(re.sub("[/:]", "-", part) for part in parts), f"seed{seed}")
        given = {"env": env, **values} if env else values
        argv = [*flags, *(word for name, value in given.items() for word in (flag(name), value))]
        argv += ["--seed", seed, "--log-path", str(folder), "--resume"]
        jobs.append(Job(folder, values, argv))
    return jobs


def look(job: Job, script: str | Path) -> None:
    """Set the job's arguments, record and status from its command line and newest checkpoint.

    Raises:
        ValueError: for a command line that the script refuses.
    """
    names = runpy.run_path(str(script))
    if not {"arg_parser", "PRESETS"} <= names.keys():
        raise ValueError(f"{script} has no arg_parser and PRESETS, as run_mujoco.py has")
    parser = names["arg_parser"]()
    parser.prog = Path(script).name

    def refuse(message: str) -> NoReturn:
        raise ValueError(f"{job.folder}: {message}")

    parser.error = refuse
    has_begun = bool(checkpoint_files(job.folder / "checkpoints"))
    argv = job.argv if has_begun else [word for word in job.argv if word != "--resume"]
    job.args = parse_args(parser, names["PRESETS"], argv)
    checkpoint = vars(job.args).pop("checkpoint")
    if checkpoint is None:
        job.record = dict.fromkeys(("timesteps", "episodes", "return_mean", "seconds"), "")
        return
    saved, num_procs = len(checkpoint["ranks"]), job.args.num_procs or 1
    if saved != num_procs:
        refuse(
            f"the run that is there has {counted(saved, 'rank')}, not {num_procs}: see --num-procs"
        )
    shared = checkpoint["shared"]
    returns = shared["truerewbuffer"] or shared["rewbuffer"]  # raw, if there is a Monitor
    job.record = {
        "timesteps": shared["timesteps_so_far"],
        "episodes": shared["episodes_so_far"],
        "return_mean": float(np.mean(returns)) if returns else "",
        "seconds": round(shared["time_elapsed"], 1),
    }
    is_over = any(
        0 < getattr(job.args, limit) <= shared[counter] for limit, counter in COUNTERS.items()
    )
    is_paused = shared["timesteps_so_far"] >= (job.args.stop_timesteps or math.inf)
    job.status = "finished" if is_over else "paused" if is_paused else "stopped"


def check_runs(runs: Sequence[Job]) -> None:
    """Raise ValueError for runs that cannot train, or would write each other's files."""
    for job in runs:
        if not any(getattr(job.args, limit) for limit in COUNTERS):
            raise ValueError(f"{job.folder}: nothing to train; a sweep is of runs that train")
    for name in ("save_path", "video", "json"):
        paths = [path for job in runs if (path := getattr(job.args, name))]
        if len(set(paths)) < len(paths):
            raise ValueError(f"{flag(name)} {paths[0]}: several runs would write the same file")
    for env_id in dict.fromkeys(job.args.env for job in runs if job.status not in DONE):
        resolve_env_id(env_id)


def start(job: Job, script: str | Path) -> None:
    """Start the job's process."""
    command = [sys.executable, str(script), *job.argv]
    job.folder.mkdir(parents=True, exist_ok=True)
    with open(job.log, "a") as log:
        log.write(f"$ {' '.join(command)}\n")
        log.flush()
        job.process = subprocess.Popen(
            command,
            # What is printed beyond the run's own logs is what went wrong
            env={"OPENAI_LOG_FORMAT": "log,csv"} | launch_environment(),
            start_new_session=True,  # a terminal's Ctrl-C comes to the sweep alone
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    job.status = "running"


def has_ended(job: Job) -> bool:
    """Return whether the job's process has ended."""
    return job.process is None or job.process.poll() is not None


def note_end(job: Job, script: str | Path, runs: Sequence[Job], *, stopped: bool = False) -> None:
    """Set the status of a job that has ended, and say how it ended."""
    job.status = "waiting"
    look(job, script)
    if job.status not in DONE and not stopped:
        job.status = "failed"
        job.last_line = telling_line(job.log.read_text(errors="replace"))
    facts = [job.status, job.last_line]
    if job.record["timesteps"]:
        facts += [
            "{timesteps} steps in {seconds:.0f} s, return {return_mean:.1f}".format_map(job.record)
        ]
    count = sum(other.status in (*DONE, "failed") for other in runs)
    print(f"[{count}/{len(runs)}] {job.folder}: {', '.join(filter(None, facts))}", flush=True)


def telling_line(text: str) -> str:
    """Return the last line that names an error, or the last that is not empty."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"[Ee]rror\b", line)]
    return (errors or lines or [""])[-1]


def signal_all(jobs: Iterable[Job], signum: int) -> None:
    """Send a signal to the jobs that have not ended."""
    for job in jobs:
        if job.process is not None and not has_ended(job):
            job.process.send_signal(signum)


def write_summary(path: Path, runs: Sequence[Job]) -> None:
    """Write all runs' rows, under another name first."""
    rows = [job.row() for job in runs]
    temporary = path.with_name(f".{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    os.replace(temporary, path)


# ---- Command line -------------------------------------------------------------------------------


def values_of(text: str) -> list[str]:
    """Return the values in a comma-separated text, where 0-4 is 0,1,2,3,4.

    A JSON object, of --env-kwargs, keeps its commas, unless it holds another one.
    """
    values = []
    for part in re.findall(r"\{.*?\}(?=,|$)|[^,]+", text):
        if ends := re.fullmatch(r"(\d+)-(\d+)", part):
            values += [str(number) for number in range(int(ends[1]), int(ends[2]) + 1)]
        else:
            values.append(part)
    return values


def main(argv: Sequence[str] | None = None) -> None:
    """Sweep as the command line says; exit code 1 if a run failed."""
    words = list(sys.argv[1:] if argv is None else argv)
    cut = words.index("--") if "--" in words else len(words)
    parser = ArgumentParser(
        prog="python -m common.sweep",
        usage="%(prog)s SCRIPT [--FLAG VALUE,VALUE ...] --out DIR [--jobs N] [-- FLAGS]",
        description="Run a script with every combination of the values given before `--`, such "
        "as --env Hopper-v4,Walker2d-v4 --seed 0-4, and the flags given after it.",
    )
    parser.add_argument("script", metavar="SCRIPT", help="run_mujoco.py or run_atari.py")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of all runs")
    parser.add_argument("--jobs", type=positive_whole_number, metavar="N",
                        help="runs at a time; if not given, what the cores hold")  # fmt: skip
    args, swept = parser.parse_known_args(words[:cut])
    swept = [word for text in swept for word in text.split("=", 1)]
    grid = {name.lstrip("-"): values_of(text) for name, text in zip(swept[::2], swept[1::2])}  # noqa: B905
    for name, text in itertools.zip_longest(swept[::2], swept[1::2], fillvalue=""):
        if not name.startswith("--") or not values_of(text) or text.startswith("--"):
            parser.error(f"{name} {text}: need a flag and its values, such as --seed 0-4".strip())
    try:
        rows = sweep(args.script, grid, out=args.out, flags=words[cut + 1 :], jobs=args.jobs)
    except (ValueError, OSError) as error:
        parser.error(describe(error))
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(any(row["status"] == "failed" for row in rows))


if __name__ == "__main__":
    for signum in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(signum) is signal.SIG_DFL:  # nohup has the latter ignored
            signal.signal(signum, signal.default_int_handler)
    main()
