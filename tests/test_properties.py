"""Random command lines and random environments: no hang, and no failure without a named cause.

The examples are the same in every run. HYPOTHESIS_EXAMPLES multiplies their number.
"""

import contextlib
import io
import os
import re

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import run_atari
import run_mujoco
from common import cmd_util

FACTOR = int(os.environ.get("HYPOTHESIS_EXAMPLES", "1"))
SIZES = [pytest.param(1, id="few"), pytest.param(10, id="many", marks=pytest.mark.slow)]


def few(examples):
    return settings(
        max_examples=examples * FACTOR, derandomize=True, deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def call(function, *args):
    """Return exit code (None if it did not exit), stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            function(*args)
            code = None
        except SystemExit as leave:
            code = leave.code
    return code, out.getvalue(), err.getvalue()


# ---- Command lines ------------------------------------------------------------------------------

NUMBERS = st.one_of(
    st.sampled_from(
        ["0", "-1", "1", "7", "1e6", "0.5", "1e400", "nan", "-inf", "0x10", "1_0", "١"]
    ),
    st.integers().map(str),
    st.floats().map(str),
)
WORDS = st.one_of(
    st.sampled_from(["", "-", "--", "=", "linear", "constant", "paper", "humanoid", "mujoco", "csv",
                     "CartPole-v1", "Hopper-v4", "cpu", "tpu", ".", "a\nb", "--env", "%s", "{}"]),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12),
)  # fmt: skip


def command_lines(parser):
    """Return a strategy: lists of flags, some of them spelled wrongly, with values of all kinds."""
    names = [name for name in parser._option_string_actions if name not in ("-h", "--help")]
    flags = st.one_of(
        st.sampled_from(names),
        st.sampled_from(names).map(lambda name: name.replace("-", "_").replace("__", "--")),
        st.sampled_from(names).map(lambda name: name[:-1]),
        WORDS,
    )
    values = st.one_of(NUMBERS, WORDS)
    pairs = st.tuples(flags, values)
    one = st.one_of(pairs, flags.map(lambda flag: [flag]), pairs.map(lambda pair: ["=".join(pair)]))
    return st.lists(one, max_size=6).map(lambda parts: [word for part in parts for word in part])


@pytest.mark.parametrize("script", [run_mujoco, run_atari], ids=["mujoco", "atari"])
def test_any_command_line_is_understood_or_refused_in_one_line(script, tmp_path):
    @few(120)
    @given(command_lines(script.arg_parser()))
    def check(argv):
        code, _, err = call(cmd_util.parse_args, script.arg_parser(), script.PRESETS, argv)
        assert code in (None, 2) or (code == 0 and {"-h", "--help"} & set(argv))
        assert err.count("\n") == (code == 2), err
        assert os.listdir(tmp_path) == []

    check()


TINY = {
    "--timesteps-per-actorbatch": st.integers(-1, 40),
    "--optim-batchsize": st.integers(-1, 40),
    "--optim-epochs": st.integers(0, 3),
    "--optim-stepsize": st.sampled_from([0, 1e-300, 1e-3, 1.0, 1e30, 1e300, "nan"]),
    "--adam-epsilon": st.sampled_from([0, 1e-300, 1e-5, 1e30]),
    "--clip-param": st.sampled_from([0, 1e-9, 0.2, 5, 1e300]),
    "--entcoeff": st.sampled_from([-1, 0, 0.01, 1e30, 1e300]),
    "--gamma": st.floats(-0.1, 1.1),
    "--lam": st.floats(-0.1, 1.1),
    "--schedule": st.sampled_from(["constant", "linear", "cosine"]),
    "--hid-size": st.integers(0, 5),
    "--num-hid-layers": st.integers(0, 3),
    "--reward-scale": st.sampled_from([0, 1e-300, 1, 1e30, 1e300]),
    "--save-interval": st.integers(-1, 3),
    "--keep": st.integers(0, 2),
    "--seed": st.sampled_from([-1, 0, 2**32 - 1, 2**32]),
    "--threads": st.integers(0, 1),
}


def check_outcome(function, *args):
    """Return whether it trained; else check that the failure says where and why."""
    try:
        code, _, err = call(function, *args)
    except Exception as error:
        notes = " ".join(getattr(error, "__notes__", []))
        assert re.search(r"in iteration \d+( on rank 0)?\b", notes), (error, notes)
        assert str(error)
        return error
    assert code in (None, 2), err
    assert err.count("\n") == (code == 2), err
    assert code is None or "error: " in err
    return code


@pytest.mark.parametrize("factor", SIZES)
def test_any_settings_train_or_are_refused(factor, tmp_path):
    seen = set()

    @few(25 * factor)
    @given(
        st.fixed_dictionaries({}, optional=TINY),
        st.sampled_from(["--max-iters 2", "--num-timesteps 60"]),
    )
    def check(chosen, limit):
        argv = ["--env", "CartPole-v1", "--timesteps-per-actorbatch", "16", "--optim-batchsize",
                "8", "--schedule", "constant", "--log-path", str(tmp_path / "run"),
                "--log-format", "csv", *limit.split()]  # fmt: skip
        for flag, value in chosen.items():
            argv += [f"{flag}={value}"]
        outcome = check_outcome(run_mujoco.main, argv)
        seen.add(outcome if outcome in (None, 2) else type(outcome).__name__)

    check()
    # The warning, an error here, is of Adam's second moment where float32 cannot hold it
    assert {None, 2} <= seen <= {
        None, 2, "FloatingPointError", "CollectiveError", "RuntimeWarning",
    }  # fmt: skip


# ---- Environments -------------------------------------------------------------------------------


class InjectedError(Exception):
    """What the environments below raise."""


def boxes(dtypes):
    return st.builds(
        lambda shape, dtype, bound: spaces.Box(
            *((0, 255) if dtype == np.uint8 else (-bound, bound)), shape, dtype
        ),
        st.sampled_from([(), (1,), (3,), (2, 3), (0,), (4, 4, 1)]),
        st.sampled_from(dtypes),
        st.sampled_from([1, 100]),
    )


SMALL = st.integers(1, 4)
DISCRETE = st.one_of(
    st.builds(lambda n, start: spaces.Discrete(n, start=start), SMALL, st.integers(-2, 2)),
    st.lists(SMALL, min_size=1, max_size=3).map(spaces.MultiDiscrete),
    SMALL.map(spaces.MultiBinary),
)
OBSERVATIONS = st.one_of(
    boxes([np.float32, np.float64, np.uint8, np.int32, np.int64]),
    DISCRETE,
    st.dictionaries(st.sampled_from("abc"), st.one_of(DISCRETE, boxes([np.float32])), min_size=1)
    .map(spaces.Dict),
)  # fmt: skip
ACTIONS = st.one_of(DISCRETE, boxes([np.float32, np.float64, np.int32]))
FAULTS = {
    "none": lambda ob, reward: (ob, reward),
    "raise": None,
    "nan reward": lambda ob, reward: (ob, np.nan),
    "infinite reward": lambda ob, reward: (ob, -np.inf),
    "huge reward": lambda ob, reward: (ob, 1e300),
    "no reward": lambda ob, reward: (ob, None),
    "nan observation": lambda ob, reward: (spoilt(ob, np.nan), reward),
    "infinite observation": lambda ob, reward: (spoilt(ob, np.inf), reward),
    "wrong shape": lambda ob, reward: (np.zeros((5, 5)), reward),
    "no observation": lambda ob, reward: (None, reward),
}


def spoilt(ob, value):
    """Return an observation with a component of `value`, where it has floats; else as it is."""
    if isinstance(ob, np.ndarray) and ob.dtype.kind == "f" and ob.size:
        ob = ob.copy()
        ob.flat[-1] = value
    return ob


class AnyEnv(gym.Env):
    """Observes samples of a space; a fault happens once, at step `when` of all."""

    def __init__(self, ob_space, ac_space, lengths, truncate, fault, when):
        self.observation_space, self.action_space = ob_space, ac_space
        self.lengths, self.truncate, self.fault, self.when = lengths, truncate, fault, when
        self.episodes = self.steps = self.left = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.left = self.lengths[self.episodes % len(self.lengths)]
        self.episodes += 1
        return self.observation_space.sample(), {}

    def step(self, action):
        if not isinstance(self.action_space, spaces.Box):  # a Gaussian knows no bounds
            assert self.action_space.contains(action), action
        assert np.shape(action) == self.action_space.shape
        self.left -= 1
        ob, reward = self.observation_space.sample(), 1.0
        if self.steps == self.when:
            if self.fault == "raise":
                raise InjectedError("the robot fell off the table")
            ob, reward = FAULTS[self.fault](ob, reward)
        self.steps += 1
        over = self.left == 0
        return ob, reward, over and not self.truncate, over and self.truncate, {}


@pytest.mark.parametrize("factor", SIZES)
def test_any_environment_trains_or_fails_with_a_cause(factor, tmp_path):
    seen = {}

    @few(60 * factor)
    @given(
        OBSERVATIONS, ACTIONS,
        st.lists(st.sampled_from([1, 2, 5, 16, 40, 1000]), min_size=1, max_size=3), st.booleans(),
        st.sampled_from(list(FAULTS)), st.integers(0, 40), st.booleans(),
    )  # fmt: skip
    def check(ob_space, ac_space, lengths, truncate, fault, when, bootstrap):
        gym.register(
            "toy/any-v0", lambda: AnyEnv(ob_space, ac_space, lengths, truncate, fault, when)
        )
        argv = ["--env", "toy/any-v0", "--max-iters", "2", "--timesteps-per-actorbatch", "16",
                "--optim-batchsize", "8", "--optim-epochs", "1", "--schedule", "constant",
                "--seed", "1", "--hid-size", "4", "--log-path", str(tmp_path / "run"),
                "--log-format", "csv", *["--bootstrap-truncated"] * bootstrap]  # fmt: skip
        try:
            outcome = check_outcome(run_mujoco.main, argv)
        finally:
            del gym.registry["toy/any-v0"]
        seen.setdefault(fault, set()).add(outcome if outcome in (None, 2) else type(outcome))
        happens = outcome != 2 and when < 32
        if fault == "none" or not happens:
            assert outcome in (None, 2)
        elif fault == "raise":
            assert isinstance(outcome, InjectedError)
        elif "reward" in fault:
            assert isinstance(outcome, (ArithmeticError, TypeError, RuntimeError)), outcome

    check()
    assert {None, 2, FloatingPointError, InjectedError} <= set.union(*seen.values())
    assert seen["none"] == {None, 2}
