import copy

import gymnasium as gym
import numpy as np
import pytest
import torch

from common.mpi_adam import MpiAdam
from ppo1.cnn_policy import CnnPolicy
from ppo1.policy import TorchPolicy
from tests.conftest import assert_close, load_golden

CASES = [(kind, channels) for kind in ("small", "large") for channels in (1, 4)]


def make_policy(kind="small", channels=1, n=6):
    ob_space = gym.spaces.Box(0, 255, (84, 84, channels), np.uint8)
    return CnnPolicy("pi", ob_space, gym.spaces.Discrete(n), kind=kind)


def golden_weights(data):
    rng = np.random.RandomState(int(data["weight_seed"]))
    weights = {}
    for name, text in zip(data["variables"].tolist(), data["shapes"].tolist(), strict=True):
        shape = tuple(int(n) for n in text.strip("()[] ").replace(",", " ").split())
        fan_in = np.prod(shape[:-1]) or 1
        weights[name] = (rng.randn(*shape) / np.sqrt(fan_in)).astype(np.float32)
    return weights


@pytest.mark.parametrize(("kind", "channels"), CASES)
def test_outputs_equal_baselines(kind, channels):
    data = load_golden(f"cnn_{kind}_{channels}")
    weights = golden_weights(data)
    policy = make_policy(kind, channels)
    assert list(policy.variables()) == list(weights)
    policy.load_variables(weights)
    pdparam, vpred = policy.pdparam_and_vpred(torch.from_numpy(data["ob"]))
    assert_close(pdparam.detach(), data["pdparam"])
    assert_close(vpred.detach(), data["vpred"])
    for name, value in policy.variables().items():
        np.testing.assert_array_equal(value, weights[name], err_msg=name)
    for ob, want_pdparam, want_vpred in zip(
        data["ob"], data["pdparam"], data["vpred"], strict=True
    ):
        ac, value = policy.act(False, ob)
        assert ac == want_pdparam.argmax()
        assert_close(value, want_vpred)


@pytest.mark.parametrize("kind", ["small", "large"])
def test_flat_vector_keeps_outputs_and_channels_last_kernels(kind):
    policy = make_policy(kind, channels=4)
    ob = torch.randint(256, (2, 84, 84, 4), dtype=torch.uint8)
    before = policy.pdparam_and_vpred(ob)
    adam = MpiAdam(policy.get_trainable_variables())
    after = policy.pdparam_and_vpred(ob)
    # The kernels may round otherwise at another address
    assert_close(after[0].detach(), before[0].detach())
    assert_close(after[1].detach(), before[1].detach())
    kernel = policy.get_trainable_variables()[0]
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    adam.setfromflat(np.zeros_like(adam.m))
    assert not policy.pdparam_and_vpred(ob)[1].any()


@pytest.mark.parametrize(("kind", "channels"), CASES)
def test_acting_follows_the_parameters_wherever_they_move(kind, channels):
    policy = make_policy(kind, channels)
    ob = np.random.RandomState(0).randint(256, size=(84, 84, channels), dtype=np.uint8)

    def check(policy=policy):
        ac, value = policy.act(False, ob)
        want_ac, want_value = TorchPolicy.act(policy, False, ob)
        assert ac == want_ac
        assert_close(value, want_value)
        return float(value)

    values = [check()]
    adam = MpiAdam(policy.get_trainable_variables())
    assert_close(values[0], check())
    adam.setfromflat(adam.getflat() * 1.1)
    values.append(check())
    other = copy.deepcopy(policy)
    MpiAdam(policy.get_trainable_variables()).setfromflat(adam.getflat() * 0.9)
    values.append(check())
    assert check(other) == values[1]
    kernel = policy.get_trainable_variables()[2]
    kernel.data = kernel.data.contiguous() * 1.1  # no longer channels-last: through torch
    values.append(check())
    assert len(set(values)) == 4


def test_initial_weights_and_random_streams():
    """Convolutions draw from torch's stream, dense kernels from NumPy's."""
    torch.manual_seed(1)
    np.random.seed(2)
    first = make_policy().variables()
    torch.manual_seed(3)
    np.random.seed(2)
    second = make_policy().variables()
    same = {name for name in first if np.array_equal(first[name], second[name])}
    assert set(first) - same == {"l1/W", "l2/W"}
    np.random.seed(2)
    draws = np.random.randn(9 * 9 * 32, 256)
    want = draws / np.linalg.norm(draws, axis=0)
    np.testing.assert_allclose(first["lin/kernel"], want, atol=1e-7)  # float32 rounding below 0.1
    np.testing.assert_allclose(np.linalg.norm(first["logits/kernel"], axis=0), 0.01, rtol=1e-5)
    assert not any(first[name].any() for name in first if name.endswith(("/b", "/bias")))


def test_act_honours_stochastic():
    policy = make_policy()
    ob = np.random.RandomState(0).randint(256, size=(84, 84, 1), dtype=np.uint8)
    policy.load_variables(policy.variables() | {"logits/bias": np.log([8, 4, 2, 1, 1, 0.5])})
    assert {int(policy.act(False, ob)[0]) for _ in range(20)} == {0}
    assert len({int(policy.act(True, ob)[0]) for _ in range(100)}) > 2


@pytest.mark.parametrize(
    ("space", "kind", "message"),
    [
        (gym.spaces.Box(0, 255, (84, 84, 1), np.uint8), "huge", "unknown kind 'huge'"),
        (gym.spaces.Box(0, 1, (84, 84, 1), np.float32), "small", "uint8 images"),
        (gym.spaces.Box(0, 255, (128,), np.uint8), "small", "uint8 images.*: MlpPolicy takes"),
        (gym.spaces.Box(0, 1, (84, 84, 1), np.float32), "small", ": leave the pixels as they are"),
        (gym.spaces.Box(0, 255, (84, 84), np.uint8), "small", r"Reshape\w+ to \(84, 84, 1\)"),
        (gym.spaces.Box(0, 255, (4, 84, 84, 3), np.uint8), "small", ": each is several images"),
        *(
            (gym.spaces.Box(0, 255, shape, dtype), "large", ": these come channels first; .*axis")
            for shape, dtype in [
                ((1, 84, 84), np.uint8),
                ((4, 84, 84), np.uint8),
                ((3, 210, 160), np.uint8),
                ((36, 84, 84), np.uint8),
                ((4, 84, 84), np.float32),
            ]
        ),
        (gym.spaces.Box(0, 255, (16, 84, 1), np.uint8), "large", "too small"),
    ],
)
def test_what_it_cannot_take_is_named(space, kind, message):
    with pytest.raises(ValueError, match=message):
        CnnPolicy("pi", space, gym.spaces.Discrete(2), kind=kind)


@pytest.mark.parametrize("shape", [(60, 100, 3), (100, 60, 3), (36, 36, 36), (40, 40, 48)])
def test_other_image_sizes_work(shape):
    space = gym.spaces.Box(0, 255, shape, np.uint8)
    policy = CnnPolicy("pi", space, gym.spaces.Box(-1, 1, (2,)), kind="large")
    ac, vpred = policy.act(True, np.zeros(shape, np.uint8))
    assert ac.shape == (2,)
    assert np.isfinite(vpred)
