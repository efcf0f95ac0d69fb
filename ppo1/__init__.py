"""PPO as one process per actor under MPI: OpenAI baselines' `ppo1` on PyTorch."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ppo1.saved_policy import load_policy as load_policy
    from ppo1.saved_policy import load_variables as load_variables
    from ppo1.saved_policy import save_policy as save_policy

__all__ = ["load_policy", "load_variables", "save_policy"]


def __getattr__(name: str) -> Any:
    # Not before they are asked for: importing a package loads no torch.
    if name in __all__:
        from ppo1 import saved_policy

        return getattr(saved_policy, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
