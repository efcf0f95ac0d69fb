"""One update of the policy: a minibatch's losses, their flat gradient, and Adam's step.

Three paths compute it:

    eager     autograd, then `MpiAdam.update`
    compiled  losses and gradient as one compiled function, the Allreduce, then Adam's step as
              another; for several ranks, and for a GPU
    fused     everything as one compiled function; for one rank on the CPU, with nothing in between

Gradients of compiled code equal eager ones to 1e-6. Adam's step has the same bits on all paths.

Dimension letters: T rows of all columns, N rows of a minibatch, P weights, K parts of the loss.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.mpi_adam import MpiAdam
from common.torch_util import FlatLayout, compile_function, functional_network
from ppo1.policy import Policy, network_of

Batch = Mapping[str, Tensor]
# From distribution parameters (N, P'), values (N,), a minibatch and the clip range (): the loss ()
# to be minimized, and its detached parts (K,).
Losses = Callable[[Tensor, Tensor, Batch, Tensor], tuple[Tensor, Tensor]]


class Update:
    """Takes gradient steps on minibatches of a policy's columns, eagerly until `compile`.

    Attributes:
        path: "eager", "compiled" or "fused".
    """

    def __init__(self, pi: Policy, adam: MpiAdam, losses: Losses) -> None:
        """Take the policy, the optimizer of its parameters, and the loss."""
        self.pi, self.adam, self._losses_of = pi, adam, losses
        self.network = network_of(pi)
        self.parameters = pi.get_trainable_variables()
        self.layout = FlatLayout(self.parameters)
        self.gradient = torch.zeros_like(adam.theta)
        self.views = self.layout.views(self.gradient)
        self.path = "eager"
        self._compiled: Callable[..., Any] | None = None
        self._compiled_for = (0, 0)

    def __call__(
        self, stepsize: float, columns: Batch, rows: Tensor, clip_param: Tensor
    ) -> Tensor:
        """Take one step on a minibatch and return its losses (K,) before the step.

        Args:
            stepsize: Adam's, the same on all ranks.
            columns: of T rows each; `ob` is what the network takes.
            rows: (N,) int64, the minibatch's.
            clip_param: ().

        Collective: every rank must call it.

        Raises:
            CollectiveError: on all ranks, if the averaged gradient is not finite.
        """
        if self.path == "fused" and self._is_compiled_for(columns, rows):
            assert self._compiled is not None
            return self._compiled(stepsize, clip_param, rows, *columns.values())
        losses, gradient = self.losses_and_gradient(columns, rows, clip_param)
        self.adam.update(gradient, stepsize)
        return losses

    def losses_and_gradient(
        self, columns: Batch, rows: Tensor, clip_param: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return a minibatch's losses (K,) and gradient (P,), which the next call may overwrite.

        A loss that is not finite makes the whole gradient NaN, which tells all ranks.
        """
        if self.path == "compiled" and self._is_compiled_for(columns, rows):
            assert self._compiled is not None
            return self._compiled(self.adam.theta, clip_param, rows, *columns.values())
        total, losses = self._losses(self.network, select(columns, rows), clip_param)
        # An unused parameter's gradient is zero, as in TensorFlow's flatgrad
        gradients = torch.autograd.grad(total, self.parameters, allow_unused=True)
        for view, gradient in zip(self.views, gradients, strict=True):
            view.zero_() if gradient is None else view.copy_(gradient)
        self.gradient += zero_or_nan(total)
        return losses, self.gradient

    @torch.no_grad()
    def losses(self, columns: Batch, rows: Tensor, clip_param: Tensor) -> Tensor:
        """Return the losses (K,) of the given rows."""
        return self._losses(self.network, select(columns, rows), clip_param)[1]

    def compile(self, columns: Batch, rows: Tensor, clip_param: Tensor) -> None:
        """Compile for columns and minibatches of these shapes and dtypes; others stay eager.

        Raises:
            Exception: whatever keeps the policy from being compiled. The eager path then stays.
        """
        example = (clip_param, rows, *columns.values())
        function = self._function_of_theta(list(columns))
        if self.adam.comm.Get_size() == 1 and self.adam.theta.device.type == "cpu":
            self._compiled, path = self._compile_fused(function, *example), "fused"
        else:
            self._compiled = compile_function(function, self.adam.theta, *example)
            self._compile_adam()
            path = "compiled"
        self.path, self._compiled_for = path, (len(columns["ac"]), len(rows))

    def _compile_fused(
        self, function: Callable[..., tuple[Tensor, Tensor]], *example: Tensor
    ) -> Callable[..., Tensor]:
        def step(
            theta: Tensor, m: Tensor, v: Tensor, coefficients: Tensor, *arguments: Tensor
        ) -> tuple[Tensor, Tensor]:
            losses, gradient = function(theta, *arguments)
            is_finite = gradient.isfinite().all()
            moved = adam_step(self.adam, theta, m, v, coefficients, gradient)
            for old, new in zip((theta, m, v), moved, strict=True):
                old.copy_(torch.where(is_finite, new, old))
            return losses, is_finite

        compiled = self._compile_with_adam(step, *example)

        def update(stepsize: float, *arguments: Tensor) -> Tensor:
            losses, is_finite = compiled(stepsize, *arguments)
            if not is_finite:
                self.adam.raise_not_finite(was_finite=True)
            self.adam.t += 1
            return losses

        return update

    def _compile_adam(self) -> None:
        """Have Adam take compiled steps: one pass over memory rather than a dozen."""

        def step(
            theta: Tensor, m: Tensor, v: Tensor, coefficients: Tensor, gradient: Tensor
        ) -> tuple[Tensor]:
            moved = adam_step(self.adam, theta, m, v, coefficients, gradient)
            for old, new in zip((theta, m, v), moved, strict=True):
                old.copy_(new)
            return (coefficients,)  # something must be returned

        compiled = self._compile_with_adam(step, torch.zeros_like(self.adam.theta, device="cpu"))
        self.adam.step = lambda stepsize, gradient: compiled(stepsize, torch.from_numpy(gradient))

    def _compile_with_adam(
        self, step: Callable[..., tuple[Any, ...]], *example: Tensor
    ) -> Callable[..., tuple[Any, ...]]:
        """Compile `step(theta, m, v, coefficients, *example)` on Adam's own vectors.

        Returns:
            a function of the step size and of what stands for `example`.
        """
        adam = self.adam
        state = [torch.from_numpy(vector) for vector in (adam.host_theta, adam.m, adam.v)]
        numbers = np.zeros(2, dtype=np.float32)
        coefficients = torch.from_numpy(numbers)
        copies = [tensor.clone() for tensor in state]
        compiled = compile_function(step, *copies, coefficients, *example)

        def call(stepsize: float, *arguments: Tensor) -> tuple[Any, ...]:
            numbers[:] = adam.coefficients(stepsize)
            return compiled(*state, coefficients, *arguments)

        return call

    def _function_of_theta(self, names: list[str]) -> Callable[..., tuple[Tensor, Tensor]]:
        """Return losses and gradient as a function of (theta, clip_param, rows, *columns)."""
        if hasattr(self.pi, "ob_rms") and self.network is not self.pi:
            raise TypeError(f"the statistics of {type(self.pi).__name__} would be frozen")
        network, weight_names = functional_network(self.network, self.parameters)

        def losses_and_gradient(
            theta: Tensor, clip_param: Tensor, rows: Tensor, *values: Tensor
        ) -> tuple[Tensor, Tensor]:
            batch = select(dict(zip(names, values, strict=True)), rows)

            def total_and_losses(theta: Tensor) -> tuple[Tensor, Tensor]:
                weights = dict(zip(weight_names, self.layout.views(theta), strict=True))
                return self._losses(lambda ob: network(weights, ob), batch, clip_param)

            gradient, (total, losses) = torch.func.grad_and_value(total_and_losses, has_aux=True)(
                theta
            )
            return losses, gradient + zero_or_nan(total)

        return losses_and_gradient

    def _losses(
        self, network: Callable[[Tensor], tuple[Tensor, Tensor]], batch: Batch, clip_param: Tensor
    ) -> tuple[Tensor, Tensor]:
        return self._losses_of(*network(batch["ob"]), batch, clip_param)

    def _is_compiled_for(self, columns: Batch, rows: Tensor) -> bool:
        return self._compiled_for == (len(columns["ac"]), len(rows))


def adam_step(
    adam: MpiAdam, theta: Tensor, m: Tensor, v: Tensor, coefficients: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what theta, m and v become: `MpiAdam`'s formula in torch, with the same bits.

    Args:
        adam: of which beta1 and beta2 are taken.
        theta, m, v, gradient: (P,) float32.
        coefficients: (2,) float32, `adam.coefficients`.
    """
    a, epsilon = coefficients.unbind()
    m = adam.beta1 * m + (1 - adam.beta1) * gradient
    v = adam.beta2 * v + (1 - adam.beta2) * (gradient * gradient)
    return theta + m * -a / (v.sqrt() + epsilon), m, v


def select(columns: Batch, rows: Tensor) -> dict[str, Tensor]:
    """Return the given rows of all columns."""
    return {name: column.index_select(0, rows) for name, column in columns.items()}


def zero_or_nan(total: Tensor) -> Tensor:
    """Return 0 for a finite number and NaN for any other."""
    return (total - total).detach()
