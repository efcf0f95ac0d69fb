from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch

from common import logger
from common.torch_util import unflatten
from ppo1 import pposgd_simple
from ppo1.cnn_policy import CnnPolicy
from ppo1.mlp_policy import MlpPolicy
from ppo1.pposgd_simple import learn
from tests.conftest import assert_close, load_golden
from tests.ranks import on_ranks

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


def replay(comm, name):
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
                comm=comm,
            )
    return history


def in_tensorflow_layout(pi, prefix, vector):
    """Return a flat vector's parts by variable, as baselines would flatten them."""
    named = dict(pi.named_parameters())
    parts = unflatten(torch.from_numpy(vector), list(named.values()))
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
@pytest.mark.parametrize(("name", "size"), TRACES)
def test_whole_iterations_equal_baselines(name, size):
    results = on_ranks(size, replay, name)
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
