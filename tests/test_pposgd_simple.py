import math
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from mpi4py import MPI

from common import env_api, logger
from common.checkpoint import Checkpointer, from_plain, to_plain
from common.distributions import CategoricalPdType, DiagGaussianPdType
from common.monitor import Monitor
from common.mpi_running_mean_std import RunningMeanStd
from common.mpi_util import CollectiveError
from common.torch_util import FlatLayout
from ppo1 import pposgd_simple, update
from ppo1.cnn_policy import CnnPolicy
from ppo1.learner_state import learner_state
from ppo1.mlp_policy import MlpPolicy
from ppo1.policy import network_of
from ppo1.pposgd_simple import (
    add_vtarg_and_adv,
    learn,
    ppo_losses,
    traj_segment_generator,
)
from tests.conftest import assert_close, load_golden
from tests.envs import Countdown
from tests.ranks import ROOT, on_ranks

TRACES = [("hopper", 1), ("cartpole", 2), ("halfcheetah", 4), ("pong", 1)]
SPACES = {
    "hopper": (gym.spaces.Box(-np.inf, np.inf, (11,), np.float64), gym.spaces.Box(-1, 1, (3,))),
    "halfcheetah": (
        gym.spaces.Box(-np.inf, np.inf, (17,), np.float64),
        gym.spaces.Box(-1, 1, (6,)),
    ),
    "cartpole": (gym.spaces.Box(-np.inf, np.inf, (4,)), gym.spaces.Discrete(2)),
    "pong": (gym.spaces.Box(0, 255, (84, 84, 1), np.uint8), gym.spaces.Discrete(6)),
}


# ---- Whole iterations against baselines ---------------------------------------------------------


class TraceEndedError(Exception):
    pass


def replay(comm, name, compiled):
    """Run `learn` on a recorded trace's segments; return what it did, iteration by iteration."""
    trace = load_golden(f"iteration_{name}.rank{comm.Get_rank()}of{comm.Get_size()}")
    hp = {key.removeprefix("hp:"): x[()] for key, x in trace.items() if key.startswith("hp:")}
    iterations = 1 + max(int(key.split("/")[0]) for key in trace if "/seg:" in key)
    ob_space, ac_space = SPACES[name]
    history = [{} for _ in range(iterations + 1)]
    rows = []

    def policy_fn(scope, ob_space, ac_space):
        if name == "pong":
            return CnnPolicy(scope, ob_space, ac_space, kind="small")
        return MlpPolicy(scope, ob_space, ac_space, hid_size=hp["hid"], num_hid_layers=2)

    def recorded_segments(pi, env, horizon, stochastic):
        assert horizon == hp["horizon"]
        assert stochastic
        for i in range(iterations):
            prefix = f"{i}/seg:"
            seg = {key.removeprefix(prefix): x for key, x in trace.items() if prefix in key}
            history[i]["want_adv"] = seg.pop("adv"), seg.pop("tdlamret")
            seg |= {name: seg[name].tolist() for name in ("ep_rets", "ep_lens")}
            history[i]["seg"] = seg
            yield seg

    def callback(local, _):
        pi, adam, i = local["pi"], local["adam"], local["iters_so_far"]
        if i == 0 and name == "pong":
            check_and_set_convolutions(pi, trace)
        history[i]["state"] = {
            **{f"theta/{key}": x for key, x in pi.variables().items() if "obfilter" not in key},
            **{f"obfilter/{key}": x for key, x in pi.variables().items() if "obfilter" in key},
            **in_tensorflow_layout(pi, "adam_m", adam.m),
            **in_tensorflow_layout(pi, "adam_v", adam.v),
            "adam_t": adam.t,
            "np_key": np.random.get_state()[1],
            "np_pos": np.random.get_state()[2],
        }
        if i > 0:
            history[i - 1]["log"] = dumped[-1] if comm.Get_rank() == 0 else None
            history[i - 1]["epoch_losses"] = np.array(rows[-hp["epochs"] - 1 :])
        if i == iterations:
            raise TraceEndedError

    dumped = []
    original_fmt_row, original_dump = pposgd_simple.fmt_row, logger.dump_tabular

    def fmt_row(width, row, **options):
        if not isinstance(row[0], str):
            rows.append(np.array(row))
        return original_fmt_row(width, row, **options)

    def dump_tabular():
        dumped.append(dict(logger.getkvs()))
        return original_dump()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pposgd_simple, "traj_segment_generator", recorded_segments)
        patch.setattr(pposgd_simple, "fmt_row", fmt_row)
        patch.setattr(logger, "dump_tabular", dump_tabular)
        np.random.seed(hp["seed"])
        with pytest.raises(TraceEndedError):
            learn(
                SimpleNamespace(observation_space=ob_space, action_space=ac_space),
                policy_fn,
                timesteps_per_actorbatch=int(hp["horizon"]),
                clip_param=hp["clip"],
                entcoeff=hp["ent"],
                optim_epochs=int(hp["epochs"]),
                optim_stepsize=hp["lr"],
                optim_batchsize=int(hp["batch"]),
                gamma=hp["gamma"],
                lam=hp["lam"],
                max_timesteps=100_000 if name == "pong" else 10_000,
                schedule=str(hp["schedule"]),
                callback=callback,
                compile=compiled,
                comm=comm,
            )
    return history


def in_tensorflow_layout(pi, prefix, vector):
    """Return a flat vector's parts by variable, as baselines would flatten them."""
    named = dict(pi.named_parameters())
    parts = FlatLayout(list(named.values())).views(torch.from_numpy(vector))
    return {
        f"{prefix}/{name}": (part.permute(2, 3, 1, 0) if name.endswith("/W") else part)
        .numpy()
        .copy()
        for name, part in zip(named, parts, strict=True)
    }


def check_and_set_convolutions(pi, trace):
    """TensorFlow drew the convolutions; the dense kernels must already be equal."""
    theta, start, values = trace["0/before:theta"], 0, {}
    for name, variable in pi.variables().items():
        values[name] = theta[start : start + variable.size].reshape(variable.shape)
        start += variable.size
        if not name.endswith("/W"):
            np.testing.assert_array_equal(variable, values[name], err_msg=name)
    pi.load_variables(values)


def flat(state, prefix):
    return np.concatenate([x.ravel() for key, x in state.items() if key.startswith(f"{prefix}/")])


def check_state(state, want):
    """Compare with a trace's `before` or `after`; parameters to 1e-6 absolute."""
    for name in ("theta", "adam_m", "adam_v"):
        vector = flat(state, name)
        if name in want:
            # v holds squares of gradients up to some thousands: relative to the largest
            atol = 1e-6 if name == "theta" else 1e-6 * max(1, np.abs(want[name]).max())
            np.testing.assert_allclose(vector, want[name], rtol=0, atol=atol)
        else:
            np.testing.assert_allclose(vector[::997], want[f"{name}:sample"], rtol=0, atol=1e-6)
            np.testing.assert_allclose(np.linalg.norm(vector), want[f"{name}:norm"], rtol=1e-5)
    assert state["adam_t"] == want["adam_t"]
    np.testing.assert_array_equal(state["np_key"], want["np_key"])
    assert state["np_pos"] == want["np_pos"]
    if "rms_sum" in want:
        # float64 sums, in whatever order the ranks' parts are added
        np.testing.assert_allclose(
            state["obfilter/obfilter/runningsum"], want["rms_sum"], rtol=1e-12, atol=1e-12
        )
        np.testing.assert_allclose(
            state["obfilter/obfilter/runningsumsq"], want["rms_sumsq"], rtol=1e-12
        )
        assert state["obfilter/obfilter/count"] == want["rms_count"]


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("name", "size", "compiled"),
    [
        *(pytest.param(*trace, False, id=f"{trace[0]}-eager") for trace in TRACES),
        pytest.param("hopper", 1, True, id="hopper-compiled"),
        *(
            pytest.param(*trace, True, id=f"{trace[0]}-compiled", marks=pytest.mark.slow)
            for trace in TRACES[1:]
        ),
    ],
)
def test_whole_iterations_equal_baselines(name, size, compiled):
    results = on_ranks(size, replay, name, compiled)
    for rank, history in enumerate(results):
        trace = load_golden(f"iteration_{name}.rank{rank}of{size}")
        for i, entry in enumerate(history[:-1]):
            part = {
                key.removeprefix(f"{i}/"): x for key, x in trace.items() if key.startswith(f"{i}/")
            }
            for when, state in (("before", entry["state"]), ("after", history[i + 1]["state"])):
                check_state(state, {key.removeprefix(f"{when}:"): x for key, x in part.items()
                                    if key.startswith(f"{when}:")})  # fmt: skip
            assert_close(entry["seg"]["adv"], entry["want_adv"][0])
            assert_close(entry["seg"]["tdlamret"], entry["want_adv"][1])
            want_losses = part["log:epoch_losses"]
            np.testing.assert_allclose(entry["epoch_losses"], want_losses, rtol=1e-5, atol=1e-6)
            if rank == 0:
                columns = [key.removeprefix("log:") for key in part if key.startswith("log:")]
                for column in set(columns) - {"epoch_losses"}:
                    np.testing.assert_allclose(
                        entry["log"][column], part[f"log:{column}"], rtol=1e-5, atol=1e-6,
                        err_msg=column,
                    )  # fmt: skip
    for history in results[1:]:
        np.testing.assert_array_equal(
            flat(history[-1]["state"], "theta"), flat(results[0][-1]["state"], "theta")
        )


# ---- Segments -----------------------------------------------------------------------------------


class Scripted:
    """Acts 0, 1, 2, ... (modulo 2), values at 10, 11, 12, ...; notes the observations it saw."""

    recurrent = False
    pdtype = CategoricalPdType(2)

    def __init__(self):
        self.seen = []

    def act(self, stochastic, ob):
        if stochastic:
            self.seen.append(ob.item())
        n = len(self.seen) - 1
        return n % 2, np.float32(10 + n)


def take(pi, env, horizon, count, **options):
    segments = []
    for seg in traj_segment_generator(pi, env, horizon, stochastic=True, **options):
        segments.append({key: np.array(x) for key, x in seg.items()})
        if len(segments) == count:
            return segments
    raise AssertionError("the generator ended")


def test_segments_by_hand():
    """Episodes of 3, 1 and 2 steps, cut into segments of 4: one ends with a segment's last step."""
    first, second = take(Scripted(), Countdown(3, 1, 2), horizon=4, count=2)
    assert first["ob"].tolist() == [[3], [2], [1], [1]]
    assert first["ob"].dtype == np.float64
    assert first["new"].tolist() == [1, 0, 0, 1]
    assert first["rew"].tolist() == [1, 1, 1, 1]
    assert first["vpred"].tolist() == [10, 11, 12, 13]
    assert first["ac"].tolist() == [0, 1, 0, 1]
    assert first["prevac"].tolist()[1:] == [0, 1, 0]
    assert (first["ep_rets"].tolist(), first["ep_lens"].tolist()) == ([3, 1], [3, 1])
    assert first["nextvpred"] == 0
    assert second["ob"].tolist() == [[2], [1], [3], [2]]
    assert second["new"].tolist() == [1, 0, 1, 0]
    assert second["vpred"].tolist() == [14, 15, 16, 17]
    assert second["prevac"].tolist() == [1, 0, 1, 0]
    assert (second["ep_rets"].tolist(), second["ep_lens"].tolist()) == ([2], [2])
    assert second["nextvpred"] == 18
    assert {x.dtype for x in (first["rew"], first["vpred"])} == {np.dtype(np.float32)}
    assert first["new"].dtype == np.int32


def test_the_next_segments_first_action_precedes_the_yield():
    pi = Scripted()
    segments = traj_segment_generator(pi, Countdown(9), 4, stochastic=True)
    next(segments)
    assert len(pi.seen) == 5


@pytest.mark.parametrize("horizon", [1, 2])
def test_episodes_of_one_step(horizon):
    for seg in take(Scripted(), Countdown(1), horizon, count=3):
        assert seg["new"].tolist() == [1] * horizon
        assert seg["nextvpred"] == 0
        assert seg["ep_lens"].tolist() == [1] * horizon


def test_a_truncated_episode_is_an_end_unless_bootstrapped():
    plain, _ = take(Scripted(), Countdown(2, truncate=True), 3, 2)
    assert plain["rew"].tolist() == [1, 1, 1]
    pi = Scripted()
    valued, _ = take(pi, Countdown(2, truncate=True), 3, 2, bootstrap_gamma=0.5)
    # After the second step the scripted value is still that of the second action, 11
    assert valued["rew"].tolist() == [1, 1 + 0.5 * 11, 1]
    assert valued["ep_rets"].tolist() == [2]
    ended, _ = take(Scripted(), Countdown(2), 3, 2, bootstrap_gamma=0.5)
    assert ended["rew"].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        (lambda ob, r: (ob, math.nan), FloatingPointError, "reward nan at step 5"),
        (lambda ob, r: (ob, math.inf), FloatingPointError, "reward inf at step 5"),
        (lambda ob, r: (ob * math.nan, r), FloatingPointError, r"\[0\] = nan at step 6"),
        (lambda ob, r: (np.zeros(2), r), ValueError, r"shape \(2,\), but the space says \(1,\)"),
        (lambda ob, r: (0.0, r), ValueError, r"shape \(\), but the space says \(1,\)"),
    ],
)
def test_faulty_environments_are_named(fault, error, message):
    with pytest.raises(error, match=message):
        take(Scripted(), Countdown(100, faults={5: fault}), 10, 1)


@pytest.mark.parametrize(
    ("ob_space", "ob", "want"),
    [
        # Finite as float64, and not as float32; the value does not show it, as it is clipped
        (gym.spaces.Box(-np.inf, np.inf, (2,), np.float64), [0, 1e39], r"\[1\] = 1e\+39 at step 4"),
        (gym.spaces.Box(-np.inf, np.inf, (2,), np.float32), [0, 1e39], r"\[1\] = 1e\+39 at step 4"),
    ],
)
def test_an_observation_beyond_float32_is_the_environments(ob_space, ob, want):
    env = Countdown(100, faults={3: lambda *_: (np.array(ob), 1.0)})
    env.observation_space = ob_space
    env.reset = lambda **_: (np.zeros(2, ob_space.dtype), {})
    step = env.step
    env.step = lambda action: (np.resize((result := step(action))[0], 2), *result[1:])
    with pytest.raises((FloatingPointError, ValueError), match=want):
        run(env, max_iters=1)


def test_statistics_that_overflow_are_the_environments():
    """The square of 1e25 overflows float32: std would be NaN, and with it the gradient."""
    env = Countdown(100, faults={3: lambda ob, reward: (ob * 0 + 1e25, reward)})
    with pytest.raises(CollectiveError, match=r"component \[0\] reached 1e\+25 on rank 0"):
        run(env, max_iters=1)


def test_a_value_behind_a_time_limit_is_of_a_sound_observation():
    for fault, message in (
        (lambda ob, reward: (ob * math.nan, reward), r"\[0\] = nan at step 2"),
        (lambda ob, reward: (np.zeros(2), reward), r"shape \(2,\), but the space says \(1,\)"),
    ):
        with pytest.raises((FloatingPointError, ValueError), match=message):
            take(Scripted(), Countdown(2, truncate=True, faults={1: fault}), 4, 1,
                 bootstrap_gamma=0.5)  # fmt: skip


class Whole(Countdown):
    """Begins at whole numbers, written as such, and goes on with fractions."""

    def reset(self, **kwargs):
        return super().reset(**kwargs)[0].astype(np.int64), {}

    def step(self, action):
        ob, *rest = super().step(action)
        return ob + 0.5, *rest


def test_observations_are_stored_as_they_are_where_the_first_is_whole():
    (seg,) = take(Scripted(), Whole(3), 5, 1)
    assert seg["ob"].tolist() == [[3], [2.5], [1.5], [3], [2.5]]
    assert seg["ob"].dtype == np.float64
    images = Whole(3)
    images.observation_space = gym.spaces.Box(0, 255, (1,), np.uint8)
    message = r"observation of float64 with component \[0\] = 2.5 at step 1, which uint8 cannot"
    with pytest.raises(ValueError, match=message):
        take(Scripted(), images, 5, 1)


@pytest.mark.parametrize(
    "ac_space",
    [
        gym.spaces.Box(-1, 1, (2,), np.float64),
        gym.spaces.Box(-1, 1, (2,), np.float16),
        gym.spaces.MultiBinary(2),  # whose samples are int8
        gym.spaces.Discrete(2),
    ],
)
def test_actions_are_stored_as_the_policy_gives_them_before_and_after_a_resume(ac_space):
    env = Countdown(5, action_space=ac_space)
    pi = mlp("pi", env.observation_space, ac_space)
    segments = traj_segment_generator(pi, env, 4, stochastic=True)
    seg = next(segments)
    dtype = np.float32 if isinstance(ac_space, gym.spaces.Box) else np.int64
    assert seg["ac"].dtype == seg["prevac"].dtype == dtype
    carry = from_plain(to_plain(seg["carry"]))
    state = pi.rng.bit_generator.state
    steps, left = env.steps, env.left
    want = {key: np.array(value) for key, value in next(segments).items() if key != "carry"}
    pi.rng.bit_generator.state = state
    env.steps, env.left = steps, left
    resumed = next(traj_segment_generator(pi, env, 4, stochastic=True, carry=carry))
    for key, value in want.items():
        np.testing.assert_array_equal(resumed[key], value, err_msg=key)
        assert np.asarray(resumed[key]).dtype == value.dtype or key == "nextvpred"


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
@pytest.mark.parametrize(
    "ac_space",
    [
        gym.spaces.Box(-1, 1, (2,), np.float64),
        gym.spaces.MultiBinary(2),
        gym.spaces.MultiDiscrete([2, 2]),
        gym.spaces.Discrete(2),
    ],
)
def test_what_is_as_it_should_be_passes_the_quick_checks(ac_space, dtype, monkeypatch):
    """`hold` takes as long as a step of CartPole."""
    env = Countdown(5, action_space=ac_space)
    space = gym.spaces.Box(0, 5, (1,), dtype)
    env = gym.wrappers.TransformObservation(env, lambda ob: ob.astype(dtype), space)
    pi = mlp("pi", env.observation_space, ac_space)
    monkeypatch.setattr(env_api, "hold", None)
    (seg,) = take(pi, env, 20, 1)
    assert seg["ob"].dtype == dtype


class Fractional(Scripted):
    def act(self, stochastic, ob):
        ac, vpred = super().act(stochastic, ob)
        return float(ac) if len(self.seen) < 3 else 0.5, vpred


def test_a_policys_action_that_cannot_be_held_is_refused():
    message = r"the policy returned an action of float64 with component \[\] = 0.5 at step 2, which"
    with pytest.raises(ValueError, match=message):
        take(Fractional(), Countdown(100), 5, 1)


def test_what_the_next_segment_begins_with_is_plain_whatever_the_environment_gives():
    class Lazy:
        def __init__(self, ob):
            self.ob = ob

        def __array__(self, dtype=None, copy=None):
            return np.array(self.ob, dtype)

    fault = {step: lambda ob, reward: (Lazy(ob), reward) for step in range(8)}
    (seg,) = take(Scripted(), Countdown(100, faults=fault), 4, 1)
    assert seg["ob"].tolist() == [[100], [99], [98], [97]]
    carry = from_plain(to_plain(seg["carry"].item()))
    assert carry["ob"].tolist() == [96]
    assert carry["ob"].dtype == np.float64
    assert (carry["ac"], carry["prevac"], carry["vpred"]) == (0, 1, 14)


def test_what_no_save_could_hold_ends_training_before_it_begins(tmp_path):
    def policy_fn(*args):
        pi = mlp(*args)
        pi.rng = np.random.RandomState(0)
        return pi

    checkpointer = Checkpointer(
        tmp_path, interval=50, keep=1, collect=learner_state, header={},
        comm=MPI.COMM_SELF,
    )  # fmt: skip
    try:
        with pytest.raises(TypeError, match="hold the policy's rng, a RandomState: need") as error:
            run(policy_fn=policy_fn, max_iters=1, callback=checkpointer)
    finally:
        checkpointer.close()
    assert error.value.__notes__ == ["in iteration 0 on rank 0"]


# ---- Advantages ---------------------------------------------------------------------------------


def random_segment(steps=40):
    rng = np.random.RandomState(1)
    new = (rng.rand(steps) < 0.2).astype(np.int32)
    return {
        "rew": rng.randn(steps).astype(np.float32),
        "vpred": rng.randn(steps).astype(np.float32),
        "new": new,
        "nextvpred": rng.randn(),
    }


def direct_advantages(seg, gamma, lam):
    """Sum the deltas of each step up to the end of its episode, in float64, one by one."""
    steps = len(seg["rew"])
    vpred = np.append(seg["vpred"].astype(np.float64), seg["nextvpred"])
    alive = np.append(1 - seg["new"][1:], 1)
    delta = seg["rew"].astype(np.float64) + gamma * vpred[1:] * alive - vpred[:-1]
    adv = np.zeros(steps)
    for t in range(steps):
        weight = 1.0
        for k in range(t, steps):
            adv[t] += weight * delta[k]
            weight *= gamma * lam * alive[k]
    return adv


@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("lam", [0.0, 0.95, 1.0])
def test_advantages_equal_the_direct_sum(gamma, lam):
    seg = random_segment()
    add_vtarg_and_adv(seg, gamma, lam)
    # Both run in float64; one rounding to float32 is left
    np.testing.assert_allclose(seg["adv"], direct_advantages(seg, gamma, lam), rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(seg["tdlamret"], seg["adv"] + seg["vpred"])
    assert seg["adv"].dtype == seg["tdlamret"].dtype == np.float32


def test_advantages_by_hand():
    """Two steps of an episode, then one of another, with gamma 1/2 and lam 1."""
    seg = {
        "rew": np.array([1, 2, 4], np.float32), "vpred": np.array([8, 4, 2], np.float32),
        "new": np.array([1, 0, 1], np.int32), "nextvpred": 6.0,
    }  # fmt: skip
    add_vtarg_and_adv(seg, gamma=0.5, lam=1.0)
    # delta = 1 + 2 - 8, 2 - 4 (the episode ends), 4 + 3 - 2
    assert seg["adv"].tolist() == [-5 + 0.5 * -2, -2, 5]
    assert seg["tdlamret"].tolist() == [2, 2, 7]


# ---- Losses -------------------------------------------------------------------------------------


CLIP = torch.tensor(0.2, dtype=torch.float64)


def gaussian_batch(rows=16):
    torch.manual_seed(0)
    pdtype = DiagGaussianPdType(2)
    old = torch.randn(rows, 4) * 0.3
    ac = torch.randn(rows, 2)
    batch = {
        "ac": ac, "atarg": torch.randn(rows), "vtarg": torch.randn(rows),
        "oldpdparam": old, "oldlogp": pdtype.pdfromflat(old).logp(ac),
    }  # fmt: skip
    return pdtype, old + 0.3 * torch.randn(rows, 4), torch.randn(rows), batch


def test_losses_equal_a_second_method():
    """NumPy in float64, densities by their textbook formulas."""
    pdtype, flat, vpred, batch = gaussian_batch()
    total, parts = ppo_losses(pdtype, flat, vpred, batch, CLIP, entcoeff=0.01)

    def moments(flat):
        return flat[:, :2].double().numpy(), np.exp(flat[:, 2:].double().numpy())

    def density(flat):
        mean, std = moments(flat)
        z = (batch["ac"].double().numpy() - mean) / std
        return np.prod(np.exp(-(z**2) / 2) / (std * np.sqrt(2 * np.pi)), axis=1)

    (mean, std), (oldmean, oldstd) = moments(flat), moments(batch["oldpdparam"])
    ratio = density(flat) / density(batch["oldpdparam"])
    adv = batch["atarg"].double().numpy()
    assert (abs(ratio - 1) > 0.2).any()  # some are clipped
    surr = -np.minimum(ratio * adv, np.clip(ratio, 0.8, 1.2) * adv).mean()
    entropy = np.log(std * np.sqrt(2 * np.pi * np.e)).sum(axis=1).mean()
    value = ((vpred - batch["vtarg"]).double().numpy() ** 2).mean()
    kl = np.log(std / oldstd) + (oldstd**2 + (oldmean - mean) ** 2) / (2 * std**2) - 0.5
    want = [surr, -0.01 * entropy, value, kl.sum(axis=1).mean(), entropy]
    np.testing.assert_allclose(parts, want, rtol=1e-5, atol=1e-6)  # float32
    np.testing.assert_allclose(total, sum(want[:3]), rtol=1e-5)


def test_gradient_equals_finite_differences():
    """Of the whole loss in float64, with respect to parameters and values."""
    pdtype, flat, vpred, batch = gaussian_batch(rows=4)
    batch = {key: x.double() for key, x in batch.items()}

    def total(flat, vpred):
        return ppo_losses(pdtype, flat, vpred, batch, CLIP, 0.01)[0]

    inputs = flat.double().requires_grad_(), vpred.double().requires_grad_()
    assert torch.autograd.gradcheck(total, inputs)


@pytest.mark.parametrize(("ratio", "advantage", "flows"), [
    (1.3, 1.0, False), (1.3, -1.0, True), (0.7, 1.0, True), (0.7, -1.0, False), (1.1, 1.0, True),
])  # fmt: skip
def test_clipping_stops_the_gradient_only_where_it_would_go_on_improving(ratio, advantage, flows):
    pdtype = CategoricalPdType(2)
    flat = torch.zeros(1, 2, requires_grad=True)
    batch = {
        "ac": torch.tensor([0]), "atarg": torch.tensor([advantage]), "vtarg": torch.zeros(1),
        "oldpdparam": torch.zeros(1, 2), "oldlogp": torch.tensor([math.log(0.5 / ratio)]),
    }  # fmt: skip
    total, _ = ppo_losses(pdtype, flat, torch.zeros(1), batch, CLIP, entcoeff=0.0)
    (gradient,) = torch.autograd.grad(total, flat)
    assert bool(gradient.any()) == flows


# ---- learn --------------------------------------------------------------------------------------

SETTINGS = dict(
    timesteps_per_actorbatch=32, clip_param=0.2, entcoeff=0.01, optim_epochs=2,
    optim_stepsize=1e-3, optim_batchsize=8, gamma=0.99, lam=0.95,
)  # fmt: skip


def mlp(name, ob_space, ac_space):
    return MlpPolicy(name, ob_space, ac_space, hid_size=8, num_hid_layers=1)


def run(env=None, policy_fn=mlp, **options):
    """Train; return the policy and what was logged after each iteration."""
    rows = []
    with pytest.MonkeyPatch.context() as patch:
        original = logger.dump_tabular
        patch.setattr(logger, "dump_tabular", lambda: rows.append(original()))
        settings = SETTINGS | {"comm": MPI.COMM_SELF} | options
        pi = learn(Countdown(5) if env is None else env, policy_fn, **settings)
    return pi, rows


LOCALS = [
    "pi", "env", "iters_so_far", "timesteps_so_far", "episodes_so_far", "lenbuffer", "rewbuffer",
]  # fmt: skip


def test_n_iterations_call_back_n_plus_1_times_with_the_names_kept():
    calls = []

    def callback(local, global_):
        assert global_["learn"] is learn
        calls.append([local[name] for name in LOCALS])

    env = Countdown(5)
    pi, _ = run(env, max_iters=3, callback=callback)
    assert [call[2] for call in calls] == [0, 1, 2, 3]
    assert all(call[0] is pi and call[1] is env for call in calls)
    assert [call[3] for call in calls] == [0, 30, 60, 95]  # steps of completed episodes of 5
    assert [call[4] for call in calls] == [0, 6, 12, 19]
    assert list(calls[-1][5]) == list(calls[-1][6]) == [5] * 19


@pytest.mark.slow
def test_a_users_script_is_typed(tmp_path):
    """To mypy --strict, `learn` returns what `policy_fn` does; the script is README's."""
    (readme,) = re.findall(
        r"## From Python\n\n```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL
    )
    typed = readme.replace(
        "def policy_fn(name, ob_space, ac_space):",
        "Space = gym.Space[Any]\n"
        "def policy_fn(name: str, ob_space: Space, ac_space: Space) -> MlpPolicy:",
    )
    assert typed != readme
    (tmp_path / "script.py").write_text(
        f"from typing import Any\n{typed}\nreveal_type(pi)\npi.load_variables({{}})\n"
    )
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\nfollow_imports = silent\n[mypy-torch.*]\nfollow_imports = skip\n"  # for speed
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "script.py"],
        cwd=tmp_path, env=os.environ | {"MYPYPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert 'Revealed type is "ppo1.mlp_policy.MlpPolicy"' in done.stdout, done.stdout
    assert "Success" in done.stdout, done.stdout


@pytest.mark.parametrize(
    ("limit", "iterations"),
    [
        ({"max_timesteps": 60}, 2),
        ({"max_timesteps": 61}, 3),
        ({"max_episodes": 13}, 3),
        ({"max_iters": 4}, 4),
        ({"max_seconds": 1e-9}, 0),
    ],
)
def test_limits(limit, iterations):
    assert len(run(**limit)[1]) == iterations


def test_logged_columns_and_their_values():
    _, rows = run(max_iters=2)
    columns = {
        "loss_pol_surr", "loss_pol_entpen", "loss_vf_loss", "loss_kl", "loss_ent",
        "ev_tdlam_before", "EpLenMean", "EpRewMean", "EpThisIter", "EpisodesSoFar",
        "TimestepsSoFar", "TimeElapsed", "TimestepsPerSec",
    }  # fmt: skip
    assert set(rows[0]) == columns
    assert rows[1]["EpRewMean"] == rows[1]["EpLenMean"] == 5
    assert (rows[1]["EpThisIter"], rows[1]["EpisodesSoFar"]) == (6, 12)
    _, rows = run(Monitor(Countdown(5), None), max_iters=1)
    assert set(rows[0]) == columns | {"EpTrueLenMean", "EpTrueRewMean"}


def test_means_over_no_episode_are_nan_without_a_warning():
    _, rows = run(Countdown(1000), max_iters=1)
    assert math.isnan(rows[0]["EpRewMean"])
    assert rows[0]["TimestepsSoFar"] == 0


def test_training_in_which_no_episode_ends_is_told_once(capsys):
    def warnings(env, **options):
        run(env, **options)
        lines = capsys.readouterr().out.splitlines()
        iterations = sum("Iteration" in line for line in lines)
        told = [i for i, line in enumerate(lines) if line.startswith("WARNING: no episode has")]
        assert all("--max-iters" in lines[i] and "--max-episode" in lines[i] for i in told)
        return iterations, [sum("Iteration" in line for line in lines[:i]) for i in told]

    tiny = {"timesteps_per_actorbatch": 4, "optim_epochs": 1, "optim_batchsize": 4}
    assert warnings(Countdown(10**9), max_iters=25, **tiny) == (25, [10])
    # An episode ends, and then none for ten iterations: but such episodes are nothing new
    assert warnings(Countdown(50), max_iters=25, **tiny) == (25, [10])
    assert warnings(Countdown(8, 60), max_iters=20, **tiny) == (20, [])
    assert warnings(Countdown(2, 10**9), max_iters=20, **tiny) == (20, [11])


def test_a_clock_that_stands_still_divides_nothing(monkeypatch):
    monkeypatch.setattr(pposgd_simple.time, "monotonic", lambda: 5.0)
    _, rows = run(max_iters=2)
    assert [row["TimeElapsed"] for row in rows] == [0, 0]
    assert math.isnan(rows[0]["TimestepsPerSec"])


def test_the_systems_clock_may_jump(monkeypatch):
    monkeypatch.setattr(pposgd_simple.time, "time", lambda: 1 / 0)
    _, rows = run(max_seconds=0.05)
    assert 0.05 <= rows[-1]["TimeElapsed"] < 60


@pytest.mark.parametrize(("threads", "within"), [(1, 1), (2, 2), (None, 3)])
def test_torchs_threads_are_set_for_the_call_and_put_back(threads, within):
    seen = []

    def look(local, _):
        seen.append(torch.get_num_threads())
        raise CustomError

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with pytest.raises(CustomError):
            run(max_iters=1, threads=threads, callback=look)
        assert (seen, torch.get_num_threads()) == ([within], 3)
    finally:
        torch.set_num_threads(before)


def stepsizes_and_clips(**options):
    steps, clips = [], []
    with pytest.MonkeyPatch.context() as patch:
        update, losses = pposgd_simple.MpiAdam.update, pposgd_simple.ppo_losses
        patch.setattr(
            pposgd_simple.MpiAdam, "update",
            lambda adam, g, stepsize: (steps.append(stepsize), update(adam, g, stepsize))[1],
        )  # fmt: skip
        patch.setattr(
            pposgd_simple,
            "ppo_losses",
            lambda *args: (clips.append(float(args[4])), losses(*args))[1],
        )
        run(**options)
    return sorted(set(steps), reverse=True), sorted(set(clips), reverse=True)


def test_schedules():
    """Episodes of 5 in segments of 32 steps: 30, 60 and 95 steps of the 100 are done."""
    left = [1.0, 0.7, 0.4, 0.05]
    steps, clips = stepsizes_and_clips(max_timesteps=100, schedule="linear")
    np.testing.assert_allclose(steps, [1e-3 * x for x in left], rtol=1e-12)
    assert clips == [0.2]
    steps, clips = stepsizes_and_clips(max_timesteps=100, clip_schedule="linear")
    assert steps == [1e-3]
    np.testing.assert_allclose(clips, [0.2 * x for x in left], rtol=1e-12)


def updates_at_each_iteration(**options):
    updates = []
    run(callback=lambda local, _: updates.append(local["adam"].t), **options)
    return updates


@pytest.mark.parametrize("batchsize", [None, 0, 32])
def test_no_batch_size_means_the_whole_segment(batchsize):
    assert updates_at_each_iteration(max_iters=2, optim_batchsize=batchsize) == [0, 2, 4]


def test_a_partial_batch_is_dropped():
    assert updates_at_each_iteration(max_iters=1, optim_batchsize=10) == [0, 6]


def test_equal_advantages_become_zeros():
    """A tenth cannot be written in binary, so std is not exactly 0; min and max are equal."""
    adv = np.full(30, 0.1, np.float32)
    assert adv.std() != 0
    pi = mlp("pi", *SPACES["cartpole"])
    seg = {
        "ob": np.zeros((30, 4), np.float32), "ac": np.zeros(30, np.int64), "adv": adv,
        "tdlamret": adv,
    }  # fmt: skip
    assert not pposgd_simple.prepare(pi, seg, network_of(pi))["atarg"].any()
    adv[0] = 0.2
    atarg = pposgd_simple.prepare(pi, seg, network_of(pi))["atarg"]
    np.testing.assert_allclose([atarg.mean(), atarg.std(correction=0)], [0, 1], atol=1e-5)


class Plain:
    """A policy of someone else's that keeps to the protocol: no nn.Module, no statistics."""

    recurrent = False

    def __init__(self, name, ob_space, ac_space):
        self.pdtype = CategoricalPdType(int(ac_space.n))
        self.logits = torch.nn.Parameter(torch.zeros(1, int(ac_space.n)))
        self.value = torch.nn.Parameter(torch.zeros(1))
        self.unused = torch.nn.Parameter(torch.ones(3))

    def get_trainable_variables(self):
        return [self.logits, self.value, self.unused]

    def pdparam_and_vpred(self, ob):
        return self.logits.expand(len(ob), -1), self.value.expand(len(ob))

    def act(self, stochastic, ob):
        with torch.no_grad():
            pd = self.pdtype.pdfromflat(self.logits)
            ac = pd.sample() if stochastic else pd.mode()
            return int(ac), float(self.value.detach())


class Bandit(Countdown):
    """Pays the action: 1 is right."""

    def step(self, action):
        ob, _, *rest = super().step(action)
        return ob, float(action), *rest


@pytest.mark.parametrize("policy_fn", [Plain, mlp])
def test_learns_a_bandit(policy_fn):
    pi, rows = run(Bandit(4), policy_fn, max_iters=30, optim_stepsize=1e-2, optim_epochs=4)
    assert rows[0]["EpRewMean"] < 3  # of 4: chance gives 2
    assert rows[-1]["EpRewMean"] > 3.7
    assert pi.act(False, np.array([1.0]))[0] == 1
    if policy_fn is Plain:
        assert pi.unused.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    "ac_space",
    [
        gym.spaces.Box(-1, 1, (3,), np.float32),
        gym.spaces.MultiDiscrete([2, 3]),
        gym.spaces.MultiBinary(3),
    ],
)
def test_every_kind_of_action_trains(ac_space):
    pi, rows = run(Countdown(5, action_space=ac_space), max_iters=2)
    assert all(np.isfinite(value) for key, value in rows[1].items() if "True" not in key)
    ac, _ = pi.act(True, np.array([1.0]))
    assert np.shape(ac) == ac_space.shape


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_iters": 0}, "exactly one of max_timesteps.*got none"),
        ({"max_timesteps": 10}, "exactly one of.*'max_timesteps': 10, 'max_iters': 1"),
        ({"max_iters": -1}, "above 0; got {'max_iters': -1}"),
        ({"schedule": "linear"}, "schedule must be 'constant' where max_timesteps is not given"),
        ({"clip_schedule": "linear"}, "clip_schedule must be 'constant'"),
        ({"schedule": "cosine"}, "schedule must be 'constant' or 'linear', got 'cosine'"),
        ({"timesteps_per_actorbatch": 0}, "timesteps_per_actorbatch must be a whole number"),
        ({"timesteps_per_actorbatch": 2.5}, "timesteps_per_actorbatch must be a whole number"),
        ({"optim_epochs": 0}, "optim_epochs must be"),
        ({"optim_batchsize": 33}, r"from 1 to timesteps_per_actorbatch \(32\).*got 33"),
        ({"optim_batchsize": -1}, "optim_batchsize must be from 1"),
        ({"clip_param": 0.0}, "clip_param must be a finite number above 0, got 0.0"),
        ({"optim_stepsize": math.nan}, "optim_stepsize must be a finite number above 0, got nan"),
        ({"optim_stepsize": math.inf}, "optim_stepsize must be a finite number above 0, got inf"),
        ({"adam_epsilon": -1.0}, "adam_epsilon must be a finite number above 0"),
        ({"entcoeff": -0.1}, "entcoeff must be a finite number of at least 0"),
        ({"gamma": 1.01}, r"gamma must be in \[0, 1\], got 1.01"),
        ({"lam": -0.5}, "lam must be in"),
        ({"gamma": "x"}, "gamma must be a number, got 'x'"),
        ({"optim_stepsize": None}, "optim_stepsize must be a number, got None"),
        ({"optim_epochs": 1.0}, "optim_epochs must be a whole number, got 1.0"),
        ({"optim_batchsize": 4.5}, "optim_batchsize must be a whole number, got 4.5"),
        ({"max_iters": "3"}, "max_iters must be a number, got '3'"),
        ({"threads": 0}, "threads must be a whole number above 0, got 0"),
    ],
)
def test_arguments_out_of_range_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        run(**({"max_iters": 1} | change))


class CustomError(Exception):
    pass


def raise_custom(*_):
    raise CustomError("the simulator broke")


def test_exceptions_pass_unchanged_with_a_note_on_where():
    with pytest.raises(CustomError) as environment:
        run(Countdown(5, faults={40: raise_custom}), max_iters=3)
    assert environment.value.__notes__ == ["in iteration 1 on rank 0"]
    with pytest.raises(CustomError) as callback:
        run(max_iters=3, callback=raise_custom)
    assert callback.value.__notes__ == ["in iteration 0 on rank 0"]


def test_a_loss_that_is_not_finite_stops_before_the_parameters_move():
    """Rewards of 1e30: their square overflows in the value loss, whose gradient alone would not."""
    thetas = []
    huge = {step: lambda ob, reward: (ob, 1e30) for step in range(40, 64)}
    with pytest.raises(CollectiveError, match="gradient is not finite at update 9") as error:
        run(
            Countdown(5, faults=huge), max_iters=3,
            callback=lambda local, _: thetas.append((local["adam"], local["adam"].getflat())),
        )  # fmt: skip
    assert error.value.__notes__ == ["in iteration 1"]
    adam, before = thetas[-1]
    np.testing.assert_array_equal(adam.getflat(), before)


# ---- Compiling ----------------------------------------------------------------------------------


def logged_lines(capsys):
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("broken", ["compiler", "policy"])
def test_what_cannot_be_compiled_trains_eagerly_after_one_line(broken, monkeypatch, capsys):
    if broken == "compiler":

        def no_compiler(*_):
            raise RuntimeError("No working C++ compiler found\nand a long trace")

        monkeypatch.setattr(update, "compile_function", no_compiler)
    policy_fn = mlp if broken == "compiler" else Plain
    pi, rows = run(policy_fn=policy_fn, max_iters=2, compile=True)
    begun, *lines = [line for line in logged_lines(capsys) if "ompil" in line]
    assert begun == "Compiling the update ..."
    reason = {
        "compiler": "No working C++ compiler found",
        "policy": "Plain is not a torch.nn.Module",
    }
    asked = "WARNING: cannot compile as asked. "
    assert lines == [f"{asked}Not compiling the update, which is slower: {reason[broken]}"]
    assert len(rows) == 2


@pytest.mark.parametrize("was, now", [(True, False), (False, True), (None, True), (True, True)])
def test_a_resume_says_whether_its_update_is_compiled_as_the_saved_one(
    was, now, monkeypatch, capsys
):
    monkeypatch.setattr(update.Update, "_compile_in_turn", lambda *_, was_asked: now)
    states = []

    def note(local, _):
        states.append({k: v for part in learner_state(local) for k, v in part.items()})

    run(max_iters=1, callback=note)
    state = {**states[0], "compiled": was}
    run(max_iters=1, callback=note, compile=True, state=state)
    assert states[-2]["compiled"] == was  # not known better yet
    assert states[-1]["compiled"] == now
    text = {True: "was compiled, this one's is not", False: "was not compiled, this one's is"}
    said = "not exactly what the run would have been" in (out := capsys.readouterr().out)
    assert said == (was not in (None, now))
    assert not said or text[was] in out


class PlainModule(torch.nn.Module, Plain):
    """The same policy as a module, without `preprocess`."""

    def __init__(self, *args):
        torch.nn.Module.__init__(self)
        Plain.__init__(self, *args)


def test_any_module_that_keeps_to_the_protocol_is_compiled(capsys):
    eager, _ = run(Bandit(4), PlainModule, max_iters=3, compile=False)
    np.random.seed(0)
    torch.manual_seed(0)
    compiled, _ = run(Bandit(4), PlainModule, max_iters=3, compile=True)
    lines = logged_lines(capsys)
    begun = lines.index("Compiling the update ...")
    assert re.fullmatch(
        r"Compiled the update in \d+\.\d s \(gradient and step in one, (anew|from the cache)\)",
        lines[begun + 1],
    )
    for got, want in zip(compiled.parameters(), eager.parameters(), strict=True):
        assert_close(got.detach(), want.detach())
    assert compiled.logits.any()


class WithStatistics(PlainModule):
    """One whose outputs depend on running statistics, which a compiled function would freeze."""

    def __init__(self, name, ob_space, ac_space):
        super().__init__(name, ob_space, ac_space)
        self.ob_rms = RunningMeanStd(shape=ob_space.shape, comm=MPI.COMM_SELF)

    def pdparam_and_vpred(self, ob):
        pdparam, vpred = super().pdparam_and_vpred(ob)
        return pdparam + torch.from_numpy(self.ob_rms.mean), vpred


def test_statistics_are_not_compiled_into_somebodys_policy(capsys):
    run(Bandit(4), WithStatistics, max_iters=1, compile=True)
    _, line = [line for line in logged_lines(capsys) if "ompil" in line]
    assert line.endswith("the statistics of WithStatistics would be frozen")


class Shifted(MlpPolicy):
    """Changes what the network gives, by the public method."""

    calls = 0

    def pdparam_and_vpred(self, ob):
        type(self).calls += 1
        pdparam, vpred = super().pdparam_and_vpred(ob)
        return pdparam, vpred + 1.0


def test_an_overridden_network_is_the_one_that_is_trained():
    run(policy_fn=lambda *args: Shifted(*args, 8, 1), max_iters=1)
    # 33 actions', the old policy's, 8 updates', and the evaluation's
    assert Shifted.calls == 33 + 1 + 8 + 1


def test_a_hook_that_comes_while_it_trains_changes_nothing():
    def trained(hook):
        np.random.seed(0)
        torch.manual_seed(0)

        def callback(local, _):
            if hook and local["iters_so_far"] == 1:
                local["pi"].register_forward_hook(lambda *_: None)

        pi, _ = run(max_iters=3, callback=callback)
        return pi.variables()

    # It acts through torch from then on, which rounds differently
    for name, want in trained(hook=False).items():
        np.testing.assert_allclose(trained(hook=True)[name], want, rtol=1e-4, atol=1e-5)


def test_statistics_use_the_communicator_given():
    pi, _ = run(max_iters=1, comm=MPI.COMM_SELF)
    assert pi.ob_rms.comm is MPI.COMM_SELF


def test_a_mean_too_large_for_its_spread_is_warned_of_once(capsys):
    class Level(Countdown):
        def reset(self, **kwargs):
            return super().reset(**kwargs)[0] + 1e6, {}

        def step(self, action):
            ob, *rest = super().step(action)
            return ob + 1e6, *rest

    run(Level(5), max_iters=2)
    run(Countdown(5), max_iters=1)
    (line,) = [line for line in logged_lines(capsys) if "its spread" in line]
    assert line.startswith(
        "WARNING: the mean of observation component 0 is over 1000 times its spread"
    )
    assert line.endswith("gymnasium.wrappers.TransformObservation")


def test_a_monitors_earlier_episodes_do_not_count():
    env = Monitor(Countdown(4), None, allow_early_resets=True)
    run(env, max_iters=1)
    _, (row,) = run(env, max_iters=1)
    assert row["EpTrueLenMean"] == row["EpTrueRewMean"] == 4
    lengths = []
    run(env, max_iters=1, callback=lambda local, _: lengths.append(len(local["truelenbuffer"])))
    assert lengths == [0, 8]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_iters": 1}, False),
        ({"max_iters": 1, "compile": True}, True),
        ({"max_timesteps": 32 * 25_000 / 8 - 1}, False),  # 8 updates in 32 steps
        ({"max_timesteps": 32 * 25_000 / 8 + 1}, True),
        ({"max_timesteps": 1e9, "compile": False}, False),
        ({"max_seconds": 60}, False),
        ({"max_seconds": 61}, True),
        ({"max_episodes": 10**9}, False),
    ],
)
def test_long_runs_compile_and_short_ones_do_not(options, expected, monkeypatch):
    compiled = []
    monkeypatch.setattr(
        update.Update, "_compile_in_turn", lambda *_, was_asked: compiled.append(True)
    )

    def end(local, _):
        if local["iters_so_far"] == 1:
            raise TraceEndedError

    with pytest.raises(TraceEndedError):
        run(callback=end, **options)
    assert bool(compiled) == expected


# ---- Several ranks ------------------------------------------------------------------------------


def train_on_rank(comm):
    np.random.seed(comm.Get_rank())
    torch.manual_seed(comm.Get_rank())
    pi, rows = run(Bandit(4 + comm.Get_rank()), comm=comm, max_iters=4)
    return pi.variables(), rows


@pytest.mark.mpi
@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_ranks_end_bit_equal_pool_their_episodes_and_repeat_themselves(size):
    results, again = on_ranks(size, train_on_rank), on_ranks(size, train_on_rank)
    for variables, _ in [*results, *again]:
        for name, value in variables.items():
            np.testing.assert_array_equal(value, results[0][0][name], err_msg=name)
    rows = results[0][1]
    lengths = [4, 5, 6][:size]
    finished = [[(32 * (i + 1)) // n - (32 * i) // n for n in lengths] for i in range(4)]
    assert [row["EpThisIter"] for row in rows] == [sum(counts) for counts in finished]
    steps = np.cumsum([np.dot(counts, lengths) for counts in finished])
    assert [row["TimestepsSoFar"] for row in rows] == steps.tolist()
    timed = {"TimeElapsed", "TimestepsPerSec"}
    for row, row_again in zip(rows, again[0][1], strict=True):
        np.testing.assert_equal(
            {key: row[key] for key in row.keys() - timed},
            {key: row_again[key] for key in row.keys() - timed},
        )


def disagree_on_rank(comm):
    messages = []
    factor = 1 + comm.Get_rank()
    for change in ({"optim_batchsize": 8 * factor}, {"optim_epochs": 2 * factor}):
        try:
            run(comm=comm, max_iters=2, **change)
        except ValueError as error:
            messages.append(str(error))
    run(comm=comm, max_seconds=0.2)  # each rank's clock would end it at another iteration
    return messages


@pytest.mark.mpi
def test_ranks_with_different_numbers_of_updates_are_told_and_clocks_do_not_part_them():
    for messages in on_ranks(2, disagree_on_rank):
        assert "got [8, 4] updates an iteration on ranks 0 to 1" in messages[0]
        assert "got [8, 16] updates an iteration on ranks 0 to 1" in messages[1]
