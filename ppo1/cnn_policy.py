"""The policy for images: one shared trunk of convolutions.

Source: baselines/ppo1/cnn_policy.py @ ea25b9e.
Differs: `act` honours `stochastic`, where baselines' always samples.
"""

from typing import Any

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor, nn

from common.torch_util import glorot_uniform_conv, normc
from ppo1.policy import TorchPolicy

# Layers as (filters, kernel size, stride), then the units of the dense layer.
NETWORKS = {
    "small": ([(16, 8, 4), (32, 4, 2)], 256),  # from the A3C paper
    "large": ([(32, 8, 4), (64, 4, 2), (64, 3, 1)], 512),  # from the Nature DQN paper
}


class CnnPolicy(TorchPolicy):
    """Convolutions without padding, ReLU, one dense layer, then logits and value."""

    ARGUMENTS = ("kind",)

    def __init__(
        self, name: str, ob_space: gym.Space, ac_space: gym.Space, kind: str = "large"
    ) -> None:
        """Draw convolutions from torch's generator, dense kernels from NumPy's global state.

        Args:
            name: the scope's name, as in baselines.
            ob_space: uint8 images, (height, width, channels).
            ac_space: any that `make_pdtype` takes.
            kind: 'small' or 'large'.

        Raises:
            ValueError: for spaces that cannot be handled, or an unknown kind.
        """
        super().__init__(name, ob_space, ac_space)
        if kind not in NETWORKS:
            raise ValueError(f"unknown kind {kind!r}: need one of {', '.join(map(repr, NETWORKS))}")
        if len(self.ob_shape) != 3 or ob_space.dtype != np.uint8:
            raise ValueError(
                f"CnnPolicy needs uint8 images (height, width, channels), got {ob_space}"
            )
        self.kind = kind
        convolutions, dense_units = NETWORKS[kind]
        height, width, channels = self.ob_shape
        self.strides = [stride for _, _, stride in convolutions]
        for i, (filters, size, stride) in enumerate(convolutions, start=1):
            kernel = glorot_uniform_conv(channels, filters, (size, size))
            self.register_parameter(f"l{i}/W", nn.Parameter(kernel))
            self.register_parameter(f"l{i}/b", nn.Parameter(torch.zeros(1, 1, 1, filters)))
            height, width = (height - size) // stride + 1, (width - size) // stride + 1
            channels = filters
        if height < 1 or width < 1:
            raise ValueError(f"images of shape {self.ob_shape} are too small for kind {kind!r}")
        self._add_dense("lin", height * width * channels, dense_units, std=1.0)
        self._add_dense("logits", dense_units, self.pdtype.param_shape()[0], std=0.01)
        self._add_dense("value", dense_units, 1, std=1.0)
        self._weights = self.get_trainable_variables()  # a list: no second registration
        self._views_at: list[int] = []

    def _add_dense(self, name: str, inputs: int, outputs: int, std: float) -> None:
        self.register_parameter(f"{name}/kernel", nn.Parameter(normc((inputs, outputs), std)))
        self.register_parameter(f"{name}/bias", nn.Parameter(torch.zeros(outputs)))

    def preprocess(self, ob: Tensor) -> Tensor:
        """Return the images as (N, channels, height, width) in channels-last memory, unscaled."""
        return ob.to(self.device).permute(0, 3, 1, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return (N, P) distribution parameters and (N,) values for preprocessed images."""
        p = self.weights
        x = x.to(torch.float32) / 255.0
        for i, stride in enumerate(self.strides, start=1):
            x = F.relu(F.conv2d(x, p[f"l{i}/W"], p[f"l{i}/b"].flatten(), stride=stride))
        # The dense layer's thousands of terms are summed in parts, one for each row of the last
        # feature map, and the outputs in float64: one float32 sum would stray by some 2e-6.
        rows = x.permute(2, 0, 3, 1).flatten(start_dim=2)  # (height, N, width * channels)
        kernels = p["lin/kernel"].view(rows.shape[0], rows.shape[2], -1)
        x = F.relu(torch.bmm(rows, kernels).sum(dim=0) + p["lin/bias"])
        return self._output("logits", x), self._output("value", x)[:, 0]

    def _output(self, name: str, x: Tensor) -> Tensor:
        kernel, bias = self.weights[f"{name}/kernel"], self.weights[f"{name}/bias"]
        return torch.addmm(bias.double(), x.double(), kernel.double()).to(torch.float32)

    def act(self, stochastic: bool, ob: NDArray[Any]) -> tuple[Any, np.float32]:
        """Return action and value for one observation, computed in NumPy on the same memory.

        For a single image, that takes half as long as torch.
        """
        if self._views_at != list(map(Tensor.data_ptr, self._weights)):
            self._view_parameters()
        if self._convolutions is None:
            return super().act(stochastic, ob)
        self._image[...] = ob
        self._image /= 255.0
        for windows, patches, kernel, bias, output in self._convolutions:
            patches[...] = windows
            np.dot(patches.reshape(len(output), -1), kernel, out=output)
            output += bias
            np.maximum(output, 0.0, out=output)
        kernels, bias = self._dense
        # In parts and in float64, as in `forward`
        x = np.matmul(output.reshape(len(kernels), 1, -1), kernels).sum(axis=0)[0] + bias
        x = np.maximum(x, 0.0).astype(np.float64)
        flat, vpred = ((x.dot(kernel) + bias).astype(np.float32) for kernel, bias in self._outputs)
        return self.pdtype.draw(flat, self.rng if stochastic else None), vpred[0]

    def _view_parameters(self) -> None:
        """Make NumPy views of the parameters, again whenever those have moved in memory.

        A convolution is the product of the patches of its input, copied beside one another, and
        its kernel, (height * width * in, out). The arrays for these are made here too.
        """
        self._views_at = list(map(Tensor.data_ptr, self._weights))
        self._convolutions: list[tuple[NDArray[np.float32], ...]] | None = None
        p = {name: weight.detach() for name, weight in self.weights.items()}
        kernels = [p[f"l{i}/W"].permute(0, 2, 3, 1) for i in range(1, len(self.strides) + 1)]
        if not all(kernel.is_cpu and kernel.is_contiguous() for kernel in kernels):
            return  # somebody has put them elsewhere: act through torch
        self._image = x = np.empty(self.ob_shape, np.float32)
        self._convolutions = []
        for i, (kernel, stride) in enumerate(zip(kernels, self.strides, strict=True), start=1):
            windows = sliding_window_view(x, kernel.shape[1:])[::stride, ::stride, 0]
            height, width, filters = *windows.shape[:2], len(kernel)
            patches = np.empty(windows.shape, x.dtype)  # contiguous, as empty_like would not be
            output = np.empty((height * width, filters), x.dtype)
            matrix, bias = kernel.reshape(filters, -1).numpy().T, p[f"l{i}/b"].flatten().numpy()
            self._convolutions.append((windows, patches, matrix, bias, output))
            x = output.reshape(height, width, filters)
        units = p["lin/bias"].shape[0]
        self._dense = p["lin/kernel"].view(height, -1, units).numpy(), p["lin/bias"].numpy()
        self._outputs = [
            (p[f"{name}/kernel"].numpy(), p[f"{name}/bias"].numpy()) for name in ("logits", "value")
        ]
