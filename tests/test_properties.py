"""Random command lines and random environments: no hang, and no failure without a named cause.

The examples are the same in every run. HYPOTHESIS_EXAMPLES multiplies their number.
"""

import contextlib
import functools
import io
import math
import os
import random
import re
from fractions import Fraction
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import run_atari
import run_mujoco
from common import cmd_util, logger
from common.monitor import Monitor
from ppo1 import pposgd_simple
from ppo1.mlp_policy import MlpPolicy

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


class Step(NamedTuple):
    """What an environment's step returns."""

    ob: Any
    reward: Any = 1.0
    terminated: Any = False
    truncated: Any = False
    info: Any = {}


class Lazy:
    """An observation that becomes an array when somebody asks for one."""

    def __init__(self, ob):
        self.ob = ob

    def __array__(self, dtype=None, copy=None):
        return np.array(self.ob, dtype)


def observes(change):
    return lambda step: step._replace(ob=change(np.asarray(step.ob)))


def spoilt(value):
    """Return a fault: an observation of floats has a component of `value`; others stay."""

    def spoil(ob):
        if ob.dtype.kind == "f" and ob.size:
            ob = ob.astype(np.float64)
            ob.flat[-1] = value
        return ob[()]

    return observes(spoil)


def pays(reward):
    return lambda step: step._replace(reward=reward)


def ends(wrap):
    return lambda step: step._replace(
        terminated=wrap(step.terminated), truncated=wrap(step.truncated)
    )


def raises(error):
    def fail(step):
        raise error

    return fail


RAISED = "the robot fell off the table"
NO_NUMBERS = "an observation that is no array of numbers at step"
NO_REWARD = "reward .*, which is not one finite number"
NO_FLAG = "which is neither true nor false"
# By name: a change of what one step returns, and what training then ends with; None: it trains,
# and all that is stored is right.
FAULTS = {
    "none": (lambda step: step, None),
    "observation: nan": (spoilt(np.nan), r"component \[.*\] = nan at step \d+"),
    "observation: -inf": (spoilt(-np.inf), r"component \[.*\] = -inf at step \d+"),
    "observation: 1e39": (spoilt(1e39), r"component \[.*\] = 1e\+39 at step \d+"),
    "observation: wrong shape": (observes(lambda ob: np.zeros((5, 5))), r"of shape \(5, 5\), but"),
    "observation: one axis more": (observes(lambda ob: ob[None]), r"of shape \(1,.*\), but"),
    "observation: None": (observes(lambda ob: None), NO_NUMBERS),
    "observation: ragged": (observes(lambda ob: [[1.0], [1.0, 2.0]]), NO_NUMBERS),
    "observation: text": (observes(lambda ob: "left"), NO_NUMBERS),
    "observation: dict": (observes(lambda ob: {"image": ob}), NO_NUMBERS),
    "observation: objects": (observes(lambda ob: ob.astype(object)), NO_NUMBERS),
    "observation: complex": (observes(lambda ob: ob + 1j), NO_NUMBERS),
    "observation: whole numbers": (observes(lambda ob: ob.astype(np.int64)), None),
    "observation: bools": (observes(lambda ob: ob.astype(bool)), None),
    "observation: half floats": (observes(lambda ob: ob.astype(np.float16)), None),
    "observation: long floats": (observes(lambda ob: ob.astype(np.longdouble)), None),
    "observation: other byte order": (
        observes(lambda ob: ob.astype(ob.dtype.newbyteorder())),
        None,
    ),
    "observation: list": (observes(lambda ob: ob.tolist()), None),
    "observation: array-like": (observes(Lazy), None),
    "observation: tensor": (observes(torch.tensor), None),
    "reward: nan": (pays(np.nan), "reward nan at step"),
    "reward: -inf": (pays(-np.inf), "reward -inf at step"),
    "reward: 1e300": (pays(1e300), r"reward 1e\+300 at step"),
    "reward: None": (pays(None), NO_REWARD),
    "reward: text": (pays("much"), NO_REWARD),
    "reward: two": (pays(np.ones(2)), NO_REWARD),
    "reward: none": (pays([]), NO_REWARD),
    "reward: dict": (pays({"task": 1.0}), NO_REWARD),
    "reward: complex": (pays(1j), NO_REWARD),
    "reward: array of one": (pays(np.array([2.5])), None),
    "reward: array of none": (pays(np.array(2.5)), None),
    "reward: nested list": (pays([[2.5]]), None),
    "reward: bool": (pays(np.bool_(True)), None),
    "reward: whole": (pays(np.int8(-3)), None),
    "reward: fraction": (pays(Fraction(5, 2)), None),
    "reward: tensor": (pays(torch.tensor([2.5])), None),
    "end: array": (ends(lambda end: np.array([end])), None),
    "end: list": (ends(lambda end: [end]), None),
    "end: whole number": (ends(int), None),
    "end: None": (ends(lambda end: end or None), None),
    "end: text": (ends(lambda end: "no"), NO_FLAG),
    "end: two": (ends(lambda end: np.array([end, end])), NO_FLAG),
    "end: nan": (ends(lambda end: np.nan), NO_FLAG),
    "info: None": (lambda step: step._replace(info=None), None),
    "info: list": (lambda step: step._replace(info=[]), None),
    "info: taken key": (lambda step: step._replace(info={"episode": 3, 4: object()}), None),
    "step: old": (
        lambda step: (*step[:3], {}),
        r"step\(\) returned 4 values, as in gym before 0.26",
    ),
    "step: 6 values": (lambda step: (*step, {}), r"step\(\) returned more values"),
    "step: None": (lambda step: None, r"step\(\) returned NoneType"),
    "step: raises": (raises(InjectedError(RAISED)), RAISED),
    "step: KeyError": (raises(KeyError("gravity")), "gravity"),
    "step: StopIteration": (raises(StopIteration("no more data")), "StopIteration"),
}


class AnyEnv(gym.Env):
    """Observes samples of a space; a fault happens once, at step `when` of all.

    Attributes:
        played: observation, reward, whether an episode began, of each step, as they are stored.
    """

    def __init__(self, ob_space, ac_space, lengths, truncate, fault, when):
        self.observation_space, self.action_space = ob_space, ac_space
        self.lengths, self.truncate, self.fault, self.when = lengths, truncate, fault, when
        self.episodes = self.steps = self.left = 0
        self.played = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.left = self.lengths[self.episodes % len(self.lengths)]
        self.episodes += 1
        self.ob, self.is_new = self.observation_space.sample(), True
        return self.ob, {}

    def step(self, action):
        if not isinstance(self.action_space, spaces.Box):  # a Gaussian knows no bounds
            assert self.action_space.contains(action), action
        assert np.shape(action) == self.action_space.shape
        self.left -= 1
        over = self.left == 0
        step = Step(self.observation_space.sample(), 1.0, over and not self.truncate,
                    over and self.truncate, {})  # fmt: skip
        ob, is_new, when = self.ob, self.is_new, self.steps
        self.steps += 1
        if when == self.when:
            self.was_last = over
            step = FAULTS[self.fault][0](step)
        if step is not None:
            self.ob, self.is_new = step[0], False
            self.played.append((ob, step[1], is_new))
        return step

    def matters(self, bootstrap):
        """Return whether the fault has happened where somebody looks at it."""
        if self.steps <= self.when or self.fault == "none":
            return False
        space = self.observation_space
        has_floats = space.dtype is None or (space.dtype.kind == "f" and math.prod(space.shape))
        if self.fault in FLOATS_ONLY and not has_floats:
            return False
        is_used = not self.was_last or (self.truncate and bootstrap)
        return not self.fault.startswith("observation") or is_used


COMMON = [
    "none", "step: raises", "reward: nan", "reward: -inf", "reward: 1e300", "reward: None",
    "observation: nan", "observation: -inf", "observation: wrong shape", "observation: None",
]  # fmt: skip
FLOATS_ONLY = {"observation: nan", "observation: -inf", "observation: 1e39"}


@contextlib.contextmanager
def kept_segments():
    """Yield a list that gets copies of the segments that `learn` takes."""
    segments = []
    original = pposgd_simple.add_vtarg_and_adv

    def keep(seg, *args):
        segments.append({key: seg[key].copy() for key in ("ob", "rew", "new")})
        original(seg, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pposgd_simple, "add_vtarg_and_adv", keep)
        yield segments


def check_stored(segments, env, bootstrap):
    """Compare what was stored with what the environment gave, as numbers of that dtype."""
    stored = {key: np.concatenate([seg[key] for seg in segments]) for key in segments[0]}
    obs, rewards, news = zip(*env.played[: len(stored["rew"])], strict=True)
    if isinstance(env.observation_space, spaces.Box):
        for got, given in zip(stored["ob"], obs, strict=True):
            np.testing.assert_array_equal(got, np.asarray(given).astype(got.dtype))
    want = [float(np.asarray(reward, np.float64).item()) for reward in rewards]
    assert bootstrap or stored["rew"].tolist() == want  # to which values are added, if so
    assert stored["new"].tolist() == list(news)


@pytest.mark.parametrize("factor", SIZES)
def test_any_environment_trains_or_fails_with_a_cause(factor, tmp_path):
    seen = {}

    @few(60 * factor)
    @given(
        OBSERVATIONS, ACTIONS,
        st.lists(st.sampled_from([1, 2, 5, 16, 40, 1000]), min_size=1, max_size=3), st.booleans(),
        st.sampled_from(COMMON), st.integers(0, 40), st.booleans(),
    )  # fmt: skip
    def check(ob_space, ac_space, lengths, truncate, fault, when, bootstrap):
        outcome = train_by_script(tmp_path, AnyEnv(ob_space, ac_space, lengths, truncate, fault,
                                                   when), bootstrap)  # fmt: skip
        seen.setdefault(fault, set()).add(outcome if outcome in (None, 2) else type(outcome))

    check()
    assert {None, 2, FloatingPointError, InjectedError} <= set.union(*seen.values())
    assert seen["none"] == {None, 2}


def train_by_script(folder, env, bootstrap):
    """Train on `env` by the script's `main` and check the outcome; return it."""
    made = []

    def make():
        made.append(AnyEnv(env.observation_space, env.action_space, env.lengths, env.truncate,
                           env.fault, env.when))  # fmt: skip
        return made[-1]

    gym.register("toy/any-v0", make)
    argv = ["--env", "toy/any-v0", "--max-iters", "2", "--timesteps-per-actorbatch", "16",
            "--optim-batchsize", "8", "--optim-epochs", "1", "--schedule", "constant",
            "--seed", "1", "--hid-size", "4", "--log-path", str(folder / "run"),
            "--log-format", "csv", *["--bootstrap-truncated"] * bootstrap]  # fmt: skip
    try:
        with kept_segments() as segments:
            outcome = check_outcome(run_mujoco.main, argv)
    finally:
        del gym.registry["toy/any-v0"]
    if outcome != 2:
        check_fault(outcome, made[-1], bootstrap, segments)
    return outcome


def train_by_learn(env, bootstrap):
    """Train on `env` by `learn`, and check the outcome."""
    settings = dict(
        timesteps_per_actorbatch=16, clip_param=0.2, entcoeff=0.0, optim_epochs=1,
        optim_stepsize=1e-3, optim_batchsize=8, gamma=0.99, lam=0.95, max_iters=2,
        bootstrap_truncated=bootstrap,
    )  # fmt: skip

    def train():
        logger.set_level(logger.DISABLED)
        env.reset(seed=1)
        pposgd_simple.learn(env, lambda *args: MlpPolicy(*args, 4, 1), **settings)

    with kept_segments() as segments:
        outcome = check_outcome(train)
    check_fault(outcome, env.unwrapped, bootstrap, segments)


def check_fault(outcome, env, bootstrap, segments):
    """Check that a fault was named, or did no harm."""
    is_flattened = not isinstance(env.observation_space, spaces.Box)
    if is_flattened and env.fault.startswith("observation") and env.steps > env.when:
        return  # Gymnasium's FlattenObservation has errors of its own
    message = FAULTS[env.fault][1] if env.matters(bootstrap) else None
    if message is None:
        assert outcome is None, (env.fault, outcome)
        check_stored(segments, env, bootstrap)
    else:
        assert re.search(message, str(outcome)), (env.fault, outcome)


WRAPPERS = [
    lambda env: env,
    lambda env: Monitor(env, None, allow_early_resets=True),
    lambda env: gym.wrappers.TimeLimit(env, 7),
    lambda env: Monitor(gym.wrappers.TimeLimit(env, 1000), None, allow_early_resets=True),
]


def random_environment(rng, fault):
    bound = rng.choice([1, 100])
    dtype = rng.choice([np.float32, np.float64] * 2 + [np.uint8, np.int32])
    low = 0 if dtype == np.uint8 else -bound
    ob_space = spaces.Box(low, bound, rng.choice([(), (1,), (3,), (2, 3)]), dtype)
    ac_space = rng.choice([spaces.Discrete(2), spaces.Box(-1, 1, (2,), np.float32),
                           spaces.Box(-1, 1, (1,), np.float64), spaces.MultiBinary(2)])  # fmt: skip
    lengths = rng.choices([1, 2, 5, 16, 1000], k=2)
    return AnyEnv(ob_space, ac_space, lengths, rng.random() < 0.5, fault, rng.randrange(31))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_or_does_no_harm(fault):
    rng = random.Random(fault)
    train_by_learn(rng.choice(WRAPPERS)(random_environment(rng, fault)), rng.random() < 0.5)


@pytest.mark.faults
@pytest.mark.parametrize("number", range(100))
def test_100_random_faults_are_named_or_do_no_harm(number, tmp_path):
    rng = random.Random(number)
    fault = list(FAULTS)[number % len(FAULTS)]
    for train in (train_by_learn, functools.partial(train_by_script, tmp_path)):
        train(random_environment(rng, fault), rng.random() < 0.5)
