import gymnasium as gym
import numpy as np
import pytest
import torch

from common.distributions import (
    BernoulliPdType,
    CategoricalPd,
    CategoricalPdType,
    DiagGaussianPd,
    DiagGaussianPdType,
    MultiCategoricalPdType,
    gumbel_noise,
    make_pdtype,
)
from common.torch_util import compile_function
from tests.conftest import assert_close, load_golden

PDTYPES = {
    "diag_gaussian": DiagGaussianPdType(3),
    "categorical": CategoricalPdType(5),
    "multi_categorical": MultiCategoricalPdType([2, 3, 4]),
    "bernoulli": BernoulliPdType(4),
}


@pytest.mark.parametrize("name", PDTYPES)
@pytest.mark.parametrize("action_dtype", [None, torch.float32, torch.int64])
def test_equals_baselines(name, action_dtype):
    if name == "diag_gaussian" and action_dtype == torch.int64:
        pytest.skip("a Gaussian action is not an integer")
    data = {key: torch.from_numpy(x) for key, x in load_golden("distributions").items()
            if key.startswith(f"{name}.")}  # fmt: skip
    pd = PDTYPES[name].pdfromflat(data[f"{name}.flat"])
    other = PDTYPES[name].pdfromflat(data[f"{name}.other_flat"])
    x = data[f"{name}.x"]
    x = x if action_dtype is None else x.to(action_dtype)
    assert_close(pd.neglogp(x), data[f"{name}.neglogp"])
    assert_close(pd.logp(x), -data[f"{name}.neglogp"])
    assert_close(pd.entropy(), data[f"{name}.entropy"])
    assert_close(pd.kl(other), data[f"{name}.kl"])
    np.testing.assert_array_equal(pd.mode(), data[f"{name}.mode"])
    assert pd.flatparam() is pd.flat


def rows_for(pdtype, n):
    flat = torch.linspace(-1.0, 1.0, pdtype.param_shape()[0])
    return flat, flat.expand(n, -1)


@pytest.mark.parametrize("name", PDTYPES)
@pytest.mark.parametrize("how", ["sample", "draw"])
def test_samples_have_the_entropy_and_log_probability_they_should(name, how):
    """The mean of -log p(x) over samples x is the entropy, and E[p / q] over q's samples is 1."""
    pdtype, n = PDTYPES[name], 40_000
    flat, rows = rows_for(pdtype, n)
    pd = pdtype.pdfromflat(rows)
    if how == "sample":
        x = pd.sample()
    else:
        rng = np.random.default_rng(0)
        x = torch.as_tensor(np.array([pdtype.draw(flat.numpy(), rng) for _ in range(n)]))
    assert list(x.shape[1:]) == pdtype.sample_shape()
    neglogp = pd.neglogp(x)
    standard_error = (neglogp.std() / n**0.5).item()
    # 4 standard errors of the mean, and the rounding of a float32 mean
    assert abs((neglogp.mean() - pd.entropy()[0]).item()) < 4 * standard_error + 1e-5
    other = pdtype.pdfromflat(rows + 0.1 * torch.sin(torch.arange(len(flat)) + 1.0))
    ratio = torch.exp(other.logp(x) + neglogp)
    assert abs(ratio.mean().item() - 1) < 4 * (ratio.std() / n**0.5).item() + 1e-5


@pytest.mark.parametrize("name", PDTYPES)
def test_draw_without_noise_is_the_mode(name):
    pdtype = PDTYPES[name]
    for flat in torch.randn(20, *pdtype.param_shape()):
        mode = pdtype.pdfromflat(flat[None]).mode()[0]
        np.testing.assert_array_equal(pdtype.draw(flat.numpy(), None), mode)


@pytest.mark.parametrize("pdtype", [CategoricalPdType(2), MultiCategoricalPdType([2, 2])])
def test_noise_of_zero_does_not_outweigh_the_logits(pdtype):
    """NumPy's float32 exponential numbers are 0 now and then."""

    class Generator:
        def standard_exponential(self, size, dtype):
            return np.array([0.0, 1.0] * (size // 2), dtype)

    flat = np.array([-20.0, 0.0] * (pdtype.param_shape()[0] // 2), np.float32)
    assert np.all(pdtype.draw(flat, Generator()) == 1)


def test_drawn_gaussian_does_not_alias_the_parameters():
    flat = np.zeros(6, np.float32)
    action = PDTYPES["diag_gaussian"].draw(flat, None)
    flat[:] = 1
    np.testing.assert_array_equal(action, [0, 0, 0])


@pytest.mark.parametrize("name", PDTYPES)
def test_kl_to_itself_is_zero_and_otherwise_positive(name):
    pdtype = PDTYPES[name]
    pd = pdtype.pdfromflat(torch.randn(10, *pdtype.param_shape()))
    other = pdtype.pdfromflat(torch.randn(10, *pdtype.param_shape()))
    assert pd.kl(pd).abs().max() < 1e-6  # float32 rounding of terms near 1
    assert (pd.kl(other) > 0).all()


@pytest.mark.parametrize(
    ("space", "pdtype"),
    [
        (gym.spaces.Box(-1, 1, (3,)), DiagGaussianPdType(3)),
        (gym.spaces.Discrete(5), CategoricalPdType(5)),
        (gym.spaces.MultiDiscrete([2, 3, 4]), MultiCategoricalPdType([2, 3, 4])),
        (gym.spaces.MultiBinary(4), BernoulliPdType(4)),
    ],
)
def test_make_pdtype(space, pdtype):
    made = make_pdtype(space)
    assert made == pdtype
    assert hash(made) == hash(pdtype)
    action = made.draw(np.zeros(made.param_shape(), np.float32), np.random.default_rng(0))
    assert np.shape(action) == tuple(made.sample_shape()) == space.shape
    assert torch.as_tensor(action).dtype == made.sample_dtype()
    if not isinstance(space, gym.spaces.Box):
        assert space.contains(action if space.shape else np.int64(action))


@pytest.mark.parametrize(
    "space",
    [
        gym.spaces.Box(-1, 1, (3, 2)),
        gym.spaces.Box(0, 9, (3,), dtype=np.int32),
        gym.spaces.Discrete(5, start=1),
        gym.spaces.MultiDiscrete([2, 2], start=[0, 1]),
        gym.spaces.MultiDiscrete([[2, 2], [2, 2]]),
        gym.spaces.MultiBinary([2, 2]),
        gym.spaces.Text(3),
        gym.spaces.Tuple([gym.spaces.Discrete(2)]),
    ],
)
def test_unsupported_spaces_are_named(space):
    with pytest.raises(ValueError, match="unsupported action space"):
        make_pdtype(space)


class Loop:
    """Several choices, one after another: what the padded batch must equal."""

    def __init__(self, flat, nvec):
        self.parts = [CategoricalPd(part) for part in flat.split(nvec, dim=-1)]

    def mode(self):
        return torch.stack([pd.mode() for pd in self.parts], dim=-1)

    def neglogp(self, x):
        return sum(pd.neglogp(x[..., i]) for i, pd in enumerate(self.parts))

    def kl(self, other):
        return sum(pd.kl(q) for pd, q in zip(self.parts, other.parts, strict=True))

    def entropy(self):
        return sum(pd.entropy() for pd in self.parts)


@pytest.mark.parametrize("nvec", [[3, 1, 5, 2], [1], [1, 1], [4, 4, 4], [2, 9] * 20])
@pytest.mark.parametrize("scale", [1.0, 1000.0])
@pytest.mark.parametrize("lead", [(6,), (2, 3)])
def test_many_choices_equal_a_loop_and_so_do_the_gradients(nvec, scale, lead):
    pdtype = MultiCategoricalPdType(nvec)
    flat, other = (scale * torch.randn(*lead, sum(nvec)) for _ in range(2))
    x = torch.randint(2**31, (*lead, len(nvec))) % torch.tensor(nvec)

    def numbers(make):
        leaves = [flat.clone().requires_grad_(), other.clone().requires_grad_()]
        p, q = map(make, leaves)
        values = p.neglogp(x), p.kl(q), p.entropy()
        gradients = [
            torch.autograd.grad(value.sum(), leaves, retain_graph=True, allow_unused=True)
            for value in values
        ]
        grads = [g for pair in gradients for g in pair if g is not None]
        return [p.mode(), *(v.detach() for v in values), *grads]

    wanted = numbers(lambda flat: Loop(flat, nvec))
    for got, want in zip(numbers(pdtype.pdfromflat), wanted, strict=True):
        assert got.shape == want.shape
        assert_close(got, want)


def test_many_choices_draw_what_a_loop_draws():
    nvec = [3, 1, 5, 2]
    pdtype = MultiCategoricalPdType(nvec)
    rng, same = (np.random.default_rng(0) for _ in range(2))
    for flat in torch.randn(50, 11).numpy():
        noise = gumbel_noise(same, 11)
        want = [part.argmax() for part in np.split(flat + noise, np.cumsum(nvec)[:-1])]
        action = pdtype.draw(flat, rng)
        assert (action.tolist(), action.dtype) == (want, np.int64)
    samples = pdtype.pdfromflat(torch.zeros(500, 11)).sample()
    assert samples.amin(dim=0).tolist() == [0, 0, 0, 0]
    assert samples.amax(dim=0).tolist() == [2, 0, 4, 1]


@pytest.mark.slow
def test_many_choices_compile_as_few_do():
    nvec = [2, 5, 1, 3, 5] * 10
    pdtype = MultiCategoricalPdType(nvec)
    x = torch.randint(2**31, (16, len(nvec))) % torch.tensor(nvec)

    def gradient(flat):
        def loss(flat):
            pd = pdtype.pdfromflat(flat)
            return (pd.logp(x) + pd.entropy() + pd.kl(pdtype.pdfromflat(flat.flip(0)))).sum()

        return (torch.func.grad(loss)(flat),)

    flat = torch.randn(16, sum(nvec))
    assert_close(compile_function(gradient, flat)(flat)[0], gradient(flat)[0])


class Mirrored(DiagGaussianPd):
    def mode(self):
        return -self.mean

    def sample(self):
        return -super().sample()


class MirroredPdType(DiagGaussianPdType):
    pdclass = Mirrored


def test_a_type_with_another_distribution_draws_from_that():
    flat = np.array([3.0, 5.0, -9.0, -9.0], np.float32)
    pdtype = MirroredPdType(2)
    np.testing.assert_array_equal(pdtype.draw(flat, None), [-3, -5])
    state = torch.get_rng_state()
    one, two = (pdtype.draw(flat, np.random.default_rng(0)) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    np.testing.assert_allclose(one, [-3, -5], atol=1e-3)  # 8 standard deviations
    assert torch.equal(torch.get_rng_state(), state)
