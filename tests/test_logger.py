"""The logger: every format written and read back, by value."""

import errno
import glob
import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys

import numpy as np
import pandas
import pytest
import torch

from common import logger

VARIABLES = ("OPENAI_LOGDIR", "OPENAI_LOG_FORMAT", "OPENAI_LOG_FORMAT_MPI")


@pytest.fixture(autouse=True)
def fresh_logger(monkeypatch, tmp_path):
    """No logger before or after, no variables, an empty working directory."""
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)
    logger.reset()
    yield
    logger.reset()


class FakeComm:
    """One rank of several: rank 0's broadcasts are kept in `wire` for a later rank to receive."""

    def __init__(self, rank, size, wire, others=()):
        self.rank, self.size, self.wire, self.others = rank, size, wire, others

    def Get_rank(self):
        return self.rank

    def Get_size(self):
        return self.size

    def bcast(self, obj, root=0):
        assert root == 0
        if self.rank == 0:
            self.wire.append(obj)
            return obj
        return self.wire.pop(0)

    def allgather(self, obj):
        return [obj, *self.others]


def one():
    return FakeComm(0, 1, [])


def read(*path):
    with open(os.path.join(*map(str, path)), newline="") as file:
        return file.read()


def kinds(formats):
    return [type(fmt).__name__.removesuffix("OutputFormat") for fmt in formats]


# ---------------------------------------------------------------- the table

TABLE = """\
---------------------------------------------
| Alpha                          | 1.23e+06 |
| beta                           | -0.5     |
| EpRewMean                      | nan      |
| name                           | Hopper   |
| zz_a_key_of_more_than_thirt... | 3        |
---------------------------------------------
"""


def test_table_by_hand():
    out = io.StringIO()
    logger.HumanOutputFormat(out).writekvs(
        {
            "zz_a_key_of_more_than_thirty_letters": 3,
            "beta": np.float32(-0.5),
            "name": "Hopper",
            "Alpha": 1234567,
            "EpRewMean": float("nan"),
        }
    )
    assert out.getvalue() == TABLE


def test_table_cells():
    out = io.StringIO()
    logger.HumanOutputFormat(out).writekvs(
        {"a": -1.23456e-10, "b": "v" * 31, "c": "w" * 30, "d": torch.tensor(2.5), "e": None}
    )
    assert [line[6:] for line in out.getvalue().splitlines()[1:-1]] == [
        f"{'-1.23e-10':<30} |",
        f"{'v' * 27}... |",
        f"{'w' * 30} |",
        f"{'2.5':<30} |",
        f"{'None':<30} |",
    ]


def test_keys_alike_after_the_cut_both_show():
    out = io.StringIO()
    logger.HumanOutputFormat(out).writekvs({"k" * 31 + "1": 1, "k" * 31 + "2": 2})
    assert [line.split("|")[2].strip() for line in out.getvalue().splitlines()[1:-1]] == ["1", "2"]


def test_text_lines():
    out = io.StringIO()
    logger.HumanOutputFormat(out).writeseq(["Iteration", 3, 0.5])
    assert out.getvalue() == "Iteration 3 0.5\n"


def test_console_is_stdout_at_each_write(monkeypatch):
    fmt = logger.make_output_format("stdout", "unused")
    streams = io.StringIO(), io.StringIO()
    for i, stream in enumerate(streams):
        monkeypatch.setattr(sys, "stdout", stream)
        fmt.writeseq([i])
    assert [stream.getvalue() for stream in streams] == ["0\n", "1\n"]
    assert not os.path.exists("unused")


# ---------------------------------------------------------------- values


def test_dump_returns_and_forgets(tmp_path):
    logger.configure(tmp_path, [], one())
    logger.logkv("a", 1)
    logger.record_tabular("a", 2)
    logger.logkvs({"b": "x", "c": None})
    assert logger.getkvs() == {"a": 2, "b": "x", "c": None}
    assert logger.dump_tabular() == {"a": 2, "b": "x", "c": None}
    assert logger.getkvs() == {}
    assert logger.dumpkvs() == {}


def test_mean_is_over_one_dump(tmp_path):
    logger.configure(tmp_path, [], one())
    for val in (1.0, 2.0, 6.0):
        logger.logkv_mean("m", val)
    assert logger.dumpkvs() == {"m": 3.0}
    logger.logkv_mean("m", 10)
    assert logger.dumpkvs() == {"m": 10.0}


def test_mean_starts_anew_after_a_plain_value(tmp_path):
    logger.configure(tmp_path, [], one())
    logger.logkv_mean("m", 1.0)
    logger.logkv("m", 100.0)
    logger.logkv_mean("m", 4.0)
    logger.logkv_mean("m", 6.0)
    assert logger.dumpkvs() == {"m": 5.0}


def test_profile_adds_up(tmp_path, monkeypatch):
    logger.configure(tmp_path, [], one())
    clock = iter([10.0, 10.5, 20.0, 22.0])
    monkeypatch.setattr(logger.time, "perf_counter", lambda: next(clock))
    for _ in range(2):
        with logger.profile_kv("env"):
            pass
    assert logger.dumpkvs() == {"wait_env": 2.5}


# ---------------------------------------------------------------- levels


def test_levels(tmp_path, capsys):
    assert (logger.DEBUG, logger.INFO, logger.WARN, logger.ERROR) == (10, 20, 30, 40)
    assert logger.DISABLED == 50
    logger.configure(tmp_path, ["stdout"], one())
    capsys.readouterr()

    def lines_at(level):
        logger.set_level(level)
        for write in (logger.debug, logger.info, logger.log, logger.warn, logger.error):
            write(write.__name__)
        logger.log("at", logger.ERROR, level=logger.ERROR)
        return capsys.readouterr().out.splitlines()

    assert lines_at(logger.DEBUG) == ["debug", "info", "log", "warn", "error", "at 40"]
    assert lines_at(logger.INFO) == ["info", "log", "warn", "error", "at 40"]
    assert lines_at(logger.WARN) == ["warn", "error", "at 40"]
    assert lines_at(logger.ERROR) == ["error", "at 40"]
    assert lines_at(logger.DISABLED) == []
    logger.logkv("a", 1)
    assert logger.dumpkvs() == {"a": 1}
    assert capsys.readouterr().out == ""


# ---------------------------------------------------------------- CSV


def test_csv_text(tmp_path):
    fmt = logger.CSVOutputFormat(tmp_path / "p.csv")
    fmt.writekvs({"b": 0.1, "a": 3, "C": np.float32(0.1)})
    fmt.writekvs({"a": np.int64(4), "b": float("nan"), "C": torch.tensor(-1e-20)})
    fmt.writekvs({"a": None, "C": float("-inf")})
    # The repr of the float64 that equals the float32, so that equal runs are equal bytes.
    assert read(tmp_path, "p.csv") == (
        f"C,a,b\n0.10000000149011612,3,0.1\n{float(np.float32(-1e-20))!r},4,nan\n-inf,,\n"
    )
    fmt.close()


def test_csv_floats_come_back_bit_for_bit(tmp_path):
    values = np.random.RandomState(0).randn(200) * 10.0 ** np.arange(-100, 100)
    fmt = logger.CSVOutputFormat(tmp_path / "p.csv")
    for value in values:
        fmt.writekvs({"x": value})
    fmt.close()
    back = np.array([float(line) for line in read(tmp_path, "p.csv").splitlines()[1:]])
    assert back.tobytes() == values.tobytes()


def test_csv_new_column_midway(tmp_path):
    fmt = logger.CSVOutputFormat(tmp_path / "p.csv")
    fmt.writekvs({"b": 1, "a": "x,y"})
    fmt.writekvs({"a": 'say "hi"', "b": 2})
    fmt.writekvs({"d": 5, "b": 3, "c": 0.5})
    fmt.writekvs({"a": "z"})
    assert read(tmp_path, "p.csv") == ('a,b,c,d\n"x,y",1,,\n"say ""hi""",2,,\n,3,0.5,5\nz,,,\n')
    assert os.listdir(tmp_path) == ["p.csv"]
    fmt.close()


def test_csv_crash_while_adding_a_column_keeps_the_old_file(tmp_path, monkeypatch):
    fmt = logger.CSVOutputFormat(tmp_path / "p.csv")
    fmt.writekvs({"a": 1})

    def fail(*args):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="Input/output error"):
            fmt.writekvs({"a": 2, "b": 9})
    assert read(tmp_path, "p.csv") == "a\n1\n"
    assert os.listdir(tmp_path) == ["p.csv"]
    fmt.writekvs({"a": 3, "b": 8})
    assert read(tmp_path, "p.csv") == "a,b\n1,\n3,8\n"
    fmt.close()


def test_csv_append(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("b,a\n1,2\n3,4")  # its last line is torn
    fmt = logger.CSVOutputFormat(path, append=True)
    fmt.writekvs({"a": 6, "b": 5})
    assert read(path) == "b,a\n1,2\n5,6\n"
    fmt.writekvs({"a": 7, "c": 8})
    assert read(path) == "b,a,c\n1,2,\n5,6,\n,7,8\n"
    fmt.close()
    logger.CSVOutputFormat(path).close()
    assert read(path) == ""


@pytest.mark.parametrize("content", [None, "", "a,b"])
def test_csv_append_to_nothing(tmp_path, content):
    if content is not None:
        (tmp_path / "p.csv").write_text(content)
    fmt = logger.CSVOutputFormat(tmp_path / "p.csv", append=True)
    fmt.writekvs({"x": 1})
    assert read(tmp_path, "p.csv") == "x\n1\n"
    fmt.close()


# ---------------------------------------------------------------- JSON, log


def test_json(tmp_path):
    fmt = logger.JSONOutputFormat(tmp_path / "p.json")
    fmt.writekvs({"b": np.float32(0.1), "a": torch.tensor(3), "s": "x", "v": np.arange(2)})
    fmt.writekvs({"b": float("nan"), "n": None, "p": tmp_path})
    fmt.close()
    first, second = map(json.loads, read(tmp_path, "p.json").splitlines())
    assert first == {"b": 0.10000000149011612, "a": 3, "s": "x", "v": [0, 1]}
    assert np.isnan(second.pop("b"))
    assert second == {"n": None, "p": str(tmp_path)}
    table = pandas.read_json(tmp_path / "p.json", lines=True)
    assert table["b"].isna().tolist() == [False, True]


def test_json_and_log_append(tmp_path):
    for append, expected in ((True, [1, 2]), (False, [2])):
        (tmp_path / "p.json").write_text('{"a": 1}\n{"a": ')
        (tmp_path / "log.txt").write_text("first\n")
        as_json = logger.JSONOutputFormat(tmp_path / "p.json", append=append)
        as_json.writekvs({"a": 2})
        as_json.close()
        text = logger.HumanOutputFormat(tmp_path / "log.txt", append=append)
        text.writeseq(["second"])
        text.close()
        assert [json.loads(line)["a"] for line in read(tmp_path, "p.json").splitlines()] == expected
        assert read(tmp_path, "log.txt") == ("first\n" if append else "") + "second\n"


# ---------------------------------------------------------------- TensorBoard


def scalars(dir):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(dir)).Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def test_tensorboard(tmp_path):
    logger.configure(tmp_path, ["tensorboard"], one())
    nan = float("nan")
    rows = [
        {"TimestepsSoFar": 100, "EpRewMean": 1.5, "EpTrueRewMean": nan, "TimestepsPerSec": 512.0},
        {"TimestepsSoFar": 300, "EpRewMean": 2.5, "EpTrueRewMean": 40.0, "env": "Hopper"},
        {"TimestepsSoFar": 400, "EpRewMean": nan, "EpTrueRewMean": nan, "b": np.float32(0.25)},
    ]
    for row in rows:
        logger.logkvs(row)
        logger.dumpkvs()
    logger.reset()
    got = scalars(tmp_path / "tb")
    assert got.pop("EpRewMean")[:2] == [(100, 1.5), (300, 2.5)]
    assert got.pop("EpTrueRewMean")[1] == (300, 40.0)
    assert got == {
        "TimestepsSoFar": [(100, 100.0), (300, 300.0), (400, 400.0)],
        "TimestepsPerSec": [(100, 512.0)],
        "b": [(400, 0.25)],
        "charts/episodic_return": [(100, 1.5), (300, 40.0)],
        "charts/SPS": [(100, 512.0)],
    }


def test_tensorboard_counts_without_timesteps(tmp_path):
    fmt = logger.TensorBoardOutputFormat(tmp_path)
    fmt.writekvs({"a": 5})
    fmt.writekvs({"a": 6})
    fmt.close()
    assert scalars(tmp_path) == {"a": [(1, 5.0), (2, 6.0)]}


def test_tensorboard_append_replaces_what_is_repeated(tmp_path):
    """A run that wrote steps 10 to 30, was killed, and resumes from what it was after 10."""
    for append, steps in ((False, (10, 20, 30)), (True, (20, 40))):
        fmt = logger.TensorBoardOutputFormat(tmp_path, append=append)
        for step in steps:
            fmt.writekvs({"TimestepsSoFar": step, "a": step + 100 * append})
        fmt.close()
    assert scalars(tmp_path)["a"] == [(10, 10.0), (20, 120.0), (40, 140.0)]


def test_tensorboard_sets_earlier_events_aside_without_append(tmp_path):
    for value in (1, 2):
        fmt = logger.TensorBoardOutputFormat(tmp_path)
        fmt.writekvs({"a": value})
        fmt.close()
    assert scalars(tmp_path) == {"a": [(1, 2.0)]}
    assert scalars(tmp_path / "earlier-1") == {"a": [(1, 1.0)]}


# ---------------------------------------------------------------- unconfigured


def test_unconfigured_prints_and_writes_nothing(tmp_path, capsys):
    assert logger.get_dir() is None
    logger.log("hello", 1)
    logger.logkv("a", 2)
    logger.dumpkvs()
    assert capsys.readouterr().out == (
        "hello 1\n----------------\n| a | 2        |\n----------------\n"
    )
    assert logger.get_dir() is None
    assert os.listdir(tmp_path) == []


def test_unconfigured_other_rank_is_silent(monkeypatch, capsys):
    monkeypatch.setattr(logger, "_world", lambda: FakeComm(1, 2, []))
    logger.log("hello")
    logger.logkv("a", 2)
    assert logger.dumpkvs() == {"a": 2}
    assert capsys.readouterr().out == ""


def test_import_starts_neither_mpi_nor_tensorboard():
    code = (
        "import sys; from common import logger; assert logger.get_dir() is None; "
        "print([m for m in ('mpi4py.MPI', 'tensorboard', 'torch', 'pandas') if m in sys.modules])"
    )
    root = os.path.dirname(os.path.dirname(logger.__file__))
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


# ---------------------------------------------------------------- configure


def test_configure_writes_all_formats(tmp_path, capsys):
    run = tmp_path / "a" / "run"
    logger.configure(str(run), ["stdout", "log", "csv", "json"], one())
    assert logger.get_dir() == str(run)
    logger.log("hello")
    logger.logkv("x", 0.5)
    logger.dumpkvs()
    expected = f"Logging to {run}\nhello\n----------------\n| x | 0.5      |\n----------------\n"
    assert capsys.readouterr().out == expected
    assert sorted(os.listdir(run)) == ["log.txt", "progress.csv", "progress.json"]
    assert read(run, "log.txt") == expected
    assert read(run, "progress.csv") == "x\n0.5\n"
    assert read(run, "progress.json") == '{"x": 0.5}\n'


def test_default_formats_and_folder(tmp_path):
    logger.configure(comm=one())
    assert kinds(logger.get_current().output_formats) == ["Human", "Human", "CSV"]
    name = os.path.relpath(logger.get_dir(), tmp_path)
    assert re.fullmatch(r"runs/\d{4}(-\d\d){5}", name)
    assert sorted(os.listdir(name)) == ["log.txt", "progress.csv"]


def test_two_runs_of_one_second_have_two_folders(monkeypatch):
    class Clock(logger.datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2024, 5, 6, 7, 8, 9)

    monkeypatch.setattr(logger.datetime, "datetime", Clock)
    names = []
    for _ in range(3):
        logger.configure(None, [], one())
        names.append(os.path.relpath(logger.get_dir()))
    time = "runs/2024-05-06-07-08-09"
    assert names == [time, f"{time}-2", f"{time}-3"]


def test_world_is_the_default_comm(tmp_path):
    logger.configure(tmp_path / "run", ["csv"])
    assert os.listdir(tmp_path / "run") == ["progress.csv"]


def test_variables(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OPENAI_LOGDIR", "~/logs")
    monkeypatch.setenv("OPENAI_LOG_FORMAT", "json, csv,")
    monkeypatch.setenv("OPENAI_LOG_FORMAT_MPI", "csv")
    wire = []
    logger.configure(comm=FakeComm(0, 2, wire, [None]))
    assert logger.get_dir() == str(tmp_path / "home" / "logs")
    assert kinds(logger.get_current().output_formats) == ["JSON", "CSV"]
    logger.configure(comm=FakeComm(1, 2, wire, [None]))
    assert sorted(os.listdir(logger.get_dir())) == [
        "progress-rank001.csv",
        "progress.csv",
        "progress.json",
    ]
    logger.configure("given", ["log"], one())  # arguments beat variables
    assert os.listdir(tmp_path / "given") == ["log.txt"]
    monkeypatch.setenv("OPENAI_LOG_FORMAT", "")
    logger.configure("none", comm=one())
    assert logger.get_current().output_formats == []


def test_other_ranks_share_the_folder_and_write_their_own_files(tmp_path, capsys):
    wire = []
    logger.configure(comm=FakeComm(0, 13, wire, [None]))
    run = logger.get_dir()
    capsys.readouterr()
    logger.configure("ignored", comm=FakeComm(12, 13, wire, [None]))
    assert logger.get_dir() == run
    logger.log("from twelve")
    assert capsys.readouterr().out == ""
    assert read(run, "log-rank012.txt") == f"Logging to {run}\nfrom twelve\n"
    for name in ("csv", "json", "tensorboard"):
        logger.make_output_format(name, run, "-rank001").close()
    assert sorted(os.listdir(run)) == [
        "log-rank012.txt",
        "log.txt",
        "progress-rank001.csv",
        "progress-rank001.json",
        "progress.csv",
        "tb-rank001",
    ]
    assert not os.path.exists("ignored")


def test_append(tmp_path):
    for i, append in enumerate((False, True)):
        logger.configure(tmp_path, ["log", "csv", "json"], one(), append=append)
        logger.logkv("i", i)
        logger.dumpkvs()
    assert read(tmp_path, "progress.csv") == "i\n0\n1\n"
    assert read(tmp_path, "progress.json") == '{"i": 0}\n{"i": 1}\n'
    assert read(tmp_path, "log.txt").count("Logging to") == 2
    logger.configure(tmp_path, ["csv"], one())
    assert read(tmp_path, "progress.csv") == ""


def test_what_was_there_is_set_aside(tmp_path, capsys):
    """Also a link, whose target stays as it is; what no format writes to stays where it is."""
    (tmp_path / "run").mkdir()
    (tmp_path / "outside").write_text("outside\n")
    (tmp_path / "run" / "log.txt").symlink_to(tmp_path / "outside")
    (tmp_path / "run" / "progress.csv").write_text("mine\n")
    (tmp_path / "run" / "progress.json").write_text("mine\n")
    logger.configure(tmp_path / "run", ["stdout", "log", "csv"], one())
    earlier = tmp_path / "run" / "earlier-1"
    assert f"The logs that were there are now in {earlier}\n" in capsys.readouterr().out
    assert sorted(os.listdir(earlier)) == ["log.txt", "progress.csv"]
    assert read(earlier, "progress.csv") == read(tmp_path / "run", "progress.json") == "mine\n"
    assert read(tmp_path, "outside") == "outside\n"
    (tmp_path / "link.csv").symlink_to(tmp_path / "outside")
    for append in (False, True):
        with pytest.raises(OSError, match="symbolic link"):
            logger.CSVOutputFormat(tmp_path / "link.csv", append=append)
    (tmp_path / "tb").symlink_to(tmp_path / "run")
    with pytest.raises(OSError, match="symbolic link"):
        logger.TensorBoardOutputFormat(tmp_path / "tb")
    assert read(tmp_path, "outside") == "outside\n"


def test_text_that_is_none_costs_no_line(tmp_path, monkeypatch):
    console = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", console)
    logger.configure(tmp_path, ["stdout", "log", "csv", "json"], one())
    logger.log("caf\xe9 \udce9")
    logger.logkv("caf\xe9", "\udce9")
    logger.dumpkvs()
    assert console.buffer.getvalue().count(b"caf\\xe9 ") == 2
    assert "caf\xe9 \\udce9\n" in read(tmp_path, "log.txt")
    assert read(tmp_path, "progress.csv") == "caf\xe9\n\\udce9\n"
    assert json.loads(read(tmp_path, "progress.json")) == {"caf\xe9": "\udce9"}
    with pytest.raises(ValueError, match="need a path that is text"):
        logger.configure("\udce9", [], one())


def test_scoped_configure(tmp_path, capsys):
    logger.configure(tmp_path / "outer", ["csv"], one())
    logger.logkv("x", 1)
    with logger.scoped_configure(tmp_path / "inner", ["csv"], one()):
        assert logger.get_dir() == str(tmp_path / "inner")
        logger.logkv("y", 2)
        logger.dumpkvs()
    assert logger.get_dir() == str(tmp_path / "outer")
    logger.dumpkvs()
    assert read(tmp_path, "inner", "progress.csv") == "y\n2\n"
    assert read(tmp_path, "outer", "progress.csv") == "x\n1\n"
    with pytest.raises(KeyError), logger.scoped_configure(tmp_path / "inner", [], one()):
        raise KeyError
    assert logger.get_dir() == str(tmp_path / "outer")


# ---------------------------------------------------------------- what cannot be written


def test_unwritable_folder_raises_on_every_rank(tmp_path):
    (tmp_path / "file").write_text("")
    path = str(tmp_path / "file" / "sub")
    message = rf"Not a directory: '{re.escape(path)}'"
    with pytest.raises(OSError, match=f"] cannot write logs: {message}"):
        logger.configure(path, ["stdout"], one())
    assert logger.get_dir() is None

    wire = []
    with pytest.raises(OSError, match=f"rank 0 cannot write logs: {message}"):
        logger.configure(path, ["stdout"], FakeComm(0, 2, wire, [None]))
    # Rank 1, even if it can write there (as on another host), hears of rank 0's failure.
    verdict = NotADirectoryError(errno.ENOTDIR, "rank 0 cannot write logs: Not a directory", path)
    wire = [str(tmp_path / "fine")]
    with pytest.raises(OSError, match=f"rank 0 cannot write logs: {message}"):
        logger.configure(path, ["csv"], FakeComm(1, 2, wire, [verdict]))
    assert logger.get_dir() is None


def test_runs_cannot_be_made(tmp_path):
    (tmp_path / "runs").write_text("")
    wire = []
    for rank in (0, 1):
        with pytest.raises(OSError, match=r"cannot make a folder for logs: .*/runs"):
            logger.configure(comm=FakeComm(rank, 2, wire, [None]))


def test_file_cannot_be_opened(tmp_path):
    (tmp_path / "progress.csv").mkdir()
    with pytest.raises(OSError, match=r"Is a directory: '.*/progress.csv'"):
        logger.configure(tmp_path, ["log", "csv"], one())


def test_failed_configure_keeps_the_logger(tmp_path):
    logger.configure(tmp_path / "good", ["csv"], one())
    with pytest.raises(ValueError, match="unknown log format 'xml': choose from stdout, log, csv"):
        logger.configure(tmp_path / "bad", ["xml"], one())
    logger.logkv("a", 1)
    logger.dumpkvs()
    assert read(tmp_path, "good", "progress.csv") == "a\n1\n"


def test_other_rank_s_bad_format_raises_here(tmp_path):
    verdict = ValueError("unknown log format 'xml'")
    with pytest.raises(ValueError, match="'xml'"):
        logger.configure(tmp_path, ["csv"], FakeComm(0, 2, [], [verdict]))


class FullDisk:
    """A file of a full disk, in an open _LineFile's place."""

    def __init__(self, file):
        self.file = file

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_failed_write_warns_once_a_format_and_goes_on(tmp_path, capsys):
    logger.configure(tmp_path, ["csv", "log", "json"], one())
    as_csv, as_log, _ = logger.get_current().output_formats
    files = as_csv.file._file, as_log.file._file
    logger.logkv("a", 1)
    logger.dumpkvs()
    as_csv.file._file, as_log.file._file = map(FullDisk, files)
    for i in (2, 3):
        logger.log("lost")
        logger.logkv("a", i)
        assert logger.dumpkvs() == {"a": i}
    as_csv.file._file, as_log.file._file = files  # space again
    logger.logkv("a", 4)
    logger.dumpkvs()

    warnings = capsys.readouterr().err.splitlines()
    assert [line.split(":")[1] for line in warnings] == [
        f" rank 0 could not write its log to {tmp_path}/{name}"
        for name in ("log.txt", "progress.csv")
    ]
    assert all("No space left on device. Training goes on" in line for line in warnings)
    assert read(tmp_path, "progress.csv") == "a\n1\n4\n"
    assert read(tmp_path, "progress.json") == "".join(f'{{"a": {i}}}\n' for i in (1, 2, 3, 4))
    assert "lost" not in read(tmp_path, "log.txt")


def test_row_that_does_not_fit_is_taken_back(tmp_path, capsys):
    """A real limit, reached in the middle of a row."""
    logger.configure(tmp_path, ["csv"], one())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (25, limits[1]))
        for i in range(5):
            logger.logkv("a", f"row{i}" * 2)
            logger.dumpkvs()
        logger.logkvs({"a": "x", "b": "a column more"})
        logger.dumpkvs()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert read(tmp_path, "progress.csv") == "a\nrow0row0\nrow1row1\n"
    assert os.listdir(tmp_path) == ["progress.csv"]
    assert capsys.readouterr().err.count("WARNING") == 1
    logger.logkvs({"a": "x", "b": "y"})
    logger.dumpkvs()
    assert read(tmp_path, "progress.csv") == "a,b\nrow0row0,\nrow1row1,\nx,y\n"


def test_folder_that_vanishes(tmp_path, capsys):
    run = tmp_path / "run"
    logger.configure(run, ["log", "csv", "json", "tensorboard"], one())
    logger.logkv("a", 1)
    logger.dumpkvs()
    shutil.rmtree(run)
    for i in range(3):
        logger.log("still here")
        logger.logkvs({"a": i, "b": i})
        assert logger.dumpkvs() == {"a": i, "b": i}
    warnings = capsys.readouterr().err
    assert warnings.count("WARNING") == 4
    assert warnings.count("Training goes on") == 4
    assert not run.exists()


def test_broken_console(tmp_path, capsys, monkeypatch):
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    logger.configure(tmp_path, ["stdout", "csv"], one())
    monkeypatch.setattr(sys, "stdout", Closed())
    logger.log("a")
    logger.log("b")
    assert capsys.readouterr().err.count("its log to stdout: [Errno 32] Broken pipe") == 1


def test_no_event_file_before_values(tmp_path):
    logger.configure(tmp_path, ["tensorboard"], one())
    assert glob.glob(str(tmp_path / "tb" / "*")) == []


def test_a_format_that_fails_in_its_own_way_is_a_warning(tmp_path, capsys, monkeypatch):
    """A console that is closed or None, and a writer whose thread has died."""

    class Broken(logger.KVWriter):
        name = "a writer"

        def writekvs(self, kvs):
            raise RuntimeError("its thread has died")

    closed = io.StringIO()
    closed.close()
    for console in (closed, None):
        monkeypatch.setattr(sys, "stdout", console)
        log = logger.Logger(None, [logger.HumanOutputFormat(None), Broken()])
        for _ in range(2):
            log.log("text")
            log.logkv("key", 1)
            log.dumpkvs()
        err = capsys.readouterr().err
        assert err.count("WARNING: rank 0 could not write its log to stdout: ") == 1
        assert err.count("to a writer: its thread has died. Training goes on") == 1
    monkeypatch.setattr(sys, "stderr", None)
    logger.Logger(None, [Broken()]).log("nobody hears it")
