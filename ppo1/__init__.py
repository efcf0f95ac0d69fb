"""PPO as one process per actor under MPI: OpenAI baselines' `ppo1` on PyTorch."""

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ppo1.saved_policy import load_policy as load_policy
    from ppo1.saved_policy import load_variables as load_variables
    from ppo1.saved_policy import save_policy as save_policy

__all__ = ["load_policy", "load_variables", "save_policy"]
SUBMODULES = [
    "cnn_policy", "export", "hyperparameters", "learner_state", "mlp_policy", "policy",
    "pposgd_simple", "saved_policy", "update",
]  # fmt: skip


def _check_common() -> None:
    """Raise ImportError if `common` is not the package next to this one but somebody else's."""
    spec = sys.modules["common"].__spec__ if "common" in sys.modules else find_spec("common")
    found = spec.origin if spec else None
    ours = Path(__file__).resolve().parent.with_name("common")
    if found is None or Path(found).resolve().parent != ours:
        raise ImportError(
            f"ppo1 needs its own package 'common', {ours}, but Python finds "
            + (f"another one first, {found}: rename that, or start elsewhere" if found else "none")
        )


_check_common()


def __getattr__(name: str) -> Any:
    # Not before they are asked for: importing a package loads no torch.
    if name in __all__:
        from ppo1 import saved_policy

        return getattr(saved_policy, name)
    if name in SUBMODULES:
        return import_module(f"ppo1.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *SUBMODULES, "__doc__", "__file__", "__name__", "__path__"])
