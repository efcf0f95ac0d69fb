import importlib
import re
import subprocess
import sys

import joblib
import numpy as np
import pytest
import torch
from gymnasium import spaces

import ppo1
import run_mujoco
from common.checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from common.mpi_adam import MpiAdam
from common.policy_file import (
    describe_policy,
    read_policy,
    space_from_plain,
    space_to_plain,
    write_policy,
)
from ppo1.cnn_policy import CnnPolicy
from ppo1.learner_state import learner_state
from ppo1.mlp_policy import MlpPolicy
from tests.ranks import ROOT

SPACES = [
    spaces.Box(-np.inf, np.inf, (11,), np.float64),
    spaces.Box(np.array([-1.0, -2.0], np.float32), np.array([1.0, 3.0], np.float32)),
    spaces.Box(0, 255, (84, 84, 4), np.uint8),
    spaces.Discrete(4),
    spaces.MultiDiscrete([2, 3, 4]),
    spaces.MultiBinary(5),
]


def mlp(ac_space=SPACES[1], **arguments):
    """Return a policy with statistics and weights unlike those of any other."""
    pi = MlpPolicy("pi", SPACES[0], ac_space, **{"hid_size": 8, "num_hid_layers": 2, **arguments})
    pi.ob_rms.update(3.0 * np.random.randn(100, 11) + 1.0)
    scramble(pi)
    return pi


def cnn(kind="small"):
    pi = CnnPolicy("pi", SPACES[2], SPACES[3], kind=kind)
    scramble(pi)
    return pi


def scramble(pi):
    with torch.no_grad():
        for parameter in pi.parameters():
            parameter += 0.1 * torch.randn_like(parameter)


POLICIES = {
    "box": mlp,
    "free variance": lambda: mlp(gaussian_fixed_var=False, num_hid_layers=1),
    "discrete": lambda: mlp(SPACES[3]),
    "multidiscrete": lambda: mlp(SPACES[4]),
    "multibinary": lambda: mlp(SPACES[5]),
    "cnn": cnn,
}


def assert_same(one, two):
    """Check that two policies act alike, samples included, and hold the same variables."""
    assert (one.ob_space, one.ac_space) == (two.ob_space, two.ac_space)
    np.testing.assert_equal(one.variables(), two.variables())
    one.rng, two.rng = (np.random.default_rng(0) for _ in range(2))
    for stochastic in (False, True):
        ob = one.ob_space.sample()
        np.testing.assert_equal(one.act(stochastic, ob), two.act(stochastic, ob))


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_spaces_are_what_they_were(space):
    assert space_from_plain(space_to_plain(space)) == space


def test_spaces_that_are_none():
    with pytest.raises(ValueError, match="cannot save the space Text"):
        space_to_plain(spaces.Text(3))
    with pytest.raises(ValueError, match="not a space: "):
        space_from_plain({"type": "Box", "shape": [2]})
    with pytest.raises(ValueError, match="unknown kind of space: 'Text'"):
        space_from_plain({"type": "Text"})


@pytest.mark.parametrize("name", POLICIES)
def test_a_saved_policy_comes_back_in_one_line(name, tmp_path):
    pi = POLICIES[name]()
    ppo1.save_policy(tmp_path / "new" / "policy", pi, env_id="Hopper-v4")
    state = np.random.get_state()[1].copy(), torch.get_rng_state()
    assert_same(ppo1.load_policy(tmp_path / "new" / "policy"), pi)
    np.testing.assert_array_equal(np.random.get_state()[1], state[0])
    assert torch.equal(torch.get_rng_state(), state[1])
    assert read_policy(tmp_path / "new" / "policy").settings["env"] == "Hopper-v4"
    np.testing.assert_equal(ppo1.load_variables(tmp_path / "new" / "policy"), pi.variables())


@pytest.mark.parametrize("make", [mlp, cnn])
def test_a_run_and_its_checkpoint_hold_the_policy(make, tmp_path):
    pi = make()
    adam = MpiAdam(pi.get_trainable_variables())
    local = dict.fromkeys(["lenbuffer", "rewbuffer", "truelenbuffer", "truerewbuffer"], ())
    counters = ["iters_so_far", "timesteps_so_far", "episodes_so_far", "frames_so_far", "tstart"]
    local |= dict.fromkeys(counters, 0)
    shared, _ = learner_state(local | {"pi": pi, "adam": adam, "seg": {}})
    content = {"policy": describe_policy(pi), "shared": shared, "arguments": {"env": "X-v0"}}
    path = tmp_path / "run" / "checkpoints" / "iteration-000000007.ckpt"
    write_checkpoint(path, content)
    path.with_name("iteration-000000009.ckpt").write_bytes(b"torn")
    for source in (path, tmp_path / "run", path.parent):
        assert_same(ppo1.load_policy(source), pi)
        np.testing.assert_equal(ppo1.load_variables(source), pi.variables())
    assert read_policy(path).settings["env"] == "X-v0"
    other = mlp(hid_size=9) if make is mlp else cnn("large")
    with pytest.raises(ValueError, match=r"000007.ckpt does not fit: .* \d+ weights, this one \d+"):
        ppo1.load_policy(path, other)


@pytest.mark.parametrize("make", [mlp, cnn])
@pytest.mark.parametrize("kind", ["joblib", "npz"])
def test_variables_go_to_baselines_layout_and_back(make, kind, tmp_path):
    pi, path = make(), tmp_path / "dump"
    dump = {f"pi/{name}:0": value for name, value in pi.variables().items()}
    dump |= {name.replace("pi/", "oldpi/"): 0 * value for name, value in dump.items()}
    if kind == "joblib":
        joblib.dump(dump, path)  # what baselines' tf_util.save_variables does
    else:
        with open(path, "wb") as file:
            np.savez(file, **dump)
    assert_same(ppo1.load_policy(path, make()), pi)
    other = make()
    other.load_variables(ppo1.load_variables(path))
    assert_same(other, pi)


class Own(MlpPolicy):
    pass


def test_a_class_of_ones_own_is_filled(tmp_path):
    pi = Own("pi", SPACES[0], SPACES[1], hid_size=4, num_hid_layers=1)
    ppo1.save_policy(tmp_path / "policy", pi)
    with pytest.raises(CheckpointError, match="class tests.test_saved_policy.Own, .*construct one"):
        ppo1.load_policy(tmp_path / "policy")
    again = Own("pi", SPACES[0], SPACES[1], hid_size=4, num_hid_layers=1)
    assert ppo1.load_policy(tmp_path / "policy", again) is again
    assert_same(again, pi)


def test_what_cannot_be_loaded(tmp_path):
    path = tmp_path / "policy"
    with pytest.raises(CheckpointError, match="cannot read policy .*: No such file"):
        ppo1.load_policy(path)
    tmp_path.joinpath("folder").mkdir()
    with pytest.raises(CheckpointError, match="no checkpoint in .*folder"):
        ppo1.load_policy(tmp_path / "folder")
    joblib.dump({"a": np.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="does not say how its policy is made: construct one"):
        ppo1.load_policy(path)
    with pytest.raises(ValueError, match="missing obfilter/runningsum; .*; and 13 more"):
        ppo1.load_policy(path, mlp())
    write_policy(path, mlp(), settings={"env": "Hopper-v4", "gamma": 1})
    with pytest.raises(ValueError, match=r"of Hopper-v4 for actions Box\(2,\), .* Discrete\(4\)"):
        ppo1.load_policy(path, mlp(SPACES[3]))
    assert "gamma" not in read_checkpoint(path)["settings"]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="is damaged"):
        ppo1.load_policy(path)
    write_checkpoint(path, {"arguments": {}})
    with pytest.raises(CheckpointError, match="holds no policy"):
        ppo1.load_policy(path)


SIZES = {
    "a layer": (("arguments", "hid_size"), 10**6, "a layer of 1000000, but has 388 weights"),
    "layers": (("arguments", "num_hid_layers"), 10**9, "a layer of 1000000000, but has"),
    "an observation": (("ob_space", "shape"), [10**9], "a layer of 1000000000, but has"),
    "a kind": (("arguments", "hid_size"), "8", "describes no policy: "),
    "a dtype": (("ob_space", "dtype"), "S1000000000", "ob_space is a dict, not a space"),
}


@pytest.mark.parametrize("name", SIZES)
def test_a_description_makes_nothing_larger_than_the_file(name, tmp_path):
    (part, key), value, message = SIZES[name]
    ppo1.save_policy(tmp_path / "policy", mlp())
    content = read_checkpoint(tmp_path / "policy")
    content["policy"][part][key] = value
    write_checkpoint(tmp_path / "policy", content)
    with pytest.raises(CheckpointError, match=message):
        ppo1.load_policy(tmp_path / "policy")


def test_settings_make_nothing_larger_than_the_file(tmp_path, capsys):
    path = tmp_path / "policy"
    for settings, message in [
        ({"hid_size": 10**6}, "hid_size is 1000000, more than the 388 that its network allows"),
        ({"hid_size": 8.5}, "hid_size is 8.5, which --hid-size does not take"),
    ]:
        write_policy(path, mlp(), settings={"env": "CartPole-v1", **settings})
        with pytest.raises(SystemExit) as leave:
            run_mujoco.main(["--load-path", str(path), "--evaluate", "1"])
        assert leave.value.code == 2
        assert f"{path} holds no policy: {message}" in capsys.readouterr().err


def test_weights_that_are_not_finite_are_refused(tmp_path):
    pi, path = mlp(), tmp_path / "policy"
    with torch.no_grad():
        next(pi.parameters())[0, 0] = np.nan
    ppo1.save_policy(path, pi)
    message = r"policy holds no policy: vf/fc1/kernel is an array of float32 .* with NaN"
    with pytest.raises(CheckpointError, match=message):
        ppo1.load_policy(path, mlp())
    joblib.dump(pi.variables(), path)
    with pytest.raises(CheckpointError, match=message):
        ppo1.load_policy(path, mlp())


def test_importing_the_package_loads_no_torch():
    code = "import sys, ppo1; assert 'torch' not in sys.modules; ppo1.load_policy"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_dir_lists_what_the_package_offers():
    assert {"load_policy", "load_variables", "save_policy", "__doc__"} <= set(dir(ppo1))
    assert all(hasattr(ppo1, name) for name in dir(ppo1))


@pytest.mark.parametrize("found", ["common/__init__.py", "common.py"])
def test_somebody_elses_common_is_named_with_both_paths(found, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] in ("common", "ppo1")]:
        monkeypatch.delitem(sys.modules, name)
    theirs = tmp_path / found
    theirs.parent.mkdir(exist_ok=True)
    theirs.touch()
    monkeypatch.syspath_prepend(tmp_path)
    want = (
        f"ppo1 needs its own package 'common', {ROOT}/common, but Python finds another one first, "
        f"{theirs}: rename that, or start elsewhere"
    )
    with pytest.raises(ImportError, match=f"^{re.escape(want)}$"):
        importlib.import_module("ppo1")
    importlib.import_module("common")  # theirs, imported already
    with pytest.raises(ImportError, match=f"^{re.escape(want)}$"):
        importlib.import_module("ppo1")
