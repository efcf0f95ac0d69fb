import numpy as np
import pytest
import torch

import ppo1
from ppo1 import export
from tests.test_saved_policy import POLICIES


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
