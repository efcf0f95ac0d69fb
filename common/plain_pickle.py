"""Pickles and structures from files that nobody vouches for: read within bounds, then checked.

A pickle may name any function to be called, claim any size, nest to any depth and refer to one
object any number of times. `PlainUnpickler` knows containers, texts and numbers, and those names
that its user gives it; it takes no more memory than the file has bytes to show for. `check`
compares what came out with a description of what belongs there.
"""

import math
import pickle
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, NamedTuple

import numpy as np

SLACK = 2**25  # bytes that a file's content may take beyond the file's own size
OPCODES = 2**20  # and one more for every 8 bytes of the file: most objects take 56 bytes or less
DEPTH = 50  # of containers in containers


class Refused(ValueError):
    """Something that no file of ours has; the message continues the sentence "the file ..."."""


class BoundedFile:
    """A binary stream of which `limit` bytes may be read.

    A read for more than are left takes no memory for them. (Python's own would.)
    """

    def __init__(self, stream: Any, limit: int, message: str) -> None:
        """Take the stream; `message` is that of the Refused which reading beyond raises."""
        self.stream, self.left, self.message = stream, limit, message

    def read(self, size: int) -> bytes:
        """Return `size` bytes, or as many as the stream has."""
        if size > self.left:
            raise Refused(self.message)
        self.left -= size
        return self.stream.read(size)

    def readline(self) -> bytes:
        """Return the bytes up to and with the next line break, or as many as are left."""
        line = self.stream.readline(self.left)
        self.left -= len(line)
        return line


class _Opcodes(dict[int, Callable[[Any], None]]):
    """What does the work of each opcode; counts those that are looked up."""

    left = 0

    def __getitem__(self, opcode: int) -> Callable[[Any], None]:
        self.left -= 1
        if self.left < 0:
            raise Refused("has too many parts")
        return super().__getitem__(opcode)


class PlainUnpickler(pickle._Unpickler):
    """Unpickles containers, texts, numbers, and the few names given.

    It is Python's, in Python: the one in C takes gigabytes for a number in the file.
    """

    def __init__(
        self,
        file: BoundedFile,
        names: Mapping[str, Any],
        storage: Callable[[Any], Any] | None = None,
    ) -> None:
        """Take the file and what stands for each name, `module.name`, in it.

        Args:
            file: is read up to the pickle's end, and no further.
            names: made anew for each file, which may alter functions and classes.
            storage: returns what stands for a persistent id; None refuses any.
        """
        super().__init__(file, encoding="latin1")
        self.names, self.storage = names, storage
        opcodes = _Opcodes(pickle._Unpickler.dispatch)
        opcodes[pickle.BYTEARRAY8[0]] = _load_bytearray
        opcodes.left = OPCODES + file.left // 8
        self.dispatch = opcodes  # type: ignore[misc]  # one for each file, since it counts

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name; raises Refused for any that is not given."""
        try:
            return self.names[f"{module}.{name}"]
        except KeyError:
            asked = f"{module}.{name}"[:80]
            raise Refused(f"asks for {asked}, which no such file needs") from None

    def persistent_load(self, pid: Any) -> Any:
        """Return what stands for a persistent id; raises Refused where there are none."""
        if self.storage is None:
            raise Refused("asks for something outside of it")
        return self.storage(pid)

    def get_extension(self, code: int) -> None:
        """Raise Refused: an extension's code is a name that other programs have registered."""
        raise Refused(f"asks for extension {code}, which no such file needs")


def _load_bytearray(unpickler: Any) -> None:
    """Read a bytearray; Python's own takes its memory before it looks for the bytes."""
    size = int.from_bytes(unpickler.read(8), "little")
    unpickler.append(bytearray(unpickler.read(size)))


def zip_members(file: BinaryIO, size: int) -> list[zipfile.ZipInfo]:
    """Return the members of a zip archive of `size` bytes, if its directory is not too large.

    Python takes 600 bytes for an entry, of which 46 may be in the file; a real one has over 128.
    """
    file.seek(0)
    count = sum(chunk.count(b"PK\x01\x02") for chunk in iter(lambda: file.read(2**20), b""))
    if count > 10_000 + size // 128:
        raise Refused("has too many parts")
    with zipfile.ZipFile(file) as archive:
        return archive.infolist()


# ---- Structures ---------------------------------------------------------------------------------


class Is(NamedTuple):
    """A condition on a value, in words and as a function."""

    words: str
    holds: Callable[[Any], Any]


def is_number(value: Any) -> bool:
    """Return whether `value` is an int or a float that a computer's own numbers can hold."""
    return type(value) is float or (type(value) is int and abs(value) < 2**63)


def is_finite_array(value: Any) -> bool:
    """Return whether `value` is a NumPy array of finite numbers."""
    return (
        isinstance(value, np.ndarray)
        and value.dtype.kind in "biuf"
        and bool(np.isfinite(value).all())
    )


def is_setting(value: Any) -> bool:
    """Return whether `value` is of texts, numbers and None, in lists and dicts: what JSON holds."""
    if isinstance(value, list | dict):
        return all(map(is_setting, value.values() if isinstance(value, dict) else value))
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, str | bool) or is_number(value)


TEXT = Is("a text", lambda x: isinstance(x, str))
COUNT = Is("a whole number of at least 0", lambda x: type(x) is int and 0 <= x < 2**63)
NUMBER = Is("a finite number", lambda x: is_number(x) and math.isfinite(x))
FLAG = Is("true or false", lambda x: x in (0, 1) and isinstance(x, int))
SETTING = Is("a setting", is_setting)
DICT = Is("a dictionary", lambda x: isinstance(x, dict))
FINITE = Is("an array of finite numbers", is_finite_array)
ANY_NAME = "*"


def check(value: Any, spec: Any, name: str = "it") -> None:
    """Compare a value with what it should be.

    Args:
        value: of dicts, lists, and what is in them.
        spec: an `Is`; [spec] for a list of any length; or a dict of specs by key, where `key?` may
            be missing, or None, which is dropped; `*` stands for all keys; further keys are no
            concern of ours.
        name: of the value.

    Raises:
        Refused: naming the first part that is something else.
    """
    if isinstance(spec, dict):
        check(value, DICT, name)
        if ANY_NAME in spec:
            spec = dict.fromkeys(value, spec[ANY_NAME])
        for key, part in spec.items():
            is_optional, key = key.endswith("?"), key.removesuffix("?")
            if is_optional and value.get(key) is None:
                value.pop(key, None)
                continue
            if key not in value:
                raise Refused(f"{key} is missing" + (f" in {name}" if name != "it" else ""))
            check(value[key], part, key)
    elif isinstance(spec, list):
        check(value, Is("a list", lambda x: isinstance(x, list)), name)
        for item in value:
            check(item, spec[0], name)
    elif not spec.holds(value):
        raise Refused(f"{name} is {_in_words(value)}, not {spec.words}")


def _in_words(value: Any) -> str:
    """Return what a value is, in a few words."""
    if isinstance(value, np.ndarray):
        is_finite = value.dtype.kind not in "fc" or np.isfinite(value).all()
        contents = "" if is_finite else " with NaN or infinity"
        return f"an array of {value.dtype} of shape {value.shape}{contents}"
    if value is None or isinstance(value, bool | int | float | str):
        text = repr(value) if not isinstance(value, int) or abs(value) < 2**63 else "out of range"
        return text if len(text) < 40 else f"{text[:40]}..."
    return f"a {type(value).__name__}"
