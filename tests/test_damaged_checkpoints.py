"""Checkpoints that are cut, altered, foreign or hostile, given to the command line."""

import os
import random
import shutil

import numpy as np
import pytest
import torch

import run_mujoco
from common.checkpoint import Checkpointer, checkpoint_files, read_checkpoint, write_checkpoint
from tests.test_checkpoint import Malicious, sealed
from tests.test_resume import assert_equal

RUN = [
    "--env", "CartPole-v1", "--seed", "1", "--max-iters", "4", "--schedule", "constant",
    "--timesteps-per-actorbatch", "32", "--optim-batchsize", "32", "--optim-epochs", "1",
    "--save-interval", "2", "--log-format", "log,csv",
]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return the folder of a run of four iterations, with the checkpoints 2 and 4."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    run_mujoco.main([*RUN, "--log-path", str(folder)])
    return folder


@pytest.fixture
def newest(finished, tmp_path):
    """Return the only checkpoint of a copy of that run."""
    shutil.copytree(finished, tmp_path / "run")
    newest, before = checkpoint_files(tmp_path / "run" / "checkpoints")
    before.unlink()
    return newest


def snapshot(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refusal(capsys, folder, *flags):
    """Return the one line that a resume ends with, and check that it has touched nothing."""
    before = snapshot(folder)
    capsys.readouterr()
    with pytest.raises(SystemExit) as leave:
        run_mujoco.main(["--resume", *flags])
    assert leave.value.code == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert snapshot(folder) == before
    return err


def test_cut_at_20_lengths(newest, capsys):
    data = newest.read_bytes()
    rng = random.Random(0)
    for length in sorted({0, len(data) - 1, *(rng.randrange(len(data)) for _ in range(18))}):
        newest.write_bytes(data[:length])
        err = refusal(capsys, newest.parents[1], str(newest.parents[1]))
        assert "error: no good checkpoint in " in err
        assert f"{newest.name} is " in err


def test_50_flipped_bits(newest, capsys):
    data = newest.read_bytes()
    rng = random.Random(1)
    for number in range(50):
        # Every fifth in the header, which is a thousandth of the file
        bit = rng.randrange(8 * (52 if number % 5 == 0 else len(data)))
        altered = bytearray(data)
        altered[bit // 8] ^= 1 << bit % 8
        newest.write_bytes(altered)
        err = refusal(capsys, newest.parents[1], str(newest))
        assert f"{newest.name} is " in err


def hostile(trap):
    torch.save({"arguments": Malicious(trap)}, trap.with_suffix(".pt"))
    return sealed(trap.with_suffix(".pt").read_bytes())


FILES = {
    "a wrong version": (
        lambda data, trap: sealed(data[52:], version=2), "has format 2; this program reads 1"
    ),
    "a text": (lambda data, trap: b"iteration 4\n" * 100, "is not a checkpoint"),
    "a malicious pickle": (
        lambda data, trap: hostile(trap), "holds something else than plain data"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_foreign_files(name, newest, capsys, tmp_path):
    make, message = FILES[name]
    trap = tmp_path / "trap"
    newest.write_bytes(make(newest.read_bytes(), trap))
    for path in (newest, newest.parent, newest.parents[1]):
        assert message in refusal(capsys, newest.parents[1], str(path))
    assert not trap.exists()


@pytest.mark.parametrize("content", [{}, {"arguments": {}}, {"arguments": {}, "shared": {}}])
def test_something_else_than_a_run(content, newest, capsys):
    write_checkpoint(newest, content)
    assert f"{newest} holds no run" in refusal(capsys, newest.parents[1], str(newest))


def test_another_environment_and_network(newest, capsys):
    run = str(newest.parents[1])
    for flags, message in {
        "--env Acrobot-v1": "--env Acrobot-v1 (saved: CartPole-v1); --override to go on",
        "--env Acrobot-v1 --override": "the checkpoint is of CartPole-v1, not Acrobot-v1",
        "--hid-size 8": "--hid-size 8 (saved: 64); --override to go on",
        "--hid-size 8 --override": "the saved network has 9155 weights in 12 arrays, this run's",
    }.items():
        assert message in refusal(capsys, newest.parents[1], run, *flags.split())
    # As many weights, in other places
    content = read_checkpoint(newest)
    content["shared"]["shapes"].reverse()
    write_checkpoint(newest, content)
    assert "of other shapes" in refusal(capsys, newest.parents[1], run)


def test_another_environments_state_under_the_same_name(newest, capsys):
    content = read_checkpoint(newest)
    content["ranks"][0]["env"]["layers"][-1] = "gymnasium.envs.Pendulum"
    write_checkpoint(newest, content)
    err = refusal(capsys, newest.parents[1], str(newest))
    assert "error: the saved state is of Monitor(" in err


@pytest.mark.parametrize("damage", ["cut", "flip", *FILES])
def test_the_one_before_is_taken_and_gives_the_same(damage, finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "run")
    newest, before = checkpoint_files(tmp_path / "run" / "checkpoints")
    data = newest.read_bytes()
    if damage == "cut":
        newest.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        newest.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    else:
        newest.write_bytes(FILES[damage][0](data, tmp_path / "trap"))
    capsys.readouterr()
    run_mujoco.main(["--resume", str(tmp_path / "run")])
    assert f"; going back to {before.name}\n" in capsys.readouterr().out
    assert "Resuming before iteration 2, exactly" in (tmp_path / "run" / "log.txt").read_text()
    assert_equal(tmp_path / "run", finished)
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize("iteration", [0, 2])
def test_a_signal_before_the_first_segment_costs_nothing(
    iteration, finished, tmp_path, monkeypatch, capsys
):
    """It must not replace a checkpoint by one that knows less of the running episode."""
    folder = str(tmp_path / "run")
    if iteration:
        shutil.copytree(finished, folder)
        checkpoint_files(tmp_path / "run" / "checkpoints")[0].unlink()
    with monkeypatch.context() as patch:
        patch.setattr(
            Checkpointer, "signum", property(lambda self: 15, lambda self, _: None), False
        )
        with pytest.raises(SystemExit) as leave:
            run_mujoco.main([*RUN, "--resume", "--log-path", folder])
    assert leave.value.code == 128 + 15
    capsys.readouterr()
    run_mujoco.main(["--resume", folder, "--log-format", "stdout,log,csv"])
    assert f"Resuming before iteration {iteration}, exactly" in capsys.readouterr().out
    assert_equal(tmp_path / "run", finished)


def test_what_is_later_than_the_resumed_checkpoint_is_set_aside(finished, tmp_path, capsys):
    """A damaged newest file must not push good ones out, nor an abandoned future return."""
    shutil.copytree(finished, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    newest, before = checkpoint_files(folder)
    newest.rename(folder / "iteration-000000009.ckpt")
    (folder / ".iteration-000000007.ckpt.123.partial").write_bytes(b"of a save that was killed")
    run_mujoco.main(["--resume", str(before), "--keep", "1", "--save-interval", "1"])
    assert sorted(os.listdir(folder)) == [
        "iteration-000000004.ckpt",
        "iteration-000000009.set-aside",
    ]
    np.testing.assert_equal(
        read_checkpoint(newest)["shared"]["theta"],
        read_checkpoint(finished / "checkpoints" / newest.name)["shared"]["theta"],
    )
    run_mujoco.main([*RUN, "--log-path", str(tmp_path / "run"), "--save-interval", "0"])
    assert os.listdir(folder) == ["iteration-000000004.ckpt"]  # a new run's, and nothing else
