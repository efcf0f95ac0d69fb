"""Policies to files and back: `ppo1.save_policy`, `ppo1.load_policy`, `ppo1.load_variables`."""

import os
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from common.checkpoint import CheckpointError
from common.files import absolute_path
from common.misc_util import undisturbed_generators
from common.policy_file import (
    SavedPolicy,
    read_policy,
    space_from_plain,
    space_size,
    write_policy,
)
from common.torch_util import at_most_weights
from ppo1.cnn_policy import CnnPolicy
from ppo1.mlp_policy import MlpPolicy
from ppo1.policy import TorchPolicy

POLICIES: dict[str, type[TorchPolicy]] = {
    f"{kind.__module__}.{kind.__qualname__}": kind for kind in (MlpPolicy, CnnPolicy)
}


def save_policy(
    path: str | os.PathLike[str], pi: TorchPolicy, *, env_id: str | None = None
) -> None:
    """Write a policy to a file, from which `load_policy` returns one that acts as it does.

    Args:
        path: of the file, which appears whole or not at all; its folder is made if needed.
        pi: an MlpPolicy or CnnPolicy. Of any other with `ob_space`, `ac_space` and `variables()`
            the file holds the variables, but not the class.
        env_id: what --env of the run scripts shall take it for.

    Raises:
        OSError: if it cannot be written.
    """
    write_policy(Path(absolute_path(path)), pi, settings={} if env_id is None else {"env": env_id})


def load_policy(path: str | os.PathLike[str], pi: Any = None) -> Any:
    """Return the policy in a policy file, in a checkpoint, or in a run's newest good checkpoint.

    Nothing in the file is executed, and no random stream of the caller's moves.

    Args:
        path: of the file, or of a run's folder.
        pi: a policy to fill and return, constructed as the saved one was. It is needed where the
            file does not say how: for a class of your own, and for baselines' variables.

    Raises:
        CheckpointError: a ValueError, for a file that is missing, damaged or holds no policy, and
            for one that needs `pi`.
        ValueError: if `pi` is another network, or for other spaces.
    """
    saved = read_policy(Path(absolute_path(path)))
    if pi is None:
        return build_policy(saved)
    saved.load_into(pi)
    return pi


def load_variables(path: str | os.PathLike[str]) -> dict[str, NDArray[Any]]:
    """Return the variables in a file by name: what a policy's `load_variables` takes.

    Nothing in the file is executed.

    Args:
        path: as `load_policy`'s, or of what baselines saved: joblib, pickle or `.npz`.

    Raises:
        CheckpointError: a ValueError, if there is no such file, or if it holds something else.
    """
    saved = read_policy(Path(absolute_path(path)))
    return build_policy(saved).variables() if saved.variables is None else saved.variables


def build_policy(saved: SavedPolicy) -> TorchPolicy:
    """Return the policy that a file describes.

    Raises:
        CheckpointError: if it does not, or if its class is not one of POLICIES.
    """
    if saved.description is None:
        raise CheckpointError(
            f"{saved.path} does not say how its policy is made: construct one, pi, then "
            "ppo1.load_policy(path, pi)"
        )
    name = saved.description["class"]
    if name not in POLICIES:
        raise CheckpointError(
            f"{saved.path} is of class {name}, whose code is not in the file: construct one, pi, "
            "then ppo1.load_policy(path, pi)"
        )
    arguments = saved.description["arguments"]
    spaces = [saved.description[key] for key in ("ob_space", "ac_space")]
    sizes = [*map(space_size, spaces), *(x for x in arguments.values() if isinstance(x, int))]
    if max(sizes) > saved.weights:
        raise CheckpointError(
            f"{saved.path} describes a network with a layer of {max(sizes)}, but has "
            f"{saved.weights} weights"
        )
    try:
        with undisturbed_generators(), at_most_weights(saved.weights):
            pi = POLICIES[name]("pi", *map(space_from_plain, spaces), **arguments)
    except Exception as error:  # whatever a constructor does with arguments of other types
        raise CheckpointError(f"{saved.path} describes no policy: {error}") from error
    saved.load_into(pi)
    return pi
