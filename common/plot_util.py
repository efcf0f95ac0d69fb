"""Learning curves and tables from the folders of runs, those of baselines too.

    python -m common.plot_util runs/ -o curves.png
    python -m common.plot_util runs/a runs/b --x time --label ranks -o speed.pdf --table

A run is a folder with a progress.csv or monitor files. Runs of one environment share a panel, runs
of one label a line: the mean over seeds, and around it the 95 % percentile bootstrap interval of
that mean, resampling whole runs. The grid ends where the shortest run of a line ends.

The interquartile mean over environments is what remains when a quarter of all runs, rounded down,
is cut off at either end; its interval resamples the runs of each environment on their own.
Source: Agarwal et al. 2021, Deep Reinforcement Learning at the Edge of the Statistical Precipice,
arXiv:2108.13264. It is computed here because their library, rliable 1.2.0, works with no version of
`arch` that imports beside pandas 3 (those drop the argument `random_state`, which it passes).

pandas and matplotlib are imported where they are used. No display is needed.
"""

import argparse
import io
import json
import math
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from common.files import printable, user_path
from common.monitor import LoadMonitorResultsError, get_monitor_files, load_results

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

EPISODES = 100  # of which a final score is the mean, and a monitor's curve the moving mean
RESAMPLES = 2000
POINTS = 200  # of a line's grid
# Okabe and Ito's colours, which people of any colour vision tell apart; black is the references'.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
REFERENCE_STYLES: tuple[dict[str, Any], ...] = (
    {"color": "black", "dashes": (5, 2)},
    {"color": "0.5", "dashes": (2, 1.5)},
    {"color": "black", "dashes": (6, 1.5, 1, 1.5)},
    {"color": "0.5", "dashes": (8, 4)},
)
STYLE = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.92",
    "axes.axisbelow": True,
    "lines.linewidth": 1.4,
    "figure.labelsize": 8,
    "legend.frameon": False,
    "legend.title_fontsize": 8,
    "axes.edgecolor": "0.3",
    "pdf.fonttype": 42,  # text stays text
    "svg.fonttype": "none",
}
# Arguments that make no difference worth a label: those that FREE_ARGUMENTS of cmd_util has, which
# cannot be imported without starting MPI, and some that say what others say.
UNLABELLED = {
    "resume", "override", "save_interval", "keep", "stall_timeout", "stop_timesteps", "log_format",
    "log_path", "num_procs", "quiet", "track", "wandb_project_name", "wandb_entity", "save_path",
    "play", "video", "video_steps", "evaluate", "json", "deterministic",
    "env", "given_env", "seed", "max_timesteps",
}  # fmt: skip

T = TypeVar("T")
U = TypeVar("U")
Curve = tuple[np.ndarray, np.ndarray]  # x, ascending, and y: (N,) float64 each


@dataclass
class Run:
    """What a run's folder holds.

    Attributes:
        folder: the run's own.
        root: the folder given by the user, in which it was found.
        env: the environment's id.
        arguments: config.json's, and `ranks`; empty for baselines' runs, which have none.
        progress: one row an iteration; None if there is none.
        episodes: r, l, t and further columns, one row an episode of any rank, in the order in
            which they ended; None if there are no monitor files.
        label: of the line to which the run belongs.
    """

    folder: Path
    root: Path
    env: str
    arguments: dict[str, Any] = field(default_factory=dict)
    progress: "pandas.DataFrame | None" = None
    episodes: "pandas.DataFrame | None" = None
    label: str = ""


@dataclass
class Reference:
    """A dashed line: a curve over timesteps, or a level if `x` is None."""

    env: str
    label: str
    x: np.ndarray | None
    y: np.ndarray


# ---- Runs ----------------------------------------------------------------------------------------


def find_runs(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the runs' folders at and below `folder`, sorted.

    Runs that another one has set aside, in its folder's `earlier-N`, do not count.

    Raises:
        ValueError: if it is no folder, or there are none.
    """
    folder = user_path(folder)
    if not Path(folder).is_dir():
        raise ValueError(f"no such folder: {os.fspath(folder)!r}")
    found = []
    for path, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not re.fullmatch(r"earlier-\d+", name)]
        if "progress.csv" in files or get_monitor_files(path):
            found.append(Path(path))
    if not found:
        raise ValueError(f"no runs in {os.fspath(folder)!r}: need progress.csv or *monitor.csv")
    return sorted(found)


def load_run(folder: str | os.PathLike[str], root: str | os.PathLike[str] = "") -> Run:
    """Return the run in `folder`, without a label; what is not there yet is None.

    Raises:
        ValueError: naming the file that cannot be read, or is of another program.
        LoadMonitorResultsError: for a monitor file.
    """
    folder = Path(folder)
    config = read_config(folder)
    arguments = dict(config.get("arguments", {}))
    if arguments:
        arguments["ranks"] = config.get("ranks")
    progress, episodes, envs = None, None, [arguments.get("env")]
    if (folder / "progress.csv").exists():
        progress = _read_csv(folder / "progress.csv")
    if get_monitor_files(folder):
        episodes = load_results(folder)
        envs += [header.get("env_id") for header in episodes.attrs["headers"]]
    if progress is not None and len(progress) and "TimestepsSoFar" not in progress:
        if episodes is None:
            raise ValueError(
                f"{folder / 'progress.csv'} is another program's: no column 'TimestepsSoFar' among "
                + ", ".join(map(str, progress))
            )
        progress = None  # the monitor files are baselines' all the same
    env = next((env for env in envs if env and isinstance(env, str)), None)
    return Run(
        folder,
        Path(root or folder),
        env or _env_of_path(folder),
        arguments,
        progress if progress is not None and len(progress) else None,
        episodes if episodes is not None and len(episodes) else None,
    )


def load_runs(folders: Iterable[str | os.PathLike[str]], *, label: str | None = None) -> list[Run]:
    """Return all runs in the folders, labelled; warn of those that cannot be read, or are empty.

    Args:
        folders: searched as `find_runs` does; a run found twice counts once.
        label: as for `label_runs`.

    Raises:
        ValueError: as `find_runs`, and as `load_run` or for want of rows if no run is left.
        LoadMonitorResultsError: likewise, for a monitor file that cannot be read.
    """
    roots = {path.resolve(): (path, root) for root in folders for path in find_runs(root)}
    runs = _readable(roots.values(), lambda place: load_run(*place), lambda place: place[0])
    for run in runs:
        if run.progress is None and run.episodes is None:
            warnings.warn(f"{run.folder}: left out, it has no rows yet", stacklevel=2)
    runs = [run for run in runs if run.progress is not None or run.episodes is not None]
    if not runs:
        raise ValueError("there are no rows in any of the runs yet")
    label_runs(runs, by=label)
    _warn_of_same_seeds(runs)
    return runs


def _readable(
    items: Iterable[T], read: Callable[[T], U], folder_of: Callable[[T], Path]
) -> list[U]:
    """Return what `read` makes of the items, those apart that it fails for; each gets a warning.

    Raises:
        Exception: the first item's, if it fails for all.
    """
    results: list[U] = []
    failures: list[tuple[Path, Exception]] = []
    for item in items:
        try:
            results.append(read(item))
        except (ValueError, OSError, LoadMonitorResultsError) as error:
            failures.append((folder_of(item), error))
    for folder, failure in failures[not results :]:
        warnings.warn(f"{folder}: left out, {' '.join(str(failure).split())}", stacklevel=4)
    if failures and not results:
        raise failures[0][1]
    return results


def label_runs(runs: Sequence[Run], *, by: str | None = None) -> None:
    """Fill the runs' labels.

    Args:
        runs: of all environments.
        by: arguments of config.json, comma-separated, or `folder`: the first part of their paths in
            which runs differ. None takes the arguments in which runs of one environment differ,
            the seed aside; runs without a config.json get the name of the folder that was given.

    Raises:
        ValueError: if no run has such an argument.
    """
    if by == "folder":
        paths = [run.folder.resolve() for run in runs]
        common = Path(os.path.commonpath(paths))
        for run, path in zip(runs, paths, strict=True):
            run.label = next(iter(path.relative_to(common).parts), common.name)
        return
    names = [name.strip().lstrip("-").replace("-", "_") for name in (by or "").split(",")]
    if by is None:
        names = _differing_arguments(runs)
    known = {name for run in runs for name in run.arguments}
    for name in names:
        if name not in known:
            listed = f"one of {', '.join(sorted(known))}" if known else "folder: no config.json"
            raise ValueError(f"cannot label by {name!r}: need {listed}")
    is_mixed = len({bool(run.arguments) for run in runs}) > 1
    has_roots = len({run.root for run in runs if not run.arguments}) > 1
    for run in runs:
        if run.arguments:
            parts = [f"{name.replace('_', ' ')} {run.arguments.get(name)}" for name in names]
            run.label = ", ".join(parts) or ("ppo1" if is_mixed else "")
        else:
            run.label = run.root.resolve().name if is_mixed or has_roots else ""


def _differing_arguments(runs: Sequence[Run]) -> list[str]:
    """Return as few arguments as tell the runs of each environment apart."""
    with_arguments = [run for run in runs if run.arguments]
    names = dict.fromkeys(name for run in with_arguments for name in run.arguments)
    # The preset first, which decides most of the others
    order = sorted(names.keys() - UNLABELLED, key=lambda name: (name != "preset", name != "ranks"))
    groups = [(run.env,) for run in with_arguments]
    chosen = []
    for name in order:
        values = [json.dumps(run.arguments.get(name)) for run in with_arguments]
        finer: list[Any] = [(*group, x) for group, x in zip(groups, values, strict=True)]
        if len(set(finer)) > len(set(groups)):
            groups = finer
            chosen.append(name)
    return chosen


def _env_of_path(folder: Path) -> str:
    """Return the environment that the innermost folder's name holds."""
    for part in reversed(folder.resolve().parts):
        if found := re.search(r"[A-Za-z0-9]+-v\d+", part):
            return found[0]
    return "unknown environment"


# ---- Files ---------------------------------------------------------------------------------------


def read_config(folder: Path) -> dict[str, Any]:
    """Return what is in a run's config.json, {} if there is none.

    Raises:
        ValueError: if it is not a JSON object, or one with other arguments than a run's.
    """
    path = folder / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a JSON object")
    arguments = content.get("arguments", {})
    if (
        not isinstance(arguments, dict)
        or not isinstance(arguments.get("env", ""), str)
        or not isinstance(arguments.get("seed"), int | None)
    ):
        raise ValueError(f"{path} is not of a run: its arguments, env or seed are something else")
    return content


def _read_csv(path: Path) -> "pandas.DataFrame":
    """Return a CSV file's rows, without a last one that its writer has not finished."""
    import pandas

    try:
        text = path.read_text(encoding="utf-8")
        whole, newline, _ = text.rpartition("\n")
        return pandas.read_csv(io.StringIO(whole + newline)) if whole else pandas.DataFrame()
    except ValueError as error:  # pandas' parser errors are among them
        raise ValueError(f"{path} cannot be read as CSV: {error}") from error


def _read_table(path: str | os.PathLike[str], columns: Sequence[str]) -> "pandas.DataFrame":
    """Return a CSV file's rows, which must have these columns; those after the second, numbers."""
    import pandas

    try:
        table = pandas.read_csv(path, dtype={"env": str, "label": str})
        missing = [name for name in columns if name not in table]
        if missing:
            raise ValueError(f"no column {missing[0]!r} among {', '.join(map(str, table))}")
        numbers = [name for name in ("x", "y", "low", "high") if name in table]
        return table.astype(dict.fromkeys(numbers, float))
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)} cannot be read as CSV: {error}") from error


def read_references(path: str | os.PathLike[str]) -> list[Reference]:
    """Return the references in a CSV file.

    Its columns are env, label, x (timesteps) and y. Rows without x, or a file without that column,
    are levels.

    Raises:
        ValueError: if it is no such file.
    """
    table = _read_table(path, ["env", "label", "y"])
    if "x" not in table:
        table["x"] = math.nan
    references = []
    for (env, label), rows in table.groupby(["env", "label"], sort=False):
        points = rows.dropna(subset=["x"]).sort_values("x")
        if len(points):
            references.append(Reference(env, label, points["x"].to_numpy(), points["y"].to_numpy()))
        for y in rows[rows["x"].isna()]["y"]:
            references.append(Reference(env, label, None, np.array([y])))
    return references


def read_limits(path: str | os.PathLike[str]) -> dict[str, tuple[float, float]]:
    """Return the returns that count as 0 and as 1, by environment: columns env, low, high.

    Raises:
        ValueError: if it is no such file.
    """
    table = _read_table(path, ["env", "low", "high"])
    if (table["low"] == table["high"]).any():
        raise ValueError(f"{os.fspath(path)}: low and high are equal")
    return {row.env: (row.low, row.high) for row in table.itertuples()}


# ---- Figures from runs ---------------------------------------------------------------------------


def curve(
    run: Run, *, source: str, x: str = "timesteps", y: str | None = None, smooth: int | None = None
) -> Curve:
    """Return a run's curve; rows whose y is not finite are left out.

    Args:
        run: of which `source` is there.
        source: `progress` or `monitor`.
        x: `timesteps` (with `monitor`, the lengths of the episodes so far, of all ranks), or `time`
            in seconds, which goes on where a resumed run starts to count from 0.
        y: a column; None is EpTrueRewMean, or EpRewMean if that says nothing; `r` of monitors.
        smooth: rows of the moving mean, a row and those before it; None is 1, of monitors 100.

    Raises:
        ValueError: if there is no such source or column, or it holds no numbers.
    """
    table = run.progress if source == "progress" else run.episodes
    if table is None:
        file = "progress.csv" if source == "progress" else "monitor file"
        raise ValueError(f"{run.folder} has no {file} with rows")
    if source == "progress":
        xs = _column(run, table, "TimestepsSoFar" if x == "timesteps" else "TimeElapsed")
        has_true = "EpTrueRewMean" in table and table["EpTrueRewMean"].notna().any()
        ys = _column(run, table, y or ("EpTrueRewMean" if has_true else "EpRewMean"))
    else:
        xs = _column(run, table, "l").cumsum() if x == "timesteps" else _column(run, table, "t")
        ys = _column(run, table, y or "r")
    if x == "time":
        xs[1:] += np.cumsum(np.where(np.diff(xs) < 0, xs[:-1], 0.0))
    is_finite = np.isfinite(xs) & np.isfinite(ys)
    xs, ys = xs[is_finite], ys[is_finite]
    ys = moving_mean(ys, smooth or (1 if source == "progress" else EPISODES))
    is_last = np.append(np.diff(xs) > 0, True)[: len(xs)]  # of rows with the same x
    return xs[is_last], ys[is_last]


def _column(run: Run, table: "pandas.DataFrame", name: str) -> np.ndarray:
    """Return a column as float64."""
    if name not in table:
        raise ValueError(f"no column {name!r} in {run.folder}: there are {', '.join(table)}")
    try:
        return table[name].to_numpy(dtype=np.float64, copy=True)
    except ValueError as error:
        raise ValueError(f"column {name!r} in {run.folder} is not of numbers: {error}") from error


def moving_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Return the mean of each value and those before it, `window` in all or as many as there are.

    Args:
        values: (N,).
        window: at least 1.
    """
    sums = np.cumsum(np.insert(values, 0, 0.0))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


def common_grid(curves: Sequence[Curve], *, points: int = POINTS) -> np.ndarray:
    """Return evenly spaced x over the range that all curves cover, (points,)."""
    end = min(xs[-1] for xs, _ in curves)
    start = min(max(xs[0] for xs, _ in curves), end)
    return np.linspace(start, end, points)


def on_grid(curves: Sequence[Curve], grid: np.ndarray) -> np.ndarray:
    """Return all curves' y on the grid, linearly interpolated: (curves, points)."""
    return np.array([np.interp(grid, xs, ys) for xs, ys in curves])


def mean_over_runs(scores: np.ndarray) -> np.ndarray:
    """Return the mean of (runs, ...)."""
    return scores.mean(axis=0)


def interquartile_mean(scores: np.ndarray) -> np.ndarray:
    """Return the mean of (runs, ...) without the lowest and the highest runs // 4."""
    cut = len(scores) // 4
    return np.sort(scores, axis=0)[cut : len(scores) - cut].mean(axis=0)


def bootstrap_interval(
    strata: Sequence[np.ndarray],
    statistic: Callable[[np.ndarray], Any] = mean_over_runs,
    *,
    resamples: int = RESAMPLES,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of a statistic's 95 % percentile bootstrap interval; the same ones each time.

    With few runs it is too narrow: of the mean of 5 normal values it covers some 83 %.

    Args:
        strata: (runs, ...) of each environment; the runs of one are resampled on their own.
        statistic: of the runs of all strata, (all runs, ...).
        resamples: how many.

    Returns:
        low, high: the statistic's shape; NaN if each stratum has but one run.
    """
    if max(map(len, strata)) < 2:
        nothing = np.full_like(statistic(np.concatenate(strata)), math.nan)
        return nothing, nothing
    random = np.random.default_rng(0)
    drawn = [
        statistic(np.concatenate([x[random.integers(len(x), size=len(x))] for x in strata]))
        for _ in range(resamples)
    ]
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    return low, high


def final_score(run: Run, *, episodes: int = EPISODES) -> float:
    """Return the mean raw return of a run's last episodes, all ranks' together.

    Raises:
        ValueError: if it has no monitor files.
    """
    if run.episodes is None:
        raise ValueError(f"{run.folder} has no monitor file with rows")
    return float(run.episodes["r"].tail(episodes).mean())


def summarize(
    runs: Iterable[Run], *, limits: Mapping[str, tuple[float, float]] | None = None
) -> "pandas.DataFrame":
    """Return a table of final scores, one row an environment and label.

    Args:
        runs: labelled.
        limits: the returns that count as 0 and as 1; adds a row `IQM` a label.

    Returns:
        env, label, seeds, timesteps (of the shortest run), mean, standard_error, low, high: mean
        over seeds of the mean return of the last 100 episodes, its standard error (ddof 1), and
        the ends of its 95 % bootstrap interval; NaN with one seed.

    Raises:
        ValueError: if no run has monitor files; one without them is left out, with a warning.
    """
    import pandas

    runs = list(runs)
    scored = _readable(runs, lambda run: (run, final_score(run)), lambda run: run.folder)
    groups = group_runs(run for run, _ in scored)
    rows = []
    for env, by_label in groups.items():
        for label, group in by_label.items():
            scores = np.array([final_score(run) for run in group])
            error = scores.std(ddof=1) / math.sqrt(len(scores)) if len(scores) > 1 else math.nan
            ends = bootstrap_interval([scores], resamples=10 * RESAMPLES)
            rows.append((env, label, len(group), _steps(group), scores.mean(), error, *ends))
    for label, strata in _strata(groups, limits).items():
        values = [
            normalise(np.array([final_score(run) for run in group]), ends) for group, ends in strata
        ]
        ends = bootstrap_interval(values, interquartile_mean, resamples=10 * RESAMPLES)
        seeds, steps = min(map(len, values)), min(_steps(group) for group, _ in strata)
        mean = interquartile_mean(np.concatenate(values))
        rows.append(("IQM", label, seeds, steps, mean, math.nan, *ends))
    columns = ["env", "label", "seeds", "timesteps", "mean", "standard_error", "low", "high"]
    return pandas.DataFrame(rows, columns=columns).astype(dict.fromkeys(columns[4:], float))


def _steps(group: Sequence[Run]) -> int:
    """Return the steps of the shortest run's whole episodes."""
    return min(int(run.episodes["l"].sum()) for run in group if run.episodes is not None)


def normalise(scores: np.ndarray, ends: tuple[float, float]) -> np.ndarray:
    """Return scores such that `ends` become 0 and 1."""
    low, high = ends
    return (scores - low) / (high - low)


def group_runs(runs: Iterable[Run]) -> dict[str, dict[str, list[Run]]]:
    """Return the runs by environment and label, both in order, numbers in them by size."""
    groups: dict[str, dict[str, list[Run]]] = {}
    for run in sorted(runs, key=lambda run: (_in_order(run.env), _in_order(run.label))):
        groups.setdefault(run.env, {}).setdefault(run.label, []).append(run)
    return groups


def _warn_of_same_seeds(runs: Sequence[Run]) -> None:
    """Warn if runs of one line have the same seed: they would count as several."""
    folders: dict[Any, list[str]] = {}
    for run in runs:
        if "seed" in run.arguments:
            key = (run.env, run.label, str(run.arguments["seed"]))
            folders.setdefault(key, []).append(str(run.folder))
    for (env, _, seed), same in folders.items():
        if len(same) > 1:
            text = f"seed {seed} of {env} counts {len(same)} times: {', '.join(same)}"
            warnings.warn(f"{text} (--label folder would tell them apart)", stacklevel=3)


def _in_order(text: str) -> list[Any]:
    """Return a key that sorts 2 before 10."""
    return [(float(part), "") if i % 2 else (math.inf, part)
            for i, part in enumerate(re.split(r"(\d+(?:\.\d+)?(?:e-?\d+)?)", text))]  # fmt: skip


def _strata(
    groups: Mapping[str, Mapping[str, list[Run]]],
    limits: Mapping[str, tuple[float, float]] | None,
) -> dict[str, list[tuple[list[Run], tuple[float, float]]]]:
    """Return by label the runs and limits of each environment that all labels and `limits` have."""
    if limits is None:
        return {}
    labels = dict.fromkeys(label for by_label in groups.values() for label in by_label)
    envs = [env for env in groups if env in limits and labels.keys() == groups[env].keys()]
    if left_out := [env for env in groups if env not in envs]:
        text = "not in the interquartile mean, for want of limits or of a label's runs"
        warnings.warn(f"{text}: {', '.join(left_out)}", stacklevel=3)
    if not envs:
        raise ValueError("no environment with limits has runs of all labels")
    return {label: [(groups[env][label], limits[env]) for env in envs] for label in labels}


# ---- The picture ---------------------------------------------------------------------------------


def plot_curves(
    runs: Iterable[Run],
    *,
    x: str = "timesteps",
    y: str | None = None,
    source: str | None = None,
    smooth: int | None = None,
    references: Sequence[Reference] = (),
    limits: Mapping[str, tuple[float, float]] | None = None,
    y_text: str | None = None,
) -> "Figure":
    """Return a figure: a panel an environment, a line a label.

    Args:
        runs: labelled.
        x, y, smooth: as for `curve`.
        source: `progress` or `monitor`; None is the one that more runs have.
        references: of these or other environments; curves are drawn over timesteps only.
        limits: the returns that count as 0 and as 1; adds a panel, their interquartile mean over
            environments.
        y_text: the y axis' name; None makes it from `y`, `source` and `smooth`.

    Raises:
        ValueError: if there is nothing to plot; as `curve`, if it fails for all runs. Else those
            for which it fails are left out, with a warning.
    """
    import matplotlib
    from matplotlib.figure import Figure

    runs = list(runs)
    if source is None:
        # The one that more runs have: those without it are left out
        with_progress, with_monitor = (
            sum(getattr(run, name) is not None for run in runs) for name in ("progress", "episodes")
        )
        source = "progress" if with_progress >= with_monitor else "monitor"

    def draw(run: Run) -> tuple[Run, Curve]:
        return run, curve(run, source=source, x=x, y=y, smooth=smooth)

    drawn = _readable(runs, draw, lambda run: run.folder)
    for run, (xs, _) in drawn:
        if not len(xs):
            warnings.warn(f"{run.folder}: left out, no episode has ended yet", stacklevel=2)
    curves = {id(run): points for run, points in drawn}
    groups = group_runs(run for run, (xs, _) in drawn if len(xs))
    if not groups:
        raise ValueError("there is nothing to plot yet: no episode has ended in any run")
    strata = _strata(groups, limits)
    labels = sorted({label for by_label in groups.values() for label in by_label}, key=_in_order)
    longest = max(xs[-1] for xs, _ in curves.values() if len(xs))
    unit, size = _time_unit(longest) if x == "time" else ("", 1.0)
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]  # keys are given as plain text
        figure = Figure(layout="constrained")
        panels, spare = _panels(figure, len(groups) + bool(strata))
        for axes, (env, by_label) in zip(panels, groups.items(), strict=False):
            axes.set_title(env)
            for label, group in by_label.items():
                here = [curves[id(run)] for run in group]
                grid = common_grid(here)
                _draw(axes, labels.index(label), grid / size, [on_grid(here, grid)], mean_over_runs)
            _draw_references(axes, env, references, x)
        for label, members in strata.items():
            panels[-1].set_title(f"IQM of {len(members)} environments")
            panels[-1].set_ylabel("Normalised")
            grid = common_grid([curves[id(run)] for group, _ in members for run in group])
            scores = [
                normalise(on_grid([curves[id(run)] for run in group], grid), ends)
                for group, ends in members
            ]
            _draw(panels[-1], labels.index(label), grid / size, scores, interquartile_mean)
        for axes in panels:
            axes.set_xlim(left=0)
            if x == "timesteps":
                _format_steps(axes)
        x_text = "Timesteps" if x == "timesteps" else f"Wall-clock time ({unit})"
        _name_axes(figure, panels, x_text, y_text or _y_text(source, y, smooth))
        _add_legend(figure, panels, spare, labels, groups)
    return figure


def save_figure(figure: "Figure", path: str | os.PathLike[str]) -> None:
    """Write a figure as PNG, PDF or SVG, by the file's ending.

    Raises:
        ValueError: for another ending.
    """
    import matplotlib

    path = Path(user_path(path))
    if path.suffix not in (".png", ".pdf", ".svg"):
        raise ValueError(f"cannot write {str(path)!r}: need a name that ends in .png, .pdf or .svg")
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]  # as above
        figure.savefig(path, dpi=160)


def _panels(figure: "Figure", count: int) -> "tuple[list[Axes], Axes | None]":
    """Return the panels of a figure that they fill by rows, and an empty place for the legend."""
    columns = count if count <= 3 else min(4, math.ceil(count / 2))
    rows = math.ceil(count / columns)
    is_one = count == 1
    figure.set_size_inches(*((4.2, 2.9) if is_one else (2.1 * columns + 0.4, 1.7 * rows + 0.9)))
    cells = list(figure.subplots(rows, columns, squeeze=False).flat)
    for cell in cells[count:]:
        cell.axis("off")
    return cells[:count], (cells[count] if count < len(cells) else None)


def _draw(
    axes: "Axes",
    index: int,
    xs: np.ndarray,
    strata: Sequence[np.ndarray],
    statistic: Callable[[np.ndarray], np.ndarray],
) -> None:
    """Draw the line of a label, by its index, and its band; past the last colour it is dotted."""
    colour = COLOURS[index % len(COLOURS)]
    style = ("-", ":", "-.")[index // len(COLOURS) % 3]
    low, high = bootstrap_interval(strata, statistic)
    ys = statistic(np.concatenate(strata))
    axes.plot(xs, ys, color=colour, linestyle=style, label=f"_{index}")
    if np.isfinite(low).all():
        axes.fill_between(xs, low, high, color=colour, alpha=0.2, linewidth=0)


def _draw_references(axes: "Axes", env: str, references: Iterable[Reference], x: str) -> None:
    """Draw an environment's references; a label has the same style in all panels."""
    order = list(dict.fromkeys(reference.label for reference in references))
    for reference in references:
        if reference.env != env:
            continue
        style = REFERENCE_STYLES[order.index(reference.label) % len(REFERENCE_STYLES)]
        style = {**style, "linewidth": 1.0, "label": reference.label}
        if reference.x is None:
            axes.axhline(reference.y[0], **style)
        elif x == "timesteps":
            axes.plot(reference.x, reference.y, **style)


def _time_unit(seconds: float) -> tuple[str, float]:
    """Return the unit in which so many seconds read well, and its seconds."""
    for name, size in (("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return name, size
    return "seconds", 1.0


def _format_steps(axes: "Axes") -> None:
    """Write the ticks of timesteps as 250k or 1M."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _y_text(source: str, y: str | None, smooth: int | None) -> str:
    """Return the name of the y axis, which says over what it is smoothed."""
    if source == "monitor":
        name = {"r": "Episode return", "l": "Episode length"}.get(y or "r", str(y))
        smooth = smooth or EPISODES
        return name + (f"\nmoving mean of {smooth} episodes" if smooth > 1 else "")
    name = y or f"Return, mean of last {EPISODES} episodes"
    return name + (f"\nmoving mean of {smooth} iterations" if (smooth or 1) > 1 else "")


def _name_axes(figure: "Figure", panels: "Sequence[Axes]", x_text: str, y_text: str) -> None:
    """Name the axes: those of the only panel, or the figure's."""
    if len(panels) == 1:
        panels[0].set_xlabel(x_text)
        panels[0].set_ylabel(y_text, multialignment="center")
    else:
        figure.supxlabel(x_text)
        figure.supylabel(y_text, multialignment="center")


def _add_legend(
    figure: "Figure",
    panels: "Sequence[Axes]",
    spare: "Axes | None",
    labels: Sequence[str],
    groups: Mapping[str, Mapping[str, Sequence[Run]]],
) -> None:
    """Say what the lines are, and of how many seeds: in an empty place, or above the panels."""
    lines = [line for axes in panels for line in axes.get_lines()]
    entries = {}
    for index, label in enumerate(labels):
        counts = {len(by_label[label]) for by_label in groups.values() if label in by_label}
        many = f"{min(counts)} to {max(counts)}" if len(counts) > 1 else f"{min(counts)}"
        seeds = f"{many} seed{'' if counts == {1} else 's'}"
        text = f"{label} ({seeds})" if label else seeds
        entries[text] = next(line for line in lines if line.get_label() == f"_{index}")
    for line in lines:
        if not str(line.get_label()).startswith("_"):
            entries.setdefault(str(line.get_label()), line)
    has_bands = any(len(group) > 1 for by_label in groups.values() for group in by_label.values())
    options: dict[str, Any] = {"title": "mean, 95 % bootstrap band" if has_bands else None}
    lines_and_names = (list(entries.values()), list(entries.keys()))
    if spare is not None:
        spare.legend(*lines_and_names, loc="center", **options)
    elif len(panels) == 1:
        panels[0].legend(*lines_and_names, loc="best", **options)
    else:
        for columns in range(min(len(entries), 4), 0, -1):
            legend = figure.legend(
                *lines_and_names, loc="outside upper center", ncols=columns, **options
            )
            if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
                break
            legend.remove()
        rows = math.ceil(len(entries) / columns)
        figure.set_figheight(figure.get_figheight() + 0.18 * (rows - 1))


# ---- The command ---------------------------------------------------------------------------------


def arg_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m common.plot_util",
        description="Learning curves and tables from the folders of runs.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "runs", type=user_path, nargs="+", metavar="FOLDER", help="searched for runs"
    )
    parser.add_argument("-o", "--out", type=user_path, metavar="FILE",
                        help="the figure: .png, .pdf or .svg")  # fmt: skip
    parser.add_argument("--x", choices=["timesteps", "time"], default="timesteps",
                        help="axis (timesteps)")  # fmt: skip
    parser.add_argument("--y", metavar="COLUMN", help="EpTrueRewMean if there, else EpRewMean")
    parser.add_argument("--source", choices=["progress", "monitor"],
                        help="of the curves: what more runs have")  # fmt: skip
    parser.add_argument("--smooth", type=_window, metavar="N",
                        help="rows of a moving mean (1; of monitor files 100)")  # fmt: skip
    parser.add_argument("--label", metavar="NAME,NAME",
                        help="arguments, or folder (what differs)")  # fmt: skip
    parser.add_argument("--reference", type=user_path, metavar="CSV",
                        help="dashed lines: env,label,x,y")  # fmt: skip
    parser.add_argument("--iqm", type=user_path, metavar="CSV",
                        help="add the interquartile mean: env,low,high")  # fmt: skip
    parser.add_argument("--table", action="store_true", help="print the final scores")
    parser.add_argument("--csv", type=user_path, metavar="FILE", help="write the final scores")
    return parser


def _window(text: str) -> int:
    """Return a whole number above 0 from its text."""
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"need a whole number above 0, got {text!r}")


def main(argv: Sequence[str] | None = None) -> None:
    """Plot and print as the command line `argv` says; None is the process's own."""
    parser = arg_parser()
    args = parser.parse_args(argv)
    if not (args.out or args.table or args.csv):
        parser.error("nothing to do: give -o FILE, --table or --csv FILE")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", UserWarning)
            warnings.showwarning = _one_line_warnings()
            _make(args)
    except (ValueError, LoadMonitorResultsError) as error:
        message = str(error)
    except OSError as error:
        message = f"{error.strerror}: {error.filename!r}"
    except ModuleNotFoundError as error:
        message = f"module {error.name!r} is missing: pip install {error.name}"
    else:
        return
    parser.exit(2, f"{parser.prog}: error: {' '.join(message.split())}\n")


def _make(args: argparse.Namespace) -> None:
    """Make what was asked for."""
    runs = load_runs(args.runs, label=args.label)
    limits = read_limits(args.iqm) if args.iqm else None
    references = read_references(args.reference) if args.reference else []
    if references and not {r.env for r in references} & {run.env for run in runs}:
        warnings.warn(f"{args.reference} is of none of these environments", stacklevel=2)
    table = summarize(runs, limits=limits) if args.table or args.csv else None
    if args.out:
        figure = plot_curves(
            runs, x=args.x, y=args.y, source=args.source, smooth=args.smooth,
            references=references, limits=limits,
        )  # fmt: skip
        save_figure(figure, args.out)
        print(printable(f"Wrote {args.out}", sys.stdout))
    if table is not None:
        if args.table:
            text = table.to_string(index=False, float_format="{:.2f}".format, na_rep="-")
            print(printable(text, sys.stdout))
        if args.csv:
            Path(args.csv).parent.mkdir(parents=True, exist_ok=True)
            table.to_csv(args.csv, index=False, float_format="%.6g")
            print(printable(f"Wrote {args.csv}", sys.stdout))


def _one_line_warnings() -> Callable[..., None]:
    """Return what prints a warning as one line, once."""
    shown = set()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        if str(message) not in shown:
            print(f"warning: {message}", file=sys.stderr)
        shown.add(str(message))

    return show


if __name__ == "__main__":
    main()
