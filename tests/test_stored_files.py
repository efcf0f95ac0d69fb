"""Checkpoints and policy files of an earlier commit still load; tests/stored/README.md has more."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas
import pytest

import ppo1
import run_mujoco

STORED = Path(__file__).with_name("stored")
CHECKPOINT = Path("checkpoints", "iteration-000000002.ckpt")
# An observation, then the likeliest action and the value that the earlier commit had for it.
ANSWERS = {
    "pendulum.ppo1": [
        ([1.0, 0.0, 0.0], [-0.00317158130928874], 0.3476399779319763),
        ([0.0, 1.0, -3.0], [-0.006225418299436569], 0.05049964785575867),
        ([-0.5, 0.8, 6.0], [0.004580654203891754], -0.7734748125076294),
    ],
    "run": [
        ([0.0, 0.0, 0.0, 0.0], 0, 0.2630310356616974),
        ([0.1, -1.0, 0.05, 1.0], 0, 0.2593740224838257),
        ([1.0, 0.5, -0.1, -0.5], 1, -0.6432306170463562),
    ],
}


@pytest.mark.parametrize("name", ANSWERS)
def test_policies_act_as_they_did(name):
    pi = ppo1.load_policy(STORED / name)
    for ob, want_ac, want_vpred in ANSWERS[name]:
        ac, vpred = pi.act(False, np.array(ob))
        # float32, summed in another order on another machine
        np.testing.assert_allclose(ac, want_ac, rtol=0, atol=1e-6)
        np.testing.assert_allclose(vpred, want_vpred, rtol=0, atol=1e-6)


def test_a_policy_file_evaluates_to_what_it_did(tmp_path):
    path = tmp_path / "evaluation.json"
    run_mujoco.main([
        "--load-path", str(STORED / "pendulum.ppo1"), "--evaluate", "2", "--seed", "3",
        "--json", str(path),
    ])  # fmt: skip
    # 200 steps, along which a difference of the last bit grows
    want = [-1589.598808123565, -1711.7267247115456]
    np.testing.assert_allclose(json.loads(path.read_text())["returns"], want, rtol=1e-4)


def test_a_run_resumes_to_what_it_was(tmp_path):
    folder = shutil.copytree(STORED / "run", tmp_path / "run")
    run_mujoco.main(["--resume", str(folder)])
    assert "Resuming before iteration 2" in (folder / "log.txt").read_text()
    want = pandas.read_csv(STORED / "run" / "progress.csv")
    got = pandas.read_csv(folder / "progress.csv")
    for column in want.columns.drop(["TimeElapsed", "TimestepsPerSec"]):
        # float32, summed in another order on another machine; kl is a difference of such
        np.testing.assert_allclose(got[column], want[column], rtol=1e-5, atol=1e-6)
    episodes = [pandas.read_csv(x / "0.monitor.csv", skiprows=1) for x in (STORED / "run", folder)]
    assert [len(table) for table in episodes] == [3, 3]
    np.testing.assert_array_equal(episodes[0][["r", "l"]], episodes[1][["r", "l"]])
