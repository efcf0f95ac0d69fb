"""Monitor's records and files, and load_results on files of ours, of baselines and torn ones."""

import csv
import json
import time
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest

from common.monitor import (
    LoadMonitorResultsError,
    Monitor,
    find_monitor,
    get_monitor_files,
    load_results,
)
from tests.envs import Frame, ScriptedGame


def game(*rewards, truncated=False):
    """Return a game with these rewards, its last step the end."""
    frames = [Frame(), *(Frame(reward=reward) for reward in rewards)]
    frames[-1] = frames[-1]._replace(terminated=not truncated, truncated=truncated)
    return frames


def play(env, episodes=1, **kwargs):
    """Play whole episodes; return each one's last info."""
    infos = []
    for _ in range(episodes):
        env.reset(**kwargs)
        done = False
        while not done:
            *_, terminated, truncated, info = env.step(0)
            done = terminated or truncated
        infos.append(info)
    return infos


def write(folder, rank, text):
    path = folder / f"{rank}.monitor.csv"
    path.write_bytes(text.encode("latin-1"))
    return path


# Recording


def test_episode_records():
    env = Monitor(ScriptedGame(game(1, -2.5, 4), game(10, truncated=True)), None)
    env.reset()
    assert "episode" not in env.step(0)[-1]
    assert "episode" not in env.step(0)[-1]
    ob, reward, terminated, truncated, info = env.step(0)
    assert (reward, terminated, truncated) == (4, True, False)
    assert set(info["episode"]) == {"r", "l", "t"}
    assert (info["episode"]["r"], info["episode"]["l"]) == (2.5, 3)
    assert play(env)[0]["episode"]["r"] == 10.0  # one step long, and truncated
    assert env.get_episode_rewards() == [2.5, 10.0]
    assert env.get_episode_lengths() == [3, 1]
    assert env.get_total_steps() == 4


def test_running_episode_is_in_plain_attributes():
    env = Monitor(ScriptedGame(game(1, 2, 3)), None)
    assert env.needs_reset is True
    env.reset()
    env.step(0)
    env.step(0)
    assert (env.running_return, env.running_length, env.needs_reset) == (3.0, 2, False)
    assert env.get_total_steps() == 2


def test_rewards_add_up_in_order_as_python_floats():
    rewards = [0.1] * 10
    (info,) = play(env := Monitor(ScriptedGame(game(*rewards)), None))
    assert env.get_episode_rewards() == [0.9999999999999999]  # adding ten tenths one by one
    assert info["episode"]["r"] == 1.0  # rounded to 6 digits
    # 2^24 + 1 is no float32: a sum of that type would stay at 2^24.
    single = Monitor(ScriptedGame(game(np.float32(2**24), np.float32(1))), None)
    play(single)
    assert single.get_episode_rewards() == [2.0**24 + 1]


def test_six_digits_are_kept():
    (info,) = play(Monitor(ScriptedGame(game(1.23456789)), None))
    assert info["episode"]["r"] == 1.234568


def test_times_do_not_go_backwards_with_the_clock(monkeypatch):
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(time, "time", lambda: clock.now)
    env = Monitor(ScriptedGame(game(0)), None)
    for clock.now in (1002.0, 990.0, 1003.0):
        play(env)
    assert env.get_episode_times() == [2.0, 2.0, 3.0]


def test_times_count_seconds_since_construction(monkeypatch):
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(time, "time", lambda: clock.now)
    env = Monitor(ScriptedGame(game(0)), None)
    clock.now = 1002.123456789
    (info,) = play(env)
    assert info["episode"]["t"] == 2.123457
    assert env.get_episode_times() == [pytest.approx(2.123456789, abs=1e-9)]  # 1e-13 of 1000 s


def test_early_reset_and_late_step_are_errors():
    env = Monitor(ScriptedGame(game(1, 2, 3)), None)
    with pytest.raises(RuntimeError, match="needs a reset"):
        env.step(0)
    env.reset()
    env.step(0)
    with pytest.raises(RuntimeError, match="after 1 steps.*allow_early_resets=True"):
        env.reset()
    env.step(0)
    env.step(0)
    with pytest.raises(RuntimeError, match="needs a reset"):
        env.step(0)
    assert env.get_episode_rewards() == [6.0]


def test_allowed_early_reset_forgets_the_episode():
    env = Monitor(ScriptedGame(game(1, 2, 3)), None, allow_early_resets=True)
    env.reset()
    env.step(0)
    play(env)
    assert env.get_episode_rewards() == [6.0]
    assert env.get_episode_lengths() == [3]
    assert env.get_total_steps() == 4


def test_reset_passes_its_keywords_on():
    inner = ScriptedGame(game(1))
    Monitor(inner, None).reset(seed=3, options={"a": 1})
    assert inner.calls == [{"seed": 3, "options": {"a": 1}}]


# The file


def test_file_format(tmp_path):
    env = Monitor(ScriptedGame(game(1, 2), game(-0.5)), str(tmp_path / "0"))
    path = tmp_path / "0.monitor.csv"
    header, columns = path.read_text().splitlines()  # written at once
    assert header.startswith("# ")
    assert json.loads(header[1:]) == {"t_start": env.tstart, "env_id": None}
    assert columns == "r,l,t"
    play(env)
    assert len(path.read_text().splitlines()) == 3  # each row as soon as its episode ends
    play(env)
    rows = path.read_text().splitlines()[2:]
    assert [row.split(",")[:2] for row in rows] == [["3.0", "2"], ["-0.5", "1"]]
    assert [float(row.split(",")[2]) for row in rows] == [
        round(seconds, 6) for seconds in env.get_episode_times()
    ]
    env.close()


def test_header_names_the_environment(tmp_path):
    env = Monitor(gym.make("CartPole-v1"), tmp_path / "0")
    assert json.loads((tmp_path / "0.monitor.csv").read_text().splitlines()[0][1:])["env_id"] == (
        "CartPole-v1"
    )
    env.close()


@pytest.mark.parametrize(
    "filename, written",
    [
        ("3", "3.monitor.csv"),
        ("3.monitor.csv", "3.monitor.csv"),
        ("v1.5", "v1.5.monitor.csv"),
        ("", "monitor.csv"),  # the folder itself
    ],
)
def test_file_names(tmp_path, filename, written):
    Monitor(ScriptedGame(), tmp_path / filename).close()
    assert [path.name for path in tmp_path.iterdir()] == [written]


def test_no_filename_writes_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    env = Monitor(ScriptedGame(game(1)), None)
    play(env)
    env.close()
    assert list(tmp_path.iterdir()) == []


def test_info_keywords_and_reset_keywords_are_columns(tmp_path):
    inner = ScriptedGame(game(1), info={"is_success": 1.0, "note": "a, b", "other": 3})
    env = Monitor(
        inner,
        tmp_path / "0",
        reset_keywords=("level", "seed"),
        info_keywords=("is_success", "note"),
    )
    (info,) = play(env, seed=7, options={"level": 2})
    env.close()
    episode = info["episode"]
    assert list(episode) == ["r", "l", "t", "is_success", "note", "level", "seed"]
    with open(tmp_path / "0.monitor.csv", newline="") as file:
        file.readline()
        columns, row = csv.reader(file)
    assert columns == ["r", "l", "t", "level", "seed", "is_success", "note"]
    assert row == ["1.0", "1", str(episode["t"]), "2", "7", "1.0", "a, b"]
    table = load_results(tmp_path)
    assert table[["level", "seed", "is_success", "note"]].values.tolist() == [[2, 7, 1.0, "a, b"]]


def test_missing_keywords_are_errors():
    env = Monitor(ScriptedGame(game(1)), None, reset_keywords=("level",))
    with pytest.raises(ValueError, match="expects the keyword 'level'"):
        env.reset(seed=1)
    env = Monitor(ScriptedGame(game(1), info={"lives": 0}), None, info_keywords=("is_success",))
    with pytest.raises(KeyError, match="'is_success'.*'lives'"):
        play(env)


# find_monitor


def test_find_monitor_walks_any_objects_with_env_and_takes_the_outermost():
    inner = Monitor(ScriptedGame(), None)
    outer = Monitor(gym.Wrapper(inner), None)
    assert find_monitor(inner) is inner
    assert find_monitor(gym.Wrapper(gym.Wrapper(outer))) is outer
    assert find_monitor(SimpleNamespace(env=SimpleNamespace(env=inner))) is inner
    assert find_monitor(SimpleNamespace(env=ScriptedGame())) is None
    assert find_monitor(None) is None


# load_results


def test_round_trip(tmp_path):
    env = Monitor(ScriptedGame(game(1.5, 2), game(0.1), game(-1e6)), tmp_path / "0")
    infos = play(env, episodes=3)
    env.close()
    table = load_results(tmp_path)
    assert table.to_dict("records") == [info["episode"] for info in infos]
    assert table.attrs["headers"] == [{"t_start": env.tstart, "env_id": None}]
    assert get_monitor_files(tmp_path) == [str(tmp_path / "0.monitor.csv")]


def test_ranks_are_merged_in_the_order_of_absolute_time(tmp_path):
    # As baselines writes them: a space before the line's end, and \r\n after rows.
    write(
        tmp_path,
        0,
        '# {"t_start": 1500000100.5, "env_id": "Hopper-v2"} \nr,l,t\r\n'
        "1.0,10,0.5\r\n2.0,20,4.25\r\n",
    )
    write(
        tmp_path,
        10,
        '# {"t_start": 1500000102.0, "env_id": "Hopper-v2"} \nr,l,t\r\n'
        "3.0,30,1.0\r\n4.0,40,9.123456\r\n",
    )
    table = load_results(tmp_path)
    assert list(table.columns) == ["r", "l", "t"]
    assert table["r"].tolist() == [1.0, 3.0, 2.0, 4.0]
    assert table["l"].tolist() == [10, 30, 20, 40]
    assert table["t"].tolist() == [0.5, 2.5, 4.25, 10.623456]
    assert table.index.tolist() == [0, 1, 2, 3]
    assert [header["t_start"] for header in table.attrs["headers"]] == [1500000100.5, 1500000102.0]


def test_numbers_are_read_to_the_last_digit(tmp_path):
    # Some versions of pandas read a neighbour of this float by themselves.
    write(tmp_path, 0, '#{"t_start": 0.0}\nr,l,t\n0.12345678901234568,1,1.0\nnan,2,3.0\n')
    returns = load_results(tmp_path)["r"].tolist()
    assert returns[0] == 0.12345678901234568
    assert np.isnan(returns[1])


def test_rank_without_an_episode_changes_nothing(tmp_path):
    write(tmp_path, 0, '#{"t_start": 1.0}\nr,l,t\n')
    write(tmp_path, 1, '#{"t_start": 2.0}\nr,l,t\n5.0,3,1.0\n')
    table = load_results(tmp_path)
    assert table.to_dict("records") == [{"r": 5.0, "l": 3, "t": 2.0}]
    assert table["l"].dtype == np.int64
    (tmp_path / "1.monitor.csv").unlink()
    empty = load_results(tmp_path)
    assert (list(empty.columns), len(empty)) == (["r", "l", "t"], 0)


def test_row_cut_short_is_left_out_with_a_warning(tmp_path):
    write(tmp_path, 0, '#{"t_start": 0.0}\nr,l,t\n1.0,10,0.5\n2.0,20,13')
    with pytest.warns(UserWarning, match=r"0.monitor.csv: left out a last line.*'2.0,20,13'"):
        table = load_results(tmp_path)
    assert table.to_dict("records") == [{"r": 1.0, "l": 10, "t": 0.5}]


@pytest.mark.parametrize(
    "text", ["", '#{"t_start"', '#{"t_start": 0.0}\n', '#{"t_start": 0.0}\nr,']
)
@pytest.mark.filterwarnings("ignore:.*left out a last line")
def test_file_without_a_whole_header_is_left_out_with_a_warning(tmp_path, text):
    write(tmp_path, 0, text)
    write(tmp_path, 1, '#{"t_start": 2.0}\nr,l,t\n5.0,3,1.0\n')
    with pytest.warns(UserWarning, match="0.monitor.csv: left out, it ends before its header"):
        assert load_results(tmp_path)["r"].tolist() == [5.0]
    (tmp_path / "1.monitor.csv").unlink()
    with (
        pytest.warns(UserWarning, match="left out, it ends"),
        pytest.raises(LoadMonitorResultsError, match="whole header"),
    ):
        load_results(tmp_path)


@pytest.mark.parametrize(
    "text, message",
    [
        ("r,l,t\n1.0,10,0.5\n", "line 1 is not '#' and a JSON header.*'r,l,t"),
        ("#not json\nr,l,t\n", "line 1"),
        ("#[1]\nr,l,t\n", "line 1"),
        ('#{"env_id": "Hopper-v4"}\nr,l,t\n', "line 1.*t_start"),
        ('#{"t_start": 0.0}\nr,l\n1.0,10\n', "line 2 does not name"),
        ('#{"t_start": 0.0}\nr,l,t\n1.0,10,0.5\n1.0,10\n1.0,10,0.5\n', "line 4.*shorter"),
        ('#{"t_start": 0.0}\nr,l,t\n1.0,10,0.5,6\n', "line 3.*longer"),
        ('#{"t_start": 0.0}\nr,l,t\n1.0,ten,0.5\n', "line 3.*'ten'"),
        ("\xff", "0.monitor.csv is not a monitor file.*utf-8"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*left out")
def test_malformed_files_are_named(tmp_path, text, message):
    write(tmp_path, 0, text)
    with pytest.raises(LoadMonitorResultsError, match=message):
        load_results(tmp_path)


def test_folders_without_monitor_files_are_errors(tmp_path):
    (tmp_path / "progress.csv").write_text("a\n1\n")
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(LoadMonitorResultsError, match=f"no files named .*{folder.name}"):
            load_results(folder)
    assert get_monitor_files(tmp_path) == []


def test_folder_names_are_no_patterns(tmp_path):
    folder = tmp_path / "run[1]*"
    folder.mkdir()
    write(folder, 0, '#{"t_start": 0.0}\nr,l,t\n1.0,10,0.5\n')
    assert load_results(folder)["l"].tolist() == [10]


# Two of them on one file


def test_a_file_that_another_monitor_writes_is_refused(tmp_path):
    first = Monitor(ScriptedGame(game(1)), tmp_path / "0")
    play(first)
    (tmp_path / "link.monitor.csv").symlink_to("0.monitor.csv")
    before = (tmp_path / "0.monitor.csv").read_bytes()
    for name in ("0", "0.monitor.csv", "link"):
        with pytest.raises(ValueError, match=f"another Monitor .* is writing .*{name}.*close"):
            Monitor(ScriptedGame(game(1)), tmp_path / name)
    assert (tmp_path / "0.monitor.csv").read_bytes() == before
    first.close()
    Monitor(ScriptedGame(game(1)), tmp_path / "0").close()


def test_a_monitor_that_continues_a_file_takes_it_from_the_one_before(tmp_path):
    first = Monitor(ScriptedGame(game(1)), tmp_path / "0")
    play(first)
    second = Monitor(ScriptedGame(game(2)), tmp_path / "0", append=True)
    with pytest.warns(UserWarning, match="no more episodes are written to .*0.monitor.csv"):
        play(first)
    play(second)
    assert first.episode_rewards == [1.0, 1.0]
    second.close()
    assert load_results(tmp_path)["r"].tolist() == [1.0, 2.0]


def test_a_file_that_was_deleted_is_nobodys(tmp_path):
    first = Monitor(ScriptedGame(game(1)), tmp_path / "0")
    (tmp_path / "0.monitor.csv").unlink()
    second = Monitor(ScriptedGame(game(1)), tmp_path / "0")
    play(first)
    play(second)
    assert len(load_results(tmp_path)) == 1
    first.close()
    second.close()


# What environments return


@pytest.mark.parametrize(
    "reward", [2, True, np.int64(2), np.bool_(True), np.array(2.0), np.array([2.0]), [[2]], (2.0,)]
)
def test_one_number_in_any_wrapping_is_a_reward(reward):
    env = Monitor(ScriptedGame(game(reward)), None)
    env.reset()
    env.step(0)
    assert env.episode_rewards == [np.ravel(reward)[0]]
    assert type(env.episode_rewards[0]) is float


@pytest.mark.parametrize("reward", [None, "much", [1.0, 2.0], np.zeros(4), [], {}, 1j, object()])
def test_what_is_no_number_is_no_reward(reward):
    env = Monitor(ScriptedGame(game(reward)), None)
    env.reset()
    with pytest.raises(TypeError, match="^the environment returned reward .* is not one finite"):
        env.step(0)


@pytest.mark.parametrize("info", [None, [], "note"])
def test_an_info_that_is_no_dict_is_ignored(info):
    inner = ScriptedGame(game(1))
    step = inner.step
    inner.step = lambda action: (*step(action)[:4], info)
    env = Monitor(inner, None)
    env.reset()
    assert set(env.step(0)[4]) == {"episode"}


def test_an_error_of_the_environments_own_is_not_explained():
    def fail(action):
        raise ValueError("not enough values to unpack (expected 5, got 4)")

    env = Monitor(ScriptedGame(game(1)), None)
    env.reset()
    env.env.step = fail
    with pytest.raises(ValueError, match="^not enough values"):
        env.step(0)
