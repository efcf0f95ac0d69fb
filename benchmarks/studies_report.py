"""What studies.py measured, from its CSV files: figures, verdicts, tables for the two pages.

A row is a dict with the columns of a CSV file. How results are judged was chosen before looking at
them: if the 95 % bootstrap intervals of the means over seeds overlap, they agree; if not, one is
higher or lower.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from study_lines import DEFAULT_LABEL, PAPER_LABEL, STUDIES, Line
from throughput_report import (
    Row,
    fill_between_markers,
    fill_reports,
    read_csv,
    table,
    wrapped,
)

from common.plot_util import (
    Reference,
    Run,
    bootstrap_interval,
    common_grid,
    mean_over_runs,
    on_grid,
    plot_curves,
    save_figure,
)

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
BASELINES = HERE / "reference" / "baselines_mujoco.csv"
PUBLISHED_MUJOCO = HERE / "reference" / "published_mujoco.csv"
PUBLISHED_ATARI = HERE / "reference" / "published_atari.csv"
LEVEL = "baselines' page"  # the published source that has all environments, drawn as a level
RESAMPLES = 20_000  # of the bootstrap intervals
PAPER_CURVE = "the paper's runs"
SHOWN = (250_000, 500_000, 1_000_000, 1_500_000, 2_000_000, 2_500_000, 3_000_000)  # of Atari
# Of a curve's rows, and what plot_util calls the columns.
CURVE_NAMES = {
    "timesteps": "TimestepsSoFar",
    "seconds": "TimeElapsed",
    "return_mean": "EpTrueRewMean",
}
NOT_RUN = "not run yet"
SUMMARY_MARKERS = (
    "<!-- made by benchmarks/studies.py summary: begin -->",
    "<!-- made by benchmarks/studies.py summary: end -->",
)


def markers(study: str) -> tuple[str, str]:
    """Return the lines of both pages between which a study's report stands."""
    return (
        f"<!-- made by studies.py {study} from results/{study}_*.csv: begin -->",
        f"<!-- made by studies.py {study}: end -->",
    )


def report(study: str, folder: Path) -> str:
    """Write a study's figures and tables from the CSV files alone; return README.md's part."""
    rows, curves = read_results(study, folder / "results")
    for name, figure in figures(study, curves):
        save_figure(figure, folder / "results" / f"{name}.png")
    texts = render(study, rows, curves)
    begin, end = markers(study)
    fill_reports(folder, texts, begin=begin, end=end)
    return texts[0]


def write_summary(folder: Path) -> str:
    """Write the table in the README.md above `folder`, from the CSV files alone; return it."""
    text = render_summary(folder / "results")
    begin, end = SUMMARY_MARKERS
    fill_between_markers(folder.parent / "README.md", text, begin=begin, end=end)
    return text


def read_results(study: str, results: Path) -> tuple[list[Row], list[Row]]:
    """Return the rows of a study's runs and curves."""
    return read_csv(results / f"{study}_runs.csv"), read_csv(results / f"{study}_curves.csv")


def render(study: str, rows: Sequence[Row], curves: Sequence[Row]) -> tuple[str, str]:
    """Return README.md's part on a study, a table, and METHODS.md's, what lies behind it."""
    makers = {
        "mujoco": render_mujoco,
        "ranks": render_ranks,
        "ablations": render_ablations,
        "atari": render_atari,
    }
    findings, *details = makers[study](rows, curves)
    return findings, "\n\n".join([*provenance(rows), *details])


# ---- Statistics ----------------------------------------------------------------------------------


def seed_statistics(scores: Sequence[float]) -> Row:
    """Return how many seeds, mean, standard error (ddof 1) and the bootstrap interval's ends."""
    values = np.array(scores, dtype=float)
    error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    low, high = bootstrap_interval([values], mean_over_runs, resamples=RESAMPLES)
    return {"seeds": len(values), "mean": values.mean(), "error": error, "low": low, "high": high}


def verdict(ours: Row, theirs: Row) -> str:
    """Return what the comparison of two intervals says; a single seed has none."""
    if math.isnan(ours["low"]) or math.isnan(theirs["low"]):
        return "none: one seed"
    if ours["low"] > theirs["high"]:
        return "higher"
    return "lower" if ours["high"] < theirs["low"] else "agree"


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
        found = seed_statistics([row["return_mean"] for row in own]) if own else {}
        if line.label == base:
            first[line.env] = found
        elif found and first[line.env]:
            found["verdict"] = verdict(found, first[line.env])
        yield line, own, found


def beside_baselines(rows: Iterable[Row]) -> Iterator[tuple[str, Row, Row, str]]:
    """Yield environment, summary of ours and of baselines' runs, and the verdict."""
    rows = list(rows)
    baselines = read_csv(BASELINES)
    for env in dict.fromkeys(row["env"] for row in rows):
        ours = seed_statistics([row["return_mean"] for row in rows if row["env"] == env])
        theirs = seed_statistics([points[-1, 1] for points in curves_of(baselines, env)])
        yield env, ours, theirs, verdict(ours, theirs)


# ---- Curves and figures --------------------------------------------------------------------------


def curves_of(rows: Iterable[Row], env: str) -> list[np.ndarray]:
    """Return an environment's curves, one a seed: (N, 2), timesteps and returns."""
    curves: dict[int, list[tuple[float, float]]] = {}
    for row in rows:
        if row["env"] == env:
            curves.setdefault(row["seed"], []).append((row["timesteps"], row["return_mean"]))
    return [np.array(points) for points in curves.values()]


def runs_from(rows: Iterable[Row]) -> list[Run]:
    """Return the runs whose curves the rows are, for plot_curves."""
    curves: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        curves.setdefault((row["env"], row["label"], row["seed"]), []).append(row)
    return [
        Run(Path(), Path(), env, {"seed": seed}, label=label,
            progress=pandas.DataFrame(points)[[x for x in CURVE_NAMES if x in points[0]]]
            .rename(columns=CURVE_NAMES))
        for (env, label, seed), points in curves.items()
    ]  # fmt: skip


def figures(study: str, curves: Sequence[Row]) -> Iterator[tuple[str, Any]]:
    """Yield names and figures of a study."""
    find = {"mujoco": mujoco_references, "atari": atari_references}.get(study)
    environments = dict.fromkeys(row["env"] for row in curves)
    runs = runs_from(curves)
    figure = plot_curves(
        runs,
        references=find(environments) if find else (),
        y_text="Raw return, mean of 101 games" if study == "atari" else None,
    )
    yield study, figure
    if study == "ranks":
        yield "ranks_time", plot_curves(runs, x="time")


def mujoco_references(environments: Iterable[str]) -> list[Reference]:
    """Return baselines' mean curves and the published levels."""
    baselines, levels = read_csv(BASELINES), published_levels()
    theirs = {env: curves_of(baselines, env) for env in environments}
    counts = sorted({len(curves) for curves in theirs.values()})
    seeds = " to ".join(str(n) for n in dict.fromkeys((counts[0], counts[-1])))
    references = []
    for env, curves in theirs.items():
        points = [(curve[:, 0], curve[:, 1]) for curve in curves]
        grid = common_grid(points)
        mean = on_grid(points, grid).mean(axis=0)
        references.append(Reference(env, f"baselines' ppo1 ({seeds} seeds)", grid, mean))
        level = levels[env.partition("-")[0]]
        label = f"{level['algorithm']} {level['versions']} (published)"
        references.append(Reference(env, label, None, np.array([level["mean"]])))
    return references


def published_levels() -> dict[str, Row]:
    """Return the rows of the source LEVEL by environment, without its version."""
    return {row["env"]: row for row in read_csv(PUBLISHED_MUJOCO) if row["source"] == LEVEL}


def atari_references(environments: Iterable[str]) -> list[Reference]:
    """Return the published curves of the games, as far as the study goes."""
    references = []
    for env in environments:
        end = max(line.timesteps for line in STUDIES["atari"] if line.env == env)
        points = [point for x, point in published_points(env).items() if x <= end]
        for column, part in (
            ("mean", ""), ("lowest_seed", ", range of seeds"), ("highest_seed", ", range of seeds")
        ):  # fmt: skip
            known = [(point["timesteps"], point[column]) for point in points if point[column] != ""]
            if known:
                xs, ys = np.array(known, float).T
                references.append(Reference(env, f"{PAPER_CURVE}{part} (published)", xs, ys))
    return references


def published_points(env: str) -> dict[int, Row]:
    """Return the rows of the paper's curve by timesteps."""
    return {row["timesteps"]: row for row in read_csv(PUBLISHED_ATARI) if row["env"] == env}


# ---- Words ---------------------------------------------------------------------------------------


def cells(found: Row) -> tuple[str, str, str]:
    """Return seeds, mean with error, and interval as a table shows them."""
    mean, error, low, high = (
        number(found[name], like=found["mean"]) for name in ("mean", "error", "low", "high")
    )
    if found["seeds"] == 1:
        return "1", mean, ""
    return str(found["seeds"]), f"{mean} ± {error}", f"{low} to {high}"


def number(value: float, *, like: float | None = None) -> str:
    """Return a return with as many decimals as it deserves, or as `like` does."""
    return f"{value:.{2 if abs(value if like is None else like) < 100 else 0}f}"


def provenance(rows: Sequence[Row]) -> Iterator[str]:
    """Yield how many runs there are, their dates, commits and versions, then their commands.

    The environment and the seed are written as ENV and N, so that few commands remain.
    """
    commands = []
    for row in rows:
        words = row["command"].split(" ")
        for name, text in (("--env", "ENV"), ("--seed", "N")):
            if name in words:
                words[words.index(name) + 1] = text
        commands.append(f"    {' '.join(words)}")
    dates, commits, cores, *others = (
        # A resumed run has several, in one cell
        sorted({part[:length] for row in rows for part in str(row[name]).split("; ") if part})
        for name, length in (
            ("started", 10), ("commit", None), ("cores", None), ("versions", None), ("mpi", None)
        )
    )  # fmt: skip
    made = [f"of {', '.join(dates)}", f"commit {', '.join(commits)}", *sum(others, [])]
    least = min(row["timesteps"] for row in rows)
    yield wrapped(
        f"Runs: {len(rows)}, {'; '.join(made)}; cores: {', '.join(cores) or 'unknown'}. The "
        f"shortest run has {least:,} timesteps. Commands:"
    )
    yield "\n".join(dict.fromkeys(commands))


def seed_and_score(row: Row) -> str:
    """Return "0: 1234", the seed of a run and its score."""
    return f"{row['seed']}: {number(row['return_mean'])}"


def published_score(point: Row) -> str:
    """Return a point of the paper's curve, with the range of its seeds where that is known."""
    if point["lowest_seed"] == "":
        return f"{point['mean']:g}"
    return f"{point['mean']:g} ({point['lowest_seed']:g} to {point['highest_seed']:g})"


def mean_of(rows: Sequence[Row], name: str) -> float:
    """Return the mean of a column."""
    return float(np.mean([row[name] for row in rows]))


# ---- The reports ---------------------------------------------------------------------------------


def render_mujoco(rows: Sequence[Row], curves: Sequence[Row]) -> Iterator[str]:
    """Yield the table of MuJoCo; then the seeds, and what others published."""
    judged = list(beside_baselines(rows))
    yield table(
        ("environment", "our seeds", "ours", "95 % interval", "baselines' seeds",
         "baselines' ppo1", "95 % interval", "verdict"),
        [(env, *cells(ours), *cells(theirs), result) for env, ours, theirs, result in judged],
    )  # fmt: skip
    by_seed = (
        f"{env} {', '.join(seed_and_score(row) for row in rows if row['env'] == env)}"
        for env, *_ in judged
    )
    yield wrapped(f"Our runs by seed: {'; '.join(by_seed)}.")
    yield "Published, by other measures and mostly on other versions of the environments:"
    published = read_csv(PUBLISHED_MUJOCO)
    sources = {row["source"]: row for row in published}
    lines = []
    for env, ours, *_ in judged:
        found = {
            row["source"]: f"{row['mean']} {row['spread']}".strip()
            for row in published
            if row["env"] == env.partition("-")[0]
        }
        lines.append([env, number(ours["mean"]), *(found.get(name, "") for name in sources)])
    yield table(["environment", "ours", *sources], lines)
    yield "\n".join(
        wrapped(
            f"[{name}]({row['link']}): {row['algorithm']}, {row['versions']}, "
            f"{row['timesteps'] / 1e6:g} M timesteps, seeds: {row['seeds']}, metric: "
            f"{row['metric']}.",
            start="- ",
        )
        for name, row in sources.items()
    )


def render_ranks(rows: Sequence[Row], curves: Sequence[Row]) -> Iterator[str]:
    """Yield the table of what ranks buy."""
    lines = []
    alone: dict[str, float] = {}  # seconds
    for line, own, found in compared("ranks", rows, "1 rank"):
        if not own:
            lines.append((line.env, line.label, NOT_RUN, *[""] * 7))
            continue
        seconds = mean_of(own, "seconds")
        if line.label == "1 rank":
            alone[line.env] = seconds
        lines.append(
            (line.env, line.label, *cells(found), found.get("verdict", ""),
             f"{mean_of(own, 'updates'):,.0f}", f"{seconds:.0f}",
             f"{alone[line.env] / seconds:.2f}" if line.env in alone else "",
             "" if line.label == "1 rank" else return_at(seconds, line.env, curves))
        )  # fmt: skip
    yield table(
        ("environment", "ranks", "seeds", "final return", "95 % interval", "against 1 rank",
         "updates", "seconds", "speed-up", "1 rank by then"),
        lines,
    )  # fmt: skip


def return_at(seconds: float, env: str, curves: Iterable[Row]) -> str:
    """Return the mean return that the runs of one rank had reached after so many seconds."""
    reached = {
        row["seed"]: row["return_mean"]  # of the last of them
        for row in curves
        if (row["env"], row["label"]) == (env, "1 rank") and row["seconds"] <= seconds
    }
    return number(float(np.mean(list(reached.values())))) if reached else ""


def render_ablations(rows: Sequence[Row], curves: Sequence[Row]) -> Iterator[str]:
    """Yield the table of the ablations."""
    yield table(
        ("environment", "variant", "seeds", "final return", "95 % interval", "against ppo1"),
        [
            (line.env, line.label, *cells(found), found.get("verdict", ""))
            if own
            else (line.env, line.label, NOT_RUN, "", "", "")
            for line, own, found in compared("ablations", rows, "ppo1")
        ],
    )


def render_atari(rows: Sequence[Row], curves: Sequence[Row]) -> Iterator[str]:
    """Yield the table of the games; then what the networks did, and the source of the curves."""
    lines, networks = [], []
    for env in dict.fromkeys(line.env for line in STUDIES["atari"]):
        game, points = env.removesuffix("NoFrameskip-v4"), published_points(env)
        lines.append([game, PAPER_CURVE, "3", "", *(published_score(points[x]) for x in SHOWN), ""])
        for line in STUDIES["atari"]:
            if line.env != env:
                continue
            own = runs_of(line, rows)
            if not own:
                lines.append([game, line.label, "", NOT_RUN, *[""] * (len(SHOWN) + 1)])
            for row in own:
                found = {
                    point["timesteps"]: f"{point['return_mean']:.1f}"
                    for point in runs_of(line, curves)
                    if point["seed"] == row["seed"]
                }
                run = [game, line.label, f"1 (seed {row['seed']})"]
                lines.append([
                    *run, f"{row['timesteps'] / 1e6:.2f} M", *(found.get(x, "") for x in SHOWN),
                    f"{row['return_mean']:.1f}",
                ])  # fmt: skip
                networks.append([
                    *run, f"{row['kl']:.4f}", f"{row['live_filters']} of {row['filters']}",
                    f"{row['seconds'] / 3600:.1f}",
                ])  # fmt: skip
    scores = (f"{x / 1e6:g} M" for x in SHOWN)
    yield table(("game", "run", "seeds", "reached", *scores, "last 100 games"), lines)
    yield table(("game", "run", "seeds", "median KL", "filters alive", "hours"), networks)
    published = read_csv(PUBLISHED_ATARI)
    source = published[0]
    errors = dict.fromkeys(
        f"{row['env'].removesuffix('NoFrameskip-v4')} {row['reading_error']:g}" for row in published
    )
    yield wrapped(
        f"{PAPER_CURVE.capitalize()}: {source['metric']} ± {', '.join(errors)} "
        f"([{source['source']}]({source['link']}))."
    )


def render_summary(results: Path) -> str:
    """Return the table of the repository's README.md, from the CSV files in a folder."""
    rows, curves = read_csv(results / "mujoco_runs.csv"), read_csv(results / "atari_curves.csv")
    levels = published_levels()
    lines = [
        (env, "1 M", score(ours), score(theirs), f"{levels[env.partition('-')[0]]['mean']:g}",
         result)
        for env, ours, theirs, result in beside_baselines(rows)
    ]  # fmt: skip
    header = ("environment", "timesteps", "ours", "baselines' ppo1", "published", "verdict")
    return table(header, [*lines, *atari_summary(curves)])


def atari_summary(curves: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    """Yield the summary's rows of the two presets' games, as far as ours have come.

    That is the last of the timesteps in SHOWN, or of those at which the paper's seeds are known.
    """
    for line in STUDIES["atari"]:
        points = published_points(line.env)
        found: dict[int, list[float]] = {}
        for row in runs_of(line, curves):
            if row["timesteps"] in SHOWN:
                found.setdefault(row["timesteps"], []).append(row["return_mean"])
        if line.label in (PAPER_LABEL, DEFAULT_LABEL) and found:
            last = max(found, key=lambda x: (points[x]["lowest_seed"] != "", x))
            ours, theirs = seed_statistics(found[last]), published_score(points[last])
            result = place(ours["mean"], points[last])
            name = f"{line.env}, {line.label}"
            yield name, f"{last / 1e6:g} M", score(ours), "", theirs, result


def place(mean: float, point: Row) -> str:
    """Return where a mean lies in the range of the paper's seeds, as exactly as that was read."""
    if point["lowest_seed"] == "":
        return "none: the paper's range of seeds is not known"
    if mean > point["highest_seed"] + point["reading_error"]:
        return "above the paper's seeds"
    is_below = mean < point["lowest_seed"] - point["reading_error"]
    return "below the paper's seeds" if is_below else "among the paper's seeds"


def score(found: Row) -> str:
    """Return the mean, its standard error and the number of seeds."""
    seeds, mean, _ = cells(found)
    return f"{mean} ({seeds})"
