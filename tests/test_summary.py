"""benchmarks/summary.py: README.md's table, on numbers that are known and on the repository's."""

import importlib
import sys
from pathlib import Path

from tests.ranks import ROOT

sys.path.append(str(ROOT / "benchmarks"))  # scripts, not a package
summary = importlib.import_module("summary")
write_csv = importlib.import_module("throughput_report").write_csv

PONG, BREAKOUT = "PongNoFrameskip-v4", "BreakoutNoFrameskip-v4"


def test_table(tmp_path: Path) -> None:
    runs = [{"env": "Hopper-v4", "seed": s, "return_mean": r} for s, r in ((0, 9e5), (1, 11e5))]
    write_csv(tmp_path / "mujoco_runs.csv", runs, list(runs[0]))

    def point(env: str, timesteps: int, score: float, seed: int = 0, label: str = "") -> dict:
        label = label or "paper, 8 ranks"
        return dict(label=label, env=env, seed=seed, timesteps=timesteps, return_mean=score)

    curves = [
        point(PONG, 1_500_000, 17.0),
        point(PONG, 2_500_000, 14.0, seed=0),
        point(PONG, 2_500_000, 16.0, seed=1),
        point(PONG, 2_500_000, 20.0, label="ppo1, 2 ranks"),
        point(PONG, 2_600_000, 20.0),
        point(PONG, 3_000_000, 20.0),  # at which the paper's seeds are not known
        point(BREAKOUT, 500_000, 20.0),
        point(BREAKOUT, 1_000_000, 30.0),
    ]
    write_csv(tmp_path / "atari_curves.csv", curves, list(curves[0]))
    lines = summary.render(tmp_path).splitlines()[2:]
    assert lines[0].startswith("| Hopper-v4 | 1 M | 1000000 ± 100000 (2) | ")
    assert lines[0].endswith(" | 2316.16 | higher |")
    assert lines[1:] == [
        f"| {PONG} | 2.5 M | 15.00 ± 1.00 (2) |  | 17 (15 to 20) | among the paper's seeds |",
        f"| {BREAKOUT} | 1 M | 30.00 (1) |  | 26 | none: the paper's seeds are not known |",
    ]


def test_place() -> None:
    point = {"lowest_seed": -3, "highest_seed": 16}
    assert summary.place(-3.1, point) == "below the paper's seeds"
    assert summary.place(16.1, point) == "above the paper's seeds"
    assert summary.place(-3, point) == summary.place(16, point) == "among the paper's seeds"


def test_the_readme_is_up_to_date() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    _, found, rest = text.partition(summary.BEGIN)
    assert found
    assert rest.partition(summary.END)[0].strip() == summary.render(ROOT / "benchmarks" / "results")
