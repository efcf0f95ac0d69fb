"""benchmarks/mujoco_results.py on runs whose numbers are known, and on a short real one."""

import csv
import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image

from tests.ranks import ROOT, rank_environment

sys.path.append(str(ROOT / "benchmarks"))  # scripts, not a package
results = importlib.import_module("mujoco_results")
POINTS = importlib.import_module("learning_report").POINTS
read_csv = importlib.import_module("throughput_report").read_csv


def write_finished_run(
    out: Path, env_folder: str, seed: int, *, returns: float, **arguments
) -> None:
    """Write a run whose last 100 episodes all had the same return."""
    folder = out / env_folder / f"seed{seed}"
    folder.mkdir(parents=True)
    config = {
        "arguments": {"env": env_folder, "seed": seed, "preset": "mujoco"} | arguments,
        "command": ["/bin/python", "run_mujoco.py", "--log-path", str(folder), "--seed", f"{seed}"],
        "ranks": 1,
        "started": "2026-01-02T03:04:05+0000",
        "git_commit": "0123456789abcdef-dirty",
        "versions": {"python": "3.11", "torch": "2"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    with (folder / "progress.csv").open("w") as file:
        file.write("EpisodesSoFar,TimestepsSoFar,TimeElapsed,EpTrueRewMean\n")
        for i in range(1, 251):
            file.write(f"{i},{4000 * i},{i / 2},{returns * i / 250}\n")
    episodes = [-1e9] * 50 + [returns] * 100
    rows = "".join(f"{r},4000,{t}\n" for t, r in enumerate(episodes))
    header = '#{"t_start": 1.0, "env_id": "x"}\nr,l,t\n'
    (folder / "0.monitor.csv").write_text(header + rows)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A report's folder, whose README.md has the markers."""
    text = f"# Before\n{results.BEGIN}\nold\n{results.END}\nafter\n"
    (tmp_path / "README.md").write_text(text)
    return tmp_path


@pytest.mark.slow
def test_report_on_finished_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "runs"
    for seed, returns in enumerate((1000.0, 2000.0)):
        write_finished_run(out, "Hopper-v4", seed, returns=returns)
        write_finished_run(out, "HalfCheetah-v4", seed, returns=9 * returns)
    write_finished_run(out, "Reacher-v4", 0, returns=-5.0)
    write_finished_run(out, "Reacher-v4", 1, returns=-5.0)
    unfinished = out / "Reacher-v4" / "seed1" / "progress.csv"
    unfinished.write_text("".join(unfinished.read_text().splitlines(keepends=True)[:-1]))

    results.main(["--no-train", "--out", str(out), "--report", str(folder)])
    rows = read_csv(folder / "results" / "mujoco_runs.csv")
    assert [(row["env"], row["seed"], row["return_mean"]) for row in rows] == [
        ("HalfCheetah-v4", 0, 9000),
        ("HalfCheetah-v4", 1, 18000),
        ("Hopper-v4", 0, 1000),
        ("Hopper-v4", 1, 2000),
        ("Reacher-v4", 0, -5),
    ]
    assert (rows[0]["episodes"], rows[0]["timesteps"], rows[0]["seconds"]) == (250, 1_000_000, 125)
    assert rows[0]["commit"] == "0123456789ab-dirty"
    assert rows[3]["command"] == "python run_mujoco.py --log-path DIR --seed 1"
    assert str(folder) not in (folder / "results" / "mujoco_runs.csv").read_text()
    curves = read_csv(folder / "results" / "mujoco_curves.csv")
    assert len(curves) == 5 * POINTS
    assert curves[-1] == {"env": "Reacher-v4", "seed": 0, "timesteps": 1e6, "return_mean": -5}
    assert image.imread(folder / "results" / "mujoco.png").std() > 0.05

    text = (folder / "README.md").read_text()
    assert text.startswith(f"# Before\n{results.BEGIN}\n\nRuns: 5, such as `python run_mujoco.py")
    assert text.endswith(f"{results.END}\nafter\n")
    # Of two runs the standard error is half their difference.
    cheetah, hopper, reacher = (
        next(line for line in text.splitlines() if line.startswith(f"| {env}"))
        for env in ("HalfCheetah", "Hopper", "Reacher")
    )
    assert cheetah.startswith("| HalfCheetah-v4 | 2 | 13500 ± 4500 | 9000 to 18000 | ")
    assert cheetah.endswith("| higher |")
    assert hopper.startswith("| Hopper-v4 | 2 | 1500 ± 500 | 1000 to 2000 | ")
    assert reacher.startswith("| Reacher-v4 | 1 | -5.00 |  | ")
    assert reacher.endswith("| none: one seed |")
    assert (
        "| HalfCheetah-v4 | 13500 | 1668.58 | 1800 | 3043 (1920 to 4165) | 1442.64 ± 46.03 |"
        in text
    )

    results.main(["--tables", "--report", str(folder)])  # from the CSV files alone
    assert (folder / "README.md").read_text() == text
    capsys.readouterr()


def test_verdict() -> None:
    def interval(low: float, high: float) -> dict:
        return {"low": low, "high": high}

    assert results.verdict(interval(1, 3), interval(2, 4)) == "agree"
    assert results.verdict(interval(1, 2), interval(2, 4)) == "agree"
    assert results.verdict(interval(5, 6), interval(2, 4)) == "higher"
    assert results.verdict(interval(-6, -5), interval(-4, -3)) == "lower"
    assert results.verdict(interval(1, 3), results.summary([2.0])) == "none: one seed"


def test_summary_by_hand() -> None:
    figures = results.summary([1.0, 3.0])
    assert (figures["seeds"], figures["mean"], figures["error"]) == (2, 2, pytest.approx(1))
    assert (figures["low"], figures["high"]) == (1, 3)


def test_curves_keep_their_last_point() -> None:
    points = np.stack([np.arange(489) * 2048.0, np.arange(489.0)], axis=1)
    rows = list(results.curve_rows("A-v4", 3, points))
    assert len(rows) == POINTS
    assert rows[0] == {"env": "A-v4", "seed": 3, "timesteps": 0, "return_mean": 0.0}
    assert rows[-1]["timesteps"] == 488 * 2048
    assert len(list(results.curve_rows("A-v4", 3, points[:7]))) == 7


def test_figure_has_ours_baselines_and_the_published_level() -> None:
    def rows(seed: int, slope: float) -> list[dict]:
        xs = (0, 1_000_000)
        return [dict(env="Hopper-v4", seed=seed, timesteps=x, return_mean=x * slope) for x in xs]

    published = read_csv(results.PUBLISHED)
    figure = results.figure(rows(0, 1e-3) + rows(1, 3e-3), rows(0, 1e-3) + rows(1, 2e-3), published)
    (axes,) = figure.axes
    ours, theirs, level = axes.get_lines()
    assert ours.get_ydata()[-1] == pytest.approx(2000)
    assert (theirs.get_ydata()[-1], theirs.get_label()) == (1500, "baselines' ppo1 (2 seeds)")
    assert (level.get_ydata()[0], level.get_label()) == (2316.16, "ppo2 -v2 (published)")
    assert theirs.is_dashed()
    assert level.is_dashed()
    assert [t.get_text() for t in axes.get_legend().get_texts()][0] == "ours (2 seeds)"


def test_references_are_complete() -> None:
    families = {env.partition("-")[0] for env in results.ENVIRONMENTS}
    published = read_csv(results.PUBLISHED)
    assert {row["env"] for row in published if row["source"] == results.LEVEL} == families
    for env in results.ENVIRONMENTS:
        for curve in results.by_run(read_csv(results.BASELINES), env).values():
            assert len(curve) == POINTS
            assert curve[-1, 0] >= 1_000_000


def test_the_readme_is_up_to_date() -> None:
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    rows = read_csv(ROOT / "benchmarks" / "results" / "mujoco_runs.csv")
    expected = results.render(rows, read_csv(results.BASELINES), read_csv(results.PUBLISHED))
    assert text.partition(results.BEGIN)[2].partition(results.END)[0].strip() == expected


def test_baselines_are_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "measured.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["env", "seed", "TimestepsSoFar", "EpRewMean", "loss_kl"])
        writer.writerows(["A-v4", seed, 10 * i, i + seed, 0.5] for seed in (0, 1) for i in range(3))
    rows = results.take_over_baselines(path)
    assert [(row["seed"], row["timesteps"], row["return_mean"]) for row in rows] == [
        (0, 0, 0.0), (0, 10, 1.0), (0, 20, 2.0), (1, 0, 1.0), (1, 10, 2.0), (1, 20, 3.0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"preset": "humanoid"},
            "seed0 is a run with {'env': 'Hopper-v4', 'seed': 0, 'preset': 'h",
        ),
        ({"env": "Ant-v4"}, "seed0 is a run with {'env': 'Ant-v4'"),
        (None, "no finished run in"),
    ],
)
def test_runs_that_do_not_fit(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: dict | None, message: str
) -> None:
    if arguments is not None:
        config = {"returns": 1.0, **arguments}
        write_finished_run(folder / "runs", "Hopper-v4", 0, **config)
    with pytest.raises(SystemExit) as leave:
        results.main(["--no-train", "--out", str(folder / "runs"), "--report", str(folder)])
    assert leave.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (folder / "results").exists()


@pytest.mark.slow
def test_runs_are_made_once(folder: Path) -> None:
    command = [
        sys.executable, str(ROOT / "benchmarks" / "mujoco_results.py"),
        "--env", "InvertedPendulum-v4", "--seeds", "2", "--num-timesteps", "3000", "--jobs", "2",
        "--out", str(folder / "runs"), "--report", str(folder),
    ]  # fmt: skip

    def bench() -> str:
        done = subprocess.run(
            command, env=rank_environment(), capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    first = bench()
    assert "2 runs, 2 to do, 2 at a time" in first
    assert "| InvertedPendulum-v4 | 2 | " in first
    rows = read_csv(folder / "results" / "mujoco_runs.csv")
    assert all(row["timesteps"] >= 3000 for row in rows)
    assert "2 runs, 0 to do" in bench()
    assert read_csv(folder / "results" / "mujoco_runs.csv") == rows
