"""MPI, imported in this one place: where there is no MPI library, one sentence says what to do."""

import sys
from types import TracebackType

try:
    from mpi4py import MPI as MPI
except (ImportError, RuntimeError) as error:  # which of them depends on what was looked for
    lines = [line for line in str(error).splitlines() if "No such file" not in line]
    details = f" ({lines[-1]})" if lines and lines[-1] != "cannot load MPI library" else ""
    NO_MPI = (
        f"no MPI library was found{details}: pip install 'ppo1[mpich]', "
        "or in a checkout pip install mpich"
    )

    def _say_it_without_traceback(
        kind: type[BaseException], value: BaseException, traceback: TracebackType | None
    ) -> None:
        if isinstance(value, ImportError) and value.msg == NO_MPI:
            print(value.msg, file=sys.stderr)
        else:
            _hook(kind, value, traceback)

    _hook, sys.excepthook = sys.excepthook, _say_it_without_traceback
    raise ImportError(NO_MPI) from None


def mpi_library() -> str:
    """Return the name and version of the MPI library."""
    return " ".join(MPI.Get_library_version().split("\n")[0].split())
