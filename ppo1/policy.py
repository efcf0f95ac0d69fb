"""What the learner asks of a policy, and what the two policies share."""

from collections.abc import Callable, Mapping
from typing import Any, NoReturn, Protocol, cast

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules import module as hooks_of_all_modules

from common.distributions import PdType, make_pdtype
from common.misc_util import undisturbed_generators
from common.torch_util import flatten_parameters

# What observations may be, by NumPy's characters for dtypes
NUMBERS = np.typecodes["AllInteger"] + np.typecodes["Float"] + "?"
IMAGES = "B"  # uint8
NUMBERS_OF_FILES = "biuf"  # kinds of dtypes

# From one observation to distribution parameters, (P,), and value, a number. The next call may
# overwrite the parameters.
ActingNetwork = Callable[[NDArray[Any]], tuple[NDArray[np.float32], np.float32]]

# NumPy and torch add up in different orders, which changes some 1e-6 of the largest output, and
# more where weights are huge. No other network comes as close as this, on all observations tried.
AGREEMENT = 1e-3


class Policy(Protocol):
    """All that `learn` uses.

    An `ob_rms`, where there is one, is a `RunningMeanStd`, updated with each segment. An `rng`,
    where there is one, is a `numpy.random.Generator`, whose state checkpoints keep.

    A policy that is a `torch.nn.Module` can be compiled, if what it computes depends on its
    parameters and the observations alone. One with an `ob_rms` must derive from `TorchPolicy`
    for that, whose `preprocess` is not compiled; any other trains eagerly.
    """

    recurrent: bool
    pdtype: PdType

    def act(self, stochastic: bool, ob: NDArray[Any]) -> tuple[Any, Any]:
        """Return action and value for one observation.

        The environment gets the action as it is. The learner stores it in `pdtype.sample_dtype()`,
        float32 or int64, and refuses one that this cannot hold.

        Args:
            stochastic: sample; else take the most likely action.
            ob: ob_shape, of the segment's dtype: floats where the space is of floats.
        """

    def pdparam_and_vpred(self, ob: Tensor) -> tuple[Tensor, Tensor]:
        """Return (N, P) distribution parameters and (N,) values for (N, *ob_shape)."""

    def get_trainable_variables(self) -> list[nn.Parameter]:
        """Return the float32 parameters, in the order of the flat vector."""


class TorchPolicy(nn.Module):
    """A policy whose parameters are registered under baselines' names, in baselines' order.

    A subclass registers parameters, and defines `forward(x)`: preprocessed observations to
    distribution parameters (N, P) and values (N,). `preprocess` holds what is constant during the
    optimization of one segment, so that it is done once a segment rather than once a minibatch.

    A copy (`copy.deepcopy`, pickle, `torch.save`) trains and acts as the original would.
    `state_dict()` holds the observation statistics too, under the names that `variables()` uses.

    Attributes:
        ARGUMENTS: what the constructor takes beside name and spaces, kept under the same names,
            for files.
        NETWORK: the methods that compute the outputs. `act` uses a class's `_numpy_network` only
            while none of them is overridden.
        ob_dtypes: the observations' possible dtypes, by NumPy's character codes.
        rng: the action noise's own generator; seeded from torch's.
    """

    ARGUMENTS: tuple[str, ...] = ()
    NETWORK: tuple[str, ...] = ("pdparam_and_vpred", "preprocess", "forward", "__call__", "weights")
    ob_dtypes: str = NUMBERS
    recurrent = False

    def __init__(self, name: str, ob_space: gym.Space, ac_space: gym.Space) -> None:
        """Keep the spaces; raises ValueError for those that cannot be handled."""
        super().__init__()
        if not isinstance(ob_space, gym.spaces.Box):
            raise ValueError(
                f"unsupported observation space {ob_space}: need a Box "
                "(gymnasium.wrappers.FlattenObservation makes one)"
            )
        self.name, self.ob_space, self.ac_space = name, ob_space, ac_space
        self.ob_shape: tuple[int, ...] = ob_space.shape
        self.pdtype = make_pdtype(ac_space)
        self.rng = np.random.default_rng(int(torch.randint(2**63 - 1, ())))
        self._acts_at: list[int] | None = None

    @property
    def has_own_network(self) -> bool:
        """Whether `pdparam_and_vpred` is `forward` after `preprocess`, overridden nowhere."""
        return self._is_not_overridden("pdparam_and_vpred", since=TorchPolicy)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    @property
    def weights(self) -> dict[str, Tensor]:
        """The parameters by name, or what `torch.func.functional_call` has put in their place."""
        return cast(dict[str, Tensor], self._parameters)

    def preprocess(self, ob: Tensor) -> Tensor:
        """Return what `forward` takes, on the policy's device, from raw observations.

        Args:
            ob: (N, *ob_shape), any real dtype, on any device.
        """
        raise NotImplementedError

    def pdparam_and_vpred(self, ob: Tensor) -> tuple[Tensor, Tensor]:
        """Return distribution parameters (N, P) and values (N,) for raw observations.

        Both are float32; `ob` is (N, *ob_shape), of any real dtype, images uint8.

        Raises:
            ValueError: for another shape, or another dtype.
        """
        is_wrong = ob.dtype != torch.uint8 if self.ob_dtypes == IMAGES else ob.is_complex()
        if ob.shape[1:] != self.ob_shape or is_wrong:
            self._refuse("observations", tuple(ob.shape), ob.dtype, ("N", *self.ob_shape))
        return self(self.preprocess(ob))

    def act(self, stochastic: bool, ob: NDArray[Any]) -> tuple[Any, np.float32]:
        """Return an action for the environment and the predicted value, for one observation.

        The network is computed in NumPy, on the same memory, if the class has a NumPy form of it
        and nothing is overridden; a single observation through torch takes several times as long.

        Args:
            stochastic: sample; else the most likely action.
            ob: ob_shape, any real dtype, images uint8.

        Draws from the policy's own generator, `rng`.

        Raises:
            ValueError: for an observation of another shape, or another dtype.
        """
        ob = np.asarray(ob)
        if ob.shape != self.ob_shape or ob.dtype.char not in self.ob_dtypes:
            self._refuse("an observation", ob.shape, ob.dtype, self.ob_shape)
        if (
            self._acts_at != list(map(Tensor.data_ptr, self._parameters.values()))  # type: ignore[arg-type]
            or self._forward_hooks
            or self._forward_pre_hooks
        ):
            self._choose_network()
        flat, vpred = self._acting_network(ob)
        return self.pdtype.draw(flat, self.rng if stochastic else None), vpred

    def _refuse(self, what: str, shape: Any, dtype: Any, need: Any) -> NoReturn:
        dtypes = "uint8" if self.ob_dtypes == IMAGES else "numbers"
        shapes = str(need).replace("'", "")
        raise ValueError(f"got {what} of shape {shape}, {dtype}; need shape {shapes}, {dtypes}")

    def _numpy_network(self) -> ActingNetwork | None:
        """Return a function on NumPy views of the parameters, or None where there is no such form.

        It is asked for again when parameters have moved in memory.
        """
        return None

    def _torch_network(self, ob: NDArray[Any]) -> tuple[NDArray[np.float32], np.float32]:
        with torch.no_grad():
            flat, vpred = self.pdparam_and_vpred(torch.as_tensor(ob[None]))
        return flat[0].cpu().numpy(), np.float32(vpred[0].cpu())

    def _choose_network(self) -> None:
        """Set what `act` computes with: NumPy's network only if it is sure to be torch's.

        That a method of the class is replaced later is not noticed.
        """
        self._acting_network: ActingNetwork = self._torch_network
        self._acts_at = None
        if self._is_hooked():
            return  # until the hooks are gone
        self._acts_at = list(map(Tensor.data_ptr, self._parameters.values()))  # type: ignore[arg-type]
        kind = next(kind for kind in type(self).__mro__ if "_numpy_network" in vars(kind))
        if self._is_not_overridden(*self.NETWORK, since=kind):
            network = self._numpy_network()
            if network is not None and self._agrees(network):
                self._acting_network = network

    def _is_not_overridden(self, *names: str, since: type) -> bool:
        """Return whether methods are those of the class `since`, on the instance too."""
        return all(
            getattr(type(self), name) is getattr(since, name) and name not in vars(self)
            for name in names
        )

    def _is_hooked(self) -> bool:
        hooks = (
            self._forward_hooks, self._forward_pre_hooks,
            hooks_of_all_modules._global_forward_hooks,
            hooks_of_all_modules._global_forward_pre_hooks,
        )  # fmt: skip
        return any(hooks)

    def _agrees(self, network: ActingNetwork) -> bool:
        """Return whether `network` gives what torch does, on observations within and beyond +-5."""
        rng = np.random.default_rng(0)
        obs: NDArray[Any]
        if self.ob_dtypes == IMAGES:
            obs = rng.integers(256, size=(4, *self.ob_shape), dtype=np.uint8)
        else:
            scales = np.array([0.5, 1.0, 3.0, 30.0]).reshape(4, *[1] * len(self.ob_shape))
            obs = scales * rng.standard_normal((4, *self.ob_shape))
            if (ob_rms := getattr(self, "ob_rms", None)) is not None:
                obs = ob_rms.mean + ob_rms.std * obs
        with undisturbed_generators(), torch.no_grad(), np.errstate(all="ignore"):
            outputs = self.pdparam_and_vpred(torch.from_numpy(obs))
            rows = [[np.array(output) for output in network(ob)] for ob in obs]
        wanted = (output.cpu().numpy() for output in outputs)
        for got, want in zip(map(np.stack, zip(*rows, strict=True)), wanted, strict=True):
            tolerance = AGREEMENT * np.abs(want[np.isfinite(want)]).max(initial=0.0)
            if not np.allclose(got, want, rtol=0, atol=tolerance, equal_nan=True):
                return False
        return True

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in self.NETWORK:
            self._acts_at = None

    def __getstate__(self) -> dict[str, Any]:
        state = cast(dict[str, Any], super().__getstate__())
        state = {k: v for k, v in state.items() if k not in ("_acts_at", "_acting_network")}
        return {**state, "_is_flat": self._is_flat()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        was_flat = state.pop("_is_flat", False)
        super().__setstate__(state)
        self._acts_at = None  # what it acted with are views of the original's memory
        if was_flat and not self._is_flat():  # the parameters were copied one by one
            flatten_parameters(list(self.parameters()))

    def _is_flat(self) -> bool:
        return len({p.untyped_storage().data_ptr() for p in self.parameters()}) == 1

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        for name, statistic in self._statistics().items():
            destination[prefix + name] = statistic
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Tensor],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        rest = dict(state_dict)
        for name, statistic in self._statistics().items():
            value = rest.pop(prefix + name, None)
            if value is None:
                missing_keys.append(prefix + name)
            elif value.shape != statistic.shape:
                shapes = f"{tuple(value.shape)}, not {tuple(statistic.shape)}"
                error_msgs.append(f"{prefix + name} is {shapes}")
            else:
                statistic.copy_(value)
        if (ob_rms := getattr(self, "ob_rms", None)) is not None:
            ob_rms.refresh()
        super()._load_from_state_dict(
            rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def get_initial_state(self) -> list[Any]:
        """Return [], the state of a policy that is not recurrent."""
        return []

    def get_trainable_variables(self) -> list[nn.Parameter]:
        """Return the parameters, in baselines' order."""
        return list(self.parameters())

    def get_variables(self) -> list[Tensor]:
        """Return all variables: the observation statistics, if any, then the parameters."""
        return [*self._statistics().values(), *self.parameters()]

    def variables(self) -> dict[str, NDArray[Any]]:
        """Return copies of all variables by baselines' name, in TensorFlow's layout.

        Dense kernels are (in, out), convolutions (height, width, in, out), their biases
        (1, 1, 1, out), observation statistics float64.
        """
        named = {**self._statistics(), **dict(self.named_parameters())}
        return {
            name: _tf_view(name, variable.detach()).cpu().numpy().copy()
            for name, variable in named.items()
        }

    def load_variables(self, values: Mapping[str, Any]) -> None:
        """Set all variables from arrays in TensorFlow's layout.

        Args:
            values: by name, as `variables` gives them or with baselines' scope and output number
                (`pi/pol/fc1/kernel:0`). Those of another scope, `oldpi/`, are passed over.

        Raises:
            ValueError: naming what is missing, left over, of another shape or not finite. Nothing
                is set then.
        """
        named = {**self._statistics(), **dict(self.named_parameters())}
        given = {
            name.removeprefix("pi/").removesuffix(":0"): np.asarray(value)
            for name, value in values.items()
            if not name.startswith("oldpi/")
        }
        problems = [f"missing {name}" for name in named if name not in given]
        problems += [f"unknown {name}" for name in given if name not in named]
        problems += [
            f"{name} is {given[name].shape}, not {tuple(_tf_view(name, variable).shape)}"
            for name, variable in named.items()
            if name in given and given[name].shape != tuple(_tf_view(name, variable).shape)
        ]
        problems += [
            f"{name} holds numbers that are not finite float32, or a count of 0 or less"
            for name, value in given.items()
            if name in named and not self._is_usable(name, value)
        ]
        if problems:
            more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
            raise ValueError(f"cannot load these variables: {'; '.join(problems[:4])}{more}")
        with torch.no_grad():
            for name, variable in named.items():
                _tf_view(name, variable).copy_(torch.as_tensor(given[name]))
        if (ob_rms := getattr(self, "ob_rms", None)) is not None:
            ob_rms.refresh()

    @staticmethod
    def _is_usable(name: str, value: NDArray[Any]) -> bool:
        """Return whether a variable's values can be computed with; those of statistics are sums."""
        if value.dtype.kind not in NUMBERS_OF_FILES:
            return False
        if name.startswith("obfilter/"):
            return bool(np.isfinite(value).all()) and (
                name != "obfilter/count" or bool((value > 0).all())
            )
        with np.errstate(over="ignore"):
            return bool(np.isfinite(value.astype(np.float32)).all())

    def _statistics(self) -> dict[str, Tensor]:
        # Views: writing to them writes to the running sums.
        ob_rms = getattr(self, "ob_rms", None)
        if ob_rms is None:
            return {}
        names = ("runningsum", "runningsumsq", "count")
        return {f"obfilter/{name}": torch.from_numpy(getattr(ob_rms, name)) for name in names}


def network_of(pi: Policy) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Return what computes (N, P) and (N,): from preprocessed observations, if it is pi itself."""
    return pi if isinstance(pi, TorchPolicy) and pi.has_own_network else pi.pdparam_and_vpred


def _tf_view(name: str, variable: Tensor) -> Tensor:
    # A convolution's kernel, `.../W`, is (out, in, h, w) here and (h, w, in, out) there.
    return variable.permute(2, 3, 1, 0) if name.endswith("/W") else variable
