"""Adam on one flat vector, its gradient averaged over all ranks.

Source: baselines/common/mpi_adam.py @ ea25b9e.
Differs: the parameters live in the flat vector for good, so nothing is gathered or scattered; a
non-finite gradient and drifting ranks are errors raised on every rank together.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from common.mpi import MPI
from common.mpi_util import CollectiveError
from common.torch_util import compile_function, flatten_parameters

# Adam makes a dozen passes over its vectors: in chunks of this many numbers they stay in the cache.
CHUNK = 65536


class MpiAdam:
    """Adam whose epsilon stands outside the bias correction, in step on all ranks.

    t     <- t + 1
    a      = stepsize * sqrt(1 - beta2**t) / (1 - beta1**t)      in float64
    m     <- beta1 * m + (1 - beta1) * g                          in float32, as the next two
    v     <- beta2 * v + (1 - beta2) * g * g
    theta <- theta - a * m / (sqrt(v) + epsilon)

    This is not `torch.optim.Adam`, which has epsilon * sqrt(1 - beta2**t) in place of epsilon: a
    smaller number during the first few thousand updates. Every rank keeps m, v and t of its own;
    they agree because the averaged gradient does.

    Attributes:
        theta: (P,) float32 tensor that all parameters are views of, on their device. Where that is
            a GPU, set it by `setfromflat` alone, which sets the copy in host memory too.
        m, v: (P,) float32.
        t: updates made so far.
    """

    def __init__(
        self,
        var_list: Sequence[torch.nn.Parameter],
        *,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-08,
        scale_grad_by_procs: bool = True,
        comm: MPI.Comm | None = None,
    ) -> None:
        """Move the parameters into one flat vector, re-pointing their `.data`.

        Args:
            var_list: float32 parameters, in the order in which the flat vector holds them, all on
                one device.
            beta1: decay of the gradient's running mean, in [0, 1).
            beta2: decay of the squared gradient's running mean, in [0, 1).
            epsilon: added to sqrt(v).
            scale_grad_by_procs: divide the summed gradient by the number of ranks.
            comm: the ranks; None is COMM_WORLD.
        """
        self.comm = MPI.COMM_WORLD if comm is None else comm
        self.beta1, self.beta2, self.epsilon = beta1, beta2, epsilon
        self.scale_grad_by_procs = scale_grad_by_procs
        self.theta = flatten_parameters(var_list)
        self.m: NDArray[np.float32] = np.zeros(len(self.theta), dtype=np.float32)
        self.v: NDArray[np.float32] = np.zeros_like(self.m)
        self.t = 0
        # The ranks meet in host memory: the parameters themselves, or the copy of those on a GPU.
        self._host_theta: NDArray[np.float32] = self.theta.cpu().numpy()
        self._step: Callable[[float, NDArray[np.float32]], Any] = self._step_in_numpy
        self._scratch = np.empty((2, min(CHUNK, len(self.m))), dtype=np.float32)

    def update(self, localg: NDArray[np.float32] | torch.Tensor, stepsize: float) -> None:
        """Average the ranks' gradients and take one step; fills `localg` with the average.

        Args:
            localg: (P,) float32, this rank's gradient.
            stepsize: the learning rate, same on all ranks.

        Collective: every rank must call it.

        Raises:
            ValueError: if `localg` has another shape than the parameters.
            CollectiveError: if the averaged gradient holds a NaN or an infinity, or (looked at
                before every 100th update) the ranks' parameters differ. Nothing has moved then.
        """
        if self.t % 100 == 0:
            self.check_synced()
        if isinstance(localg, torch.Tensor):
            localg = localg.detach().cpu().numpy()
        gradient = np.require(localg, dtype=np.float32, requirements=["C", "W"])
        if gradient.shape != self.m.shape:
            raise ValueError(
                f"a gradient of shape {gradient.shape} for parameters of shape {self.m.shape}"
            )
        if self.comm.Get_size() > 1:
            was_finite = _is_finite(gradient)
            self.comm.Allreduce(MPI.IN_PLACE, gradient, op=MPI.SUM)
            if self.scale_grad_by_procs:
                gradient /= self.comm.Get_size()
        else:
            was_finite = True
        if not _is_finite(gradient):
            self._raise_not_finite(was_finite)
        self._step(stepsize, gradient)
        self.t += 1
        self._to_device()

    def compile(self) -> None:
        """Compile the step: one pass over memory rather than a dozen, with the same bits.

        Raises:
            Exception: whatever keeps it from being compiled; the step in NumPy then stays.
        """

        def step(
            theta: torch.Tensor, m: torch.Tensor, v: torch.Tensor, coefficients: torch.Tensor,
            g: torch.Tensor,
        ) -> tuple[torch.Tensor]:  # fmt: skip
            moved = self._moved(theta, m, v, coefficients, g)
            for old, new in zip((theta, m, v), moved, strict=True):
                old.copy_(new)
            return (coefficients,)  # something must be returned

        compiled = self._compile(step, torch.zeros_like(self.theta, device="cpu"))
        self._step = lambda stepsize, gradient: compiled(stepsize, torch.from_numpy(gradient))

    def compile_with_gradient(
        self, function: Callable[..., tuple[Any, torch.Tensor]], *example: torch.Tensor
    ) -> Callable[..., Any]:
        """Return one compiled function that computes a gradient and takes the step, on one rank.

        It spares a call of compiled code and the passage through NumPy.

        Args:
            function: (theta, *example) to (result, gradient (P,)).
            example: tensors, of whose shapes and dtypes all later ones must be.

        Returns:
            (stepsize, *arguments) to the result. Raises CollectiveError as `update` does.

        Raises:
            ValueError: where there are several ranks, or the parameters are on another device.
            Exception: whatever keeps it from being compiled.
        """
        if self.comm.Get_size() > 1 or self.theta.device.type != "cpu":
            raise ValueError("gradients that are reduced, or on a GPU, need a step of their own")

        def step(
            theta: torch.Tensor, m: torch.Tensor, v: torch.Tensor, coefficients: torch.Tensor,
            *arguments: torch.Tensor,
        ) -> tuple[Any, torch.Tensor]:  # fmt: skip
            result, g = function(theta, *arguments)
            is_finite = g.isfinite().all()
            moved = self._moved(theta, m, v, coefficients, g)
            for old, new in zip((theta, m, v), moved, strict=True):
                old.copy_(torch.where(is_finite, new, old))
            return result, is_finite

        compiled = self._compile(step, *example)

        def update(stepsize: float, *arguments: torch.Tensor) -> Any:
            result, is_finite = compiled(stepsize, *arguments)
            if not is_finite:
                self._raise_not_finite(was_finite=True)
            self.t += 1
            return result

        return update

    def _compile(
        self, step: Callable[..., tuple[Any, ...]], *example: torch.Tensor
    ) -> Callable[..., tuple[Any, ...]]:
        state = [torch.from_numpy(vector) for vector in (self._host_theta, self.m, self.v)]
        numbers = np.zeros(2, dtype=np.float32)
        coefficients = torch.from_numpy(numbers)
        copies = [tensor.clone() for tensor in state]
        compiled = compile_function(step, *copies, coefficients, *example)

        def call(stepsize: float, *arguments: torch.Tensor) -> tuple[Any, ...]:
            numbers[:] = self._coefficients(stepsize)
            return compiled(*state, coefficients, *arguments)

        return call

    def _coefficients(self, stepsize: float) -> tuple[float, float]:
        """Return a and epsilon of the next update."""
        t = self.t + 1
        # Python floats: a NumPy float64 scalar would turn the float32 products into float64.
        a = float(stepsize) * math.sqrt(1 - self.beta2**t) / (1 - self.beta1**t)
        return a, self.epsilon

    def _moved(
        self,
        theta: torch.Tensor,
        m: torch.Tensor,
        v: torch.Tensor,
        coefficients: torch.Tensor,
        g: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return what theta, m and v become."""
        a, epsilon = coefficients.unbind()
        m = self.beta1 * m + (1 - self.beta1) * g
        v = self.beta2 * v + (1 - self.beta2) * (g * g)
        return theta + m * -a / (v.sqrt() + epsilon), m, v

    def _step_in_numpy(self, stepsize: float, gradient: NDArray[np.float32]) -> None:
        a, epsilon = self._coefficients(stepsize)
        for start in range(0, len(self.m), CHUNK):
            chunk = slice(start, start + CHUNK)
            g, m, v = gradient[chunk], self.m[chunk], self.v[chunk]
            left, right = self._scratch[:, : len(g)]
            m *= self.beta1
            m += np.multiply(g, 1 - self.beta1, out=left)
            v *= self.beta2
            v += np.multiply(np.multiply(g, g, out=left), 1 - self.beta2, out=left)
            np.add(np.sqrt(v, out=left), epsilon, out=left)
            np.divide(np.multiply(m, -a, out=right), left, out=right)
            self._host_theta[chunk] += right

    def sync(self) -> None:
        """Give every rank the root's parameters. Collective: every rank must call it."""
        self.comm.Bcast(self._host_theta, root=0)
        self._to_device()

    def check_synced(self) -> None:
        """Compare the parameters with the root's, bit for bit.

        Collective: every rank must call it.

        Raises:
            CollectiveError: on all ranks, naming those that differ and by how much.
        """
        if self.comm.Get_size() == 1:
            return
        root = self._host_theta.copy()
        self.comm.Bcast(root, root=0)
        same = np.array_equal(root.view(np.uint32), self._host_theta.view(np.uint32))
        difference = None if same else float(np.abs(root - self._host_theta).max())
        differences = self.comm.allgather(difference)
        drifted = {rank: size for rank, size in enumerate(differences) if size is not None}
        if drifted:
            listed = ", ".join(f"rank {rank} by up to {size:g}" for rank, size in drifted.items())
            raise CollectiveError(
                f"after {self.t} updates parameters differ from rank 0's: {listed}"
            )

    def getflat(self) -> NDArray[np.float32]:
        """Return a copy of the parameters, (P,) float32."""
        return self._host_theta.copy()

    def setfromflat(self, theta: NDArray[np.float32]) -> None:
        """Set the parameters from a (P,) vector."""
        self._host_theta[:] = theta
        self._to_device()

    def _to_device(self) -> None:
        if self.theta.device.type != "cpu":
            self.theta.copy_(torch.from_numpy(self._host_theta))

    def _raise_not_finite(self, was_finite: bool) -> None:
        culprits = [rank for rank, ok in enumerate(self.comm.allgather(was_finite)) if not ok]
        where = f" (from rank {', '.join(map(str, culprits))})" if culprits else ""
        raise CollectiveError(f"the gradient is not finite{where} at update {self.t + 1}")


def _is_finite(vector: NDArray[np.float32]) -> bool:
    # The sum of squares tells in the usual case; it may overflow where every number is finite, of
    # which `vdot`, unlike `dot`, does not warn.
    return math.isfinite(np.vdot(vector, vector)) or bool(np.isfinite(vector).all())
