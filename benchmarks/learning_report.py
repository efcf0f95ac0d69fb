"""What the learning results share: runs as rows of CSV files, their means, intervals and verdicts.

How results are judged was chosen before looking at them: if the 95 % bootstrap intervals of the
means over seeds overlap, they agree; if not, one is higher or lower.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from throughput_report import Row

from common.plot_util import (
    Run,
    bootstrap_interval,
    final_score,
    load_run,
    mean_over_runs,
    read_config,
)

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
POINTS = 100  # kept of a run's curve
RUN_COLUMNS = (
    "env", "seed", "return_mean", "episodes", "timesteps", "seconds", "ranks", "preset", "commit",
    "versions", "started", "command",
)  # fmt: skip
# Of a curve's rows, and what plot_util calls the columns.
CURVE_NAMES = {
    "timesteps": "TimestepsSoFar",
    "seconds": "TimeElapsed",
    "return_mean": "EpTrueRewMean",
}


def report_flags(out: Path) -> dict[str, dict[str, Any]]:
    """Return the flags that say which runs to read and where the report goes; `out` is a default.

    They are names and options for `add_argument`, to stand last.
    """
    return {
        "--out": dict(
            metavar="DIR",
            type=Path,
            default=out,
            help=f"folder of the runs (default: {out.relative_to(ROOT)})",
        ),
        "--no-train": dict(action="store_true", help="start no runs"),
        "--tables": dict(action="store_true", help="read no runs either, only the CSV files"),
        "--report": dict(
            metavar="DIR",
            type=Path,
            default=HERE,
            help="folder of results/ and README.md (default: benchmarks)",
        ),
    }


# ---- Runs as rows --------------------------------------------------------------------------------


def is_finished(folder: Path, num_timesteps: int) -> bool:
    """Return whether the run has reached its number of timesteps."""
    if not (folder / "progress.csv").exists():
        return False
    progress = load_run(folder).progress
    return progress is not None and progress["TimestepsSoFar"].iloc[-1] >= num_timesteps


def check_run(run: Run, expected: Mapping[str, Any]) -> None:
    """Compare a run's arguments, and its `ranks`, with those expected.

    Raises:
        ValueError: if they differ.
    """
    found = {name: run.arguments.get(name) for name in expected}
    if found != expected:
        raise ValueError(f"{run.folder} is a run with {found}, not {dict(expected)}")


def run_row(run: Run) -> Row:
    """Return a run's row, with RUN_COLUMNS."""
    config = read_config(run.folder)
    assert run.progress is not None
    last = run.progress.iloc[-1]
    words = ["python", *config["command"][1:]]
    if "--log-path" in words:
        words[words.index("--log-path") + 1] = "DIR"
    return {
        "env": run.env,
        "seed": run.arguments["seed"],
        "return_mean": final_score(run),
        "episodes": int(last["EpisodesSoFar"]),
        "timesteps": int(last["TimestepsSoFar"]),
        "seconds": round(last["TimeElapsed"], 1),
        "ranks": config["ranks"],
        "preset": run.arguments["preset"],
        "commit": re.sub(r"(\w{12})\w*", r"\1", config["git_commit"] or "unknown"),
        "versions": ", ".join(f"{name} {x}" for name, x in config["versions"].items()),
        "started": config["started"],
        "command": " ".join(word.replace(f"{ROOT}/", "") for word in words),
    }


def thinned(points: np.ndarray) -> np.ndarray:
    """Return at most POINTS evenly spaced of a curve's points, (N, ...), the last among them."""
    count = min(POINTS, len(points))
    return points[np.linspace(0, len(points) - 1, count).round().astype(int)]


def runs_from(rows: Iterable[Row], *, label: str = "") -> list[Run]:
    """Return the runs whose curves the rows are, for plot_curves; `label` is of rows without."""
    curves: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        curves.setdefault((row["env"], row.get("label", label), row["seed"]), []).append(row)
    return [
        Run(Path(), Path(), env, {"seed": seed}, label=name,
            progress=pandas.DataFrame(points)[[x for x in CURVE_NAMES if x in points[0]]]
            .rename(columns=CURVE_NAMES))
        for (env, name, seed), points in curves.items()
    ]  # fmt: skip


# ---- Figures and words ---------------------------------------------------------------------------


def summary(scores: Sequence[float]) -> Row:
    """Return seeds, mean, standard error (ddof 1) and the ends of the bootstrap interval."""
    values = np.array(scores, dtype=float)
    error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    low, high = bootstrap_interval([values], mean_over_runs, resamples=20_000)
    return {"seeds": len(values), "mean": values.mean(), "error": error, "low": low, "high": high}


def verdict(ours: Row, theirs: Row) -> str:
    """Return what the comparison of two intervals says; a single seed has none."""
    if math.isnan(ours["low"]) or math.isnan(theirs["low"]):
        return "none: one seed"
    if ours["low"] > theirs["high"]:
        return "higher"
    return "lower" if ours["high"] < theirs["low"] else "agree"


def cells(figures: Row) -> tuple[str, str, str]:
    """Return seeds, mean with error, and interval as a table shows them."""
    digits = 2 if abs(figures["mean"]) < 100 else 0
    mean, error, low, high = (
        f"{figures[name]:.{digits}f}" for name in ("mean", "error", "low", "high")
    )
    if figures["seeds"] == 1:
        return "1", mean, ""
    return str(figures["seeds"]), f"{mean} ± {error}", f"{low} to {high}"


def provenance(rows: Sequence[Row]) -> str:
    """Return how many runs there are, an example's command, dates, commits and versions."""
    commits, versions, dates = (
        ", ".join(sorted({str(row[name])[:length] for row in rows}))
        for name, length in (("commit", None), ("versions", None), ("started", len("2000-01-01")))
    )
    return (
        f"Runs: {len(rows)}, such as `{rows[0]['command']}`, {dates}, commit {commits}; {versions}."
    )
