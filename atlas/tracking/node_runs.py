"""Several nodes in one wandb run: each further node adds the metrics of its own machine, by wandb's shared mode."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from atlas.config import Config, ModelManagementConfig
from atlas.registry.client import import_wandb
from atlas.registry.wandb_variables import effective_mode
from atlas.tracking.sinks.queued import QueuedSink, warn_switched_off
from atlas.tracking.sinks.wandb import RunIdentity, WandbSink
from atlas.tracking.tracker import RunTracker

if TYPE_CHECKING:
    from accelerate import Accelerator


class SharedNode:
    """This machine's part in a wandb run that another machine leads. It logs nothing else."""

    def __init__(self, config: Config, run_dir: Path, wandb_id: str, node: int) -> None:
        """node: 1, 2, …; `run_dir` gets wandb's files, in a folder per node if it is shared."""
        self._timeout = config.logging.exit_timeout_seconds
        folder = run_dir / f"node_{node}"
        sink = WandbSink(
            import_wandb(),
            config.wandb,
            ModelManagementConfig(),
            folder,
            str(config.run_name),
            RunIdentity(wandb_id, given=False),
            "online",
            self._timeout,
            request_stop=lambda: None,  # the leading node is told as well
            node=node,
        )
        self._sink = QueuedSink(sink)

    def finish(self, exit_code: int) -> None:
        self._sink.finish(exit_code, time.monotonic() + self._timeout)


def join_as_node(config: Config, run_dir: Path, tracker: RunTracker, accelerator: Accelerator) -> SharedNode | None:
    """This machine's part in the run, if `wandb.shared` asks for it and this is the first rank of a further node.

    Every rank calls it, because the leading one says which run it is.
    """
    from accelerate.utils import broadcast_object_list

    if not (config.wandb.enabled and config.wandb.shared) or accelerator.num_processes == 1:
        return None
    (wandb_id,) = broadcast_object_list([tracker.wandb_id])
    node = int(os.environ.get("GROUP_RANK", "0"))  # torchrun's name for the number of the node
    if (
        wandb_id is None
        or node == 0
        or not accelerator.is_local_main_process
        or effective_mode(config.wandb) != "online"
    ):
        return None
    try:
        return SharedNode(config, run_dir, wandb_id, node)
    except Exception as error:
        warn_switched_off(f"wandb on node {node}", error)
        return None
