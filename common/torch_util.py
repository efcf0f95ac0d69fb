"""Initial weights, and flat parameter vectors.

Source: baselines/common/tf_util.py @ ea25b9e: normc_initializer, conv2d, GetFlat, SetFromFlat.
Differs: parameters are views of the flat vector, so reading or writing it moves nothing.
"""

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

MANY_WEIGHTS = 2**22  # whose drawing takes 50 MB
_weights_left: float = math.inf  # that may be drawn, inside `at_most_weights`


@contextlib.contextmanager
def at_most_weights(count: float) -> Iterator[None]:
    """Refuse to draw the weights of networks that are larger than `count`, and than MANY_WEIGHTS.

    A file's sizes may ask for any memory; a network that is to be filled from the file needs no
    more weights than that has.
    """
    global _weights_left
    before, _weights_left = _weights_left, max(count, MANY_WEIGHTS)
    try:
        yield
    finally:
        _weights_left = before


def _count_weights(*shape: int) -> None:
    """Raise ValueError if there may not be as many weights more."""
    global _weights_left
    _weights_left -= math.prod(shape)
    if _weights_left < 0:
        raise ValueError(f"the network is larger than the saved one: a layer of {shape} weights")


def normc(shape: tuple[int, int], std: float) -> torch.Tensor:
    """Return an (in, out) kernel whose columns, each output's incoming weights, have norm `std`.

    Draws from NumPy's global legacy state.
    """
    _count_weights(*shape)
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
    _count_weights(out_channels, in_channels, *kernel_size)
    area = math.prod(kernel_size)
    bound = math.sqrt(6.0 / (area * in_channels + area * out_channels))
    weights = torch.empty(out_channels, in_channels, *kernel_size).uniform_(-bound, bound)
    return weights.to(memory_format=torch.channels_last)


class FlatLayout:
    """How several tensors lie in one flat vector, one after another, each in its own memory order.

    Attributes:
        size: P, the number of elements in all.
    """

    def __init__(self, like: Sequence[torch.Tensor]) -> None:
        """Take the shapes and memory orders of `like`; a channels-last one stays channels-last."""
        self._sizes = [tensor.numel() for tensor in like]
        self.size = sum(self._sizes)
        self._memory_shapes, self._permutations = [], []
        for tensor in like:
            # Its dimensions, the one with the largest stride first, are those of the memory.
            order = np.argsort([-stride for stride in tensor.stride()], kind="stable").tolist()
            self._memory_shapes.append([tensor.shape[dim] for dim in order])
            self._permutations.append([order.index(dim) for dim in range(tensor.ndim)])

    def views(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """Return views of `flat`, (P,), in the shapes of the tensors."""
        parts = zip(flat.split(self._sizes), self._memory_shapes, self._permutations, strict=True)
        return [part.view(shape).permute(permutation) for part, shape, permutation in parts]


def flatten_parameters(parameters: Sequence[torch.nn.Parameter]) -> torch.Tensor:
    """Re-point the parameters' `.data` at views of one new flat vector, which is returned.

    Each parameter keeps its values and its memory order.

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
    layout = FlatLayout(parameters)
    flat = torch.empty(layout.size, device=parameters[0].device)
    for parameter, view in zip(parameters, layout.views(flat), strict=True):
        view.copy_(parameter.data)
        parameter.data = view
    return flat


def functional_network(
    network: Any, parameters: Sequence[nn.Parameter]
) -> tuple[Callable[[Mapping[str, torch.Tensor], torch.Tensor], Any], list[str]]:
    """Return a network as a function of {name: weight} and its input, and the weights' names.

    Args:
        network: a module, or a method of one.
        parameters: the weights, all of them the module's.

    Raises:
        TypeError: if there is no `torch.nn.Module`.
        KeyError: if one of `parameters` is not the module's.
    """
    owner = getattr(network, "__self__", network)
    if not isinstance(owner, nn.Module):
        raise TypeError(f"{type(owner).__name__} is not a torch.nn.Module")
    module = network if network is owner else _Caller(owner, network.__name__)
    by_id = {id(parameter): name for name, parameter in module.named_parameters()}
    names = [by_id[id(parameter)] for parameter in parameters]
    return lambda weights, ob: torch.func.functional_call(module, dict(weights), (ob,)), names


class _Caller(nn.Module):
    """Makes a method of a module the forward of one."""

    def __init__(self, owner: nn.Module, method: str) -> None:
        super().__init__()
        self.owner, self.method = owner, method

    def forward(self, ob: torch.Tensor) -> Any:
        return getattr(self.owner, self.method)(ob)


def compile_function(function: Callable[..., Any], *example: torch.Tensor) -> Callable[..., Any]:
    """Return `function` compiled for tensors of the shapes and dtypes of `example`.

    The function is traced once, so its Python code must not depend on the tensors' values. The
    result checks nothing: calling it costs half of what calling `torch.compile`'s does. Kernels
    are cached on disk, where TORCHINDUCTOR_CACHE_DIR says.

    Raises:
        Exception: whatever torch raises where there is no C++ compiler, or no way to trace.
    """
    # Whether something is compiled must not show in what is drawn later
    with torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch's compiler deprecates in torch is its affair
        graph = make_fx(function)(*example)
        compiled = torch._inductor.standalone_compile(
            graph,
            list(example),
            dynamic_shapes="from_example_inputs",
            options={
                "config_patches": {
                    "cpp_wrapper": True,  # calls the kernels from C++
                    "cpp.use_decompose_tanh": True,  # tanh by exp: 6 times faster, within 1e-7
                    "cpp.vec_isa_ok": True,  # spares test programs for the processor's vectors
                }
            },
        )
        compiled(*example)
    return compiled


def count_compiled() -> tuple[int, int]:
    """Return how many functions this process has compiled anew, and how many from the cache.

    Torch's private counters say so; where there are none, both are 0.
    """
    try:
        counters = torch._dynamo.utils.counters["inductor"]
        return counters["fxgraph_cache_miss"], counters["fxgraph_cache_hit"]
    except (AttributeError, KeyError):
        return 0, 0


@contextlib.contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Have torch use `count` threads in a `with` block, then as many as before; None: as many."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
