#!/usr/bin/env python
"""Fill the results table of the repository's README.md from the CSV files of the learning results.

python benchmarks/summary.py
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout that this file lies in

from learning_report import HERE, ROOT, cells, summary, verdict
from mujoco_results import BASELINES, LEVEL, PUBLISHED, by_run
from studies import PRESET_OF_PAPER, SHOWN, STUDIES, published_points, published_score, runs_of
from throughput_report import Row, fill_between_markers, read_csv, table

BEGIN = "<!-- made by benchmarks/summary.py: begin -->"
END = "<!-- made by benchmarks/summary.py: end -->"
HEADER = ("environment", "timesteps", "ours", "baselines' ppo1", "published", "verdict")


def mujoco_rows(rows: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    """Yield the table's rows of the environments that mujoco_runs.csv has."""
    baselines = read_csv(BASELINES)
    published = {row["env"]: row["mean"] for row in read_csv(PUBLISHED) if row["source"] == LEVEL}
    for env in dict.fromkeys(row["env"] for row in rows):
        ours = summary([row["return_mean"] for row in rows if row["env"] == env])
        theirs = summary([points[-1, 1] for points in by_run(baselines, env).values()])
        level = f"{published[env.partition('-')[0]]:g}"
        yield env, "1 M", score(ours), score(theirs), level, verdict(ours, theirs)


def atari_rows(curves: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    """Yield the table's rows of the paper's games, as far as ours have come.

    That is the last of the timesteps in SHOWN, or of those at which the paper's seeds are known.
    """
    for line in STUDIES["atari"]:
        points = published_points(line.env)
        found: dict[int, list[float]] = {}
        for row in runs_of(line, curves):
            if row["timesteps"] in SHOWN:
                found.setdefault(row["timesteps"], []).append(row["return_mean"])
        if line.label == PRESET_OF_PAPER and found:
            last = max(found, key=lambda x: (points[x]["lowest_seed"] != "", x))
            ours = summary(found[last])
            result = place(ours["mean"], points[last])
            theirs = published_score(points[last])
            yield line.env, f"{last / 1e6:g} M", score(ours), "", theirs, result


def place(mean: float, point: Row) -> str:
    """Return where a mean lies in the range of the paper's seeds."""
    if point["lowest_seed"] == "":
        return "none: the paper's seeds are not known"
    if mean > point["highest_seed"]:
        return "above the paper's seeds"
    return "below the paper's seeds" if mean < point["lowest_seed"] else "among the paper's seeds"


def score(figures: Row) -> str:
    """Return the mean, its standard error and the number of seeds."""
    seeds, mean, _ = cells(figures)
    return f"{mean} ({seeds})"


def render(results: Path) -> str:
    """Return the table, from the CSV files in a folder."""
    rows = [
        *mujoco_rows(read_csv(results / "mujoco_runs.csv")),
        *atari_rows(read_csv(results / "atari_curves.csv")),
    ]
    return table(HEADER, rows)


def main() -> None:
    """Fill README.md."""
    text = render(HERE / "results")
    fill_between_markers(ROOT / "README.md", text, begin=BEGIN, end=END)
    print(text)


if __name__ == "__main__":
    main()
