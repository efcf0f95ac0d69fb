"""Proximal policy optimization with a clipped objective, one process per actor under MPI.

Source: baselines/ppo1/pposgd_simple.py @ ea25b9e; Schulman et al. 2017, arXiv:1707.06347.
Differs: see the list in README.md. What reads as a detail here (no value clipping, no gradient
clipping, the old policy's probabilities recomputed after the rollout) is how ppo1 does it.

Dimension letters: T steps of a rank's segment, N rows of a minibatch, P distribution parameters.
"""

import math
import numbers
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common import env_api, logger
from common.console_util import fmt_row
from common.dataset import Dataset
from common.distributions import PdType
from common.math_util import explained_variance
from common.monitor import find_monitor, frame_counter
from common.mpi import MPI
from common.mpi_adam import MpiAdam
from common.mpi_moments import mpi_moments
from common.mpi_running_mean_std import RunningMeanStd, ill_scaled
from common.mpi_util import CollectiveError, wait_for_all
from common.torch_util import (
    FlatLayout,
    compile_function,
    count_compiled,
    functional_network,
    torch_threads,
)
from common.watchdog import patience
from ppo1.policy import Policy, TorchPolicy

Segment = dict[str, Any]
Batch = dict[str, Tensor]
Callback = Callable[[dict[str, Any], dict[str, Any]], None]
AnyPolicy = TypeVar("AnyPolicy", bound=Policy)

MAX_REWARD = float(np.finfo(np.float32).max)
LOSS_NAMES = ["pol_surr", "pol_entpen", "vf_loss", "kl", "ent"]
RMS_SUMS = ("runningsum", "runningsumsq", "count")
SCHEDULES = ("constant", "linear")
# Compiling takes some 10 seconds and saves 0.6 ms an update or more. It is decided by numbers that
# a second run has too, never by the clock, because compiled gradients differ in the last bits.
UPDATES_WORTH_COMPILING = 25_000
SECONDS_WORTH_COMPILING = 60.0
COMPILE_SECONDS = 1800.0  # after which a rank that compiles is stuck
ITERATIONS_WITHOUT_END = 10
NO_END = (
    f"WARNING: no episode has ended in {ITERATIONS_WITHOUT_END} iterations. Only the steps of "
    "ended episodes count as timesteps, so a run that timesteps or episodes limit may never end: "
    "limit it by iterations (max_iters, --max-iters), or its episodes (--max-episode-steps, "
    "gymnasium.wrappers.TimeLimit)"
)
LIMITS = ("max_timesteps", "max_episodes", "max_iters", "max_seconds")
OPTIONAL = ("optim_batchsize", "threads", *LIMITS)
HYPERPARAMETERS = (
    "timesteps_per_actorbatch", "clip_param", "entcoeff", "optim_epochs", "optim_stepsize",
    "optim_batchsize", "gamma", "lam", *LIMITS, "adam_epsilon", "schedule", "clip_schedule",
    "bootstrap_truncated", "threads",
)  # fmt: skip


def traj_segment_generator(
    pi: Policy,
    env: gym.Env,
    horizon: int,
    stochastic: bool,
    *,
    bootstrap_gamma: float | None = None,
    carry: dict[str, Any] | None = None,
) -> Iterator[Segment]:
    """Yield segments of `horizon` steps, for ever, the environment going on from one to the next.

    Action and value at index 0 of a segment were computed before the segment before it was yielded,
    that is, by the policy before its last update.

    Args:
        pi: the policy.
        env: an environment with the Gymnasium interface; it is reset once here.
        horizon: T, at least 1.
        stochastic: sample actions; else take the most likely.
        bootstrap_gamma: where a time limit cut an episode, add this times the value of the
            observation after the last to the stored reward. None: a cut is an end.
        carry: another generator's, to go on from where it stood, the environment being there too.

    Yields:
        a dict whose arrays are written anew for the next segment:
        ob: (T, *ob_shape), of the dtype that `env_api.observation_dtype` returns.
        rew, vpred: (T,) float32. new: (T,) int32, 1 on an episode's first step.
        ac, prevac: (T, *ac_shape), the action and the one before it, float32 or int64.
        nextvpred: the value after the last step, 0 if an episode ended there.
        ep_rets, ep_lens: returns and lengths of the episodes that ended in the segment.
        carry: what the next segment begins with.

    Raises:
        ValueError: for another interface than Gymnasium's; for an observation or an action of
            another shape than the space's, or one that the segment's dtype cannot hold.
        TypeError: for a reward, an end or an observation that is no number.
        FloatingPointError: for a reward or an observation that is not finite as float32.
    """
    if carry is None:
        ac = env.action_space.sample()  # stands as `prevac` of the very first step
        ob = env_api.reset(env)
        new = True
        cur_ep_ret, cur_ep_len = 0.0, 0
    else:
        ob, new, ac, vpred, prevac = (carry[key] for key in ("ob", "new", "ac", "vpred", "prevac"))
        cur_ep_ret, cur_ep_len = carry["cur_ep_ret"], carry["cur_ep_len"]
    ob_shape, ac_shape = env.observation_space.shape or (), tuple(pi.pdtype.sample_shape())
    # NumPy has one object for each of these dtypes, so that `is` compares them at no cost
    ob_dtype = env_api.observation_dtype(ob, env.observation_space)
    ac_dtype = np.dtype(str(pi.pdtype.sample_dtype()).removeprefix("torch."))
    obs = np.empty((horizon, *ob_shape), ob_dtype)
    rews = np.zeros(horizon, np.float32)
    vpreds = np.zeros(horizon, np.float32)
    news = np.zeros(horizon, np.int32)
    acs = np.empty((horizon, *ac_shape), ac_dtype)
    prevacs = acs.copy()
    ep_rets: list[float] = []
    ep_lens: list[int] = []

    def held_ob(ob: Any, step: int) -> NDArray[Any]:
        source = "the environment returned an observation"
        return env_api.hold(ob, ob_dtype, ob_shape, step=step, source=source)

    has_acted = carry is not None
    i = 0
    while True:
        if getattr(ob, "dtype", None) is not ob_dtype or ob.shape != ob_shape:
            ob = held_ob(ob, i)
        if not has_acted:
            prevac = ac
            try:
                ac, vpred = pi.act(stochastic, ob)
            except Exception:
                check_finite(np.asarray(ob)[None], i)  # which may be why
                raise
            if not math.isfinite(vpred):
                check_finite(np.asarray(ob)[None], i)  # a NaN shows in the value
            if getattr(ac, "dtype", None) is not ac_dtype or ac.shape != ac_shape:
                env_api.hold(ac, ac_dtype, ac_shape, step=i, source="the policy returned an action")
        has_acted = False
        if i == horizon:
            check_finite(obs)
            yield {
                "ob": obs, "rew": rews, "vpred": vpreds, "new": news, "ac": acs, "prevac": prevacs,
                "nextvpred": vpred * (1 - new), "ep_rets": ep_rets, "ep_lens": ep_lens,
                "carry": {  # of plain data: a checkpoint holds it
                    "ob": np.array(ob), "new": new, "ac": np.array(ac, ac_dtype)[()],
                    "vpred": np.float32(vpred), "prevac": np.array(prevac, ac_dtype)[()],
                    "cur_ep_ret": cur_ep_ret, "cur_ep_len": cur_ep_len,
                },
            }  # fmt: skip
            ep_rets, ep_lens = [], []
            i = 0
        obs[i] = ob
        vpreds[i] = vpred
        news[i] = new
        acs[i] = ac
        prevacs[i] = prevac

        try:
            ob, reward, terminated, truncated, _ = env.step(ac)
        except Exception as error:
            env_api.explain(error, env, ac)
            raise
        try:
            rew, new = float(reward), bool(terminated or truncated)
        except (OverflowError, TypeError, ValueError):
            rew, new = env_api.as_number(reward), True
        if not abs(rew) <= MAX_REWARD:  # NaN too
            raise FloatingPointError(
                f"the environment returned reward {rew} at step {i}, which is no finite float32"
            )
        rews[i] = rew
        cur_ep_ret += rew
        cur_ep_len += 1
        new = new and env_api.is_over(terminated, truncated)
        if new:
            if bootstrap_gamma is not None and not env_api.as_flag("terminated", terminated):
                ob = held_ob(ob, i + 1)
                check_finite(ob[None], i + 1)
                rews[i] += bootstrap_gamma * pi.act(False, ob)[1]
            ep_rets.append(cur_ep_ret)
            ep_lens.append(cur_ep_len)
            cur_ep_ret, cur_ep_len = 0.0, 0
            ob = env_api.reset(env)
        i += 1


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


def update_statistics(ob_rms: RunningMeanStd, obs: NDArray[Any], comm: MPI.Comm) -> None:
    """Add observations (T, *ob_shape) to the running statistics.

    Collective: every rank must call it.

    Raises:
        CollectiveError: on all ranks, if they overflow: the statistics square them in float32.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        ob_rms.update(obs)
    finite = np.isfinite(ob_rms.std)
    if not finite.all():
        component = tuple(int(index) for index in np.argwhere(~finite)[0])
        reached = comm.allgather(float(np.abs(obs).max(axis=0)[component]))
        raise CollectiveError(
            f"the environment's observations overflow their statistics: component "
            f"{list(component)} reached {max(reached)} on rank {reached.index(max(reached))}"
        )


def add_vtarg_and_adv(seg: Segment, gamma: float, lam: float) -> None:
    """Fill seg["adv"] and seg["tdlamret"], (T,) float32: GAE(lambda) and TD(lambda) returns.

    delta_t = r_t + gamma * V_{t+1} * (1 - new_{t+1}) - V_t
    adv_t   = delta_t + gamma * lam * (1 - new_{t+1}) * adv_{t+1}
    The recursion runs in float64. Source: arXiv:1506.02438.

    Args:
        seg: a segment, as the generator yields it.
        gamma: discount, in [0, 1].
        lam: in [0, 1].
    """
    # nextvpred is 0 where an episode ended with the segment: the step after it counts as not new.
    nonterminal = 1.0 - np.append(seg["new"][1:], 0)
    vpred = np.append(seg["vpred"], seg["nextvpred"]).astype(np.float64)
    delta = seg["rew"] + gamma * vpred[1:] * nonterminal - vpred[:-1]
    decay = gamma * lam * nonterminal
    adv = np.empty(len(delta), np.float32)
    lastgaelam = 0.0
    for t, (d, c) in enumerate(zip(delta[::-1].tolist(), decay[::-1].tolist(), strict=True), 1):
        lastgaelam = d + c * lastgaelam
        adv[-t] = lastgaelam
    seg["adv"] = adv
    seg["tdlamret"] = adv + seg["vpred"]


def ppo_losses(
    pdtype: PdType,
    pdparam: Tensor,
    vpred: Tensor,
    batch: Batch,
    clip_param: Tensor,
    entcoeff: float,
) -> tuple[Tensor, Tensor]:
    """Return the loss to be minimized and its parts, named by LOSS_NAMES.

    total = -mean(min(ratio * atarg, clip(ratio, 1 - c, 1 + c) * atarg))
            - entcoeff * mean(entropy) + mean((vpred - vtarg)**2)

    Args:
        pdtype: of the policy.
        pdparam: (N, P), of the policy being optimized.
        vpred: (N,).
        batch: ac (N, *ac_shape), atarg (N,), vtarg (N,), and of the policy before the optimization
            oldpdparam (N, P) and oldlogp (N,).
        clip_param: c, (), the clip range of the ratio.
        entcoeff: weight of the entropy bonus.

    Returns:
        total () and parts (5,); the latter are detached.
    """
    pd = pdtype.pdfromflat(pdparam)
    ratio = torch.exp(pd.logp(batch["ac"]) - batch["oldlogp"])
    surr1 = ratio * batch["atarg"]
    surr2 = ratio.clamp(1.0 - clip_param, 1.0 + clip_param) * batch["atarg"]
    pol_surr = -torch.min(surr1, surr2).mean()
    meanent = pd.entropy().mean()
    pol_entpen = -entcoeff * meanent
    vf_loss = (vpred - batch["vtarg"]).square().mean()
    with torch.no_grad():
        meankl = pdtype.pdfromflat(batch["oldpdparam"]).kl(pd).mean()
    total = pol_surr + pol_entpen + vf_loss
    return total, torch.stack([pol_surr, pol_entpen, vf_loss, meankl, meanent]).detach()


class LossAndGrad:
    """The losses of a minibatch and their flat gradient, for one policy.

    Eager at first; `compile` makes it several times faster where the arithmetic is small.
    """

    def __init__(self, pi: Policy, entcoeff: float, theta: Tensor) -> None:
        """Take the policy and the flat vector that its parameters are views of, (P,)."""
        self.pi = pi
        self.entcoeff = entcoeff
        self.theta = theta
        self.network = network_of(pi)
        self.parameters = pi.get_trainable_variables()
        self.layout = FlatLayout(self.parameters)
        self.gradient = torch.zeros_like(theta)
        self.views = self.layout.views(self.gradient)
        self.compiled: Callable[..., tuple[Tensor, Tensor]] | None = None
        self.compiled_update: Callable[..., Tensor] | None = None
        self.compiled_for = (0, 0)

    def __call__(self, columns: Batch, rows: Tensor, clip_param: Tensor) -> tuple[Tensor, Tensor]:
        """Return the losses (5,) and the gradient (P,), which the next call may write anew.

        A total loss that is not finite makes the whole gradient NaN, which tells all ranks.

        Args:
            columns: a whole segment, as `make_columns` returns it.
            rows: (N,) int64, the minibatch.
            clip_param: ().
        """
        if self.compiled is not None and self._is_compiled_for(columns, rows):
            return self.compiled(self.theta, clip_param, rows, *columns.values())
        total, losses = self._losses(self.network, select(columns, rows), clip_param)
        # An unused parameter's gradient is zero, as in TensorFlow's flatgrad.
        gradients = torch.autograd.grad(total, self.parameters, allow_unused=True)
        for view, gradient in zip(self.views, gradients, strict=True):
            view.zero_() if gradient is None else view.copy_(gradient)
        self.gradient += poison(total)
        return losses, self.gradient

    @torch.no_grad()
    def losses(self, columns: Batch, rows: Tensor, clip_param: Tensor) -> Tensor:
        """Return the losses (5,) alone; arguments as above."""
        return self._losses(self.network, select(columns, rows), clip_param)[1]

    def update(
        self, adam: MpiAdam, stepsize: float, columns: Batch, rows: Tensor, clip_param: Tensor
    ) -> Tensor:
        """Take one step on a minibatch and return its losses (5,); arguments as above.

        Collective: every rank must call it.
        """
        if self.compiled_update is not None and self._is_compiled_for(columns, rows):
            return self.compiled_update(stepsize, clip_param, rows, *columns.values())
        losses, gradient = self(columns, rows, clip_param)
        adam.update(gradient, stepsize)
        return losses

    def compile(self, columns: Batch, rows: Tensor, clip_param: Tensor) -> None:
        """Compile losses and gradient into one function of the flat vector and a minibatch.

        The arguments are examples: all later ones must have their shapes and dtypes.

        Raises:
            Exception: whatever keeps the policy from being compiled; the eager path then stays.
        """
        function = self._function_of_theta(list(columns))
        self.compiled = compile_function(function, self.theta, clip_param, rows, *columns.values())
        self.compiled_for = len(columns["ac"]), len(rows)  # segments of other lengths stay eager

    def compile_update(
        self, adam: MpiAdam, columns: Batch, rows: Tensor, clip_param: Tensor
    ) -> None:
        """Compile losses, gradient and Adam's step into one function: faster still, on one rank.

        Arguments and errors are those of `compile`.
        """
        function = self._function_of_theta(list(columns))
        self.compiled_update = adam.compile_with_gradient(
            function, clip_param, rows, *columns.values()
        )
        self.compiled_for = len(columns["ac"]), len(rows)

    def _is_compiled_for(self, columns: Batch, rows: Tensor) -> bool:
        return self.compiled_for == (len(columns["ac"]), len(rows))

    def _function_of_theta(self, names: Sequence[str]) -> Callable[..., tuple[Tensor, Tensor]]:
        if hasattr(self.pi, "ob_rms") and self.network is not self.pi:
            raise TypeError(f"the statistics of {type(self.pi).__name__} would be frozen")
        network, weight_names = functional_network(self.network, self.parameters)

        def losses_and_gradient(
            theta: Tensor, clip_param: Tensor, rows: Tensor, *values: Tensor
        ) -> tuple[Tensor, Tensor]:
            batch = select(dict(zip(names, values, strict=True)), rows)

            def total_and_losses(theta: Tensor) -> tuple[Tensor, Tensor]:
                weights = dict(zip(weight_names, self.layout.views(theta), strict=True))
                return self._losses(lambda ob: network(weights, ob), batch, clip_param)

            gradient, (total, losses) = torch.func.grad_and_value(total_and_losses, has_aux=True)(
                theta
            )
            return losses, gradient + poison(total)

        return losses_and_gradient

    def _losses(
        self, network: Callable[[Tensor], tuple[Tensor, Tensor]], batch: Batch, clip_param: Tensor
    ) -> tuple[Tensor, Tensor]:
        pdparam, vpred = network(batch["ob"])
        return ppo_losses(self.pi.pdtype, pdparam, vpred, batch, clip_param, self.entcoeff)


def network_of(pi: Policy) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Return what computes (N, P) and (N,): from preprocessed observations, if it is pi itself."""
    return pi if isinstance(pi, TorchPolicy) and pi.has_own_network else pi.pdparam_and_vpred


def select(columns: Batch, rows: Tensor) -> Batch:
    """Return the given rows of all columns."""
    return {name: column.index_select(0, rows) for name, column in columns.items()}


def poison(total: Tensor) -> Tensor:
    """Return 0 for a finite number and NaN for any other."""
    return (total - total).detach()


def learn(
    env: gym.Env,
    policy_fn: Callable[[str, gym.Space, gym.Space], AnyPolicy],
    *,
    timesteps_per_actorbatch: int,
    clip_param: float,
    entcoeff: float,
    optim_epochs: int,
    optim_stepsize: float,
    optim_batchsize: int | None,
    gamma: float,
    lam: float,
    max_timesteps: float = 0,
    max_episodes: int = 0,
    max_iters: int = 0,
    max_seconds: float = 0,
    callback: Callback | None = None,
    adam_epsilon: float = 1e-5,
    schedule: str = "constant",
    clip_schedule: str = "constant",
    bootstrap_truncated: bool = False,
    compile: bool | None = None,
    state: dict[str, Any] | None = None,
    comm: MPI.Comm | None = None,
    threads: int | None = 1,
) -> AnyPolicy:
    """Train a policy and return it.

    Exactly one of the four limits must be given; all are looked at between iterations, over all
    ranks together.

    Args:
        env: this rank's environment, with `observation_space, action_space, reset, step`.
        policy_fn: called as policy_fn("pi", ob_space, ac_space), then with "oldpi".
        timesteps_per_actorbatch: T, steps of each rank's segment, at least 1.
        clip_param: clip range of the probability ratio, above 0.
        entcoeff: weight of the entropy bonus, at least 0.
        optim_epochs: passes over a segment, at least 1.
        optim_stepsize: Adam's learning rate, above 0.
        optim_batchsize: rows of a rank's minibatch, at most T; None or 0 is the whole segment. The
            effective batch is this times the number of ranks.
        gamma: discount, in [0, 1].
        lam: GAE's lambda, in [0, 1].
        max_timesteps: end after this many steps of completed episodes.
        max_episodes: end after this many episodes.
        max_iters: end after this many iterations.
        max_seconds: end after this many seconds, by rank 0's clock.
        callback: called with `learn`'s locals and globals at the top of each iteration, before the
            limits are looked at: n iterations make n + 1 calls.
        adam_epsilon: Adam's epsilon, above 0.
        schedule: 'linear' anneals the learning rate to 0 over `max_timesteps`.
        clip_schedule: likewise the clip range.
        bootstrap_truncated: value the state behind a time limit rather than call it an end.
        compile: compile the update, or do not; None decides by what is expected to finish first.
        state: what `learner_state` gave on this rank, to go on from there. If it holds no `carry`,
            the environment begins a fresh episode.
        comm: the ranks; None is COMM_WORLD.
        threads: of torch while this trains, at least 1; None leaves their number as it is. More
            than one slows networks of this size down.

    Collective: every rank must call it, with the same arguments.

    Raises:
        ValueError: for an argument out of its range, and for an environment of another interface.
        CollectiveError: on all ranks, for losses or gradients that are not finite, and for
            parameters that differ between ranks.
        Exception: whatever environment, policy and callback raise, with a note on where.
    """
    arguments = locals()
    check_hyperparameters({name: arguments[name] for name in HYPERPARAMETERS})
    env_api.check_env(env)
    comm = MPI.COMM_WORLD if comm is None else comm

    # Set up the policy, its optimizer and the rollout
    ob_space, ac_space = env.observation_space, env.action_space
    pi = policy_fn("pi", ob_space, ac_space)
    # The old policy is evaluated once an iteration, when it is still equal to pi, so pi itself will
    # do. It is built nevertheless, because its weights are drawn from NumPy's random stream.
    policy_fn("oldpi", ob_space, ac_space)
    adam = MpiAdam(pi.get_trainable_variables(), epsilon=adam_epsilon, comm=comm)
    adam.sync()
    lossandgrad = LossAndGrad(pi, entcoeff, adam.theta)
    if hasattr(pi, "ob_rms"):
        pi.ob_rms.comm = comm
    saved = {} if state is None else state
    options: dict[str, Any] = {"bootstrap_gamma": gamma} if bootstrap_truncated else {}
    if "carry" in saved:
        options["carry"] = saved["carry"]
    seg_gen = traj_segment_generator(pi, env, timesteps_per_actorbatch, stochastic=True, **options)
    monitor = find_monitor(env)
    count_frames = frame_counter(env)

    episodes_so_far = saved.get("episodes_so_far", 0)
    timesteps_so_far = saved.get("timesteps_so_far", 0)
    iters_so_far = saved.get("iters_so_far", 0)
    frames_so_far = saved.get("frames_so_far", 0)
    frames_counted = 0 if count_frames is None else count_frames()
    tstart = time.monotonic() - saved.get("time_elapsed", 0.0)
    # Of the last 100 episodes over all ranks, as the learner sees them ...
    lenbuffer: deque[int] = deque(saved.get("lenbuffer", ()), maxlen=100)
    rewbuffer: deque[float] = deque(saved.get("rewbuffer", ()), maxlen=100)
    # ... and as Monitor does: whole games, their rewards neither clipped nor scaled
    truelenbuffer: deque[int] = deque(saved.get("truelenbuffer", ()), maxlen=100)
    truerewbuffer: deque[float] = deque(saved.get("truerewbuffer", ()), maxlen=100)
    episodes_monitored = 0 if monitor is None else len(monitor.get_episode_lengths())
    seg: Segment | None = None
    is_compiled: bool | None = saved.get("compiled")  # None: that was not tried
    if state is not None:
        restore_learner(pi, adam, state)

    iters_without_end, was_endless = 0, False
    where = notes_on_errors(lambda: f"in iteration {iters_so_far}", rank=comm.Get_rank())
    with torch_threads(threads), where:
        while True:
            if callback is not None:
                callback(locals(), globals())
            if (
                (max_timesteps and timesteps_so_far >= max_timesteps)
                or (max_episodes and episodes_so_far >= max_episodes)
                or (max_iters and iters_so_far >= max_iters)
                # Clocks differ, and all ranks must leave together
                or (max_seconds and comm.bcast(time.monotonic() - tstart >= max_seconds))
            ):
                break
            fraction_left = (
                max(1.0 - timesteps_so_far / max_timesteps, 0.0) if max_timesteps else 1.0
            )
            cur_lrmult = fraction_left if schedule == "linear" else 1.0
            cur_clip = torch.tensor(
                clip_param * (fraction_left if clip_schedule == "linear" else 1.0),
                dtype=torch.float64,
                device=adam.theta.device,
            )
            iteration_start = time.monotonic()
            logger.detail(f"********** Iteration {iters_so_far} ************")

            # Collect a segment
            is_first = seg is None
            seg = next(seg_gen)
            add_vtarg_and_adv(seg, gamma, lam)
            batchsize = optim_batchsize or len(seg["ob"])
            num_minibatches = len(seg["ob"]) // batchsize
            if hasattr(pi, "ob_rms"):
                update_statistics(pi.ob_rms, seg["ob"], comm)
            columns = make_columns(pi, seg)
            if is_first:
                if comm.Get_rank() == 0:
                    tell_of_actions_outside(seg["ac"], ac_space)
                    if hasattr(pi, "ob_rms"):
                        warn_of_offsets(seg["ob"])
                updates = check_same_updates(comm, optim_epochs * num_minibatches)
                iterations = max_iters or max_timesteps / (len(seg["ob"]) * comm.Get_size())
                is_long = (
                    updates * iterations > UPDATES_WORTH_COMPILING
                    or max_seconds > SECONDS_WORTH_COMPILING
                )
                was_compiled, is_compiled = is_compiled, None
                if compile or (compile is None and is_long):
                    rows = torch.arange(batchsize, device=adam.theta.device)
                    is_compiled = compile_in_turn(
                        comm, adam, lossandgrad, columns, rows, cur_clip, bool(compile)
                    )
                if was_compiled is not None and was_compiled != bool(is_compiled):
                    was, now = ("was", "is not") if was_compiled else ("was not", "is")
                    logger.warn(
                        f"The saved run's update {was} compiled, this one's {now}: "
                        "not exactly what the run would have been"
                    )
            rows = torch.arange(len(seg["ob"]), device=adam.theta.device)
            d = Dataset({"rows": rows}, deterministic=pi.recurrent)

            # Optimize
            logger.detail("Optimizing...")
            logger.detail(fmt_row(13, LOSS_NAMES))
            for _ in range(optim_epochs):
                losses: list[Tensor] = []  # of this rank alone
                for batch in d.iterate_once(batchsize):
                    stepsize = optim_stepsize * cur_lrmult
                    rows = batch["rows"]
                    losses.append(lossandgrad.update(adam, stepsize, columns, rows, cur_clip))
                logger.detail(fmt_row(13, torch.stack(losses).mean(dim=0).cpu().numpy()))

            # All minibatches at once: the mean of equal parts' means is the mean over all rows
            logger.detail("Evaluating losses...")
            (batch,) = d.iterate_once(num_minibatches * batchsize)
            newlosses = lossandgrad.losses(columns, batch["rows"], cur_clip)
            meanlosses, _, _ = mpi_moments(newlosses[None].cpu().numpy(), axis=0, comm=comm)
            logger.detail(fmt_row(13, meanlosses))
            for name, value in zip(LOSS_NAMES, meanlosses, strict=True):
                logger.record_tabular(f"loss_{name}", value)
            logger.record_tabular(
                "ev_tdlam_before", explained_variance(seg["vpred"], seg["tdlamret"])
            )

            # Pool the ranks' finished episodes
            true_rets, true_lens = [], []
            if monitor is not None:
                true_rets = monitor.get_episode_rewards()[episodes_monitored:]
                true_lens = monitor.get_episode_lengths()[episodes_monitored:]
                episodes_monitored += len(true_lens)
            frames = 0 if count_frames is None else count_frames() - frames_counted
            frames_counted += frames
            local = (seg["ep_lens"], seg["ep_rets"], true_lens, true_rets, [frames])
            lens, rews, true_lens, true_rets, all_frames = map(
                flatten_lists, zip(*comm.allgather(local), strict=True)
            )
            lenbuffer.extend(lens)
            rewbuffer.extend(rews)
            truelenbuffer.extend(true_lens)
            truerewbuffer.extend(true_rets)
            episodes_so_far += len(lens)
            timesteps_so_far += sum(lens)
            frames_so_far += sum(all_frames)
            iters_so_far += 1
            iters_without_end = 0 if lens else iters_without_end + 1
            is_endless = iters_without_end >= ITERATIONS_WITHOUT_END and (
                # Ten times as long as any before, if there were some
                iters_without_end * len(seg["ob"]) >= 10 * max(lenbuffer, default=0)
            )
            if is_endless and not was_endless and comm.Get_rank() == 0:
                logger.warn(NO_END)
            was_endless = was_endless or is_endless

            logger.record_tabular("EpLenMean", mean_or_nan(lenbuffer))
            logger.record_tabular("EpRewMean", mean_or_nan(rewbuffer))
            if monitor is not None:
                logger.record_tabular("EpTrueLenMean", mean_or_nan(truelenbuffer))
                logger.record_tabular("EpTrueRewMean", mean_or_nan(truerewbuffer))
            logger.record_tabular("EpThisIter", len(lens))
            logger.record_tabular("EpisodesSoFar", episodes_so_far)
            logger.record_tabular("TimestepsSoFar", timesteps_so_far)
            if count_frames is not None:
                logger.record_tabular("FramesSoFar", frames_so_far)
            logger.record_tabular("TimeElapsed", time.monotonic() - tstart)
            steps = len(seg["ob"]) * comm.Get_size()
            seconds = time.monotonic() - iteration_start
            logger.record_tabular("TimestepsPerSec", steps / seconds if seconds else math.nan)
            if comm.Get_rank() == 0:
                logger.dump_tabular()
    return pi


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


def check_hyperparameters(values: dict[str, Any]) -> None:
    """Check the HYPERPARAMETERS of `learn`, by name, against their ranges.

    Raises:
        ValueError: naming the first that is out of range, its value and its range.
    """
    for name, value in values.items():
        if name in ("schedule", "clip_schedule") or (value is None and name in OPTIONAL):
            continue
        counts = ("timesteps_per_actorbatch", "optim_epochs", "optim_batchsize", "threads")
        is_count = name in counts
        if not isinstance(value, numbers.Integral if is_count else numbers.Real):
            kind = "a whole number" if is_count else "a number"
            raise ValueError(f"{name} must be {kind}, got {value!r}")
    limits = {name: values[name] for name in LIMITS if values[name]}
    if len(limits) != 1 or not next(iter(limits.values())) > 0:
        raise ValueError(
            f"give exactly one of {', '.join(LIMITS)}, above 0; got {limits or 'none'}"
        )

    def need(name: str, holds: bool, limit: str) -> None:
        if not holds:  # a NaN fails every comparison, and so ends here too
            raise ValueError(f"{name} must be {limit}, got {values[name]!r}")

    for name in ("timesteps_per_actorbatch", "optim_epochs", "threads"):
        if values[name] is not None:
            need(name, values[name] >= 1, "a whole number above 0")
    for name in ("clip_param", "optim_stepsize", "adam_epsilon"):
        need(name, 0 < values[name] < math.inf, "a finite number above 0")
    need("entcoeff", 0 <= values["entcoeff"] < math.inf, "a finite number of at least 0")
    for name in ("gamma", "lam"):
        need(name, 0 <= values[name] <= 1, "in [0, 1]")
    for name in ("schedule", "clip_schedule"):
        need(name, values[name] in SCHEDULES, " or ".join(map(repr, SCHEDULES)))
        annealable = values[name] == "constant" or "max_timesteps" in limits
        need(name, annealable, "'constant' where max_timesteps is not given")
    horizon = values["timesteps_per_actorbatch"]
    need(
        "optim_batchsize",
        0 <= (values["optim_batchsize"] or 0) <= horizon,
        f"from 1 to timesteps_per_actorbatch ({horizon}), or 0 for all of it",
    )


def tell_of_actions_outside(acs: NDArray[Any], ac_space: gym.Space) -> None:
    """Log which share of the actions (T, *ac_shape) lies outside a Box, if any does."""
    share = env_api.share_outside(acs, ac_space)
    if share:
        logger.log(
            f"{100 * share:.2g} % of the first actions lie outside the action space: the "
            "environment gets them as they are, as in baselines; --clip-actions clips them"
        )


def check_same_updates(comm: MPI.Comm, updates: int) -> int:
    """Return `updates`, those that a rank makes in an iteration, if all ranks make as many.

    Collective: every rank must call it.

    Raises:
        ValueError: on all ranks, if the numbers differ or are 0.
    """
    by_rank = comm.allgather(updates)
    if len(set(by_rank)) > 1 or updates == 0:
        raise ValueError(
            "all ranks need the same number of minibatches, at least one; "
            f"got {by_rank} updates an iteration on ranks 0 to {len(by_rank) - 1}"
        )
    return updates


def warn_of_offsets(obs: NDArray[Any]) -> None:
    """Warn if normalization all but removes components of observations, (N, *ob_shape)."""
    if indices := ill_scaled(obs):
        named = ", ".join(str(i[0] if len(i) == 1 else i) for i in indices[:10])
        more = f" and {len(indices) - 10} more" if len(indices) > 10 else ""
        logger.warn(
            f"The mean of observation component {named}{more} is over 1000 times its spread, so "
            "its changes hardly reach the policy: subtract a constant, for instance with "
            "gymnasium.wrappers.TransformObservation"
        )


def compile_in_turn(
    comm: MPI.Comm,
    adam: MpiAdam,
    lossandgrad: LossAndGrad,
    columns: Batch,
    rows: Tensor,
    clip_param: Tensor,
    was_asked: bool,
) -> bool:
    """Compile on the first rank of each machine, then, from its cache, on the others.

    Where one rank cannot, a line in the log says which and why, and all stay eager: the others
    would wait for it, and their gradients would be rounded otherwise than its own.

    Returns:
        whether the update is compiled, on all ranks.

    Collective: every rank must call it.
    """
    machine = comm.Split_type(MPI.COMM_TYPE_SHARED)
    start, problem, before = time.time(), None, count_compiled()
    is_one = comm.Get_size() == 1 and adam.theta.device.type == "cpu"
    for first in (True, False):
        if first == (machine.Get_rank() == 0):
            try:
                if comm.Get_rank() == 0:
                    logger.log("Compiling the update ...")
                with patience(COMPILE_SECONDS):
                    if is_one:
                        lossandgrad.compile_update(adam, columns, rows, clip_param)
                    else:
                        lossandgrad.compile(columns, rows, clip_param)
                        adam.compile()
            except Exception as error:
                problem = (str(error) or repr(error)).strip().splitlines()[0]
        wait_for_all(machine)
    machine.Free()
    wait_for_all(comm)  # other machines may still compile
    problems = comm.allgather(problem)
    failed = [rank for rank, problem in enumerate(problems) if problem is not None]
    anew, cached = (now - then for now, then in zip(count_compiled(), before, strict=True))
    if failed:
        lossandgrad.compiled = lossandgrad.compiled_update = None
        where = "" if len(failed) == len(problems) else f"rank {', '.join(map(str, failed))}: "
        text = f"Not compiling the update, which is slower: {where}{problems[failed[0]]}"
        logger.warn(f"WARNING: cannot compile as asked. {text}" if was_asked else text)
        return False
    parts = "gradient and step in one" if is_one else "gradient and step apart"
    origin = ", anew" if anew else ", from the cache" if cached else ""
    logger.log(f"Compiled the update in {time.time() - start:.1f} s ({parts}{origin})")
    return True


@torch.no_grad()
def make_columns(pi: Policy, seg: Segment) -> Batch:
    """Return what the losses need of a segment, as tensors of T rows.

    This is the place where the old policy is evaluated: call it after `ob_rms.update` and before
    the first update. The names are those of `ppo_losses`, and `ob`, preprocessed.
    """
    adv = seg["adv"]
    # Standardized over the rank's own segment. Not `std == 0`, which rounding breaks.
    equal = adv.max() == adv.min()
    # Where these overflow, the value loss is not finite either
    with np.errstate(over="ignore", invalid="ignore"):
        atarg = np.zeros_like(adv) if equal else (adv - adv.mean()) / adv.std()
    columns = {
        "ob": torch.from_numpy(seg["ob"]),
        "ac": torch.from_numpy(seg["ac"]),
        "atarg": torch.from_numpy(atarg),
        "vtarg": torch.from_numpy(seg["tdlamret"]),
    }
    device = pi.get_trainable_variables()[0].device
    columns = {name: column.to(device) for name, column in columns.items()}
    network = network_of(pi)
    if isinstance(network, TorchPolicy):
        columns["ob"] = network.preprocess(columns["ob"])
    oldpdparam, _ = network(columns["ob"])
    oldlogp = pi.pdtype.pdfromflat(oldpdparam).logp(columns["ac"])
    return {**columns, "oldpdparam": oldpdparam, "oldlogp": oldlogp}


@contextmanager
def notes_on_errors(where: Callable[[], str], *, rank: int) -> Iterator[None]:
    """Add a note on where it happened to an exception that passes, and leave it as it is."""
    try:
        yield
    except CollectiveError as error:  # it is every rank's, and names those it came from
        error.add_note(where())
        raise
    except Exception as error:
        error.add_note(f"{where()} on rank {rank}")
        raise


def flatten_lists(lists: Iterable[list[Any]]) -> list[Any]:
    """Return the elements of several lists in one."""
    return [element for each in lists for element in each]


def mean_or_nan(values: Iterable[float]) -> float:
    """Return the mean, NaN for no values, without a warning."""
    values = list(values)
    return float(np.mean(values)) if values else math.nan
