"""Curves and tables of run folders whose numbers are known, ours and baselines'."""

import csv
import itertools
import json
import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image

from common import plot_util
from common.cmd_util import FREE_ARGUMENTS
from common.monitor import Monitor, truncate_monitor_file
from common.plot_util import (
    POINTS,
    Reference,
    bootstrap_interval,
    common_grid,
    curve,
    find_runs,
    interquartile_mean,
    load_run,
    load_runs,
    main,
    moving_mean,
    on_grid,
    plot_curves,
    read_limits,
    read_references,
    save_figure,
    summarize,
)
from tests.envs import Frame, ScriptedGame
from tests.ranks import ROOT, rank_environment


def write_rows(path, rows, header=""):
    with path.open("w", newline="") as file:
        file.write(header)
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_run(folder, env="Hopper-v4", seed=0, *, rows=(), ranks=((),), **arguments):
    """Write a run of ours: rows of progress.csv, and each rank's (r, l, t)."""
    folder.mkdir(parents=True)
    arguments = {"env": env, "seed": seed, "log_path": str(folder), "gamma": 0.99} | arguments
    config = {"arguments": arguments, "ranks": len(ranks)}
    (folder / "config.json").write_text(json.dumps(config))
    if rows:
        write_rows(folder / "progress.csv", rows)
    for rank, episodes in enumerate(ranks):
        write_monitor(folder / f"{rank}.monitor.csv", env, episodes)
    return folder


def write_monitor(path, env, episodes, t_start=100.0):
    """Write a monitor file with the line ends of baselines' csv module."""
    header = f"#{json.dumps({'t_start': t_start, 'env_id': env})}\n"
    lines = [",".join(map(str, row)) for row in (("r", "l", "t"), *episodes)]
    path.write_text(header + "".join(f"{line}\r\n" for line in lines), newline="")


def line_rows(ys, *, every=100, seconds=10.0):
    """Return rows of progress.csv: a row each `every` steps and `seconds`."""
    return [
        {"EpRewMean": y - 1, "EpTrueRewMean": y, "TimestepsSoFar": every * i, "TimeElapsed": t}
        for i, (y, t) in enumerate(zip(ys, itertools.count(seconds, seconds), strict=False), 1)
    ]


def data_lines(axes):
    """Return the lines of runs, in the order in which they are drawn."""
    return [line for line in axes.get_lines() if str(line.get_label()).startswith("_")]


# Reading folders


def test_runs_are_found_at_every_depth(tmp_path):
    first = write_run(tmp_path / "b" / "seed0", rows=line_rows([1]))
    second = write_run(tmp_path / "a", seed=1, rows=line_rows([1]))
    (tmp_path / "empty").mkdir()
    assert find_runs(tmp_path) == [second, first]
    assert find_runs(first) == [first]
    assert len(load_runs([tmp_path, first])) == 2  # found twice, once counted


def test_a_run_of_baselines(tmp_path):
    folder = tmp_path / "openai-2018-10-01-12-00-00-000000"
    folder.mkdir()
    columns = ("EpLenMean", "EpRewMean", "EpThisIter", "EpisodesSoFar", "TimeElapsed",
               "TimestepsSoFar", "ev_tdlam_before", "loss_ent")  # fmt: skip
    rows = [dict.fromkeys(columns, 0.5) | {"TimestepsSoFar": x, "EpRewMean": -x} for x in (10, 30)]
    write_rows(folder / "progress.csv", rows)
    write_monitor(folder / "0.monitor.csv", "Hopper-v2", [(1.5, 10, 2.0), (2.5, 20, 4.0)])
    write_monitor(folder / "1.monitor.csv", "Hopper-v2", [(9.0, 5, 2.5)], t_start=100.5)
    (run,) = load_runs([tmp_path])
    assert (run.env, run.arguments, run.label) == ("Hopper-v2", {}, "")
    xs, ys = curve(run, source="progress")
    assert (xs.tolist(), ys.tolist()) == ([10, 30], [-10, -30])
    # Rank 1's episode ends at 103, between rank 0's at 102 and 104.
    xs, ys = curve(run, source="monitor", smooth=1)
    assert (xs.tolist(), ys.tolist()) == ([10, 15, 35], [1.5, 9.0, 2.5])
    assert curve(run, source="monitor", x="time")[0].tolist() == [2.0, 3.0, 4.0]
    assert curve(run, source="monitor", smooth=2)[1].tolist() == [1.5, 5.25, 5.75]
    assert summarize([run])["mean"].tolist() == [13 / 3]
    assert data_lines(plot_curves([run], source="monitor").axes[0])


def test_environment_of_a_folder_that_does_not_say_it(tmp_path):
    write_rows_in = tmp_path / "ppo-Swimmer-v2" / "run-3"
    write_rows_in.mkdir(parents=True)
    write_rows(write_rows_in / "progress.csv", line_rows([1]))
    assert load_run(write_rows_in).env == "Swimmer-v2"


def test_a_last_line_that_is_being_written_is_left_out(tmp_path):
    folder = write_run(tmp_path / "run", rows=line_rows([1, 2]))
    with (folder / "progress.csv").open("a") as file:
        file.write("3,4,30")  # of 300
    assert curve(load_run(folder), source="progress")[0].tolist() == [100, 200]


def test_runs_without_rows_are_left_out(tmp_path):
    write_run(tmp_path / "done", rows=line_rows([1, 2]))
    (write_run(tmp_path / "begun", seed=1) / "progress.csv").touch()
    with pytest.warns(UserWarning, match="begun: left out, it has no rows yet"):
        (run,) = load_runs([tmp_path])
    assert run.folder.name == "done"
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(ValueError, match="no rows in any of the runs"),
    ):
        load_runs([tmp_path / "begun"])


# Curves


OTHERS = {
    "sb3": {"progress.csv": "rollout/ep_rew_mean,time/total_timesteps\n1.0,100\n"},
    "ppo2": {"progress.csv": "eprewmean,misc/total_timesteps\n1.0,100\n"},
    "torn": {"progress.csv": "a,b\n1,2\n1,2,3,4\n"},
    "bytes": {"progress.csv": b"\xff\xfe\x00"},
    "words": {"progress.csv": "EpRewMean,TimestepsSoFar\nhigh,1\n"},
    "gpu": {"gpu.monitor.csv": "time,load\n1,2\n"},
    "nulls": {"0.monitor.csv": '#{"t_start": 1}\nr,l,t\n\0,\0,\0\n'},
    "long": {"0.monitor.csv": '#{"t_start": 1}\nr,l,t\n1,1,' + "1" * 200_000 + "\n"},
    "header": {"0.monitor.csv": "#" + "[" * 100_000 + "\nr,l,t\n"},
    "list": {"progress.csv": "EpRewMean,TimestepsSoFar\n1,1\n", "config.json": "[1, 2]"},
    "deep": {"progress.csv": "EpRewMean,TimestepsSoFar\n1,1\n", "config.json": "[" * 100_000},
    "arguments": {"progress.csv": "EpRewMean,TimestepsSoFar\n1,1\n",
                  "config.json": '{"arguments": [1]}'},
}  # fmt: skip


def write_others(folder):
    for name, files in OTHERS.items():
        for file, content in files.items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            data = content if isinstance(content, bytes) else content.encode()
            (folder / name / file).write_bytes(data)
    (folder / "directory" / "0.monitor.csv").mkdir(parents=True)


def test_other_programs_folders_are_left_out_with_a_warning_each(tmp_path, capsys):
    write_run(tmp_path / "ours", rows=line_rows([1, 2]), ranks=[[(5.0, 100, 1.0)]])
    write_others(tmp_path)
    names = [*OTHERS, "directory"]
    main([str(tmp_path), "-o", str(tmp_path / "curves.png"), "--table"])
    out, err = capsys.readouterr()
    (row,) = [line.split() for line in out.splitlines() if "Hopper-v4" in line]
    assert row[1:5] == ["ppo1", "1", "100", "5.00"]
    for name in names:
        assert err.count(f"warning: {tmp_path / name}: left out, ") == 1 + (name == "words"), err
    assert len(err.splitlines()) == len(names) + 1  # no monitor file for the table, no curve either
    assert "sb3/progress.csv is another program's: no column 'TimestepsSoFar' among rollout/" in err
    for name in names:  # where nothing is left, it is an error
        with pytest.raises(SystemExit):
            main([str(tmp_path / name), "-o", str(tmp_path / "none.png")])
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "none.png").exists()


def test_another_programs_monitor_files_are_drawn_beside_ours(tmp_path):
    """As Stable-Baselines3 writes them, in baselines' format, next to a progress.csv of its own."""
    write_run(tmp_path / "ours", rows=line_rows([1, 2]), ranks=[[(5.0, 100, 1.0), (6.0, 50, 2.0)]])
    (tmp_path / "sb3").mkdir()
    (tmp_path / "sb3" / "progress.csv").write_text(OTHERS["sb3"]["progress.csv"])
    write_monitor(tmp_path / "sb3" / "0.monitor.csv", "Hopper-v4", [(7.0, 10, 1.0), (8.0, 9, 2.0)])
    runs = load_runs([tmp_path])
    assert [(run.label, run.progress is None) for run in runs] == [
        ("ppo1", False), (tmp_path.name, True),
    ]  # fmt: skip
    (axes,) = plot_curves(runs).axes
    assert sorted(line.get_ydata()[-1] for line in data_lines(axes)) == [5.5, 7.5]


def test_curve_leaves_out_what_is_not_finite_and_repeated_steps(tmp_path):
    rows = line_rows([math.nan, 2, 3, 4])
    rows[2]["TimestepsSoFar"] = rows[1]["TimestepsSoFar"]  # no episode ended between
    run = load_run(write_run(tmp_path / "run", rows=rows))
    xs, ys = curve(run, source="progress")
    assert (xs.tolist(), ys.tolist()) == ([200, 400], [3, 4])
    assert curve(run, source="progress", smooth=2)[1].tolist() == [2.5, 3.5]


def test_return_falls_back_on_what_the_learner_sees(tmp_path):
    rows = [row | {"EpTrueRewMean": math.nan} for row in line_rows([5, 6])]
    run = load_run(write_run(tmp_path / "run", rows=rows))
    assert curve(run, source="progress")[1].tolist() == [4, 5]
    assert curve(run, source="progress", y="TimeElapsed")[1].tolist() == [10, 20]


def test_time_goes_on_where_it_starts_anew(tmp_path):
    rows = line_rows([1, 2, 3, 4, 5, 6])
    for row, elapsed in zip(rows, (10, 20, 5, 15, 1, 2), strict=True):
        row["TimeElapsed"] = elapsed
    run = load_run(write_run(tmp_path / "run", rows=rows))
    assert curve(run, source="progress", x="time")[0].tolist() == [10, 20, 25, 35, 36, 37]


def test_a_resumed_monitor_goes_on_in_steps_and_time(tmp_path):
    def play(env, episodes):
        for _ in range(episodes):
            env.reset()
            while not any(env.step(0)[2:4]):
                time.sleep(0.001)

    def game():
        return ScriptedGame([Frame(), Frame(reward=1), Frame(reward=2, terminated=True)])

    began = time.time()
    env = Monitor(game(), tmp_path / "0")
    play(env, 3)
    state = env.checkpoint_state()
    stopped = time.time()
    play(env, 1)  # lost by the resuming below
    env.close()
    truncate_monitor_file(tmp_path / "0", state["rows"])
    time.sleep(0.2)
    env = Monitor(game(), tmp_path / "0", append=True)
    resumed = time.time()
    env.restore_checkpoint_state(state)
    play(env, 2)
    env.close()
    run = load_run(tmp_path)
    assert curve(run, source="monitor")[0].tolist() == [2, 4, 6, 8, 10]
    times = curve(run, source="monitor", x="time")[0]
    assert (np.diff(times) > 0).all()
    assert times[-1] <= stopped - began + time.time() - resumed  # the pause does not count


@pytest.mark.parametrize("window", [1, 2, 3, 10])
def test_moving_mean_against_a_loop(window):
    values = np.random.default_rng(0).normal(size=7)
    want = [values[max(0, i - window + 1) : i + 1].mean() for i in range(7)]
    np.testing.assert_allclose(moving_mean(values, window), want, rtol=0, atol=1e-14)  # float64
    assert moving_mean(values[:0], window).shape == (0,)


def test_common_grid_is_where_all_curves_are():
    curves = [(np.array([0.0, 10.0]), np.array([0.0, 10.0])), (np.array([2.0, 8.0]), np.ones(2))]
    grid = common_grid(curves, points=4)
    assert grid.tolist() == [2, 4, 6, 8]
    assert on_grid(curves, grid).tolist() == [[2, 4, 6, 8], [1, 1, 1, 1]]


# Intervals


def test_interval_of_two_runs_is_from_one_to_the_other():
    # Of the four ways to draw, one gives the lower run twice and one the higher: 25 % each
    low, high = bootstrap_interval([np.array([[1.0, 10.0], [3.0, 30.0]])])
    assert (low.tolist(), high.tolist()) == ([1, 10], [3, 30])


def test_interval_against_all_ways_to_draw_four():
    values = np.array([0.0, 1.0, 4.0, 9.0])
    means = np.sort([np.mean(drawn) for drawn in itertools.product(values, repeat=4)])
    low, high = bootstrap_interval([values], resamples=20_000)
    # The share of draws below must be 2.5 % within 4 standard errors of 20,000 draws, and a step
    # of the 256 equally likely ones.
    for end, share in ((low, 0.025), (high, 0.975)):
        slack = 4 * math.sqrt(0.025 * 0.975 / 20_000)
        assert np.mean(means < end) <= share + slack
        assert np.mean(means <= end) >= share - slack


def test_interval_covers_as_often_as_it_says():
    # Of the mean of 30 normal values the percentile interval covers 94 %, of 5 values 83 %; 4
    # standard errors of 150 trials are 7.8 and 12.3 points.
    def coverage(n):
        draws = np.random.default_rng(1).normal(size=(150, n))
        ends = [bootstrap_interval([x], resamples=300) for x in draws]
        return np.mean([low <= 0 <= high for low, high in ends])

    assert coverage(30) == pytest.approx(0.94, abs=0.078)
    assert coverage(5) == pytest.approx(0.83, abs=0.123)


def test_one_run_has_no_interval():
    assert np.isnan(bootstrap_interval([np.array([1.0])])).all()
    assert np.isnan(bootstrap_interval([np.ones((1, 3)), np.ones((1, 3))])).all()


def test_environments_are_resampled_on_their_own():
    # Were the runs pooled before drawing, the mean would vary.
    strata = [np.full(3, 10.0), np.full(3, -10.0)]
    assert bootstrap_interval(strata) == (0, 0)


def test_interquartile_mean_by_hand():
    assert interquartile_mean(np.array([100.0, 1.0, 2.0, 3.0, -50.0, 4.0, 5.0, 6.0])) == 3.5
    assert interquartile_mean(np.array([1.0, 2.0, 6.0])) == 3  # a quarter of 3 is none
    columns = np.array([[4.0, 0.0], [1.0, 9.0], [2.0, 5.0], [9.0, 1.0]])
    assert interquartile_mean(columns).tolist() == [3, 3]


# Labels and groups


def labels(folder, by=None):
    return [run.label for run in load_runs([folder], label=by)]


def test_labels_are_what_differs(tmp_path):
    for seed, gamma in itertools.product((0, 1), (0.9, 0.99)):
        write_run(tmp_path / f"{gamma}-{seed}", "A-v0", seed, rows=line_rows([1]), gamma=gamma)
    assert labels(tmp_path) == ["gamma 0.9"] * 2 + ["gamma 0.99"] * 2
    with pytest.warns(UserWarning, match="counts 2 times"):
        assert labels(tmp_path, "seed") == ["seed 0", "seed 1"] * 2
    assert labels(tmp_path, "gamma,--log-path")[0] == f"gamma 0.9, log path {tmp_path}/0.9-0"
    assert labels(tmp_path, "folder") == ["0.9-0", "0.9-1", "0.99-0", "0.99-1"]


def test_what_differs_between_environments_alone_is_no_label(tmp_path):
    write_run(tmp_path / "a", "A-v0", rows=line_rows([1]), lam=0.9)
    write_run(tmp_path / "b", "B-v0", rows=line_rows([1]), lam=0.8)
    assert labels(tmp_path) == ["", ""]


def test_ranks_and_presets_are_labels(tmp_path):
    write_run(tmp_path / "a", rows=line_rows([1]), ranks=[(), ()], preset="mujoco", clip=0.2)
    write_run(tmp_path / "b", rows=line_rows([1]), preset="humanoid", clip=0.1)
    assert labels(tmp_path) == ["preset mujoco", "preset humanoid"]  # the rest goes with it
    assert labels(tmp_path, "ranks") == ["ranks 2", "ranks 1"]


def test_what_does_not_touch_the_numbers_is_no_label():
    assert FREE_ARGUMENTS <= plot_util.UNLABELLED


def test_runs_of_baselines_beside_ours(tmp_path):
    write_run(tmp_path / "ours", rows=line_rows([1]))
    theirs = tmp_path / "baselines" / "logs"
    theirs.mkdir(parents=True)
    write_rows(theirs / "progress.csv", line_rows([1]))
    write_monitor(theirs / "0.monitor.csv", "Hopper-v4", [(1, 2, 3)])
    runs = load_runs([tmp_path / "ours", tmp_path / "baselines"])
    assert [run.label for run in runs] == ["ppo1", "baselines"]


def test_the_same_seed_twice_is_told(tmp_path):
    write_run(tmp_path / "a", rows=line_rows([1]))
    write_run(tmp_path / "b", rows=line_rows([1]))
    with pytest.warns(UserWarning, match="seed 0 of Hopper-v4 counts 2 times: .*a, .*b"):
        load_runs([tmp_path])


def test_panels_and_labels_stand_in_the_order_of_their_numbers(tmp_path):
    for n in (10, 2, 1):
        write_run(tmp_path / f"{n}", "A-v0", rows=line_rows([1, 2]), size=n)
    (axes,) = plot_curves(load_runs([tmp_path])).axes
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts == ["size 1 (1 seed)", "size 2 (1 seed)", "size 10 (1 seed)"]


# Figures


@pytest.fixture
def three_seeds(tmp_path):
    """Lines of slope 1, 2 and 6 in thousandths a step; the last ends at 900 of 1000 steps."""
    for seed, (slope, length) in enumerate(((1, 10), (2, 10), (6, 9))):
        ys = 0.1 * slope * np.arange(1, length + 1)
        write_run(tmp_path / f"seed{seed}", seed=seed, rows=line_rows(ys.tolist()),
                  ranks=[[(y, 100, 10 * i) for i, y in enumerate(ys, 1)]])  # fmt: skip
    return tmp_path


def test_mean_and_band_are_drawn(three_seeds):
    figure = plot_curves(load_runs([three_seeds]))
    (axes,) = figure.axes
    (line,) = data_lines(axes)
    xs, ys = line.get_xdata(), line.get_ydata()
    assert len(xs) == POINTS
    assert (xs[0], xs[-1]) == (100, 900)
    np.testing.assert_allclose(ys, 3e-3 * xs, rtol=1e-12)  # float64
    # 3 runs have 10 unordered draws; the lowest and highest 2.5 % lie in those of one run thrice,
    # 1 in 27 each.
    (band,) = axes.collections
    vertices = band.get_paths()[0].vertices
    for x, y in vertices:
        assert y / x == pytest.approx(1e-3, rel=1e-9) or y / x == pytest.approx(6e-3, rel=1e-9)
    assert set(np.round(vertices[:, 0], 6)) == set(np.round(xs, 6))
    assert axes.get_title() == "Hopper-v4"
    assert axes.get_xlabel() == "Timesteps"
    assert axes.get_ylabel() == "Return, mean of last 100 episodes"
    legend = axes.get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["3 seeds"]
    assert legend.get_title().get_text() == "mean, 95 % bootstrap band"


def test_axis_says_what_is_shown(three_seeds):
    def y_text(**options):
        return plot_curves(load_runs([three_seeds]), **options).axes[0].get_ylabel()

    assert y_text(smooth=3).endswith("100 episodes\nmoving mean of 3 iterations")
    assert y_text(source="monitor") == "Episode return\nmoving mean of 100 episodes"
    assert y_text(source="monitor", smooth=1, y="l") == "Episode length"
    assert y_text(y="TimeElapsed") == "TimeElapsed"


@pytest.mark.parametrize(
    ("seconds", "unit", "last"),
    [(10, "seconds", 90), (100, "minutes", 15), (10_000, "hours", 25)],
)
def test_wall_clock_time(tmp_path, seconds, unit, last):
    for seed, length in enumerate((9, 10)):
        rows = line_rows([1] * length, seconds=seconds)
        write_run(tmp_path / f"{seed}", seed=seed, rows=rows)
    (axes,) = plot_curves(load_runs([tmp_path]), x="time").axes
    assert axes.get_xlabel() == f"Wall-clock time ({unit})"
    assert data_lines(axes)[0].get_xdata()[-1] == pytest.approx(last, rel=1e-12)


def test_interquartile_mean_is_drawn_over_environments(tmp_path):
    for env, seed in itertools.product("AB", range(2)):
        ys = [(1 + seed) * (10 if env == "A" else 1000)] * 3
        write_run(tmp_path / f"{env}{seed}", f"{env}-v0", seed, rows=line_rows(ys))
    write_run(tmp_path / "C", "C-v0", rows=line_rows([1, 2]))
    limits = {"A-v0": (0.0, 20.0), "B-v0": (500.0, 2500.0)}
    with pytest.warns(UserWarning, match="not in the interquartile mean.*: C-v0"):
        figure = plot_curves(load_runs([tmp_path]), limits=limits)
    *_, axes = [axes for axes in figure.axes if axes.get_title()]
    assert axes.get_title() == "IQM of 2 environments"
    # 0.5, 1 of A and 0.25, 0.75 of B: without lowest and highest 0.625
    np.testing.assert_allclose(data_lines(axes)[0].get_ydata(), 0.625, rtol=1e-12)
    assert len(axes.collections) == 1
    with (
        pytest.warns(UserWarning, match="A-v0, B-v0, C-v0"),
        pytest.raises(ValueError, match="no environment with limits"),
    ):
        plot_curves(load_runs([tmp_path]), limits={"D-v0": (0, 1)})


def test_references_are_dashed(three_seeds, tmp_path):
    file = tmp_path / "references.csv"
    file.write_text(
        "env,label,x,y\nHopper-v4,measured,900,3\nHopper-v4,measured,100,1\nHopper-v4,paper,,2.5\n"
        "Ant-v4,paper,,9\n"
    )
    references = read_references(file)
    (axes,) = plot_curves(load_runs([three_seeds]), references=references).axes
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert lines["measured"].get_xydata().tolist() == [[100, 1], [900, 3]]
    assert list(lines["paper"].get_ydata()) == [2.5, 2.5]
    assert all(lines[label].is_dashed() for label in ("measured", "paper"))
    assert not data_lines(axes)[0].is_dashed()
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts == ["3 seeds", "measured", "paper"]
    # Timesteps say nothing on an axis of seconds.
    (axes,) = plot_curves(load_runs([three_seeds]), references=references, x="time").axes
    assert [line.get_label() for line in axes.get_lines()] == ["_0", "paper"]


def test_a_file_of_levels_needs_no_x(tmp_path):
    (tmp_path / "levels.csv").write_text("env,label,y\nHopper-v4,paper,7\n")
    (level,) = read_references(tmp_path / "levels.csv")
    assert (level.env, level.label, level.x, level.y.tolist()) == ("Hopper-v4", "paper", None, [7])


@pytest.mark.parametrize("panels", [1, 2, 7, 8])
def test_every_environment_has_a_panel_and_nothing_overlaps(tmp_path, panels):
    for env, seed in itertools.product(range(panels), range(2)):
        write_run(tmp_path / f"{env}-{seed}", f"Env{env}-v0", seed, rows=line_rows([1, seed, 2]))
    references = [Reference("Env0-v0", "a level", None, np.array([1.5]))]
    figure = plot_curves(load_runs([tmp_path]), references=references)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == [f"Env{env}-v0" for env in range(panels)]
    legend = assert_nothing_overlaps(figure)
    assert [text.get_text() for text in legend.get_texts()] == ["2 seeds", "a level"]


@pytest.mark.parametrize(("length", "columns"), [(1, 3), (11, 2), (35, 1)])
def test_a_legend_has_as_many_columns_as_fit(tmp_path, length, columns):
    for env, label in itertools.product(range(2), range(4)):
        rows = line_rows([1, label, 2])
        write_run(tmp_path / f"{env}-{label}", f"Env{env}-v0", rows=rows, name=f"{label}" * length)
    legend = assert_nothing_overlaps(plot_curves(load_runs([tmp_path], label="name")))
    assert legend._ncols == columns


def assert_nothing_overlaps(figure):
    """Return the legend, or the first panel's."""
    figure.draw_without_rendering()
    legends = [*figure.legends, *(a.get_legend() for a in figure.axes if a.get_legend())]
    panels = len([axes for axes in figure.axes if axes.get_title()])
    boxes = [axes.get_tightbbox() for axes in figure.axes if axes.get_title()]
    boxes += [legend.get_window_extent() for legend in legends if panels > 1]
    boxes += [t.get_window_extent() for t in (figure._supxlabel, figure._supylabel) if t]
    for one, other in itertools.combinations(boxes, 2):
        assert not one.padded(-1).overlaps(other.padded(-1))
    assert all(figure.bbox.x0 <= b.x0 and b.x1 <= figure.bbox.x1 for b in boxes)
    assert all(figure.bbox.y0 <= b.y0 and b.y1 <= figure.bbox.y1 for b in boxes)
    return legends[0]


def test_files_by_their_ending(three_seeds, tmp_path):
    figure = plot_curves(load_runs([three_seeds]))
    for name in ("new/curves.png", "curves.svg", "curves.pdf"):
        save_figure(figure, tmp_path / name)
    pixels = image.imread(tmp_path / "new" / "curves.png")[..., :3]
    assert pixels.shape[0] > 300
    assert pixels.shape[1] > 500
    blue = np.array([0, 0x72, 0xB2]) / 255
    assert np.mean(np.abs(pixels - blue).max(axis=-1) < 0.02) > 0.001  # the line
    assert 0.3 < np.mean(pixels.min(axis=-1) > 0.99) < 0.99  # paper
    assert (tmp_path / "curves.pdf").read_bytes().startswith(b"%PDF")
    assert "Hopper-v4" in (tmp_path / "curves.svg").read_text()
    with pytest.raises(ValueError, match=r"curves\.gif.*ends in \.png, \.pdf or \.svg"):
        save_figure(figure, "curves.gif")


def test_the_same_runs_give_the_same_picture(three_seeds, tmp_path):
    for name in ("1.png", "2.png"):
        save_figure(plot_curves(load_runs([three_seeds])), tmp_path / name)
    assert (tmp_path / "1.png").read_bytes() == (tmp_path / "2.png").read_bytes()


# The table


def test_table_by_hand(tmp_path):
    # Of the first run, 100 of 120 episodes count, and of them rank 1's are half.
    ranks = [[(1.0 + 2 * rank, 7, t) for t in range(60)] for rank in range(2)]
    ranks[0][:10] = [(1e9, 7, t) for t in range(10)]
    ranks[1][:10] = [(1e9, 7, t) for t in range(10)]
    write_run(tmp_path / "0", ranks=ranks)
    write_run(tmp_path / "1", seed=1, ranks=[[(8.0, 7, 1)], [(8.0, 7, 1)]])
    runs = load_runs([tmp_path])
    (row,) = summarize(runs).to_dict("records")
    # Scores 2 and 8: deviation sqrt(18), so error sqrt(18 / 2)
    assert row == {"env": "Hopper-v4", "label": "", "seeds": 2, "timesteps": 14, "mean": 5.0,
                   "standard_error": pytest.approx(3), "low": 2.0, "high": 8.0}  # fmt: skip
    last = summarize(runs, limits={"Hopper-v4": (0.0, 10.0)}).to_dict("records")[-1]
    assert (last["env"], last["seeds"], last["mean"]) == ("IQM", 2, 0.5)
    assert math.isnan(last["standard_error"])


def test_table_needs_monitor_files(tmp_path):
    write_run(tmp_path / "run", rows=line_rows([1]), ranks=())
    with pytest.raises(SystemExit) as leave:
        plot_util.main([str(tmp_path), "-o", str(tmp_path / "curves.png"), "--table"])
    assert leave.value.code == 2
    assert not (tmp_path / "curves.png").exists()  # all or nothing
    with pytest.raises(ValueError, match="run has no monitor file"):
        summarize(load_runs([tmp_path]))


# The command


def test_command(three_seeds, tmp_path, capsys):
    (tmp_path / "limits.csv").write_text("env,low,high\nHopper-v4,0,10\n")
    out, table = tmp_path / "o" / "curves.png", tmp_path / "table.csv"
    main([str(three_seeds), "-o", str(out), "--table", "--csv", str(table), "--smooth", "2",
          "--iqm", str(tmp_path / "limits.csv"), "--x", "time"])  # fmt: skip
    printed = capsys.readouterr().out.split()
    assert printed[:2] == ["Wrote", str(out)]
    assert "Hopper-v4" in printed
    assert image.imread(out).std() > 0.05
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["env"], row["seeds"], row["timesteps"]) for row in rows] == [
        ("Hopper-v4", "3", "900"),
        ("IQM", "3", "900"),
    ]
    scores = np.array([0.55, 1.1, 3.0])
    assert float(rows[0]["mean"]) == pytest.approx(scores.mean(), rel=1e-5)
    assert float(rows[0]["standard_error"]) == pytest.approx(scores.std(ddof=1) / 3**0.5, rel=1e-5)
    assert float(rows[1]["mean"]) == pytest.approx(scores.mean() / 10, rel=1e-5)


def test_warnings_are_a_line_each(three_seeds, tmp_path, capsys):
    write_run(tmp_path / "begun", seed=7)
    (tmp_path / "other.csv").write_text("env,label,y\nAnt-v4,paper,7\n")
    main([str(tmp_path), "-o", str(tmp_path / "x.svg"), "--table", "--reference",
          str(tmp_path / "other.csv")])  # fmt: skip
    assert capsys.readouterr().err.splitlines() == [
        f"warning: {tmp_path / 'begun'}: left out, it has no rows yet",
        f"warning: {tmp_path / 'other.csv'} is of none of these environments",
    ]


REFERENCE = ["runs", "-o", "c.png", "--reference"]
BAD_FILES = {
    "empty.csv": "",
    "names.csv": "env,label,z\n",
    "words.csv": "env,label,x,y\nA-v0,paper,1,many\n",
    "torn.csv": "env,label,y\nA-v0,paper,1\nA,b,c,d,e\n",
    "flat.csv": "env,low,high\nHopper-v4,1,1\n",
}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["missing", "-o", "c.png"], "no such folder: 'missing'"),
        (["empty", "-o", "c.png"], "no runs in 'empty': need progress.csv or *monitor.csv"),
        (["runs"], "nothing to do: give -o FILE, --table or --csv FILE"),
        (["runs", "-o", "c.gif"], "cannot write 'c.gif': need a name that ends in .png, .pdf"),
        (["runs", "-o", "c.png", "--y", "Reward"], "no column 'Reward' in runs/seed0: there are"),
        (["runs", "-o", "c.png", "--source", "monitor", "--y", "x"], "no column 'x' in runs/seed0"),
        (["runs", "-o", "c.png", "--smooth", "0"], "need a whole number above 0, got '0'"),
        (["runs", "-o", "c.png", "--label", "colour"], "cannot label by 'colour': need one of env"),
        ([*REFERENCE, "no.csv"], "No such file or directory: 'no.csv'"),
        ([*REFERENCE, "empty.csv"], "empty.csv cannot be read as CSV"),
        ([*REFERENCE, "names.csv"], "names.csv cannot be read as CSV: no column"),
        ([*REFERENCE, "words.csv"], "words.csv cannot be read as CSV: could"),
        ([*REFERENCE, "torn.csv"], "torn.csv cannot be read as CSV: Error"),
        (["runs", "-o", "c.png", "--iqm", "flat.csv"], "flat.csv: low and high are equal"),
        (["runs", "-o", "empty.csv/c.png"], "empty.csv"),
        (["bad/monitor", "--table"], "0.monitor.csv is not a monitor file: line 1"),
        (["bad/progress", "-o", "c.png"], "bad/progress/progress.csv cannot be read as CSV"),
        (["bad/config", "-o", "c.png"], "bad/config/config.json is not JSON"),
        (["bad/words", "-o", "c.png"], "column 'EpRewMean' in bad/words is not of numbers"),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_line(three_seeds, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(three_seeds)
    runs = Path("runs")
    runs.mkdir()
    for run in Path().glob("seed*"):
        run.rename(runs / run.name)
    Path("empty").mkdir()
    for name, text in BAD_FILES.items():
        Path(name).write_text(text)
    bad = {name: Path("bad", name) for name in ("monitor", "progress", "config", "words")}
    for folder in bad.values():
        folder.mkdir(parents=True)
        (folder / "progress.csv").write_text("EpRewMean,TimestepsSoFar\nhigh,1\n")
    (bad["monitor"] / "0.monitor.csv").write_text("r,l,t\n1,2,3\n")
    (bad["progress"] / "progress.csv").write_text("a,b\n1,2\n1,2,3,4\n")
    (bad["config"] / "config.json").write_text("{")
    with pytest.raises(SystemExit) as leave:
        main(flags)
    assert leave.value.code == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("python -m common.plot_util: error: ")
    assert message in last
    assert not Path("c.png").exists()


def test_as_a_module_without_a_display(three_seeds):
    environment = {k: v for k, v in rank_environment().items() if k != "DISPLAY"}
    done = subprocess.run(
        [sys.executable, "-m", "common.plot_util", str(three_seeds), "-o", "curves.png"],
        cwd=three_seeds,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "Wrote curves.png\n", "")


def test_import_takes_neither_matplotlib_nor_pandas():
    code = "import sys, common.plot_util; print({'matplotlib', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "set()\n"


def test_limits(tmp_path):
    (tmp_path / "limits.csv").write_text("env,low,high\nA-v0,-1,2.5\n")
    assert read_limits(tmp_path / "limits.csv") == {"A-v0": (-1.0, 2.5)}
    assert plot_util.normalise(np.array([-1.0, 2.5, 6.0]), (-1.0, 2.5)).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "text", ["[1, 2]", "[" * 5000, '{"arguments": [1]}', '{"arguments": {"env": 3}}',
             '{"arguments": {"seed": [1]}}', '"text"', "\0"],
)  # fmt: skip
def test_a_config_that_is_none_is_one_line(text, tmp_path, capsys):
    (tmp_path / "progress.csv").write_text("TimestepsSoFar,EpRewMean\n1,2.0\n")
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(SystemExit) as leave:
        plot_util.main([str(tmp_path), "--table"])
    assert leave.value.code == 2
    err = capsys.readouterr().err
    assert "config.json is not" in err and err.count("\n") == 1
