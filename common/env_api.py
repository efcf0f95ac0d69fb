"""Gymnasium's interface where it is crossed: what means the same is taken, the rest is named.

The rollout comes here at a reset, at an episode's end, and with what does not pass its own quick
checks of dtype and shape.
"""

import contextlib
import re
import reprlib
import traceback
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from common import logger

RETURNS = {
    "reset": "(observation, info)",
    "step": "(observation, reward, terminated, truncated, info)",
}
REMEDY = "change it, or wrap it by shimmy: gymnasium.make('GymV21Environment-v0', env=env)"
KEYWORD = re.compile(r"reset\(\) got an unexpected keyword argument '(seed|options)'")
UNPACKING = re.compile(
    r"values to unpack \(expected \d(, got (?P<got>\d))?"
    r"|cannot unpack non-iterable (?P<type>\S+) object"
)
REAL = "biuf"  # kinds of dtypes
REPR = reprlib.Repr()
REPR.maxother = 60


def check_env(env: Any) -> None:
    """Check that `env` is a single environment with Gymnasium's spaces.

    Raises:
        ValueError: for a vector environment, and for spaces of the old package gym.
    """
    layer = env
    while layer is not None:
        count = getattr(layer, "num_envs", 1)
        if isinstance(layer, gym.vector.VectorEnv) or (isinstance(count, int) and count > 1):
            raise ValueError(
                f"{type(layer).__name__} is a vector environment of {count}: learn takes a single "
                "environment on each rank, and mpirun -np N gives N of them"
            )
        layer = layer.env if isinstance(layer, gym.Wrapper) else None
    for name in ("observation_space", "action_space"):
        space = getattr(env, name)
        if any(base.__module__.split(".")[0] == "gym" for base in type(space).__mro__):
            raise ValueError(
                f"{name} {space} belongs to the old package gym, {_name(env)} with it: need "
                f"Gymnasium's; {REMEDY}"
            )


def reset(env: Any, **kwargs: Any) -> Any:
    """Reset `env` and return the first observation.

    Raises:
        ValueError: if the interface is not Gymnasium's.
        Exception: whatever the environment raises.
    """
    try:
        result = env.reset(**kwargs)
    except Exception as error:
        explain(error, env)
        raise
    is_pair = isinstance(result, tuple | list) and len(result) == 2
    if is_pair and isinstance(result[1], dict):
        return result[0]
    is_alone = _shape(result) == (env.observation_space.shape or ())
    if is_pair and not is_alone:
        return result[0]
    what = "an observation alone, as in gym before 0.26" if is_alone else short(result)
    raise ValueError(_wrong(env, "reset", f"returned {what}"))


def explain(error: Exception, env: Any, action: Any = None) -> None:
    """Say more of an exception that `env.reset` or, given the action, `env.step` has led to.

    A note on the exception tells of an action outside the action space.

    Raises:
        ValueError: from `error`, if the interface is not Gymnasium's.
    """
    method = "reset" if action is None else "step"
    if keyword := KEYWORD.search(str(error)):
        text = f"takes no {keyword[1]}, as in gym before 0.26"
        raise ValueError(_wrong(env, "reset", text)) from error
    # Unpacked by the caller or in a wrapper: within the environment, it is a bug of another kind
    caller, *_ = frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    at = frames[-1]
    is_wrapper = at.f_code.co_name == method and isinstance(at.f_locals.get("self"), gym.Wrapper)
    found = UNPACKING.search(str(error))
    if found and (at is caller or is_wrapper):
        what = found["type"] or f"{found['got'] or 'more'} values"
        if method == "reset" and not found["type"]:
            what = "an observation alone, as in gym before 0.26"
        elif found["got"] == "4":
            what += ", as in gym before 0.26"
        raise ValueError(_wrong(env, method, f"returned {what}")) from error
    if action is not None and share_outside(np.asarray(action)[None], env.action_space):
        error.add_note(
            f"the action, {short(action)}, lies outside {env.action_space}: actions go to the "
            "environment unclipped, as in baselines, unless --clip-actions or "
            "gymnasium.wrappers.ClipAction clips them"
        )


def share_outside(acs: NDArray[Any], space: gym.Space) -> float:
    """Return which share of actions (N, *ac_shape), 0 to 1, lies outside a Box; 0.0 for others."""
    if not isinstance(space, gym.spaces.Box) or acs.shape[1:] != space.shape:
        return 0.0
    outside = (acs < space.low) | (acs > space.high)
    return float(outside.reshape(len(acs), -1).any(axis=1).mean())


def as_number(reward: Any) -> float:
    """Return a reward that is one number, in whatever wrapping.

    Raises:
        TypeError: for any other.
    """
    with contextlib.suppress(OverflowError, TypeError, ValueError):
        return float(reward)
    array = _array(reward)
    if array is None or array.size != 1 or array.dtype.kind not in REAL:
        raise TypeError(
            f"the environment returned reward {short(reward)}, which is not one finite number"
        )
    return float(array.item())


def is_over(terminated: Any, truncated: Any) -> bool:
    """Return whether one of the two says so, in whatever wrapping: to Python, [False] is true.

    Raises:
        TypeError: if one of them is neither true nor false.
    """
    return as_flag("terminated", terminated) | as_flag("truncated", truncated)


def as_flag(name: str, value: Any) -> bool:
    """Return `value` as a bool; None is False.

    Raises:
        TypeError: if it is neither true nor false.
    """
    if value is None or isinstance(value, bool | np.bool_):
        return bool(value)
    array = _array(value)
    if array is None or array.size != 1 or array.item() not in (0, 1):
        raise TypeError(
            f"the environment returned {name} {short(value)}, which is neither true nor false"
        )
    return bool(array.item())


def observation_dtype(ob: Any, space: gym.Space) -> np.dtype[Any]:
    """Return the dtype for an environment's observations, of which `ob` is the first.

    That is the observation's own if both it and the space's are of floats; the wider one for two
    kinds of whole numbers; else the space's, since zeros are often written as whole numbers.
    """
    array = _array(ob)
    if array is None or array.dtype.kind not in REAL:
        return np.dtype(np.float32)  # `hold` refuses it
    own = np.dtype(array.dtype.type)  # in the machine's byte order, NumPy's one object for it
    said = own if space.dtype is None else np.dtype(space.dtype.type)
    if own.kind != said.kind or own.itemsize > 8:  # torch knows no longer floats
        return said
    return own if own.kind == "f" else np.dtype(np.promote_types(own, said).type)


def hold(
    value: Any, dtype: np.dtype[Any], shape: tuple[int, ...], *, step: int, source: str
) -> NDArray[Any]:
    """Return an observation or an action as an array of `dtype`, floats rounded if need be.

    Args:
        value: in whatever wrapping.
        dtype: of the segment's array.
        shape: that it must have.
        step: of the segment.
        source: what it is, for messages: "the environment returned an observation".

    Raises:
        ValueError: for another shape, and for a number that `dtype` cannot hold.
        TypeError: for what is no array of numbers.
    """
    if isinstance(value, np.ndarray) and value.dtype == dtype and value.shape == shape:
        return value  # an equal dtype, but another object
    array = _array(value)
    if array is None or array.dtype.kind not in REAL:
        raise TypeError(f"{source} that is no array of numbers at step {step}: {short(value)}")
    if array.shape != shape:
        raise ValueError(
            f"{source} of shape {array.shape}, but the space says {shape}, at step {step}"
        )
    if array.dtype == dtype:
        return array
    with np.errstate(all="ignore"):
        held = array.astype(dtype)
        fits = np.isfinite(held) | ~np.isfinite(array) if dtype.kind == "f" else held == array
    if not np.all(fits):
        component = tuple(int(index) for index in np.argwhere(~fits)[0])
        raise ValueError(
            f"{source} of {array.dtype} with component {list(component)} = {array[component]} at "
            f"step {step}, which {dtype} cannot hold"
        )
    return held


def check_finite(obs: NDArray[Any], first_step: int = 0) -> None:
    """Raise FloatingPointError if an observation of (N, *ob_shape) is not finite as float32.

    Args:
        obs: from the segment's step `first_step` on.
        first_step: of the segment.
    """
    if obs.dtype.kind != "f":
        return
    with np.errstate(over="ignore"):
        finite = np.isfinite(obs.astype(np.float32, copy=False))
    if not finite.all():
        step, *component = (int(index) for index in np.argwhere(~finite)[0])
        value = obs[(step, *component)]
        raise FloatingPointError(
            f"the environment returned an observation with component {component} = {value} "
            f"at step {first_step + step} of the segment, which is no finite float32"
        )


def warn_of_actions_outside(acs: NDArray[Any], ac_space: gym.Space) -> None:
    """Warn of the share of actions (T, *ac_shape) that lies outside a Box, if any does."""
    share = share_outside(acs, ac_space)
    if share:
        logger.warn(
            f"WARNING: {100 * share:.2g} % of the first actions lie outside the action space: the "
            "environment gets them as they are, as in baselines; --clip-actions clips them"
        )


def short(value: Any) -> str:
    """Return `value` and its type, in one short line."""
    return f"{' '.join(REPR.repr(value).split())} ({type(value).__name__})"


def _array(value: Any) -> NDArray[Any] | None:
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError):  # ragged, or a tensor that is elsewhere
        return None


def _shape(value: Any) -> tuple[int, ...] | None:
    array = _array(value)
    return None if array is None or array.dtype.kind not in REAL else array.shape


def _name(env: Any) -> str:
    return type(getattr(env, "unwrapped", env)).__name__


def _wrong(env: Any, method: str, what: str) -> str:
    returns = RETURNS[method]
    signature = "reset(*, seed=None, options=None)" if method == "reset" else "step(action)"
    return f"{_name(env)}.{method}() {what}: Gymnasium's {signature} returns {returns}; {REMEDY}"
