"""A policy of your own: a small residual network, trained by `learn` on CartPole.

    python examples/custom_policy.py
    mpirun -np 2 python examples/custom_policy.py

`learn` asks of a policy what `ppo1.policy.Policy` names, and no more: `recurrent`, `pdtype`, `act`,
`pdparam_and_vpred`, `get_trainable_variables`. This one is a plain torch module.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread a rank; must precede NumPy

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # not needed once installed

import gymnasium as gym
import numpy as np
import torch
from mpi4py import MPI
from numpy.typing import NDArray
from torch import Tensor, nn

from common.cmd_util import make_mujoco_env
from common.distributions import make_pdtype
from common.mpi_util import abort_job_on_error
from ppo1 import pposgd_simple


class ResidualPolicy(nn.Module):
    """One trunk for policy and value; each block adds to what it gets.

    Parameters are float32, `learn` makes them views of one flat vector and broadcasts rank 0's
    initial values. Nothing here depends on the number of ranks.
    """

    recurrent = False

    def __init__(self, ob_space: gym.Space, ac_space: gym.Space, *, width: int = 32) -> None:
        """Build the network; `pdtype` says how many numbers make an action's distribution."""
        super().__init__()
        self.pdtype = make_pdtype(ac_space)
        self.input = nn.Linear(int(np.prod(ob_space.shape or ())), width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU()) for _ in range(2)
        )
        self.head = nn.Linear(width, self.pdtype.param_shape()[0] + 1)
        nn.init.zeros_(self.head.weight)  # at first, all actions are equally likely

    def pdparam_and_vpred(self, ob: Tensor) -> tuple[Tensor, Tensor]:
        """Return distribution parameters (N, P) and values (N,) for raw observations (N, ...)."""
        x = self.input(ob.to(torch.float32).flatten(1))
        for block in self.blocks:
            x = x + block(x)
        output = self.head(x)
        return output[:, :-1], output[:, -1]

    def act(self, stochastic: bool, ob: NDArray[Any]) -> tuple[Any, Any]:
        """Return an action, sampled or the most likely, and the value, for one observation."""
        with torch.no_grad():
            pdparam, vpred = self.pdparam_and_vpred(torch.as_tensor(np.asarray(ob)[None]))
        pd = self.pdtype.pdfromflat(pdparam)
        ac = pd.sample() if stochastic else pd.mode()
        return ac[0].numpy(), vpred[0].numpy()

    def get_trainable_variables(self) -> list[nn.Parameter]:
        """Return the parameters, in the order of the flat vector."""
        return list(self.parameters())


def train(max_timesteps: int = 100_000, seed: int = 0) -> ResidualPolicy:
    """Return a trained policy. Collective: every rank must call it."""
    env = make_mujoco_env("CartPole-v1", seed)  # seeds NumPy, torch and the environment, by rank
    return pposgd_simple.learn(
        env,
        lambda name, ob_space, ac_space: ResidualPolicy(ob_space, ac_space),
        timesteps_per_actorbatch=1024,
        clip_param=0.2,
        entcoeff=0.0,
        optim_epochs=10,
        optim_stepsize=1e-3,
        optim_batchsize=64,
        gamma=0.99,
        lam=0.95,
        max_timesteps=max_timesteps,
        schedule="linear",
    )


if __name__ == "__main__":
    with abort_job_on_error():
        policy = train()
        if MPI.COMM_WORLD.Get_rank() == 0:
            torch.save(policy.state_dict(), "cartpole.pt")
            print("the policy's weights are in cartpole.pt")
