"""Damages to files, by seeded random: of their bytes, their structure, and the sizes they claim."""

import copy
import io
import pickle
import struct
import zipfile
import zlib

import joblib
import numpy as np
import torch

from common.checkpoint import read_checkpoint, to_plain
from tests.test_checkpoint import sealed

HUGE = 10**9


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


JUNK = [
    None, True, -1, 0, 3, 2**40, 2**70, 10**400, 0.5, -1e300, float("nan"), float("inf"), "", "abc",
    "x" * 5000, "1", [], [1], [[]], {}, {"a": 1}, b"", b"\x00\x01", nested(30), nested(200),
    np.zeros(0, np.float32), np.zeros(3), np.ones((), bool),
    np.full(3, np.nan, np.float32), np.arange(4, dtype=np.int64), np.zeros((2, 2), np.uint8),
]  # fmt: skip


def places(tree, path=()):
    """Return the paths of all parts of a tree of dicts and lists."""
    keys = range(len(tree)) if isinstance(tree, list) else tree if isinstance(tree, dict) else ()
    found = [path] if path else []
    for key in list(keys)[:40]:
        found += places(tree[key], (*path, key))
    return found


def altered(rng, tree):
    """Return a copy of a tree with one to three parts replaced, missing, renamed or reshaped."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        all_places = places(tree)
        if not all_places:
            break
        # Of each depth alike: most parts are a generator's numbers
        depth = rng.choice(sorted({len(path) for path in all_places}))
        *path, last = rng.choice([path for path in all_places if len(path) == depth])
        parent = tree
        for key in path:
            parent = parent[key]
        value = parent[last]
        how = rng.random()
        if how < 0.15:
            del parent[last]
        elif how < 0.2 and isinstance(parent, dict):
            parent[f"{last}x"] = parent.pop(last)
        elif how < 0.4 and isinstance(value, np.ndarray) and value.size:
            parent[last] = rng.choice([
                value.astype(np.float64), value.astype(bool), value[..., None], value[:0]
                if value.ndim else value, value.ravel()[:1], np.concatenate([value.ravel()] * 2),
                (value * np.float32("nan")).astype(np.float32), value.reshape(-1),
            ])  # fmt: skip
        elif how < 0.5 and isinstance(value, list) and value:
            parent[last] = rng.choice([value[:-1], value * 2, value[::-1]])
        elif how < 0.6 and type(value) is int:
            parent[last] = rng.choice(
                [-value, value + 1, value * 10**6, float(value % 9), str(value)]
            )
        else:
            parent[last] = rng.choice(JUNK)
    return tree


def torch_file(tree):
    """Return a checkpoint of any content, with a right checksum."""
    buffer = io.BytesIO()
    try:
        torch.save(to_plain(tree), buffer)
    except (RecursionError, TypeError, ValueError):
        torch.save(tree, buffer)
    return sealed(buffer.getvalue())


def torch_saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def rezipped(data, change, compression=zipfile.ZIP_STORED):
    """Return a zip archive with `change(name, bytes)` for each member, None to leave it out."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", compression) as new:
        for name in old.namelist():
            content = change(name, old.read(name))
            if content is not None:
                new.writestr(name, content)
    return out.getvalue()


def bytes_altered(rng, data):
    """Return bytes with a bit flipped, cut, or with a block lost, doubled, zeroed or swapped."""
    data = bytearray(data)
    at, size = rng.randrange(len(data)), rng.choice([1, 7, 64, 1000])
    how = rng.choice(["flip", "cut", "lose", "double", "zero", "random", "swap", "append"])
    if how == "flip":
        data[at] ^= 1 << rng.randrange(8)
    elif how == "cut":
        del data[at:]
    elif how == "lose":
        del data[at : at + size]
    elif how == "double":
        data[at:at] = data[at : at + size]
    elif how == "zero":
        data[at : at + size] = bytes(len(data[at : at + size]))
    elif how == "random":
        data[at : at + size] = rng.randbytes(len(data[at : at + size]))
    elif how == "swap":
        data = data[at:] + data[:at]
    else:
        data += rng.randbytes(size)
    return bytes(data)


def payload_altered(rng, data):
    """Return a checkpoint whose archive is altered, with a right checksum."""
    payload = data[52:]
    how = rng.randrange(4)
    if how == 0:
        return sealed(bytes_altered(rng, payload))
    if how == 1:
        return sealed(rezipped(payload, lambda name, content: content, zipfile.ZIP_DEFLATED))
    names = zipfile.ZipFile(io.BytesIO(payload)).namelist()
    one = rng.choice([n for n in names if n.endswith("data.pkl") or "/data/" in n][:20])
    change = (lambda c: None) if rng.random() < 0.2 else (lambda c: bytes_altered(rng, c or b"0"))
    return sealed(rezipped(payload, lambda name, c: change(c) if name == one else c))


# ---- Files that claim more than they hold -------------------------------------------------------


def npy(shape, content=b"", dtype="<f4"):
    out = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(out, header)
    return out.getvalue() + content


def npz(compression=zipfile.ZIP_DEFLATED, **members):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return out.getvalue()


def many_members(count):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for number in range(count):
            archive.writestr(str(number), b"")
    return out.getvalue()


def pickled(opcodes):
    return b"\x80\x04" + opcodes + b"."


def tensor_claiming(shape, stride, count=2):
    """Return a checkpoint of a tensor whose shape, strides and storage size are as given."""

    def number(x):
        return pickle.LONG1 + bytes([9]) + x.to_bytes(9, "little", signed=True)

    def several(xs):
        return b"(" + b"".join(map(number, xs)) + b"t"

    storage = b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpu" + number(count) + b"tQ"
    arguments = b"(" + storage + number(0) + several(shape) + several(stride)
    arguments += b"\x89ccollections\nOrderedDict\n)Rt"
    pickled_dict = b"\x80\x02}U\x01actorch._utils\n_rebuild_tensor_v2\n" + arguments + b"Rs."
    payload = torch_saved({"a": torch.zeros(2)})
    return sealed(rezipped(payload, lambda n, c: pickled_dict if n.endswith("data.pkl") else c))


def shared_lists(levels):
    """Return a list of 10**levels parts, which a pickle writes in a few bytes a level."""
    value = [0] * 10
    for _ in range(levels - 1):
        value = [value] * 10
    return value


def bomb(name, size=2**22):
    """Return a file by name, each of which would take gigabytes if it was believed."""
    if name.startswith("npz"):
        zeros = npy((160 * size,), bytes(640 * size))
        return {
            "npz of zeros": lambda: npz(a=zeros),
            "npz that claims": lambda: npz(a=npy((HUGE, HUGE))),
            "npz that claims less": lambda: npz(a=npy((2,), bytes(1000))),
            "npz of objects": lambda: npz(a=npy((3,), bytes(24), "|O")),
            "npz by bzip2": lambda: npz(zipfile.ZIP_BZIP2, a=zeros[: len(zeros) // 16]),
            "npz of empty members": lambda: many_members(30_000),
        }[name]()
    if name.startswith("dump"):
        zeros = {"a": np.zeros(160 * size, np.float32)}
        return {
            "dump of zeros": lambda: zlib.compress(pickle.dumps(zeros, 4), 1),
            "dump that claims": lambda: pickle.dumps({"a": np.zeros(2)}, 2).replace(
                b"K\x02\x85", b"J\xff\xff\xff\x7f\x85"),
            "dump of one array by many names": lambda: pickle.dumps(
                dict.fromkeys(map(str, range(2000)), np.zeros(size // 8)), 4),
            "dump of a far memo": lambda: pickled(b"}r\xff\xff\xff\x0f"),
            "dump of a long text": lambda: pickled(b"\x8d" + struct.pack("<Q", 2**40) + b"abc"),
            "dump of long bytes": lambda: pickled(b"\x8e" + struct.pack("<Q", 2**40) + b"abc"),
            "dump of a bytearray": lambda: pickled(b"\x96" + struct.pack("<Q", 2**31) + b"abc"),
            "dump of a frame": lambda: pickled(b"\x95" + struct.pack("<Q", 2**40) + b"abc"),
            "dump of nested lists": lambda: pickle.dumps({"a": shared_lists(9)}, 2),
            "dump of many lists": lambda: pickled(b"(" + b"]" * (size) + b"l"),
            "dump of texts encoded": lambda: pickled(
                b"c_codecs\nencode\n\x94" + b"\x8d" + struct.pack("<Q", size) + b"a" * size
                + b"\x94U\x06latin1\x94" + b"h\x00h\x01h\x02\x86R" * 1000),
            "dump of depth": lambda: pickled(b"]" * 100_000 + b"a" * 99_999),
        }[name]()  # fmt: skip
    return {
        "checkpoint by strides": lambda: tensor_claiming((HUGE,), (0,)),
        "checkpoint by shape": lambda: tensor_claiming((HUGE,), (1,)),
        "checkpoint by storage": lambda: tensor_claiming((2**28,), (1,), 2**28),
        "checkpoint by many dimensions": lambda: tensor_claiming((1,) * 5000, (1,) * 5000),
        "checkpoint, compressed": lambda: sealed(rezipped(
            torch_saved({"a": torch.zeros(16 * size)}), lambda n, c: c, zipfile.ZIP_DEFLATED)),
        "checkpoint of nested lists": lambda: sealed(torch_saved({"a": shared_lists(9)})),
        "checkpoint of depth": lambda: torch_file({"a": nested(400)}),
        "checkpoint of one tensor many times": lambda: sealed(torch_saved(
            {"a": [torch.zeros(size // 4)] * 1000})),
        "checkpoint by bytearray": lambda: sealed(rezipped(
            torch_saved({"a": 1}), lambda n, c: b"\x80\x02cbuiltins\nbytearray\n"
            b"J\x00\x00\x00\x7f\x85R." if n.endswith("data.pkl") else c)),
    }[name]()  # fmt: skip


BOMBS = [
    "npz of zeros", "npz that claims", "npz that claims less",
    "npz of objects", "npz by bzip2", "npz of empty members", "dump of zeros", "dump that claims",
    "dump of one array by many names", "dump of a far memo", "dump of a long text",
    "dump of long bytes", "dump of a bytearray", "dump of a frame", "dump of nested lists",
    "dump of many lists", "dump of texts encoded", "dump of depth", "checkpoint by strides",
    "checkpoint by shape", "checkpoint by storage", "checkpoint by many dimensions",
    "checkpoint, compressed", "checkpoint of nested lists", "checkpoint of depth",
    "checkpoint of one tensor many times", "checkpoint by bytearray",
]  # fmt: skip


def mutated(rng, path):
    """Return the bytes of a checkpoint or policy file, damaged in one of the ways above."""
    data = path.read_bytes()
    how = rng.random()
    if how < 0.15:
        return bytes_altered(rng, data)
    if how < 0.3:
        return payload_altered(rng, data)
    return torch_file(altered(rng, read_checkpoint(path)))


def mutated_dump(rng, variables):
    """Return the bytes of an `.npz`, a joblib dump or a pickle of variables, damaged."""
    out = io.BytesIO()
    structure = rng.random() < 0.5
    tree = altered(rng, variables) if structure else variables
    kind = rng.choice(["npz", "joblib", "zlib", "pickle"])
    try:
        if kind == "npz":
            np.savez(out, **{str(name): np.asarray(value) for name, value in tree.items()})
        elif kind == "pickle":
            out.write(pickle.dumps(tree, rng.choice([2, 3, 4, 5])))
        else:
            joblib.dump(tree, out, compress=0 if kind == "joblib" else ("zlib", 3))
    except (RecursionError, ValueError, AttributeError, TypeError):  # a tree that none can write
        out.write(b"nothing")
    return out.getvalue() if structure else bytes_altered(rng, out.getvalue())
