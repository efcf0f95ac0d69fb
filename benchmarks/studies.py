#!/usr/bin/env python
"""Learning results: MuJoCo beside baselines, what ranks buy, ablations, and Atari.

    python benchmarks/studies.py mujoco               # what is missing of its runs, then the report
    python benchmarks/studies.py ranks --no-train     # the report on what is finished
    python benchmarks/studies.py atari --only paper-np8/Pong
    python benchmarks/studies.py summary              # the table in the repository's README.md

The same command goes on where it was stopped. Runs lie in OUT/GROUP/ENV/seedN, GROUP being that of
a line in study_lines.py. Those of the study atari take many hours and are reported as far as they
are; the others once they have reached their timesteps, and as they were there.
"""

import argparse
import itertools
import re
import runpy
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout that this file lies in

import numpy as np
from studies_report import CURVE_NAMES, HERE, ROOT, report, write_summary
from study_lines import SEEDS, STUDIES, Line
from throughput_report import Row, write_csv

from common.monitor import LoadMonitorResultsError
from common.plot_util import Run, final_score, load_run, read_config

GRID = 25_000  # timesteps between the points that are kept of an Atari run's curve
GAMES = 101  # of which a point of it is the mean: 50 before, 50 after, as in the published curves
POINTS = 100  # kept of another run's curve
COLUMNS = (
    "label", "env", "seed", "return_mean", "episodes", "timesteps", "seconds", "updates", "kl",
    "frames", "live_filters", "filters", "ranks", "cores", "preset", "commit", "versions", "mpi",
    "started", "command",
)  # fmt: skip


def arg_parser() -> argparse.ArgumentParser:
    """Return the parser of this script's flags."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    flags: dict[str, dict[str, Any]] = {
        "study": dict(choices=[*STUDIES, "summary"], help="which one"),
        "--seeds": dict(
            metavar="N", type=int, help=f"0 to N - 1 (default: {describe_defaults(SEEDS)})"
        ),
        "--only": dict(
            metavar="NAME",
            default="",
            help="train only the runs that have NAME in GROUP/ENV/; the report is on all there are",
        ),
        "--num-timesteps": dict(
            metavar="N",
            type=int,
            help="of a run, or at which one of a game pauses (default: 1000000, and 3000000 of "
            "atari's Pong)",
        ),
        "--jobs": dict(
            metavar="N",
            type=int,
            help="runs at a time (default: what the cores hold; one, where wall time is a result)",
        ),
        "--out": dict(
            metavar="DIR",
            type=Path,
            default=ROOT / "runs" / "results",
            help="folder of all studies' runs (default: runs/results)",
        ),
        "--no-train": dict(action="store_true", help="start no runs"),
        "--tables": dict(action="store_true", help="read no runs either, only the CSV files"),
        "--report": dict(
            metavar="DIR",
            type=Path,
            default=HERE,
            help="folder of results/ and README.md; summary's README.md is the one above it "
            "(default: benchmarks)",
        ),
    }
    for name, options in flags.items():
        parser.add_argument(name, **options)
    return parser


def describe_defaults(values: dict[str, int]) -> str:
    """Return "5 of mujoco, 3 of ranks"."""
    return ", ".join(f"{value} of {name}" for name, value in values.items())


def main(argv: Sequence[str] | None = None) -> None:
    """Train, gather and report as the command line `argv` says; None is the process's own."""
    parser = arg_parser()
    args = parser.parse_args(argv)
    failed = []
    try:
        if args.study == "summary":
            print(write_summary(args.report))
            return
        args.seeds = args.seeds or SEEDS[args.study]
        if not (args.no_train or args.tables):
            failed = train_missing(args)
        if not args.tables:
            gather(args)
        print(report(args.study, args.report))
    except (ValueError, OSError, LoadMonitorResultsError) as error:
        parser.error(" ".join(str(error).split()))
    except KeyboardInterrupt:
        sys.exit(130)  # the sweep has said how to go on
    if failed:
        sys.exit("\n".join(failed))


# ---- Runs ----------------------------------------------------------------------------------------


def train_missing(args: argparse.Namespace) -> list[str]:
    """Begin or resume the runs that are not finished; return a line on each that failed."""
    from common.sweep import sweep  # which starts MPI

    batches: dict[tuple[Any, ...], list[Line]] = {}
    for line in STUDIES[args.study]:
        if args.only in f"{line.group}/{line.env}/":
            batches.setdefault((line.group, line.timesteps), []).append(line)
    if not batches:
        known = ", ".join(f"{line.group}/{line.env}" for line in STUDIES[args.study])
        raise ValueError(f"--only {args.only}: need part of one of {known}")
    failed = []
    for lines in batches.values():
        script, *flags = lines[0].argv
        rows = sweep(
            ROOT / script,
            {"env": [line.env for line in lines], "seed": range(args.seeds)},
            out=args.out / lines[0].group,
            flags=[*flags, *limit_of(lines[0], args)],
            jobs=1 if lines[0].is_timed else args.jobs,
        )
        failed += [f"{row['folder']} failed" for row in rows if row["status"] == "failed"]
    return failed


def limit_of(line: Line, args: argparse.Namespace) -> tuple[str, str]:
    """Return the flag that ends or pauses a line's runs, and its value."""
    return line.limit, str(args.num_timesteps or line.timesteps)


def gather(args: argparse.Namespace) -> None:
    """Write STUDY_runs.csv and STUDY_curves.csv from the runs that are far enough.

    Raises:
        ValueError: if there are none, if one has other settings, or one of Atari no checkpoint.
    """
    rows: list[Row] = []
    curves: list[Row] = []
    is_atari = args.study == "atari"
    for line, seed in itertools.product(STUDIES[args.study], range(args.seeds)):
        folder = args.out / line.group / line.env / f"seed{seed}"
        if not (folder / "progress.csv").exists():
            continue
        run = load_run(folder)
        limit = limit_of(line, args)
        timesteps = int(limit[1])
        if not is_far_enough(run, 1 if is_atari else timesteps):
            continue
        check_run(run, line, [*limit, "--seed", str(seed)])
        if not is_atari:
            run = up_to(run, timesteps)
        points = atari_points(run) if is_atari else mujoco_points(run)
        if points:
            name = {"label": line.label, "env": line.env, "seed": seed}
            curves += [{**name, **point} for point in points]
            row = {**name, **run_row(run)}
            if is_atari:
                from first_layer import count_filters  # which starts MPI

                row |= count_filters(run)
            rows.append(row)
    if not rows:
        raise ValueError(f"no run of {args.study} in {args.out} is far enough to report")
    results = args.report / "results"
    write_csv(results / f"{args.study}_runs.csv", rows, COLUMNS)
    write_csv(results / f"{args.study}_curves.csv", curves, list(curves[0]))


def is_far_enough(run: Run, timesteps: int) -> bool:
    """Return whether a run has reached so many timesteps."""
    return run.progress is not None and run.progress["TimestepsSoFar"].iloc[-1] >= timesteps


def up_to(run: Run, timesteps: int) -> Run:
    """Return a run, which may have gone on since, as it was when it had reached so many timesteps.

    Not for games with lives: one of the monitor files' episodes is several of the learner's there.
    """
    assert run.progress is not None
    progress = run.progress[run.progress["TimestepsSoFar"].shift(fill_value=0) < timesteps]
    count = int(progress["EpisodesSoFar"].iloc[-1])
    episodes = None if run.episodes is None else run.episodes.head(count)
    return replace(run, progress=progress, episodes=episodes)


def check_run(run: Run, line: Line, flags: Sequence[str]) -> None:
    """Compare a run's script and settings with those of its line, presets included.

    Raises:
        ValueError: if it is another.
    """
    from common.cmd_util import FREE_ARGUMENTS, parse_args  # which start MPI

    names = runpy.run_path(str(ROOT / line.argv[0]))
    argv = [*line.argv[1:], "--env", line.env, *flags]
    args = vars(parse_args(names["arg_parser"](), names["PRESETS"], argv))
    free = FREE_ARGUMENTS | {"checkpoint", "loaded", "given_env"}
    need = {name: value for name, value in args.items() if name not in free}
    found = {name: value for name, value in run.arguments.items() if name not in {*free, "ranks"}}
    need |= {"script": Path(line.argv[0]).name, "ranks": args["num_procs"] or 1}
    config = read_config(run.folder)
    found |= {"script": Path(config["command"][1]).name, "ranks": config["ranks"]}
    differing = [
        f"{name} {value}, not {need.get(name)}"
        for name, value in found.items()
        if name not in need or need[name] != value
    ]
    if differing:
        raise ValueError(f"{run.folder} is another run than {line.argv}: {'; '.join(differing)}")


def run_row(run: Run) -> Row:
    """Return what COLUMNS has of a run, where it was resumed, of all its processes."""
    config = read_config(run.folder)
    assert run.progress is not None
    arguments, last = run.arguments, run.progress.iloc[-1]
    length = arguments["timesteps_per_actorbatch"]
    minibatches = length // (arguments["optim_batchsize"] or length)
    words = ["python", *config["command"][1:]]
    script = Path(words[1])
    words[1] = f"benchmarks/{script.name}" if script.parent.name == "benchmarks" else script.name
    if "--log-path" in words:
        words[words.index("--log-path") + 1] = "DIR"
    resumed = config.get("resumed", [])
    processes = [config, *(x for x in resumed if x["iteration"] < len(run.progress))]
    versions = [
        ", ".join(f"{name} {x}" for name, x in process["versions"].items()) for process in processes
    ]
    commits = [short(process["git_commit"]) for process in processes]
    return {
        "return_mean": final_score(run),
        "episodes": int(last["EpisodesSoFar"]),
        "timesteps": int(last["TimestepsSoFar"]),
        "seconds": round(last["TimeElapsed"], 1),
        "updates": len(run.progress) * arguments["optim_epochs"] * minibatches,
        "kl": float(run.progress["loss_kl"].median()),  # of the iterations
        "frames": int(last["FramesSoFar"]) if "FramesSoFar" in run.progress else "",
        "ranks": config["ranks"],
        "cores": config.get("cores", ""),
        "preset": arguments["preset"],
        "commit": "; ".join(dict.fromkeys(commits)),
        "versions": "; ".join(dict.fromkeys(versions)),
        "mpi": config.get("mpi", ""),
        "started": config["started"],
        "command": " ".join(words),
    }


def short(commit: str | None) -> str:
    """Return a commit's first digits, and whether there were changes."""
    return re.sub(r"(\w{12})\w*", r"\1", commit or "unknown")


def mujoco_points(run: Run) -> list[Row]:
    """Return at most POINTS evenly spaced rows of a run's curve, the last among them."""
    assert run.progress is not None
    table = run.progress[list(CURVE_NAMES.values())].dropna()
    kept = np.linspace(0, len(table) - 1, min(POINTS, len(table))).round().astype(int)
    return [
        {"timesteps": int(timesteps), "seconds": seconds, "return_mean": return_mean}
        for timesteps, seconds, return_mean in table.iloc[kept].to_numpy(float).tolist()
    ]


def atari_points(run: Run) -> list[Row]:
    """Return the centred mean of GAMES raw returns at every GRID timesteps, and at the end.

    Near either end the mean is over the games that there are, from 51 on. Timesteps are the
    lengths of whole games in the monitor files, as in the published curves.
    """
    if run.episodes is None or len(run.episodes) < GAMES:
        return []
    xs = run.episodes["l"].to_numpy(float).cumsum()
    window = np.ones(GAMES)
    ys = np.convolve(run.episodes["r"], window, "same")
    ys /= np.convolve(np.ones(len(ys)), window, "same")
    grid = np.append(np.arange(-(-xs[0] // GRID) * GRID, xs[-1], GRID), xs[-1])
    known = ys[np.searchsorted(xs, grid, side="right") - 1]
    return [
        {"timesteps": int(timesteps), "return_mean": return_mean}
        for timesteps, return_mean in zip(grid, known.tolist(), strict=True)
    ]


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the runs save and stop
    main()
