import contextlib
import functools
import io
import json
import math
import os
import signal
import sys
from argparse import Namespace
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from mpi4py import MPI

from common import cmd_util, logger
from common import run as run_module
from common.checkpoint import StopRequested
from common.plot_util import find_runs
from tests.envs import Countdown
from tests.ranks import on_ranks
from tests.test_cmd_util import PRESETS, make_parser


def learn(env, policy_fn, *, callback, compile, state, **hyperparameters):
    policy_fn("pi", env.observation_space, env.action_space)
    env.reset()
    for _ in range(10):
        env.step(0)


def make_policy(args, name, ob_space, ac_space):
    if args.env == "Acrobot-v1":
        raise ValueError("spaces as the policy does not like them")
    return torch.nn.Linear(1, 1)


def check_hyperparameters(values):
    if values["gamma"] > 1:
        raise ValueError(f"gamma must be in [0, 1] as lam, got {values['gamma']}; optim_epochs")


def make_env(args, seed):
    rank = MPI.COMM_WORLD.Get_rank()
    return cmd_util._seed_and_monitor(Countdown(10), seed, rank, info_keywords=())


def run(*argv):
    """Run a learner that steps an environment through one episode."""
    run_module.run(
        make_parser(), PRESETS, argv, title="toy", resolve_id=cmd_util.resolve_env_id,
        make_env=make_env, make_policy=make_policy,
        hyperparameters=("gamma", "lam", "optim_epochs"),
        learn=learn, check_hyperparameters=check_hyperparameters,
        learner_state=lambda local: ({}, {}),
    )  # fmt: skip


def test_a_run_says_what_runs_and_keeps_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_LOGDIR", raising=False)
    run("--env", "tests.envs:toy/raises-v0", "--gamma", "0.5")
    (folder,) = tmp_path.glob("runs/*")
    first, second, third, last = capsys.readouterr().out.splitlines()
    config = json.loads((folder / "config.json").read_text())
    seed = config["arguments"]["seed"]
    assert folder.name.startswith(f"tests.envs-toy-raises-v0__toy__{seed}__20")
    assert first == f"Logging to {folder}"
    assert (
        second
        == f"toy on tests.envs:toy/raises-v0, preset plain, {MPI.COMM_WORLD.Get_size()} rank, "
        f"seed {seed}"
    )
    assert f"python {config['versions']['python']}, torch " in third
    assert last == f"Logged to {folder}"
    assert config["arguments"]["gamma"] == 0.5
    assert config["arguments"]["max_timesteps"] == 1000
    flags = ["--env", "tests.envs:toy/raises-v0", "--gamma", "0.5"]
    assert config["command"] == [sys.executable, sys.argv[0], *flags]
    assert config["ranks"] == 1
    assert {"hostname", "started", "git_commit", "versions", "mpi"} <= set(config)
    assert (folder / "0.monitor.csv").read_text().count("\n") == 3


def test_a_second_run_leaves_the_first_ones_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_LOGDIR", "first")
    run("--seed", "1")
    files = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    assert {path.name for path in files} == {"0.monitor.csv", "config.json", "log.txt", ".lock"} | {
        "progress.csv"
    }
    with pytest.raises(SystemExit):
        run("--gamma", "2")
    run("--seed", "1", "--log-path", "second")
    assert {path: path.read_bytes() for path in files} == files


def test_an_earlier_run_is_set_aside(tmp_path, capsys):
    folder = tmp_path / "run"
    for number in (1, 2, 3):
        run("--seed", str(number), "--log-path", str(folder))
        capsys.readouterr()
        if number < 3:
            (folder / "checkpoints").mkdir(exist_ok=True)
            (folder / "checkpoints" / "iteration-000000001.ckpt").write_text(str(number))
        (folder / "evaluation.json").write_text(str(number))
    files = {"0.monitor.csv", "config.json", "log.txt", "progress.csv", "evaluation.json"}
    for number in (1, 2):
        earlier = folder / f"earlier-{number}"
        assert {path.name for path in earlier.iterdir()} == files | {"checkpoints"}
        assert json.loads((earlier / "config.json").read_text())["arguments"]["seed"] == number
        assert (earlier / "evaluation.json").read_text() == str(number)
        assert (earlier / "checkpoints" / "iteration-000000001.ckpt").read_text() == str(number)
    assert find_runs(folder) == [folder]
    assert find_runs(folder / "earlier-2") == [folder / "earlier-2"]
    assert f"The run that was there is now in {earlier}" in (folder / "log.txt").read_text()
    # The third left no checkpoint, which makes no difference
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.name in files}
    run("--log-path", str(folder))
    assert {path.name for path in folder.iterdir()} == files - {"evaluation.json"} | {
        ".lock", "earlier-1", "earlier-2", "earlier-3"
    }  # fmt: skip
    assert {path.name: path.read_bytes() for path in (folder / "earlier-3").iterdir()} == before
    assert f"The run that was there is now in {folder}/earlier-3" in capsys.readouterr().out


def test_an_error_in_training_names_the_folder(tmp_path, monkeypatch):
    def break_down(env, *args, **kwargs):
        env.close()
        raise RuntimeError("broken")

    monkeypatch.setattr(sys.modules[__name__], "learn", break_down)
    with pytest.raises(RuntimeError, match="broken") as caught:
        run("--log-path", str(tmp_path / "run"))
    assert caught.value.__notes__[-1] == f"Logged to {tmp_path}/run"


@pytest.mark.parametrize("name", ["config.json", "log.txt", "0.monitor.csv", "checkpoints"])
@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_somebody_elses_folder_is_refused(name, resume, tmp_path, monkeypatch, capsys):
    """Neither a project whose config.json is not a run's, nor logs of who knows what."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "model.pt").write_text("weeks of work")
    if name != "checkpoints":
        (tmp_path / name).write_text('{"compilerOptions": {}}')
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    with pytest.raises(SystemExit) as leave:
        run("--log-path", ".", *resume)
    assert leave.value.code == 2
    err = capsys.readouterr().err
    first = name if name == "config.json" else min(name, "checkpoints")
    assert f"error: {tmp_path}/{first} was not written by a run: give a folder of its own" in err
    assert err.count("\n") == 1
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before


def test_links_are_set_aside_and_lead_nowhere(tmp_path):
    """Nothing outside the run's folder is written, cut or removed."""
    folder, outside = tmp_path / "run", tmp_path / "outside"
    outside.mkdir()
    names = ["log.txt", "progress.csv", "progress.json", "config.json", "0.monitor.csv", "tb",
             "checkpoints", "evaluation.json", "wandb-id"]  # fmt: skip
    run("--log-path", str(folder))
    (folder / "config.json").unlink()
    for name in names:
        path = outside / name
        if name in ("tb", "checkpoints"):
            path.mkdir()
            path = path / "events.out.tfevents.1"
        path.write_text("mine\n" * 9)
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(outside / name)
    (folder / "config.json.tmp").symlink_to(outside / "log.txt")
    before = {path: path.is_file() and path.read_bytes() for path in outside.rglob("*")}
    run("--log-path", str(folder), "--log-format", "log,csv,json,tensorboard")
    assert {path: path.is_file() and path.read_bytes() for path in outside.rglob("*")} == before
    assert {path.name for path in (folder / "earlier-1").iterdir()} == set(names)
    assert all(path.is_symlink() for path in (folder / "earlier-1").iterdir())
    assert not [path for path in folder.iterdir() if path.is_symlink() and path.suffix != ".tmp"]


def test_neither_chdir_nor_a_moved_link_splits_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    (tmp_path / "link").symlink_to("one")

    def wander(*args, **kwargs):
        os.chdir("/")
        (tmp_path / "link").unlink()
        (tmp_path / "link").symlink_to("two")
        logger.logkv("a", 1)
        logger.dumpkvs()

    monkeypatch.setattr(sys.modules[__name__], "learn", wander)
    monkeypatch.chdir(tmp_path)
    run("--log-path", "link/run", "--log-format", "csv", "--save-interval", "0")
    assert (tmp_path / "one" / "run" / "progress.csv").read_text() == "a\n1\n"
    assert list((tmp_path / "two").iterdir()) == []
    for flags, where in ([["--log-path=~/a"], "a"], [[], "b"]):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("OPENAI_LOGDIR", "~/b")
        run(*flags)
        assert (tmp_path / "home" / where / "config.json").exists()
    assert not list(tmp_path.rglob("~"))


@pytest.mark.parametrize("flag", ["--log-path", "--resume", "--load-path", "--save-path", "--json"])
def test_a_path_that_is_no_text_is_one_line(flag, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for path, message in {
        "caf\udce9": "is text, got 'caf",
        "~nobody-here/x": "no home fold",
    }.items():
        with pytest.raises(SystemExit) as leave:
            run(f"{flag}={path}")
        assert leave.value.code == 2
        err = capsys.readouterr().err
        assert f"error: argument {flag}: " in err
        assert message in err
        assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_evaluation_sets_the_earlier_one_aside(tmp_path, monkeypatch):
    (tmp_path / "evaluation.json").write_text("mine")
    args = Namespace(
        seed=1, evaluate=1, json=None, log_path=str(tmp_path), save_path=None, deterministic=True,
        env="toy", load_path=None, video=None, play=False,
    )  # fmt: skip
    results = run_module.play.Evaluation([1.0], [2])
    monkeypatch.setattr(run_module.play, "evaluate", lambda *args, **kwargs: results)
    run_module.show_untrained(
        args, lambda name, *spaces: None, lambda args, seed: make_env(args, seed)
    )
    assert json.loads((tmp_path / "evaluation.json").read_text())["returns"] == [1.0]
    assert (tmp_path / "earlier-1" / "evaluation.json").read_text() == "mine"


def test_new_folders_do_not_meet(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda text: "20260102-030405")
    args = Namespace(env="ALE/Pong-v5", seed=3)
    folder = run_module.new_folder(args, "toy")
    assert folder == f"{tmp_path}/runs/ALE-Pong-v5__toy__3__20260102-030405"
    os.makedirs(folder)
    assert run_module.new_folder(args, "toy") == f"{folder}-2"


BAD_RUNS = {
    "--gamma 2": "--gamma must be in [0, 1] as --lam, got 2.0; --optim-epochs (--help",
    "--env Hoper-v4": "unknown environment 'Hoper-v4'; did you mean Hopper-v4",
    "--preset other": "spaces as the policy does not like them (--help",
    "--log-path file/logs": "cannot write logs: Not a directory: ",
    "--seed x": "argument --seed: ",
}


@pytest.mark.parametrize("command", BAD_RUNS)
def test_a_bad_run_leaves_nothing(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as leave:
        run(*command.split())
    assert leave.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert BAD_RUNS[command] in err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_missing_tensorboard_is_found_before_anything_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(SystemExit):
        run("--log-format", "csv,tensorboard")
    want = "module 'tensorboard' is missing: pip install tensorboard"
    assert want in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_somebodys_bug_is_shown_with_its_place():
    with pytest.raises(KeyError) as caught:
        gym.make("tests.envs:toy/buggy-v0")
    text = cmd_util.describe(caught.value)
    assert text.startswith("KeyError: 'gravity' (")
    assert "envs.py, line" in text


def speak(comm, folder):
    """Return what runs on several ranks print and raise, and the random numbers they start from."""
    rank = comm.Get_rank()
    heard = []
    commands = [command.split() for command in BAD_RUNS]
    # These the ranks do not see alike
    commands.append(["--env", "Hopper-v4"] if rank == 0 else [])
    commands.append(["--env", "tests.envs:toy/raises-v0"])
    if rank == 1:
        sys.modules["tests.envs"] = None
    with contextlib.chdir(folder):
        for command in commands:
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                try:
                    run(*command)
                    code = None
                except SystemExit as leave:
                    code = leave.code
            heard.append((code, out.getvalue(), err.getvalue()))
    return heard


@pytest.mark.mpi
def test_one_rank_speaks_for_all(tmp_path):
    (tmp_path / "file").touch()
    voice, silence = on_ranks(2, speak, str(tmp_path))
    assert {code for code, _, _ in voice + silence} == {2}
    assert {out + err for _, out, err in silence} == {""}
    assert {out for _, out, _ in voice} == {""}
    wants = [
        *BAD_RUNS.values(),
        "error: rank 1: started with other flags than rank 0: , not --env Hopper-v4",
        "error: rank 1: environment 'tests.envs:toy/raises-v0'",
    ]
    for (_, _, err), want in zip(voice, wants, strict=True):
        assert want in err
        assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def start(comm, folder):
    """Run on several ranks; return what each rank's environment and NumPy start from."""
    if comm.Get_rank() == 0:  # a launcher need not hand variables on to other machines
        cmd_util.os.environ["OPENAI_LOGDIR"] = folder
    with contextlib.redirect_stdout(io.StringIO()):
        run()
    logger.configure(folder + "-envs", [])
    rank = comm.Get_rank()
    env = cmd_util.make_mujoco_env("Hopper-v4", 5)
    hopper = np.random.get_state()[1][0], env_state(env), env.action_space.sample()
    env = cmd_util.make_robotics_env("FetchReach-v4", 5 + rank, rank=rank)
    return hopper, (np.random.get_state()[1][0], env_state(env), env.action_space.sample())


def env_state(env):
    return env.unwrapped.np_random.bit_generator.state["state"]["state"]


@pytest.mark.mpi
def test_seeds_and_files_by_rank(tmp_path):
    folder = tmp_path / "logs"
    results = on_ranks(2, start, str(folder))
    for rank, result in enumerate(results):
        for (numpy_seed, generator, action), env_id, seed in zip(
            result, ("Hopper-v4", "FetchReach-v4"), (5 + 1000 * rank, 5 + rank), strict=True
        ):
            assert numpy_seed == seed
            env = cmd_util.make_plain_env(env_id)
            env.reset(seed=seed)
            env.action_space.seed(seed)
            assert generator == env_state(env)
            np.testing.assert_array_equal(action, env.action_space.sample())
    assert {path.name for path in folder.iterdir()} == {
        "0.monitor.csv", "1.monitor.csv", "config.json", "log.txt", "log-rank001.txt",
        "progress.csv", ".lock",
    }  # fmt: skip
    assert json.loads((folder / "config.json").read_text())["ranks"] == 2
    assert {path.name for path in (tmp_path / "logs-envs").glob("*.monitor.csv")} == {
        "0.monitor.csv", "1.monitor.csv",
    }  # fmt: skip


# ---- The end of a run ---------------------------------------------------------------------------


def test_a_close_that_fails_is_a_warning(tmp_path, monkeypatch, capsys):
    """In the probe's check, after training and after evaluation: nothing asked for is lost."""

    class Closing(Countdown):
        def close(self):
            raise RuntimeError("not connected")

    def make(args, seed, **options):
        return cmd_util._seed_and_monitor(Closing(10), seed, 0, info_keywords=())

    monkeypatch.setattr(sys.modules[__name__], "make_env", make)
    run("--log-path", str(tmp_path / "run"))
    out = capsys.readouterr().out
    assert (
        out.count("WARNING: the environment's close() failed: RuntimeError('not connected')") == 2
    )
    assert f"Logged to {tmp_path}/run\n" in out

    def stop(*args, callback, **kwargs):
        callback.checkpointer.is_saved = True
        raise StopRequested(signal.SIGUSR1, saved=True)

    monkeypatch.setattr(sys.modules[__name__], "learn", stop)
    with pytest.raises(SystemExit) as leave:
        run("--log-path", str(tmp_path / "stopped"))
    assert leave.value.code == 138


def test_a_run_without_a_console(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    run("--log-path", str(tmp_path / "run"))
    assert "Logged to" in (tmp_path / "run" / "log.txt").read_text()


def test_an_environment_whose_state_fails_is_saved_without(tmp_path, monkeypatch, capsys):
    def fail(env):
        raise ConnectionError("not connected")

    monkeypatch.setattr(run_module, "get_env_state", fail)
    callback = run_module.RunCallback.__new__(run_module.RunCallback)
    callback.env, callback.learner_state = Countdown(3), lambda local: ({}, {})
    logger.configure(tmp_path, ["stdout"])
    shared, own = callback.collect({"pi": object()})
    assert own["env"] is None
    assert "WARNING: the environment's state is not saved: " in capsys.readouterr().out


def test_what_moves_in_an_environment_is_its_steps():
    watched = []
    dog = SimpleNamespace(watch=lambda seconds, progress: watched.append((seconds, progress)))
    args = Namespace(stall_timeout=5.0)

    def make(args, seed, render_mode=None):
        return Countdown(10)

    env = run_module.watched_env(make, dog, args, None)
    env.reset()
    (start, _), (seconds, progress) = watched
    assert (start, seconds, progress()) == (run_module.STARTUP_SECONDS, 5.0, 0)
    env.step(0)
    assert progress() == 1
    run_module.watched_env(make, dog, args, None, render_mode="human")
    assert watched[-1][0] == math.inf  # somebody may have paused it


# ---- What a rank has for itself -----------------------------------------------------------------


@pytest.mark.parametrize(("rank_here", "device"), [(0, "cuda:0"), (1, "cuda:1"), (2, "cuda:0")])
def test_gpus_are_dealt_out_on_each_machine(rank_here, device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert run_module.device_of(Namespace(device="cuda"), rank_here) == torch.device(device)
    assert run_module.device_of(Namespace(device="cuda:1"), rank_here) == torch.device("cuda:1")


def test_other_code_or_versions_are_named(monkeypatch, capsys):
    changed, edited = {}, {}
    comm = SimpleNamespace(
        Get_size=lambda: 2, Get_rank=lambda: 0, Barrier=lambda: None,
        allgather=lambda message: [message] * 2,
        bcast=lambda own: (own[0] | changed, own[1] | edited),
    )  # fmt: skip
    for module in ("common.run", "common.mpi_util", "common.cmd_util"):
        monkeypatch.setattr(f"{module}.MPI", SimpleNamespace(COMM_WORLD=comm))
    check = functools.partial(run_module.check_same_start, make_parser())
    check(["--seed", "1"])
    for changed, edited, said in [  # noqa: B007 - what rank 0 sends
        ({"flags": "--seed 1"}, {}, "other flags than rank 0: --seed 2, not --seed 1"),
        ({"versions": "torch 1"}, {}, "other versions than rank 0: "),
        ({}, {"common/run.py": "abc"}, "other code than rank 0, in common/run.py"),
    ]:
        with pytest.raises(SystemExit):
            check(["--seed", "2"])
        assert f"started with {said}" in capsys.readouterr().err
