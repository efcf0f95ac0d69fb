import copy

import gymnasium as gym
import numpy as np
import pytest
import torch

from common.mpi_adam import MpiAdam
from ppo1.mlp_policy import MlpPolicy
from tests.conftest import assert_close, load_golden

OB_SPACE = gym.spaces.Box(-np.inf, np.inf, (11,))
BOX = gym.spaces.Box(-1, 1, (3,))
CASES = {
    "mlp_gaussian": (BOX, True),
    "mlp_gaussian_free_var": (BOX, False),
    "mlp_discrete": (gym.spaces.Discrete(4), True),
}


def make_policy(name="mlp_gaussian", ob_space=OB_SPACE):
    ac_space, fixed_var = CASES[name]
    return MlpPolicy("pi", ob_space, ac_space, 64, 2, gaussian_fixed_var=fixed_var)


@pytest.fixture(params=CASES)
def case(request):
    data = load_golden(request.param)
    np.random.seed(int(data["np_seed"]))
    return make_policy(request.param), data


def with_prefix(data, prefix):
    return {key.removeprefix(prefix): x for key, x in data.items() if key.startswith(prefix)}


def test_initial_variables_equal_baselines_bit_for_bit(case):
    policy, data = case
    want = with_prefix(data, "init:")
    got = policy.variables()
    assert list(got) == list(want)
    for name, value in got.items():
        assert value.dtype == want[name].dtype
        np.testing.assert_array_equal(value, want[name], err_msg=name)


def test_order_of_the_flat_vector_is_baselines(case):
    policy, data = case
    assert [name for name, _ in policy.named_parameters()] == data["trainable_order"].tolist()
    shapes = [tuple(p.shape) for p in policy.get_trainable_variables()]
    assert shapes == [data[f"w:{name}"].shape for name in data["trainable_order"]]
    assert len(policy.get_variables()) == len(shapes) + 3


def test_observation_statistics_equal_baselines(case):
    policy, data = case
    policy.ob_rms.update(data["rms_data"])
    assert_close(policy.ob_rms.mean, data["rms_mean"])
    assert_close(policy.ob_rms.std, data["rms_std"])


@pytest.mark.parametrize("spelling", ["{}", "pi/{}:0"])
def test_outputs_equal_baselines(case, spelling):
    policy, data = case
    weights = with_prefix(data, "w:")
    policy.load_variables({spelling.format(name): value for name, value in weights.items()})
    for dtype in (torch.float32, torch.float64):
        pdparam, vpred = policy.pdparam_and_vpred(torch.from_numpy(data["ob"]).to(dtype))
        assert_close(pdparam.detach(), data["pdparam"])
        assert_close(vpred.detach(), data["vpred"])
    for name, value in policy.variables().items():
        np.testing.assert_array_equal(value, weights[name])


def test_acting_equals_baselines_and_the_batch(case):
    policy, data = case
    policy.load_variables(with_prefix(data, "w:"))
    for ob, pdparam, vpred in zip(data["ob"], data["pdparam"], data["vpred"], strict=True):
        ac, value = policy.act(False, ob.astype(np.float64))
        mode = pdparam[:3] if policy.ac_space is BOX else pdparam.argmax()
        assert_close(ac, mode)
        assert_close(value, vpred)
        assert np.asarray(ac).dtype == (np.float32 if policy.ac_space is BOX else np.int64)


def test_acting_follows_the_parameters_wherever_they_move():
    policy = make_policy()
    ob = np.linspace(-1, 1, 11)

    def check():
        want = policy.pdparam_and_vpred(torch.from_numpy(ob[None]))[1].item()
        assert_close(policy.act(False, ob)[1], np.float32(want))
        return want

    values = [check()]
    adam = MpiAdam(policy.get_trainable_variables())
    values.append(check())
    adam.setfromflat(adam.getflat() * 1.5)
    values.append(check())
    policy.ob_rms.update(np.random.randn(50, 11) * 3 + 1)
    values.append(check())
    other = copy.deepcopy(policy)
    assert other.act(False, ob)[1] == policy.act(False, ob)[1]
    MpiAdam(policy.get_trainable_variables()).setfromflat(adam.getflat() * 0.3)
    values.append(check())
    assert values[0] == values[1]
    assert len(set(values)) == 4


def test_sampled_actions_have_the_policys_mean_and_deviation():
    policy, n = make_policy(), 20_000
    policy.load_variables({**policy.variables(), "pol/logstd": np.log([[0.5, 1.0, 2.0]])})
    ob = np.linspace(-2, 2, 11)
    mean = policy.act(False, ob)[0]
    actions = np.array([policy.act(True, ob)[0] for _ in range(n)])
    std = np.array([0.5, 1.0, 2.0])
    # 4 standard errors
    assert (abs(actions.mean(axis=0) - mean) < 4 * std / n**0.5).all()
    assert (abs(actions.std(axis=0) - std) < 4 * std / (2 * n) ** 0.5).all()


def test_action_noise_follows_torchs_seed_and_leaves_numpys_stream_alone():
    torch.manual_seed(7)
    first = make_policy()
    torch.manual_seed(7)
    second = make_policy()
    before = np.random.get_state()[2]
    noise = [[p.act(True, np.zeros(11))[0] - p.act(False, np.zeros(11))[0] for _ in range(3)]
             for p in (first, second)]  # fmt: skip
    np.testing.assert_allclose(noise[0], noise[1], atol=1e-7)  # other weights, other roundings
    assert not np.allclose(noise[0][0], noise[0][1])
    assert np.random.get_state()[2] == before


def test_normalized_observations_are_clipped_at_five():
    """The golden observations stay below 4, so the clip is checked here by hand."""
    policy = make_policy(ob_space=gym.spaces.Box(-np.inf, np.inf, (2,)))
    policy.ob_rms.runningsum[:] = [4.0, 4.0]
    policy.ob_rms.runningsumsq[:] = [10.0, 10.0]
    policy.ob_rms.count[...] = 2.0
    policy.ob_rms.refresh()  # mean 2, std 1
    x = policy.preprocess(torch.tensor([[6.9, 7.5], [-2.9, -100.0]], dtype=torch.float64))
    np.testing.assert_allclose(x, [[4.9, 5.0], [-4.9, -5.0]], atol=1e-6)
    far, edge = policy.act(False, np.array([1e6, -1e6])), policy.act(False, np.array([7.0, -3.0]))
    assert far[1] == edge[1]
    np.testing.assert_array_equal(far[0], edge[0])


def test_observations_of_several_dimensions_are_flattened():
    policy = make_policy(ob_space=gym.spaces.Box(-1, 1, (2, 3)))
    ob = np.arange(6.0).reshape(2, 3)
    _, vpred = policy.pdparam_and_vpred(torch.from_numpy(ob[None]))
    assert_close(policy.act(False, ob)[1], vpred[0].detach())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pol/logstd": None}, "missing pol/logstd"),
        ({"pol/other": np.zeros(1)}, "unknown pol/other"),
        ({"vf/fc1/kernel": np.zeros((64, 11))}, r"vf/fc1/kernel is \(64, 11\), not \(11, 64\)"),
        ({"obfilter/count": np.zeros(2)}, r"obfilter/count is \(2,\), not \(\)"),
    ],
)
def test_loading_names_what_does_not_fit_and_changes_nothing(change, message):
    policy = make_policy()
    before = policy.variables()
    values = {name: value + 1 for name, value in before.items()} | change
    with pytest.raises(ValueError, match=message):
        policy.load_variables({name: x for name, x in values.items() if x is not None})
    for name, value in policy.variables().items():
        np.testing.assert_array_equal(value, before[name])


def test_loading_passes_over_the_old_policys_variables():
    policy = make_policy()
    values = {f"pi/{name}:0": x for name, x in policy.variables().items()}
    policy.load_variables(values | {"oldpi/pol/logstd:0": np.ones((1, 3))})
    assert not policy.variables()["pol/logstd"].any()


def test_acting_follows_parameters_that_moved_one_by_one():
    policy = make_policy()
    ob = np.linspace(-1, 1, 11)
    policy.act(False, ob)
    parameters = policy.get_trainable_variables()
    parameters[-2].data = torch.ones_like(parameters[-2])  # the policy's last bias
    want = policy.pdparam_and_vpred(torch.from_numpy(ob[None]))[0][0, :3].detach()
    assert_close(policy.act(False, ob)[0], want)
    MpiAdam(parameters[:4]).setfromflat(np.zeros(11 * 64 + 64 + 64 * 64 + 64, np.float32))
    want = policy.pdparam_and_vpred(torch.from_numpy(ob[None]))[1].item()
    assert_close(policy.act(False, ob)[1], np.float32(want))


@pytest.mark.parametrize("sizes", [(0, 2), (64, 0)])
def test_sizes_must_be_positive(sizes):
    with pytest.raises(ValueError, match="must be at least 1"):
        MlpPolicy("pi", OB_SPACE, BOX, *sizes)


def test_unsupported_observation_spaces_are_named():
    for space in (gym.spaces.Discrete(3), gym.spaces.Dict(a=OB_SPACE)):
        with pytest.raises(ValueError, match="unsupported observation space"):
            make_policy(ob_space=space)


def test_actions_may_have_no_components():
    policy = MlpPolicy("pi", OB_SPACE, gym.spaces.Box(-1, 1, (0,)), 8, 1)
    assert policy.act(True, np.zeros(11))[0].shape == (0,)
