"""The policy for vector observations: two separate towers of tanh layers.

Source: baselines/ppo1/mlp_policy.py @ ea25b9e.
Differs: takes observations of several dimensions too, flattened.
"""

import math
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.distributions import DiagGaussianPdType
from common.mpi_running_mean_std import RunningMeanStd
from common.torch_util import flatten_parameters, normc
from ppo1.policy import ActingNetwork, TorchPolicy

OB_CLIP = 5.0

# A layer for acting: kernel and bias as one matrix, its units, and the same units before a 1.
Layer = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]


class MlpPolicy(TorchPolicy):
    """`num_hid_layers` tanh layers of `hid_size` units, once for the value, once for the policy.

    Observations are normalized by running statistics and clipped to +-5. For Box actions the log
    standard deviation is a parameter of its own, independent of the state, unless
    `gaussian_fixed_var` is False.

    Attributes:
        ob_rms: the observations' `RunningMeanStd`.
    """

    ARGUMENTS = ("hid_size", "num_hid_layers", "gaussian_fixed_var")
    NETWORK = (*TorchPolicy.NETWORK, "_tower")

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
        self.hid_size, self.num_hid_layers = hid_size, num_hid_layers
        self.gaussian_fixed_var = gaussian_fixed_var
        self.ob_rms = RunningMeanStd(shape=self.ob_shape)
        self.fixed_var = gaussian_fixed_var and isinstance(self.pdtype, DiagGaussianPdType)
        pdparam_size = self.pdtype.param_shape()[0]
        policy_outputs = pdparam_size // 2 if self.fixed_var else pdparam_size
        sizes = [math.prod(self.ob_shape)] + [hid_size] * num_hid_layers
        self._add_tower("vf", [*sizes, 1], final_std=1.0)
        self._add_tower("pol", [*sizes, policy_outputs], final_std=0.01)
        if self.fixed_var:
            self.register_parameter("pol/logstd", nn.Parameter(torch.zeros(1, policy_outputs)))
        flatten_parameters(self.get_trainable_variables())

    def _add_tower(self, scope: str, sizes: list[int], final_std: float) -> None:
        for i in range(len(sizes) - 1):
            final = i == self.num_hid_layers
            layer = f"{scope}/final" if final else f"{scope}/fc{i + 1}"
            kernel = normc((sizes[i], sizes[i + 1]), final_std if final else 1.0)
            self.register_parameter(f"{layer}/kernel", nn.Parameter(kernel))
            self.register_parameter(f"{layer}/bias", nn.Parameter(torch.zeros(sizes[i + 1])))

    def preprocess(self, ob: Tensor) -> Tensor:
        """Return the normalized observations, (N, size) float32."""
        mean = torch.from_numpy(self.ob_rms.mean).to(self.device)
        std = torch.from_numpy(self.ob_rms.std).to(self.device)
        normalized = (ob.to(self.device, torch.float32) - mean) / std
        return normalized.clamp(-OB_CLIP, OB_CLIP).reshape(ob.shape[0], -1)

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

    def _numpy_network(self) -> ActingNetwork | None:
        """Return the network on NumPy views of the parameters.

        A bias follows its kernel in the flat vector, so the two are one matrix of a row more, and
        a vector with a 1 at its end gets both in one product.
        """
        weights = self.weights
        layers = [f"fc{i + 1}" for i in range(self.num_hid_layers)] + ["final"]
        towers: list[list[Layer]] = [[], []]
        for tower, scope in zip(towers, ("vf", "pol"), strict=True):
            for layer in layers:
                kernel, bias = weights[f"{scope}/{layer}/kernel"], weights[f"{scope}/{layer}/bias"]
                follows = bias.data_ptr() == kernel.data_ptr() + kernel.nbytes
                if kernel.device.type != "cpu" or kernel.dtype != torch.float32 or not follows:
                    return None  # somebody has put them elsewhere
                rows, columns = kernel.shape
                matrix = kernel.detach().as_strided((rows + 1, columns), (columns, 1))
                units_and_one = np.ones(columns + 1, np.float32)
                tower.append((matrix.numpy(), units_and_one[:-1], units_and_one))
        (*value_layers, (last_value, vpred, _)), (*policy_layers, (last, outputs, _)) = towers
        x_and_one = np.ones(math.prod(self.ob_shape) + 1, np.float32)
        x = x_and_one[:-1].reshape(self.ob_shape)
        high = np.full_like(x, OB_CLIP)
        low = -high
        pdparam = outputs
        if self.fixed_var:
            logstd = weights["pol/logstd"].detach()[0].numpy()
            pdparam = np.empty(2 * len(logstd), np.float32)
            outputs, logstd_outputs = np.split(pdparam, 2)

        def network(ob: NDArray[Any]) -> tuple[NDArray[np.float32], np.float32]:
            x[...] = ob
            np.subtract(x, self.ob_rms.mean, x)
            np.divide(x, self.ob_rms.std, x)
            np.minimum(x, high, out=x)
            np.maximum(x, low, out=x)
            h = x_and_one
            for matrix, units, units_and_one in value_layers:
                h.dot(matrix, units)
                np.tanh(units, units)
                h = units_and_one
            h.dot(last_value, vpred)
            h = x_and_one
            for matrix, units, units_and_one in policy_layers:
                h.dot(matrix, units)
                np.tanh(units, units)
                h = units_and_one
            h.dot(last, outputs)
            if self.fixed_var:
                logstd_outputs[...] = logstd
            return pdparam, vpred[0]

        return network
