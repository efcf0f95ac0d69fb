"""What a checkpoint holds of learning, and how it is put back."""

import random
import time
from typing import Any

import numpy as np
import torch

from common.mpi_adam import MpiAdam
from ppo1.policy import Policy

RMS_SUMS = ("runningsum", "runningsumsq", "count")


def learner_state(local: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the state of training: what all ranks share, and what is this rank's own.

    The two in one dict are what `learn` takes as `state` in order to go on as if it had never
    stopped. The environment's own state is not among them, nor is what belongs to it, `carry`,
    before the first segment.

    Args:
        local: `learn`'s locals, as a callback gets them.
    """
    pi, adam, seg = local["pi"], local["adam"], local["seg"]
    counters = ("iters_so_far", "timesteps_so_far", "frames_so_far", "episodes_so_far")
    buffers = ("lenbuffer", "rewbuffer", "truelenbuffer", "truerewbuffer")
    shared = {
        **{name: local[name] for name in counters},
        **{name: list(local[name]) for name in buffers},
        "time_elapsed": time.monotonic() - local["tstart"],
        "theta": adam.getflat(), "adam_m": adam.m, "adam_v": adam.v, "adam_t": adam.t,
        "shapes": [tuple(variable.shape) for variable in pi.get_trainable_variables()],
        "compiled": local.get("is_compiled"),
    }  # fmt: skip
    if hasattr(pi, "ob_rms"):
        shared["ob_rms"] = {name: getattr(pi.ob_rms, name) for name in RMS_SUMS}
    own: dict[str, Any] = {"random": random_states(pi)}
    begun = local["saved"] if seg is None else seg  # nothing was played yet since a resume
    if "carry" in begun:
        own["carry"] = begun["carry"]
    return shared, own


def restore_learner(pi: Policy, adam: MpiAdam, state: dict[str, Any]) -> None:
    """Set policy, optimizer and all random states from `state`.

    Raises:
        ValueError: if the network is another one.
    """
    if state["theta"].shape != adam.m.shape:
        raise ValueError(
            f"the saved network has {len(state['theta'])} weights, this one {len(adam.m)}"
        )
    adam.setfromflat(state["theta"])
    adam.m[:], adam.v[:], adam.t = state["adam_m"], state["adam_v"], state["adam_t"]
    if hasattr(pi, "ob_rms"):
        for name, value in state["ob_rms"].items():
            getattr(pi.ob_rms, name)[...] = value
        pi.ob_rms.refresh()
    if "random" in state:
        set_random_states(pi, state["random"])


def random_states(pi: Policy) -> dict[str, Any]:
    """Return the states of all generators that training draws from, on this rank.

    Raises:
        TypeError: for a policy's own that is no `numpy.random.Generator`.
    """
    states = {
        "numpy": np.random.get_state(legacy=False),
        "python": random.getstate(),
        "torch": torch.get_rng_state(),
    }
    if hasattr(pi, "rng"):
        if not isinstance(pi.rng, np.random.Generator):
            raise TypeError(
                f"a checkpoint cannot hold the policy's rng, a {type(pi.rng).__name__}: "
                "need a numpy.random.Generator"
            )
        states["policy"] = pi.rng.bit_generator.state
    return states


def set_random_states(pi: Policy, states: dict[str, Any]) -> None:
    """Set what `random_states` returned; tuples may have become lists, and tensors arrays."""
    np.random.set_state(states["numpy"])
    version, internal, gauss_next = states["python"]
    random.setstate((version, tuple(internal), gauss_next))
    torch.set_rng_state(torch.as_tensor(states["torch"]))
    if hasattr(pi, "rng"):
        pi.rng.bit_generator.state = states["policy"]
