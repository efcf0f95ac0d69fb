"""A run's numbers on Weights & Biases, under CleanRL's flags, when `--track` asks for it."""

import argparse
import math
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common import logger
from common.files import replacing


class WandbOutputFormat(logger.KVWriter):
    """What TensorBoard gets, sent to Weights & Biases, with `global_step` as the x axis.

    A run that goes on in its folder goes on there too: `wandb-id` holds its id.
    """

    name = "Weights & Biases"

    def __init__(
        self,
        folder: Path,
        *,
        project: str,
        entity: str | None,
        config: Mapping[str, Any],
        append: bool,
        quiet: bool = False,
    ) -> None:
        """Begin the run, or go on with it.

        Args:
            folder: the run's; wandb keeps its own files there.
            project: made if there is none of that name.
            entity: the user or team; None is the user's default.
            config: the run's arguments.
            append: go on with the folder's run, if it has been tracked.
            quiet: have wandb print nothing.

        Raises:
            ImportError: wandb is missing.
            ValueError: wandb does not start, for want of a login, say.
        """
        import wandb

        id_file = folder / "wandb-id"
        if not (append and id_file.exists()):
            with replacing(id_file) as file:
                file.write(secrets.token_hex(4).encode() + b"\n")
        try:
            self.run = wandb.init(
                project=project,
                entity=entity,
                config=dict(config),
                name=folder.name,
                dir=str(folder),
                id=id_file.read_text(encoding="utf-8").strip(),
                resume="allow",
                settings=wandb.Settings(console="off", silent=quiet),  # log.txt has the console
            )
        except wandb.Error as error:
            raise ValueError(f"--track in {folder}: {error}") from error
        self.run.define_metric("*", step_metric="global_step")

    def writekvs(self, kvs: Mapping[str, Any]) -> None:
        """Send one iteration's numbers; those that are not finite are left out."""
        scalars = {key: x for key, x in logger.scalars_of(kvs).items() if math.isfinite(x)}
        if "TimestepsSoFar" in scalars:
            scalars["global_step"] = scalars["TimestepsSoFar"]
        self.run.log(scalars)

    def close(self) -> None:
        """End the run, once all is sent."""
        self.run.finish()


def check_tracking() -> None:
    """Raise ImportError if wandb is missing, ValueError if nobody is logged in."""
    import wandb

    try:
        if os.environ.get("WANDB_MODE", "online") == "online":
            wandb.login()
    except wandb.Error as error:
        raise ValueError(f"--track: {error}") from error


def track(args: argparse.Namespace, folder: Path, *, append: bool) -> None:
    """Have the current logger send its numbers too. Raises as WandbOutputFormat does."""
    logger.get_current().output_formats.append(
        WandbOutputFormat(
            folder,
            project=args.wandb_project_name,
            entity=args.wandb_entity,
            config=vars(args),
            append=append,
            quiet=args.quiet,
        )
    )
