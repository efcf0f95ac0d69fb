"""The complete state of an environment under its wrappers, as plain data, for an exact resume.

MuJoCo's integration state alone is not enough: rewards also read what the last step left in other
fields, so all of them are kept. The Arcade Learning Environment brings its own serialization.
"""

import time
from collections import deque
from typing import Any

import gymnasium as gym
import numpy as np

from common import atari_wrappers
from common.monitor import Monitor

State = dict[str, Any]

# What belongs to the state of each known wrapper; of an unknown one nothing is known.
WRAPPERS: dict[type, tuple[str, ...]] = {
    gym.wrappers.OrderEnforcing: ("_has_reset",),
    gym.wrappers.TimeLimit: ("_elapsed_steps",),
    gym.wrappers.PassiveEnvChecker: ("checked_reset", "checked_step"),
    gym.wrappers.FilterObservation: (),
    gym.wrappers.FlattenObservation: (),
    gym.wrappers.TransformReward: (),
    Monitor: (
        "running_return", "running_length", "needs_reset", "total_steps", "current_reset_info",
        "rows",
    ),
    atari_wrappers.NoopResetEnv: ("override_num_noops",),
    atari_wrappers.FireResetEnv: (),
    atari_wrappers.EpisodicLifeEnv: ("lives", "was_real_done"),
    atari_wrappers.MaxAndSkipEnv: (),
    atari_wrappers.ClipRewardEnv: (),
    atari_wrappers.WarpFrame: (),
    atari_wrappers.FrameStack: ("frames",),
    atari_wrappers.ScaledFloatFrame: (),
}  # fmt: skip

# Likewise of environments that are small enough to list, by the name of their class.
ENVIRONMENTS = {
    "gymnasium.envs.classic_control.acrobot.AcrobotEnv": ("state",),
    "gymnasium.envs.classic_control.cartpole.CartPoleEnv": ("state", "steps_beyond_terminated"),
    "gymnasium.envs.classic_control.continuous_mountain_car.Continuous_MountainCarEnv": ("state",),
    "gymnasium.envs.classic_control.mountain_car.MountainCarEnv": ("state",),
    "gymnasium.envs.classic_control.pendulum.PendulumEnv": ("state", "last_u"),
}


def get_env_state(env: Any) -> State | None:
    """Return all that decides what `env` does next; None if it holds something unknown.

    Known are the wrappers and environments listed above, MuJoCo's, the Arcade Learning
    Environment's, and any of your own that offers `checkpoint_state()`, returning plain data
    (dicts, lists, numbers, strings, bytes, NumPy arrays), and `restore_checkpoint_state(data)`.
    """
    layers = []
    for layer in chain(env):
        data = _get_layer(layer)
        if data is None:
            return None
        layers.append({"kind": kind(layer), "data": data})
    return {"layers": layers}


def set_env_state(env: Any, state: State) -> None:
    """Bring `env`, built as the saved one was, to the saved state.

    Raises:
        ValueError: if it was built otherwise.
    """
    layers = list(chain(env))
    saved, here = [layer["kind"] for layer in state["layers"]], [kind(layer) for layer in layers]
    if saved != here:
        raise ValueError(f"the saved environment is {' in '.join(saved[::-1])}, this one "
                         f"{' in '.join(here[::-1])}")  # fmt: skip
    for layer, entry in zip(reversed(layers), reversed(state["layers"]), strict=True):
        _set_layer(layer, entry["data"])


def chain(env: Any) -> list[Any]:
    """Return the wrappers from the outermost in, and the environment at last."""
    layers = [env]
    while isinstance(layers[-1], gym.Wrapper):
        layers.append(layers[-1].env)
    return layers


def kind(layer: Any) -> str:
    """Return the class of a wrapper, with the id of an environment."""
    name = f"{type(layer).__module__}.{type(layer).__qualname__}"
    if isinstance(layer, gym.Wrapper) or getattr(layer, "spec", None) is None:
        return name
    return f"{name}({layer.spec.id})"


def _get_layer(layer: Any) -> State | None:
    if hasattr(layer, "checkpoint_state"):
        return {"own": layer.checkpoint_state()}
    names = _listed(layer)
    if names is not None:
        data = {name: getattr(layer, name) for name in names}
        if isinstance(layer, Monitor):
            data["elapsed"] = time.time() - layer.tstart
        if isinstance(layer, atari_wrappers.FrameStack):
            data["frames"] = list(layer.frames)
    elif _is_mujoco(layer):
        data = _get_mujoco(layer)
    elif _is_ale(layer):
        data = {"ale": bytes(layer.ale.cloneSystemState().serialize())}
    else:
        return None
    if not isinstance(layer, gym.Wrapper):
        data["np_random"] = layer.np_random.bit_generator.state
    return data


def _set_layer(layer: Any, data: State) -> None:
    if hasattr(layer, "checkpoint_state"):
        layer.restore_checkpoint_state(data["own"])
        return
    names = _listed(layer)
    if names is not None:
        for name in names:
            setattr(layer, name, data[name])
        if isinstance(layer, Monitor):
            layer.tstart = time.time() - data["elapsed"]
        if isinstance(layer, atari_wrappers.FrameStack):
            layer.frames = deque(data["frames"], maxlen=layer.k)
    elif _is_mujoco(layer):
        _set_mujoco(layer, data)
    else:
        import ale_py

        layer.ale.restoreSystemState(ale_py.ALEState(data["ale"]))
    if not isinstance(layer, gym.Wrapper):
        layer.np_random.bit_generator.state = data["np_random"]


def _listed(layer: Any) -> tuple[str, ...] | None:
    return WRAPPERS.get(type(layer), ENVIRONMENTS.get(kind(layer).partition("(")[0]))


def _is_ale(layer: Any) -> bool:
    return type(layer).__module__ == "ale_py.env"


def _is_mujoco(layer: Any) -> bool:
    return type(getattr(layer, "data", None)).__name__ == "MjData"


def _get_mujoco(env: Any) -> State:
    import mujoco

    spec = mujoco.mjtState.mjSTATE_INTEGRATION
    integration = np.empty(mujoco.mj_stateSize(env.model, spec))
    mujoco.mj_getState(env.model, env.data, integration, spec)
    data: State = {"integration": integration, "fields": _mujoco_fields(env.data)}
    if hasattr(env, "goal"):  # of gymnasium_robotics
        data["goal"] = np.array(env.goal)
    return data


def _mujoco_fields(data: Any) -> dict[str, np.ndarray]:
    fields = {name: getattr(data, name) for name in dir(data) if not name.startswith("_")}
    return {
        name: field.copy()
        for name, field in fields.items()
        if isinstance(field, np.ndarray) and field.flags.writeable
    }


def _set_mujoco(env: Any, data: State) -> None:
    import mujoco

    spec = mujoco.mjtState.mjSTATE_INTEGRATION
    mujoco.mj_setState(env.model, env.data, data["integration"], spec)
    mujoco.mj_forward(env.model, env.data)  # sizes the fields that depend on contacts,
    mujoco.mj_setState(env.model, env.data, data["integration"], spec)  # and moves the warm start
    for name, value in data["fields"].items():
        field = getattr(env.data, name)
        if field.shape == value.shape:
            field[...] = value
    if "goal" in data:
        env.goal = data["goal"].copy()
