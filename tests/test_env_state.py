"""A fresh environment, brought to the state of another one, goes on exactly as that one does.

Everything is compared with tolerance 0: observations, rewards, both flags and infos, the later
resets' random draws included. Only `t`, an episode's wall-clock time, is left out.
"""

import contextlib
import copy
import csv
import io
import json
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import wrappers
from gymnasium.envs.mujoco.hopper_v4 import HopperEnv

import run_atari
from common import cmd_util, logger, monitor
from common.atari_wrappers import FrameStack, MaxAndSkipEnv, make_atari, wrap_deepmind
from common.checkpoint import from_plain, to_plain
from common.env_state import get_env_state, mujoco_state, set_env_state, set_mujoco_state
from common.monitor import Monitor, find_monitor, load_results, truncate_monitor_file
from tests.envs import Countdown


def through_a_file(state):
    """Return `state` as it comes back from a file, having checked that it is plain."""
    check_plain(state)
    file = io.BytesIO()
    torch.save(to_plain(state), file)
    file.seek(0)
    return from_plain(torch.load(file, weights_only=True))


def check_plain(value):
    if type(value) is dict:
        assert all(type(key) is str for key in value)
        for item in value.values():
            check_plain(item)
    elif type(value) is list:
        for item in value:
            check_plain(item)
    else:
        assert type(value) in (str, int, float, bool, bytes, np.ndarray, type(None)), type(value)


def actions_for(env, count, seed=1):
    generator = np.random.default_rng(seed)
    space = env.action_space
    if isinstance(space, gym.spaces.Discrete):
        return [int(action) for action in generator.integers(space.n, size=count)]
    return list(generator.uniform(space.low, space.high, (count, *space.shape)).astype(np.float32))


def play(env, actions):
    """Return all that the environment gives; it is reset where an episode ends."""
    seen = []
    for action in actions:
        *step, info = env.step(action)
        if "episode" in info:
            assert info["episode"].pop("t") >= 0
        seen.append((*step, info))
        if step[2] or step[3]:
            seen.append(env.reset())
    return seen


def ends(seen):
    """Return which ways episodes ended, and how many of Monitor's did."""
    steps = [entry for entry in seen if len(entry) == 5]
    ways = {"terminated": any(step[2] for step in steps), "truncated": any(s[3] for s in steps)}
    return {way for way in ways if ways[way]}, sum("episode" in info for *_, info in steps)


def check_goes_on(env, fresh, *, before, after):
    """Save `env` after `before` steps, bring `fresh` there, compare `after` steps; return them."""
    actions = actions_for(env, before + after)
    env.reset()
    play(env, actions[:before])
    state = through_a_file(get_env_state(env))
    was_at = timeless_state(env)
    want = play(env, actions[before:])
    set_env_state(fresh, state)
    np.testing.assert_equal(timeless_state(fresh), was_at)
    assert_same(play(fresh, actions[before:]), want)
    np.testing.assert_equal(timeless_state(fresh), timeless_state(env))
    return want


def timeless_state(env):
    """Return the state without Monitor's clock, and its rows, which count one object's own."""
    state = get_env_state(env)
    for layer in state["states"]:
        for name in ("elapsed", "rows"):
            layer.get("own", {}).pop(name, None)
    return state


def assert_same(got, want):
    for number, (one, two) in enumerate(zip(got, want, strict=True)):
        np.testing.assert_equal(one, two, err_msg=f"entry {number}")


# ---- MuJoCo, Robotics, classic control ----------------------------------------------------------

slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("env_id", "before", "after", "way"),
    [
        ("HalfCheetah-v4", 980, 60, "truncated"),
        ("Hopper-v4", 105, 60, "terminated"),
        ("Walker2d-v4", 105, 60, "terminated"),
        ("Swimmer-v4", 980, 60, "truncated"),
        ("Reacher-v4", 70, 60, "truncated"),
        ("InvertedPendulum-v4", 55, 60, "terminated"),
        ("InvertedDoublePendulum-v4", 55, 60, "terminated"),
        ("Ant-v4", 60, 250, "terminated"),
        ("Humanoid-v4", 110, 60, "terminated"),
        ("HumanoidStandup-v4", 980, 40, "truncated"),
        ("Pusher-v5", 70, 60, "truncated"),
        ("Hopper-v5", 105, 60, "terminated"),
        ("Humanoid-v5", 110, 60, "terminated"),
        *(
            pytest.param(f"{name}-v5", 900, 1100, way, marks=slow)
            for name, way in [
                ("HalfCheetah", "truncated"), ("Walker2d", "terminated"), ("Swimmer", "truncated"),
                ("Reacher", "truncated"), ("InvertedPendulum", "terminated"),
                ("InvertedDoublePendulum", "terminated"), ("Ant", "terminated"),
                ("HumanoidStandup", "truncated"),
            ]
        ),
        ("CartPole-v1", 50, 60, "terminated"),
        ("Pendulum-v1", 190, 60, "truncated"),
        ("Acrobot-v1", 490, 60, "truncated"),
        ("MountainCar-v0", 190, 60, "truncated"),
        ("MountainCarContinuous-v0", 990, 60, "truncated"),
    ],
)  # fmt: skip
def test_control(env_id, before, after, way):
    env, fresh = (cmd_util.make_mujoco_env(env_id, seed, 0.5) for seed in (0, 7))
    seen = check_goes_on(env, fresh, before=before, after=after)
    ways, episodes = ends(seen)
    assert way in ways
    assert episodes >= 1


@pytest.mark.parametrize(
    "env_id",
    [
        "FetchReach-v4",
        *(
            pytest.param(env_id, marks=slow)
            for env_id in ("FetchPush-v4", "FetchSlide-v4", "FetchPickAndPlace-v4", "HandReach-v3")
        ),
    ],
)
def test_robotics(env_id):
    env, fresh = (cmd_util.make_robotics_env(env_id, seed) for seed in (0, 7))
    seen = check_goes_on(env, fresh, before=70, after=150)
    assert ends(seen) == ({"truncated"}, 3)
    assert all("is_success" in info for *_, info in seen if "episode" in info)


def hopper_at(moment):
    """Return the state of a Hopper, and what it does from there on."""
    env = cmd_util.make_plain_env("Hopper-v4")
    env.action_space.seed(0)
    if moment != "built":
        env.reset(seed=3)
    if moment in ("stepped", "ended"):
        env.step(env.action_space.sample())
    if moment == "ended":
        while not env.step(env.action_space.sample())[2]:
            pass
    state = through_a_file(get_env_state(env))
    first = [] if moment in ("reset", "stepped") else [env.reset()]
    return state, first + play(env, actions_for(env, 100))


@pytest.mark.parametrize("moment", ["built", "reset", "stepped", "ended"])
def test_every_moment_of_an_episode_in_one_never_reset(moment):
    state, want = hopper_at(moment)
    fresh = cmd_util.make_plain_env("Hopper-v4")
    set_env_state(fresh, state)
    first = [] if moment in ("reset", "stepped") else [fresh.reset()]
    assert_same(first + play(fresh, actions_for(fresh, 100)), want)


@pytest.mark.parametrize("env_id", ["Hopper-v4", "CartPole-v1", "FetchReach-v4", "game", "own"])
def test_a_state_is_a_copy_and_taking_it_changes_nothing(env_id):
    def build():
        if env_id == "game":
            return wrap_deepmind(make_atari("BreakoutNoFrameskip-v4"), frame_stack=True)
        if env_id == "own":
            return Wind(WindyCountdown(1))
        return cmd_util.make_plain_env(env_id)

    env, saved_from = build(), build()
    actions = actions_for(env, 120)
    for one in (env, saved_from):
        one.reset(seed=5)
        play(one, actions[:30])
    state = get_env_state(saved_from)
    before = copy.deepcopy(state)
    want = play(env, actions[30:])
    assert_same(play(saved_from, actions[30:]), want)
    np.testing.assert_equal(state, before)
    for _ in range(2):  # back to the same state twice, by which it is not altered either
        set_env_state(saved_from, state)
        assert_same(play(saved_from, actions[30:]), want)
    np.testing.assert_equal(state, before)


def test_gymnasiums_own_wrappers():
    def build():
        env = gym.make("CartPole-v1", max_episode_steps=30)  # with its checker, which has a state
        env = wrappers.TransformObservation(env, lambda ob: ob * 2, env.observation_space)
        return wrappers.FlattenObservation(wrappers.TimeAwareObservation(env))

    for before in (0, 1, 2, 25):
        env, fresh = build(), build()
        actions = actions_for(env, 90)
        env.reset(seed=0)
        play(env, actions[:before])
        set_env_state(fresh, through_a_file(get_env_state(env)))
        seen = play(env, actions[before:])
        assert_same(play(fresh, actions[before:]), seen)
        assert "terminated" in ends(seen)[0]


# ---- Atari --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("game", "before", "after", "episodes"),
    [
        ("Pong", 700, 500, 1),
        ("Breakout", 100, 300, 2),
        pytest.param("Pong", 1500, 3000, 3, marks=slow),
        pytest.param("Breakout", 1500, 3000, 15, marks=slow),
    ],
)
def test_atari(game, before, after, episodes):
    argv = ["--env", f"{game}NoFrameskip-v4", "--clip-rewards"]
    args = cmd_util.parse_args(run_atari.arg_parser(), run_atari.PRESETS, argv)
    env, fresh = (run_atari.make_env(args, seed) for seed in (0, 7))
    seen = check_goes_on(env, fresh, before=before, after=after)
    ways, games = ends(seen)
    assert "terminated" in ways
    assert games >= episodes
    assert any(entry[1] for entry in seen if len(entry) == 5)


def make_game(game, max_episode_steps=None, k=4):
    env = make_atari(f"{game}NoFrameskip-v4", max_episode_steps)
    return FrameStack(wrap_deepmind(Monitor(env, None, allow_early_resets=True)), k)


def test_a_time_limit_in_a_game_and_no_ops_by_hand():
    def build():
        return make_game("Breakout", max_episode_steps=40)

    env, fresh = build(), build()  # never reset
    env.reset(seed=3)
    noop_reset = env
    while not hasattr(noop_reset, "override_num_noops"):
        noop_reset = noop_reset.env
    noop_reset.override_num_noops = 7
    seen = check_goes_on(env, fresh, before=20, after=150)
    assert ends(seen)[0] == {"terminated", "truncated"}
    assert ends(seen)[1] >= 3


def test_a_life_lost_just_before():
    env, fresh = make_game("Breakout"), make_game("Breakout")
    env.reset(seed=3)
    while not env.step(0)[2]:
        pass
    assert env.unwrapped.ale.lives() == 4
    set_env_state(fresh, through_a_file(get_env_state(env)))
    actions = actions_for(env, 100)
    assert_same([fresh.reset(), *play(fresh, actions)], [env.reset(), *play(env, actions)])


# A machine that was just reset differs from one that was stepped in what is not in the emulator's
# state (of all games, Q*bert shows it). Yars' Revenge does not draw every pixel of each frame.
@pytest.mark.parametrize("game", ["Qbert", "YarsRevenge"])
@pytest.mark.parametrize("before", [0, 50])
def test_games_whose_state_is_not_all_in_the_emulators(game, before):
    env, fresh = (MaxAndSkipEnv(make_atari(f"{game}NoFrameskip-v4").env.env, 4) for _ in "ab")
    env.reset(seed=3)
    check_goes_on(env, fresh, before=before, after=50)
    check_goes_on(fresh, env, before=before, after=50)


@pytest.mark.slow
def test_every_game():
    import ale_py

    gym.register_envs(ale_py)
    suffix = "NoFrameskip-v4"
    games = [env_id.removesuffix(suffix) for env_id in gym.registry if env_id.endswith(suffix)]
    games = [game for game in games if not game.endswith("-ram")]
    assert len(games) > 50
    for game in games:
        env, fresh = make_game(game), make_game(game)
        env.reset(seed=3)
        for before, after in ((17, 60), (40, 60)):
            check_goes_on(env, fresh, before=before, after=after)


def test_games_that_would_not_go_on_exactly_are_unknown():
    with pytest.warns(DeprecationWarning, match="out of date"):
        sticky = make_atari("PongNoFrameskip-v0")  # the last action is not in the state
    assert get_env_state(sticky) is None
    env = make_atari("PongNoFrameskip-v4")
    assert get_env_state(env) is not None
    game = env.env.env  # each frame is shown, the first after a restore too
    assert get_env_state(game) is None
    assert get_env_state(MaxAndSkipEnv(game, skip=2)) is None
    assert get_env_state(MaxAndSkipEnv(game, skip=3)) is not None


# ---- What is not known, and what takes part by methods of its own -------------------------------


class Doubled(gym.Wrapper):
    """A wrapper with a state that nobody knows of."""


class LongerLimit(wrappers.TimeLimit):
    """Nobody knows what a subclass adds."""


class Duck:
    """An environment that is not Gymnasium's."""

    def __init__(self):
        self.observation_space = self.action_space = gym.spaces.Discrete(2)


class Wind(gym.Wrapper):
    """Adds what changes from step to step to the rewards, and says so."""

    def __init__(self, env):
        super().__init__(env)
        self.wind = np.zeros(2)

    def step(self, action):
        ob, reward, *rest = self.env.step(action)
        self.wind += 0.25  # in place
        return ob, reward + self.wind[0], *rest

    def checkpoint_state(self):
        return {"wind": self.wind, "shape": (1, 2), "half": np.float32(0.5)}

    def restore_checkpoint_state(self, state):
        assert (state["shape"], state["half"]) == ([1, 2], 0.5)
        self.wind = state["wind"]


class WindyCountdown(Countdown):
    """Counts down, its lengths random, and knows its own state."""

    def reset(self, **kwargs):
        ob, info = super().reset(**kwargs)
        self.left = int(self.np_random.integers(1, 9))
        return ob * 0 + self.left, info

    def checkpoint_state(self):
        return {
            "left": self.left, "episodes": self.episodes, "steps": self.steps,
            "generator": self.np_random.bit_generator.state,
        }  # fmt: skip

    def restore_checkpoint_state(self, state):
        self.left, self.episodes, self.steps = state["left"], state["episodes"], state["steps"]
        self.np_random.bit_generator.state = state["generator"]


class OddHopper(HopperEnv):
    """An environment on MuJoCo with an attribute of its own."""

    steps = 0

    def step(self, action):
        self.steps += 1
        ob, reward, *rest = super().step(action)
        return ob, reward + self.steps % 2, *rest


class KnownOddHopper(OddHopper):
    def checkpoint_state(self):
        simulation = mujoco_state(self.model, self.data)
        generator = self.np_random.bit_generator.state
        return {"simulation": simulation, "generator": generator, "steps": self.steps}

    def restore_checkpoint_state(self, state):
        set_mujoco_state(self.model, self.data, state["simulation"])
        self.np_random.bit_generator.state = state["generator"]
        self.steps = state["steps"]


def quiet_hopper(cls):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*out of date.*")
        return cls()


@pytest.mark.parametrize(
    "build",
    [
        lambda: Countdown(3),
        lambda: Monitor(Countdown(3), None),
        lambda: Duck(),
        lambda: Doubled(gym.make("CartPole-v1")),
        lambda: LongerLimit(gym.make("CartPole-v1"), 9),
        lambda: wrappers.NormalizeObservation(gym.make("CartPole-v1")),
        lambda: Monitor(Doubled(WindyCountdown()), None),
        lambda: quiet_hopper(OddHopper),
        lambda: cmd_util.make_plain_env("PointMaze_UMaze-v3"),
    ],
)
def test_unknown(build):
    assert get_env_state(build()) is None


def test_methods_of_ones_own():
    def build():
        env = Wind(wrappers.TimeLimit(WindyCountdown(1), 6))
        return Monitor(env, None, allow_early_resets=True)

    env, fresh = build(), build()
    env.reset(seed=2)
    seen = check_goes_on(env, fresh, before=20, after=40)
    assert ends(seen)[0] == {"terminated", "truncated"}
    env, fresh = quiet_hopper(KnownOddHopper), quiet_hopper(KnownOddHopper)
    env.reset(seed=2)
    assert ends(check_goes_on(env, fresh, before=31, after=60))[0] == {"terminated"}


def test_methods_may_say_that_they_do_not_know(monkeypatch):
    monkeypatch.setattr(Wind, "checkpoint_state", lambda self: None)
    assert get_env_state(Wind(gym.make("CartPole-v1"))) is None


def test_methods_that_return_something_else_are_named(monkeypatch):
    for value in ({"a": {1, 2}}, [np.array(["text"])], {1: "a"}):
        monkeypatch.setattr(Wind, "checkpoint_state", lambda self, value=value: value)
        with pytest.raises(TypeError, match=r"Wind\.checkpoint_state\(\): not plain data"):
            get_env_state(Wind(gym.make("CartPole-v1")))


# ---- What does not fit --------------------------------------------------------------------------


def check_refused(state, env, message):
    with pytest.raises(ValueError, match=message):
        set_env_state(env, state)


def test_other_ids_and_wrappers_are_named():
    hopper = get_env_state(cmd_util.make_mujoco_env("Hopper-v4", 0))
    walker = cmd_util.make_mujoco_env("Walker2d-v4", 0)
    check_refused(hopper, walker, "of environment Hopper-v4, not Walker2d-v4$")
    check_refused(hopper, Duck(), "of environment Hopper-v4, not None$")
    scaled = cmd_util.make_mujoco_env("Hopper-v4", 0, 0.5)
    check_refused(
        hopper,
        scaled,
        r"state is of Monitor\(TimeLimit\(OrderEnforcing\(HopperEnv\)\)\), this environment is "
        r"TransformReward\(Monitor\(TimeLimit\(OrderEnforcing\(HopperEnv\)\)\)\)$",
    )


@pytest.fixture
def hopper():
    env = cmd_util.make_plain_env("Hopper-v4")
    env.reset(seed=0)
    return env, get_env_state(env)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s["mujoco"].update(integration=np.zeros(9)),
         r"HopperEnv does not fit: MuJoCo's integration had shape \(9,\), here it has \(\d+,\)$"),
        (lambda s: s["mujoco"]["fields"].update(xpos=np.zeros((4, 3))),
         r"MuJoCo's xpos had shape \(4, 3\), here it has \(5, 3\)$"),
        (lambda s: s["mujoco"]["fields"].pop("qacc"), "MuJoCo's qacc had shape None, here"),
        (lambda s: s["mujoco"]["fields"].update(new=np.zeros(2)), r"new had shape \(2,\), .* None"),
        (lambda s: s.update(mujoco={}), "HopperEnv does not fit: 'integration'"),
        (lambda s: s["np_random"].update(bit_generator="MT19937"), "HopperEnv does not fit: "),
    ],
)  # fmt: skip
def test_other_shapes_are_named(hopper, spoil, message):
    env, state = hopper
    spoil(state["states"][-1])
    check_refused(state, env, message)


def test_games_that_do_not_fit_are_named():
    state = get_env_state(make_game("Breakout"))
    state["states"][0]["own"]["frames"] = [np.zeros((84, 84, 1), np.uint8)] * 4
    check_refused(
        state, make_game("Breakout", k=3), r"FrameStack does not fit: need 3 frames of shape \(84,"
    )
    breakout, pong = make_game("Breakout"), get_env_state(make_game("Pong"))
    check_refused(pong, breakout, "BreakoutNoFrameskip-v4$")
    for saved in (pong["states"][-1]["ale"], b"", state["states"][-1]["ale"][:99]):
        spoiled = copy.deepcopy(state)
        spoiled["states"][-1]["ale"] = saved
        check_refused(spoiled, breakout, "AtariEnv does not fit: the Arcade Learning Environment c")
    breakout.reset(seed=0)
    state = get_env_state(breakout)
    set_env_state(breakout, state)  # what was refused has left it usable
    np.testing.assert_equal(get_env_state(breakout)["states"][-1], state["states"][-1])


def test_missing_attributes_are_named(hopper):
    env, state = hopper
    del state["states"][0]["attributes"]["_elapsed_steps"]
    check_refused(state, env, "TimeLimit does not fit: '_elapsed_steps'")


def test_a_file_cannot_set_other_attributes(hopper):
    env, state = hopper
    state["states"][0]["attributes"]["step"] = 0
    set_env_state(env, state)
    assert callable(env.step)


# ---- Monitor's file -----------------------------------------------------------------------------


@pytest.fixture
def begin():
    """Return Monitor, but that its files are closed at the test's end."""
    with contextlib.ExitStack() as stack:
        yield lambda *args, **kwargs: stack.enter_context(Monitor(*args, **kwargs))


def episodes_in(path):
    """Return the rows without their times."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(list(file)[1:]))
    return [{key: value for key, value in row.items() if key != "t"} for row in rows]


@pytest.mark.parametrize("known", [True, False])
def test_a_file_is_continued_without_duplicate_or_missing_rows(known, begin, tmp_path):
    def build(folder, **kwargs):
        env = WindyCountdown(1) if known else Countdown(3, 1, 5)
        return begin(env, tmp_path / folder, allow_early_resets=True, **kwargs)

    for folder in ("whole", "cut"):
        (tmp_path / folder).mkdir()
    path = tmp_path / "cut" / "monitor.csv"
    whole, first = build("whole"), build("cut")
    actions = [0] * 60
    for env in (whole, first):
        env.reset(seed=1)
        play(env, actions[:25])
    rows = first.rows
    state = through_a_file(get_env_state(first)) if known else None
    assert rows == len(first.get_episode_lengths()) == len(episodes_in(path)) > 3
    if known:
        assert state["states"][0]["own"]["rows"] == rows
    play(first, actions[:9])  # what comes after the save is forgotten
    with open(path, "a") as file:
        file.write("1.0,")  # and its last row was cut short

    assert len(episodes_in(path)) > rows
    assert truncate_monitor_file(tmp_path / "cut", rows) == rows
    second = build("cut", append=True)
    assert second.rows == rows
    if known:
        set_env_state(second, state)
    else:
        second.reset()
    play(second, actions[25:])
    play(whole, actions[25:])
    got, want = episodes_in(path), episodes_in(tmp_path / "whole" / "monitor.csv")
    assert second.rows == len(got)
    assert got[:rows] == want[:rows]
    if known:
        assert got == want
        assert second.get_total_steps() == whole.get_total_steps() == 60
    assert list(load_results(tmp_path / "cut")["t"]) == sorted(load_results(tmp_path / "cut")["t"])
    assert len(load_results(tmp_path / "cut")) == len(got)


def test_the_clock_goes_on(begin, tmp_path, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(monitor.time, "time", lambda: now)
    first = begin(WindyCountdown(1), tmp_path)
    first.reset(seed=0)
    now = 1010.0
    state = get_env_state(first)
    now = 5000.0
    fresh = begin(WindyCountdown(1), tmp_path, append=True)
    assert fresh.tstart == 1000.0  # as the file's header says
    set_env_state(fresh, state)
    now = 5003.0
    play(fresh, [0] * fresh.unwrapped.left)
    assert fresh.get_episode_times() == [13.0]
    assert list(load_results(tmp_path)["t"]) == [13.0]
    assert load_results(tmp_path).attrs["headers"][0]["t_start"] == 1000.0


HEADER = '# {"t_start": 5.0, "env_id": null}\nr,l,t,note\n'
ROWS = ["1.0,2,3.0,a\n", '2.0,2,4.0,"two\nlines"\n', "3.0,2,5.0,c\n"]


@pytest.mark.parametrize(
    ("text", "rows", "kept", "count"),
    [
        (HEADER + "".join(ROWS), 2, HEADER + "".join(ROWS[:2]), 2),
        (HEADER + "".join(ROWS), 0, HEADER, 0),
        (HEADER + "".join(ROWS), 9, HEADER + "".join(ROWS), 3),
        (HEADER + "".join(ROWS), None, HEADER + "".join(ROWS), 3),
        (HEADER + "".join(ROWS)[:-1], 3, HEADER + "".join(ROWS[:2]), 2),
        (HEADER + ROWS[0] + "4.", None, HEADER + ROWS[0], 1),
        (HEADER[:-2], 3, "", 0),
        (HEADER[:9], None, "", 0),
        ("", 3, "", 0),
    ],
)
def test_a_file_is_cut_after_its_first_rows(text, rows, kept, count, tmp_path):
    path = tmp_path / "3.monitor.csv"
    path.write_text(text)
    for name in (path, tmp_path / "3"):
        assert truncate_monitor_file(name, rows) == count
        assert path.read_text() == kept


def test_files_that_are_not_there_and_those_of_others(tmp_path):
    assert truncate_monitor_file(tmp_path / "0", 3) == 0
    assert not list(tmp_path.iterdir())
    path = tmp_path / "0.monitor.csv"
    path.write_text("a,b\n1,2\n3,4\n")
    message = "line 1 is not '#' and a JSON header"
    with pytest.raises(ValueError, match=message):
        truncate_monitor_file(path, 1)
    with pytest.raises(ValueError, match=message):
        Monitor(Countdown(1), path, append=True)
    assert path.read_text() == "a,b\n1,2\n3,4\n"


def test_append_begins_a_file_where_there_is_none_or_an_empty_one(begin, tmp_path):
    (tmp_path / "1.monitor.csv").write_text('# {"t_sta')
    for name in ("0", "1"):
        env = begin(Countdown(2), tmp_path / name, append=True)
        env.reset()
        play(env, [0] * 4)
        assert env.rows == 2
        lines = (tmp_path / f"{name}.monitor.csv").read_text().splitlines()
        assert json.loads(lines[0][1:])["t_start"] == env.tstart
        assert [line[:5] for line in lines[1:]] == ["r,l,t", "2.0,2", "2.0,2"]


def test_append_refuses_other_columns(begin, tmp_path):
    begin(Countdown(2), tmp_path)
    with pytest.raises(ValueError, match=r"has the columns \['r', 'l', 't'\], not .*'note'"):
        Monitor(Countdown(2), tmp_path, info_keywords=["note"], append=True)


def test_a_robots_file_is_continued(tmp_path):
    logger.configure(tmp_path, [])
    with cmd_util.make_robotics_env("FetchReach-v4", 0) as env:
        env.reset()
        play(env, actions_for(env, 60))
        state = get_env_state(env)
    logger.configure(tmp_path, [], append=True)
    with cmd_util.make_robotics_env("FetchReach-v4", 7) as fresh:
        assert find_monitor(fresh).rows == 1
        set_env_state(fresh, state)
        play(fresh, actions_for(fresh, 60))
    assert len(load_results(tmp_path)) == 2
