"""One update: its compiled paths against the eager one."""

import functools
import math
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from mpi4py import MPI

from common.mpi_adam import MpiAdam
from common.mpi_util import CollectiveError
from ppo1.cnn_policy import CnnPolicy
from ppo1.mlp_policy import MlpPolicy
from ppo1.policy import network_of
from ppo1.pposgd_simple import add_vtarg_and_adv, ppo_losses, prepare, traj_segment_generator
from ppo1.update import Update, compile_adam
from tests.conftest import assert_close
from tests.envs import Countdown

CLIP = torch.tensor(0.2, dtype=torch.float64)


def make_update(pi, adam):
    return Update(pi, adam, functools.partial(ppo_losses, pi.pdtype, entcoeff=0.01))


def update_and_columns(ac_space, rows=64):
    """Return the pieces of an update in the middle of an optimization."""
    env = Countdown(7, 5, 9, action_space=ac_space)
    pi = MlpPolicy("pi", env.observation_space, ac_space, 8, 1)
    adam = MpiAdam(pi.get_trainable_variables(), comm=MPI.COMM_SELF)
    seg = next(traj_segment_generator(pi, env, rows, stochastic=True))
    add_vtarg_and_adv(seg, 0.99, 0.95)
    columns = prepare(pi, seg, network_of(pi))
    adam.setfromflat(adam.getflat() + 0.1 * np.random.randn(len(adam.m)).astype(np.float32))
    return make_update(pi, adam), columns


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_gives_the_cpus_numbers():
    """To 1e-4: another order of summation in the convolutions."""
    ob_space, ac_space = gym.spaces.Box(0, 255, (84, 84, 4), np.uint8), gym.spaces.Discrete(6)
    random = np.random.default_rng(0)
    seg = {
        "ob": random.integers(0, 256, (64, 84, 84, 4), np.uint8),
        "ac": random.integers(0, 6, 64),
        "adv": random.normal(size=64).astype(np.float32),
        "tdlamret": random.normal(size=64).astype(np.float32),
    }

    def state(device):
        np.random.seed(0)
        torch.manual_seed(0)
        pi = CnnPolicy("pi", ob_space, ac_space).to(device)
        adam = MpiAdam(pi.get_trainable_variables(), comm=MPI.COMM_SELF)
        update = make_update(pi, adam)
        columns = prepare(pi, seg, network_of(pi))
        losses = [
            update(1e-3, columns, rows.to(device), CLIP.to(device)).cpu()
            for rows in torch.arange(64).split(32)
        ]
        return torch.stack(losses), adam.getflat(), pi.act(False, seg["ob"][0])[1]

    for got, want in zip(state("cuda"), state("cpu"), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "ac_space",
    [
        gym.spaces.Box(-1, 1, (3,), np.float32),
        pytest.param(gym.spaces.Discrete(4), marks=pytest.mark.slow),
        pytest.param(gym.spaces.MultiDiscrete([2, 3]), marks=pytest.mark.slow),
        pytest.param(gym.spaces.MultiBinary(3), marks=pytest.mark.slow),
    ],
)
def test_compiled_equals_eager_for_other_rows_clip_ranges_and_weights(ac_space):
    update, columns = update_and_columns(ac_space)
    rows, later_rows = torch.arange(16), torch.randperm(64)[:16]
    later_clip = torch.tensor(0.01, dtype=torch.float64)

    def results():
        cases = [(rows, CLIP), (later_rows, CLIP), (later_rows, later_clip)]
        return [[x.clone() for x in update.losses_and_gradient(columns, *case)] for case in cases]

    update.adam.theta += 0.01
    eager = results()
    update.adam.theta -= 0.01
    update.compile(columns, rows, CLIP, fused=False)
    update.adam.theta += 0.01
    for got, want in zip(results(), eager, strict=True):
        assert_close(got[0], want[0])
        assert_close(got[1], want[1])
    assert not torch.equal(eager[1][1], eager[2][1])  # the clip range mattered
    columns["vtarg"][0] = math.inf
    _, gradient = update.losses_and_gradient(columns, rows, CLIP)
    assert gradient.isnan().all()


def test_the_compiled_update_is_gradient_and_step_and_moves_nothing_that_is_not_finite():
    rows, stepsizes = torch.arange(16), [3e-2, 1e-2, 3e-3]

    def state(compiled):
        np.random.seed(0)
        torch.manual_seed(0)
        update, columns = update_and_columns(gym.spaces.Box(-1, 1, (3,), np.float32))
        adam = update.adam
        if compiled:
            update.compile(columns, rows, CLIP)
            assert update.path == "fused"
        losses = [update(stepsize, columns, rows + 16, CLIP) for stepsize in stepsizes]
        before = adam.getflat(), adam.m.copy(), adam.v.copy(), np.array(adam.t)
        columns["vtarg"][20] = math.inf
        with pytest.raises(CollectiveError, match="gradient is not finite at update 4"):
            update(1e-3, columns, rows + 16, CLIP)
        after = adam.getflat(), adam.m, adam.v, np.array(adam.t)
        for got, want in zip(after, before, strict=True):
            np.testing.assert_array_equal(got, want)
        return torch.stack(losses), *after

    for got, want in zip(state(compiled=True), state(compiled=False), strict=True):
        assert_close(got, want)


def test_compiled_for_one_length_others_stay_eager():
    update, columns = update_and_columns(gym.spaces.Discrete(3))
    update.path, update._compiled, update._compiled_for = "compiled", lambda *_: 1 / 0, (64, 16)
    update.losses_and_gradient(columns, torch.arange(15), CLIP)
    with pytest.raises(ZeroDivisionError):
        update.losses_and_gradient(columns, torch.arange(16), CLIP)


@pytest.mark.parametrize("others", ["No compiler here", None])
def test_where_one_rank_cannot_compile_none_does_and_a_line_says_which(others, capsys, monkeypatch):
    """Rank 0 of three, whose own compilation fails as the last one's, or alone."""
    update, columns = update_and_columns(gym.spaces.Discrete(3))
    update.adam.comm = SimpleNamespace(
        Get_rank=lambda: 0, Get_size=lambda: 3, Split_type=lambda _: MPI.COMM_SELF.Dup(),
        allgather=lambda problem: [problem, None, others],
        Ibarrier=lambda: SimpleNamespace(Test=lambda: True),
    )  # fmt: skip

    def compile(*_):
        update.path, update.adam.step = "compiled", "a function"
        if others is None:
            raise RuntimeError("No space left\nand more")

    monkeypatch.setattr(update, "compile", compile)
    options = dict(compile=None, is_worth_it=True, was_compiled=None)
    assert not update.compile_as_asked(columns, torch.arange(16), CLIP, **options)
    assert (update.path, update.adam.step) == ("eager", update.adam.step_in_numpy)
    where = "rank 2: No compiler here" if others else "rank 0: No space left"
    want = f"Not compiling the update, which is slower: {where}"
    assert capsys.readouterr().out.splitlines() == ["Compiling the update ...", want]


@pytest.mark.slow
def test_the_compiled_step_has_the_same_bits():
    plain, compiled = (
        MpiAdam([torch.nn.Parameter(torch.ones(1003))], comm=MPI.COMM_SELF) for _ in range(2)
    )
    compile_adam(compiled)
    assert compiled.getflat().tolist() == [1.0] * 1003  # compiling moved nothing
    assert not compiled.m.any()
    for t, g in enumerate(np.random.RandomState(0).randn(30, 1003).astype(np.float32)):
        plain.update(g.copy(), 1e-2 / (t + 1))
        compiled.update(g.copy(), 1e-2 / (t + 1))
    for name in ("m", "v"):
        np.testing.assert_array_equal(getattr(compiled, name), getattr(plain, name))
    np.testing.assert_array_equal(compiled.getflat(), plain.getflat())
