"""Policies in files, as plain data: one that was saved, a run's checkpoint, or variables alone.

A policy file is one of `common.checkpoint`'s with these entries:

    policy     class, arguments (the constructor's, but for name and spaces), ob_space, ac_space
    variables  by baselines' names, in TensorFlow's layout, observation statistics included
    settings   the command line's arguments that made the environment and the network
    versions   of the packages

A checkpoint has `policy` too, the parameters as one vector, and all arguments of its run.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from common.baselines_dump import read_variables
from common.checkpoint import (
    MAGIC,
    CheckpointError,
    checkpoint_files,
    read_checkpoint,
    read_newest,
    write_checkpoint,
)
from common.torch_util import FlatLayout

# What of a run's arguments makes its environment and its network.
SETTINGS = (
    "preset", "env", "hid_size", "num_hid_layers", "kind", "frame_stack", "env_kwargs",
    "max_episode_steps", "clip_actions",
)  # fmt: skip


class SavedPolicy(NamedTuple):
    """What a file holds of a policy.

    Attributes:
        path: of the file.
        description: class, arguments and spaces, as `describe_policy` returns them; None for
            variables alone.
        settings: those of SETTINGS that are known.
        variables: by name; None for a checkpoint.
        state: of a checkpoint, `theta` and perhaps `ob_rms`; else None.
    """

    path: Path
    description: dict[str, Any] | None
    settings: dict[str, Any]
    variables: dict[str, NDArray[Any]] | None
    state: dict[str, Any] | None

    def check_env(self, env_id: str) -> None:
        """Raise ValueError for an environment that is another one than the saved, in any version.

        A policy may fit where it was not trained: Walker2d and HalfCheetah have the same shapes.
        """
        saved = self.settings.get("env", env_id)
        if _family_of(saved) != _family_of(env_id):
            raise ValueError(
                f"{self.path} is a policy of {saved}, not of {env_id}: it can be trained there, "
                "but not shown untrained"
            )

    def load_into(self, pi: Any) -> None:
        """Set the variables of `pi`, a policy built like the saved one.

        Raises:
            ValueError: if its network or its spaces are others, naming what differs.
        """
        if self.description is not None and hasattr(pi, "ob_space"):
            here, saved = describe_policy(pi), self.description
            for key, what in (("ob_space", "observations"), ("ac_space", "actions")):
                if _kind_of(saved[key]) != _kind_of(here[key]):
                    env = self.settings.get("env")
                    raise ValueError(
                        f"{self.path} is a policy {f'of {env} ' if env else ''}for {what} "
                        f"{_in_words(saved[key])}, this environment's are {_in_words(here[key])}"
                    )
        try:
            if self.variables is not None:
                pi.load_variables(self.variables)
            else:
                _set_state(pi, self.state or {})
        except ValueError as error:
            raise ValueError(f"{self.path} does not fit: {error}") from error


def read_policy(path: Path) -> SavedPolicy:
    """Return what a policy file, a run's folder (its newest good checkpoint), or a dump holds.

    Nothing that the file says is executed.

    Raises:
        CheckpointError: if there is no such file or folder, or nothing of a policy in it.
    """
    try:
        if path.is_dir():
            path, content = read_newest(path if checkpoint_files(path) else path / "checkpoints")
        else:
            with open(path, "rb") as file:
                is_ours = file.read(len(MAGIC)) == MAGIC
            if not is_ours:
                return SavedPolicy(path, None, {}, read_variables(path), None)
            content = read_checkpoint(path)
    except OSError as error:
        raise CheckpointError(f"cannot read policy {path}: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    description = content.get("policy")
    known = {
        **(description or {}).get("arguments", {}),
        **content.get("settings", content.get("arguments", {})),
    }
    settings = {name: known[name] for name in SETTINGS if known.get(name) is not None}
    if "variables" in content:
        return SavedPolicy(path, description, settings, content["variables"], None)
    state = content.get("shared", {})
    if "theta" not in state:
        raise CheckpointError(f"{path} holds no policy")
    return SavedPolicy(path, description, settings, None, state)


def write_policy(
    path: Path, pi: Any, *, settings: Mapping[str, Any] | None = None, versions: Any = None
) -> None:
    """Write all that it takes to act as `pi` does, whole or not at all.

    Args:
        path: of the file; its folder is made if needed.
        pi: a policy with `ob_space`, `ac_space` and `variables()`.
        settings: arguments of a run, of which those in SETTINGS are kept.
        versions: of the packages that made it.

    Raises:
        OSError: if that fails.
        ValueError: for a space that is none of Box, Discrete, MultiDiscrete and MultiBinary.
    """
    settings = {name: value for name, value in (settings or {}).items() if name in SETTINGS}
    write_checkpoint(
        path,
        {
            "policy": describe_policy(pi),
            "variables": pi.variables(),
            "settings": settings,
            "versions": versions or {},
        },
    )


def describe_policy(pi: Any) -> dict[str, Any]:
    """Return class, constructor arguments and spaces of a policy as plain data.

    The arguments are the attributes that its class lists in ARGUMENTS.
    """
    kind = type(pi)
    return {
        "class": f"{kind.__module__}.{kind.__qualname__}",
        "arguments": {name: getattr(pi, name) for name in getattr(kind, "ARGUMENTS", ())},
        "ob_space": space_to_plain(pi.ob_space),
        "ac_space": space_to_plain(pi.ac_space),
    }


def _set_state(pi: Any, state: Mapping[str, Any]) -> None:
    """Set parameters and observation statistics from a checkpoint's."""
    parameters, theta = pi.get_trainable_variables(), state["theta"]
    layout = FlatLayout(parameters)
    if len(theta) != layout.size:
        raise ValueError(f"the saved network has {len(theta)} weights, this one {layout.size}")
    sums = state.get("ob_rms", {})
    for name, value in sums.items():
        here = getattr(getattr(pi, "ob_rms", None), name, np.empty(0))
        if np.shape(value) != here.shape:
            raise ValueError(f"obfilter/{name} is {np.shape(value)}, not {here.shape}")
    with torch.no_grad():
        for parameter, view in zip(parameters, layout.views(torch.as_tensor(theta)), strict=True):
            parameter.copy_(view)
    if sums:
        for name, value in sums.items():
            getattr(pi.ob_rms, name)[...] = value
        pi.ob_rms.refresh()


# ---- Spaces -------------------------------------------------------------------------------------


def space_to_plain(space: gym.Space) -> dict[str, Any]:
    """Return a space as plain data.

    Raises:
        ValueError: if it is none of Box, Discrete, MultiDiscrete and MultiBinary.
    """
    plain: dict[str, Any] = {"type": type(space).__name__}
    if isinstance(space, spaces.Box):
        bounds = {"low": _one_if_equal(space.low), "high": _one_if_equal(space.high)}
        return {**plain, "shape": list(space.shape), "dtype": str(space.dtype), **bounds}
    if isinstance(space, spaces.Discrete):
        return {**plain, "n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.MultiDiscrete):
        starts = space.start.tolist()
        return {**plain, "nvec": space.nvec.tolist(), "start": starts, "dtype": str(space.dtype)}
    if isinstance(space, spaces.MultiBinary):
        return {**plain, "shape": list(space.shape)}
    raise ValueError(f"cannot save the space {space}")


def space_from_plain(plain: Mapping[str, Any]) -> gym.Space:
    """Return the space that `space_to_plain` was given.

    Raises:
        ValueError: if it returned no such thing.
    """
    try:
        if plain["type"] == "Box":
            dtype = np.dtype(plain["dtype"])
            low, high = (np.asarray(plain[bound], dtype) for bound in ("low", "high"))
            shape = tuple(plain["shape"])
            return spaces.Box(
                np.broadcast_to(low, shape), np.broadcast_to(high, shape), dtype=dtype.type
            )
        if plain["type"] == "Discrete":
            return spaces.Discrete(plain["n"], start=plain["start"])
        if plain["type"] == "MultiDiscrete":
            dtype = np.dtype(plain["dtype"])
            return spaces.MultiDiscrete(plain["nvec"], dtype=dtype.type, start=plain["start"])
        if plain["type"] == "MultiBinary":
            shape = plain["shape"]
            return spaces.MultiBinary(shape[0] if len(shape) == 1 else shape)
    except (AssertionError, KeyError, TypeError) as error:
        raise ValueError(f"not a space: {plain}") from error
    raise ValueError(f"unknown kind of space: {plain['type']!r}")


def _one_if_equal(bound: NDArray[Any]) -> Any:
    """Return a bound as one number if it is the same everywhere."""
    return bound.flat[0].item() if bound.size and (bound == bound.flat[0]).all() else bound


def _kind_of(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a space decides whether a policy fits: neither its bounds nor its dtype."""
    return {key: value for key, value in plain.items() if key not in ("low", "high", "dtype")}


def _family_of(env_id: str) -> str:
    """Return an environment's name without package and version."""
    return re.sub(r"-v\d+$", "", env_id.rpartition(":")[2])


def _in_words(plain: Mapping[str, Any]) -> str:
    size = plain.get("n", plain.get("nvec", plain.get("shape")))
    return plain["type"] + str(tuple(size) if isinstance(size, list) else f"({size})")
