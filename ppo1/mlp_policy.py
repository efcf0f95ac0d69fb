"""The policy for vector observations: two separate towers of tanh layers.

Source: baselines/ppo1/mlp_policy.py @ ea25b9e.
Differs: takes observations of several dimensions too, flattened.
"""

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.distributions import DiagGaussianPdType
from common.mpi_running_mean_std import RunningMeanStd
from common.torch_util import normc
from ppo1.policy import TorchPolicy

OB_CLIP = 5.0


class MlpPolicy(TorchPolicy):
    """`num_hid_layers` tanh layers of `hid_size` units, once for the value, once for the policy.

    Observations are normalized by running statistics and clipped to +-5. For Box actions the log
    standard deviation is a parameter of its own, independent of the state, unless
    `gaussian_fixed_var` is False.

    Attributes:
        ob_rms: the observations' `RunningMeanStd`.
    """

    def __init__(
        self,
        name: str,
        ob_space: gym.Space,
        ac_space: gym.Space,
        hid_size: int,
        num_hid_layers: int,
        gaussian_fixed_var: bool = True,
    ) -> None:
        """Draw the initial weights from NumPy's global state, in the order of the variables.

        Raises:
            ValueError: for spaces that cannot be handled, or sizes below 1.
        """
        super().__init__(name, ob_space, ac_space)
        if hid_size < 1 or num_hid_layers < 1:
            raise ValueError(
                f"hid_size ({hid_size}) and num_hid_layers ({num_hid_layers}) must be at least 1"
            )
        self.num_hid_layers = num_hid_layers
        self.ob_rms = RunningMeanStd(shape=self.ob_shape)
        self.fixed_var = gaussian_fixed_var and isinstance(self.pdtype, DiagGaussianPdType)
        pdparam_size = self.pdtype.param_shape()[0]
        policy_outputs = pdparam_size // 2 if self.fixed_var else pdparam_size
        sizes = [int(np.prod(self.ob_shape))] + [hid_size] * num_hid_layers
        self._add_tower("vf", [*sizes, 1], final_std=1.0)
        self._add_tower("pol", [*sizes, policy_outputs], final_std=0.01)
        if self.fixed_var:
            self.register_parameter("pol/logstd", nn.Parameter(torch.zeros(1, policy_outputs)))
        self._views_at = 0

    def _add_tower(self, scope: str, sizes: list[int], final_std: float) -> None:
        for i in range(len(sizes) - 1):
            final = i == self.num_hid_layers
            layer = f"{scope}/final" if final else f"{scope}/fc{i + 1}"
            kernel = normc((sizes[i], sizes[i + 1]), final_std if final else 1.0)
            self.register_parameter(f"{layer}/kernel", nn.Parameter(kernel))
            self.register_parameter(f"{layer}/bias", nn.Parameter(torch.zeros(sizes[i + 1])))

    def preprocess(self, ob: Tensor) -> Tensor:
        """Return the normalized observations, (N, size) float32."""
        mean, std = torch.from_numpy(self.ob_rms.mean), torch.from_numpy(self.ob_rms.std)
        normalized = (ob.to(torch.float32) - mean) / std
        return normalized.clamp(-OB_CLIP, OB_CLIP).flatten(start_dim=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return (N, P) distribution parameters and (N,) values for normalized observations."""
        vpred = self._tower("vf", x)[:, 0]
        pdparam = self._tower("pol", x)
        if self.fixed_var:
            logstd = self.weights["pol/logstd"]
            pdparam = torch.cat([pdparam, pdparam * 0.0 + logstd], dim=1)
        return pdparam, vpred

    def _tower(self, scope: str, x: Tensor) -> Tensor:
        p = self.weights
        for i in range(self.num_hid_layers):
            layer = f"{scope}/fc{i + 1}"
            x = torch.tanh(torch.addmm(p[f"{layer}/bias"], x, p[f"{layer}/kernel"]))
        return torch.addmm(p[f"{scope}/final/bias"], x, p[f"{scope}/final/kernel"])

    def act(self, stochastic: bool, ob: NDArray[Any]) -> tuple[Any, np.float32]:
        """Return action and value for one observation, computed in NumPy on the same memory.

        A single observation through torch costs several times as much as the arithmetic.
        """
        if self._views_at != next(self.parameters()).data_ptr():
            self._view_parameters()
        mean, std = self.ob_rms.mean, self.ob_rms.std
        x = (np.asarray(ob, dtype=np.float32) - mean) / std
        x = np.minimum(np.maximum(x, -OB_CLIP), OB_CLIP).ravel()
        outputs = []
        for hidden, (kernel, bias) in self._towers:
            h = x
            for w, b in hidden:
                h = np.tanh(h @ w + b)
            outputs.append(h @ kernel + bias)
        vpred, flat = outputs
        if self.fixed_var:
            flat = np.concatenate([flat, self._logstd])
        return self.pdtype.draw(flat, self.rng if stochastic else None), vpred[0]

    def _view_parameters(self) -> None:
        """Make NumPy views of the parameters, again whenever those have moved in memory."""
        arrays = {name: p.detach().numpy() for name, p in self.named_parameters()}

        def layer(name: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            return arrays[f"{name}/kernel"], arrays[f"{name}/bias"]

        self._towers = [
            (
                [layer(f"{scope}/fc{i + 1}") for i in range(self.num_hid_layers)],
                layer(f"{scope}/final"),
            )
            for scope in ("vf", "pol")
        ]
        self._logstd = arrays["pol/logstd"][0] if self.fixed_var else None
        self._views_at = next(self.parameters()).data_ptr()
