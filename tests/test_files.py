"""Paths, files that replace others, what is set aside, and the lock on a run's folder."""

import io
import os
import signal
import subprocess
import sys
import threading

import pytest

from common.files import (
    FolderLock,
    PathError,
    absolute_path,
    folder_path,
    no_link,
    printable,
    replacing,
    set_aside,
)
from tests.ranks import ROOT


def test_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert absolute_path("~/x") == "/home/me/x"
    assert absolute_path("a/../b") == f"{tmp_path}/b"
    (tmp_path / "link").symlink_to("there")
    assert absolute_path("link/c") == f"{tmp_path}/link/c"
    assert folder_path("link/c") == f"{tmp_path}/there/c"
    assert folder_path("./~x") == f"{tmp_path}/~x"
    for path in ("", "a\0b", "\udcff", "~nobody-here"):
        with pytest.raises(PathError, match="need a path|no home folder"):
            absolute_path(path)
    monkeypatch.setattr(os, "fsencode", lambda path: path.encode("latin-1"))
    assert absolute_path("/é") == "/é"
    with pytest.raises(PathError, match="text"):
        absolute_path("/日")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path, other = tmp_path / "file", tmp_path / "other"
    other.write_text("other")
    path.symlink_to(other)
    with replacing(path) as file:
        file.write(b"new")
    assert (path.is_symlink(), path.read_text(), other.read_text()) == (False, "new", "other")
    with pytest.raises(KeyError), replacing(path) as file:
        file.write(b"half")
        raise KeyError
    assert path.read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"), replacing(tmp_path / "pipe"):
        pass
    assert sorted(os.listdir(tmp_path)) == ["file", "other", "pipe"]


def test_a_link_is_not_opened(tmp_path):
    (tmp_path / "link").symlink_to("file")
    with pytest.raises(OSError, match="a symbolic link, through which no run writes"):
        open(tmp_path / "link", "w", opener=no_link)  # noqa: SIM115 - it is not opened
    assert os.listdir(tmp_path) == ["link"]


def test_all_or_nothing_is_set_aside(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    (tmp_path / "c").symlink_to("nowhere")
    (tmp_path / "earlier-1").mkdir()

    def rename(source, target, rename=os.rename):
        if source.name == "b":
            raise OSError(16, "Device or resource busy", str(source))
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", rename)
        with pytest.raises(OSError, match="busy"):
            set_aside(tmp_path, "abc")
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "c", "earlier-1"]
    assert set_aside(tmp_path, "acx") == tmp_path / "earlier-2"
    assert sorted(os.listdir(tmp_path / "earlier-2")) == ["a", "c"]
    assert set_aside(tmp_path, "x") is None


def test_one_lock_a_folder(tmp_path):
    """Also within a process; the second waits as long as it is told to."""
    folder, said = tmp_path / "run", []
    with FolderLock() as one, FolderLock() as two:
        one.take(folder)
        one.take(folder)
        with pytest.raises(ValueError, match="another run is writing to "):
            two.take(folder)
        threading.Timer(0.2, one.release).start()
        two.take(folder, wait_seconds=10.0, say=said.append)
        assert said == [f"Another run is writing to {folder}: 10 s for it to end"]
        with pytest.raises(ValueError, match="another run"):
            one.take(folder, wait_seconds=0.1)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / ".lock").symlink_to(tmp_path / "file")
    with pytest.raises(OSError, match="cannot write logs: a symbolic link"):
        FolderLock().take(tmp_path / "other")
    assert not (tmp_path / "file").exists()


HOLDER = """
import os, sys, time
from pathlib import Path
from common.files import FolderLock
lock = FolderLock()
lock.take(Path(sys.argv[1]))
worker = os.fork()
if worker == 0:
    os.close(1)
    time.sleep(60)
print(worker, flush=True)
time.sleep(60)
"""


def test_a_worker_that_outlives_a_killed_run_holds_no_lock(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], cwd=ROOT, text=True,
                          stdout=subprocess.PIPE) as run:  # fmt: skip
        worker = int(run.stdout.readline())
        try:
            with pytest.raises(ValueError, match="another run"), FolderLock() as lock:
                lock.take(tmp_path)
            run.kill()
            run.wait(timeout=10)
            os.kill(worker, 0)  # which lives
            with FolderLock() as lock:
                lock.take(tmp_path, wait_seconds=1.0)
        finally:
            os.kill(worker, signal.SIGKILL)


def test_text_that_a_console_cannot_show():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    stream.write(printable("caf\xe9 \udce9\n", stream))
    stream.seek(0)
    assert stream.read() == "caf\\xe9 \\udce9\n"
