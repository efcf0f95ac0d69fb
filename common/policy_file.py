"""Policies in files, as plain data: one that was saved, a run's checkpoint, or variables alone.

A policy file is one of `common.checkpoint`'s with these entries:

    policy     class, arguments (the constructor's, but for name and spaces), ob_space, ac_space
    variables  by baselines' names, in TensorFlow's layout, observation statistics included
    settings   the command line's arguments that made the environment and the network
    versions   of the packages

A checkpoint has `policy` too, the parameters as one vector, and all arguments of its run.
"""

import math
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
    LEARNED,
    MAGIC,
    CheckpointError,
    checkpoint_files,
    read_checkpoint,
    read_newest,
    write_checkpoint,
)
from common.foreign_formats import foreign_format
from common.plain_pickle import (
    ANY_NAME,
    COUNT,
    DICT,
    FINITE,
    NUMBER,
    SETTING,
    TEXT,
    Is,
    Refused,
    check,
    is_number,
)
from common.torch_util import FlatLayout

# What of a run's arguments makes its environment and its network.
SETTINGS = (
    "preset", "env", "hid_size", "num_hid_layers", "kind", "frame_stack", "env_kwargs",
    "max_episode_steps", "clip_actions",
)  # fmt: skip
SIZES = ("hid_size", "num_hid_layers", "frame_stack")  # of which each takes memory

DTYPE = Is("a kind of number", lambda x: np.dtype(x).kind in "biuf")
BOUND = Is(
    "a number or an array of numbers",
    lambda x: is_number(x) or isinstance(x, bool) or x.dtype.kind in "biuf",
)
CHOICES = Is("whole numbers", lambda x: np.asarray(x).dtype.kind in "iu")
SPACES: dict[str, Any] = {
    "Box": {"shape": [COUNT], "dtype": DTYPE, "low": BOUND, "high": BOUND},
    "Discrete": {"n": COUNT, "start": NUMBER},
    "MultiDiscrete": {"nvec": CHOICES, "start": CHOICES, "dtype": DTYPE},
    "MultiBinary": {"shape": [COUNT]},
}


def _is_space(value: Any) -> bool:
    try:
        check(value, SPACES[value["type"]])
    except Exception:  # of a dtype that NumPy does not know, for instance
        return False
    return True


SPACE = Is("a space", _is_space)
DESCRIPTION = {"class": TEXT, "arguments": DICT, "ob_space": SPACE, "ac_space": SPACE}
POLICY_FILE = {"policy?": DESCRIPTION, "variables": {ANY_NAME: FINITE}, "settings?": DICT}
RUNS_POLICY = {"policy?": DESCRIPTION, "shared": LEARNED, "arguments?": DICT}


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

    @property
    def weights(self) -> int:
        """How many numbers the file holds of the policy: no part of its network is larger."""
        if self.variables is not None:
            return sum(np.size(value) for value in self.variables.values())
        return len((self.state or {})["theta"])

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
                set_learned(pi, self.state or {})
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
            folder = path if checkpoint_files(path) else path / "checkpoints"
            path, content = read_newest(folder, _read_content)
        elif _is_ours(path):
            content = _read_content(path)
        else:
            variables = read_variables(path)
            check(variables, {ANY_NAME: FINITE})
            return SavedPolicy(path, None, {}, variables, None)
    except OSError as error:
        problem = foreign_format(path) or f"cannot read policy {path}: {error.strerror}"
        raise CheckpointError(problem) from error
    except Refused as error:
        raise CheckpointError(f"{path} holds no policy: {error}") from error
    except ValueError as error:
        raise CheckpointError(foreign_format(path) or str(error)) from error
    description = content.get("policy")
    known = {
        **(description or {}).get("arguments", {}),
        **(content.get("settings") or content.get("arguments") or {}),
    }
    settings = {
        name: known[name]
        for name in SETTINGS
        if known.get(name) is not None and SETTING.holds(known[name])
    }
    state = None if "variables" in content else content["shared"]
    return SavedPolicy(path, description, settings, content.get("variables"), state)


def _is_ours(path: Path) -> bool:
    """Return whether a file begins as a checkpoint or a policy file does."""
    if path.exists() and not path.is_file():
        raise CheckpointError(f"cannot read policy {path}: it is no regular file")
    with open(path, "rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _read_content(path: Path) -> dict[str, Any]:
    """Return what a policy file or a checkpoint holds.

    Raises:
        CheckpointError: if it cannot be read, or its parts are not those of a policy.
    """
    content = read_checkpoint(path)
    try:
        check(content, POLICY_FILE if "variables" in content else RUNS_POLICY)
    except Refused as error:
        raise CheckpointError(f"{path} holds no policy: {error}") from None
    return content


def check_sizes(
    settings: Mapping[str, Any], description: Mapping[str, Any] | None, weights: int
) -> None:
    """Check that settings from a file make nothing that is larger than what is in it.

    Args:
        settings: of which those in SIZES count.
        description: of the policy, if it is there.
        weights: of its network.

    Raises:
        ValueError: naming the first that does.
    """
    shape = (description or {}).get("ob_space", {}).get("shape")
    limits = {"frame_stack": shape[-1]} if shape else {}
    for name in SIZES:
        value, limit = settings.get(name), limits.get(name, weights)
        if isinstance(value, int) and value > limit:
            raise ValueError(f"{name} is {value}, more than the {limit} that its network allows")


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


def set_learned(pi: Any, state: Mapping[str, Any]) -> None:
    """Set parameters and observation statistics from a checkpoint's.

    Raises:
        ValueError: if the network is another one.
    """
    parameters, theta = pi.get_trainable_variables(), state["theta"]
    layout = FlatLayout(parameters)
    if len(theta) != layout.size:
        raise ValueError(f"the saved network has {len(theta)} weights, this one {layout.size}")
    sums = state.get("ob_rms") or {}
    if hasattr(pi, "ob_rms") and not sums:
        raise ValueError("it has no observation statistics")
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


def space_size(plain: Mapping[str, Any]) -> int:
    """Return how many numbers a network has to or from a space that is described."""
    if "n" in plain:
        return int(plain["n"])
    return math.prod(plain["shape"]) if "shape" in plain else int(np.sum(plain["nvec"]))


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
    except (AssertionError, KeyError, OverflowError, TypeError) as error:
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
