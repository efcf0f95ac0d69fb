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
from ppo1.policy import IMAGES, ActingNetwork, TorchPolicy

# Layers as (filters, kernel size, stride), then the units of the dense layer.
NETWORKS = {
    "small": ([(16, 8, 4), (32, 4, 2)], 256),  # from the A3C paper
    "large": ([(32, 8, 4), (64, 4, 2), (64, 3, 1)], 512),  # from the Nature DQN paper
}


def what_to_do(shape: tuple[int, ...], dtype: Any) -> str | None:
    """Return what makes images of observations that are none, and None for images.

    Images count as channels-first if they have fewer rows than columns and than channels.
    """
    if len(shape) == 3 and shape[0] < min(shape[1:]):
        return (
            "these come channels first; gymnasium.wrappers.TransformObservation with "
            "numpy.moveaxis(ob, 0, -1) puts them last"
        )
    if len(shape) == 2:
        return f"gymnasium.wrappers.ReshapeObservation to {(*shape, 1)} adds the channel"
    if len(shape) == 4:
        return (
            "each is several images, whose channels have to be put side by side; "
            "gymnasium.wrappers.TransformObservation does that with a function of yours"
        )
    if len(shape) != 3:
        return "MlpPolicy takes these"
    if dtype != np.uint8:
        return "leave the pixels as they are, 0 to 255, unscaled; the policy divides by 255"
    return None


class CnnPolicy(TorchPolicy):
    """Convolutions without padding, ReLU, one dense layer, then logits and value."""

    ARGUMENTS = ("kind",)
    NETWORK = (*TorchPolicy.NETWORK, "_output")
    ob_dtypes = IMAGES

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
        if remedy := what_to_do(self.ob_shape, self.ob_space.dtype):
            raise ValueError(
                f"CnnPolicy needs uint8 images (height, width, channels), got {ob_space}: {remedy}"
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

    def _numpy_network(self) -> ActingNetwork | None:
        """Return the network on NumPy views of the parameters; it takes half as long as torch.

        A convolution is the product of the patches of its input, copied beside one another, and
        its kernel, (height * width * in, out). The arrays for these are made here too.
        """
        p = {name: weight.detach() for name, weight in self.weights.items()}
        kernels = [p[f"l{i}/W"].permute(0, 2, 3, 1) for i in range(1, len(self.strides) + 1)]
        if not all(weight.is_cpu and weight.dtype == torch.float32 for weight in p.values()):
            return None  # somebody has put them elsewhere
        if not all(kernel.is_contiguous() for kernel in kernels):
            return None
        image = x = np.empty(self.ob_shape, np.float32)
        convolutions: list[tuple[NDArray[np.float32], ...]] = []
        for i, (kernel, stride) in enumerate(zip(kernels, self.strides, strict=True), start=1):
            windows = sliding_window_view(x, kernel.shape[1:])[::stride, ::stride, 0]
            height, width, filters = *windows.shape[:2], len(kernel)
            patches = np.empty(windows.shape, x.dtype)  # contiguous, as empty_like would not be
            output = np.empty((height * width, filters), x.dtype)
            matrix, bias = kernel.reshape(filters, -1).numpy().T, p[f"l{i}/b"].flatten().numpy()
            convolutions.append((windows, patches, matrix, bias, output))
            x = output.reshape(height, width, filters)
        units = p["lin/bias"].shape[0]
        dense_kernels = p["lin/kernel"].view(height, -1, units).numpy()
        dense_bias = p["lin/bias"].numpy()
        outputs = [
            (p[f"{name}/kernel"].numpy(), p[f"{name}/bias"].numpy()) for name in ("logits", "value")
        ]

        def network(ob: NDArray[Any]) -> tuple[NDArray[np.float32], np.float32]:
            image[...] = ob
            np.divide(image, 255.0, out=image)
            for windows, patches, kernel, bias, output in convolutions:
                patches[...] = windows
                np.dot(patches.reshape(len(output), -1), kernel, out=output)
                output += bias
                np.maximum(output, 0.0, out=output)
            # In parts and in float64, as in `forward`
            rows = output.reshape(height, 1, -1)
            x = np.matmul(rows, dense_kernels).sum(axis=0)[0] + dense_bias
            x = np.maximum(x, 0.0).astype(np.float64)
            flat, vpred = ((x.dot(kernel) + bias).astype(np.float32) for kernel, bias in outputs)
            return flat, vpred[0]

        return network
