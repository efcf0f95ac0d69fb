"""Whole runs whose folder fills up, cannot be written, goes away, or is somebody else's."""

import contextlib
import csv
import re
import shutil
import signal
import subprocess
import sys

import pytest

import run_mujoco
from common.checkpoint import checkpoint_files, read_newest, write_checkpoint
from tests.ranks import ROOT, rank_environment

RUN = [
    "--env", "CartPole-v1", "--seed", "1", "--max-iters", "12", "--schedule", "constant",
    "--timesteps-per-actorbatch", "64", "--optim-batchsize", "64", "--optim-epochs", "1",
    "--save-interval", "1", "--keep", "99",
]  # fmt: skip


@contextlib.contextmanager
def mounted(folder, *options):
    """Mount a tmpfs at `folder`; skip the test where that is not allowed."""
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)], capture_output=True
    )
    if done.returncode != 0:
        pytest.skip(f"no mounting here: {done.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def iterations(text):
    return [int(number) for number in re.findall(r"Iteration (\d+) ", text)]


def test_training_goes_on_while_the_disk_is_full(tmp_path, capsys):
    """300 kB hold a few checkpoints of 130 kB; then nothing, the logs' next lines included."""
    folder = tmp_path / "run"
    folder.mkdir()
    with mounted(folder, "size=300k"):
        with (
            pytest.raises(SystemExit) as leave,
            pytest.warns(UserWarning, match="no more episodes"),
        ):
            run_mujoco.main([*RUN, "--log-path", str(folder)])
        assert leave.value.code == 1  # the last state is not there
        out, err = capsys.readouterr()
        assert iterations(out) == list(range(12))
        saved = checkpoint_files(folder / "checkpoints")
        failures = re.findall(r"WARNING: checkpoint .*/(.*?) was not written: .*No space left", out)
        assert len(failures) == 12 - len(saved) > 5
        assert not list((folder / "checkpoints").glob(".*"))
        newest, content = read_newest(folder / "checkpoints")
        assert newest == saved[0]
        assert err.count("WARNING: rank 0 could not write its log to") == len(
            set(re.findall(r"could not write its log to (\S+):", err))
        )  # once a file

        # There is room again: the run goes on from there, and gives what it would have given
        for path in saved[1:]:
            path.unlink()
        run_mujoco.main(["--resume", str(folder), "--keep", "1"])
        iteration = content["shared"]["iters_so_far"]
        assert f"Resuming before iteration {iteration}, exactly" in capsys.readouterr().out
        _, again = read_newest(folder / "checkpoints")
    run_mujoco.main([*RUN, "--log-path", str(tmp_path / "whole")])
    _, whole = read_newest(tmp_path / "whole" / "checkpoints")
    assert (again["shared"]["theta"] == whole["shared"]["theta"]).all()


def test_rows_that_a_full_disk_has_cost_are_not_made_up_for(tmp_path, capsys):
    """A resume keeps the rows before its checkpoint, were they fewer than the iterations."""
    folder = tmp_path / "run"
    run_mujoco.main([*RUN, "--log-path", str(folder)])
    with open(folder / "progress.csv") as file:
        whole = list(csv.DictReader(file))
    newest = checkpoint_files(folder / "checkpoints")
    for path in newest[:3]:  # as if it had been killed in iteration 10
        path.unlink()
    lines = (folder / "progress.csv").read_text().splitlines(keepends=True)
    del lines[3:5]
    (folder / "progress.csv").write_text("".join(lines))
    content = read_newest(folder / "checkpoints")[1]
    assert content["shared"]["log_lines"]["progress.csv"] == 10  # a header and nine rows
    content["shared"]["log_lines"]["progress.csv"] = 8  # which is what it would have counted
    write_checkpoint(newest[3], content)
    run_mujoco.main(["--resume", str(folder)])
    with open(folder / "progress.csv") as file:
        steps = [row["TimestepsSoFar"] for row in csv.DictReader(file)]
    assert steps == [row["TimestepsSoFar"] for i, row in enumerate(whole) if i not in (2, 3)]


def test_a_read_only_folder_is_one_line(tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    with mounted(folder, "ro"):
        for path in (folder, folder / "deeper"):
            with pytest.raises(SystemExit) as leave:
                run_mujoco.main([*RUN, "--log-path", str(path)])
            assert leave.value.code == 2
            out, err = capsys.readouterr()
            assert (out, err.count("\n")) == ("", 1)
            assert "error: cannot write logs: Read-only file system: " in err


def test_a_file_in_place_of_checkpoints_costs_the_checkpoints_alone(tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "checkpoints").write_text("a file")
    with pytest.raises(SystemExit) as leave:
        run_mujoco.main([*RUN, "--log-path", str(folder), "--save-interval", "0"])
    assert leave.value.code == 1
    out = capsys.readouterr().out
    assert iterations(out) == list(range(12))
    assert out.count("WARNING: checkpoint ") == 1


@pytest.mark.mpi
@pytest.mark.parametrize("nprocs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_folder_that_is_deleted_costs_what_was_in_it(nprocs, tmp_path):
    """Training goes on with a warning a file, and what is saved later is there."""
    command = ["mpirun", "-np", str(nprocs), sys.executable, str(ROOT / "run_mujoco.py"), *RUN,
               "--save-interval", "4", "--log-path", "run"]  # fmt: skip
    with subprocess.Popen(command, cwd=tmp_path, env=rank_environment(), text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:  # fmt: skip
        head = ""
        for line in process.stdout:
            head += line
            if "Iteration 1 " in line:
                shutil.rmtree(tmp_path / "run", ignore_errors=True)
                break
        out, err = process.communicate(timeout=90)
    assert process.returncode == 0, err
    assert iterations(head + out) == list(range(12))
    assert "Traceback" not in err
    for name in ("log.txt", "progress.csv"):
        assert err.count(f"could not write its log to {tmp_path}/run/{name}") == 1
    assert read_newest(tmp_path / "run" / "checkpoints")[1]["shared"]["iters_so_far"] == 12


@pytest.mark.slow
def test_a_second_job_is_refused_and_touches_nothing(tmp_path, capsys):
    """Neither from the beginning nor as a resume; the first goes on to its end."""
    folder = tmp_path / "run"
    command = [sys.executable, str(ROOT / "run_mujoco.py"), *RUN, "--log-path", str(folder)]
    with subprocess.Popen(command, env=rank_environment(), text=True,
                          stdout=subprocess.PIPE) as first:  # fmt: skip
        for line in first.stdout:
            if "Iteration 3 " in line:
                break
        first.send_signal(signal.SIGSTOP)
        before = {path: path.read_bytes() for path in folder.rglob("*.*")}
        for flags in ([*RUN, "--log-path", str(folder)], ["--resume", str(folder)]):
            with pytest.raises(SystemExit) as leave:
                run_mujoco.main(flags)
            assert leave.value.code == 2
            out, err = capsys.readouterr()
            assert (out, err.count("\n")) == ("", 1)
            assert "another run is writing to " in err
        assert {path: path.read_bytes() for path in folder.rglob("*.*")} == before
        first.send_signal(signal.SIGCONT)
        first.communicate(timeout=60)
    assert first.returncode == 0
    assert read_newest(folder / "checkpoints")[1]["shared"]["iters_so_far"] == 12
