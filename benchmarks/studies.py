#!/usr/bin/env python
"""Three studies: what ranks buy, ablations of the algorithm, and Atari.

    python benchmarks/studies.py ranks               # what is missing of its runs, then the report
    python benchmarks/studies.py ablations --no-train    # the report on what is finished
    python benchmarks/studies.py atari --only pong-paper-np8/

The same command goes on where it was stopped. Runs lie in OUT/FOLDER/seedN, FOLDER being that of
a `Line` below. Those of Atari take many hours and are reported as far as they are; the others
once they have reached their timesteps.
"""

import argparse
import itertools
import os
import platform
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout that this file lies in

import numpy as np
from learning_report import (
    CURVE_NAMES,
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
    EPISODES,
    Reference,
    Run,
    curve,
    load_run,
    plot_curves,
    read_config,
    save_figure,
)

PUBLISHED = HERE / "reference" / "published_atari.csv"
PAPER = "the paper's runs"
PRESET_OF_PAPER = "paper, 8 ranks"  # ours that are like them
GRID = 25_000  # timesteps between the points that are kept of an Atari run's curve
SHOWN = (250_000, 500_000, 1_000_000, 1_500_000, 2_000_000, 2_500_000, 3_000_000)  # in its table
COLUMNS = ("label", *RUN_COLUMNS, "updates", "frames", "cores")


@dataclass(frozen=True)
class Line:
    """The runs of one line in a figure: of one environment, with the same flags.

    Attributes:
        label: of the line.
        env: environment id.
        folder: of the runs, in OUT.
        argv: the script, and what precedes the other flags.
        expected: what config.json must say of these runs.
        timesteps: at which a run is finished, or pauses.
        limit: the flag for that.
    """

    label: str
    env: str
    folder: str
    argv: tuple[str, ...]
    expected: dict[str, Any]
    timesteps: int = 1_000_000
    limit: str = "--num-timesteps"


def ranks_line(env: str, ranks: int) -> Line:
    """Return the line of one number of ranks."""
    return Line(
        f"{ranks} rank{'s' if ranks > 1 else ''}",
        env,
        f"ranks/{env}/num-procs{ranks}",
        ("run_mujoco.py", "--num-procs", str(ranks)),
        {"preset": "mujoco", "ranks": ranks},
    )


def ablation_line(env: str, label: str, *argv: str) -> Line:
    """Return the line of a variant; `ppo1` itself is mujoco_results.py's."""
    return Line(
        label,
        env,
        f"mujoco/{env}" if label == "ppo1" else f"ablations/{label}/{env}",
        argv,
        {"preset": "mujoco", "ranks": 1, "bootstrap_truncated": "--bootstrap-truncated" in argv},
    )


def atari_line(
    label: str, game: str, folder: str, preset: str, *flags: str, ranks: int, stack: int, stop: int
) -> Line:
    """Return the line of a game's runs, which are annealed over 1e7 timesteps and pause before."""
    env = f"{game}NoFrameskip-v4"
    return Line(
        label,
        env,
        f"atari/{folder}",
        ("run_atari.py", "--num-procs", str(ranks), "--preset", preset, *flags),
        {"preset": preset, "ranks": ranks, "frame_stack": stack, "num_timesteps": 10_000_000},
        stop,
        "--stop-timesteps",
    )


STUDIES = {
    "ranks": [
        ranks_line(env, ranks)
        for env in ("InvertedPendulum-v4", "Hopper-v4", "HalfCheetah-v4")
        for ranks in (1, 2, 4)
    ],
    "ablations": [
        ablation_line(env, *variant)
        for env in ("HalfCheetah-v4", "Hopper-v4")
        for variant in (
            ("ppo1", "run_mujoco.py"),
            ("bootstrap-truncated", "run_mujoco.py", "--bootstrap-truncated"),
            ("torch-adam", "benchmarks/variants.py", "torch-adam"),
            ("stored-logp", "benchmarks/variants.py", "stored-logp"),
        )
    ],
    "atari": [
        atari_line(PRESET_OF_PAPER, "Pong", "pong-paper-np8", "paper",
                   ranks=8, stack=4, stop=3_000_000),
        atari_line("ppo1, 2 ranks", "Pong", "pong-ppo1-np2", "ppo1",
                   ranks=2, stack=4, stop=3_000_000),
        atari_line("paper, 8 ranks, 1 frame", "Pong", "pong-paper-np8-frame-stack1",
                   "paper", "--frame-stack", "1", ranks=8, stack=1, stop=3_000_000),
        atari_line(PRESET_OF_PAPER, "Breakout", "breakout-paper-np8", "paper",
                   ranks=8, stack=4, stop=1_000_000),
    ],
}  # fmt: skip
SEEDS = {"ranks": 3, "ablations": 3, "atari": 1}


def arg_parser() -> argparse.ArgumentParser:
    """Return the parser of this script's flags."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    flags: dict[str, dict[str, Any]] = {
        "study": dict(choices=STUDIES, help="which one"),
        "--seeds": dict(
            metavar="N", type=int, help="0 to N - 1 (default: 3; of atari, which takes long, 1)"
        ),
        "--only": dict(
            metavar="NAME",
            default="",
            help="train only the runs whose folders' path has NAME in it",
        ),
        "--num-timesteps": dict(
            metavar="N",
            type=int,
            help="of a run (default: 1000000), or at which one of atari pauses (default: 3000000 "
            "of Pong, 1000000 of Breakout)",
        ),
        "--jobs": dict(
            metavar="N",
            type=int,
            default=1,
            help="ablations' runs at a time (default: 1, as in the other studies)",
        ),
        **report_flags(ROOT / "runs" / "results"),
    }
    for name, options in flags.items():
        parser.add_argument(name, **options)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Train, gather and report as the command line `argv` says; None is the process's own."""
    parser = arg_parser()
    args = parser.parse_args(argv)
    args.seeds = args.seeds or SEEDS[args.study]
    try:
        failed = [] if args.no_train or args.tables else train_missing(args)
        if not args.tables:
            gather(args)
        report(args.study, args.report)
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

    lines = [line for line in STUDIES[args.study] if args.only in f"{line.folder}/"]
    if not lines:
        known = ", ".join(line.folder for line in STUDIES[args.study])
        raise ValueError(f"--only {args.only}: need part of one of {known}")
    failed = []
    for line in lines:
        timesteps = args.num_timesteps or line.timesteps
        seeds = [
            seed
            for seed in range(args.seeds)
            if not is_finished(args.out / line.folder / f"seed{seed}", timesteps)
        ]
        if seeds:
            script, *flags = line.argv
            rows = sweep(
                ROOT / script,
                {"seed": seeds},
                out=args.out / line.folder,
                flags=[*flags, "--env", line.env, line.limit, str(timesteps)],
                jobs=args.jobs if args.study == "ablations" else 1,  # wall time is a result
            )
            failed += [f"{row['folder']} failed" for row in rows if row["status"] == "failed"]
    return failed


def gather(args: argparse.Namespace) -> None:
    """Write STUDY_runs.csv and STUDY_curves.csv from the runs that are far enough.

    Raises:
        ValueError: if there are none, or one has other settings.
    """
    rows: list[Row] = []
    curves: list[Row] = []
    for line, seed in itertools.product(STUDIES[args.study], range(args.seeds)):
        folder = args.out / line.folder / f"seed{seed}"
        if not is_finished(folder, least_timesteps(line, args)):
            continue
        run = load_run(folder)
        check(run, line, seed)
        points = atari_points(run) if args.study == "atari" else mujoco_points(run)
        if points:
            name = {"label": line.label, "env": line.env, "seed": seed}
            curves += [{**name, **point} for point in points]
            row = run_row(run)
            row["command"] = row["command"].replace(
                f"{line.argv[0]} --", f"{with_variant(line)} --"
            )
            rows.append({"label": line.label, **row, **counts(run)})
    if not rows:
        raise ValueError(f"no run of {args.study} in {args.out} is far enough to report")
    results = args.report / "results"
    write_csv(results / f"{args.study}_runs.csv", rows, COLUMNS)
    write_csv(results / f"{args.study}_curves.csv", curves, list(curves[0]))


def check(run: Run, line: Line, seed: int) -> None:
    """Compare a run with what its folder says that it is.

    Raises:
        ValueError: if it is another.
    """
    script, variant = Path(line.argv[0]).name, with_variant(line).partition(" ")[2] or None
    run.arguments["script"] = Path(read_config(run.folder)["command"][1]).name
    run.arguments.setdefault("variant", variant)  # which config.json did not name at first
    found = {"env": line.env, "seed": seed, "script": script, "variant": variant}
    check_run(run, {**found, **line.expected})


def with_variant(line: Line) -> str:
    """Return the line's script and, if that is variants.py, the variant."""
    return " ".join(line.argv[: 2 if line.argv[0].endswith("variants.py") else 1])


def least_timesteps(line: Line, args: argparse.Namespace) -> int:
    """Return the timesteps from which on a run is reported."""
    return 1 if args.study == "atari" else args.num_timesteps or line.timesteps


def mujoco_points(run: Run) -> list[Row]:
    """Return a run's curve, thinned."""
    assert run.progress is not None
    points = thinned(run.progress[list(CURVE_NAMES.values())].dropna().to_numpy(dtype=float))
    return [
        {"timesteps": int(timesteps), "seconds": seconds, "return_mean": return_mean}
        for timesteps, seconds, return_mean in points.tolist()
    ]


def atari_points(run: Run) -> list[Row]:
    """Return the mean raw return of the last 100 games at every GRID timesteps, and at the end.

    Timesteps are those of whole games. There is no point before the 100th game has ended.
    """
    if run.episodes is None or len(run.episodes) < EPISODES:
        return []
    xs, ys = (values[EPISODES - 1 :] for values in curve(run, source="monitor"))
    grid = np.append(np.arange(-(-xs[0] // GRID) * GRID, xs[-1], GRID), xs[-1])
    known = ys[np.searchsorted(xs, grid, side="right") - 1]
    return [
        {"timesteps": int(timesteps), "return_mean": return_mean}
        for timesteps, return_mean in zip(grid, known.tolist(), strict=True)
    ]


def counts(run: Run) -> Row:
    """Return a run's updates, its frames where they are counted, and the cores it had.

    The cores are known if it was made on the machine that this process runs on.
    """
    assert run.progress is not None
    arguments, last = run.arguments, run.progress.iloc[-1]
    length = arguments["timesteps_per_actorbatch"]
    minibatches = length // (arguments["optim_batchsize"] or length)
    is_here = read_config(run.folder).get("hostname") == platform.node()
    return {
        "updates": len(run.progress) * arguments["optim_epochs"] * minibatches,
        "frames": int(last["FramesSoFar"]) if "FramesSoFar" in run.progress else "",
        "cores": len(os.sched_getaffinity(0)) if is_here else "",
    }


# ---- The report ----------------------------------------------------------------------------------


def markers(study: str) -> tuple[str, str]:
    """Return the lines of README.md between which a study's report stands."""
    return (
        f"<!-- made by studies.py {study} from results/{study}_*.csv: begin -->",
        f"<!-- made by studies.py {study}: end -->",
    )


def report(study: str, folder: Path) -> None:
    """Write a study's figures, and README.md's tables, from the CSV files alone."""
    results = folder / "results"
    rows, curves = (read_csv(results / f"{study}_{name}.csv") for name in ("runs", "curves"))
    for name, figure in figures(study, curves):
        save_figure(figure, results / f"{name}.png")
    text = render(study, rows, curves)
    begin, end = markers(study)
    fill_between_markers(folder / "README.md", text, begin=begin, end=end)
    print(text)


def render(study: str, rows: Sequence[Row], curves: Sequence[Row]) -> str:
    """Return README.md's part on a study, made from the rows of its CSV files."""
    makers = {"ranks": render_ranks, "ablations": render_ablations, "atari": render_atari}
    return "\n\n".join(makers[study](rows, curves))


def figures(study: str, curves: Sequence[Row]) -> Iterator[tuple[str, Any]]:
    """Yield names and figures of a study."""
    runs = runs_from(curves)
    if study == "atari":
        yield study, plot_curves(runs, references=paper_curves(curves))
    else:
        yield study, plot_curves(runs)
    if study == "ranks":
        yield "ranks_time", plot_curves(runs, x="time")


def paper_curves(curves: Sequence[Row]) -> list[Reference]:
    """Return the published curves of the games that there are, as far as the study goes."""
    references = []
    for env in dict.fromkeys(row["env"] for row in curves):
        end = max(
            *(row["timesteps"] for row in curves if row["env"] == env),
            *(line.timesteps for line in STUDIES["atari"] if line.env == env),
        )
        points = [point for x, point in published_points(env).items() if x <= end]
        xs, ys = (np.array([p[name] for p in points], float) for name in ("timesteps", "mean"))
        references.append(Reference(env, f"{PAPER} (published)", xs, ys))
    return references


def published_points(env: str) -> dict[int, Row]:
    """Return the rows of the paper's curve by timesteps."""
    return {row["timesteps"]: row for row in read_csv(PUBLISHED) if row["env"] == env}


def published_score(point: Row) -> str:
    """Return a point of the paper's curve, with the range of its seeds where that is known."""
    if point["lowest_seed"] == "":
        return f"{point['mean']:g}"
    return f"{point['mean']:g} ({point['lowest_seed']:g} to {point['highest_seed']:g})"


def runs_of(line: Line, rows: Iterable[Row]) -> list[Row]:
    """Return the rows of a line's runs."""
    return [row for row in rows if (row["env"], row["label"]) == (line.env, line.label)]


def compared(study: str, rows: Sequence[Row], base: str) -> Iterator[tuple[Line, list[Row], Row]]:
    """Yield line, its rows, and their summary with a verdict against the line labelled `base`.

    A line without runs has no rows and the summary {}.
    """
    first: dict[str, Row] = {}
    for line in STUDIES[study]:
        own = runs_of(line, rows)
        figures = summary([row["return_mean"] for row in own]) if own else {}
        if line.label == base:
            first[line.env] = figures
        elif figures and first[line.env]:
            figures["verdict"] = verdict(figures, first[line.env])
        yield line, own, figures


METRIC = (
    "Metric: the mean raw return of the last 100 episodes of all ranks, its mean over seeds ± "
    "standard error, and the 95 % bootstrap interval of that mean."
)
NOT_RUN = "not run yet"


def mean_of(rows: Sequence[Row], name: str) -> float:
    """Return the mean of a column."""
    return float(np.mean([row[name] for row in rows]))


def render_ranks(rows: Sequence[Row], curves: Sequence[Row]) -> Iterator[str]:
    """Yield the paragraphs on what ranks buy."""
    lines, by_label = [], {}
    for line, own, figures in compared("ranks", rows, "1 rank"):
        if not own:
            lines.append((line.env, line.label, NOT_RUN, *[""] * 5))
            continue
        updates, seconds = mean_of(own, "updates"), mean_of(own, "seconds")
        by_label.setdefault(line.label, {})[line.env] = (updates, seconds, figures.get("verdict"))
        lines.append(
            (line.env, line.label, *cells(figures), figures.get("verdict", ""), f"{updates:,.0f}",
             f"{seconds / 60:.1f}")
        )  # fmt: skip
    cores = ", ".join(sorted({str(row["cores"]) for row in rows if row["cores"] != ""}))
    yield f"{provenance(rows)} Cores: {cores or 'unknown'}, one run at a time. {METRIC}"
    yield "![Returns over timesteps](results/ranks.png)"
    yield "![Returns over wall-clock time](results/ranks_time.png)"
    yield table(
        ("environment", "ranks", "seeds", "final return", "95 % interval", "against 1 rank",
         "updates", "minutes"),
        lines,
    )  # fmt: skip
    alone = by_label.pop("1 rank", {})
    for label, of_env in by_label.items():
        both = [(env, *facts) for env, facts in of_env.items() if env in alone]
        if both:
            listed = "; ".join(
                f"in {env} {updates / alone[env][0]:.2f} times the updates and "
                f"{seconds / alone[env][1]:.2f} times the time, return: {result}"
                for env, updates, seconds, result in both
            )
            yield f"- {label} against one: {listed}."


def render_ablations(rows: Sequence[Row], curves: Sequence[Row]) -> Iterator[str]:
    """Yield the paragraphs on the ablations."""
    yield f"{provenance(rows)} {METRIC}"
    yield "![Learning curves of the variants](results/ablations.png)"
    yield table(
        ("environment", "variant", "seeds", "final return", "95 % interval", "against ppo1"),
        [
            (line.env, line.label, *cells(figures), figures.get("verdict", ""))
            if own
            else (line.env, line.label, NOT_RUN, "", "", "")
            for line, own, figures in compared("ablations", rows, "ppo1")
        ],
    )


def render_atari(rows: Sequence[Row], curves: Sequence[Row]) -> Iterator[str]:
    """Yield the paragraphs on Atari."""
    lines = []
    for env in dict.fromkeys(line.env for line in STUDIES["atari"]):
        game = env.removesuffix("NoFrameskip-v4")
        points = published_points(env)
        scores = [published_score(points[x]) for x in SHOWN]
        lines.append([game, PAPER, "3", "", *scores, "", "", ""])
        for line in STUDIES["atari"]:
            if line.env != env:
                continue
            own = runs_of(line, rows)
            if not own:
                lines.append([game, line.label, "", NOT_RUN, *[""] * (len(SHOWN) + 3)])
            for row in own:
                found = {
                    point["timesteps"]: f"{point['return_mean']:.1f}"
                    for point in runs_of(line, curves)
                    if point["seed"] == row["seed"]
                }
                lines.append([
                    game, line.label, f"seed {row['seed']}", f"{row['timesteps'] / 1e6:.2f} M",
                    *(found.get(x, "") for x in SHOWN), f"{row['return_mean']:.1f}",
                    f"{row['frames'] / 1e6:.1f} M" if row["frames"] != "" else "",
                    f"{row['seconds'] / 3600:.1f}",
                ])  # fmt: skip
    yield (
        f"{provenance(rows)} Metric: the mean raw return of the last 100 whole games of all ranks, "
        "from the monitor files; nothing before the 100th game."
    )
    yield "![Returns of the games over timesteps](results/atari.png)"
    header = (
        "game", "run", "seeds", "reached", *(f"{x / 1e6:g} M" for x in SHOWN), "last", "frames",
        "hours",
    )  # fmt: skip
    yield table(header, lines)
    source = read_csv(PUBLISHED)[0]
    yield f"{PAPER.capitalize()}: {source['metric']} ([{source['source']}]({source['link']}))."


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the runs save and stop
    main()
