"""The layout of a policy and its training over the ranks: whole on each of them, or sharded."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import nn
from torch.utils import _pytree

from atlas.checkpoints import Captured, Checkpoints
from atlas.checkpoints.contents import RankState, Snapshot, TrainingState, load_rank_states
from atlas.checkpoints.host_memory import HostMemory
from atlas.checkpoints.run_folder import Retention
from atlas.checkpoints.shards import open_training, restore_moments
from atlas.config import Config, TrainingConfig
from atlas.errors import InputError
from atlas.policies.base import Policy
from atlas.training.average import WeightAverage
from atlas.training.optimizer import make_optimizer
from atlas.types import LossTerms

logger = logging.getLogger(__name__)


class Strategy(Protocol):
    """Everything that the Trainer needs to know about ranks. Every rank has one and calls the same methods in the same
    order.

    A step: `model(batch)` and a backward for each part of it, all but the last within `accumulating`; then `clip`, the
    optimizer's step and `stepped`. Gradients are means over the ranks.
    """

    policy: Policy  # what is trained
    model: nn.Module  # called with a Batch, returns LossTerms
    optimizer: torch.optim.Optimizer

    def accumulating(self) -> AbstractContextManager[None]:
        """Within it, forward and backward add to the gradients but do not exchange them."""

    def clip(self, max_norm: float) -> torch.Tensor:
        """Scale the gradients down to `max_norm`; returns their norm before that, 0-d, the same on every rank."""

    def stepped(self, step: int) -> None:
        """Call it after optimizer step `step` (from 0): the average follows the weights."""

    def inspected(self) -> AbstractContextManager[Policy | None]:
        """Within it, on the main rank, a policy with the trained weights and their gradients, all of them complete."""

    def judged(self) -> AbstractContextManager[Policy]:
        """Within it, the policy to validate and evaluate: complete on each rank, in eval mode, with the averaged
        weights if there are any. Ranks may use it as much or as little as they like. Training continues afterwards."""

    def checkpoints(self, run_dir: Path, retention: Retention | int) -> Checkpoints:
        """The checkpoints that `snapshot`'s contents are written to, by each rank that has some."""

    def snapshot(self, state: TrainingState, rank_states: Sequence[RankState]) -> Captured | None:
        """The contents of a checkpoint now, copied to the CPU; None if this rank takes no part in writing it.

        They are valid until the next call: write them before that. rank_states: one per rank.
        """

    def load(self, checkpoint: Path) -> list[RankState]:
        """Resume from a checkpoint, also of another strategy or number of ranks. Returns the states of its ranks.

        Raises InputError if something is damaged or does not fit.
        """


class Replicated:
    """Each rank has the whole policy and optimizer, and gradients are averaged (DDP); also for a single process."""

    def __init__(self, policy: Policy, config: Config, accelerator: Accelerator) -> None:
        """policy: on the accelerator's device. The accelerator must have been made with `ddp_settings`."""
        self.policy = policy
        decay = config.training.ema_decay
        self._average = WeightAverage(policy, decay) if decay else None
        self.optimizer: torch.optim.Optimizer = make_optimizer(policy, config.training)
        with warnings.catch_warnings():  # about a newer name for a setting, which accelerate does not have yet
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            self.model: nn.Module = accelerator.prepare_model(policy)
        self._accelerator = accelerator
        self._memory = HostMemory()

    def accumulating(self) -> AbstractContextManager[None]:
        return self._accelerator.no_sync(self.model)

    def clip(self, max_norm: float) -> torch.Tensor:
        return torch.nn.utils.clip_grad_norm_(self.policy.parameters(), max_norm)

    def stepped(self, step: int) -> None:
        if self._average is not None:
            self._average.update(self.policy, step)

    @contextmanager
    def inspected(self) -> Iterator[Policy | None]:
        yield self.policy if self._accelerator.is_main_process else None

    @contextmanager
    def judged(self) -> Iterator[Policy]:
        try:
            yield self._judged.eval()
        finally:
            self.model.train()  # including what the average shares with the policy

    @property
    def _judged(self) -> Policy:
        return self.policy if self._average is None else self._average.policy

    def checkpoints(self, run_dir: Path, retention: Retention | int) -> Checkpoints:
        return Checkpoints(run_dir, retention)

    def snapshot(self, state: TrainingState, rank_states: Sequence[RankState]) -> Captured | None:
        if not self._accelerator.is_main_process:
            return None
        return Snapshot.of(self._judged, self.policy, self.optimizer, state, rank_states).copied(self._memory)

    def load(self, checkpoint: Path) -> list[RankState]:
        weights = {name: p for name, p in self.policy.named_parameters() if p.requires_grad}
        stored = open_training(checkpoint, weights, self.optimizer)
        check_average(checkpoint, stored.has_weights, self._average is not None)
        self._judged.load_weights(checkpoint / "policy" / "model.safetensors")
        if stored.has_weights:
            for name, weight in weights.items():
                weight.data.copy_(stored.weight(name, weight.shape))
        if stored.has_moments:
            restore_moments(self.optimizer, weights, lambda name, weight: stored.moments(name, weight.shape))
        return load_rank_states(checkpoint)


def make_strategy(policy: Policy, config: Config, accelerator: Accelerator) -> Strategy:
    """The one that `distributed.strategy` names; with one process there is nothing to shard, which is logged.

    policy: on the accelerator's device, the same on every rank. Parts of it are replaced in place.
    """
    if config.distributed.strategy == "ddp":
        return Replicated(policy, config, accelerator)
    if accelerator.num_processes == 1:
        logger.info("distributed.strategy is fsdp, but with one process there is nothing to shard.")
        return Replicated(policy, config, accelerator)
    from atlas.training.parallel.sharded import Sharded

    return Sharded(policy, config, accelerator)


def ddp_settings(training: TrainingConfig) -> DistributedDataParallelKwargs:
    """The settings with which accelerate wraps a policy in DDP. Frozen weights need no setting: DDP leaves them out."""
    return DistributedDataParallelKwargs(
        gradient_as_bucket_view=True,
        # Statistics and frozen backbones have buffers, which are the same everywhere and stay so.
        broadcast_buffers=False,
        # A policy uses the same weights in every step. Not when gradients are accumulated: torch then mistakes the
        # first backward without an exchange for the one to learn the graph from, and raises (pytorch/pytorch#187732).
        static_graph=training.gradient_accumulation_steps == 1,
    )


def check_average(checkpoint: Path, saved: bool, wanted: bool) -> None:
    """Raises InputError if the checkpoint has averaged weights and the config asks for none, or the reverse."""
    if wanted and not saved:
        raise InputError(f"{checkpoint} was saved without training.ema_decay, but this config sets it; set it to 0.")
    if saved and not wanted:
        raise InputError(f"{checkpoint} was saved with training.ema_decay, but this config has none; set it as it was.")


def _terms_to_list(terms: LossTerms) -> tuple[list[Any], None]:
    return [terms.loss, terms.n_valid, terms.terms], None


def _terms_from_list(values: Any, _: None) -> LossTerms:
    return LossTerms(*values)


# DDP with a static graph, and FSDP, hook into what a model returns; they only see types that torch's trees know.
_pytree.register_pytree_node(LossTerms, _terms_to_list, _terms_from_list)


class Consensus:
    """One small exchange, so that all ranks skip the same steps and stop after the same one."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._device = accelerator.device
        self._several = accelerator.num_processes > 1

    def largest(self, values: torch.Tensor) -> list[int]:
        """The largest of each value over all ranks. values: int64 [n], on the device; every rank must call it."""
        if self._several:
            torch.distributed.all_reduce(values, torch.distributed.ReduceOp.MAX)
        return values.tolist()

    def tensor(self, value: int) -> torch.Tensor:
        """int64 0-d on the device, without waiting for it."""
        return torch.full((), value, dtype=torch.int64, device=self._device)
