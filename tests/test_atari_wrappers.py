"""The Atari wrappers: each by itself on a scripted game, then the chain against baselines."""

import subprocess
import sys
import zlib
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from common.atari_wrappers import (
    ClipRewardEnv,
    EpisodicLifeEnv,
    FireResetEnv,
    FrameStack,
    MaxAndSkipEnv,
    NoopResetEnv,
    ScaledFloatFrame,
    WarpFrame,
    make_atari,
    wrap_deepmind,
)
from common.monitor import Monitor
from tests.envs import Frame, ScriptedGame

GOLDEN = Path(__file__).parent / "golden"


def wrappers(env):
    """Return the chain's classes, outermost first."""
    chain = [type(env)]
    while isinstance(env, gym.Wrapper):
        env = env.env
        chain.append(type(env))
    return chain


def find(env, wrapper_class):
    """Return the wrapper of that class in the chain."""
    while not isinstance(env, wrapper_class):
        env = env.env
    return env


def gray(ob):
    """Return a ScriptedGame's screen as its two gray values."""
    return tuple(ob[0, :, 0].tolist())


def running_game(length, **frame):
    """Return a game that goes on for `length` steps without an end; pixels count the time."""
    return [Frame(screen=(t, 100 + t), **frame) for t in range(length + 1)]


# NoopResetEnv


def test_noops_are_stepped_and_the_last_screen_returned():
    game = ScriptedGame(running_game(30))
    env = NoopResetEnv(game)
    env.override_num_noops = 5
    ob, _ = env.reset(seed=3)
    assert game.calls == [{"seed": 3}, 0, 0, 0, 0, 0]
    assert gray(ob) == (5, 105)


def test_number_of_noops_comes_from_the_environments_random_numbers():
    game = ScriptedGame(running_game(30))
    env = NoopResetEnv(game, noop_max=30)
    env.reset(seed=11)
    drawn = [game.time]
    for _ in range(400):
        env.reset()
        drawn.append(game.time)
    stream = np.random.Generator(np.random.PCG64(np.random.SeedSequence(11)))
    assert drawn == [stream.integers(1, 31) for _ in range(401)]
    assert set(drawn) == set(range(1, 31))  # 401 draws miss one of 30 with probability 4e-5


def test_noop_max_is_an_inclusive_limit():
    game = ScriptedGame(running_game(30))
    env = NoopResetEnv(game)
    env.noop_max = 1
    env.reset(seed=0)
    assert game.time == 1


@pytest.mark.parametrize("end", [{"terminated": True}, {"truncated": True}])
def test_game_that_ends_during_the_noops_is_reset_without_the_seed(end):
    short = [Frame(), Frame(), Frame(**end)]
    game = ScriptedGame(short, running_game(30))
    env = NoopResetEnv(game)
    env.override_num_noops = 5
    ob, _ = env.reset(seed=3, options={"a": 1})
    # Two no-ops end the first game; the remaining three are played in the second.
    assert game.calls == [{"seed": 3, "options": {"a": 1}}, 0, 0, {"options": {"a": 1}}, 0, 0, 0]
    assert gray(ob) == (3, 103)


def test_game_that_ends_with_the_last_noop_starts_afresh():
    game = ScriptedGame([Frame(), Frame(terminated=True)], running_game(30))
    env = NoopResetEnv(game)
    env.override_num_noops = 1
    ob, _ = env.reset()
    assert game.calls == [{}, 0, {}]
    assert gray(ob) == (0, 100)


def test_noop_reset_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="NOOP as action 0.*'FIRE'"):
        NoopResetEnv(ScriptedGame(meanings=("FIRE", "NOOP")))
    env = NoopResetEnv(ScriptedGame(running_game(3)))
    env.override_num_noops = 0
    with pytest.raises(ValueError, match="at least 1, got 0"):
        env.reset()


# FireResetEnv


def test_fire_reset_presses_action_1_then_2():
    game = ScriptedGame(running_game(3))
    ob, _ = FireResetEnv(game).reset(seed=3)
    assert game.calls == [{"seed": 3}, 1, 2]
    assert gray(ob) == (2, 102)


def test_fire_reset_resets_again_when_the_first_press_ends_the_game():
    game = ScriptedGame([Frame(), Frame(terminated=True)], running_game(3))
    ob, _ = FireResetEnv(game).reset(seed=3)
    assert game.calls == [{"seed": 3}, 1, {}, 2]
    assert gray(ob) == (1, 101)


def test_fire_reset_returns_the_new_game_when_the_second_press_ends_the_old():
    game = ScriptedGame([Frame(), Frame(), Frame((9, 9), truncated=True)], running_game(3))
    ob, _ = FireResetEnv(game).reset(seed=3)
    assert game.calls == [{"seed": 3}, 1, 2, {}]
    assert gray(ob) == (0, 100)


@pytest.mark.parametrize("meanings", [("NOOP", "UP", "FIRE"), ("NOOP", "FIRE")])
def test_fire_reset_refuses_other_actions(meanings):
    with pytest.raises(ValueError, match="FIRE as action 1 and at least 3 actions"):
        FireResetEnv(ScriptedGame(meanings=meanings))


# EpisodicLifeEnv


def test_lost_life_ends_the_episode_but_not_the_game():
    game = ScriptedGame(
        [
            Frame(lives=3),
            Frame(lives=3, reward=1.0),
            Frame(lives=2, reward=2.0),  # a life is lost
            Frame((7, 8), lives=2),  # the no-op in place of a reset
            Frame(lives=3),  # a bonus life
            Frame(lives=2),  # lost again
            Frame(lives=2),  # no-op
            Frame(lives=0),  # no lives, but the game runs on
            Frame(lives=0, terminated=True),
        ],
        [Frame((1, 2), lives=5), Frame(lives=5)],
    )
    env = EpisodicLifeEnv(game)
    env.reset(seed=3)
    assert (env.lives, env.was_real_done) == (3, True)
    _, reward, terminated, truncated, _ = env.step(2)
    assert (reward, terminated, truncated, env.lives) == (1.0, False, False, 3)
    _, reward, terminated, truncated, _ = env.step(2)
    assert (reward, terminated, truncated, env.lives) == (2.0, True, False, 2)
    assert env.was_real_done is False

    ob, _ = env.reset()
    assert gray(ob) == (7, 8)
    assert [env.step(2)[2] for _ in range(2)] == [False, True]  # gained, lost
    env.reset()
    assert [env.step(2)[2] for _ in range(2)] == [False, True]  # 0 lives, then the game's end
    assert env.was_real_done is True
    ob, _ = env.reset()
    assert (gray(ob), env.lives) == ((1, 2), 5)
    assert game.calls == [{"seed": 3}, 2, 2, 0, 2, 2, 0, 2, 2, {}]


def test_time_limit_is_a_real_end():
    game = ScriptedGame([Frame(lives=3), Frame(lives=3, truncated=True)])
    env = EpisodicLifeEnv(game)
    env.reset()
    assert env.step(2)[2:4] == (False, True)
    assert env.was_real_done is True
    env.reset()
    assert game.calls == [{}, 2, {}]


@pytest.mark.parametrize("end", [{"terminated": True}, {"truncated": True}])
def test_game_that_ends_in_the_noop_after_a_lost_life_is_reset(end):
    game = ScriptedGame(
        [Frame(lives=2), Frame(lives=1), Frame(**end)], [Frame((4, 5), lives=2), Frame()]
    )
    env = EpisodicLifeEnv(game)
    env.reset()
    env.step(2)
    ob, _ = env.reset()
    assert game.calls == [{}, 2, 0, {}]
    assert (gray(ob), env.lives) == ((4, 5), 2)


def test_seed_starts_a_new_game_in_mid_life():
    game = ScriptedGame([Frame(lives=2), Frame(lives=1)])
    env = EpisodicLifeEnv(game)
    env.reset()
    env.step(2)
    env.reset(seed=8)
    assert game.calls == [{}, 2, {"seed": 8}]
    assert env.lives == 2


# MaxAndSkipEnv


def test_skip_holds_the_action_adds_rewards_and_shows_the_brighter_of_two_frames():
    screens = [(0, 0), (9, 9), (8, 8), (1, 6), (5, 2), (7, 7), (7, 7), (3, 0), (0, 4)]
    rewards = [0, 1, 2, 4, 8, 16, 32, 64, 128]
    game = ScriptedGame([Frame(s, reward=r) for s, r in zip(screens, rewards, strict=True)])
    env = MaxAndSkipEnv(game, skip=4)
    first, _ = env.reset(seed=3)
    second, reward, terminated, truncated, _ = env.step(2)
    assert (reward, terminated, truncated) == (15.0, False, False)
    third, reward, *_ = env.step(1)
    assert reward == 240.0
    assert game.calls == [{"seed": 3}, 2, 2, 2, 2, 1, 1, 1, 1]
    # Kept by the caller, none changed by a later step.
    assert [gray(ob) for ob in (first, second, third)] == [(0, 0), (5, 6), (3, 4)]


@pytest.mark.parametrize("end", [{"terminated": True}, {"truncated": True}])
@pytest.mark.parametrize(
    "frames, shown", [(1, (1, 9)), (2, (2, 8)), (3, (3, 7)), (4, (4, 7)), (5, (5, 5))]
)
def test_game_over_in_mid_skip_stops_and_shows_its_last_frame(frames, shown, end):
    screens = [(0, 10), (1, 9), (2, 8), (3, 7), (4, 6), (5, 5)][: frames + 1]
    script = [Frame(screen, reward=1.0) for screen in screens]
    script[-1] = script[-1]._replace(**end)
    env = MaxAndSkipEnv(ScriptedGame(script), skip=4)
    env.reset()
    for expected_reward in [4.0, 1.0] if frames == 5 else [frames]:
        ob, reward, terminated, truncated, _ = env.step(2)
        assert reward == expected_reward
    assert gray(ob) == shown
    assert (terminated, truncated) == (bool(end.get("terminated")), bool(end.get("truncated")))


def test_skip_of_one_shows_each_frame():
    env = MaxAndSkipEnv(ScriptedGame([Frame((9, 9)), Frame((8, 1)), Frame((2, 3))]), skip=1)
    env._previous[...] = 255  # there is no earlier frame in a step: whatever lies here is not shown
    env.reset()
    assert [gray(env.step(0)[0]) for _ in range(2)] == [(8, 1), (2, 3)]
    with pytest.raises(ValueError, match="at least 1, got 0"):
        MaxAndSkipEnv(env, skip=0)


def test_frames_keep_the_observations_dtype():
    game = ScriptedGame(running_game(4))
    game.observation_space = spaces.Box(-1.0, 1.0, (1, 2, 3), np.float64)
    env = MaxAndSkipEnv(game)
    assert env.reset()[0].dtype == np.float64
    assert env.step(0)[0].dtype == np.float64


def test_screens_read_from_the_emulator_equal_its_observations():
    fast = make_atari("BreakoutNoFrameskip-v4")
    plain = gym.make("BreakoutNoFrameskip-v4", disable_env_checker=True)
    plain = MaxAndSkipEnv(NoopResetEnv(plain, noop_max=30), skip=4)
    assert fast.observation_space == plain.observation_space
    (ob_fast, info_fast), (ob_plain, info_plain) = fast.reset(seed=5), plain.reset(seed=5)
    np.testing.assert_array_equal(ob_fast, ob_plain)
    assert info_fast == info_plain
    actions = np.random.RandomState(0).randint(4, size=500)
    games = 0
    for action in actions:
        (ob_fast, *rest_fast), (ob_plain, *rest_plain) = fast.step(action), plain.step(action)
        np.testing.assert_array_equal(ob_fast, ob_plain)
        assert rest_fast == rest_plain
        if rest_fast[1]:
            games += 1
            np.testing.assert_array_equal(fast.reset()[0], plain.reset()[0])
    assert games >= 1


# ClipRewardEnv, WarpFrame, ScaledFloatFrame, FrameStack


def test_clipped_rewards_are_signs():
    rewards = [7.5, -200, 0, np.float32(0.1), np.int64(-1)]
    env = ClipRewardEnv(ScriptedGame([Frame(), *(Frame(reward=r) for r in rewards)]))
    env.reset()
    clipped = [env.step(0)[1] for _ in rewards]
    assert clipped == [1.0, -1.0, 0.0, 1.0, -1.0]
    assert all(type(reward) is float for reward in clipped)


def test_warp_weighs_red_green_and_blue():
    env = WarpFrame(ScriptedGame())
    assert env.observation_space == spaces.Box(0, 255, (84, 84, 1), np.uint8)
    for rgb, expected in [((255, 0, 0), 76), ((0, 255, 0), 150), ((0, 0, 255), 29)]:
        frame = env.observation(np.full((210, 160, 3), rgb, np.uint8))
        assert frame.dtype == np.uint8
        np.testing.assert_array_equal(frame, np.full((84, 84, 1), expected))  # .299, .587, .114


def test_warp_averages_areas_and_keeps_colours_if_asked():
    screen = np.zeros((4, 6, 3), np.uint8)
    screen[:2, :3] = (60, 120, 240)
    screen[0, 0] = (0, 0, 0)
    env = WarpFrame(ScriptedGame(), width=2, height=2, grayscale=False)
    assert env.observation_space == spaces.Box(0, 255, (2, 2, 3), np.uint8)
    # Each result pixel is the mean of 2 rows by 3 columns: five sixths of the colour.
    expected = np.zeros((2, 2, 3))
    expected[0, 0] = (50, 100, 200)
    np.testing.assert_array_equal(env.observation(screen), expected)
    wide = WarpFrame(ScriptedGame(), width=3, height=2)
    assert wide.observation(screen).shape == (2, 3, 1)


def test_scaled_frames_go_from_0_to_1():
    env = ScaledFloatFrame(ScriptedGame([Frame((0, 255)), Frame((51, 1))]))
    assert env.observation_space == spaces.Box(0.0, 1.0, (1, 2, 3), np.float32)
    ob, _ = env.reset()
    assert ob.dtype == np.float32
    np.testing.assert_array_equal(ob[0, :, 0], [0.0, 1.0])
    np.testing.assert_array_equal(env.step(0)[0][0, :, 0], np.float32([51, 1]) / np.float32(255))


def test_stack_holds_the_newest_frame_last_and_gives_arrays_of_its_own():
    env = FrameStack(ScriptedGame(running_game(5)), 3)
    assert env.observation_space == spaces.Box(0, 255, (1, 2, 9), np.uint8)
    obs = [env.reset()[0], *(env.step(0)[0] for _ in range(4))]
    # Left pixel, one colour of each stacked frame.
    assert [ob[0, 0, ::3].tolist() for ob in obs] == [
        [0, 0, 0],
        [0, 0, 1],
        [0, 1, 2],
        [1, 2, 3],
        [2, 3, 4],
    ]
    for ob in obs:
        assert ob.flags.c_contiguous and ob.flags.writeable and ob.dtype == np.uint8
        ob[...] = 0  # a caller's doing, without effect on what comes
    assert env.step(0)[0][0, 1, ::3].tolist() == [103, 104, 105]
    assert env.reset()[0][0, 1, ::3].tolist() == [100, 100, 100]
    with pytest.raises(ValueError, match="at least 1, got 0"):
        FrameStack(ScriptedGame(), 0)


# The chain


def test_chain_order():
    fired, plain = ScriptedGame(), ScriptedGame(meanings=("NOOP", "UP", "DOWN"))
    full = wrap_deepmind(fired, frame_stack=True, scale=True)
    assert wrappers(full) == [
        *(FrameStack, ClipRewardEnv, ScaledFloatFrame, WarpFrame, FireResetEnv, EpisodicLifeEnv),
        ScriptedGame,
    ]
    assert full.observation_space == spaces.Box(0.0, 1.0, (84, 84, 4), np.float32)
    assert wrappers(wrap_deepmind(plain)) == [
        *(ClipRewardEnv, WarpFrame, EpisodicLifeEnv, ScriptedGame)
    ]
    bare = wrap_deepmind(plain, episode_life=False, clip_rewards=False)
    assert wrappers(bare) == [WarpFrame, ScriptedGame]
    assert bare.observation_space == spaces.Box(0, 255, (84, 84, 1), np.uint8)
    atari = wrappers(make_atari("PongNoFrameskip-v4", max_episode_steps=10))
    assert atari[:3] == [gym.wrappers.TimeLimit, MaxAndSkipEnv, NoopResetEnv]


@pytest.mark.parametrize(
    "env_id", ["ALE/Pong-v5", "Pong-v4", "PongDeterministic-v0", "Pong-ram-v4"]
)
def test_make_atari_refuses_environments_that_skip_frames(env_id):
    with pytest.raises(ValueError, match=f"got '{env_id}'; use 'PongNoFrameskip-v4'"):
        make_atari(env_id)


@pytest.mark.parametrize("game, frames", [("Pong", 400_000), ("SpaceInvaders", 300_000)])
def test_frame_limit_is_gyms(game, frames):
    env = make_atari(f"{game}NoFrameskip-v4")
    assert env.unwrapped.ale.getInt("max_num_frames_per_episode") == frames
    env.reset(seed=0)  # loads the game anew
    assert env.unwrapped.ale.getInt("max_num_frames_per_episode") == frames


def test_time_limit_counts_timesteps_and_ends_the_game():
    env = wrap_deepmind(make_atari("BreakoutNoFrameskip-v4", max_episode_steps=6))
    env.reset(seed=0)  # FIRE and action 2 are steps too
    assert [env.step(0)[2:4] for _ in range(4)] == [(False, False)] * 3 + [(False, True)]
    assert find(env, EpisodicLifeEnv).was_real_done is True
    env.reset()
    assert env.step(0)[2:4] == (False, False)


def test_seed_reaches_the_emulator():
    def play(seed):
        env = wrap_deepmind(make_atari("PongNoFrameskip-v0"))  # its actions stick at random
        obs = [env.reset(seed=seed)[0], *(env.step(t % 6)[0] for t in range(60))]
        return env.unwrapped.ale.getEpisodeFrameNumber(), [zlib.crc32(ob) for ob in obs]

    with pytest.warns(DeprecationWarning, match="PongNoFrameskip-v0 is out of date"):
        runs = [play(seed) for seed in (4, 4, 5)]
    assert runs[0] == runs[1]
    assert runs[0][1] != runs[2][1]


def test_noops_before_an_atari_game_are_those_of_its_seed():
    env = make_atari("PongNoFrameskip-v4")
    env.reset(seed=4)
    noops = env.unwrapped.ale.getEpisodeFrameNumber()
    env.unwrapped.reset(seed=4)
    assert noops == env.unwrapped.np_random.integers(1, 31)


def test_render_shows_the_screen():
    env = make_atari("PongNoFrameskip-v4")
    env.reset(seed=0)
    ob, *_ = env.step(0)
    assert env.render().shape == ob.shape == (210, 160, 3)


@pytest.mark.parametrize("game", ["Pong", "Breakout"])
def test_frames_rewards_and_lives_are_those_of_baselines(game):
    golden = np.load(GOLDEN / f"atari_{game.lower()}.npz")
    kept = dict(zip(golden["kept_steps"].tolist(), golden["kept_frames"], strict=True))
    env = wrap_deepmind(make_atari(f"{game}NoFrameskip-v4"), clip_rewards=False, frame_stack=True)
    find(env, NoopResetEnv).override_num_noops = int(golden["noops"])
    ob, _ = env.reset(seed=int(golden["seed"]))
    np.testing.assert_array_equal(ob, kept[0])
    assert zlib.crc32(ob) == golden["frame_crc32"][0]
    for t, action in enumerate(golden["actions"]):
        ob, reward, terminated, truncated, _ = env.step(int(action))
        lives = env.unwrapped.ale.lives()
        expected = (golden["reward"][t], golden["done"][t], golden["lives"][t])
        assert (reward, terminated or truncated, lives) == expected, f"action {t}"
        if terminated or truncated:
            ob, _ = env.reset()
        if t + 1 in kept:
            np.testing.assert_array_equal(ob, kept[t + 1])
        assert zlib.crc32(ob) == golden["frame_crc32"][t + 1], f"frame after {t + 1} actions"


def test_monitor_inside_the_chain_sees_whole_games_and_raw_rewards():
    golden = np.load(GOLDEN / "atari_breakout.npz")
    monitor = Monitor(make_atari("BreakoutNoFrameskip-v4"), None)
    env = wrap_deepmind(monitor, clip_rewards=True)
    find(env, NoopResetEnv).override_num_noops = int(golden["noops"])
    env.reset(seed=int(golden["seed"]))
    games, game_return, lost_lives = [], 0.0, 0
    for t, action in enumerate(golden["actions"]):
        _, _, terminated, truncated, info = env.step(int(action))
        game_return += golden["reward"][t]
        if not (terminated or truncated):
            continue
        if find(env, EpisodicLifeEnv).was_real_done:
            games.append(game_return)
            assert info["episode"]["r"] == game_return
            # Beside the learner's steps: FIRE and action 2 in each of its episodes, and a no-op
            # after each life lost.
            expected_steps = t + 1 + 2 * (len(games) + lost_lives) + lost_lives
            assert sum(monitor.get_episode_lengths()) == expected_steps
            game_return = 0.0
        else:
            lost_lives += 1
            assert "episode" not in info
        env.reset()
    assert monitor.get_episode_rewards() == games
    assert (len(games), sum(games), lost_lives) == (6, 6.0, 24)


def test_importing_loads_neither_emulator_nor_opencv_nor_pandas():
    code = (
        "import sys, common.atari_wrappers, common.monitor\n"
        "loaded = {'ale_py', 'cv2', 'pandas'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    root = Path(__file__).parent.parent
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)
