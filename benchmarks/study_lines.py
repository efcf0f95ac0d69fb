"""What is run for the learning results: the lines of the four studies' figures."""

from dataclasses import dataclass

from common.misc_util import counted

MUJOCO = (
    "HalfCheetah-v4", "Hopper-v4", "Walker2d-v4", "Swimmer-v4", "Reacher-v4",
    "InvertedPendulum-v4", "InvertedDoublePendulum-v4",
)  # fmt: skip
# Labels of the Atari runs that are like the paper's, and of those with the default preset
PAPER_LABEL, DEFAULT_LABEL = "preset paper, 8 ranks", "preset ppo1, 2 ranks"


@dataclass(frozen=True)
class Line:
    """The runs of one line in a figure: of one environment, with the same flags.

    Attributes:
        label: of the line.
        env: environment id.
        group: folder of the runs in OUT, where they lie in ENV/seedN.
        argv: the script, and what precedes the other flags.
        timesteps: at which a run is finished, or pauses.
        limit: the flag for that.
        is_timed: whether wall time is a result, so that nothing else is to run beside it.
    """

    label: str
    env: str
    group: str
    argv: tuple[str, ...]
    timesteps: int = 1_000_000
    limit: str = "--num-timesteps"
    is_timed: bool = False


def ranks_line(env: str, ranks: int, label: str = "") -> Line:
    """Return the line of one number of ranks."""
    argv = ("run_mujoco.py", "--num-procs", str(ranks))
    label = label or counted(ranks, "rank")
    return Line(label, env, f"ranks/num-procs{ranks}", argv, is_timed=True)


def atari_line(
    label: str,
    game: str,
    group: str,
    *argv: str,
    script: str = "run_atari.py",
    stop_timesteps: int = 3_000_000,
) -> Line:
    """Return the line of a game's runs, which pause long before their schedules have ended."""
    return Line(
        label,
        f"{game}NoFrameskip-v4",
        f"atari/{group}",
        (script, *argv),
        stop_timesteps,
        "--stop-timesteps",
        is_timed=True,
    )


PAPER_FLAGS = ("--num-procs", "8", "--preset", "paper")
DEFAULT_FLAGS = ("--num-procs", "2")


def variant_line(label: str, variant: str, *flags: str) -> Line:
    """Return the line of a variant's runs on Pong, with the paper's hyperparameters and flags."""
    group = "-".join(["paper-np8", variant, *(flag.strip("-") for flag in flags)])
    argv = variant, *PAPER_FLAGS, *flags
    label = f"{PAPER_LABEL}, {label}"
    return atari_line(label, "Pong", group, *argv, script="benchmarks/atari_variants.py")


STUDIES = {
    "mujoco": [Line("ours", env, "mujoco", ("run_mujoco.py",)) for env in MUJOCO],
    "ranks": [
        ranks_line(env, ranks)
        for env in ("HalfCheetah-v4", "Hopper-v4", "InvertedPendulum-v4")
        for ranks in (1, 2, 4)
    ],
    "ablations": [
        line
        for env in ("HalfCheetah-v4", "Hopper-v4")
        for line in (
            ranks_line(env, 1, "ppo1"),
            *(
                Line(argv[-1].strip("-"), env, f"ablations/{argv[-1].strip('-')}", argv)
                for argv in (
                    ("run_mujoco.py", "--bootstrap-truncated"),
                    ("benchmarks/variants.py", "torch-adam"),
                    ("benchmarks/variants.py", "stored-logp"),
                )
            ),
        )
    ]
    + [
        atari_line("ppo1", "Pong", "ppo1-np2", *DEFAULT_FLAGS, stop_timesteps=1_000_000),
        atari_line("frame-stack-1", "Pong", "ppo1-np2-frame-stack-1", *DEFAULT_FLAGS,
                   "--frame-stack", "1", stop_timesteps=1_000_000),
    ],
    "atari": [
        atari_line(PAPER_LABEL, "Pong", "paper-np8", *PAPER_FLAGS),
        atari_line(DEFAULT_LABEL, "Pong", "ppo1-np2", *DEFAULT_FLAGS),
        variant_line("orthogonal", "orthogonal"),
        variant_line("clipped value", "clipped-value"),
        variant_line("black", "black-background"),
        variant_line("black, 1 frame", "black-background", "--frame-stack", "1"),
        atari_line(PAPER_LABEL, "Breakout", "paper-np8", *PAPER_FLAGS, stop_timesteps=1_000_000),
    ],
}  # fmt: skip
SEEDS = {"mujoco": 5, "ranks": 3, "ablations": 3, "atari": 1}
