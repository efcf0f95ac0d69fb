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
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_BYTES = 2**31  # of a decompressed file: no policy is as large
NUMPY_MODULES = re.compile(r"numpy(\._?core)?(\.(multiarray|numeric))?")


def read_variables(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays in a joblib file, a pickle or an `.npz`, by name.

    Raises:
        ValueError: if the file holds anything but numeric arrays by name, and for one that is
            damaged or of no such format.
        OSError: if it cannot be read.
    """
    data = path.read_bytes()
    try:
        if data.startswith(b"PK\x03\x04"):
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                content: Any = dict(file)
        else:
            content = _ArrayUnpickler(io.BytesIO(_decompressed(data))).load()
    except _Refused as error:
        raise ValueError(f"{path} {error}") from None
    except (pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, lzma.LZMAError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    except Exception as error:  # what a damaged pickle leads to is not limited to the above
        raise ValueError(f"{path} holds no variables: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise ValueError(f"{path} holds no variables by name")
    return {name: _array(path, name, value) for name, value in content.items()}


class _Refused(Exception):
    """Something that no dump of variables has."""


def _decompressed(data: bytes) -> bytes:
    """Return a pickle's bytes from those of a file that may be compressed as joblib does it."""
    if data.startswith(b"\x80"):  # how a pickle begins
        return data
    stream = io.BytesIO(data)
    if data.startswith(b"\x1f\x8b"):
        with gzip.GzipFile(fileobj=stream) as file:
            out = file.read(MAX_BYTES)
    elif data.startswith(b"BZ"):
        with bz2.BZ2File(stream) as file:
            out = file.read(MAX_BYTES)
    elif data.startswith((b"\xfd7zXZ", b"\x5d\x00")):
        with lzma.LZMAFile(stream) as file:
            out = file.read(MAX_BYTES)
    elif data.startswith(b"\x78"):
        out = zlib.decompressobj().decompress(data, MAX_BYTES)
    else:
        raise _Refused("is neither a policy nor variables: no such format is known")
    if len(out) == MAX_BYTES:
        raise _Refused(f"is larger than {MAX_BYTES} bytes")
    return out


def _array(path: Path, name: str, value: Any) -> NDArray[Any]:
    array = np.asarray(getattr(value, "array", value))  # of a note on one
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{path} holds {name!r}, which is no array of numbers")
    return array.astype(array.dtype.newbyteorder("="))


class _ArrayUnpickler(pickle.Unpickler):
    """Reads a pickle of arrays as notes: objects whose attribute `array` is the array."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, encoding="latin1")
        self._names = _names(file)

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name; raises _Refused for any that arrays do not need."""
        if NUMPY_MODULES.fullmatch(module):
            module = "numpy"
        try:
            return self._names[f"{module}.{name}"]
        except KeyError:
            raise _Refused(f"asks for {module}.{name}, which no dump of variables needs") from None


def _names(file: io.BytesIO) -> dict[str, Any]:
    """Return what stands for each name in one file; made anew, since a file may alter classes."""

    class Dtype:
        """Stands for numpy.dtype: numbers of a fixed size alone."""

        def __init__(self, name: str, *_: Any) -> None:
            if not re.fullmatch(r"[biuf]\d", name):
                raise _Refused(f"holds an array of dtype {name!r}")
            self.dtype = np.dtype(name)

        def __setstate__(self, state: Any) -> None:
            if state[1] == ">":
                self.dtype = self.dtype.newbyteorder(">")

    def filled(data: Any, dtype: Any, shape: Any, order: Any) -> NDArray[Any]:
        return np.frombuffer(data, dtype.dtype).reshape(shape, order=order)

    class Array:
        """Stands for what numpy's _reconstruct returns, filled by its state."""

        array: NDArray[Any]

        def __init__(self, *_: Any) -> None:
            pass

        def __setstate__(self, state: Any) -> None:
            _, shape, dtype, is_fortran, data = state
            self.array = filled(data, dtype, shape, "F" if is_fortran else "C")

    class JoblibArray:
        """Stands for joblib's NumpyArrayWrapper: the bytes follow in the file."""

        array: NDArray[Any]

        def __setstate__(self, state: Any) -> None:
            if state.get("numpy_array_alignment_bytes") is not None:
                file.read(file.read(1)[0])
            dtype, shape = state["dtype"], state["shape"]
            data = file.read(math.prod(shape) * dtype.dtype.itemsize)
            self.array = filled(data, dtype, shape, state["order"])

    def from_buffer(data: Any, dtype: Any, shape: Any, order: str) -> Array:
        out = Array()
        out.array = filled(data, dtype, shape, order)
        return out

    def scalar(dtype: Any, data: Any) -> Array:
        return from_buffer(data, dtype, (), "C")

    def encode(text: str, _: str) -> bytes:
        return text.encode("latin1")  # how pickles of old protocols write bytes

    return {
        "numpy.dtype": Dtype,
        "numpy.ndarray": Array,
        "numpy._reconstruct": Array,
        "numpy._frombuffer": from_buffer,
        "numpy.scalar": scalar,
        "joblib.numpy_pickle.NumpyArrayWrapper": JoblibArray,
        "_codecs.encode": encode,
        "__builtin__.bytes": lambda: b"",
        "collections.OrderedDict": dict,
    }
