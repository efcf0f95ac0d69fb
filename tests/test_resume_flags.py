"""What a run that is resumed takes from the command line; in this process."""

import hashlib
import os
import re
import shutil
import signal
import sys
import threading
from argparse import Namespace

import numpy as np
import pytest
import torch

import run_mujoco
from common import checkpoint
from common.checkpoint import checkpoint_files, read_checkpoint, write_checkpoint
from common.provenance import machine_facts
from common.run import STARTUP_SECONDS, RunCallback
from tests.ranks import ROOT
from tests.test_damaged_checkpoints import RUN, finished  # noqa: F401  # a fixture
from tests.test_resume import assert_equal


@pytest.fixture
def run(finished, tmp_path, monkeypatch):  # noqa: F811
    """Return the folder of a copy of a finished run of four iterations, in its parent."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(finished, tmp_path / "run")


def refused(*flags, capsys):
    with pytest.raises(SystemExit) as leave:
        run_mujoco.main(list(flags))
    assert leave.value.code == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    return error


def test_how_a_run_began_cannot_be_changed(run, capsys):
    run_mujoco.main([*RUN, "--max-iters", "1", "--log-path", "other", "--save-path", "policy"])
    for flags in (["--load-path", f"{run.parent}/policy"], ["--preset", "humanoid"]):
        error = refused("--resume", "run", *flags, "--override", capsys=capsys)
        assert f"{' '.join(flags)}: a run that is resumed has begun without it" in error


def test_another_way_to_make_the_environment_differs_from_the_run(run, capsys):
    for flag, value, shown in [
        ("--env-kwargs", '{"a": 1}', "{'a': 1}"), ("--max-episode-steps", "7", "7"),
    ]:  # fmt: skip
        error = refused("--resume", "run", flag, value, capsys=capsys)
        assert f"differs from the run to resume: {flag} {shown} (saved: None)" in error


def test_what_it_began_with_may_be_gone(run, tmp_path):
    flags = [*RUN, "--log-path", "loaded", "--load-path", "policy", "--resume"]
    run_mujoco.main([*RUN, "--max-iters", "1", "--log-path", "other", "--save-path", "policy"])
    run_mujoco.main(flags)
    checkpoint_files(tmp_path / "loaded" / "checkpoints")[0].unlink()
    os.remove("policy")
    run_mujoco.main(flags)
    assert checkpoint_files(tmp_path / "loaded" / "checkpoints")[0].stem == "iteration-000000004"


def test_another_limit_takes_the_place_of_the_saved(run):
    run_mujoco.main(["--resume", "run", "--max-episodes", "12", "--override"])
    newest = read_checkpoint(checkpoint_files(run / "checkpoints")[0])
    assert newest["shared"]["episodes_so_far"] >= 12
    assert (newest["arguments"]["max_iters"], newest["arguments"]["max_episodes"]) == (0, 12)


def test_from_within_the_folder_of_checkpoints(run, monkeypatch, capsys):
    monkeypatch.chdir(run / "checkpoints")
    files = sorted(os.listdir())
    for path in (".", files[-1], str(run)):
        run_mujoco.main(["--resume", path])
        assert capsys.readouterr().out == ""  # RUN's format, saved, has no console
        assert sorted(os.listdir()) == files


def test_a_signal_whose_save_fails_is_a_failure(run, monkeypatch, capsys):
    def full(path, content):
        raise OSError(28, "No space left on device", str(path))

    def stop(self, local, global_, call=checkpoint.Checkpointer.__call__):
        if local["iters_so_far"] == 3:
            os.kill(os.getpid(), signal.SIGUSR1)
            monkeypatch.setattr(checkpoint, "write_checkpoint", full)
        call(self, local, global_)

    monkeypatch.setattr(checkpoint.Checkpointer, "__call__", stop)
    (run / "checkpoints" / "iteration-000000004.ckpt").unlink()
    with pytest.raises(SystemExit) as leave:
        run_mujoco.main(["--resume", "run"])
    assert leave.value.code == 1
    assert "stopped by SIGUSR1, but NOT saved" in (run / "log.txt").read_text()


EXACTLY = [
    ({}, "exactly"),
    ({"versions.numpy": "2.4.5"},
     f", numpy now {np.__version__} instead of 2.4.5: not necessarily exactly what the run would "
     "have been"),
    ({"versions.numpy": None}, f", numpy now {np.__version__} instead of None: not necessarily"),
    ({"versions.jax": "1.0"}, ", jax now None instead of 1.0: not necessarily exactly"),
    ({"machine.processor": "Abacus"}, r", processor now .+ with \w+ instead of Abacus: not nece"),
    ({"machine.MPI library": "LAM"}, r", MPI library now .+ instead of LAM: not necessarily exac"),
    ({"code.common/logger.py": "f0"}, ", the code now another in common/logger.py: not necessar"),
    ({f"code.mine/{name}.py": "f0" for name in "abcde"},
     ", the code now another in mine/a.py, mine/b.py, mine/c.py and 2 more: not necessarily"),
    ({"code": None, "machine": None},
     ", exactly if code and machine are the same, which the checkpoint does not say"),
    ({"shared.compiled": True}, ", exactly if the update compiles again"),
    ({"shared.compiled": False}, ", exactly unless the update compiles this time"),
    ({"versions.numpy": "2.4.5", "--gamma": 0.9},
     r", numpy now .+, --gamma now 0.9 instead of 0.99: not exactly what the run would have been"),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(EXACTLY)))
def test_exactly_is_said_only_if_nothing_differs(case, run, capsys):
    """Of what decides the last bits: packages, code, processor, MPI, flags, compilation."""
    changes, want = EXACTLY[case]
    newest = checkpoint_files(run / "checkpoints")[0]
    content = read_checkpoint(newest)
    flags = []
    for name, value in changes.items():
        *path, last = name.split(".", 1)
        if name.startswith("--"):
            flags += [name, str(value), "--override"]
        elif value is None:
            del (content[path[0]] if path else content)[last]
        else:
            content[path[0]][last] = value
    write_checkpoint(newest, content)
    run_mujoco.main(["--resume", "run", *flags])
    (line,) = re.findall("^Resuming before .*", (run / "log.txt").read_text(), re.M)
    assert re.match(f"Resuming before iteration 4,? ?{want}", line)
    assert want != "exactly" or line.endswith("4, exactly")


def test_the_code_is_that_of_program_script_environment_and_policy(run, tmp_path, monkeypatch):
    """As it was when the run began, whatever is edited while it trains."""
    source = (ROOT / "tests" / "envs.py").read_text().replace("toy/", "copied/")
    (tmp_path / "copied_envs.py").write_text(source)
    monkeypatch.setattr(sys, "path", [*sys.path])
    flags = [*RUN, "--env", "copied_envs:copied/dict-v0", "--log-path", "own", "--max-iters", "2"]

    def edit(self, local, global_, call=checkpoint.Checkpointer.__call__):
        (tmp_path / "copied_envs.py").write_text(f"{source}# edited")
        call(self, local, global_)

    monkeypatch.setattr(checkpoint.Checkpointer, "__call__", edit)
    run_mujoco.main(flags)
    newest = checkpoint_files(tmp_path / "own" / "checkpoints")[0]
    code = read_checkpoint(newest)["code"]
    for path in ("common/logger.py", "ppo1/policy.py", "run_mujoco.py"):
        assert code[path] == hashlib.sha256((ROOT / path).read_bytes()).hexdigest()[:12]
    assert code["copied_envs.py"] == hashlib.sha256(source.encode()).hexdigest()[:12]


def test_where_several_ranks_run_counts_and_their_processors():
    here = [("Xeon", "a"), ("Xeon", "b"), ("Epyc", "b"), ("Xeon", "a")]
    comm = Namespace(allgather=lambda own: here[: comm.size], size=4)
    facts = machine_facts(torch.device("cpu"), comm)
    assert (facts["processor"], facts["machines of the ranks"]) == ("Xeon and Epyc", "1 2 2 1")
    comm.size = 2  # whose sum is the same wherever it is taken
    assert machine_facts(torch.device("cpu"), comm).keys() == {"processor", "MPI library"}


def test_what_the_resumed_checkpoint_overtakes_is_in_the_log(run):
    path = run / "checkpoints" / "iteration-000000002.ckpt"
    run_mujoco.main(["--resume", str(path)])
    line = "Set aside later checkpoints: iteration-000000004.ckpt\n"
    assert line in (run / "log.txt").read_text()


def test_main_in_a_thread_trains_as_anywhere(run, tmp_path, capsys):
    flags = [*RUN, "--log-format", "stdout,log,csv", "--log-path", "thread"]
    thread = threading.Thread(target=run_mujoco.main, args=(flags,))
    handler = signal.getsignal(signal.SIGTERM)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is handler
    out = capsys.readouterr().out
    assert out.count("WARNING: a signal will not stop and save this run: it is not in the pro") == 1
    assert_equal(tmp_path / "thread", run)


def test_a_short_stall_timeout_waits_for_the_first_update():
    """Before it, the update may be compiled, which moves nothing that a watchdog sees."""
    watched = []
    dog = Namespace(watch=lambda seconds, progress: watched.append((seconds, progress())))
    callback = RunCallback.__new__(RunCallback)
    callback.env, callback.first_update = object(), None
    callback.stall_timeout, callback.stop_timesteps = 3.0, np.inf
    callback.watchdog, callback.progress = dog, lambda local: None
    callback.checkpointer = lambda local, global_: None
    for t in (500, 500, 510):  # a resumed run's Adam does not begin at 0
        callback({"adam": Namespace(t=t), "timesteps_so_far": 0}, {})
    assert watched == [
        (STARTUP_SECONDS, (None, 500)), (STARTUP_SECONDS, (None, 500)), (3.0, (None, 510)),
    ]  # fmt: skip


def test_a_resumed_run_without_a_limit_is_refused(run, capsys):
    """It would train nothing, and show a network of fresh weights."""
    newest = checkpoint_files(run / "checkpoints")[0]
    content = read_checkpoint(newest)
    content["arguments"] |= {"num_timesteps": 100, "max_iters": 0}
    write_checkpoint(newest, content)
    with pytest.raises(SystemExit) as leave:
        run_mujoco.main(
            ["--resume", "run", "--override", "--num-timesteps", "0", "--evaluate", "1"]
        )
    assert leave.value.code == 2
    assert "a run that is resumed needs a limit above 0" in capsys.readouterr().err
