"""A sweep: one training script over environments, seeds and other flags, a few jobs at a time.

    python -m common.sweep run_mujoco.py --env Hopper-v4,Walker2d-v4 --seed 0-4 --out runs/sweep \\
        -- --num-timesteps 1e6

Flags before `--` are swept, those after it are the same for all runs. The same command goes on
where it was stopped: what is finished, and from where the rest continues, is read from the runs'
own checkpoints.
"""

import csv
import io
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

from common.checkpoint import CheckpointError
from common.cmd_util import (
    ArgumentParser,
    describe,
    flag,
    has_checkpoints,
    parse_args,
    positive_whole_number,
    read_saved_run,
    resolve_env_id,
)
from common.files import (
    FolderLock,
    absolute_path,
    folder_path,
    no_link,
    printable,
    replacing,
    set_aside,
)
from common.launch import LaunchError, check_world, launch_environment, world_size
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
    cwd: str = field(default_factory=os.getcwd)  # an imported environment may leave it
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
    OUT/summary.csv has a row for each, written anew whenever one ends. A run that fails, or whose
    checkpoints are damaged, does not stop the others. Ctrl-C has all jobs save and stop at their
    next iteration's start, a second one ends them at once; the same call then goes on. If the sweep
    itself is killed, its jobs go on; the same call waits for those that still live. The first seed
    of everything runs first.

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
    check_world()
    if world_size() > 1:
        raise LaunchError("a sweep is one process: give the ranks of a run as --num-procs")
    script, out = absolute_path(script), folder_path(out)
    runs = make_jobs(script, grid, Path(out), flags)
    for job in runs:
        look(job, script)
    check_runs(runs)
    width = max((job.args.num_procs or 1) * job.args.threads for job in runs)
    jobs = jobs or max(1, usable_cores() // width)
    summary = Path(out, "summary.csv")
    set_aside_other_summary(summary, runs)
    to_do = [job for job in runs if job.status not in (*DONE, "failed")]
    waiting = deque(sorted(to_do, key=lambda job: job.args.seed))
    write_summary(summary, runs)
    say(f"{counted(len(runs), 'run')}, {len(waiting)} to do, {jobs} at a time")
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
                was_another_sweeps = job.process is None
                note_end(job, script, runs, stopped=was_another_sweeps)
                if was_another_sweeps and job.status in ("waiting", "stopped"):
                    waiting.appendleft(job)
                write_summary(summary, runs)
    except BaseException:  # Ctrl-C, or a disk that is full
        running = [job for job in running if job.process is not None]  # not another sweep's
        count = counted(len(running), "job")
        say(f"stopping: {count} to save at the next iteration's start")
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
        say("stopped; the same command goes on")
        raise
    finally:
        write_summary(summary, runs)
    for job in runs:
        if job.status == "failed":
            see = f" (see {job.log})" if job.process is not None else ""
            say(f"{job.folder} failed: {job.last_line}{see}")
    say(f"Summary in {summary}")
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

    Its status is failed if there are checkpoints and none is good.

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
    has_begun = has_checkpoints(job.folder)
    job.record = dict.fromkeys(("timesteps", "episodes", "return_mean", "seconds"), "")
    if has_begun:
        try:
            read_saved_run(parser, job.folder)
        except CheckpointError as error:
            job.status, job.last_line, has_begun = "failed", str(error), False
    argv = job.argv if has_begun else [word for word in job.argv if word != "--resume"]
    job.args = parse_args(parser, names["PRESETS"], argv)
    checkpoint = vars(job.args).pop("checkpoint")
    if checkpoint is None:
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
    """Start the job's process, unless one that a killed sweep has left still runs."""
    job.status = "running"
    if FolderLock.is_held(job.folder):
        say(f"{job.folder} still runs: waiting for it")
        return
    command = [sys.executable, str(script), *job.argv]
    job.folder.mkdir(parents=True, exist_ok=True)
    with open(job.log, "a", encoding="utf-8", errors="backslashreplace", opener=no_link) as log:
        log.write(f"$ {' '.join(command)}\n")
        log.flush()
        job.process = subprocess.Popen(
            command,
            cwd=job.cwd,
            # What is printed beyond the run's own logs is what went wrong
            env={"OPENAI_LOG_FORMAT": "log,csv"} | launch_environment(),
            start_new_session=True,  # a terminal's Ctrl-C comes to the sweep alone
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def has_ended(job: Job) -> bool:
    """Return whether the job's process has ended, and no rank writes to the folder any more."""
    is_gone = job.process is None or job.process.poll() is not None
    return is_gone and not FolderLock.is_held(job.folder)


def note_end(job: Job, script: str | Path, runs: Sequence[Job], *, stopped: bool = False) -> None:
    """Set the status of a job that has ended, and say how it ended."""
    job.status = "waiting"
    try:
        look(job, script)
    except Exception as error:  # a script that somebody has changed meanwhile, say
        job.status, job.last_line = "failed", describe(error)
    if job.status not in (*DONE, "failed") and not stopped:
        job.status = "failed"
        job.last_line = telling_line(job.log.read_text(encoding="utf-8", errors="replace"))
    facts = [job.status, job.last_line]
    if job.record.get("timesteps"):
        facts += [
            "{timesteps} steps in {seconds:.0f} s, return {return_mean:.1f}".format_map(job.record)
        ]
    count = sum(other.status in (*DONE, "failed") for other in runs)
    say(f"[{count}/{len(runs)}] {job.folder}: {', '.join(filter(None, facts))}")


def say(text: str) -> None:
    """Print a line, whatever the console's encoding."""
    print(printable(text, sys.stdout), flush=True)


def telling_line(text: str) -> str:
    """Return the last line that names an error, or the last that is not empty."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"[Ee]rror\b", line)]
    return (errors or lines or [""])[-1]


def signal_all(jobs: Iterable[Job], signum: int) -> None:
    """Send a signal to the jobs that have not ended."""
    for job in jobs:
        if job.process is not None:
            job.process.send_signal(signum)  # nothing, if it has ended


def set_aside_other_summary(path: Path, runs: Sequence[Job]) -> None:
    """Set aside a summary with rows of other runs than these, or a file of something else."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            folders = {os.path.abspath(row["folder"] or "") for row in reader}
            is_ours = "folder" in (reader.fieldnames or ())
    except (FileNotFoundError, NotADirectoryError):
        return
    except (ValueError, KeyError, csv.Error):
        is_ours = False
    if path.is_symlink() or not is_ours or not folders <= {str(job.folder) for job in runs}:
        earlier = set_aside(path.parent, [path.name])
        say(f"The {path.name} that was there, of other runs, is now in {earlier}")


def write_summary(path: Path, runs: Sequence[Job]) -> None:
    """Write all runs' rows, whole or not at all."""
    rows = [job.row() for job in runs]
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        writer = csv.DictWriter(text, rows[0])
        writer.writeheader()
        writer.writerows(rows)
        text.detach()


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
    parser.add_argument(
        "script", type=absolute_path, metavar="SCRIPT", help="run_mujoco.py or run_atari.py"
    )
    parser.add_argument(
        "--out", type=folder_path, required=True, metavar="DIR", help="folder of all runs"
    )
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
