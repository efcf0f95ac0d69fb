"""What decides a run's last bits: code, packages, processor, MPI, and how the ranks are placed.

Checkpoints hold it, so that a resumed run says "exactly" only where all of it is the same.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import inspect
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch

from common.mpi import MPI, mpi_library

PACKAGES = (
    "torch", "numpy", "gymnasium", "mujoco", "ale-py", "opencv-python-headless", "opencv-python",
    "gymnasium-robotics", "mpi4py",
)  # fmt: skip
NAMED_FILES = 3  # of those that differ


@functools.cache
def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that decide what a run gives."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def source_digests(*functions: Any, env: gym.Env | None = None, pi: Any = None) -> dict[str, str]:
    """Return {file: SHA-256, its first 12 digits} of the source that a run consists of.

    Args:
        functions: of the script, and of the algorithm. All modules next to the latter count, and
            so do those of this package.
        env: whose classes' modules count, its wrappers' too.
        pi: a policy, likewise.
    """
    paths = {f"common/{path.name}": path for path in Path(__file__).parent.glob("*.py")}
    classes = [each for layer in (*_layers(env), pi) for each in type(layer).__mro__]
    for thing in (*functions, *classes):
        with contextlib.suppress(TypeError, OSError):  # built in, or from a notebook
            path, module = Path(inspect.getfile(thing)), thing.__module__.replace(".", "/")
            paths[path.name if module == "__main__" else f"{module}.py"] = path
            if thing in functions and "/" in module:  # a script may lie among anything
                package = module.rpartition("/")[0]
                paths |= {f"{package}/{near.name}": near for near in path.parent.glob("*.py")}
    digests = {}
    for name, path in paths.items():
        with contextlib.suppress(Exception):  # the ranks are about to be compared
            digests[name] = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    return digests


def _layers(env: Any) -> Iterator[Any]:
    while env is not None:
        yield env
        env = getattr(env, "env", None)


def machine_facts(device: torch.device, comm: MPI.Comm) -> dict[str, str]:
    """Return what decides the last bits beside code and packages, the same on all ranks.

    Collective: every rank must call it.
    """
    here = comm.allgather((_processor(device), MPI.Get_processor_name()))
    hosts = [host for _, host in here]
    facts = {
        "processor": " and ".join(dict.fromkeys(name for name, _ in here)),
        "MPI library": mpi_library(),
    }
    if len(hosts) > 2:  # of two summands the order does not matter
        numbers = {host: str(number) for number, host in enumerate(dict.fromkeys(hosts), 1)}
        facts["machines of the ranks"] = " ".join(numbers[host] for host in hosts)
    return facts


def _processor(device: torch.device) -> str:
    """Return the name of what computes, and which of its vectors torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{name} with {torch.backends.cpu.get_cpu_capability()}"


def differences(saved: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Return what differs between two dicts of names and values: "numpy now 2 instead of 1"."""
    names = [*here, *(name for name in saved if name not in here)]
    return [
        f"{name} now {here.get(name)} instead of {saved.get(name)}"
        for name in names
        if here.get(name) != saved.get(name)
    ]


def changed_files(saved: Mapping[str, str], here: Mapping[str, str]) -> str:
    """Return the names of files whose digests differ, "" if there are none."""
    names = sorted(name for name in {*saved, *here} if saved.get(name) != here.get(name))
    more = f" and {len(names) - NAMED_FILES} more" * (len(names) > NAMED_FILES)
    return ", ".join(names[:NAMED_FILES]) + more
