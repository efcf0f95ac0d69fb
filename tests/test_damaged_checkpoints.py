"""Checkpoints that are cut, altered, foreign or hostile, given to the command line."""

import json
import os
import random
import shutil
import tracemalloc
import warnings

import numpy as np
import pytest
import torch

import ppo1
import run_mujoco
from common import checkpoint as checkpoints
from common import plot_util
from common.checkpoint import Checkpointer, checkpoint_files, read_checkpoint, write_checkpoint
from ppo1.mlp_policy import MlpPolicy
from tests.mutations import BOMBS, altered, bomb, bytes_altered, mutated, mutated_dump
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


def changed(path, *keys, value):
    """Write a checkpoint or policy file anew, with one part of it changed."""
    content = part = read_checkpoint(path)
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    write_checkpoint(path, content)


NOT_FINITE = np.array([1.0, np.nan], np.float32)
PARTS = {
    "NaN weights": (("shared", "theta"), NOT_FINITE, "theta is an array of float32 of shape (2,) "
                    "with NaN or infinity, not a vector of finite float32 numbers"),
    "text": (("shared", "adam_t"), "3", "adam_t is '3', not a whole number of at least 0"),
    "sizes": (("shared", "adam_m"), np.zeros(2, np.float32),
              "theta, adam_m, adam_v and shapes are of [9155, 2, 9155, 9155] weights"),
    "a generator": (("ranks", 0, "random", "numpy", "state", "pos"), 10**6,
                    "a generator's state is none: pos is out of range"),
    "names": (("ranks",), {}, "ranks is a dict, not a list"),
    "lines": (("shared", "log_lines", "progress.csv"), -1, "progress.csv is -1, not a whole"),
}  # fmt: skip


@pytest.mark.parametrize("name", PARTS)
def test_a_part_that_is_something_else_is_named_and_the_one_before_is_taken(
    name, finished, tmp_path, capsys
):
    keys, value, message = PARTS[name]
    folder = shutil.copytree(finished, tmp_path / "run")
    newest, before = checkpoint_files(folder / "checkpoints")
    changed(newest, *keys, value=value)
    assert f"{newest} holds no run: {message}" in refusal(capsys, folder, str(newest))
    capsys.readouterr()
    run_mujoco.main(["--resume", str(folder)])
    assert f"holds no run: {message}" in (out := capsys.readouterr().out)
    assert f"; going back to {before.name}\n" in out
    assert_equal(folder, finished)


ARGUMENTS = {
    "hid_size": ("64", 64.0, [64], True, None, 10**6),
    "gamma": ("x", None, True),
    "threads": (0, 2.5),
    "env": (None, 3),
    "log_format": (["xyz"], 3),
    "bootstrap_truncated": (1, "no"),
    "schedule": ("other",),
    "max_iters": (2**70, -1),
}


def test_saved_arguments_that_no_command_line_gives(newest, capsys):
    run = str(newest)
    whole = newest.read_bytes()
    for name, values in ARGUMENTS.items():
        for value in values:
            changed(newest, "arguments", name, value=value)
            err = refusal(capsys, newest.parents[1], run)
            assert f"{newest} holds no run: " in err and name in err
            newest.write_bytes(whole)


def test_state_of_another_kind_than_the_environments(newest, capsys):
    run, whole = str(newest), newest.read_bytes()
    state = ("ranks", 0, "env", "states")
    for keys, value, message in [
        ((*state, -1, "attributes", "state"), np.zeros(3), "state is not as here, of shape (4,)"),
        ((*state, -1, "attributes", "state"), "x", "state is not as here"),
        ((*state, -1, "attributes", "steps_beyond_terminated"), "x", "is no number"),
        ((*state, -1, "np_random", "state", "inc"), 2**200, "int too"),
        (("ranks", 0, "carry", "ob"), np.zeros(3), "the saved ob, of shape (3,), is not of this"),
        (("ranks", 0, "carry", "ac"), 7, "the saved ac, of shape (), is not of this environment's"),
        (("shared", "ob_rms"), None, "it has no observation statistics"),
        (("shared", "ob_rms", "runningsum"), np.zeros(1), "obfilter/runningsum is (1,), not (4,)"),
    ]:
        changed(newest, *keys, value=value)
        assert message in refusal(capsys, newest.parents[1], run)
        newest.write_bytes(whole)


def test_too_little_memory_is_no_damage(finished, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(finished, tmp_path / "run")
    newest, _ = checkpoint_files(folder / "checkpoints")

    def read(payload):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "_read_payload", read)
        err = refusal(capsys, folder, str(folder))
    assert f"error: cannot read checkpoint {newest}: not enough memory" in err


@pytest.mark.parametrize("text", ["[1, 2]", "{", "[" * 5000, '{"resumed": 3}'])
def test_a_config_that_is_something_else_is_written_anew(text, finished, tmp_path, capsys):
    folder = shutil.copytree(finished, tmp_path / "run")
    (folder / "config.json").write_text(text)
    run_mujoco.main(["--resume", str(folder)])
    (resumed,) = json.loads((folder / "config.json").read_text())["resumed"]
    assert resumed["iteration"] == 4


# ---- Campaign: each file is read right, or refused in one line ----------------------------------

MUTATIONS = 300
SAMPLE = 30


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Return the folder of a run of a small network, which has its policy too, as `policy`."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    run_mujoco.main([
        *RUN, "--hid-size", "8", "--log-path", str(folder), "--save-path", str(folder / "policy"),
        "--keep", "1",
    ])  # fmt: skip
    return folder


def outcome(call, *args):
    """Call with warnings shown once, and return the one-line refusal, or None for none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call(*args)
    except ValueError as error:
        assert type(error) in (ValueError, checkpoints.CheckpointError)
        assert "\n" not in str(error)
        return str(error)
    except SystemExit as leave:
        assert leave.code == 2
        return "on the command line"
    return None


def load(path, space):
    pi = MlpPolicy("pi", *space, hid_size=8, num_hid_layers=2)
    ppo1.load_variables(path)
    ppo1.load_policy(path, pi)
    pi.act(False, np.zeros(4))


@pytest.mark.parametrize(
    "number",
    [pytest.param(n, marks=[pytest.mark.faults] * (n >= SAMPLE)) for n in range(MUTATIONS)],
)
def test_a_damaged_file_is_read_right_or_refused_in_one_line(number, small, tmp_path, capsys):
    rng = random.Random(number)
    kind = ["resume", "policy", "evaluate", "of a run", "dump", "config"][number % 6]
    folder = shutil.copytree(small, tmp_path / "run")
    (newest,) = checkpoint_files(folder / "checkpoints")
    policy = folder / "policy"
    pi = ppo1.load_policy(policy)
    capsys.readouterr()
    if kind == "resume":
        newest.write_bytes(mutated(rng, newest))
        outcome(run_mujoco.main, ["--resume", str(folder)])
    elif kind == "policy":
        policy.write_bytes(mutated(rng, policy))
        outcome(ppo1.load_policy, policy)
        outcome(load, policy, (pi.ob_space, pi.ac_space))
    elif kind == "evaluate":
        policy.write_bytes(mutated(rng, policy))
        outcome(run_mujoco.main, ["--load-path", str(policy), "--evaluate", "1", "--seed", "0"])
    elif kind == "of a run":
        newest.write_bytes(mutated(rng, newest))
        outcome(ppo1.load_policy, folder)
        outcome(run_mujoco.main, ["--load-path", str(folder), "--evaluate", "1", "--seed", "0"])
    elif kind == "dump":
        policy.write_bytes(mutated_dump(rng, pi.variables()))
        outcome(load, policy, (pi.ob_space, pi.ac_space))
    else:
        config = folder / "config.json"
        if rng.random() < 0.5:
            config.write_bytes(bytes_altered(rng, config.read_bytes()))
        else:
            content = rng.choice([[1, 2], "x", None, 3, json.loads(config.read_text())])
            content = altered(rng, content)
            config.write_text(json.dumps(content, default=str))
        outcome(plot_util.main, [str(folder), "--table"])
        run_mujoco.main(["--resume", str(folder)])  # which writes it anew if it must
    err = capsys.readouterr().err
    assert (
        err.count("\n") <= 2 and "Traceback" not in err
    )  # a config's plot may warn and be refused
    assert ", line " not in err, err  # how `describe` shows what nobody expected


SLOW_BOMBS = ("npz of empty members", "dump of depth", "dump of many lists")


@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=[pytest.mark.faults] * (x in SLOW_BOMBS)) for x in BOMBS]
)
def test_no_file_takes_more_memory_than_it_has_to_show_for(name, tmp_path):
    path = tmp_path / "bomb"
    path.write_bytes(bomb(name, 2**16))
    read = read_checkpoint if name.startswith("checkpoint") else ppo1.load_variables
    tracemalloc.start()
    try:
        message = outcome(read, path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= 2 * path.stat().st_size + 2**26
    assert message is not None or name == "dump of a far memo"
