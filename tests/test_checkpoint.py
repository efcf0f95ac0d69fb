import hashlib
import os
import pickle
import random
import resource
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from common import checkpoint
from common.checkpoint import (
    Checkpointer,
    CheckpointError,
    checkpoint_files,
    read_checkpoint,
    read_newest,
    write_checkpoint,
)

CONTENT = {
    "arrays": [np.arange(6, dtype=np.float32).reshape(2, 3), np.array(2.5), np.zeros((0, 3))],
    "key": np.arange(5, dtype=np.uint32),
    "numbers": {"big": 2**127 + 1, "float": 0.1, "flag": True, "none": None, "scalar": np.int64(3)},
    "bytes": b"\x00\x01\xff",
    "empty": b"",
    "tuple": (1, "two", [3.0]),
}


def test_what_is_read_equals_what_was_written(tmp_path):
    path = tmp_path / "new" / "iteration-000000001.ckpt"
    write_checkpoint(path, CONTENT)
    got = read_checkpoint(path)
    for array, want in zip([*got["arrays"], got["key"]], [*CONTENT["arrays"], CONTENT["key"]],
                           strict=True):  # fmt: skip
        np.testing.assert_array_equal(array, want)
        assert (array.dtype, array.shape) == (want.dtype, want.shape)
    assert got["numbers"] == CONTENT["numbers"]
    assert (got["bytes"], got["empty"]) == (CONTENT["bytes"], b"")
    assert got["tuple"] == [1, "two", [3.0]]
    assert os.listdir(path.parent) == [path.name]


def test_random_states_survive(tmp_path):
    path = tmp_path / "a.ckpt"
    rng = np.random.default_rng(3)
    rng.standard_normal(3, dtype=np.float32)
    states = {
        "legacy": np.random.get_state(legacy=False),
        "pcg": rng.bit_generator.state,
        "python": random.getstate(),
        "torch": torch.get_rng_state(),
    }
    want = (np.random.rand(), rng.random(), random.random(), torch.rand(()).item())
    write_checkpoint(path, states)
    got = read_checkpoint(path)
    np.random.set_state(got["legacy"])
    rng.bit_generator.state = got["pcg"]
    version, internal, gauss_next = got["python"]
    random.setstate((version, tuple(internal), gauss_next))
    torch.set_rng_state(torch.as_tensor(got["torch"]))
    assert (np.random.rand(), rng.random(), random.random(), torch.rand(()).item()) == want


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "iteration-000000007.ckpt"
    write_checkpoint(path, CONTENT)
    return path


def test_cut_at_any_length_it_is_refused(file):
    data = file.read_bytes()
    rng = random.Random(0)
    for length in [0, 1, len(checkpoint.MAGIC), len(data) - 1,
                   *(rng.randrange(len(data)) for _ in range(20))]:  # fmt: skip
        file.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match="is not a checkpoint|is damaged"):
            read_checkpoint(file)


def test_any_flipped_bit_is_found(file):
    data = file.read_bytes()
    rng = random.Random(1)
    for _ in range(50):
        bit = rng.randrange(8 * len(data))
        altered = bytearray(data)
        altered[bit // 8] ^= 1 << bit % 8
        file.write_bytes(altered)
        with pytest.raises(CheckpointError, match="is not a checkpoint|is damaged"):
            read_checkpoint(file)


def sealed(payload, version=checkpoint.FORMAT):
    """Return a file with a right checksum around any payload."""
    digest = hashlib.sha256(checkpoint.MAGIC + struct.pack("I", version) + payload).digest()
    return checkpoint.HEADER.pack(checkpoint.MAGIC, version, digest) + payload


class Malicious:
    """Leaves a file behind when somebody unpickles it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_pickles_are_not_executed(file, tmp_path):
    trap = tmp_path / "trap"
    torch.save({"a": Malicious(trap)}, tmp_path / "evil.pt")
    for payload in ((tmp_path / "evil.pt").read_bytes(), pickle.dumps({"a": Malicious(trap)})):
        file.write_bytes(sealed(payload))
        with pytest.raises(CheckpointError, match="holds something else than plain data"):
            read_checkpoint(file)
        assert not trap.exists()


def test_other_files_are_named_for_what_they_are(file, tmp_path):
    payload = file.read_bytes()[checkpoint.HEADER.size :]
    file.write_bytes(sealed(payload, version=2))
    with pytest.raises(CheckpointError, match="has format 2; this program reads 1"):
        read_checkpoint(file)
    file.write_text("a text file, longer than the header of a checkpoint would be, by a line or so")
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        read_checkpoint(file)
    with pytest.raises(CheckpointError, match="cannot read checkpoint .*: No such file"):
        read_checkpoint(tmp_path / "missing.ckpt")
    with pytest.raises(CheckpointError, match="cannot read checkpoint .*: Is a directory"):
        read_checkpoint(tmp_path)


def test_the_newest_good_one_is_taken_and_torn_ones_are_passed_over(tmp_path, capsys):
    for iteration in (2, 10, 30):
        write_checkpoint(tmp_path / f"iteration-{iteration:09d}.ckpt", {"iteration": iteration})
    newest = tmp_path / "iteration-000000030.ckpt"
    newest.write_bytes(newest.read_bytes()[:-5])
    (tmp_path / ".iteration-000000099.ckpt.77.partial").write_bytes(b"torn")
    (tmp_path / "iteration-000000098.ckpt.bak").write_bytes(b"somebody's copy")
    path, content = read_newest(tmp_path)
    assert (path.name, content) == ("iteration-000000010.ckpt", {"iteration": 10})
    assert "iteration-000000030.ckpt is damaged" in capsys.readouterr().out
    assert [file.name[-7:-5] for file in checkpoint_files(tmp_path)] == ["30", "10", "02"]


def test_no_checkpoint_at_all(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(CheckpointError, match="no checkpoint in"):
            read_newest(folder)
    (tmp_path / "iteration-000000001.ckpt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="no good checkpoint in"):
        read_newest(tmp_path)


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from common.checkpoint import write_checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
path = Path(sys.argv[1])
write_checkpoint(path, {"a": np.zeros(10)})
try:
    write_checkpoint(path, {"a": np.random.rand(10_000)})
except OSError as error:
    print("refused:", error.strerror)
"""


def test_a_disk_that_is_full_leaves_the_file_before_it(tmp_path):
    path = tmp_path / "iteration-000000001.ckpt"
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True,
        cwd=Path(__file__).parent.parent, check=True,
    )  # fmt: skip
    assert done.stdout == "refused: File too large\n"
    assert read_checkpoint(path)["a"].tolist() == [0.0] * 10
    assert os.listdir(tmp_path) == [path.name]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_what_cannot_be_kept_is_named(tmp_path):
    with pytest.raises(TypeError, match="cannot hold a function"):
        write_checkpoint(tmp_path / "a.ckpt", {"f": test_no_checkpoint_at_all})


def test_hup_stops_a_run_unless_it_is_ignored(tmp_path):
    def seen():
        checkpointer = Checkpointer(
            tmp_path, interval=0, keep=1, collect=lambda local: ({}, {}), header={}
        )
        try:
            signal.raise_signal(signal.SIGHUP)
            return checkpointer.signum
        finally:
            checkpointer.close()

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        assert seen() == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        assert seen() == signal.SIGHUP
    finally:
        signal.signal(signal.SIGHUP, before)
