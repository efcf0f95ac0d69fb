"""Variables that baselines saved, by name, read without running anything that a file asks for.

`tf_util.save_variables` of baselines is `joblib.dump` of {name: array}; others pickle that dict, or
put it into an `.npz`. A pickle may name any function to be called. Here the few names that arrays
are made of stand for classes of our own, which only take notes, and any other name is refused.

A joblib file is a pickle in which the bytes of each array follow the note that announces it. All
of the file may be compressed.
"""

import bz2
import gzip
import io
import lzma
import math
import pickle
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from common.plain_pickle import SLACK, BoundedFile, PlainUnpickler, Refused, zip_members

NUMPY_MODULES = re.compile(r"numpy(\._?core)?(\.(multiarray|numeric))?")


def read_variables(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays in a joblib file, a pickle or an `.npz`, by name.

    What comes out takes at most SLACK bytes more than the file.

    Raises:
        ValueError: if the file holds anything but numeric arrays by name, and for one that is
            damaged, of no such format, or larger than the memory.
        OSError: if it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            limit = path.stat().st_size + SLACK
            is_zip = file.read(4) == b"PK\x03\x04"
            file.seek(0)
            content = _read_npz(file, limit) if is_zip else _read_pickle(file, limit)
        if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
            raise Refused("holds no variables by name")
        arrays = {name: _array(name, content.pop(name)) for name in list(content)}
        if sum(array.nbytes for array in arrays.values()) > limit:  # one under several names
            raise Refused(f"unpacks to more than {limit} bytes")
        for name, array in arrays.items():  # which are the file's bytes: freed as they are copied
            arrays[name] = array.astype(array.dtype.newbyteorder("="))
            del array
        return arrays
    except Refused as error:
        raise ValueError(f"{path} {error}") from None
    except OSError as error:
        if error.errno is not None:
            raise
        raise ValueError(f"{path} is damaged: {error}") from error  # a decompressor's
    except MemoryError as error:
        raise ValueError(f"{path}: there is not enough memory to read it") from error
    except (pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, lzma.LZMAError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    except Exception as error:  # what a damaged pickle leads to is not limited to the above
        problem = str(error) or type(error).__name__
        raise ValueError(f"{path} holds no variables: {problem}") from error


def _array(name: str, value: Any) -> NDArray[Any]:
    """Return the array that `value` notes or is; that of a number has no dimensions."""
    value = getattr(value, "array", value)
    array = np.asarray(value) if isinstance(value, np.ndarray | bool | int | float) else None
    if array is None or array.dtype.kind not in "biuf":
        raise Refused(f"holds {name[:80]!r}, which is no array of numbers")
    return array


# ---- .npz ---------------------------------------------------------------------------------------


def _read_npz(file: BinaryIO, limit: int) -> dict[str, NDArray[Any]]:
    """Return the arrays of an `.npz`, whose sizes are known before any is read."""
    members = zip_members(file, limit - SLACK)
    if sum(member.file_size for member in members) > limit:
        raise Refused(f"unpacks to more than {limit} bytes")
    arrays = {}
    with zipfile.ZipFile(file) as archive:
        for member in members:
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise Refused("is compressed in a way that NumPy does not use")
            name = member.filename.removesuffix(".npy")
            with archive.open(member) as stream:
                version = np.lib.format.read_magic(stream)
                if version == (1, 0):
                    header = np.lib.format.read_array_header_1_0(stream)
                else:
                    header = np.lib.format.read_array_header_2_0(stream)
                shape, is_fortran, dtype = header
                if dtype.kind not in "biuf":
                    raise Refused(f"holds an array of dtype '{dtype.kind}{dtype.itemsize}'")
                size = member.file_size - stream.tell()
                if math.prod(shape) * dtype.itemsize != size:
                    raise Refused(f"is damaged: {name[:80]!r} has {size} bytes for shape {shape}")
                order = "F" if is_fortran else "C"
                arrays[name] = _filled(stream.read(size), dtype, shape, order)
    return arrays


def _filled(data: Any, dtype: np.dtype[Any], shape: Any, order: Any) -> NDArray[Any]:
    return np.frombuffer(data, dtype).reshape(shape, order=order)


# ---- joblib and pickle --------------------------------------------------------------------------


def _read_pickle(file: BinaryIO, limit: int) -> Any:
    """Return what a pickle holds, its arrays as notes: objects that have them as `array`.

    All of it may be compressed as joblib does it.
    """
    start = file.read(6)
    file.seek(0)
    stream: Any = file
    if start.startswith(b"\x1f\x8b"):
        stream = gzip.GzipFile(fileobj=file)
    elif start.startswith(b"BZ"):
        stream = bz2.BZ2File(file)
    elif start.startswith((b"\xfd7zXZ", b"\x5d\x00")):
        stream = lzma.LZMAFile(file)  # noqa: SIM115  # ends with `file`
    elif start.startswith(b"\x78"):
        stream = io.BufferedReader(_ZlibFile(file))
    elif not start.startswith(b"\x80"):  # how a pickle begins
        raise Refused("is neither a policy nor variables: no such format is known")
    if stream is file:
        bounded = BoundedFile(stream, limit - SLACK, "holds no variables: it ends too early")
    else:
        bounded = BoundedFile(stream, limit, f"unpacks to more than {limit} bytes")
    return PlainUnpickler(bounded, _Names(bounded, limit)).load()


class _ZlibFile(io.RawIOBase):
    """Reads a compressed file piece by piece, as `gzip` does those of its own format."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.decompressor = file, zlib.decompressobj()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = b""
        while not data and not self.decompressor.eof:
            compressed = self.decompressor.unconsumed_tail or self.file.read(2**16)
            if not compressed:
                raise zlib.error("it ends too early")
            data = self.decompressor.decompress(compressed, min(len(buffer), 2**16))
        buffer[: len(data)] = data
        return len(data)


class _Names(dict[str, Any]):
    """What stands for each name in one file."""

    def __init__(self, file: BoundedFile, limit: int) -> None:
        super().__init__(_names(file, limit))

    def __getitem__(self, name: str) -> Any:
        module, _, attribute = name.rpartition(".")
        return super().__getitem__(
            f"numpy.{attribute}" if NUMPY_MODULES.fullmatch(module) else name
        )


def _names(file: BoundedFile, limit: int) -> dict[str, Any]:
    """Return what stands for each name in one file; made anew, since a file may alter classes."""

    class Dtype:
        """Stands for numpy.dtype: numbers of a fixed size alone."""

        def __init__(self, name: str, *_: Any) -> None:
            if not re.fullmatch(r"[biuf]\d", name):
                raise Refused(f"holds an array of dtype {name[:80]!r}")
            self.dtype = np.dtype(name)

        def __setstate__(self, state: Any) -> None:
            if state[1] == ">":
                self.dtype = self.dtype.newbyteorder(">")

    left = limit

    def count(size: int) -> None:
        nonlocal left
        left -= size
        if left < 0:
            raise Refused(f"unpacks to more than {limit} bytes")

    class Array:
        """Stands for what numpy's _reconstruct returns, filled by its state."""

        array: NDArray[Any]

        def __init__(self, *_: Any) -> None:
            pass

        def __setstate__(self, state: Any) -> None:
            _, shape, dtype, is_fortran, data = state
            self.array = _filled(data, dtype.dtype, shape, "F" if is_fortran else "C")

    class JoblibArray:
        """Stands for joblib's NumpyArrayWrapper: the bytes follow in the file."""

        array: NDArray[Any]

        def __setstate__(self, state: Any) -> None:
            if state.get("numpy_array_alignment_bytes") is not None:
                file.read(file.read(1)[0])
            dtype, shape = state["dtype"], state["shape"]
            data = file.read(math.prod(shape) * dtype.dtype.itemsize)
            self.array = _filled(data, dtype.dtype, shape, state["order"])

    def from_buffer(data: Any, dtype: Any, shape: Any, order: str) -> Array:
        out = Array()
        out.array = _filled(data, dtype.dtype, shape, order)
        return out

    def scalar(dtype: Any, data: Any) -> Array:
        return from_buffer(data, dtype, (), "C")

    def encode(text: str, _: str) -> bytes:
        count(len(text))
        return text.encode("latin1")  # how pickles of old protocols write bytes

    def ordered_dict(pairs: Any = ()) -> dict[Any, Any]:
        count(64 * len(pairs))
        return dict(pairs)

    return {
        "numpy.dtype": Dtype,
        "numpy.ndarray": Array,
        "numpy._reconstruct": Array,
        "numpy._frombuffer": from_buffer,
        "numpy.scalar": scalar,
        "joblib.numpy_pickle.NumpyArrayWrapper": JoblibArray,
        "_codecs.encode": encode,
        "__builtin__.bytes": lambda: b"",
        "collections.OrderedDict": ordered_dict,
    }
