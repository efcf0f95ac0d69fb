"""benchmarks/studies.py on runs whose numbers are known, and on short real ones."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from common.atari_wrappers import FrameStack, make_atari, wrap_deepmind
from common.plot_util import load_run
from ppo1.cnn_policy import CnnPolicy
from tests.ranks import ROOT, rank_environment

sys.path.append(str(ROOT / "benchmarks"))  # scripts, not a package
studies = importlib.import_module("studies")
studies_report = importlib.import_module("studies_report")
first_layer = importlib.import_module("first_layer")
throughput_report = importlib.import_module("throughput_report")
read_csv, write_csv = throughput_report.read_csv, throughput_report.write_csv

MUJOCO = [line.env for line in studies.STUDIES["mujoco"]]
CHEETAH, HOPPER, PENDULUM = "HalfCheetah-v4", "Hopper-v4", "InvertedPendulum-v4"
PONG, BREAKOUT = "PongNoFrameskip-v4", "BreakoutNoFrameskip-v4"
PAPER, DEFAULT = "preset paper, 8 ranks", "preset ppo1, 2 ranks"


def write_run(
    out: Path,
    study: str,
    label: str,
    env: str,
    seed: int,
    /,
    *,
    returns: float,
    iterations: int = 100,
    end: int = 1_000_000,
    seconds: float = 60.0,
    games: int = 150,
    frames: bool = False,
    script: str = "",
    resumed: tuple[dict[str, Any], ...] = (),
    **arguments: Any,
) -> Path:
    """Write a run of a study's line whose return grows evenly; return its folder.

    Its games have 1000 timesteps each, the last 100 of them all the same return.
    """
    (line,) = [x for x in studies.STUDIES[study] if (x.label, x.env) == (label, env)]
    folder = out / line.group / line.env / f"seed{seed}"
    folder.mkdir(parents=True)
    words = line.argv
    ranks = int(words[words.index("--num-procs") + 1]) if "--num-procs" in words else 1
    ppo = {"timesteps_per_actorbatch": 2048, "optim_batchsize": 64, "optim_epochs": 10}
    if study == "atari":
        paper = {"timesteps_per_actorbatch": 128, "optim_batchsize": 32, "optim_epochs": 3}
        ppo = {"preset": "paper", **paper}
    else:
        ppo["preset"] = "mujoco"
    ppo |= {
        "env": env,
        "given_env": env,
        "seed": seed,
        "bootstrap_truncated": "--bootstrap-truncated" in words,
    }
    if "variants" in words[0]:
        ppo["variant"] = words[1]
    config = {
        "arguments": ppo | arguments,
        "command": ["/bin/python", f"/checkout/{script or words[0]}", *words[1:], "--env", env,
                    "--seed", f"{seed}", "--log-path", str(folder)],
        "ranks": ranks,
        "cores": 2,
        "started": "2026-01-02T03:04:05+0000",
        "git_commit": "0123456789abcdef",
        "versions": {"python": "3.11", "torch": "2"},
        "mpi": "MPICH",
        "resumed": resumed,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    with (folder / "progress.csv").open("w") as file:
        names = "EpisodesSoFar,TimestepsSoFar,TimeElapsed,EpTrueRewMean,loss_kl"
        file.write(f"{names},FramesSoFar\n" if frames else f"{names}\n")
        for i in range(iterations):
            part = (i + 1) / iterations
            value = returns * part if i else "nan"  # no episode has ended in the first
            row = [10 * i, int(end * part), seconds * part, value, 0.002]
            file.write(",".join(map(str, [*row, int(4 * end * part)] if frames else row)) + "\n")
    write_games(folder, [-1e9] * (games - 100) + [returns] * 100)
    return folder


def write_games(folder: Path, returns: list[float], length: int = 1000) -> None:
    rows = "".join(f"{r},{length},{t}\n" for t, r in enumerate(returns))
    (folder / "0.monitor.csv").write_text(f'#{{"t_start": 1.0, "env_id": "x"}}\nr,l,t\n{rows}')


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A report's folder, whose two pages have the markers of all studies."""
    text = "".join("\n".join(studies_report.markers(study)) + "\n" for study in studies.STUDIES)
    for page in ("README.md", "METHODS.md"):
        (tmp_path / page).write_text(text)
    return tmp_path


def report(folder: Path, study: str, page: str = "README.md") -> str:
    """Return what a study's report puts between its markers in a page."""
    studies.main([study, "--no-train", "--out", str(folder / "runs"), "--report", str(folder)])
    begin, end = studies_report.markers(study)
    return (folder / page).read_text().partition(begin)[2].partition(end)[0]


def rows_of(text: str) -> list[dict[str, str]]:
    """Return the rows of a text's first Markdown table by column, the last of equal names."""
    lines = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| ")]
    header, _, *rows = ([cell.strip() for cell in line] for line in lines)
    return [dict(zip(header, row, strict=True)) for row in rows if len(row) == len(header)]


def test_mujoco(folder: Path) -> None:
    out = folder / "runs"
    for seed, returns in enumerate((1000.0, 2000.0)):
        write_run(out, "mujoco", "ours", HOPPER, seed, returns=returns)
        write_run(out, "mujoco", "ours", CHEETAH, seed, returns=9 * returns, seconds=125)
    write_run(out, "mujoco", "ours", "Reacher-v4", 0, returns=-5.0)
    write_run(out, "mujoco", "ours", "Reacher-v4", 1, returns=-5.0, end=999_999)  # unfinished
    cheetah, hopper, reacher = rows_of(report(folder, "mujoco"))
    # Of two runs the standard error is half their difference
    assert (cheetah["our seeds"], cheetah["ours"]) == ("2", "13500 ± 4500")
    assert (cheetah["verdict"], reacher["verdict"]) == ("higher", "none: one seed")
    assert hopper["ours"] == "1500 ± 500"
    details = report(folder, "mujoco", "METHODS.md")
    assert "HalfCheetah-v4 0: 9000, 1: 18000;" in details
    assert "Runs: 5, of 2026-01-02; commit 0123456789ab; python 3.11, torch 2; MPICH;" in details
    assert "\n    python run_mujoco.py --env ENV --seed N --log-path DIR\n" in details

    rows = read_csv(folder / "results" / "mujoco_runs.csv")
    assert [(row["env"], row["seed"], row["return_mean"]) for row in rows] == [
        (CHEETAH, 0, 9000), (CHEETAH, 1, 18000), (HOPPER, 0, 1000), (HOPPER, 1, 2000),
        ("Reacher-v4", 0, -5),
    ]  # fmt: skip
    first = rows[0]
    assert (first["episodes"], first["timesteps"], first["seconds"]) == (990, 1_000_000, 125)
    assert first["command"] == f"python run_mujoco.py --env {CHEETAH} --seed 0 --log-path DIR"
    curves = read_csv(folder / "results" / "mujoco_curves.csv")
    assert len(curves) == 5 * 99  # less the first iteration's, in which no episode ended
    assert (curves[-1]["timesteps"], curves[-1]["return_mean"]) == (1_000_000, -5)
    assert (folder / "results" / "mujoco.png").exists()


def test_mujocos_figure_has_ours_baselines_and_the_published_level() -> None:
    curves = [
        dict(label="ours", env=HOPPER, seed=seed, timesteps=x, return_mean=x * (2 * seed + 1) / 1e3)
        for seed in (0, 1)
        for x in (0, 1_000_000)
    ]
    ((name, figure),) = studies_report.figures("mujoco", curves)
    assert name == "mujoco"
    (axes,) = figure.axes
    ours, theirs, level = axes.get_lines()
    assert ours.get_ydata()[-1] == pytest.approx(2000)
    baselines = studies_report.curves_of(read_csv(studies_report.BASELINES), HOPPER)
    assert theirs.get_ydata()[-1] == pytest.approx(np.mean([c[-1, 1] for c in baselines]), rel=1e-3)
    assert theirs.get_label() == "baselines' ppo1 (3 seeds)"
    assert (level.get_ydata()[0], level.get_label()) == (2316.16, "ppo2 -v2 (published)")
    assert theirs.is_dashed()
    assert level.is_dashed()
    assert [t.get_text() for t in axes.get_legend().get_texts()][0] == "ours (2 seeds)"


def test_references_are_complete() -> None:
    families = {env.partition("-")[0] for env in MUJOCO}
    published = read_csv(studies_report.PUBLISHED_MUJOCO)
    levels = {row["env"] for row in published if row["source"] == studies_report.LEVEL}
    assert levels == families
    for env in MUJOCO:
        curves = studies_report.curves_of(read_csv(studies_report.BASELINES), env)
        assert curves
        assert all(len(curve) == 100 and curve[-1, 0] >= 1_000_000 for curve in curves)
    for env in {line.env for line in studies.STUDIES["atari"]}:
        assert set(studies_report.SHOWN) < studies_report.published_points(env).keys()


def test_ranks(folder: Path) -> None:
    out = folder / "runs"
    for seed in range(3):
        write_run(out, "ranks", "1 rank", HOPPER, seed, returns=2000.0 + seed)
        write_run(out, "ranks", "2 ranks", HOPPER, seed, returns=1000.0 + seed, iterations=50,
                  seconds=30)  # fmt: skip
    write_run(out, "ranks", "2 ranks", CHEETAH, 0, returns=10.0, end=999_999)  # unfinished
    write_run(out, "ranks", "2 ranks", PENDULUM, 0, returns=1.0)  # without any of one rank
    rows = {(row["environment"], row["ranks"]): row for row in rows_of(report(folder, "ranks"))}
    one, two = rows[HOPPER, "1 rank"], rows[HOPPER, "2 ranks"]
    # 32 minibatches, 10 epochs; of returns 0, 1 and 2 the standard error is 1 / sqrt(3)
    assert (one["final return"], one["updates"], one["seconds"]) == ("2001 ± 1", "32,000", "60")
    assert (two["final return"], two["updates"], two["speed-up"]) == ("1001 ± 1", "16,000", "2.00")
    assert (two["against 1 rank"], two["1 rank by then"]) == ("lower", "1000")
    assert rows[PENDULUM, "2 ranks"]["speed-up"] == ""
    assert rows[CHEETAH, "2 ranks"]["seeds"] == studies_report.NOT_RUN

    curves = read_csv(folder / "results" / "ranks_curves.csv")
    over_time = dict(studies_report.figures("ranks", curves))["ranks_time"]
    longest = [max(line.get_xdata()) for line in over_time.axes[0].get_lines()]
    assert longest == pytest.approx([60, 30])  # seconds
    whole = (folder / "README.md").read_text()
    (folder / "README.md").write_text(whole.replace("| Hopper", "| Grasshopper"))
    studies.main(["ranks", "--tables", "--report", str(folder)])  # from the CSV files alone
    assert (folder / "README.md").read_text() == whole


def test_ablations(folder: Path) -> None:
    out = folder / "runs"
    for seed in range(3):
        for label, returns in (("ppo1", 2000.0), ("torch-adam", 2001.0), ("stored-logp", 3000.0)):
            write_run(out, "ablations", label, HOPPER, seed, returns=returns + seed)
    assert (out / "ranks" / "num-procs1" / HOPPER / "seed2").is_dir()
    assert (out / "ablations" / "torch-adam" / HOPPER / "seed2").is_dir()
    rows = [row for row in rows_of(report(folder, "ablations")) if row["environment"] == HOPPER]
    assert {row["variant"]: row["against ppo1"] for row in rows} == {
        "ppo1": "", "torch-adam": "agree", "stored-logp": "higher", "bootstrap-truncated": "",
    }  # fmt: skip
    details = report(folder, "ablations", "METHODS.md")
    assert "python benchmarks/variants.py torch-adam --env ENV --seed N --log-path DIR" in details


def write_pong_ablation(
    folder: Path, label: str, *, end: int, returns: float, later: float = 0.0, **arguments: Any
) -> None:
    """Write a run of Pong that has reached a million timesteps in iteration 100, or goes on."""
    preset = {"preset": "ppo1", "timesteps_per_actorbatch": 256, "optim_epochs": 4}
    processes = tuple(
        {"iteration": iteration, "git_commit": commit * 40, "versions": {}}
        for iteration, commit in ((99, "a"), (100, "b"))
    )
    frames = {"frame_stack": 1 if label == "frame-stack-1" else 4}
    run = write_run(
        folder / "runs", "ablations", label, PONG, 0, returns=15.0, end=end,
        iterations=end // 10_000, resumed=processes, **(preset | frames | arguments),
    )  # fmt: skip
    # 990 episodes have ended by then, in write_run's progress.csv
    write_games(run, [-21.0] * 890 + [returns] * 100 + [later] * 500)


def test_ablations_take_runs_that_went_on_as_they_were_at_a_million(folder: Path) -> None:
    write_pong_ablation(folder, "ppo1", end=1_500_075, returns=-6.0, later=7.0)
    write_pong_ablation(folder, "frame-stack-1", end=1_000_000, returns=-20.0)
    pong = [row for row in rows_of(report(folder, "ablations")) if row["environment"] == PONG]
    assert [row["final return"] for row in pong] == ["-6.00", "-20.00"]
    rows = read_csv(folder / "results" / "ablations_runs.csv")
    assert [row["timesteps"] for row in rows] == [1_000_050, 1_000_000]
    assert [row["seconds"] for row in rows] == [40, 60]
    assert [row["updates"] for row in rows] == [100 * 4 * 4] * 2
    # The process that began with the iteration after it has no part in these
    assert [row["commit"] for row in rows] == [f"0123456789ab; {'a' * 12}"] * 2
    curves = read_csv(folder / "results" / "ablations_curves.csv")
    ends = {row["label"]: (row["timesteps"], row["return_mean"]) for row in curves}
    assert ends == {"ppo1": (1_000_050, 10), "frame-stack-1": (1_000_000, 15)}


def test_a_run_without_monitor_files_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(folder / "runs", "ranks", "1 rank", HOPPER, 0, returns=1.0)
    (run / "0.monitor.csv").unlink()
    with pytest.raises(SystemExit):
        report(folder, "ranks")
    assert f"{run} has no monitor file" in capsys.readouterr().err


def test_atari_is_reported_as_far_as_it_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = {"live_filters": 6, "filters": 16}
    monkeypatch.setattr(first_layer, "count_filters", lambda run: counted)
    later = {"iteration": 9, "git_commit": "f" * 40, "versions": {"python": "3.11", "torch": "3"}}
    run = write_run(
        folder / "runs", "atari", PAPER, PONG, 0, returns=20.0, end=620_000, frames=True,
        seconds=7200, resumed=(later,),
    )  # fmt: skip
    write_games(run, [-20.0] * 400 + [0.0] * 100 + [20.0] * 100)
    # too few games for a mean of 101 of them
    few = write_run(folder / "runs", "atari", PAPER, BREAKOUT, 0, returns=1.0)
    write_games(few, [1.0] * 100)
    papers, ours, *rest = rows_of(report(folder, "atari"))
    assert papers["0.5 M"] == "-15 (-19 to -9)"
    # of the 101 games around the 500th, 50 and it are of the hundred before, 50 of those after
    assert (ours["reached"], ours["0.5 M"]) == ("0.62 M", f"{50 * 20 / 101:.1f}")
    assert (ours["1 M"], ours["last 100 games"]) == ("", "20.0")
    assert {row["reached"] for row in rest} == {"", studies_report.NOT_RUN}
    details = report(folder, "atari", "METHODS.md")
    assert "commit 0123456789ab, ffffffffffff; python 3.11, torch 2; python 3.11, torch" in details
    (network,) = rows_of(details)
    assert (network["filters alive"], network["hours"]) == ("6 of 16", "2.0")
    curves = read_csv(folder / "results" / "atari_curves.csv")
    assert [row["timesteps"] for row in curves][:2] == [25_000, 50_000]
    assert curves[-1]["timesteps"] == 600_000
    assert {row["env"] for row in curves} == {PONG}
    mean, lowest, highest = studies_report.atari_references([PONG])
    assert mean.x[-1] == 3_000_000  # as far as the study goes
    assert (mean.y[-1], lowest.y[-1], highest.y[-1]) == (19, 15, 20)
    (only_mean,) = studies_report.atari_references([BREAKOUT])
    assert only_mean.y[-1] == 26


def fresh_policy_and_frames(game: str) -> tuple[CnnPolicy, NDArray[np.uint8]]:
    """Return the preset paper's policy of seed 0, and frames of a random game."""
    np.random.seed(0)
    torch.manual_seed(0)
    env = FrameStack(wrap_deepmind(make_atari(game)), 4)
    pi = CnnPolicy("pi", env.observation_space, env.action_space, kind="small")
    return pi, first_layer.random_frames(env)


def test_live_filters_by_hand() -> None:
    """Frames that are black but for a white one: filters that see black, white, both or none."""
    pi, _ = fresh_policy_and_frames(BREAKOUT)
    frames = np.zeros((3, 84, 84, 4), np.uint8)
    frames[1] = 255
    with torch.no_grad():
        for i, (weight, bias) in enumerate(
            [(1.0, 0.0), (-1.0, 1.0), (0.0, 1.0), (0.0, 0.0), (-1.0, 0.0), (1.0, -256.0)]
        ):
            pi.weights["l1/W"][i] = weight  # 256 of them
            pi.weights["l1/b"][0, 0, 0, i] = bias
    alive = first_layer.live_filters(pi, frames)
    assert alive[:6].tolist() == [True, True, True, False, False, False]


def test_pongs_gray_silences_filters_from_the_start() -> None:
    """What benchmarks/METHODS.md says; it rests on torch's generator and the game's frames."""
    assert first_layer.live_filters(*fresh_policy_and_frames(BREAKOUT)).sum() == 16
    assert first_layer.live_filters(*fresh_policy_and_frames(PONG)).sum() == 12


def test_mean_of_101_games_by_hand(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"arguments": {"env": "x"}}')
    write_games(tmp_path, list(range(130)), length=700)
    points = {p["timesteps"]: p["return_mean"] for p in studies.atari_points(load_run(tmp_path))}
    # Of the games that are over at 50,000, the last is number 70 (49,700): 50 before, 50 after it
    assert points[50_000] == pytest.approx(np.mean(np.arange(20, 121)))
    # At either end, those that there are: number 34 (24,500), and the last
    assert points[25_000] == pytest.approx(np.mean(np.arange(85)))
    assert points[91_000] == pytest.approx(np.mean(np.arange(79, 130)))
    assert list(points) == [25_000, 50_000, 75_000, 91_000]


def test_summary(folder: Path) -> None:
    runs = [dict(env=HOPPER, seed=seed, return_mean=r) for seed, r in ((0, 9e5), (1, 11e5))]

    def point(env: str, timesteps: int, score: float, seed: int = 0, label: str = PAPER) -> dict:
        return dict(label=label, env=env, seed=seed, timesteps=timesteps, return_mean=score)

    curves = [
        point(PONG, 1_500_000, 17.0),
        point(PONG, 2_500_000, 14.0, seed=0),
        point(PONG, 2_500_000, 16.0, seed=1),
        point(PONG, 1_500_000, 17.0, label=DEFAULT),
        point(PONG, 2_500_000, 21.0, label=f"{PAPER}, black"),
        point(PONG, 2_600_000, 20.0),
        point(PONG, 3_000_000, 20.0),  # at which the paper's seeds are not known
        point(BREAKOUT, 500_000, 20.0),
        point(BREAKOUT, 1_000_000, 30.0),
    ]
    for name, rows in (("mujoco_runs", runs), ("mujoco_curves", curves[:1]),
                       ("atari_runs", curves[:1]), ("atari_curves", curves)):  # fmt: skip
        write_csv(folder / "benchmarks" / "results" / f"{name}.csv", rows, list(rows[0]))
    (folder / "README.md").write_text("before\n{}\n{}\n".format(*studies_report.SUMMARY_MARKERS))
    studies.main(["summary", "--report", str(folder / "benchmarks")])
    hopper, *games = rows_of((folder / "README.md").read_text())
    assert (hopper["ours"], hopper["published"]) == ("1000000 ± 100000 (2)", "2316.16")
    assert hopper["verdict"] == "higher"
    assert [(row["timesteps"], row["ours"], row["verdict"]) for row in games] == [
        ("2.5 M", "15.00 ± 1.00 (2)", "among the paper's seeds"),
        ("1.5 M", "17.00 (1)", "above the paper's seeds"),
        ("1 M", "30.00 (1)", "none: the paper's range of seeds is not known"),
    ]


def test_place() -> None:
    point = {"lowest_seed": -3, "highest_seed": 16, "reading_error": 0.5}
    assert studies_report.place(-3.6, point) == "below the paper's seeds"
    assert studies_report.place(16.6, point) == "above the paper's seeds"
    for mean in (-3.5, 0, 16.5):
        assert studies_report.place(mean, point) == "among the paper's seeds"


def test_verdict() -> None:
    def interval(low: float, high: float) -> dict:
        return {"low": low, "high": high}

    verdict = studies_report.verdict
    assert verdict(interval(1, 3), interval(2, 4)) == "agree"
    assert verdict(interval(1, 2), interval(2, 4)) == "agree"
    assert verdict(interval(5, 6), interval(2, 4)) == "higher"
    assert verdict(interval(-6, -5), interval(-4, -3)) == "lower"
    assert verdict(interval(1, 3), studies_report.seed_statistics([2.0])) == "none: one seed"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [(5, 2, 0.178), (5, 3, 0.081), (3, 3, 0.1), (3, 2, 0.2), (5, 5, 0.045)],
)
def test_how_often_equal_algorithms_differ(
    ours: int, theirs: int, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What benchmarks/METHODS.md says that the verdict is worth."""
    monkeypatch.setattr(studies_report, "RESAMPLES", 500)
    rng = np.random.default_rng(0)
    count = 400
    wrong = 0
    for _ in range(count):
        a, b = (studies_report.seed_statistics(rng.normal(size=n)) for n in (ours, theirs))
        wrong += studies_report.verdict(a, b) != "agree"
    error = np.sqrt(expected * (1 - expected) / count)
    assert wrong / count == pytest.approx(expected, abs=4 * error)


def test_mean_error_and_interval_by_hand() -> None:
    found = studies_report.seed_statistics([1.0, 3.0])
    assert (found["seeds"], found["mean"], found["error"]) == (2, 2, pytest.approx(1))
    assert (found["low"], found["high"]) == (1, 3)


@pytest.mark.parametrize(
    ("study", "arguments", "flags", "message"),
    [
        (
            "ablations",
            {"bootstrap_truncated": True},
            [],
            "--num-procs', '1'): bootstrap_truncated True, not False",
        ),
        ("ablations", {"variant": "torch-adam"}, [], "variant torch-adam, not None"),
        ("ablations", {"script": "variants.py"}, [], "script variants.py, not run_mujoco.py"),
        ("ablations", {"optim_stepsize": 1e-3}, [], "optim_stepsize 0.001, not 0.0003"),
        ("ablations", {"num_timesteps": 2_000_000}, [], "num_timesteps 2000000, not 1000000"),
        ("ablations", {"env": CHEETAH}, [], "env HalfCheetah-v4, not Hopper-v4"),
        ("ranks", None, [], "no run of ranks in"),
        ("atari", None, [], "no run of atari in"),
        (
            "ranks",
            None,
            ["--only", "Walker"],
            "--only Walker: need part of one of ranks/num-procs1/Half",
        ),
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


def test_lines_have_folders_of_their_own() -> None:
    for lines in studies.STUDIES.values():
        assert len({(line.group, line.env) for line in lines}) == len(lines)


@pytest.mark.slow
@pytest.mark.parametrize("study", studies.STUDIES)
def test_both_pages_are_up_to_date(study: str) -> None:
    begin, end = studies_report.markers(study)
    results = studies_report.read_results(study, ROOT / "benchmarks" / "results")
    for page, expected in zip(
        ("README.md", "METHODS.md"), studies_report.render(study, *results), strict=True
    ):
        text = (ROOT / "benchmarks" / page).read_text(encoding="utf-8")
        assert text.partition(begin)[2].partition(end)[0].strip() == expected


@pytest.mark.slow
def test_the_summary_is_up_to_date() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    begin, end = studies_report.SUMMARY_MARKERS
    expected = studies_report.render_summary(ROOT / "benchmarks" / "results")
    assert text.partition(begin)[2].partition(end)[0].strip() == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("study", "only", "timesteps"),
    [
        ("mujoco", "InvertedPendulum", 3000),
        ("ranks", "num-procs2/InvertedPendulum", 3000),
        ("ablations", "torch-adam/Hopper", 3000),
    ],
)
def test_runs_are_made_once(folder: Path, study: str, only: str, timesteps: int) -> None:
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
    assert "1 run, 1 to do" in first
    rows = read_csv(folder / "results" / f"{study}_runs.csv")
    assert rows[0]["timesteps"] >= timesteps
    second = run()
    assert "1 run, 0 to do" in second
    assert read_csv(folder / "results" / f"{study}_runs.csv") == rows


@pytest.mark.slow
def test_an_atari_run_goes_on(folder: Path) -> None:
    """Reports nothing yet, for want of 100 games, but trains, pauses and continues."""
    command = [
        sys.executable, str(ROOT / "benchmarks" / "studies.py"), "atari", "--only", "ppo1-np2/",
        "--out", str(folder / "runs"), "--report", str(folder), "--num-timesteps",
    ]  # fmt: skip
    run = folder / "runs" / "atari" / "ppo1-np2" / PONG / "seed0"
    reached = []
    for timesteps in (500, 4000):
        done = subprocess.run(
            [*command, str(timesteps)], env=rank_environment(), capture_output=True, text=True,
            timeout=500,
        )  # fmt: skip
        assert "1 run, 1 to do" in done.stdout
        assert "paused" in done.stdout, done.stdout + done.stderr
        assert "no run of atari" in done.stderr.splitlines()[-1]
        progress = load_run(run).progress
        assert progress is not None
        reached.append(int(progress["TimestepsSoFar"].iloc[-1]))
    assert 500 <= reached[0] < 4000 <= reached[1]
