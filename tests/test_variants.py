"""benchmarks/variants.py: the replaced pieces, and that training uses them."""

import importlib
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import run_atari
import run_mujoco
from common.atari_wrappers import FrameStack, make_atari, wrap_deepmind
from common.distributions import CategoricalPdType
from common.env_state import get_env_state
from common.mpi_adam import MpiAdam
from common.plot_util import load_run, read_config
from ppo1 import cnn_policy, pposgd_simple
from ppo1.mlp_policy import MlpPolicy
from ppo1.policy import TorchPolicy
from ppo1.update import compile_adam
from tests.ranks import ROOT, on_ranks
from tests.test_pposgd_simple import SPACES, replay

sys.path.append(str(ROOT / "benchmarks"))  # scripts, not a package
variants = importlib.import_module("variants")
first_layer = importlib.import_module("first_layer")
atari_variants = importlib.import_module("atari_variants")


@pytest.mark.slow
def test_torch_adam_takes_the_steps_of_torchs() -> None:
    start = torch.linspace(-1, 1, 7)
    ours, theirs, ppo1s = (torch.nn.Parameter(start.clone()) for _ in range(3))
    adam = variants.TorchAdam([ours], epsilon=1e-2)  # large, for its place to matter
    ppo1s_adam = MpiAdam([ppo1s], epsilon=1e-2)
    reference = torch.optim.Adam([theirs], lr=3e-2, eps=1e-2)
    compile_adam(adam)
    rng = np.random.default_rng(0)
    for _ in range(20):
        gradient = rng.normal(size=7).astype(np.float32)
        theirs.grad = torch.from_numpy(gradient.copy())
        reference.step()
        adam.update(gradient.copy(), 3e-2)
        ppo1s_adam.update(gradient, 3e-2)
        # float32: the two round differently
        np.testing.assert_allclose(ours.detach(), theirs.detach(), rtol=0, atol=2e-6)
    assert (ours - ppo1s).abs().max() > 1e-2


def keep_pieces(patch: pytest.MonkeyPatch, of: Mapping[str, Mapping[tuple[Any, str], Any]]) -> None:
    """Have `patch` put back, when it is undone, the pieces that variants replace."""
    for module, name in {place for pieces in of.values() for place in pieces}:
        patch.setattr(module, name, getattr(module, name))


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that runs the command line, without its effect on later tests."""

    def main(command: str) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(variants.run_mujoco, "arg_parser", variants.run_mujoco.arg_parser)
            keep_pieces(patch, variants.VARIANTS)
            patch.setattr(sys, "argv", ["variants.py", *command.split()])
            variants.main()

    return main


def kl_of_second_iteration(main: Callable[[str], None], folder: Path, command: str) -> float:
    """Return the mean KL divergence of a short run's second iteration."""
    main(
        f"{command} --env InvertedPendulum-v4 --seed 0 --max-iters 2 --schedule constant "
        f"--timesteps-per-actorbatch 256 --log-path {folder} --log-format csv"
    )
    progress = load_run(folder).progress
    assert progress is not None
    return float(progress["loss_kl"].iloc[-1])


def test_training_uses_the_variants(main: Callable[[str], None], tmp_path: Path) -> None:
    kls = [
        kl_of_second_iteration(
            lambda command: run_mujoco.main(command.split()), tmp_path / "ppo1", "--no-compile"
        )
    ]
    for variant in variants.VARIANTS:
        kl = kl_of_second_iteration(main, tmp_path / variant, f"{variant} --no-compile")
        assert all(kl != pytest.approx(other, rel=1e-3) for other in kls)
        kls.append(kl)


@pytest.mark.slow
@pytest.mark.parametrize("variant", variants.VARIANTS)
def test_compiled_variants_are_the_same(
    main: Callable[[str], None], tmp_path: Path, variant: str
) -> None:
    eager = kl_of_second_iteration(main, tmp_path / "eager", f"{variant} --no-compile")
    compiled = kl_of_second_iteration(main, tmp_path / "compiled", f"{variant} --compile")
    assert compiled == pytest.approx(eager, rel=1e-3)  # float32's rounding, over 80 updates


class Recording(MlpPolicy):
    """Keeps the log-probability of each action at the time when it was sampled."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.logps: list[float] = []

    def act(self, stochastic: bool, ob: NDArray[Any]) -> tuple[Any, np.float32]:
        ac, vpred = super().act(stochastic, ob)
        pdparam, _ = self.pdparam_and_vpred(torch.from_numpy(ob[None]))
        pd = self.pdtype.pdfromflat(pdparam)
        self.logps.append(pd.logp(torch.from_numpy(np.asarray(ac)[None])).item())
        return ac, vpred


def test_stored_logp_is_that_of_sampling_time() -> None:
    np.random.seed(0)
    env = gym.make("Pendulum-v1")
    env.reset(seed=0)
    env.action_space.seed(0)
    pi = Recording("pi", env.observation_space, env.action_space, hid_size=8, num_hid_layers=1)
    segments = variants.segments_with_logp(pi, env, 5, stochastic=True)
    stored = []
    for _ in range(3):
        seg = next(segments)
        stored.extend(seg["logp"].tolist())
        with torch.no_grad():  # an update of weights and statistics, after acting
            for parameter in pi.get_trainable_variables():
                parameter += 0.1
        pi.ob_rms.update(seg["ob"])
        columns = variants.columns_with_stored_logp(
            pi, {**seg, "adv": seg["rew"], "tdlamret": seg["rew"]}, pi
        )
        assert columns["oldlogp"].tolist() == stored[-5:]
        assert list(columns)[-1] == "oldlogp"  # the order that `learn` compiles for
    # Rounding differs between a batch and a single row
    np.testing.assert_allclose(stored, pi.logps[:15], rtol=0, atol=1e-5)

    resumed = variants.segments_with_logp(pi, env, 5, stochastic=True, carry=seg["carry"])
    kept = next(segments)["logp"][0]
    assert next(resumed)["logp"][0] == kept
    np.testing.assert_allclose(kept, pi.logps[15], rtol=0, atol=1e-5)


def test_the_command_line_names_the_variant(
    main: Callable[[str], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = (
        f"--env InvertedPendulum-v4 --seed 0 --num-timesteps 60 --timesteps-per-actorbatch 64 "
        f"--optim-batchsize 32 --optim-epochs 1 --log-path {tmp_path}"
    )
    main(f"torch-adam {tiny}")
    config = read_config(tmp_path)
    assert config["arguments"]["variant"] == "torch-adam"
    assert config["command"][1:3] == ["variants.py", "torch-adam"]
    for command, message in [
        (f"stored-logp {tiny} --resume", "--variant stored-logp (saved: torch-adam)"),
        (f"{tiny} torch-adam", "need a variant first, torch-adam or stored-logp, got '--env'"),
        ("", "need a variant first"),
    ]:
        with pytest.raises(SystemExit) as leave:
            main(command)
        assert leave.value.code == 2
        assert message in capsys.readouterr().err


def train_atari(
    monkeypatch: pytest.MonkeyPatch, folder: Path, variant: str, flags: str
) -> TorchPolicy:
    """Return the policy that the command line of one iteration on Pong trains."""
    trained: list[Any] = []
    learn = pposgd_simple.learn
    command = (
        f"atari_variants.py {variant} --env PongNoFrameskip-v4 --preset paper --max-iters 1 "
        f"--schedule constant --clip-schedule constant --optim-epochs 1 "
        f"--timesteps-per-actorbatch 32 --seed 0 --log-path {folder} {flags}"
    )
    with monkeypatch.context() as patch:
        patch.setattr(pposgd_simple, "learn", lambda *a, **k: trained.append(learn(*a, **k)))
        patch.setattr(run_atari, "arg_parser", run_atari.arg_parser)
        keep_pieces(patch, atari_variants.VARIANTS)
        patch.setattr(sys, "argv", command.split())
        atari_variants.main()
    assert read_config(folder)["arguments"]["variant"] == variant
    return trained[0]


def test_orthogonal_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pi = train_atari(monkeypatch, tmp_path, "orthogonal", "--no-compile --optim-stepsize 1e-9")
    w = {name: np.array(value) for name, value in pi.variables().items()}
    for name, filters in (("l1/W", 16), ("l2/W", 32), ("lin/kernel", 256)):
        columns = w[name].reshape(-1, filters)
        np.testing.assert_allclose(columns.T @ columns, 2 * np.eye(filters), rtol=0, atol=1e-5)
    assert np.linalg.norm(w["logits/kernel"], axis=0) == pytest.approx(0.01, rel=1e-4)
    assert np.linalg.norm(w["value/kernel"]) == pytest.approx(1, rel=1e-4)
    capsys.readouterr()


def test_clipped_value_by_hand() -> None:
    """ppo1's other terms, and a value loss with its gradient that were worked out by hand."""
    batch = {
        "ac": torch.tensor([0, 1, 1, 0]),
        "atarg": torch.tensor([1.0, -1.0, 0.5, 2.0]),
        "vtarg": torch.tensor([1.0, 1.0, 1.0, 1.0]),
        "oldvpred": torch.tensor([0.0, 0.2, -0.2, 3.0]),
        "oldpdparam": torch.zeros(4, 2),
        "oldlogp": torch.full((4,), math.log(0.5)),
    }
    pdparam = torch.tensor([[0.3, 0.0], [0.0, 0.1], [0.0, 0.4], [0.0, 0.2]], requires_grad=True)
    vpred = torch.tensor([0.05, 0.5, -0.5, 2.5], requires_grad=True)
    errors = [
        0.95,  # within the range of 0.1
        0.7,  # beyond it, nearer to the target: that of 0.2 + 0.1, with no gradient
        1.5,  # beyond it, away from the target: its own
        1.9,  # beyond it, nearer to the target from above: that of 3.0 - 0.1
    ]
    arguments = (CategoricalPdType(2), pdparam, vpred, batch, torch.tensor(0.1), 0.01)
    total, parts = atari_variants.losses_with_clipped_value(*arguments)
    assert parts[2].item() == pytest.approx(sum(error**2 for error in errors) / 4 / 2)
    of_vpred, of_pdparam = torch.autograd.grad(total, [vpred, pdparam])
    assert of_vpred.tolist() == pytest.approx([-0.95 / 4, 0, -1.5 / 4, 0])

    ppo1s_total, ppo1s_parts = pposgd_simple.ppo_losses(*arguments)
    assert parts[[0, 1, 3, 4]].tolist() == ppo1s_parts[[0, 1, 3, 4]].tolist()
    assert (total - parts[2]).item() == pytest.approx((ppo1s_total - ppo1s_parts[2]).item())
    (ppo1s,) = torch.autograd.grad(ppo1s_total, [pdparam])
    assert of_pdparam.tolist() == ppo1s.tolist()


def test_training_uses_the_clipped_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With hardly a range to move in, a row's error is never less than before the update."""
    calls: list[tuple[Any, Any]] = []

    def record(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        total, parts = losses(*arguments)
        calls.append((arguments, parts))
        return total, parts

    pieces = atari_variants.VARIANTS["clipped-value"]
    losses = pieces[pposgd_simple, "ppo_losses"]
    monkeypatch.setitem(pieces, (pposgd_simple, "ppo_losses"), record)
    flags = "--no-compile --clip-param 1e-6 --optim-stepsize 1e-5"
    train_atari(monkeypatch, tmp_path, "clipped-value", flags)
    assert len(calls) == 2  # one minibatch to learn from, and to evaluate
    (_, _, first, batch, *_), _ = calls[0]
    # float32's rounding, of a batch of 32 rows in another order
    np.testing.assert_allclose(batch["oldvpred"], first.detach(), rtol=0, atol=1e-6)
    (_, _, last, batch, *_), parts = calls[1]
    before, after = ((v - batch["vtarg"]).square() for v in (batch["oldvpred"], last))
    assert (after < before).any()
    want = torch.maximum(before, after).mean().item() / 2
    assert parts[2].item() == pytest.approx(want, rel=1e-3)  # for the range of 1e-6
    assert want > 1.01 * after.mean().item() / 2  # what it would be without
    capsys.readouterr()


@pytest.mark.slow
def test_compiled_clipped_value_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = "--max-iters 3 --timesteps-per-actorbatch 64 --clip-param 0.001"
    losses = []
    for compiled in ("--no-compile", "--compile"):
        folder = tmp_path / compiled.strip("-")
        train_atari(monkeypatch, folder, "clipped-value", f"{flags} {compiled}")
        progress = load_run(folder).progress
        assert progress is not None
        losses.append(progress.filter(like="loss_").to_numpy())
    assert "Not compiling" not in capsys.readouterr().out
    # float32's rounding, over 6 updates
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3, atol=1e-6)


def test_black_background(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training sees distances from gray, resumes exactly, and refuses other games."""
    made: list[gym.Env] = []

    def record(*arguments: Any, **options: bool) -> gym.Env:
        made.append(wrap(*arguments, **options))
        return made[-1]

    pieces = atari_variants.VARIANTS["black-background"]
    ((place, wrap),) = pieces.items()
    monkeypatch.setitem(pieces, place, record)
    train_atari(monkeypatch, tmp_path, "black-background", "--no-compile")
    assert made
    assert get_env_state(made[-1]) is not None
    on_black = first_layer.count_filters(load_run(tmp_path))
    assert on_black == {"live_filters": 16, "filters": 16}
    monkeypatch.delitem(pieces, place)
    assert first_layer.count_filters(load_run(tmp_path))["live_filters"] < 16  # on gray

    plain = wrap_deepmind(make_atari("PongNoFrameskip-v4"))
    black = wrap(make_atari("PongNoFrameskip-v4"))
    for env in (plain, black):
        env.reset(seed=0)
    assert black.observation_space == plain.observation_space
    for _ in range(30):
        (gray_frame, *gray), (black_frame, *others) = plain.step(2), black.step(2)
        assert gray[:3] == others[:3]
        assert (gray_frame == 87).mean() > 0.7
        assert (gray_frame < 87).any()
        assert black_frame.dtype == np.uint8
        np.testing.assert_array_equal(black_frame, np.abs(gray_frame.astype(int) - 87))
    with pytest.raises(ValueError, match="is for Pong, got BreakoutNoFrameskip-v4"):
        wrap(make_atari("BreakoutNoFrameskip-v4"))
    capsys.readouterr()


@pytest.mark.mpi
def test_baselines_silences_filters_on_pong() -> None:
    """In the recorded iteration, on gray but not on black, as benchmarks/METHODS.md says.

    The weights after it are the replay's, which its own test holds to the recorded sample.
    """
    (history,) = on_ranks(1, replay, "pong", False)
    gray = history[0]["seg"]["ob"]
    pi = cnn_policy.CnnPolicy("pi", *SPACES["pong"], kind="small")
    alive = []
    for entry in history:
        state = entry["state"].items()
        pi.load_variables({key.removeprefix("theta/"): x for key, x in state if "theta/" in key})
        for frames in (gray, atari_variants.distance_from_gray(gray)):
            alive.append(int(first_layer.live_filters(pi, frames).sum()))
    assert alive == [11, 16, 9, 16]  # of 16


def test_ppo1s_own_weights_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the last hidden layer, on frames of Pong: what benchmarks/METHODS.md says of them."""
    env = FrameStack(wrap_deepmind(make_atari("PongNoFrameskip-v4")), 4)
    frames = first_layer.random_frames(env, 100)

    def hidden_layer() -> NDArray[np.float32]:
        np.random.seed(0)
        torch.manual_seed(0)
        pi = cnn_policy.CnnPolicy("pi", env.observation_space, env.action_space, kind="small")
        weights, x = pi.weights, pi.preprocess(torch.from_numpy(frames)) / 255.0
        for i, stride in enumerate(pi.strides, start=1):
            x = torch.relu(torch.conv2d(x, weights[f"l{i}/W"], stride=stride))
        x = torch.relu(x.permute(0, 2, 3, 1).flatten(start_dim=1) @ weights["lin/kernel"])
        return x.detach().numpy()

    ppo1s = hidden_layer()
    for (module, name), replacement in atari_variants.VARIANTS["orthogonal"].items():
        monkeypatch.setattr(module, name, replacement)
    orthogonal = hidden_layer()
    assert 4 < orthogonal.sum(axis=1).mean() / ppo1s.sum(axis=1).mean() < 20
    spread = [np.linalg.norm(layer.std(axis=0)) for layer in (ppo1s, orthogonal)]
    assert 4 < spread[1] / spread[0] < 20
