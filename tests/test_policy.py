"""What MlpPolicy and CnnPolicy share: acting, copies, state_dict, what they refuse."""

import copy
import io
import pickle
import re

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook

import ppo1
from common import logger
from common.mpi_adam import MpiAdam
from ppo1.cnn_policy import CnnPolicy
from ppo1.mlp_policy import MlpPolicy
from ppo1.policy import TorchPolicy
from ppo1.pposgd_simple import learn
from tests.conftest import assert_close
from tests.envs import Countdown

BOX = gym.spaces.Box(-1, 1, (2,))
KINDS = [MlpPolicy, CnnPolicy]


def make(kind):
    """Return a policy with statistics and weights unlike those of a new one, always the same."""
    np.random.seed(0)
    torch.manual_seed(0)
    if issubclass(kind, MlpPolicy):
        pi = kind("pi", gym.spaces.Box(-9, 9, (3,)), BOX, 8, 2)
        pi.ob_rms.update(3.0 * np.random.randn(100, 3) + 1.0)
    else:
        pi = kind("pi", gym.spaces.Box(0, 255, (20, 24, 2), np.uint8), BOX, "small")
    with torch.no_grad():
        for parameter in pi.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return pi


def observation(pi):
    pi.ob_space.seed(0)
    return pi.ob_space.sample()


def acted_value(pi):
    """Return the value that `act` gives, after comparing `act` with the network that is trained."""
    ob = observation(pi)
    ac, vpred = pi.act(False, ob)
    with torch.no_grad():
        pdparam, want = pi.pdparam_and_vpred(torch.from_numpy(ob[None]))
    assert_close(vpred, want[0])
    assert_close(ac, pdparam[0, :2])
    return float(vpred)


def shifted(result):
    return (result[0] + 0.5, result[1] + 1) if isinstance(result, tuple) else result + 1


def changed(method):
    return lambda *args: shifted(method(*args))


# ---- Acting -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["forward", "preprocess", "pdparam_and_vpred", "layer"])
@pytest.mark.parametrize("where", ["subclass", "instance", "class"])
def test_acting_uses_the_network_that_is_trained(kind, method, where, monkeypatch):
    """Where the class's own method is replaced, only the comparison of the outputs can tell."""
    name = kind.NETWORK[-1] if method == "layer" else method
    before = acted_value(make(kind))
    if where == "subclass":
        pi = make(type("Own", (kind,), {name: changed(getattr(kind, name))}))
    elif where == "class":
        monkeypatch.setattr(kind, name, changed(getattr(kind, name)))
        pi = make(kind)
    else:
        pi = make(kind)
        pi.act(True, observation(pi))  # the network is chosen, and has to be chosen again
        setattr(pi, name, changed(getattr(pi, name)))
        assert pi.has_own_network == (method != "pdparam_and_vpred")
    assert abs(acted_value(pi) - before) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hook", ["forward", "pre", "global"])
def test_acting_passes_through_hooks(kind, hook):
    pi = make(kind)
    before = acted_value(pi)
    if hook == "forward":
        handle = pi.register_forward_hook(lambda _, args, outputs: shifted(outputs))
    elif hook == "pre":
        handle = pi.register_forward_pre_hook(lambda _, args: (args[0] + 1,))
    else:
        handle = register_module_forward_hook(lambda _, args, outputs: shifted(outputs))
        pi = make(kind)  # hooks on all modules are looked for when the network is chosen
    with handle:
        assert abs(acted_value(pi) - before) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_an_unchanged_network_acts_in_numpy_and_choosing_it_draws_nothing(kind, monkeypatch):
    class Own(kind):
        def act(self, stochastic, ob):
            return super().act(stochastic, ob)

        def get_initial_state(self):
            return [0]

    pi = make(Own)
    states = pi.rng.bit_generator.state, np.random.get_state()[2], torch.get_rng_state()
    pi._choose_network()
    assert (pi.rng.bit_generator.state, np.random.get_state()[2]) == states[:2]
    assert torch.equal(torch.get_rng_state(), states[2])
    monkeypatch.setattr(TorchPolicy, "_torch_network", None)
    want = make(kind).act(False, observation(pi))
    np.testing.assert_equal(pi.act(False, observation(pi)), want)


@pytest.mark.parametrize("kind", KINDS)
def test_acting_follows_parameters_that_are_replaced(kind):
    pi, other = make(kind), make(kind)
    before = acted_value(pi)
    pi.load_state_dict({k: 1.1 * v for k, v in other.state_dict().items()}, assign=True)
    assert abs(acted_value(pi) - before) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wrong", ["one", "batch", "transposed", "missing axis", "dtype"])
def test_other_observations_are_refused(kind, wrong):
    pi = make(kind)
    ob = observation(pi)
    bad = {
        "one": ob[:1],
        "batch": ob[None],
        "transposed": np.moveaxis(ob, -1, 0) if ob.ndim > 1 else ob[:, None],
        "missing axis": ob[0],
        "dtype": (ob / 255.0).astype(np.float32) if ob.ndim > 1 else ob + 0j,
    }[wrong]
    shapes = ob.shape, str(("N", *ob.shape)).replace("'", "")
    one, batch = (re.escape(f"; need shape {shape}, ") for shape in shapes)
    with pytest.raises(ValueError, match=f"got an observation of shape .*{one}"):
        pi.act(False, bad)
    with pytest.raises(ValueError, match=f"got observations of shape .*{batch}"):
        pi.pdparam_and_vpred(torch.from_numpy(np.array(bad)[None]))
    acted_value(pi)


# ---- Copies -------------------------------------------------------------------------------------


def through_torch_save(pi):
    file = io.BytesIO()
    torch.save(pi, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda pi: pickle.loads(pickle.dumps(pi)),
    "cloudpickle": lambda pi: pickle.loads(cloudpickle.dumps(pi)),
    "torch.save": through_torch_save,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("trained", [False, True])
def test_a_copy_acts_as_the_original_and_is_its_own(kind, how, trained):
    pi = make(kind)
    if trained:
        adam = MpiAdam(pi.get_trainable_variables())
    before = acted_value(pi)
    other = COPIES[how](pi)
    for stochastic in (False, True):
        ob = observation(pi)
        np.testing.assert_equal(other.act(stochastic, ob), pi.act(stochastic, ob))
    assert not trained or other._is_flat()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter *= 1.5
    if hasattr(other, "ob_rms"):
        other.ob_rms.update(np.full((50, 3), 100.0))
        np.testing.assert_array_equal(
            other.variables()["obfilter/runningsum"], other.ob_rms.runningsum
        )
    assert abs(acted_value(other) - before) > 1e-3
    assert acted_value(pi) == before
    if trained:  # the optimizer is still that of the original
        adam.setfromflat(1.5 * adam.getflat())
        assert acted_value(pi) != before


def train(pi):
    """Train for two iterations, from seeds; return all variables."""
    np.random.seed(1)
    torch.manual_seed(1)
    pi.rng = np.random.default_rng(1)
    learn(
        Countdown(5, action_space=BOX), lambda *_: pi, timesteps_per_actorbatch=32, max_iters=2,
        clip_param=0.2, entcoeff=0.0, optim_epochs=2, optim_stepsize=1e-2, optim_batchsize=16,
        gamma=0.99, lam=0.95,
    )  # fmt: skip
    return pi.variables()


@pytest.mark.parametrize("how", [*COPIES, "state_dict"])
def test_a_copy_trains_as_the_original(how, monkeypatch):
    monkeypatch.setattr(logger, "log", lambda *args, **options: None)
    pi = MlpPolicy("pi", gym.spaces.Box(-np.inf, np.inf, (1,), np.float64), BOX, 8, 1)
    train(pi)
    if how == "state_dict":
        other = MlpPolicy("pi", pi.ob_space, pi.ac_space, 8, 1)
        other.load_state_dict(pi.state_dict())
    else:
        other = COPIES[how](pi)
    np.testing.assert_equal(train(other), train(pi))
    assert pi.ob_rms.count == 4 * 32 + 0.01


# ---- state_dict ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_state_dict_holds_all_that_acting_needs(kind):
    pi, file = make(kind), io.BytesIO()
    torch.save(pi.state_dict(), file)
    file.seek(0)
    values = torch.load(file, weights_only=True)
    assert list(values) == list(pi.variables())
    other = kind("pi", pi.ob_space, pi.ac_space, *((8, 2) if kind is MlpPolicy else ("small",)))
    outer = torch.nn.ModuleDict({"pi": other})
    assert not any(outer.load_state_dict({f"pi.{k}": v for k, v in values.items()}))
    assert acted_value(other) == acted_value(pi)
    np.testing.assert_equal(other.variables(), pi.variables())


def test_a_state_dict_without_statistics_is_refused():
    pi = make(MlpPolicy)
    values = pi.state_dict()
    with pytest.raises(RuntimeError, match=r'Missing key.*"obfilter/count"'):
        pi.load_state_dict({k: v for k, v in values.items() if k != "obfilter/count"})
    with pytest.raises(RuntimeError, match=r"obfilter/runningsum is \(1,\), not \(3,\)"):
        pi.load_state_dict({**values, "obfilter/runningsum": torch.zeros(1)})
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"obfilter/other"'):
        pi.load_state_dict({**values, "obfilter/other": torch.zeros(1)})


# ---- Numbers that are none ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, value", [("pol/fc1/kernel", 1e39), ("obfilter/count", 0.0), ("obfilter/count", -5.0)]
)
def test_variables_that_cannot_be_computed_with_are_refused(name, value):
    """A float64 number beyond float32; a count that would divide by zero."""
    pi = make(MlpPolicy)
    before = pi.variables()
    bad = {**before, name: np.full(before[name].shape, value)}
    with pytest.raises(ValueError, match=f"{name} holds numbers that are not finite float32, or"):
        pi.load_variables(bad)
    np.testing.assert_equal(pi.variables(), before)


@pytest.mark.parametrize("name", ["pol/fc1/kernel", "obfilter/runningsum"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_variables_that_are_not_finite_are_refused(name, value, tmp_path):
    pi = make(MlpPolicy)
    before = pi.variables()
    bad = {**before, name: before[name].copy()}
    bad[name].flat[-1] = value
    with pytest.raises(ValueError, match=f"{name} holds numbers that are not finite"):
        pi.load_variables(bad)
    np.testing.assert_equal(pi.variables(), before)
    pi._statistics().get(name, dict(pi.named_parameters()).get(name)).data.view(-1)[-1] = value
    ppo1.save_policy(tmp_path / "policy", pi)
    with pytest.raises(ValueError, match=f"{name} is .* with NaN or infinity"):
        ppo1.load_policy(tmp_path / "policy")
