"""One update of the policy: a minibatch's losses, their flat gradient, and Adam's step.

Three paths compute it:

    eager     autograd, then `MpiAdam.update`
    compiled  losses and gradient as one compiled function, the Allreduce, then Adam's step as
              another; for several ranks, and for a GPU
    fused     everything as one compiled function; for one rank on the CPU, with nothing in between

Gradients of compiled code equal eager ones to 1e-6. Adam's step has the same bits on all paths.

Dimension letters: T rows of all columns, N rows of a minibatch, P weights, K parts of the loss.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common import logger
from common.mpi import MPI
from common.mpi_adam import MpiAdam
from common.mpi_util import wait_for_all
from common.torch_util import FlatLayout, compile_function, count_compiled, functional_network
from common.watchdog import patience
from ppo1.policy import Policy, network_of

# Compiling takes some 10 seconds and saves 0.6 ms per update or more. It is decided by numbers that
# a second run has too, never by the clock, because compiled gradients differ in the last bits.
UPDATES_WORTH_COMPILING = 25_000
SECONDS_WORTH_COMPILING = 60.0
COMPILE_SECONDS = 1800.0  # after which a rank that compiles is stuck

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

    def __call__(self, stepsize: float, columns: Batch, rows: Tensor, clip_param: Tensor) -> Tensor:
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

    def compile(
        self, columns: Batch, rows: Tensor, clip_param: Tensor, *, fused: bool | None = None
    ) -> None:
        """Compile for columns and minibatches of these shapes and dtypes; others stay eager.

        Args:
            columns, rows, clip_param: as for a call.
            fused: gradient and step as one function; None means wherever that is possible.

        Raises:
            Exception: whatever keeps the policy from being compiled. The eager path then stays.
        """
        example = (clip_param, rows, *columns.values())
        function = self._function_of_theta(list(columns))
        if fused is None:
            fused = self.adam.comm.Get_size() == 1 and self.adam.theta.device.type == "cpu"
        if fused:
            self._compiled = self._compile_fused(function, *example)
        else:
            self._compiled = compile_function(function, self.adam.theta, *example)
            compile_adam(self.adam)
        self.path = "fused" if fused else "compiled"
        self._compiled_for = len(columns["ac"]), len(rows)

    def compile_as_asked(
        self,
        columns: Batch,
        rows: Tensor,
        clip_param: Tensor,
        *,
        compile: bool | None,
        is_worth_it: bool,
        was_compiled: bool | None,
    ) -> bool | None:
        """Compile on all ranks, or do not, and say what happened; return whether it is compiled.

        Args:
            columns, rows, clip_param: as for `compile`.
            compile: True and False decide; None goes by `is_worth_it`.
            is_worth_it: whether a run is long enough.
            was_compiled: of the run that is resumed, if that is known.

        Returns:
            None if it was not tried.

        Collective: every rank must call it.
        """
        is_compiled = None
        if compile or (compile is None and is_worth_it):
            is_compiled = self._compile_in_turn(columns, rows, clip_param, was_asked=bool(compile))
        if was_compiled is not None and was_compiled != bool(is_compiled):
            was, now = ("was", "is not") if was_compiled else ("was not", "is")
            logger.warn(
                f"The saved run's update {was} compiled, this one's {now}: "
                "not exactly what the run would have been"
            )
        return is_compiled

    def _compile_in_turn(
        self, columns: Batch, rows: Tensor, clip_param: Tensor, *, was_asked: bool
    ) -> bool:
        """Compile on the first rank of each machine, then, from its cache, on the others.

        Where one rank cannot, a line in the log says which and why, and all stay eager: the others
        would wait for it, and their gradients would be rounded differently.
        """
        comm = self.adam.comm
        machine = comm.Split_type(MPI.COMM_TYPE_SHARED)
        start, problem, before = time.monotonic(), None, count_compiled()
        for first in (True, False):
            if first == (machine.Get_rank() == 0):
                try:
                    if comm.Get_rank() == 0:
                        logger.log("Compiling the update ...")
                    with patience(COMPILE_SECONDS):
                        self.compile(columns, rows, clip_param)
                except Exception as error:
                    problem = (str(error) or repr(error)).strip().splitlines()[0]
            wait_for_all(machine)
        machine.Free()
        wait_for_all(comm)  # other machines may still compile
        problems = comm.allgather(problem)
        failed = [rank for rank, problem in enumerate(problems) if problem is not None]
        if failed:
            self.path = "eager"
            self.adam.step = self.adam.step_in_numpy
            where = "" if len(failed) == len(problems) else f"rank {', '.join(map(str, failed))}: "
            text = f"Not compiling the update, which is slower: {where}{problems[failed[0]]}"
            logger.warn(f"WARNING: cannot compile as asked. {text}" if was_asked else text)
            return False
        anew, cached = (now - then for now, then in zip(count_compiled(), before, strict=True))
        parts = "gradient and step in one" if self.path == "fused" else "gradient and step apart"
        origin = ", anew" if anew else ", from the cache" if cached else ""
        logger.log(f"Compiled the update in {time.monotonic() - start:.1f} s ({parts}{origin})")
        return True

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

        compiled = compile_with_adam(self.adam, step, *example)

        def update(stepsize: float, *arguments: Tensor) -> Tensor:
            losses, is_finite = compiled(stepsize, *arguments)
            if not is_finite:
                self.adam.raise_not_finite(was_finite=True)
            self.adam.t += 1
            return losses

        return update

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


def is_worth_compiling(updates: float, max_seconds: float) -> bool:
    """Return whether a run of so many updates on a rank, or seconds, is long enough."""
    return updates > UPDATES_WORTH_COMPILING or max_seconds > SECONDS_WORTH_COMPILING


def compile_adam(adam: MpiAdam) -> None:
    """Have `adam` take compiled steps: one pass over memory rather than a dozen, the same bits.

    Raises:
        Exception: whatever keeps it from being compiled; the step in NumPy then stays.
    """

    def step(
        theta: Tensor, m: Tensor, v: Tensor, coefficients: Tensor, gradient: Tensor
    ) -> tuple[Tensor]:
        moved = adam_step(adam, theta, m, v, coefficients, gradient)
        for old, new in zip((theta, m, v), moved, strict=True):
            old.copy_(new)
        return (coefficients,)  # something must be returned

    compiled = compile_with_adam(adam, step, torch.zeros_like(adam.theta, device="cpu"))
    adam.step = lambda stepsize, gradient: compiled(stepsize, torch.from_numpy(gradient))


def compile_with_adam(
    adam: MpiAdam, step: Callable[..., tuple[Any, ...]], *example: Tensor
) -> Callable[..., tuple[Any, ...]]:
    """Compile `step(theta, m, v, coefficients, *example)` on Adam's own vectors.

    Returns:
        a function of the step size and of what stands for `example`.
    """
    state = [torch.from_numpy(vector) for vector in (adam.host_theta, adam.m, adam.v)]
    numbers = np.zeros(2, dtype=np.float32)
    coefficients = torch.from_numpy(numbers)
    copies = [tensor.clone() for tensor in state]
    compiled = compile_function(step, *copies, coefficients, *example)

    def call(stepsize: float, *arguments: Tensor) -> tuple[Any, ...]:
        numbers[:] = adam.coefficients(stepsize)
        return compiled(*state, coefficients, *arguments)

    return call


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
