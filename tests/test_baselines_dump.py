import collections
import os
import pickle

import joblib
import numpy as np
import pytest

from common.baselines_dump import read_variables

DUMP = {
    "pi/pol/fc1/kernel:0": np.arange(15, dtype=np.float32).reshape(5, 3) / 7,
    "pi/fortran:0": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "pi/obfilter/count:0": np.array(3.5),
    "scalar": np.float64(2.5),
    "bytes": np.arange(5, dtype=np.uint8),
    "empty": np.zeros((0, 3)),
    "long": np.arange(300_000, dtype=np.float32),  # more than a frame of a pickle
}


def assert_equal(got, want=DUMP):
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert (got[name].dtype, got[name].shape) == (np.asarray(value).dtype, np.shape(value))
        np.testing.assert_array_equal(got[name], value)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_joblib_and_pickle_write_is_read_bit_for_bit(protocol, tmp_path):
    path = tmp_path / "dump"
    path.write_bytes(pickle.dumps(DUMP, protocol=protocol))
    assert_equal(read_variables(path))
    joblib.dump(DUMP, path, protocol=protocol)
    assert_equal(read_variables(path))


@pytest.mark.parametrize("method", ["zlib", "gzip", "bz2", "lzma", "xz"])
def test_compressed_files(method, tmp_path):
    joblib.dump(collections.OrderedDict(DUMP), tmp_path / "dump", compress=(method, 3))
    assert_equal(read_variables(tmp_path / "dump"))


def test_npz_and_foreign_byte_order(tmp_path):
    save_npz(tmp_path / "dump", **DUMP)
    assert_equal(read_variables(tmp_path / "dump"))
    joblib.dump({"big": np.arange(3, dtype=">f4")}, tmp_path / "dump")
    assert_equal(read_variables(tmp_path / "dump"), {"big": np.arange(3, dtype=np.float32)})


def save_npz(path, **arrays):
    with open(path, "wb") as file:  # by name, it would be another name
        np.savez(file, **arrays)


class Evil:
    """Makes a folder when a pickle of it is loaded."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize(
    "write",
    [
        lambda evil, path: path.write_bytes(pickle.dumps({"a": evil})),
        lambda evil, path: path.write_bytes(pickle.dumps(evil)),
        lambda evil, path: joblib.dump({"a": np.zeros(3), "b": evil}, path),
        lambda evil, path: joblib.dump({"a": np.array([evil], object)}, path),
        lambda evil, path: joblib.dump({"a": evil}, path, compress=3),
        lambda evil, path: save_npz(path, a=np.array([evil], object)),
    ],
)
def test_nothing_in_a_file_is_run(write, tmp_path):
    path, evil = tmp_path / "dump", Evil(tmp_path / "evil")
    write(evil, path)
    with pytest.raises(ValueError, match="asks for posix.mkdir|dtype 'O8'|Object arrays"):
        read_variables(path)
    assert not (tmp_path / "evil").exists()
    pickle.loads(pickle.dumps(evil))  # it would have worked
    assert (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "no such format"),
        (b"hello", "no such format"),
        (b"\x80\x04", "holds no variables"),
        (b"PK\x03\x04", "is damaged"),
        (b"\x1f\x8bxx", "holds no variables"),
        (b"\x78xx", "is damaged"),
        (pickle.dumps([np.zeros(3)]), "holds no variables by name"),
        (pickle.dumps({1: np.zeros(3)}), "holds no variables by name"),
        (pickle.dumps({"a": "text"}), "holds 'a', which is no array of numbers"),
        (pickle.dumps({"a": np.zeros(3)})[:-20], "holds no variables|is damaged"),
    ],
)
def test_what_holds_no_variables(data, message, tmp_path):
    (tmp_path / "dump").write_bytes(data)
    with pytest.raises(ValueError, match=f"dump .*({message})"):
        read_variables(tmp_path / "dump")
