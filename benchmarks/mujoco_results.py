#!/usr/bin/env python
"""Train on the paper's seven MuJoCo environments, and compare with baselines and published results.

    python benchmarks/mujoco_results.py               # what is missing of 35 runs, then the report
    python benchmarks/mujoco_results.py --no-train    # the report on what is finished
    python benchmarks/mujoco_results.py --tables      # the report from the CSV files alone

The same command goes on where it was stopped. A run is finished when its progress.csv has reached
the number of timesteps. How an environment is judged was chosen before looking at results: if the
95 % bootstrap intervals of the means over seeds overlap, ours and baselines' agree; if not, ours is
higher or lower.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout that this file lies in

import numpy as np
import pandas
from learning_report import (
    HERE,
    ROOT,
    RUN_COLUMNS,
    cells,
    check_run,
    is_finished,
    provenance,
    report_flags,
    run_row,
    runs_from,
    summary,
    thinned,
    verdict,
)
from throughput_report import Row, fill_between_markers, read_csv, table, write_csv

from common.monitor import LoadMonitorResultsError
from common.plot_util import (
    Reference,
    Run,
    common_grid,
    load_run,
    on_grid,
    plot_curves,
    save_figure,
)

ENVIRONMENTS = (
    "HalfCheetah-v4", "Hopper-v4", "Walker2d-v4", "Swimmer-v4", "Reacher-v4",
    "InvertedPendulum-v4", "InvertedDoublePendulum-v4",
)  # fmt: skip
BASELINES = HERE / "reference" / "baselines_mujoco.csv"
PUBLISHED = HERE / "reference" / "published_mujoco.csv"
LEVEL = "baselines' page"  # the published source that has all environments, drawn as a level
BEGIN = "<!-- made by mujoco_results.py from results/mujoco_*.csv: begin -->"
END = "<!-- made by mujoco_results.py: end -->"
CURVE_COLUMNS = ("env", "seed", "timesteps", "return_mean")


def arg_parser() -> argparse.ArgumentParser:
    """Return the parser of this script's flags."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    flags: dict[str, dict[str, Any]] = {
        "--env": dict(
            metavar="ID,ID",
            type=lambda text: text.split(","),
            default=ENVIRONMENTS,
            help="default: all seven",
        ),
        "--seeds": dict(metavar="N", type=int, default=5, help="0 to N - 1 (default: 5)"),
        "--num-timesteps": dict(
            metavar="N", type=int, default=1_000_000, help="of a run (default: 1000000)"
        ),
        "--jobs": dict(metavar="N", type=int, help="runs at a time (default: what the cores hold)"),
        **report_flags(ROOT / "runs" / "results" / "mujoco"),
        "--baselines": dict(
            metavar="CSV",
            type=Path,
            help="take over baselines' curves: env,seed,TimestepsSoFar,EpRewMean",
        ),
    }
    for name, options in flags.items():
        parser.add_argument(name, **options)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Train, gather and report as the command line `argv` says; None is the process's own."""
    parser = arg_parser()
    args = parser.parse_args(argv)
    try:
        failed = [] if args.no_train or args.tables else train_missing(args)
        if args.baselines:
            write_csv(BASELINES, take_over_baselines(args.baselines), CURVE_COLUMNS)
        if not args.tables:
            gather(args)
        report(args.report)
    except (ValueError, OSError, LoadMonitorResultsError) as error:
        parser.error(" ".join(str(error).split()))
    if failed:
        sys.exit("\n".join(failed))


def gather(args: argparse.Namespace) -> None:
    """Write mujoco_runs.csv and mujoco_curves.csv from the finished runs.

    Raises:
        ValueError: if there are none, or one has other settings.
    """
    runs = finished_runs(args)
    if not runs:
        raise ValueError(f"no finished run in {args.out}")
    columns = ["TimestepsSoFar", "EpTrueRewMean"]
    rows = (
        row
        for run in runs
        if run.progress is not None
        for row in curve_rows(run.env, run.arguments["seed"], run.progress[columns].to_numpy())
    )
    write_csv(args.report / "results" / "mujoco_runs.csv", map(run_row, runs), RUN_COLUMNS)
    write_csv(args.report / "results" / "mujoco_curves.csv", rows, CURVE_COLUMNS)


def report(folder: Path) -> None:
    """Write the figure, and README.md's tables, from the CSV files alone."""
    results = folder / "results"
    rows, curves = (read_csv(results / f"mujoco_{name}.csv") for name in ("runs", "curves"))
    baselines, published = read_csv(BASELINES), read_csv(PUBLISHED)
    save_figure(figure(curves, baselines, published), results / "mujoco.png")
    text = render(rows, baselines, published)
    fill_between_markers(folder / "README.md", text, begin=BEGIN, end=END)
    print(text)


# ---- Runs ----------------------------------------------------------------------------------------


def folders(args: argparse.Namespace) -> list[tuple[str, int, Path]]:
    """Return environment, seed and folder of all runs, seed 0 of every environment first."""
    seeds = range(args.seeds)
    return [(env, seed, args.out / env / f"seed{seed}") for seed in seeds for env in args.env]


def train_missing(args: argparse.Namespace) -> list[str]:
    """Begin or resume the runs that are not finished; return a line on each that failed."""
    from common.sweep import sweep  # which starts MPI

    rows = sweep(
        ROOT / "run_mujoco.py",
        {"env": args.env, "seed": range(args.seeds)},
        out=args.out,
        flags=["--num-timesteps", str(args.num_timesteps)],
        jobs=args.jobs,
    )
    return [f"{row['folder']} failed" for row in rows if row["status"] == "failed"]


def finished_runs(args: argparse.Namespace) -> list[Run]:
    """Return the finished runs, by environment and seed.

    Raises:
        ValueError: if one was not made with the environment's and seed's defaults.
    """
    runs = []
    for env, seed, folder in sorted(folders(args), key=lambda job: args.env.index(job[0])):
        if is_finished(folder, args.num_timesteps):
            run = load_run(folder)
            check_run(run, {"env": env, "seed": seed, "preset": "mujoco", "ranks": 1})
            runs.append(run)
    return runs


def curve_rows(env: str, seed: int, points: np.ndarray) -> Iterable[Row]:
    """Yield rows of mujoco_curves.csv from timesteps and returns, (N, 2), thinned."""
    for timesteps, return_mean in thinned(points):
        yield dict(zip(CURVE_COLUMNS, (env, seed, int(timesteps), float(return_mean)), strict=True))


def take_over_baselines(path: Path) -> list[Row]:
    """Return the rows of reference/baselines_mujoco.csv, from a file with all iterations."""
    rows = pandas.read_csv(path)
    return [
        row
        for (env, seed), curve in rows.groupby(["env", "seed"])
        for row in curve_rows(env, seed, curve[["TimestepsSoFar", "EpRewMean"]].to_numpy())
    ]


# ---- The report ----------------------------------------------------------------------------------


def by_run(rows: Iterable[Row], env: str) -> dict[int, np.ndarray]:
    """Return an environment's curves by seed: (N, 2), timesteps and returns."""
    curves: dict[int, list[tuple[float, float]]] = {}
    for row in rows:
        if row["env"] == env:
            curves.setdefault(row["seed"], []).append((row["timesteps"], row["return_mean"]))
    return {seed: np.array(points) for seed, points in curves.items()}


def figure(curves: Sequence[Row], baselines: Sequence[Row], published: Sequence[Row]) -> Any:
    """Return the figure: ours with a band, baselines' mean and the published level dashed."""
    references = []
    counts = {len({row["seed"] for row in baselines if row["env"] == env})
              for env in dict.fromkeys(row["env"] for row in curves)} - {0}  # fmt: skip
    many = " to ".join(str(n) for n in sorted({min(counts), max(counts)})) if counts else ""
    for env in dict.fromkeys(row["env"] for row in curves):
        theirs = [(points[:, 0], points[:, 1]) for points in by_run(baselines, env).values()]
        if theirs:
            grid = common_grid(theirs)
            mean = on_grid(theirs, grid).mean(axis=0)
            references.append(Reference(env, f"baselines' ppo1 ({many} seeds)", grid, mean))
        for row in published:
            if row["source"] == LEVEL and row["env"] == env.partition("-")[0]:
                label = f"{row['algorithm']} {row['versions']} (published)"
                references.append(Reference(env, label, None, np.array([row["mean"]])))
    return plot_curves(runs_from(curves, label="ours"), references=references)


def render(rows: Sequence[Row], baselines: Sequence[Row], published: Sequence[Row]) -> str:
    """Return README.md's part that is made from the CSV files."""
    lines = []
    for env in dict.fromkeys(row["env"] for row in rows):
        ours = summary([row["return_mean"] for row in rows if row["env"] == env])
        curves = by_run(baselines, env).values()
        theirs = summary([points[-1, 1] for points in curves]) if curves else None
        theirs_cells = cells(theirs) if theirs else ("0", "", "")
        result = verdict(ours, theirs) if theirs else "none: not measured"
        lines.append((env, *cells(ours), *theirs_cells, result))
    header = (
        "environment", "our seeds", "ours ± standard error", "95 % interval", "baselines' seeds",
        "baselines' ppo1 ± standard error", "95 % interval", "verdict",
    )  # fmt: skip
    paragraphs = [
        f"{provenance(rows)} The shortest has {min(row['timesteps'] for row in rows):,} timesteps. "
        "Metric: the mean raw return of the last 100 episodes; its mean over seeds.",
        "![Learning curves of the seven environments](results/mujoco.png)",
        table(header, lines),
        "Published, on other versions of the environments and by other measures:",
        *published_table(rows, published),
    ]
    return "\n\n".join(paragraphs)


def published_table(rows: Sequence[Row], published: Sequence[Row]) -> Iterable[str]:
    """Yield the table of published results, and what they are."""
    sources = {row["source"]: row for row in published}
    lines = []
    for env in dict.fromkeys(row["env"] for row in rows):
        found = {
            row["source"]: f"{row['mean']} {row['spread']}".strip()
            for row in published
            if row["env"] == env.partition("-")[0]
        }
        mean = summary([row["return_mean"] for row in rows if row["env"] == env])
        ours = cells(mean)[1].split(" ")[0]
        lines.append([env, ours, *(found.get(source, "") for source in sources)])
    yield table(["environment", "ours", *sources], lines)
    yield "\n".join(
        f"- [{name}]({row['link']}): {row['algorithm']}, {row['versions']}, "
        f"{row['timesteps']:.0e} timesteps, {row['seeds']} seeds, {row['metric']}."
        for name, row in sources.items()
    ).replace("e+0", "e")


if __name__ == "__main__":
    main()
