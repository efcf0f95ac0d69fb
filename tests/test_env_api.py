import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from common import env_api
from common.monitor import Monitor
from tests.envs import Countdown
from tests.test_pposgd_simple import run


@pytest.mark.parametrize(
    ("said", "first", "want"),
    [
        (np.float32, np.zeros(2, np.int64), np.float32),  # zeros written as whole numbers
        (np.float64, np.zeros(2, bool), np.float64),
        (np.float32, np.zeros(2, np.float64), np.float64),
        (np.float64, np.zeros(2, np.float32), np.float32),
        (np.float64, np.zeros(2, ">f4"), np.float32),
        (np.float32, np.zeros(2, np.longdouble), np.float32),
        (np.float32, [0, 0], np.float32),
        (np.uint8, np.zeros(2, np.uint8), np.uint8),
        (np.uint8, np.zeros(2, np.int64), np.uint8),
        (np.uint8, np.zeros(2, np.float32), np.uint8),
        (np.int64, np.zeros(2, np.int8), np.int64),
        (np.int32, np.zeros(2, np.int64), np.int64),
    ],
)
def test_the_dtype_of_observations_is_that_of_the_first_of_the_spaces_kind(said, first, want):
    space = spaces.Box(0, 100, (2,), said)
    assert env_api.observation_dtype(first, space) == want


@pytest.mark.parametrize(
    ("value", "dtype", "want"),
    [
        ([1, 2], np.float32, [1, 2]),
        (np.array([1.0, 2.0]), np.uint8, [1, 2]),  # whole, though floats
        (np.array([0.1, 2.0]), np.float32, np.array([0.1, 2], np.float32)),
        (np.array([np.nan, 2.0]), np.float32, [np.nan, 2]),  # which the rollout names later
        (np.array([1.5, 2.0]), np.int64, r"float64 with component \[0\] = 1.5 at step 7.*int64"),
        (np.array([1, 256]), np.uint8, r"int64 with component \[1\] = 256 at step 7.*uint8"),
        (np.array([1, -1]), np.uint8, r"component \[1\] = -1 at"),
        (np.array([1, np.nan]), np.int64, r"component \[1\] = nan at"),
        (np.array([1e39, 1]), np.float32, r"component \[0\] = 1e\+39 at"),
        (np.zeros(3), np.float32, r"shape \(3,\), but the space says \(2,\), at step 7"),
    ],
)
def test_values_are_held_or_refused(value, dtype, want):
    def hold():
        return env_api.hold(value, np.dtype(dtype), (2,), step=7, source="an observation")

    if isinstance(want, str):
        with pytest.raises(ValueError, match=want):
            hold()
    else:
        held = hold()
        assert held.dtype == dtype
        np.testing.assert_array_equal(held, want)


class OldSteps(Countdown):
    """Has gym's API from before 0.26, half of it."""

    def step(self, action):
        ob, reward, terminated, _, info = super().step(action)
        return ob, reward, terminated, info


class Old(OldSteps):
    def reset(self, **kwargs):
        return super().reset(**kwargs)[0]


class OldPair(Old):
    """Its observation of two components unpacks as observation and info would."""

    def __init__(self, *lengths):
        super().__init__(*lengths)
        self.observation_space = spaces.Box(-1, 1, (2,))

    def reset(self, **kwargs):
        return super().reset(**kwargs).repeat(2)


class OldKeywords(Old):
    def reset(self):
        return super().reset()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda env: env,
        lambda env: Monitor(env, None, allow_early_resets=True),
        lambda env: gym.wrappers.TimeLimit(env, 100),
        lambda env: gym.wrappers.FlattenObservation(env),
    ],
    ids=["plain", "monitor", "limit", "flatten"],
)
@pytest.mark.parametrize("old", [Old, OldSteps])
def test_the_old_api_is_named(old, wrap):
    with pytest.raises(ValueError, match=r"as in gym before 0\.26: Gymnasium's .*shimmy") as error:
        run(wrap(old(5)), max_iters=1)
    assert f"{old.__name__}.{'step' if old is OldSteps else 'reset'}() returned" in str(error.value)


def test_the_old_api_is_named_where_it_would_pass():
    with pytest.raises(ValueError, match="OldPair.reset.. returned an observation alone"):
        run(OldPair(5), max_iters=1)
    with pytest.raises(ValueError, match=r"OldKeywords.reset\(\) takes no seed, as in gym before"):
        env_api.reset(gym.wrappers.TimeLimit(OldKeywords(5), 10), seed=1)


class Unpacks(Countdown):
    """Has a bug of its own, which looks alike."""

    def step(self, action):
        a, b, c, d, e = super().step(action)[:4]


def test_a_bug_within_the_environment_is_not_taken_for_the_old_api():
    with pytest.raises(ValueError, match=r"^not enough values to unpack \(expected 5, got 4\)"):
        run(Unpacks(5), max_iters=1)


class OldBox(spaces.Box):
    """Stands for gym.spaces.Box."""


OldBox.__module__ = "gym.spaces.box"


def test_old_spaces_are_named_before_the_policy_is_made():
    with pytest.raises(ValueError, match=r"action_space Box.* belongs to the old package gym"):
        run(Countdown(5, action_space=OldBox(-1, 1, (2,))), policy_fn=None, max_iters=1)


class Several(Countdown):
    num_envs = 3


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (lambda: gym.make_vec("CartPole-v1", num_envs=2, vectorization_mode="sync"), 2),
        (lambda: gym.make_vec("CartPole-v1", num_envs=1), 1),
        (lambda: gym.wrappers.TimeLimit(Several(5), 10), 3),
    ],
)
def test_a_vector_environment_is_named_before_the_policy_is_made(make, count):
    with pytest.raises(ValueError, match=f"is a vector environment of {count}: .*single"):
        run(make(), policy_fn=None, max_iters=1)


@pytest.mark.parametrize("info", [None, [], {"episode": 3}])
def test_a_monitor_takes_what_means_the_same(info):
    class Odd(Countdown):
        def step(self, action):
            ob, _, terminated, _, _ = super().step(action)
            return ob, [np.float32(2.5)], [terminated], np.array([False]), info

    env = Monitor(Odd(4, 2), None)
    _, (row,) = run(env, max_iters=1)
    assert env.get_episode_lengths() == [4, 2] * 5  # of 32 steps
    assert env.get_episode_rewards() == [10.0, 5.0] * 5
    assert row["EpTrueRewMean"] == row["EpRewMean"] == 7.5


class Strict(Countdown):
    def step(self, action):
        assert self.action_space.contains(action), "that is too much"
        return super().step(action)


def test_actions_outside_are_counted_and_noted(capsys):
    box = spaces.Box(-1, 1, (2,))
    acs = np.array([[0, 0.5], [1, -1], [1.1, 0], [3, -3]], np.float32)
    assert env_api.share_outside(acs, box) == 0.5
    assert env_api.share_outside(np.array([3, 4]), spaces.Discrete(2)) == 0
    with pytest.raises(AssertionError, match="too much") as error:
        run(Strict(5, action_space=box), max_iters=2, compile=False)
    note, where = error.value.__notes__
    assert note.startswith("the action, array([")
    assert "lies outside Box(-1.0, 1.0, (2,), float32)" in note
    assert "--clip-actions" in note
    assert where == "in iteration 0 on rank 0"
    capsys.readouterr()
    run(gym.wrappers.ClipAction(Strict(5, action_space=box)), max_iters=1)
    assert "outside" not in capsys.readouterr().out
    run(Countdown(5, action_space=box), max_iters=2)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "outside" in line]
    share = float(
        line.removeprefix("WARNING: ").split(
            " % of the first actions lie outside the action space"
        )[0]
    )
    assert 35 < share < 75  # a standard normal's two components: 1 - 0.683**2 = 53 % of 32
