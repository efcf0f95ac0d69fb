"""benchmarks/studies.py on runs whose numbers are known, and on short real ones."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import image

from common.plot_util import load_run
from tests.ranks import ROOT, rank_environment

sys.path.append(str(ROOT / "benchmarks"))  # scripts, not a package
studies = importlib.import_module("studies")
read_csv = importlib.import_module("throughput_report").read_csv

CHEETAH, HOPPER, PENDULUM = "HalfCheetah-v4", "Hopper-v4", "InvertedPendulum-v4"
PONG = "PongNoFrameskip-v4"


def write_run(
    out: Path,
    study: str,
    label: str,
    env: str,
    seed: int,
    *,
    returns: float,
    iterations: int = 100,
    end: int = 1_000_000,
    seconds: float = 60.0,
    games: int = 150,
    frames: bool = False,
    script: str = "",
    **arguments: Any,
) -> Path:
    """Write a run of a study's line whose return grows evenly; return its folder.

    Its games have 1000 timesteps each, the last 100 of them all the same return.
    """
    (line,) = [x for x in studies.STUDIES[study] if (x.label, x.env) == (label, env)]
    folder = out / line.folder / f"seed{seed}"
    folder.mkdir(parents=True)
    ppo = {"timesteps_per_actorbatch": 2048, "optim_batchsize": 64, "optim_epochs": 10}
    expected = {name: value for name, value in line.expected.items() if name != "ranks"}
    config = {
        "arguments": {"env": env, "seed": seed, **ppo, **expected, **arguments},
        "command": ["/bin/python", script or line.argv[0], *line.argv[1:], "--seed", f"{seed}"],
        "ranks": line.expected["ranks"],
        "hostname": "elsewhere",
        "started": "2026-01-02T03:04:05+0000",
        "git_commit": "0123456789abcdef",
        "versions": {"python": "3.11"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    with (folder / "progress.csv").open("w") as file:
        names = "EpisodesSoFar,TimestepsSoFar,TimeElapsed,EpTrueRewMean"
        file.write(f"{names},FramesSoFar\n" if frames else f"{names}\n")
        for i in range(iterations):
            part = (i + 1) / iterations
            value = returns * part if i else "nan"  # no episode has ended in the first
            row = [10 * i, int(end * part), seconds * part, value]
            file.write(",".join(map(str, [*row, int(4 * end * part)] if frames else row)) + "\n")
    rewards = [-1e9] * (games - 100) + [returns] * 100
    rows = "".join(f"{r},1000,{t}\n" for t, r in enumerate(rewards))
    header = '#{"t_start": 1.0, "env_id": "x"}\nr,l,t\n'
    (folder / "0.monitor.csv").write_text(header + rows)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A report's folder, whose README.md has the markers of all studies."""
    text = "".join("\n".join(studies.markers(study)) + "\n" for study in studies.STUDIES)
    (tmp_path / "README.md").write_text(text)
    return tmp_path


def report(folder: Path, study: str, *flags: str) -> str:
    studies.main([study, "--no-train", "--out", str(folder / "runs"), "--report", str(folder),
                  *flags])  # fmt: skip
    text = (folder / "README.md").read_text()
    begin, end = studies.markers(study)
    return text.partition(begin)[2].partition(end)[0]


def lines_of(text: str, start: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(start)]


def test_ranks(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "runs"
    for seed in range(3):
        write_run(out, "ranks", "1 rank", HOPPER, seed, returns=2000.0 + seed)
        write_run(out, "ranks", "2 ranks", HOPPER, seed, returns=1000.0 + seed, iterations=50,
                  seconds=30)  # fmt: skip
    write_run(out, "ranks", "1 rank", CHEETAH, 0, returns=10.0)
    write_run(out, "ranks", "4 ranks", CHEETAH, 0, returns=10.0, iterations=25, seconds=90)
    write_run(out, "ranks", "2 ranks", CHEETAH, 0, returns=10.0, end=999_999)  # unfinished
    text = report(folder, "ranks")

    # 32 minibatches, 10 epochs; of returns 0, 1 and 2 the standard error is 1 / sqrt(3)
    assert lines_of(text, f"| {HOPPER}") == [
        "| Hopper-v4 | 1 rank | 3 | 2001 ± 1 | 2000 to 2002 |  | 32,000 | 1.0 |",
        "| Hopper-v4 | 2 ranks | 3 | 1001 ± 1 | 1000 to 1002 | lower | 16,000 | 0.5 |",
        "| Hopper-v4 | 4 ranks | not run yet |  |  |  |  |  |",
    ]
    assert lines_of(text, f"| {CHEETAH}") == [
        "| HalfCheetah-v4 | 1 rank | 1 | 10.00 |  |  | 32,000 | 1.0 |",
        "| HalfCheetah-v4 | 2 ranks | not run yet |  |  |  |  |  |",
        "| HalfCheetah-v4 | 4 ranks | 1 | 10.00 |  | none: one seed | 8,000 | 1.5 |",
    ]
    assert len(lines_of(text, f"| {PENDULUM}")) == text.count(f"| {PENDULUM}") == 3
    assert lines_of(text, "- ") == [
        "- 2 ranks against one: in Hopper-v4 0.50 times the updates and 0.50 times the time, "
        "return: lower.",
        "- 4 ranks against one: in HalfCheetah-v4 0.25 times the updates and 1.50 times the time, "
        "return: none: one seed.",
    ]
    assert "Runs: 8, such as `python run_mujoco.py --num-procs 1 --seed 0`, 2026-01-02" in text
    assert "Cores: unknown" in text

    rows = read_csv(folder / "results" / "ranks_runs.csv")
    assert [(row["env"], row["label"], row["seed"]) for row in rows][:4] == [
        (HOPPER, "1 rank", 0), (HOPPER, "1 rank", 1), (HOPPER, "1 rank", 2), (HOPPER, "2 ranks", 0)
    ]  # fmt: skip
    curves = read_csv(folder / "results" / "ranks_curves.csv")
    last = dict(label="4 ranks", env=CHEETAH, seed=0, timesteps=1_000_000, seconds=90)
    assert curves[-1] == {**last, "return_mean": 10}
    over_time = dict(studies.figures("ranks", curves))["ranks_time"]
    longest = [max(line.get_xdata()) for line in over_time.axes[1].get_lines()]
    assert longest == pytest.approx([60, 30])  # seconds, HalfCheetah's panel being the first
    for name in ("ranks", "ranks_time"):
        assert image.imread(folder / "results" / f"{name}.png").std() > 0.05

    studies.main(["ranks", "--tables", "--report", str(folder)])  # from the CSV files alone
    assert text in (folder / "README.md").read_text()
    capsys.readouterr()


def test_ablations(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "runs"
    for seed in range(3):
        for label, returns in (("ppo1", 2000.0), ("torch-adam", 2001.0), ("stored-logp", 3000.0)):
            write_run(out, "ablations", label, HOPPER, seed, returns=returns + seed)
    assert (out / "mujoco" / HOPPER / "seed2").is_dir()
    assert (out / "ablations" / "torch-adam" / HOPPER / "seed2").is_dir()
    text = report(folder, "ablations")
    assert lines_of(text, f"| {HOPPER}") == [
        "| Hopper-v4 | ppo1 | 3 | 2001 ± 1 | 2000 to 2002 |  |",
        "| Hopper-v4 | bootstrap-truncated | not run yet |  |  |  |",
        "| Hopper-v4 | torch-adam | 3 | 2002 ± 1 | 2001 to 2003 | agree |",
        "| Hopper-v4 | stored-logp | 3 | 3001 ± 1 | 3000 to 3002 | higher |",
    ]
    assert len(lines_of(text, f"| {CHEETAH}")) == 4
    assert image.imread(folder / "results" / "ablations.png").std() > 0.05
    capsys.readouterr()


def test_runs_that_do_not_name_their_variant(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such as were made before config.json had it."""
    run = write_run(folder / "runs", "ablations", "torch-adam", HOPPER, 0, returns=1.0)
    config = json.loads((run / "config.json").read_text())
    config["command"].remove("torch-adam")
    (run / "config.json").write_text(json.dumps(config))
    report(folder, "ablations")
    (row,) = read_csv(folder / "results" / "ablations_runs.csv")
    assert row["command"] == "python benchmarks/variants.py torch-adam --seed 0"
    capsys.readouterr()


def test_atari_is_reported_as_far_as_it_is(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paper = "paper, 8 ranks"
    run = write_run(
        folder / "runs", "atari", paper, PONG, 0, returns=20.0, end=620_000, games=600, frames=True,
        seconds=7200,
    )  # fmt: skip
    rewards = [-20.0] * 400 + [0.0] * 100 + [20.0] * 100
    rows = "".join(f"{r},1000,{t}\n" for t, r in enumerate(rewards))
    (run / "0.monitor.csv").write_text(f'#{{"t_start": 1.0}}\nr,l,t\n{rows}')
    # too few games for a mean of 100 of them
    write_run(folder / "runs", "atari", paper, "BreakoutNoFrameskip-v4", 0, returns=1.0, games=100)
    few = folder / "runs" / "atari" / "breakout-paper-np8" / "seed0" / "0.monitor.csv"
    few.write_text("".join(few.read_text().splitlines(keepends=True)[:-1]))
    text = report(folder, "atari")
    assert lines_of(text, "| ") == [
        "| game | run | seeds | reached | 0.25 M | 0.5 M | 1 M | 1.5 M | 2 M | 2.5 M | 3 M | last "
        "| frames | hours |",
        "| --- |" + " ---: |" * 13,
        "| Pong | the paper's runs | 3 |  | -20 | -15 (-19 to -9) | -10 (-17 to -4) | 8 (-3 to 16) "
        "| 12 (7 to 17) | 17 (15 to 20) | 19 |  |  |  |",
        f"| Pong | {paper} | seed 0 | 0.62 M | -20.0 | 0.0 |  |  |  |  |  | 20.0 | 2.5 M | 2.0 |",
        "| Pong | ppo1, 2 ranks |  | not run yet |  |  |  |  |  |  |  |  |  |  |",
        f"| Pong | {paper}, 1 frame |  | not run yet |  |  |  |  |  |  |  |  |  |  |",
        "| Breakout | the paper's runs | 3 |  | 12 | 16 | 26 | 35 | 40 | 55 | 74 |  |  |  |",
        f"| Breakout | {paper} |  | not run yet |  |  |  |  |  |  |  |  |  |  |",
    ]
    assert "Runs: 1, such as `python run_atari.py --num-procs 8 --preset paper --seed 0`" in text
    curves = read_csv(folder / "results" / "atari_curves.csv")
    assert [row["timesteps"] for row in curves][:2] == [100_000, 125_000]
    assert curves[-1]["timesteps"] == 600_000
    assert {row["env"] for row in curves} == {PONG}
    (reference,) = studies.paper_curves(curves)
    assert reference.x[-1] == 3_000_000  # as far as the study goes
    assert reference.y[-1] == 19
    assert image.imread(folder / "results" / "atari.png").std() > 0.05
    capsys.readouterr()


def test_mean_of_the_last_100_games_by_hand(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"arguments": {"env": "x"}}')
    lengths = np.full(130, 700)
    rows = "".join(f"{i},{n},{i}\n" for i, n in enumerate(lengths))
    (tmp_path / "0.monitor.csv").write_text(f'#{{"t_start": 1.0}}\nr,l,t\n{rows}')
    points = studies.atari_points(load_run(tmp_path))
    # The 100th game ends at 70,000; of those over at 75,000, the last is number 107 (74,900)
    assert points == [
        {"timesteps": 75_000, "return_mean": pytest.approx(np.mean(np.arange(7, 107)))},
        {"timesteps": 91_000, "return_mean": pytest.approx(np.mean(np.arange(30, 130)))},
    ]


def test_cores_of_this_machine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = load_run(write_run(folder, "ranks", "1 rank", HOPPER, 0, returns=1.0))
    assert studies.counts(run) == {"updates": 32_000, "frames": "", "cores": ""}
    monkeypatch.setattr(studies.platform, "node", lambda: "elsewhere")
    assert studies.counts(run)["cores"] >= 1


@pytest.mark.parametrize(
    ("study", "arguments", "flags", "message"),
    [
        ("ablations", {"bootstrap_truncated": True}, [], "seed0 is a run with {'env': 'Hopper-v4'"),
        (
            "ablations",
            {"variant": "torch-adam"},
            [],
            "'script': 'run_mujoco.py', 'variant': 'torch",
        ),
        ("ablations", {"script": "variants.py"}, [], "'script': 'variants.py', 'variant': None"),
        ("ranks", None, [], "no run of ranks in"),
        ("atari", None, [], "no run of atari in"),
        ("ranks", None, ["--only", "Walker"], "--only Walker: need part of one of ranks/Inverted"),
    ],
)
def test_what_is_refused(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    study: str,
    arguments: dict | None,
    flags: list[str],
    message: str,
) -> None:
    if arguments is not None:
        write_run(folder / "runs", study, "ppo1", HOPPER, 0, returns=1.0, **arguments)
    flags = flags or ["--no-train"]
    with pytest.raises(SystemExit) as leave:
        studies.main([study, *flags, "--out", str(folder / "runs"), "--report", str(folder)])
    assert leave.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (folder / "results").exists()


def test_the_repository_has_what_the_studies_need() -> None:
    text = (ROOT / "benchmarks" / "README.md").read_text()
    for study, lines in studies.STUDIES.items():
        begin, end = studies.markers(study)
        assert text.index(begin) < text.index(end)
        assert len({line.folder for line in lines}) == len(lines)
    for env in {line.env for line in studies.STUDIES["atari"]}:
        known = {row["timesteps"] for row in read_csv(studies.PUBLISHED) if row["env"] == env}
        assert set(studies.SHOWN) < known


@pytest.mark.parametrize("study", studies.STUDIES)
def test_the_readme_is_up_to_date(study: str) -> None:
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    begin, end = studies.markers(study)
    results = ROOT / "benchmarks" / "results"
    rows, curves = (read_csv(results / f"{study}_{name}.csv") for name in ("runs", "curves"))
    assert text.partition(begin)[2].partition(end)[0].strip() == studies.render(study, rows, curves)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("study", "only", "timesteps", "start"),
    [
        ("ranks", "InvertedPendulum-v4/num-procs2", 3000, "| InvertedPendulum-v4 | 2 ranks | 1 |"),
        ("ablations", "torch-adam/Hopper", 3000, "| Hopper-v4 | torch-adam | 1 |"),
        ("ablations", "mujoco/Hopper", 3000, "| Hopper-v4 | ppo1 | 1 |"),
    ],
)
def test_runs_are_made_once(
    folder: Path, study: str, only: str, timesteps: int, start: str
) -> None:
    command = [
        sys.executable, str(ROOT / "benchmarks" / "studies.py"), study, "--only", only,
        "--seeds", "1", "--num-timesteps", str(timesteps),
        "--out", str(folder / "runs"), "--report", str(folder),
    ]  # fmt: skip

    def run() -> str:
        done = subprocess.run(
            command, env=rank_environment(), capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    first = run()
    assert "1 run, 1 to do, 1 at a time" in first
    assert len(lines_of(first, start)) == 1
    rows = read_csv(folder / "results" / f"{study}_runs.csv")
    assert rows[0]["timesteps"] >= timesteps
    second = run()
    assert "to do" not in second
    assert read_csv(folder / "results" / f"{study}_runs.csv") == rows


@pytest.mark.slow
def test_an_atari_run_goes_on(folder: Path) -> None:
    """Reports nothing yet, for want of 100 games, but trains, pauses and continues."""
    command = [
        sys.executable, str(ROOT / "benchmarks" / "studies.py"), "atari", "--only", "pong-ppo1-np2",
        "--out", str(folder / "runs"), "--report", str(folder), "--num-timesteps",
    ]  # fmt: skip
    run = folder / "runs" / "atari" / "pong-ppo1-np2" / "seed0"
    reached = []
    for timesteps in (500, 4000):
        done = subprocess.run(
            [*command, str(timesteps)], env=rank_environment(), capture_output=True, text=True,
            timeout=500,
        )  # fmt: skip
        assert "paused" in done.stdout, done.stdout + done.stderr
        assert "no run of atari" in done.stderr.splitlines()[-1]
        progress = load_run(run).progress
        assert progress is not None
        reached.append(int(progress["TimestepsSoFar"].iloc[-1]))
    assert 500 <= reached[0] < 4000 <= reached[1]
