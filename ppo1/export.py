"""A policy as one file for programs that know nothing of this package: TorchScript or ONNX.

    python -m ppo1.export runs/hopper -o hopper.onnx

The exported function takes raw observations `ob`, (N, *ob_shape) for any N, uint8 if they are
images and else float32, and refuses any other. It returns the likeliest actions `ac`,
(N, *ac_shape), and the values `vpred`, (N,) float32. Preprocessing and observation statistics are
inside.
"""

import copy
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common.cmd_util import ArgumentParser, describe
from common.files import absolute_path, printable
from ppo1.policy import TorchPolicy
from ppo1.saved_policy import load_policy

SUFFIXES = (".pt", ".pt2", ".onnx")


class DeterministicPolicy(nn.Module):
    """From observations to the likeliest actions and the values."""

    def __init__(self, pi: TorchPolicy) -> None:
        super().__init__()
        self.pi = pi

    def forward(self, ob: Tensor) -> tuple[Tensor, Tensor]:
        """Return actions (N, *ac_shape) and values (N,) for raw observations (N, *ob_shape)."""
        pdparam, vpred = self.pi.pdparam_and_vpred(ob)
        mode = self.pi.pdtype.pdfromflat(pdparam).mode()
        return mode.to(self.pi.pdtype.sample_dtype()), vpred


class Checked(nn.Module):
    """A traced network that refuses other observations: a trace would broadcast them."""

    def __init__(self, network: Any, example: Tensor) -> None:
        super().__init__()
        self.network = network
        self.ob_shape: list[int] = list(example.shape[1:])
        self.dtype = example.dtype
        shape = ", ".join(map(str, ["N", *self.ob_shape]))
        self.need = f"[{shape}], {str(self.dtype).removeprefix('torch.')}"

    def forward(self, ob: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the network does; raises for observations of another shape or dtype."""
        if ob.dim() == 0 or list(ob.shape[1:]) != self.ob_shape or ob.dtype != self.dtype:
            raise ValueError(f"got observations of shape {list(ob.shape)}; need {self.need}")
        return self.network(ob)


def export_policy(pi: TorchPolicy, path: Path) -> None:
    """Write `pi` to `path`: TorchScript (.pt), torch.export's program (.pt2) or ONNX (.onnx).

    The file's folder is made if needed, and `pi` is left as it is.

    Raises:
        ValueError: for another suffix.
        ModuleNotFoundError: for .onnx without the packages onnx and onnxscript.
        OSError: if the file cannot be written.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: need a name that ends in {', '.join(SUFFIXES)}")
    path = Path(absolute_path(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    network = DeterministicPolicy(copy.deepcopy(pi)).cpu().eval().requires_grad_(False)
    dtype = torch.uint8 if pi.ob_space.dtype == np.uint8 else torch.float32
    example = (torch.zeros(2, *pi.ob_shape, dtype=dtype),)
    shapes = {"ob": {0: torch.export.Dim("N")}}
    # That TorchScript is deprecated, and the statistics constants, is no news here.
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        if path.suffix == ".pt":
            checked = Checked(torch.jit.trace(network, example), *example)
            torch.jit.freeze(torch.jit.script(checked.eval())).save(str(path))
        elif path.suffix == ".pt2":
            torch.export.save(torch.export.export(network, example, dynamic_shapes=shapes), path)
        else:
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)
            torch.onnx.export(
                network, example, path, input_names=["ob"], output_names=["ac", "vpred"],
                dynamic_shapes=shapes, dynamo=True, external_data=False, verbose=False,
            )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Export as the command line `argv` says; None is the process's own."""
    parser = ArgumentParser(
        prog="python -m ppo1.export", description="Write a policy for other programs."
    )
    parser.add_argument(
        "path", type=absolute_path, help="a policy file, a run's folder or a checkpoint"
    )
    formats = ".pt (TorchScript), .pt2 (torch.export) or .onnx"
    parser.add_argument(
        "-o", "--output", type=absolute_path, required=True, metavar="FILE", help=formats
    )
    args = parser.parse_args(argv)
    try:
        pi = load_policy(args.path)
        export_policy(pi, Path(args.output))
    except ModuleNotFoundError as error:
        parser.error(f"module {error.name!r} is missing: pip install onnx onnxscript")
    except (ValueError, OSError) as error:
        parser.error(describe(error))
    except RuntimeError as error:  # torch's own, for a file that cannot be written
        parser.error(f"cannot write {args.output}: {str(error).splitlines()[0]}")
    sys.stdout.write(printable(f"Wrote {args.output}\n", sys.stdout))


if __name__ == "__main__":
    main()
