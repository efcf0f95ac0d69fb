"""Probability distributions of actions, as functions of a flat vector of parameters.

Source: baselines/common/distributions.py @ ea25b9e.
Differs: torch tensors; `PdType.draw` samples one action in NumPy, for acting without overhead.

Dimension letters: N rows (any leading shape), P parameters, A action components.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor


class Pd:
    """A batch of distributions.

    All of `neglogp`, `logp`, `kl` and `entropy` return (N,) tensors and can be differentiated.
    `sample` draws from torch's generator.
    """

    def __init__(self, flat: Tensor) -> None:
        """Take the parameters, (N, P)."""
        self.flat = flat

    def flatparam(self) -> Tensor:
        """Return the parameters, (N, P)."""
        return self.flat

    def mode(self) -> Tensor:
        """Return the most likely action, (N, *sample_shape)."""
        raise NotImplementedError

    def neglogp(self, x: Tensor) -> Tensor:
        """Return minus the log-probability of actions x (N, *sample_shape), int64 or float."""
        raise NotImplementedError

    def logp(self, x: Tensor) -> Tensor:
        """Return the log-probability of x."""
        return -self.neglogp(x)

    def kl(self, other: Any) -> Tensor:
        """Return KL(self || other)."""
        raise NotImplementedError

    def entropy(self) -> Tensor:
        """Return the entropy in nats."""
        raise NotImplementedError

    def sample(self) -> Tensor:
        """Return one sample for each row, (N, *sample_shape)."""
        raise NotImplementedError


class PdType:
    """What kind of distribution an action space needs."""

    pdclass: type[Pd]

    def pdfromflat(self, flat: Tensor) -> Pd:
        """Return the distribution with parameters `flat`, (N, P)."""
        return self.pdclass(flat)

    def param_shape(self) -> list[int]:
        """Return [P]."""
        raise NotImplementedError

    def sample_shape(self) -> list[int]:
        """Return the shape of one action: [] or [A]."""
        raise NotImplementedError

    def sample_dtype(self) -> torch.dtype:
        """Return the dtype of actions: torch.float32 or torch.int64."""
        raise NotImplementedError

    def draw(self, flat: NDArray[np.float32], rng: np.random.Generator | None) -> Any:
        """Return one action for the environment, from parameters `flat`, (P,).

        Here it comes from the distribution itself; the types below do the same in NumPy.

        Args:
            flat: (P,) float32, NumPy. It may be overwritten later, so the action is no view of it.
            rng: where the noise comes from; None gives the mode.
        """
        pd = self.pdfromflat(torch.tensor(flat)[None])  # a copy: the mode may be a view of it
        if rng is None:
            return pd.mode()[0].numpy()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**63)))
            return pd.sample()[0].numpy()

    def __init_subclass__(cls) -> None:
        """Have a type that changes the distribution alone draw from that one, not its parent's."""
        if vars(cls).keys() & {"pdclass", "pdfromflat"} and "draw" not in vars(cls):
            cls.draw = PdType.draw  # type: ignore[method-assign]

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash(type(self))


class DiagGaussianPd(Pd):
    """Normal with diagonal covariance; parameters are A means, then A log standard deviations."""

    def __init__(self, flat: Tensor) -> None:
        super().__init__(flat)
        self.mean, self.logstd = flat.chunk(2, dim=-1)
        self.std = self.logstd.exp()

    def mode(self) -> Tensor:
        return self.mean

    def neglogp(self, x: Tensor) -> Tensor:
        constant = 0.5 * math.log(2.0 * math.pi) * self.mean.shape[-1]
        squares = ((x - self.mean) / self.std).square().sum(dim=-1)
        return 0.5 * squares + constant + self.logstd.sum(dim=-1)

    def kl(self, other: "DiagGaussianPd") -> Tensor:
        spread = self.std.square() + (self.mean - other.mean).square()
        terms = other.logstd - self.logstd + spread / (2.0 * other.std.square()) - 0.5
        return terms.sum(dim=-1)

    def entropy(self) -> Tensor:
        return (self.logstd + 0.5 * math.log(2.0 * math.pi * math.e)).sum(dim=-1)

    def sample(self) -> Tensor:
        return self.mean + self.std * torch.randn_like(self.mean)


class DiagGaussianPdType(PdType):
    """For Box action spaces of one dimension."""

    pdclass = DiagGaussianPd

    def __init__(self, size: int) -> None:
        """Take A, the number of action components."""
        self.size = size

    def param_shape(self) -> list[int]:
        return [2 * self.size]

    def sample_shape(self) -> list[int]:
        return [self.size]

    def sample_dtype(self) -> torch.dtype:
        return torch.float32

    def draw(self, flat: NDArray[np.float32], rng: np.random.Generator | None) -> Any:
        mean = flat[: self.size]
        if rng is None:
            return mean.copy()
        ac = rng.standard_normal(self.size, dtype=np.float32)
        ac *= np.exp(flat[self.size :])
        ac += mean
        return ac


class CategoricalPd(Pd):
    """One of n choices; parameters are n logits."""

    def mode(self) -> Tensor:
        return self.flat.argmax(dim=-1)

    def neglogp(self, x: Tensor) -> Tensor:
        logps = F.log_softmax(self.flat, dim=-1)
        return -logps.gather(-1, x.long().unsqueeze(-1)).squeeze(-1)

    def kl(self, other: "CategoricalPd") -> Tensor:
        logps = F.log_softmax(self.flat, dim=-1)
        return (logps.exp() * (logps - F.log_softmax(other.flat, dim=-1))).sum(dim=-1)

    def entropy(self) -> Tensor:
        logps = F.log_softmax(self.flat, dim=-1)
        return -(logps.exp() * logps).sum(dim=-1)

    def sample(self) -> Tensor:
        # The largest of logits plus Gumbel noise is a sample.
        return (self.flat - torch.empty_like(self.flat).exponential_().log()).argmax(dim=-1)


def gumbel_noise(rng: np.random.Generator, size: int) -> NDArray[np.float32]:
    """Return (size,) draws from the standard Gumbel distribution, all of them finite.

    One in ten million of NumPy's exponential numbers is 0; it would outweigh any logit.
    """
    exponential = rng.standard_exponential(size, dtype=np.float32)
    return -np.log(np.maximum(exponential, 2.0**-24, out=exponential))


class CategoricalPdType(PdType):
    """For Discrete action spaces."""

    pdclass = CategoricalPd

    def __init__(self, ncat: int) -> None:
        """Take the number of choices."""
        self.ncat = ncat

    def param_shape(self) -> list[int]:
        return [self.ncat]

    def sample_shape(self) -> list[int]:
        return []

    def sample_dtype(self) -> torch.dtype:
        return torch.int64

    def draw(self, flat: NDArray[np.float32], rng: np.random.Generator | None) -> Any:
        if rng is None:
            return flat.argmax()
        return (flat + gumbel_noise(rng, self.ncat)).argmax()


# Stands in for logits of choices that a component does not have: of probability 0, but finite, so
# that 0 * log(0) is no NaN.
NO_CHOICE = -1e30


@functools.cache
def places_of_choices(nvec: tuple[int, ...]) -> NDArray[np.int64]:
    """Return each logit's place, (sum(nvec),), in a flattened matrix of A rows of max(nvec)."""
    choices = np.arange(max(nvec)) < np.array(nvec)[:, None]
    return np.flatnonzero(choices)


class MultiCategoricalPd(Pd):
    """Several independent choices; parameters are their logits, one after another.

    They are computed as one batch (N, A, max n), in which the shorter ones are padded.
    """

    def __init__(self, flat: Tensor, nvec: Sequence[int]) -> None:
        """Take logits (N, sum(nvec)) and the number of choices of each component."""
        super().__init__(flat)
        padded = flat
        if min(nvec) < max(nvec):
            places = torch.from_numpy(places_of_choices(tuple(nvec))).to(flat.device)
            padded = flat.new_full((*flat.shape[:-1], len(nvec) * max(nvec)), NO_CHOICE)
            padded = padded.index_copy(-1, places, flat)
        self.categoricals = CategoricalPd(padded.unflatten(-1, (len(nvec), max(nvec))))

    def mode(self) -> Tensor:
        return self.categoricals.mode()

    def neglogp(self, x: Tensor) -> Tensor:
        return self.categoricals.neglogp(x).sum(dim=-1)

    def kl(self, other: "MultiCategoricalPd") -> Tensor:
        return self.categoricals.kl(other.categoricals).sum(dim=-1)

    def entropy(self) -> Tensor:
        return self.categoricals.entropy().sum(dim=-1)

    def sample(self) -> Tensor:
        return self.categoricals.sample()


class MultiCategoricalPdType(PdType):
    """For MultiDiscrete action spaces."""

    pdclass = MultiCategoricalPd

    def __init__(self, nvec: Sequence[int]) -> None:
        """Take the number of choices of each component."""
        self.nvec = [int(n) for n in nvec]

    def pdfromflat(self, flat: Tensor) -> Pd:
        return MultiCategoricalPd(flat, self.nvec)

    def param_shape(self) -> list[int]:
        return [sum(self.nvec)]

    def sample_shape(self) -> list[int]:
        return [len(self.nvec)]

    def sample_dtype(self) -> torch.dtype:
        return torch.int64

    def draw(self, flat: NDArray[np.float32], rng: np.random.Generator | None) -> Any:
        if rng is not None:
            flat = flat + gumbel_noise(rng, len(flat))
        padded = np.full((len(self.nvec), max(self.nvec)), -np.inf, np.float32)
        padded.flat[places_of_choices(tuple(self.nvec))] = flat
        return padded.argmax(axis=1)


class BernoulliPd(Pd):
    """Independent bits; parameters are their logits."""

    def __init__(self, flat: Tensor) -> None:
        super().__init__(flat)
        self.ps = torch.sigmoid(flat)

    def mode(self) -> Tensor:
        return self.ps.round()

    def neglogp(self, x: Tensor) -> Tensor:
        return _cross_entropy(self.flat, x.to(self.flat.dtype))

    def kl(self, other: "BernoulliPd") -> Tensor:
        return _cross_entropy(other.flat, self.ps) - _cross_entropy(self.flat, self.ps)

    def entropy(self) -> Tensor:
        return _cross_entropy(self.flat, self.ps)

    def sample(self) -> Tensor:
        return torch.bernoulli(self.ps)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").sum(dim=-1)


class BernoulliPdType(PdType):
    """For MultiBinary action spaces of one dimension."""

    pdclass = BernoulliPd

    def __init__(self, size: int) -> None:
        """Take the number of bits."""
        self.size = size

    def param_shape(self) -> list[int]:
        return [self.size]

    def sample_shape(self) -> list[int]:
        return [self.size]

    def sample_dtype(self) -> torch.dtype:
        return torch.int64

    def draw(self, flat: NDArray[np.float32], rng: np.random.Generator | None) -> Any:
        u = 0.5 if rng is None else rng.random(self.size, dtype=np.float32)
        with np.errstate(over="ignore"):  # of a logit far below 0, whose probability is 0
            return (u < 1.0 / (1.0 + np.exp(-flat))).astype(np.int64)


def make_pdtype(ac_space: gym.Space) -> PdType:
    """Return the kind of distribution for an action space.

    Raises:
        ValueError: for a space that is none of Box (one dimension, floating), Discrete,
            MultiDiscrete and MultiBinary (one dimension), or whose choices do not start at 0.
    """
    starts_at_zero = not np.any(getattr(ac_space, "start", 0))
    if isinstance(ac_space, gym.spaces.Box):
        if len(ac_space.shape) == 1 and np.issubdtype(ac_space.dtype, np.floating):
            return DiagGaussianPdType(ac_space.shape[0])
    elif isinstance(ac_space, gym.spaces.Discrete) and starts_at_zero:
        return CategoricalPdType(int(ac_space.n))
    elif isinstance(ac_space, gym.spaces.MultiDiscrete) and starts_at_zero:
        if len(ac_space.shape) == 1:
            return MultiCategoricalPdType(ac_space.nvec.tolist())
    elif isinstance(ac_space, gym.spaces.MultiBinary) and len(ac_space.shape) == 1:
        return BernoulliPdType(ac_space.shape[0])
    raise ValueError(
        f"unsupported action space {ac_space}: need a Box of one dimension, Discrete, "
        "MultiDiscrete or MultiBinary, with choices from 0 on"
    )
