"""Proximal policy optimization with a clipped objective, one process per actor under MPI.

Source: baselines/ppo1/pposgd_simple.py @ ea25b9e; Schulman et al. 2017, arXiv:1707.06347.
Differs: see the list in README.md. What reads as a detail here (no value clipping, no gradient
clipping, the old policy's probabilities recomputed after the rollout) is how ppo1 does it.

Dimension letters: T steps of a rank's segment, N rows of a minibatch, P distribution parameters.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NotRequired, TypedDict, TypeVar

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
from common.mpi_running_mean_std import update_statistics, warn_of_offsets
from common.mpi_util import CollectiveError
from common.torch_util import torch_threads
from ppo1.hyperparameters import HYPERPARAMETERS, check_hyperparameters, check_same_updates
from ppo1.learner_state import restore_learner
from ppo1.policy import Policy, TorchPolicy
from ppo1.update import Batch, Update, is_worth_compiling

Callback = Callable[[dict[str, Any], dict[str, Any]], None]
AnyPolicy = TypeVar("AnyPolicy", bound=Policy)

MAX_REWARD = float(np.finfo(np.float32).max)
LOSS_NAMES = ["pol_surr", "pol_entpen", "vf_loss", "kl", "ent"]
ITERATIONS_WITHOUT_END = 10
NO_END = (
    f"WARNING: no episode has ended in {ITERATIONS_WITHOUT_END} iterations. Only the steps of "
    "ended episodes count as timesteps, so a run that timesteps or episodes limit may never end: "
    "limit it by iterations (max_iters, --max-iters), or its episodes (--max-episode-steps, "
    "gymnasium.wrappers.TimeLimit)"
)


class Segment(TypedDict):
    """T steps of a rollout, as `traj_segment_generator` yields them.

    ob: (T, *ob_shape), the environment's dtype.
    rew, vpred: (T,) float32. new: (T,) int32, 1 on an episode's first step.
    ac, prevac: (T, *ac_shape), float32 or int64: the action, and the one before it.
    nextvpred: the value after the last step, 0 if an episode ended there.
    ep_rets, ep_lens: returns and lengths of the episodes that ended in the segment.
    carry: what the next segment begins with.
    adv, tdlamret: (T,) float32, once `add_vtarg_and_adv` has filled them.
    """

    ob: NDArray[Any]
    rew: NDArray[np.float32]
    vpred: NDArray[np.float32]
    new: NDArray[np.int32]
    ac: NDArray[Any]
    prevac: NDArray[Any]
    nextvpred: Any
    ep_rets: list[float]
    ep_lens: list[int]
    carry: NotRequired[dict[str, Any]]
    adv: NotRequired[NDArray[np.float32]]
    tdlamret: NotRequired[NDArray[np.float32]]


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
                env_api.check_finite(np.asarray(ob)[None], i)  # which may be why
                raise
            if not math.isfinite(vpred):
                env_api.check_finite(np.asarray(ob)[None], i)  # a NaN shows in the value
            if getattr(ac, "dtype", None) is not ac_dtype or ac.shape != ac_shape:
                env_api.hold(ac, ac_dtype, ac_shape, step=i, source="the policy returned an action")
        has_acted = False
        if i == horizon:
            env_api.check_finite(obs)
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
                env_api.check_finite(ob[None], i + 1)
                rews[i] += bootstrap_gamma * pi.act(False, ob)[1]
            ep_rets.append(cur_ep_ret)
            ep_lens.append(cur_ep_len)
            cur_ep_ret, cur_ep_len = 0.0, 0
            ob = env_api.reset(env)
        i += 1


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


@torch.no_grad()
def prepare(pi: Policy, seg: Segment, network: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Batch:
    """Return what the losses need of a segment: T rows each, as tensors on the policy's device.

    Advantages are standardized, observations preprocessed, and the old policy is evaluated: pi is
    still equal to it. Call this after `ob_rms.update` and before the first update.

    Args:
        pi: the policy.
        seg: with its advantages.
        network: what the update trains, `network_of(pi)`.

    Returns:
        ob: what the network takes. ac: (T, *ac_shape). atarg, vtarg: (T,).
        oldpdparam, oldlogp: (T, P) and (T,), of the policy before the optimization.
    """
    columns = {
        "ob": torch.from_numpy(seg["ob"]),
        "ac": torch.from_numpy(seg["ac"]),
        "atarg": torch.from_numpy(standardized(seg["adv"])),
        "vtarg": torch.from_numpy(seg["tdlamret"]),
    }
    device = pi.get_trainable_variables()[0].device
    columns = {name: column.to(device) for name, column in columns.items()}
    if isinstance(network, TorchPolicy):
        columns["ob"] = network.preprocess(columns["ob"])
    oldpdparam, _ = network(columns["ob"])
    oldlogp = pi.pdtype.pdfromflat(oldpdparam).logp(columns["ac"])
    return {**columns, "oldpdparam": oldpdparam, "oldlogp": oldlogp}


def standardized(adv: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return advantages (T,) with mean 0 and standard deviation 1, over the rank's own segment."""
    if adv.max() == adv.min():  # not `std == 0`, which rounding breaks
        return np.zeros_like(adv)
    # Where these overflow, the value loss is not finite either
    with np.errstate(over="ignore", invalid="ignore"):
        return (adv - adv.mean()) / adv.std()


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
    update = Update(
        pi, adam,
        lambda pdparam, vpred, batch, clip_param: ppo_losses(
            pi.pdtype, pdparam, vpred, batch, clip_param, entcoeff
        ),
    )  # fmt: skip
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

            # Collect
            is_first = seg is None
            seg = next(seg_gen)
            add_vtarg_and_adv(seg, gamma, lam)

            # Prepare
            if hasattr(pi, "ob_rms"):
                update_statistics(pi.ob_rms, seg["ob"], comm)
            columns = prepare(pi, seg, update.network)
            all_rows = torch.arange(len(seg["ob"]), device=adam.theta.device)
            d = Dataset({"rows": all_rows}, deterministic=pi.recurrent)
            batchsize = optim_batchsize or len(seg["ob"])
            num_minibatches = len(seg["ob"]) // batchsize
            if is_first:
                if comm.Get_rank() == 0:
                    env_api.warn_of_actions_outside(seg["ac"], ac_space)
                    if hasattr(pi, "ob_rms"):
                        warn_of_offsets(seg["ob"])
                updates = check_same_updates(comm, optim_epochs * num_minibatches)
                iterations = max_iters or max_timesteps / (len(seg["ob"]) * comm.Get_size())
                is_compiled = update.compile_as_asked(
                    columns, all_rows[:batchsize], cur_clip,
                    compile=compile, was_compiled=is_compiled,
                    is_worth_it=is_worth_compiling(updates * iterations, max_seconds),
                )  # fmt: skip

            # Optimize
            logger.detail("Optimizing...")
            logger.detail(fmt_row(13, LOSS_NAMES))
            for _ in range(optim_epochs):
                losses: list[Tensor] = []  # of this rank alone
                for batch in d.iterate_once(batchsize):
                    stepsize = optim_stepsize * cur_lrmult
                    losses.append(update(stepsize, columns, batch["rows"], cur_clip))
                logger.detail(fmt_row(13, torch.stack(losses).mean(dim=0).cpu().numpy()))

            # Evaluate: all minibatches at once, since the mean of equal parts' means is the mean
            logger.detail("Evaluating losses...")
            (batch,) = d.iterate_once(num_minibatches * batchsize)
            newlosses = update.losses(columns, batch["rows"], cur_clip)
            meanlosses, _, _ = mpi_moments(newlosses[None].cpu().numpy(), axis=0, comm=comm)
            logger.detail(fmt_row(13, meanlosses))
            for name, value in zip(LOSS_NAMES, meanlosses, strict=True):
                logger.record_tabular(f"loss_{name}", value)
            logger.record_tabular(
                "ev_tdlam_before", explained_variance(seg["vpred"], seg["tdlamret"])
            )

            # Log, with the ranks' finished episodes pooled
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
