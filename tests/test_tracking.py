"""Weights & Biases: what a run sends is read back from the files that wandb keeps when offline."""

import json
import struct
import sys

import pytest

from tests.ranks import ROOT, mpirun
from tests.test_run import run

TINY = ["--env", "CartPole-v1", "--seed", "1", "--timesteps-per-actorbatch", "64", "--optim-epochs",
        "1", "--no-compile", "--num-timesteps", "600"]  # fmt: skip


def records(path):
    """Yield the records of a .wandb file, which has the layout of LevelDB's logs."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, record = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # no header fits into what is left of the block
            at += 32768 - at % 32768
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or a last part
            yield Record.FromString(record)
            record = b""


def sent(path):
    """Return a tracked run's id, project, name, config, and rows."""
    rows, head = [], None
    for record in records(path):
        if record.HasField("run"):
            head = head or record.run
        if record.HasField("history"):
            rows.append({(item.key or item.nested_key[0]): json.loads(item.value_json)
                         for item in record.history.item})  # fmt: skip
    config = {item.key: json.loads(item.value_json) for item in head.config.update}
    return head.run_id, head.project, head.display_name, config, rows


@pytest.mark.slow
def test_a_tracked_run_and_its_resumption(tmp_path):
    pytest.importorskip("wandb")

    def launch(*flags):
        done = mpirun(0, str(ROOT / "run_mujoco.py"), *flags, cwd=tmp_path, WANDB_MODE="offline")
        assert done.returncode == 0, done.stderr

    launch(*TINY, "--log-path", "run", "--track", "--wandb-project-name", "poles",
           "--stop-timesteps", "150")  # fmt: skip
    launch("--resume", "run")  # which goes on with what was given, tracking included
    first, second = map(sent, sorted((tmp_path / "run").glob("wandb/offline-run-*/run-*.wandb")))
    assert first[0] == second[0] == (tmp_path / "run" / "wandb-id").read_text().strip()
    for _, project, name, config, _ in (first, second):
        assert (project, name) == ("poles", "run")
        assert (config["env"], config["num_timesteps"]) == ("CartPole-v1", 600)
    rows = first[-1] + second[-1]
    with open(tmp_path / "run" / "progress.csv") as file:
        columns, *lines = (line.strip().split(",") for line in file)
    want = [dict(zip(columns, map(float, line), strict=True)) for line in lines]
    assert [row["global_step"] for row in rows] == [row["TimestepsSoFar"] for row in want]
    assert rows[0]["global_step"] < 150 <= first[-1][-1]["global_step"] < 600
    for row, wanted in zip(rows, want, strict=True):
        assert row["charts/episodic_return"] == wanted["EpTrueRewMean"]
        assert row["charts/SPS"] == wanted["TimestepsPerSec"]
        assert {key: row[key] for key in wanted} == wanted


def test_a_missing_wandb_is_found_before_anything_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(SystemExit) as leave:
        run("--track")
    assert leave.value.code == 2
    err = capsys.readouterr().err
    assert "error: module 'wandb' is missing: pip install wandb (" in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_nobody_logged_in_is_found_before_anything_is_written(tmp_path):
    pytest.importorskip("wandb")
    command = [str(ROOT / "run_mujoco.py"), *TINY, "--track"]
    done = mpirun(0, *command, cwd=tmp_path, HOME=str(tmp_path))
    assert done.returncode == 2
    assert "error: --track: No API key configured. Use `wandb login` to log in" in done.stderr
    assert not (tmp_path / "runs").exists()
