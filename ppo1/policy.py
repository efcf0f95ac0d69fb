"""What the learner asks of a policy, and what the two policies share."""

from collections.abc import Mapping
from typing import Any, Protocol, cast

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.distributions import PdType, make_pdtype


class Policy(Protocol):
    """All that `learn` uses.

    An `ob_rms`, where there is one, is a `RunningMeanStd`, updated with each segment. An `rng`,
    where there is one, is a `numpy.random.Generator`, whose state checkpoints keep.

    A policy that is a `torch.nn.Module` can be compiled, if what it computes depends on its
    parameters and the observations alone. One with an `ob_rms` must derive from `TorchPolicy`
    for that, whose `preprocess` is not compiled; any other trains eagerly.
    """

    recurrent: bool
    pdtype: PdType

    def act(self, stochastic: bool, ob: NDArray[Any]) -> tuple[Any, Any]:
        """Return action and value for one observation.

        The environment gets the action as it is. The learner stores it in `pdtype.sample_dtype()`,
        float32 or int64, and refuses one that this cannot hold.

        Args:
            stochastic: sample; else take the most likely action.
            ob: ob_shape, of the segment's dtype: floats where the space is of floats.
        """

    def pdparam_and_vpred(self, ob: Tensor) -> tuple[Tensor, Tensor]:
        """Return (N, P) distribution parameters and (N,) values for (N, *ob_shape)."""

    def get_trainable_variables(self) -> list[nn.Parameter]:
        """Return the float32 parameters, in the order of the flat vector."""


class TorchPolicy(nn.Module):
    """A policy whose parameters are registered under baselines' names, in baselines' order.

    A subclass registers parameters, and defines `forward(x)`: preprocessed observations to
    distribution parameters (N, P) and values (N,). `preprocess` holds what is constant during the
    optimization of one segment, so that it is done once a segment rather than once a minibatch.

    Attributes:
        ARGUMENTS: what the constructor takes beside name and spaces, kept under the same names,
            for files.
        rng: the action noise's own generator; seeded from torch's.
    """

    ARGUMENTS: tuple[str, ...] = ()
    recurrent = False

    def __init__(self, name: str, ob_space: gym.Space, ac_space: gym.Space) -> None:
        """Keep the spaces; raises ValueError for those that cannot be handled."""
        super().__init__()
        if not isinstance(ob_space, gym.spaces.Box):
            raise ValueError(
                f"unsupported observation space {ob_space}: need a Box "
                "(gymnasium.wrappers.FlattenObservation makes one)"
            )
        self.name, self.ob_space, self.ac_space = name, ob_space, ac_space
        self.ob_shape: tuple[int, ...] = ob_space.shape
        self.pdtype = make_pdtype(ac_space)
        self.rng = np.random.default_rng(int(torch.randint(2**63 - 1, ())))

    @property
    def has_own_network(self) -> bool:
        """Whether `pdparam_and_vpred` is `forward` after `preprocess`, in no subclass changed."""
        return type(self).pdparam_and_vpred is TorchPolicy.pdparam_and_vpred

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    @property
    def weights(self) -> dict[str, Tensor]:
        """The parameters by name, or what `torch.func.functional_call` has put in their place."""
        return cast(dict[str, Tensor], self._parameters)

    def preprocess(self, ob: Tensor) -> Tensor:
        """Return what `forward` takes, on the policy's device, from raw observations.

        Args:
            ob: (N, *ob_shape), any real dtype, on any device.
        """
        raise NotImplementedError

    def pdparam_and_vpred(self, ob: Tensor) -> tuple[Tensor, Tensor]:
        """Return distribution parameters (N, P) and values (N,) for raw observations.

        Both are float32; `ob` is (N, *ob_shape) and may have any real dtype.
        """
        return self(self.preprocess(ob))

    def act(self, stochastic: bool, ob: NDArray[Any]) -> tuple[Any, np.float32]:
        """Return an action for the environment and the predicted value, for one observation.

        Args:
            stochastic: sample; else the most likely action.
            ob: ob_shape, any real dtype.

        Draws from the policy's own generator, `rng`.
        """
        with torch.no_grad():
            flat, vpred = self.pdparam_and_vpred(torch.as_tensor(np.asarray(ob)[None]))
        ac = self.pdtype.draw(flat[0].cpu().numpy(), self.rng if stochastic else None)
        return ac, np.float32(vpred[0].cpu())

    def get_initial_state(self) -> list[Any]:
        """Return [], the state of a policy that is not recurrent."""
        return []

    def get_trainable_variables(self) -> list[nn.Parameter]:
        """Return the parameters, in baselines' order."""
        return list(self.parameters())

    def get_variables(self) -> list[Tensor]:
        """Return all variables: the observation statistics, if any, then the parameters."""
        return [*self._statistics().values(), *self.parameters()]

    def variables(self) -> dict[str, NDArray[Any]]:
        """Return copies of all variables by baselines' name, in TensorFlow's layout.

        Dense kernels are (in, out), convolutions (height, width, in, out), their biases
        (1, 1, 1, out), observation statistics float64.
        """
        named = {**self._statistics(), **dict(self.named_parameters())}
        return {
            name: _tf_view(name, variable.detach()).cpu().numpy().copy()
            for name, variable in named.items()
        }

    def load_variables(self, values: Mapping[str, Any]) -> None:
        """Set all variables from arrays in TensorFlow's layout.

        Args:
            values: by name, as `variables` gives them or with baselines' scope and output number
                (`pi/pol/fc1/kernel:0`). Those of another scope, `oldpi/`, are passed over.

        Raises:
            ValueError: naming what is missing, left over, or of another shape. Nothing is set then.
        """
        named = {**self._statistics(), **dict(self.named_parameters())}
        given = {
            name.removeprefix("pi/").removesuffix(":0"): np.asarray(value)
            for name, value in values.items()
            if not name.startswith("oldpi/")
        }
        problems = [f"missing {name}" for name in named if name not in given]
        problems += [f"unknown {name}" for name in given if name not in named]
        problems += [
            f"{name} is {given[name].shape}, not {tuple(_tf_view(name, variable).shape)}"
            for name, variable in named.items()
            if name in given and given[name].shape != tuple(_tf_view(name, variable).shape)
        ]
        if problems:
            more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
            raise ValueError(f"cannot load these variables: {'; '.join(problems[:4])}{more}")
        with torch.no_grad():
            for name, variable in named.items():
                _tf_view(name, variable).copy_(torch.as_tensor(given[name]))
        if (ob_rms := getattr(self, "ob_rms", None)) is not None:
            ob_rms.refresh()

    def _statistics(self) -> dict[str, Tensor]:
        # Views: writing to them writes to the running sums.
        ob_rms = getattr(self, "ob_rms", None)
        if ob_rms is None:
            return {}
        names = ("runningsum", "runningsumsq", "count")
        return {f"obfilter/{name}": torch.from_numpy(getattr(ob_rms, name)) for name in names}


def _tf_view(name: str, variable: Tensor) -> Tensor:
    # A convolution's kernel, `.../W`, is (out, in, h, w) here and (h, w, in, out) there.
    return variable.permute(2, 3, 1, 0) if name.endswith("/W") else variable
