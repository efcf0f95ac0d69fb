"""Initial weights, and flat parameter vectors.

Source: baselines/common/tf_util.py @ ea25b9e: normc_initializer, conv2d, GetFlat, SetFromFlat.
Differs: parameters are views of the flat vector, so reading or writing it moves nothing.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch


def normc(shape: tuple[int, int], std: float) -> torch.Tensor:
    """Return an (in, out) kernel whose columns, each output's incoming weights, have norm `std`.

    Draws from NumPy's global legacy state.
    """
    weights = np.random.randn(*shape).astype(np.float32)
    weights *= std / np.sqrt(np.square(weights).sum(axis=0, keepdims=True))
    return torch.from_numpy(weights)


def glorot_uniform_conv(
    in_channels: int, out_channels: int, kernel_size: tuple[int, int]
) -> torch.Tensor:
    """Return an (out, in, height, width) kernel, Glorot-uniform, in channels-last memory.

    Its weights lie within sqrt(6 / (fan_in + fan_out)). Draws from torch's generator: NumPy's
    stream is left to the dense kernels, as in baselines.
    """
    area = math.prod(kernel_size)
    bound = math.sqrt(6.0 / (area * in_channels + area * out_channels))
    weights = torch.empty(out_channels, in_channels, *kernel_size).uniform_(-bound, bound)
    return weights.to(memory_format=torch.channels_last)


def flatten_parameters(parameters: Sequence[torch.nn.Parameter]) -> torch.Tensor:
    """Re-point the parameters' `.data` at views of one new flat vector, which is returned.

    Each parameter keeps its values and its memory order (channels-last stays channels-last).

    Returns:
        (P,) float32, P being the number of weights in all.

    Raises:
        ValueError: if there are none, one is given twice, or one is not float32.
    """
    parameters = list(parameters)
    if not parameters or len({id(p) for p in parameters}) != len(parameters):
        raise ValueError(f"need at least one parameter, each once; got {len(parameters)}")
    wrong = {str(p.dtype) for p in parameters if p.dtype != torch.float32}
    if wrong:
        raise ValueError(f"parameters must be float32, got {', '.join(sorted(wrong))}")
    flat = torch.empty(sum(p.numel() for p in parameters), device=parameters[0].device)
    for parameter, view in zip(parameters, unflatten(flat, parameters), strict=True):
        view.copy_(parameter.data)
        parameter.data = view
    return flat


def unflatten(flat: torch.Tensor, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return views of `flat`, one for each tensor of `like`, with its shape and memory order.

    Args:
        flat: (P,).
        like: tensors with P elements in all.
    """
    views = []
    for part, tensor in zip(flat.split([t.numel() for t in like]), like, strict=True):
        order = np.argsort([-stride for stride in tensor.stride()], kind="stable").tolist()
        memory = part.view([tensor.shape[dim] for dim in order])
        views.append(memory.permute([order.index(dim) for dim in range(tensor.ndim)]))
    return views
