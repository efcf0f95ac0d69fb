"""Whole runs whose folder fills up, cannot be written, goes away, or is somebody else's."""

import contextlib
import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import run_mujoco
from common import cmd_util
from common.checkpoint import (
    checkpoint_files,
    read_newest,
    run_folder,
    tidy_checkpoints,
    write_checkpoint,
)
from common.files import FolderLock
from common.monitor import load_results
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


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return the folder of a run that has ended."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    run_mujoco.main([*RUN, "--max-iters", "4", "--log-path", str(folder)])
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    """Return the folder of a copy of that run."""
    return shutil.copytree(finished, tmp_path / "run")


def test_logs_of_ranks_that_the_checkpoint_does_not_know_are_set_aside(folder, capsys):
    """Which a resume with more ranks left, killed before it had saved."""
    ghosts = {"1.monitor.csv", "log-rank001.txt", "progress-rank001.csv", "12.monitor.csv"}
    for name in ghosts:
        shutil.copy(folder / ("0.monitor.csv" if "monitor" in name else "log.txt"), folder / name)
    shutil.copytree(folder / "checkpoints", folder / "tb-rank003")
    mine = folder / "notes-rank007.txt"
    mine.touch()
    before = len(load_results(folder))
    run_mujoco.main(["--resume", str(folder)])
    earlier = folder / "earlier-1"
    assert set(os.listdir(earlier)) == ghosts | {"tb-rank003"}
    assert f"What ranks logged after the checkpoint is now in {earlier}" in capsys.readouterr().out
    assert len(load_results(folder)) == before / 3
    assert mine.exists()


def test_logs_of_ranks_that_the_run_once_had_stay_and_are_cut(folder):
    def resume(iterations):
        shutil.copy(folder / "0.monitor.csv", folder / "1.monitor.csv")
        (folder / "log-rank001.txt").write_text("five,and more")
        run_mujoco.main(["--resume", str(folder), "--max-iters", str(iterations), "--override"])
        assert (folder / "1.monitor.csv").read_text().count("\n") == 2 + 2
        assert (folder / "log-rank001.txt").read_text() == "five,"
        assert not (folder / "earlier-1").exists()
        return read_newest(folder / "checkpoints")

    newest, content = read_newest(folder / "checkpoints")
    content["ranks"].append({**content["ranks"][0], "monitor_rows": 2, "log_bytes": 5})
    del content["former_ranks"]  # as in the files of earlier versions
    write_checkpoint(newest, content)
    newest, content = resume(5)
    assert (len(content["ranks"]), len(content["former_ranks"])) == (1, 1)
    content["former_ranks"][0]["log_lines"] = {"progress.csv": 1, "/etc/x": 0}
    write_checkpoint(newest, content)
    (folder / "progress-rank001.csv").write_text("a\n1\n")
    newest, content = resume(6)
    assert (folder / "progress-rank001.csv").read_text() == "a\n"
    assert content["former_ranks"] == [
        {"log_bytes": 5, "monitor_rows": 2, "log_lines": {"progress.csv": 1}}
    ]


def test_names_in_a_checkpoint_are_no_paths(folder, tmp_path):
    for path in (tmp_path / "victim", folder / "notes.txt"):
        path.write_text("mine\n" * 9)
    newest, content = read_newest(folder / "checkpoints")
    rows = (folder / "progress.csv").read_text()
    names = [str(tmp_path / "victim"), "../victim", "notes.txt"]
    content["shared"]["log_lines"] = dict.fromkeys(names, 0) | {"progress.csv": 2**62}
    write_checkpoint(newest, content)
    run_mujoco.main(["--resume", str(folder)])
    assert (tmp_path / "victim").read_text() == (folder / "notes.txt").read_text() == "mine\n" * 9
    assert (folder / "progress.csv").read_text() == rows


@pytest.mark.parametrize("bad", [-1, 2**63, 1.5, True, "9", [1]])
@pytest.mark.parametrize("where", ["log_lines", "log_bytes", "former_ranks"])
def test_lengths_in_a_checkpoint_that_are_none_are_one_line(where, bad, folder, capsys):
    newest, content = read_newest(folder / "checkpoints")
    if where == "log_lines":
        content["shared"]["log_lines"]["progress.csv"] = bad
    elif where == "log_bytes":
        content["ranks"][0]["log_bytes"] = bad
    else:
        content["former_ranks"] = [{"log_bytes": 0, "monitor_rows": 0, "log_lines": bad}, bad]
    write_checkpoint(newest, content)
    before = {path: path.read_bytes() for path in folder.rglob("*.*")}
    with pytest.raises(SystemExit) as leave:
        run_mujoco.main(["--resume", str(newest)])
    assert leave.value.code == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "holds no run: " in err
    assert {path: path.read_bytes() for path in folder.rglob("*.*")} == before


@pytest.mark.parametrize("name", ["log.txt", "progress.csv", "0.monitor.csv", "checkpoints"])
def test_a_resumed_run_follows_no_link(name, folder, tmp_path, capsys):
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    with pytest.raises(SystemExit) as leave:
        run_mujoco.main(["--resume", str(folder), "--max-iters", "5", "--override"])
    assert leave.value.code == 2
    assert f"{folder / name} is a symbolic link, through which no run" in capsys.readouterr().err
    after = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    assert after == before


@pytest.mark.parametrize("content", [None, "", "[1,2]", '{"a": 1}', "[" * 9999])
def test_a_config_that_is_not_the_runs_is_kept_when_it_resumes(content, folder, capsys):
    (folder / "config.json").unlink()
    if content is not None:
        (folder / "config.json").write_text(content)
    for count in (1, 2):
        run_mujoco.main(["--resume", str(folder)])
        config = json.loads((folder / "config.json").read_text())
        assert [entry["iteration"] for entry in config["resumed"]] == [4] * count
        assert config["arguments"]["env"] == "CartPole-v1"
    if content is not None:
        assert (folder / "earlier-1" / "config.json").read_text() == content


def test_a_resume_waits_for_the_run_that_is_ending(folder, capsys):
    """What that has saved last is where this one goes on, and nothing is set aside."""
    newest, before, *_ = checkpoint_files(folder / "checkpoints")
    newest.rename(folder / "newest")

    def end():
        (folder / "newest").rename(newest)
        lock.release()

    with FolderLock() as lock:
        lock.take(folder)
        threading.Timer(0.3, end).start()
        run_mujoco.main(["--resume", str(folder), "--keep", "99"])
    out = capsys.readouterr().out
    assert out.startswith(f"Another run is writing to {folder}: 10 s for it to end\n")
    assert "Resuming before iteration 4, exactly" in out
    assert not list(folder.rglob("*.set-aside"))

    # Before the first checkpoint as well: or finished work would be set aside
    (folder / "checkpoints").rename(folder / "later")

    def end_first():
        (folder / "later").rename(folder / "checkpoints")
        lock.release()

    with FolderLock() as lock:
        lock.take(folder)
        threading.Timer(0.3, end_first).start()
        run_mujoco.main([*RUN, "--max-iters", "4", "--resume", "--log-path", str(folder)])
    assert "Resuming before iteration 4, exactly" in capsys.readouterr().out
    assert not (folder / "earlier-1").exists()


def test_a_run_that_began_with_a_relative_path_goes_on(folder, monkeypatch):
    """As the checkpoints of earlier versions have it."""
    newest, content = read_newest(folder / "checkpoints")
    content["arguments"]["load_path"] = "policies/one"
    write_checkpoint(newest, content)
    monkeypatch.chdir(folder)
    run_mujoco.main(["--resume", ".", "--load-path", "policies/one"])
    with pytest.raises(SystemExit):
        run_mujoco.main(["--resume", ".", "--load-path", "policies/two"])


def test_abandoned_futures_do_not_replace_each_other(folder):
    newest, before, *_ = checkpoint_files(folder / "checkpoints")
    for text in ("one", "two"):
        newest.write_text(text)
        tidy_checkpoints(newest.parent, int(before.stem[-9:]))
    files = sorted(newest.parent.glob(f"{newest.stem}.set-aside*"))
    assert [path.read_text() for path in files] == ["one", "two"]


def test_the_run_that_a_path_means(folder, tmp_path, monkeypatch):
    newest = checkpoint_files(folder / "checkpoints")[0]
    (tmp_path / "last").symlink_to(newest)
    (tmp_path / "all").symlink_to(folder / "checkpoints")
    (tmp_path / "link").symlink_to(folder)
    paths = [folder, newest, newest.parent, tmp_path / "last", tmp_path / "all", tmp_path / "link"]
    for path in [*paths, tmp_path / "link" / "checkpoints" / newest.name]:
        assert run_folder(path) == folder
    monkeypatch.chdir(newest.parent)
    assert run_folder(Path(".")) == folder


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
def test_a_second_job_is_refused_and_touches_nothing(tmp_path, monkeypatch, capsys):
    """Neither from the beginning nor as a resume; the first goes on to its end."""
    monkeypatch.setattr(cmd_util, "LOCK_SECONDS", 0.0)
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


def test_a_checkpoint_among_somebody_elses_files_cuts_none_of_them(folder, tmp_path, capsys):
    newest, _ = read_newest(folder / "checkpoints")
    other = tmp_path / "other"
    other.mkdir()
    (other / newest.name).write_bytes(newest.read_bytes())
    for name in ("log.txt", "progress.csv"):
        (other / name).write_text("mine\n" * 1000)
    with pytest.raises(SystemExit) as leave:
        run_mujoco.main(["--resume", str(other / newest.name)])
    assert leave.value.code == 2
    assert "was not written by a run" in capsys.readouterr().err
    assert (
        (other / "log.txt").read_text() == (other / "progress.csv").read_text() == "mine\n" * 1000
    )


@pytest.mark.parametrize("name", ["versions", "former_ranks", "code"])
def test_what_a_checkpoint_may_lack_may_be_none(name, folder):
    newest, content = read_newest(folder / "checkpoints")
    write_checkpoint(newest, {**content, name: None})
    run_mujoco.main(["--resume", str(folder)])
