"""A small training that any number of processes can share: the same samples in every step, divided among the ranks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from accelerate.utils import gather_object
from torch.distributed.tensor import DTensor

from atlas.checkpoints import Captured
from atlas.checkpoints.contents import TrainingState, random_state
from atlas.config import Config, load_config
from atlas.policies.base import Policy
from atlas.policies.modular.policy import ModularPolicy
from atlas.training.parallel.block_setup import set_up_blocks
from atlas.training.parallel.strategy import make_strategy
from atlas.types import Batch
from tests.policies.test_policy import HORIZON, SIZE, SMALL, make_processor
from tests.training.ranks import make_accelerator

SAMPLES = 8  # of a step, on all ranks together
TASKS = ("pick up the red cube", "open it", "close the upper drawer of the cabinet")
JOB = [
    *SMALL,
    "model.vision={name: vggt, stem_width: 16, keypoints: 8, keypoint_groups: 4, embed_dim: 32, depth: 1}",
    "model.fusion.dropout=0",
    "model.head={name: flow_matching, dim: 32, layers: 1, heads: 2}",
    "training.ema_decay=0.9",
    "training.max_grad_norm=0.5",
    "training.learning_rate=3e-3",
]


@dataclass
class Shown:
    """What a training showed: the losses of its steps, their gradients' norms, and its weights at the end."""

    losses: list[float]
    norms: list[float]
    trained: dict[str, torch.Tensor]
    judged: dict[str, torch.Tensor]


class Training:
    """Trains as the Trainer does, in as many processes as there are."""

    def __init__(self, *overrides: str) -> None:
        self.config, policy = make_job(*overrides)
        self.accelerator = make_accelerator(self.config)
        policy.to(self.accelerator.device)
        set_up_blocks(policy, self.config.training.activation_checkpointing, compiled=False)
        self.strategy = make_strategy(policy, self.config, self.accelerator)
        self.losses: list[float] = []
        self.norms: list[float] = []

    def run(self, steps: range) -> Training:
        self.strategy.model.train()
        for step in steps:
            self._step(step)
        return self

    def _step(self, step: int) -> None:
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        parts = self.config.training.gradient_accumulation_steps
        batch, share = make_step(step).to(self.accelerator.device), SAMPLES // (world * parts)
        assert batch.action_is_pad is not None
        valid = int((~batch.action_is_pad).sum())
        loss = torch.zeros((), device=self.accelerator.device)
        for part in range(parts):
            start = (part * world + rank) * share
            mine = rows(batch, start, start + share)
            if part < parts - 1:
                with self.strategy.accumulating():
                    loss += self._backward(mine, valid)
            else:
                loss += self._backward(mine, valid)
        self.norms.append(float(self.strategy.clip(self.config.training.max_grad_norm)))
        self.strategy.optimizer.step()
        self.strategy.optimizer.zero_grad(set_to_none=True)
        self.strategy.stepped(step)
        self.losses.append(float(self.accelerator.reduce(loss, "sum")))

    def _backward(self, batch: Batch, valid: int) -> torch.Tensor:
        terms = self.strategy.model(batch)
        share = terms.loss * terms.n_valid / valid
        self.accelerator.backward(share * self.accelerator.num_processes)
        return share.detach()

    def snapshot(self, step: int) -> Captured | None:
        state = TrainingState(step, SAMPLES * step, self.accelerator.num_processes)
        return self.strategy.snapshot(state, gather_object([random_state()]))

    def shown(self) -> Shown:
        trained = {name: whole(p) for name, p in self.strategy.policy.named_parameters()}
        with self.strategy.judged() as policy:
            judged = {name: whole(p) for name, p in policy.named_parameters()}
        return Shown(self.losses, self.norms, trained, judged)


def train(steps: int, *overrides: str) -> Shown:
    return Training(*overrides).run(range(steps)).shown()


def train_briefly(policy: Policy, samples: Batch, config: Config, clip: float) -> dict[str, Any]:
    """Two steps of any policy, as the Trainer makes them, on as many processes as there are; no step's loss depends on
    their number. samples: three, of which the first two are learned from; nothing is padded, so that each counts the
    same. Gives the steps' losses, the trained weights, and the actions of the first sample."""
    accelerator = make_accelerator(config)
    set_up_blocks(policy, config.training.activation_checkpointing, compiled=False)
    strategy = make_strategy(policy, config, accelerator)
    strategy.model.train()
    share = 2 // accelerator.num_processes
    mine = rows(samples, accelerator.process_index * share, (accelerator.process_index + 1) * share)
    losses = []
    for _ in range(2):
        loss = strategy.model(mine).loss
        accelerator.backward(loss)
        strategy.clip(clip)
        strategy.optimizer.step()
        strategy.optimizer.zero_grad(set_to_none=True)
        losses.append(float(accelerator.reduce(loss.detach(), "mean")))
    trained = {name: whole(p) for name, p in strategy.policy.named_parameters() if p.requires_grad}
    with strategy.judged() as judged, torch.no_grad():
        sampled = judged.sample(rows(samples, 0, 1))
    return {"losses": losses, "trained": trained, "sampled": sampled}


def check_trained_alike(found: dict[str, Any], alone: dict[str, Any], weights: float) -> None:
    """Of `train_briefly`. weights: how far they may be apart, as AdamW makes whole steps of small gradients."""
    assert found["losses"] == pytest.approx(alone["losses"], abs=1e-4)
    assert furthest(found["trained"], alone["trained"]) < weights
    assert found["sampled"] == pytest.approx(alone["sampled"], abs=5e-2)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().cpu().clone()


def make_job(*overrides: str) -> tuple[Config, ModularPolicy]:
    config = load_config({}, [*JOB, *overrides])
    torch.manual_seed(0)
    return config, ModularPolicy(config.model, make_processor())


def make_step(step: int) -> Batch:
    """The samples of a step; the second half has more padding."""
    generator = torch.Generator().manual_seed(step)
    actions = torch.rand(SAMPLES, HORIZON, 7, generator=generator) * 2 - 1
    actions[..., 6] = actions[..., 6].sign()
    lengths = torch.tensor([4, 4, 3, 4, 1, 2, 1, 3])
    return Batch(
        images=torch.randint(0, 256, (SAMPLES, 2, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8),
        proprio=torch.randn(SAMPLES, 8, generator=generator),
        instruction=[TASKS[i % 3] for i in range(SAMPLES)],
        source=torch.zeros(SAMPLES, dtype=torch.int64),
        actions=actions,
        action_is_pad=torch.arange(HORIZON) >= lengths[:, None],
        key=torch.arange(SAMPLES) + SAMPLES * step,
    )


def rows(batch: Batch, start: int, stop: int) -> Batch:
    """Some samples of a batch."""
    return replace(batch, **{name: value[start:stop] for name, value in vars(batch).items() if value is not None})


def furthest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The largest difference of two sets of weights."""
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).detach().abs().max()) for name in a)
