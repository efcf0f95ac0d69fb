"""Adam on one flat vector, its gradient averaged over all ranks.

Source: baselines/common/mpi_adam.py @ ea25b9e.
Differs: the parameters live in the flat vector for good, so nothing is gathered or scattered; a
non-finite gradient and drifting ranks are errors raised on every rank together.
"""

import math
from collections.abc import Callable, Sequence
from typing import NoReturn

import numpy as np
import torch
from numpy.typing import NDArray

from common.mpi import MPI
from common.mpi_util import CollectiveError
from common.torch_util import flatten_parameters

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
        host_theta: theta in host memory: the same memory, or the copy of a GPU's.
        step: takes (stepsize, averaged gradient) and moves theta, m and v; may be replaced by
            something faster with the same bits.
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
        # The ranks meet in host memory
        self.host_theta: NDArray[np.float32] = self.theta.cpu().numpy()
        self.step: Callable[[float, NDArray[np.float32]], object] = self.step_in_numpy
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
            self.raise_not_finite(was_finite)
        self.step(stepsize, gradient)
        self.t += 1
        self._to_device()

    def coefficients(self, stepsize: float) -> tuple[float, float]:
        """Return a and epsilon of the next update."""
        t = self.t + 1
        # Python floats: a NumPy float64 scalar would turn the float32 products into float64.
        a = float(stepsize) * math.sqrt(1 - self.beta2**t) / (1 - self.beta1**t)
        return a, self.epsilon

    def step_in_numpy(self, stepsize: float, gradient: NDArray[np.float32]) -> None:
        """Move theta, m and v by one step; `gradient` is the averaged one, (P,)."""
        a, epsilon = self.coefficients(stepsize)
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
            self.host_theta[chunk] += right

    def sync(self) -> None:
        """Give every rank the root's parameters. Collective: every rank must call it."""
        self.comm.Bcast(self.host_theta, root=0)
        self._to_device()

    def check_synced(self) -> None:
        """Compare the parameters with the root's, bit for bit.

        Collective: every rank must call it.

        Raises:
            CollectiveError: on all ranks, naming those that differ and by how much.
        """
        if self.comm.Get_size() == 1:
            return
        root = self.host_theta.copy()
        self.comm.Bcast(root, root=0)
        same = np.array_equal(root.view(np.uint32), self.host_theta.view(np.uint32))
        difference = None if same else float(np.abs(root - self.host_theta).max())
        differences = self.comm.allgather(difference)
        drifted = {rank: size for rank, size in enumerate(differences) if size is not None}
        if drifted:
            listed = ", ".join(f"rank {rank} by up to {size:g}" for rank, size in drifted.items())
            raise CollectiveError(
                f"after {self.t} updates parameters differ from rank 0's: {listed}"
            )

    def getflat(self) -> NDArray[np.float32]:
        """Return a copy of the parameters, (P,) float32."""
        return self.host_theta.copy()

    def setfromflat(self, theta: NDArray[np.float32]) -> None:
        """Set the parameters from a (P,) vector."""
        self.host_theta[:] = theta
        self._to_device()

    def _to_device(self) -> None:
        if self.theta.device.type != "cpu":
            self.theta.copy_(torch.from_numpy(self.host_theta))

    def raise_not_finite(self, was_finite: bool) -> NoReturn:
        """Raise CollectiveError naming the ranks whose own gradient is not finite.

        Collective: every rank must call it.
        """
        culprits = [rank for rank, ok in enumerate(self.comm.allgather(was_finite)) if not ok]
        where = f" (from rank {', '.join(map(str, culprits))})" if culprits else ""
        raise CollectiveError(f"the gradient is not finite{where} at update {self.t + 1}")


def _is_finite(vector: NDArray[np.float32]) -> bool:
    # The sum of squares tells in the usual case; it may overflow where every number is finite, of
    # which `vdot`, unlike `dot`, does not warn.
    return math.isfinite(np.vdot(vector, vector)) or bool(np.isfinite(vector).all())
