"""Other programs' files that are given for policies: what they are, and how to bring them over."""

import os
import re
import zipfile
from pathlib import Path
from typing import NamedTuple

BY_NAME = "pi.load_variables() takes them by the names that pi.variables() lists"
AGAIN = "then ppo1.save_policy(path, pi) makes a policy file"
TENSORFLOW = (
    "which only TensorFlow reads: in the program that wrote it, save the variables by baselines' "
    "tf_util.save_variables(path) or numpy.savez(path, **{v.name: value}), and give that file"
)
STABLE = f"whose networks have other names: give its arrays to a policy, {BY_NAME}; {AGAIN}"
EXPORTED = (
    "exported for other programs, from which nothing trains on: give the policy file or the run's "
    "folder that it was made from"
)


class Format(NamedTuple):
    """A format: what it is, how to bring it over, and by what to know it.

    `name` is of the file, or of one in a folder; `start` its first bytes; `member` is one of the
    names in a zip archive. All are regular expressions, of which one must match.
    """

    what: str
    remedy: str
    name: str | None = None
    start: bytes | None = None
    member: str | None = None


# The first that fits; what is more special stands before what is more general.
FORMATS = (
    Format("a TensorFlow checkpoint", TENSORFLOW,
           name=r"checkpoint|.+\.(index|meta|data-\d{5}-of-\d{5})"),
    Format("a TensorFlow SavedModel", TENSORFLOW, name=r"saved_model\.pb(txt)?"),
    Format("a Stable-Baselines3 model", STABLE, member=r"policy\.pth|pytorch_variables\.pth"),
    Format("a Stable-Baselines model", STABLE, member=r"parameter_list"),
    Format("a Keras model",
           f"whose weights Keras gives as arrays, model.get_weights(): {BY_NAME}; {AGAIN}",
           start=rb"\x89HDF\r\n", member=r"model\.weights\.h5"),
    Format("a TorchScript network", EXPORTED, member=r"[^/]+/constants\.pkl"),
    Format("a network of torch.export", EXPORTED, member=r"[^/]+/archive_format|[^/]+/models/.*"),
    Format("an ONNX network", EXPORTED, name=r".+\.onnx", start=rb"\x08.\x12\x07pytorch"),
    Format("what torch.save wrote",
           "which says nothing of its network: construct that, pi.load_state_dict(torch.load(path, "
           f"weights_only=True)), {AGAIN}",
           start=rb"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19", member=r"[^/]+/data\.pkl"),
    Format("a safetensors file",
           f"whose arrays safetensors.numpy.load_file(path) gives: {BY_NAME}; {AGAIN}",
           start=rb".{8}\{\"", name=r".+\.safetensors"),
    Format("a single NumPy array", "and a policy has several: numpy.savez(path, **{name: array})",
           start=rb"\x93NUMPY"),
)  # fmt: skip


def foreign_format(path: Path) -> str | None:
    """Return a sentence on a file, a folder, or the name that TensorFlow has for its three files.

    None stands for a format that is not known.
    """
    start, names, members = b"", [path.name], []
    try:
        if path.is_dir():
            names = os.listdir(path)
        elif not path.exists():
            names = [name for name in os.listdir(path.parent) if name.startswith(f"{path.name}.")]
        else:
            with open(path, "rb") as file:
                start = file.read(64)
                if start.startswith(b"PK"):
                    with zipfile.ZipFile(file) as archive:
                        members = archive.namelist()
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        pass  # what is known by then may do
    for what, remedy, name, begin, member in FORMATS:
        if (
            (name and any(re.fullmatch(name, each) for each in names))
            or (begin and re.match(begin, start, re.DOTALL))
            or (member and any(re.fullmatch(member, each) for each in members))
        ):
            return f"{path} is {what}, {remedy}"
    return None
