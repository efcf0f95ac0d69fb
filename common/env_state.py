"""The complete state of an environment under its wrappers, as plain data, for an exact resume.

A wrapper or environment of your own takes part by two methods: `checkpoint_state()` returns all
that decides what it does next as plain data, or None if that cannot be told just now, and
`restore_checkpoint_state(state)` brings another object, built alike, there. A wrapper answers for
itself, not for what it wraps; an environment answers for its `np_random` too, and for the spaces
that it samples from. `mujoco_state` and `set_mujoco_state` do the work for an environment on
MuJoCo. (MujocoEnv has a `set_state` of another meaning.)

Plain data are dicts with strings as keys, lists, strings, numbers, bytes, None and NumPy arrays;
tuples become lists. Here and there arrays are copied.
"""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import wrappers
from numpy.typing import NDArray

from common import atari_wrappers

State = dict[str, Any]

# The attributes that are the state of a wrapper: of exactly this class, since a subclass may have
# more. A wrapper that is neither here nor has methods of its own is unknown.
WRAPPERS: dict[type, tuple[str, ...]] = {
    wrappers.OrderEnforcing: ("_has_reset",),
    wrappers.TimeLimit: ("_elapsed_steps",),
    wrappers.TimeAwareObservation: ("timesteps",),
    wrappers.PassiveEnvChecker: (
        "checked_reset", "checked_step", "checked_data_reuse", "_previous_data",
    ),
    wrappers.ClipAction: (),
    wrappers.ClipReward: (),
    wrappers.DtypeObservation: (),
    wrappers.FilterObservation: (),
    wrappers.FlattenObservation: (),
    wrappers.RescaleAction: (),
    wrappers.RescaleObservation: (),
    wrappers.ReshapeObservation: (),
    wrappers.TransformAction: (),  # their functions are taken to be without memory
    wrappers.TransformObservation: (),
    wrappers.TransformReward: (),
    atari_wrappers.NoopResetEnv: ("override_num_noops",),
    atari_wrappers.MaxAndSkipEnv: (),
    atari_wrappers.EpisodicLifeEnv: ("lives", "was_real_done"),
    atari_wrappers.FireResetEnv: (),
    atari_wrappers.WarpFrame: (),
    atari_wrappers.ScaledFloatFrame: (),
    atari_wrappers.ClipRewardEnv: (),
}  # fmt: skip

# Those of them that may be None now and a number later.
OPTIONAL = ("steps_beyond_terminated", "override_num_noops", "_elapsed_steps")

# The same of the environments that a package defines, beside `np_random` and the simulator.
ENVIRONMENTS: dict[str, tuple[str, ...]] = {
    "gymnasium.envs.mujoco": (),
    "gymnasium_robotics.envs.fetch": ("goal",),
    "gymnasium_robotics.envs.shadow_dexterous_hand": ("goal",),
    "gymnasium.envs.classic_control": ("state", "steps_beyond_terminated"),
    "ale_py": (),
}


class _UnknownState(Exception):
    """Something whose state cannot be known."""


def get_env_state(env: Any) -> State | None:
    """Return all that decides what `env` does next, or None if a part of that is not known.

    Known are the wrappers and packages listed above and what has methods of its own; of Atari
    games, those without random repeats of actions whose steps are 3 frames or longer.

    Raises:
        TypeError: if the state that an object's own method returns is not plain.
    """
    layers = _layers(env)
    try:
        states = [_get_layer(layer) for layer in layers]
        _check_game(layers)
    except _UnknownState:
        return None
    return {"id": _env_id(env), "layers": [_name(layer) for layer in layers], "states": states}


def set_env_state(env: Any, state: State) -> None:
    """Bring `env`, built as the saved one was, to its state: it goes on as that one did.

    Raises:
        ValueError: naming what is not as it was: the id, the wrappers, the shape of an array.
    """
    layers = _layers(env)
    if state["id"] != _env_id(env):
        raise ValueError(f"the saved state is of environment {state['id']}, not {_env_id(env)}")
    names = [_name(layer) for layer in layers]
    if state["layers"] != names:
        raise ValueError(
            f"the saved state is of {_chain(state['layers'])}, this environment is {_chain(names)}"
        )
    for layer, saved in zip(reversed(layers), reversed(state["states"]), strict=True):
        try:
            _set_layer(layer, _plain(saved))
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise ValueError(f"the saved state of {_name(layer)} does not fit: {error}") from error


def mujoco_state(model: Any, data: Any) -> State:
    """Return the state of a simulation, what the last step left in `data` for the next included.

    The integration state alone is not all: some rewards are differences to body positions that
    were computed in the step before.

    Args:
        model: a mujoco.MjModel.
        data: its mujoco.MjData.
    """
    import mujoco

    spec = mujoco.mjtState.mjSTATE_INTEGRATION
    integration = np.empty(mujoco.mj_stateSize(model, spec))
    mujoco.mj_getState(model, data, integration, spec)
    fields = {name: field.copy() for name, field in _mujoco_fields(model, data).items()}
    return {"integration": integration, "fields": fields}


def set_mujoco_state(model: Any, data: Any, state: State) -> None:
    """Fill `data` with a state that `mujoco_state` returned for an equal model.

    Raises:
        ValueError: if a field has another shape, or one of the two has a field more.
    """
    import mujoco

    spec = mujoco.mjtState.mjSTATE_INTEGRATION
    fields = _mujoco_fields(model, data)
    saved = {"integration": state["integration"], **state["fields"]}
    shapes = {name: field.shape for name, field in fields.items()}
    shapes["integration"] = (mujoco.mj_stateSize(model, spec),)
    for name in sorted(shapes.keys() | saved.keys()):
        here, there = shapes.get(name), np.shape(saved[name]) if name in saved else None
        if here != there:
            raise ValueError(f"MuJoCo's {name} had shape {there}, here it has {here}")
    mujoco.mj_setState(model, data, state["integration"], spec)
    mujoco.mj_forward(model, data)  # for contacts and the like, of which nothing is saved
    for name, field in fields.items():  # the warm start too, which that has moved
        field[...] = state["fields"][name]


def _mujoco_fields(model: Any, data: Any) -> dict[str, NDArray[np.float64]]:
    """Return those arrays of real numbers that `data` always has, to be read or written.

    What is left out every step computes anew, and no environment reads it before: what comes and
    goes with contacts, and indices, of which wrong ones could lead MuJoCo out of its memory.
    """
    import mujoco

    empty = mujoco.MjData(model)  # what does not exist in it shows as memory of NumPy's own
    arrays = {name: getattr(empty, name) for name in dir(empty) if not name.startswith("_")}
    return {
        name: getattr(data, name)
        for name, array in arrays.items()
        if isinstance(array, np.ndarray) and array.dtype == np.float64
        if array.size and not array.flags.owndata
    }


def _ale_state(ale: Any) -> bytes:
    """Return the state of a game and of its generator."""
    return bytes(ale.cloneSystemState().serialize())


def _set_ale_state(ale: Any, saved: bytes) -> None:
    """Bring a game to a saved state."""
    import ale_py

    try:
        state = ale_py.ALEState(saved)
        # How a machine that was just reset goes on is not all in the state, so that it must be
        # put back into one that was just reset, and others into one that was not. (Qbert)
        ale.reset_game()
        if state.getEpisodeFrameNumber() > 0:
            ale.act(0)
        ale.restoreSystemState(state)
    except (RuntimeError, SystemError) as error:  # for bytes that the emulator cannot read
        raise ValueError("the Arcade Learning Environment cannot read it") from error


def _check_game(layers: list[Any]) -> None:
    """Raise _UnknownState for a game that would not go on as it did, to the last pixel.

    The state holds neither the last action, which is played again where actions repeat at random,
    nor the screen. The next frame is drawn over that, not always in full (Yars' Revenge): a step
    must not show it. MaxAndSkipEnv shows its last two frames.
    """
    game = layers[-1]
    if _package(game) != "ale_py":
        return
    skip = game._frameskip if isinstance(game._frameskip, int) else min(game._frameskip)
    skips = [layer._skip for layer in layers if isinstance(layer, atari_wrappers.MaxAndSkipEnv)]
    if game.ale.getFloat("repeat_action_probability") > 0 or skip * int(np.prod(skips)) < 3:
        raise _UnknownState


def _layers(env: Any) -> list[Any]:
    """Return the wrappers from the outermost in, and the environment at last."""
    layers = [env]
    while isinstance(layers[-1], gym.Wrapper):
        layers.append(layers[-1].env)
    return layers


def _name(layer: Any) -> str:
    return f"{type(layer).__module__}.{type(layer).__qualname__}"


def _chain(names: list[str]) -> str:
    """Return classes as one reads them: Outer(Inner(Env))."""
    short = [name.rpartition(".")[2] for name in names]
    return "(".join(short) + ")" * (len(short) - 1)


def _env_id(env: Any) -> str | None:
    spec = getattr(_layers(env)[-1], "spec", None)
    return spec.id if spec else None


def _package(env: Any) -> str | None:
    """Return which of ENVIRONMENTS defines the class of `env`."""
    module = type(env).__module__
    return next((name for name in ENVIRONMENTS if f"{module}.".startswith(f"{name}.")), None)


def _get_layer(layer: Any) -> State:
    """Return a copy of one layer's state.

    Raises:
        _UnknownState: if it is not known.
    """
    if hasattr(layer, "checkpoint_state"):
        own = layer.checkpoint_state()
        if own is None:
            raise _UnknownState
        try:
            return {"own": _plain(own)}
        except TypeError as error:
            raise TypeError(f"{_name(layer)}.checkpoint_state(): {error}") from None
    names = _attributes(layer)
    if names is None:
        raise _UnknownState
    try:
        attributes = {name: getattr(layer, name) for name in names if hasattr(layer, name)}
        state = {"attributes": _plain(attributes)}
    except TypeError:
        raise _UnknownState from None
    if not isinstance(layer, gym.Wrapper):
        state["np_random"] = _plain(layer.np_random.bit_generator.state)
        if _is_mujoco(layer):
            state["mujoco"] = mujoco_state(layer.model, layer.data)
        elif _package(layer) == "ale_py":
            state["ale"] = _ale_state(layer.ale)
    return state


def _set_layer(layer: Any, state: State) -> None:
    """Bring one layer to its saved state."""
    if "own" in state:
        layer.restore_checkpoint_state(state["own"])
        return
    for name in _attributes(layer) or ():
        if name in state["attributes"] or hasattr(layer, name):
            _check_alike(name, state["attributes"][name], getattr(layer, name, None))
            setattr(layer, name, state["attributes"][name])
    if "np_random" in state:
        layer.np_random.bit_generator.state = state["np_random"]
    if "mujoco" in state:
        set_mujoco_state(layer.model, layer.data, state["mujoco"])
    if "ale" in state:
        _set_ale_state(layer.ale, state["ale"])


def _check_alike(name: str, saved: Any, here: Any) -> None:
    """Raise ValueError for a saved attribute on which the next step would fail."""
    if _is_numeric(here) and not (saved is None and name in OPTIONAL):
        if not _is_numeric(saved) or np.shape(saved) != np.shape(here):
            raise ValueError(f"{name} is not as here, of shape {np.shape(here)}")
    elif name in OPTIONAL and saved is not None and not _is_numeric(saved):
        raise ValueError(f"{name} is no number")


def _is_numeric(value: Any) -> bool:
    """Return whether `value` is an array of numbers, or may become one."""
    try:
        return np.asarray(value).dtype.kind in "biuf"
    except ValueError:  # lists of unequal lengths
        return False


def _attributes(layer: Any) -> tuple[str, ...] | None:
    """Return the names of the attributes that are the state of a known layer; else None."""
    if isinstance(layer, gym.Wrapper):
        return WRAPPERS.get(type(layer))
    package = _package(layer)
    if package is None or (hasattr(layer, "data") and not _is_mujoco(layer)):  # mujoco_py's
        return None
    return ENVIRONMENTS[package]


def _is_mujoco(env: Any) -> bool:
    return type(getattr(env, "data", None)).__name__ == "MjData"


def _plain(value: Any) -> Any:
    """Return a copy of plain data.

    Raises:
        TypeError: if it is not.
    """
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return value.copy()
    if isinstance(value, np.generic) and value.dtype.kind in "biuf":  # np.float64 is a float, too
        return value.item()
    if value is None or isinstance(value, str | bytes | bool | int | float):
        return value
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    raise TypeError(f"not plain data: {value!r}")
