import numpy as np
import pytest
import torch
from mpi4py import MPI

import ppo1
from common import logger
from common.misc_util import set_global_seeds
from ppo1 import export
from ppo1.mlp_policy import MlpPolicy
from ppo1.pposgd_simple import learn
from tests.envs import Countdown
from tests.test_saved_policy import POLICIES

REFUSED = {
    ".pt": "got observations of shape",
    ".pt2": "Guard failed: ob|Tensor dtype mismatch|tuple index out of range",
    ".onnx": "Invalid rank for input|Got invalid dimensions|Unexpected input data type",
}


def runner(path):
    """Return a file's function of observations, as a program without this package would run it."""
    if path.suffix == ".pt":
        script = torch.jit.load(path)
        return lambda ob: script(torch.from_numpy(ob))
    if path.suffix == ".pt2":
        program = torch.export.load(path).module()
        return lambda ob: program(torch.from_numpy(ob))
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(path)
    return lambda ob: session.run(["ac", "vpred"], {"ob": ob})


@pytest.mark.filterwarnings("ignore:.*torch.jit.load.* is deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    "name, suffix",
    [
        *[(name, ".pt") for name in POLICIES],
        *[
            pytest.param(name, suffix, marks=pytest.mark.slow)
            for name in ("box", "discrete", "multidiscrete", "multibinary", "cnn")
            for suffix in (".onnx", ".pt2")
        ],
    ],
)
def test_an_exported_policy_acts_as_the_policy(name, suffix, tmp_path, capsys):
    pi = POLICIES[name]()
    ppo1.save_policy(tmp_path / "policy", pi)
    path = tmp_path / f"exported{suffix}"
    export.main([str(tmp_path / "policy"), "-o", str(path)])
    assert capsys.readouterr() == (f"Wrote {path}\n", "")
    run = runner(path)
    pi.ob_space.seed(0)
    for count in (1, 7):
        obs = np.stack([pi.ob_space.sample() for _ in range(count)])
        obs = obs if obs.dtype == np.uint8 else 3 * obs.astype(np.float32)  # some beyond the clip
        wrong = [obs[0], np.moveaxis(obs, -1, 0), np.repeat(obs, 5, axis=-1), obs.astype(float)]
        for bad in wrong:
            with pytest.raises(Exception, match=REFUSED[suffix]):
                run(bad)
        acs, vpreds = (np.asarray(out) for out in run(obs))
        with torch.no_grad():
            _, want_vpreds = pi.pdparam_and_vpred(torch.from_numpy(obs))
        # onnxruntime sums a convolution's hundreds of terms in another order
        close = 1e-5 if (name, suffix) == ("cnn", ".onnx") else 1e-6
        np.testing.assert_allclose(vpreds, want_vpreds, rtol=close, atol=close)
        for ob, ac, vpred in zip(obs, acs, vpreds, strict=True):
            want_ac, want_vpred = pi.act(False, ob)
            np.testing.assert_allclose(ac, want_ac, rtol=1e-6, atol=1e-6)
            # The CNN's `act`, too, sums in another order
            close = 1e-5 if name == "cnn" else 1e-6
            np.testing.assert_allclose(vpred, want_vpred, rtol=close, atol=close)
            assert np.issubdtype(ac.dtype, np.integer) == np.issubdtype(
                np.asarray(want_ac).dtype, np.integer
            )


@pytest.mark.parametrize(
    "path, output, message",
    [
        ("nowhere", "x.pt", "cannot read policy .*nowhere: No such file"),
        ("policy", "x.txt", "need a name that ends in .pt, .pt2, .onnx"),
        ("policy", "policy/x.pt", "(Not a directory|File exists): '.*policy'"),
    ],
)
def test_what_cannot_be_exported(path, output, message, tmp_path, capsys):
    ppo1.save_policy(tmp_path / "policy", POLICIES["box"]())
    with pytest.raises(SystemExit) as leave:
        export.main([str(tmp_path / path), "-o", str(tmp_path / output)])
    assert leave.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    with pytest.raises(ValueError, match=message):
        raise ValueError(line)


def test_an_export_makes_its_folder(tmp_path, capsys):
    ppo1.save_policy(tmp_path / "policy", POLICIES["box"]())
    export.main([str(tmp_path / "policy"), "-o", str(tmp_path / "a" / "b" / "x.pt")])
    assert (tmp_path / "a" / "b" / "x.pt").exists()


def test_training_goes_on_after_an_export_as_without(tmp_path, monkeypatch):
    monkeypatch.setattr(logger, "log", lambda *args, **options: None)

    def train(callback):
        set_global_seeds(0)
        env = Countdown(5)
        env.action_space.seed(0)
        pi = learn(
            env, lambda *args: MlpPolicy(*args, 8, 1), timesteps_per_actorbatch=32, max_iters=2,
            clip_param=0.2, entcoeff=0.0, optim_epochs=2, optim_stepsize=1e-2, optim_batchsize=16,
            gamma=0.99, lam=0.95, callback=callback, comm=MPI.COMM_SELF,
        )  # fmt: skip
        assert pi.training
        return pi.variables(), np.random.get_state()[1:3], torch.get_rng_state().tolist()

    def callback(local, _):
        export.export_policy(local["pi"], tmp_path / "policy.pt")

    np.testing.assert_equal(train(callback), train(None))
